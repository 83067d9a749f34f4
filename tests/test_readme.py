"""The README's example gives the numbers that stand beside it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_example_of_depth() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[1], names)
    said = [line.split("  # ") for line in BLOCKS[1].splitlines() if line.startswith("depth.")]
    assert len(said) == 2
    for expression, text in said:
        assert eval(expression, names) == pytest.approx(float(text.split(":")[0]), abs=0.005)
    assert eval("np.trace(inputs @ tasks) / 2", names) == pytest.approx(1.67, abs=0.005)


def test_the_example_of_a_meta_optimizer() -> None:
    names: dict[str, object] = {}
    setup, last = BLOCKS[2].rsplit("\n", 2)[:2]
    exec(setup, names)
    found = eval(last.split("  # ")[0], names)
    assert {"0.weight", "2.bias", "rule/1.weight.L", "rule/2.weight.R"} <= found.keys()
    assert all(value.abs().max() > 0 for value in found.values())


def test_the_example_of_images() -> None:
    names: dict[str, object] = {}
    setup, last = BLOCKS[5].rsplit("\n", 2)[:2]
    exec(setup, names)
    expression, said = last.split("  # ")
    assert list(eval(expression, names)) == eval(said.split(":")[0])
    characters = len(names["sources"].load("glyphs").class_names)
    assert 2000 <= characters < 2200


def test_the_example_trains_a_fleet() -> None:
    names: dict[str, object] = {}
    setup, last = BLOCKS[3].rsplit("\n", 2)[:2]
    exec(setup, names)
    after = eval(last.split("  # ")[0], names)
    before = eval(last.split("  # ")[0].replace("trained", "params"), names)
    assert after.shape == (8,)
    assert (after < 0.8 * before).all()


def test_the_example_of_fleets() -> None:
    names: dict[str, object] = {}
    exec(BLOCKS[4], names)
    said = [line.split("  # ") for line in BLOCKS[4].splitlines() if line.startswith("family.risk")]
    assert len(said) == 2
    for expression, text in said:
        assert eval(expression, names) == pytest.approx(float(text.split(":")[0]), abs=0.0005)
    nal = eval("family.risk(family.minimiser_nal(), 0.8, 10)", names)
    assert nal == pytest.approx(0.308, abs=0.0005)


def test_the_example() -> None:
    block = BLOCKS[0]
    names: dict[str, object] = {}
    checked = 0
    setup, *claims = block.split("\nmixture.ratio")
    exec(setup, names)
    for line in ("mixture.ratio" + claims[0]).strip().splitlines():
        expression, said = line.split("  # ")
        digits = said.split(":")[0]
        assert eval(expression, names) == pytest.approx(float(digits),
                                                        abs=0.5 * 10 ** -len(digits.split(".")[1]))
        checked += 1
    assert checked == 5


def test_the_words_of_claims() -> None:
    """It names the six words, and which of them no part has: the ledger's notebook shows those."""
    text = README.read_text(encoding="utf-8")
    listed = text[text.index("one of six words:"):text.index("With the committed records")]
    words = set(re.findall(r"\*(\w+)\*", listed))
    assert len(words) == 6
    ledger = (README.parent / "book" / "ledger.ipynb").read_text(encoding="utf-8")
    full = re.findall(r"<em>full:</em> <span class=.{1,3}word (\w+)", ledger)
    assert len(full) > 40
    assert words - set(full) == {"contradicted", "untested"}
    assert set(full) < words
    assert ("no part is *contradicted* in all of its cases, and none is *untested*"
            in " ".join(text.split()))
