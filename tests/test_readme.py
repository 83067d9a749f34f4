"""The README's example gives the numbers that stand beside it."""

import re
from pathlib import Path

import pytest

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    names: dict[str, object] = {}
    checked = 0
    setup, *claims = block.split("\nmixture.ratio")
    exec(setup, names)
    for line in ("mixture.ratio" + claims[0]).strip().splitlines():
        expression, said = line.split("  # ")
        digits = said.split(":")[0]
        assert eval(expression, names) == pytest.approx(float(digits), abs=0.5 * 10 ** -len(digits.split(".")[1]))
        checked += 1
    assert checked == 3
