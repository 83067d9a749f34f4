"""What chapters tell: glued numbers, tables of tidy frames, boxes of claims, and their colours."""

import re
from html import escape
from pathlib import Path

import matplotlib.pyplot as plt
import myst_nb
import numpy as np
import pandas as pd
import pytest

from companion import claims, pages
from companion.evaluation import Estimate, Interval
from companion.records import Record
from companion.tables import WORDS, Finding

ROOT = Path(__file__).resolve().parents[1]


def claim(*found: Finding, ident: str = "D1") -> claims.Verdict:
    parts = tuple(claims.Part(**vars(one), name=f"part {i}", scope="any <x>",
                              criterion=f"criterion {i}.", links={"Theorem": "depth/x#thm-x"},
                              source="made/full" if one.interval else None, device="cpu",
                              date="2026-01-02")
                  for i, one in enumerate(found))
    return claims.Verdict(ident, "D", "Depth <helps>.", "book/depth/shallow", parts)


PROVED = Finding("proved")
MIXED = Finding("mixed", Interval(1.2345, 1.1, 1.4), "ratio, weakest (b)",
                {"a": "supported", "b": "contradicted"})
UNCLEAR = Finding("inconclusive", Interval(1.0, 0.9, 1.1), "ratio", {"a": "inconclusive"}, 0.1429)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger of two claims, the second of which has not been run in full."""
    def evaluate(profile: str, ident: str | None = None) -> list[claims.Verdict]:
        second = (Finding("untested"),) if profile == "full" else (UNCLEAR,)
        every = [claim(PROVED, MIXED), claim(*second, ident="D2")]
        return [one for one in every if ident in (None, one.id)]

    monkeypatch.setattr(claims, "evaluate", evaluate)


def test_tell_glues_what_a_page_can_print(monkeypatch: pytest.MonkeyPatch) -> None:
    glued = {}
    monkeypatch.setattr(myst_nb, "glue",
                        lambda name, value, display: glued.update({name: (value, display)}))
    pages.tell(gap=np.float64(1.23456789), low=np.float32(0.1), count=np.int64(3),
               huge=123456789, word="mixed", interval=Interval(1.2345, 1.1, 1.4),
               error=Estimate(4.33681, 0.0123, 9))
    assert glued == {"gap": (1.23457, False), "low": (0.1, False), "count": (3, False),
                     "huge": (123456789, False), "word": ("mixed", False),
                     "interval": ("1.234 [1.100, 1.400]", False), "error": ("4.337 ± 0.012", False)}
    assert [type(glued[name][0]) for name in ("gap", "low", "count")] == [float, float, int]


def test_a_figure_is_shown_and_glued_as_a_plain_image(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []
    monkeypatch.setattr("myst_nb.ext.glue.ipy_display",
                        lambda data, raw, metadata: sent.append((data, metadata["scrapbook"])))
    figure, _ = plt.subplots()
    pages.show(figure, "fig_one")
    ((data, named),) = sent
    assert named == {"name": "fig_one", "mime_prefix": ""}
    assert all("papermill" not in kind for kind in data)
    assert not plt.fignum_exists(figure.number)


def cells(html: str) -> list[list[str]]:
    return [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", line)
            for line in re.findall(r"<tr.*?>(.*?)</tr>", html, re.DOTALL)]


FRAME = pd.DataFrame([{"kind": "b", "steps": 5, "model": "deep", "value": 2.0, "low": 1.0,
                       "high": 3.0},
                      {"kind": "b", "steps": 5, "model": "plain", "value": 4.0, "low": 3.5,
                       "high": 4.5},
                      {"kind": "a", "steps": 1, "model": "deep", "value": 6.0, "low": 5.5,
                       "high": 6.5}])


def test_pivot_has_a_line_an_index_and_a_column_a_value() -> None:
    found = cells(pages.pivot(FRAME, ["kind", "steps"], "model",
                              names={"kind": "tasks", "b": "boundaries", "plain": "MAML"},
                              caption="Gain & loss.").data)
    assert found == [["tasks", "steps", "deep", "MAML"],
                     ["boundaries", "5", "2.00 [1.00, 3.00]", "4.00 [3.50, 4.50]"],
                     ["a", "1", "6.00 [5.50, 6.50]", ""]]


def test_pivot_with_texts_of_ones_own() -> None:
    rows = FRAME.assign(steps=FRAME["steps"] / 10)
    found = cells(pages.pivot(rows, ["kind", "steps"], "model",
                              lambda row: f"{row['value']:.0f} < 9", caption="Few.").data)
    assert found[1] == ["b", "0.5", "2 &lt; 9", "4 &lt; 9"]


def test_pivot_refuses_two_rows_of_one_cell() -> None:
    with pytest.raises(ValueError, match=r"rows must be one a cell, got several alike in "
                                         r"\['kind', 'model'\]"):
        pages.pivot(pd.concat([FRAME, FRAME]), ["kind"], "model", caption="Twice.")


SITTING = {"started": "2026-01-02T03:04:05+00:00", "processor": "A <CPU>", "seconds": 93.0,
           "commit": "0123abcd"}
ORIGIN = {"device": "cpu", "threads": 1, "points": 7, "experiment": "race", "profile": "full",
          "sittings": [SITTING]}


def facts(**changes: object) -> str:
    """What the line under a figure says of a record with two seeds, after its command."""
    record = Record(pd.DataFrame({"seed": [3, 4, 3]}), ORIGIN | changes)
    line = pages.provenance(record).data
    assert "Made by <code>companion run race --profile full</code>: 2 seeds, " in line
    return line.partition("2 seeds, ")[2].removesuffix(".</p>")


def test_provenance_is_the_command_and_the_facts() -> None:
    assert facts() == "2026-01-02, cpu, A &lt;CPU&gt;, threads: 1, 1.6 min"
    assert facts(threads=2) == "2026-01-02, cpu, A &lt;CPU&gt;, threads: 2, 1.6 min"
    line = pages.provenance(Record(pd.DataFrame({"x": [1]}), ORIGIN)).data
    assert "</code>: 2026-01-02, cpu" in line


def test_provenance_tells_every_sitting() -> None:
    later = SITTING | {"started": "2026-02-03T03:04:05+00:00", "processor": "B"}
    told = facts(sittings=[SITTING, later])
    assert told == "2026-02-03, cpu, A &lt;CPU&gt;, B, threads: 1, 3.1 min in 2 sittings"
    unknown = dict.fromkeys(SITTING)
    assert "1.6 min and earlier sittings, from code that is no commit" in facts(
        sittings=[unknown, SITTING])
    assert "from code that is no commit" in facts(sittings=[SITTING | {"commit": "0123+dirty"}])
    again = {"started": "2026-03-04T03:04:05+00:00", "commit": "0123abcd", "points": 7}
    assert facts(sittings=[unknown, SITTING], measured_again=[again]) == (
        "2026-01-02, cpu, A &lt;CPU&gt;, threads: 1, 1.6 min and earlier sittings, "
        "measured again on 2026-03-04, and equal")
    for less in ({"points": 6}, {"commit": None}, {"commit": "0123+dirty"}):
        assert "from code that is no commit" in facts(
            sittings=[unknown, SITTING], measured_again=[again | less])
    assert "time unknown" in facts(sittings=[SITTING | {"seconds": None}])


def test_the_box_of_a_claim(shown: None) -> None:
    html = pages.verdict("D1").data
    assert html.startswith('<div class="admonition claim">')
    assert "Claim D1: Depth &lt;helps&gt;." in html
    assert "(any &lt;x&gt;)" in html
    first, second = re.findall("<li>(.*?)</li>", html)
    assert "criterion 0." in first
    assert '<span class="word proved">proved</span>' in first
    assert "criterion 1." in second
    assert "ratio, weakest (b): 1.234 [1.100, 1.400]<br>supported: a<br>contradicted: b" in second
    assert "80 % power" not in html
    unclear = pages.verdict("D2", "quick").data
    assert "ratio: 1.000 [0.900, 1.100]<br>An effect of 0.14 would have been seen with" in unclear
    assert "inconclusive: a" not in unclear  # cases that agree need no list


def test_many_cases_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {f"case {i}": "supported" for i in range(7)} | {"odd": "contradicted"}
    found = Finding("mixed", Interval(1.2, 1.1, 1.4), "ratio", cases)
    monkeypatch.setattr(claims, "evaluate", lambda profile, ident: [claim(found)])
    assert "supported: 7 cases<br>contradicted: odd" in pages.verdict("D1").data


def test_the_ledger_has_a_card_a_claim(shown: None) -> None:
    html = pages.ledger().data
    assert re.findall('<section class="claim-card" id="(.*?)">', html) == ["claim-d1", "claim-d2"]
    _, one, two = html.split("<section")
    assert one.count('class="claim-part"') == 2
    assert one.count("<em>full:</em>") == one.count("<em>quick:</em>") == 2
    assert 'href="depth/shallow.html"' in one
    assert 'href="depth/x.html#thm-x"' in one
    assert 'href="../results/made/full/provenance.json"' in one
    assert "True" not in html
    assert 'word untested">untested' in two
    assert 'word inconclusive">inconclusive' in two


EVIL = """"><script>alert('x')</script>&"""


