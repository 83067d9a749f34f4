"""What a chapter tells its reader: numbers, tables, verdicts, and where a record is from."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from numbers import Integral
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from companion import claims, figures, records
from companion.checks import require
from companion.claims import Part
from companion.evaluation import Estimate, Interval
from companion.records import Record


def tell(**numbers: Any) -> None:
    """Glue numbers under their names: floats to six digits, intervals and estimates as texts."""
    from myst_nb import glue  # only here: only a chapter needs it

    for name, value in numbers.items():
        if isinstance(value, Interval | Estimate):
            value = plus_minus(value)
        elif not isinstance(value, str):
            value = int(value) if isinstance(value, Integral) else float(f"{float(value):.6g}")
        glue(name, value, display=False)


def show(figure: Figure, name: str) -> None:
    """Show a figure and glue it under ``name``, so that other pages can show it too."""
    from myst_nb import glue

    # glued as a plain image: the checks of the notebooks compare any other kind byte for byte
    glue(name, figure, display=True)
    plt.close(figure)


def plus_minus(number: Interval | Estimate) -> str:
    """A number with its 95 % interval, or with its standard error, to the digits it allows."""
    return str(number)


def pivot(rows: pd.DataFrame, index: Sequence[str], columns: str,
          text: Callable[[Mapping[Any, Any]], object] = lambda row: Interval(
              row["value"], row["low"], row["high"]),
          names: Mapping[Any, str] | None = None, *, caption: str) -> HTML:
    """A tidy frame as a table: a line for each of ``index``, a column for each value of
    ``columns``, in order of appearance; ValueError for two rows of one cell. ``text`` makes a cell
    from a row, by default its interval; ``names`` rename columns and values; ``caption`` says what
    the table shows."""
    require(not rows.duplicated([*index, columns]).any(), "rows", "be one a cell",
            f"several alike in {[*index, columns]}", "filter them, or name more columns in index")
    lines: dict[tuple[Any, ...], dict[Any, object]] = {}
    for row in rows.to_dict("records"):
        lines.setdefault(tuple(row[key] for key in index), {})[row[columns]] = text(row)

    def named(value: Any) -> str:
        return (names or {}).get(value, f"{value:g}" if isinstance(value, float) else str(value))

    table = {named(key): [named(line[i]) for line in lines] for i, key in enumerate(index)}
    return figures.table(table | {named(head): [line.get(head, "") for line in lines.values()]
                                  for head in rows[columns].unique()}, caption=caption)


def provenance(record: Record) -> HTML:
    """The line under a figure: the command that makes its record, with date, device, processor,
    threads, seeds and minutes of the one that is shown."""
    origin, seeds = record.provenance, record.table.get("seed")
    told = [] if seeds is None else [f"{seeds.nunique()} seeds"]
    facts = ", ".join([*told, records.started(origin), origin["device"],
                       records.processors(origin), f"threads: {origin['threads']}",
                       records.took(origin), *_origin_remark(origin)])
    command = f"companion run {origin['experiment']} --profile {origin['profile']}"
    return HTML(f'<p class="made">Made by <code>{escape(command)}</code>: {escape(facts)}.</p>')


def _origin_remark(origin: Mapping[str, Any]) -> list[str]:
    """What a reader must know of the commits of a record, if anything."""
    again = [f"measured again on {one['started'][:10]}, and equal"
             for one in origin.get("measured_again", [])]
    return again if records.committed(origin) else [
        *again, "from code that is no commit, so to be made again"]


def verdict(ident: str, profile: str = "full") -> HTML:
    """The box of one claim: its statement, and of every part the criterion, word and numbers;
    ValueError for an unknown claim or profile."""
    (claim,) = claims.evaluate(profile, ident)
    items = "".join(f"<li>{_asked(part)}<br><em>Criterion:</em> {escape(part.criterion)}<br>"
                    f"{_outcome(part)}</li>" for part in claim.parts)
    return HTML('<div class="admonition claim"><p class="admonition-title">Claim '
                f"{escape(ident)}: {escape(claim.statement)}</p><ul>{items}</ul></div>")


def ledger() -> HTML:
    """A card for every claim, each part in full beside quick, with links from book/ledger."""
    return HTML("".join(
        f'<section class="claim-card" id="{_anchor(full.id)}"><h3>{escape(full.id)}</h3><p>'
        f'{escape(full.statement)} <a href="{_page(full.chapter.removeprefix("book/"))}">Chapter'
        f'</a></p>{"".join(map(_row, full.parts, quick.parts))}</section>'
        for full, quick in zip(claims.evaluate("full"), claims.evaluate("quick"), strict=True)))


def summary() -> HTML:
    """The ledger in small: a line a claim, with the words of its parts, linked from the front page
    to the ledger's cards."""
    lines = "".join(
        f'<li><a href="book/ledger.html#{_anchor(claim.id)}">{escape(claim.id)}</a> '
        f"{escape(claim.statement)}<br>" + " ".join(
            f'<span class="word {escape(part.word)}">{escape(f"{part.name}: {part.word}")}</span>'
            for part in claim.parts) + "</li>" for claim in claims.evaluate("full"))
    return HTML(f'<ul class="ledger-small">{lines}</ul>')


