"""What a page says about itself: names of folded cells, reading times."""

import importlib.util
from types import ModuleType

import pytest
from docutils import nodes
from docutils.utils import new_document

import book


@pytest.fixture(scope="module")
def reading() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reading", book.ROOT / "book/_ext/reading.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("code", "tags", "name"), [
    ("import math\nfigures.use_style()\n", [], "Imports and settings"),
    ("fig, ax = plt.subplots()\nassert ax\n", [], "Draw the figure"),
    ("figures.table(rows, caption='x')\n", [], "Make the table"),
    ("figures.explorer(program)\n", [], "Make the explorer"),
    ("x = sp.Symbol('x')\nassert x - x == 0\n", [], "Check in SymPy"),
    ("for x in y:\n    assert x\n", [], "Check"),
    ("def one():\n    pass\n", [], "Define the helpers"), ("x = 1\n", [], "Show the code"),
    ("assert x\n", ["hide-input", "solution"], "Check the solution")])
def test_a_folded_cell_is_named_after_what_it_does(reading: ModuleType, code: str,
                                                   tags: list[str], name: str) -> None:
    assert reading.purpose(code, tags) == name


def test_an_author_may_name_a_cell(reading: ModuleType) -> None:
    page = new_document("page")
    for prompt in ("Show code cell {type}", "Prove it"):
        cell = nodes.container(classes=["cell", "tag_hide-input"], nb_element="cell_code",
                               prompt_show=prompt, prompt_hide="Hide")
        cell += nodes.literal_block("", "assert x")
        page += cell
    reading.name_toggles(None, page)
    assert [cell["prompt_show"] for cell in page.findall(nodes.container)] == ["Check", "Prove it"]


def test_the_head_tells_the_time(reading: ModuleType) -> None:
    page = new_document("page")
    head = nodes.container(classes=["takeaways"])
    head += nodes.paragraph("", "Before this chapter: nothing.")
    page += head
    page += nodes.paragraph("", "word " * 1800)
    page.extend(nodes.math_block("", "x") for _ in range(10))
    reading.tell_time(None, page)
    assert head.astext() == "Before this chapter: nothing. About 13 minutes to read."