def test_nothing_of_a_record_becomes_markup() -> None:
    """A provenance may be from anybody."""
    origin = {"device": EVIL, "threads": EVIL, "points": 1, "experiment": EVIL, "profile": EVIL,
              "sittings": [SITTING | {"processor": EVIL, "started": EVIL, "commit": EVIL}]}
    html = pages.provenance(Record(pd.DataFrame({"seed": [3]}), origin)).data
    assert html.count("<") == 4  # of the paragraph and of the command
    assert f"companion run {escape(EVIL)} --profile {escape(EVIL)}</code>" in html


def test_nothing_of_a_claim_becomes_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    part = claims.Part(EVIL, Interval(1.2345, 1.1, 1.4), EVIL, {EVIL: "supported", "b": "mixed"},
                       name=EVIL, scope=EVIL, criterion=EVIL, links={EVIL: "depth/x#thm-x"},
                       source=EVIL, device=EVIL, date=EVIL)
    evil = claims.Verdict(EVIL, "D", EVIL, "book/depth/shallow", (part,))
    monkeypatch.setattr(claims, "evaluate", lambda profile, ident=None: [evil])
    for html in (pages.ledger().data, pages.summary().data, pages.verdict(EVIL).data):
        assert "<script" not in html.lower()
        kinds = {tag.partition(" ")[0].strip("/") for tag in re.findall("<(.*?)>", html)}
        assert kinds <= {"section", "h3", "p", "a", "div", "span", "strong", "em", "br", "li", "ul",
                         "details", "summary"}
        for name, value in re.findall(r'(\w+)="(.*?)"', html):
            assert name in ("class", "id", "href")
            assert not set(value) & set("<>'")


