"""Tidy tables: rows, contrasts over seeds, and the finding that settles a part of a claim.

Runs of one seed share their draws, so every comparison is paired. A difference has its Student
interval, a ratio of means its bootstrap interval; both are 95 % intervals over seeds.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from companion.checks import Array
from companion.evaluation import Interval, bootstrap, estimate

WORDS = ("proved", "supported", "contradicted", "mixed", "inconclusive", "untested")
Statistic = Callable[[Array, Array], Interval]


@dataclass(frozen=True)
class Finding:
    """What settles one part of a claim: its word, and the number that decides it (but for a proof).
    ``what`` says what the number is and of which case; ``cases`` has the word of every case where a
    part is asked of several. An inconclusive finding has the ``detectable`` effect: the smallest
    distance from the null that would have been seen with 80 % power."""

    word: str
    interval: Interval | None = None
    what: str = ""
    cases: Mapping[str, str] = field(default_factory=dict)
    detectable: float | None = None


def where(table: pd.DataFrame, **columns: Any) -> pd.DataFrame:
    """The rows whose columns have these values (any of them, for a tuple)."""
    for name, value in columns.items():
        table = table[table[name].isin(value if isinstance(value, tuple) else (value,))]
    return table


def by_seed(table: pd.DataFrame, column: str, **columns: Any) -> Array:
    """One number a seed, in the order of the seeds; ValueError unless each seed has one row."""
    rows = where(table, **columns).sort_values("seed")
    if rows.empty or not rows["seed"].is_unique:
        raise ValueError(f"{columns} must name one row a seed, got {len(rows)} rows of "
                         f"{rows['seed'].nunique()} seeds; name more columns")
    return np.asarray(rows[column], dtype=float)


def ratio(top: Array, bottom: Array) -> Interval:
    """The ratio of two means over seeds, [seed] each and paired."""
    pairs = np.stack([top, bottom], axis=1)
    return bootstrap(lambda drawn: drawn[..., 0].mean(-1) / drawn[..., 1].mean(-1), pairs)


def difference(top: Array, bottom: Array) -> Interval:
    """The mean difference over seeds, [seed] each and paired."""
    return mean(top - bottom)


def mean(values: Array) -> Interval:
    """The mean over seeds, [seed]."""
    average = estimate(values)
    return Interval(average.value, *average.interval())


def slope(table: pd.DataFrame, x: str, values: str) -> Interval:
    """The least-squares slope of a column against the numbers of ``x``, one fit a seed: its mean
    over seeds."""
    wide = table.pivot(index="seed", columns=x, values=values)
    centred = np.asarray(wide.columns, dtype=float) - np.mean(wide.columns)
    return mean(wide.to_numpy() @ centred / (centred @ centred))


def columns(interval: Interval) -> dict[str, float]:
    """An interval as the columns ``value``, ``low``, ``high``."""
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def means(table: pd.DataFrame, keys: Sequence[str], column: str) -> pd.DataFrame:
    """The mean of a column over seeds, for every group of equal ``keys``: value, low, high."""
    groups = table.groupby(list(keys), sort=False, dropna=False)
    return pd.DataFrame([dict(zip(keys, key, strict=True)) | columns(mean(by_seed(rows, column)))
                         for key, rows in groups])


def contrast(table: pd.DataFrame, keys: Sequence[str], column: str,
             against: Mapping[str, Any] | str, how: Statistic = ratio, *,
             swap: bool = False) -> pd.DataFrame:
    """A column against its baseline, for every group of equal ``keys``: value, low, high. The
    baseline is another column of the same rows, or the rows with the entries of ``against`` in
    place of their own. Groups that are their own baseline, or have none, are left out. ``swap``
    puts the baseline on top."""
    groups = dict(iter(table.groupby(list(keys), sort=False)))
    found = []
    for key, rows in groups.items():
        named = dict(zip(keys, key, strict=True))
        if isinstance(against, str):
            base = by_seed(rows, against)
        else:
            other = tuple((named | dict(against)).values())
            if other == key or other not in groups:
                continue
            base = by_seed(groups[other], column)
        pair = (by_seed(rows, column), base)
        found.append(named | columns(how(*(pair[::-1] if swap else pair))))
    return pd.DataFrame(found)


def best(table: pd.DataFrame, keys: Sequence[str], choice: str = "alpha", by: str = "valid", *,
         most: bool = False) -> pd.DataFrame:
    """The rows of every group of ``keys`` at the ``choice`` of least (or most) mean ``by``."""
    average = table.groupby([*keys, choice], sort=False)[by].mean().reset_index()
    groups = average.groupby(list(keys), sort=False)[by]
    picked = average.loc[groups.idxmax() if most else groups.idxmin(), [*keys, choice]]
    return table.merge(picked, on=[*keys, choice])


def word(row: Any, *, above: float | None = None, inside: tuple[float, float] | None = None) -> str:
    """The word of one interval: is the number above a threshold, or inside a range?"""
    if inside is None:
        yes, no = row.low > above, row.high < above
    else:
        yes = inside[0] <= row.low and row.high <= inside[1]
        no = row.high < inside[0] or row.low > inside[1]
    return "supported" if yes else "contradicted" if no else "inconclusive"


def together(words: Iterable[str]) -> str:
    """The word of a part from those of its cases: one word if all agree, mixed where some are
    supported and some contradicted, inconclusive otherwise."""
    every = set(words)
    mixed = {"supported", "contradicted"} <= every
    return every.pop() if len(every) == 1 else "mixed" if mixed else "inconclusive"


def judge(rows: pd.DataFrame, what: str, names: Sequence[str] = (), *, above: float | None = None,
          inside: tuple[float, float] | None = None) -> Finding:
    """The finding of a part that is asked of every row, an interval each. The row that is furthest
    on the wrong side, or nearest to it, gives the number; ``names`` are the columns that tell the
    cases apart."""
    cases = {_case(row, names): word(row, above=above, inside=inside) for _, row in rows.iterrows()}
    margin = rows["low"]
    if inside is not None:
        margin = np.minimum(margin - inside[0], inside[1] - rows["high"])
    row, outcome = rows.loc[margin.idxmin()], together(cases.values())
    case = _case(row, names)
    interval = Interval(*(float(row[name]) for name in ("value", "low", "high")))
    return Finding(outcome, interval, f"{what}, weakest case ({case})" if case else what,
                   cases if names else {},
                   interval.detectable if outcome == "inconclusive" else None)


def _case(row: Mapping[str, Any], names: Sequence[str]) -> str:
    """A case in words: texts as they are, numbers with the name of their column; the values ``x``
    of a sweep with the sweep's name."""
    titles = dict(zip(names, names, strict=True))
    if "x" in titles and "sweep" in row:
        titles["x"] = row["sweep"]
        titles.pop("sweep", None)
    return ", ".join(row[name] if isinstance(row[name], str)
                     else f"{title.replace('_', ' ')} {row[name]:g}"
                     for name, title in titles.items())