def _anchor(ident: str) -> str:
    return f"claim-{escape(ident.lower())}"


def _page(target: str) -> str:
    """The link to a page of the book or a label in it, from the pages beside the ledger. ValueError
    unless ``target`` is page#label: only what is below these pages, and no other scheme."""
    require(re.fullmatch(r"[\w-]+(/[\w-]+)*(#[\w-]+)?", target) is not None, "a link of a claim",
            "be page#label, both of letters, digits, - and _", repr(target), "see claims.yml")
    page, mark, label = target.partition("#")
    return f"{page}.html{mark}{label}"


def _row(full: Part, quick: Part) -> str:
    links = [(_page(target), text) for text, target in full.links.items()]
    links += [(f"../results/{part.source}/provenance.json", f"Record: {part.source}, {part.date}, "
               f"{part.device}") for part in (full, quick) if part.source]
    told = " · ".join(f'<a href="{escape(target)}">{escape(text)}</a>' for target, text in links)
    return (f'<div class="claim-part"><div>{_asked(full)}<details><summary>criterion of '
            f"{escape(full.name)}</summary>{escape(full.criterion)}</details></div>"
            f"<div><em>full:</em> {_outcome(full)}</div><div><em>quick:</em> "
            f'{_outcome(replace(quick, remark=""))}</div><p class="links">{told}</p></div>')


def _asked(part: Part) -> str:
    return f'<strong>{escape(part.name)}</strong> <span class="scope">({escape(part.scope)})</span>'


_NAMES = {"relu": "ReLU", "mlp": "MLP", "maml": "MAML", "nal": "NAL", "var_hard": "v_H",
          "var hard": "v_H", "rho_hard": "ρ_H", "rho hard": "ρ_H", "alpha": "α",
          "identity": "linear", "omniglot": "Omniglot", "hardness": "ρ_H/ρ_E", "dim": "d",
          "support": "m", "hidden": "hidden units", "k": "steps at test"}  # as readers know them


def _named(cases: Sequence[str], most: int = 6) -> str:
    if len(cases) > most:
        return f"{len(cases)} cases"
    return re.sub(rf"\b({'|'.join(_NAMES)})\b", lambda name: _NAMES[name[0]], "; ".join(cases))


def _outcome(part: Part) -> str:
    """The word of a part, its number, its cases where they differ, and what would have shown."""
    told, words = [], set(part.cases.values())
    if (seen := part.interval) is not None:
        number = f"{seen.value:.3g}" if seen.low == seen.high else plus_minus(seen)
        told.append(f"{_named([part.what])}: {number}")
    told += [f"{word}: {_named([case for case in part.cases if part.cases[case] == word])}"
             for word in ("supported", "contradicted", "inconclusive")
             if word in words and len(words) > 1]
    if part.detectable is not None:
        told.append(f"An effect of {part.detectable:.2g} would have been seen with 80 % power")
    if part.remark:
        told.append(f"{part.remark.capitalize()}: see Deviations")
    word = escape(part.word)
    return f'<span class="word {word}">{word}</span> {"<br>".join(map(escape, told))}'