@pytest.mark.parametrize("target", ["javascript:alert(1)", "https://example.org/x", "//example.org",
                                    "../x", "/x", "depth/x#a#b", 'x"onclick="y', "", "x#", "a b",
                                    "depth/x\n"])
def test_links_of_claims_stay_in_the_book(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    for links, chapter in (({"Theorem": target}, "book/x"), ({}, f"book/{target}")):
        part = claims.Part("proved", name="a", scope="b", criterion="c", links=links)
        made = claims.Verdict("D1", "D", "Depth.", chapter, (part,))
        monkeypatch.setattr(claims, "evaluate", lambda profile, made=made: [made])
        with pytest.raises(ValueError, match="a link of a claim must be page#label, both of let"):
            pages.ledger()


def test_nothing_in_a_table_becomes_markup() -> None:
    rows = pd.DataFrame([{"kind": EVIL, "model": EVIL, "value": 2.0, "low": 1.0, "high": 3.0}])
    html = pages.pivot(rows, ["kind"], "model", lambda row: EVIL, caption=EVIL).data
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 4  # caption, head, line, cell


def test_the_ledger_in_small_has_a_line_a_claim(shown: None) -> None:
    one, two = re.findall("<li>(.*?)</li>", pages.summary().data)
    assert one.startswith('<a href="book/ledger.html#claim-d1">D1</a> Depth &lt;helps&gt;.')
    assert re.findall('<span class="word (.*?)">', one) == ["proved", "mixed"]
    assert len(re.findall('<span class="word', two)) == 1


def test_cases_have_the_names_that_readers_know(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = {"mlp, reluctant": "contradicted", "relu, alpha 0.2": "supported",
             "omniglot, rho hard 0.3, k 10": "contradicted"}
    found = Finding("mixed", Interval(1.2, 1.1, 1.4), "ratio of maml", cases)
    monkeypatch.setattr(claims, "evaluate", lambda profile, ident: [claim(found)])
    said = pages.verdict("D1").data
    assert ("supported: ReLU, α 0.2<br>contradicted: MLP, reluctant; "
            "Omniglot, ρ_H 0.3, steps at test 10" in said)
    assert "ratio of MAML: 1.2" in said
    exact = Finding("mixed", Interval(-0.2, -0.2, -0.2), "order", cases)
    monkeypatch.setattr(claims, "evaluate", lambda profile, ident: [claim(exact)])
    assert "order: -0.2<br>" in pages.verdict("D1").data


def luminance(colour: str) -> float:
    parts = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("theme", ["html", 'html[data-theme="dark"]'])
def test_the_colours_of_the_words_have_contrast(theme: str) -> None:
    """WCAG 2.1: 4.5 to 1 for text, on the ground that a word has in that theme."""
    css = (ROOT / "book" / "static" / "book.css").read_text(encoding="utf-8")
    (block,) = re.findall(rf"^{re.escape(theme)} {{(.*--word-ground.*)}}$", css, re.MULTILINE)
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
    ground = luminance(colours.pop("word-ground"))
    assert set(colours) == set(WORDS)
    for word, colour in colours.items():
        pair = sorted([luminance(colour), ground])
        assert (pair[1] + 0.05) / (pair[0] + 0.05) >= 4.5, word
