"""Each chapter's source and its committed, executed notebook are one and the same."""

from pathlib import Path

import jupytext
import pytest

import book

ROOT = Path(__file__).resolve().parents[2]


def differences(source: Path, notebook: Path) -> list[str]:
    """What makes the notebook another text than its source; empty where they are a pair."""
    if not notebook.exists():
        return [f"{notebook.name} is missing"]
    ours, theirs = ([(cell.cell_type, cell.source.rstrip(), dict(cell.metadata))
                     for cell in jupytext.read(path).cells]
                    for path in (source, notebook))
    if len(ours) != len(theirs):
        return [f"{len(ours)} cells in the source, {len(theirs)} in the notebook"]
    return [f"cell {i}" for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]


@pytest.mark.parametrize("source", book.chapters(), ids=lambda path: path.stem)
def test_pair(source: Path) -> None:
    found = differences(source, source.with_suffix(".ipynb"))
    assert not found, f"{source.name} and its notebook differ ({found[0]}): run `make notebooks`"


@pytest.mark.parametrize("source", book.chapters(), ids=lambda path: path.stem)
def test_executed_in_order_and_in_silence(source: Path) -> None:
    cells = [cell
             for cell in jupytext.read(source.with_suffix(".ipynb")).cells
             if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not [output
                for output in outputs
                if output.output_type == "error" or output.get("name") == "stderr"]


@pytest.mark.parametrize("source", book.chapters(), ids=lambda path: path.stem)
def test_cells_are_short_and_fit_a_telephone(source: Path) -> None:
    for cell in jupytext.read(source).cells:
        if cell.cell_type == "code":
            lines = cell.source.splitlines()
            assert len(lines) <= 30, f"{lines[0]}: {len(lines)} lines"
            assert max(map(len, lines)) <= 79, max(lines, key=len)


@pytest.mark.parametrize("edit", ["word", "cell", "code"])
def test_an_edit_without_its_pair_is_found(tmp_path: Path, edit: str) -> None:
    source = next(path for path in book.chapters() if path.stem == "gap")
    text = source.read_text(encoding="utf-8")
    changed = {"word": text.replace("Two minimisers", "Three minimisers", 1),
               "cell": text + "\n```{code-cell} ipython3\n1 + 1\n```\n",
               "code": text.replace("cross = ", "crossed = ", 1)}[edit]
    assert changed != text
    copy = tmp_path / "gap.md"
    copy.write_text(changed, encoding="utf-8")
    assert differences(copy, source.with_suffix(".ipynb"))


def test_one_chapter_executed_again_gives_the_same_bytes(tmp_path: Path) -> None:
    """As those that `make book` staged."""
    source = next(path for path in book.chapters() if path.stem == "setting")
    book.execute(source, tmp_path / "again.ipynb", "quick")
    stage, _ = book.place("quick")
    first = stage / source.relative_to(ROOT).with_suffix(".ipynb")
    assert (tmp_path / "again.ipynb").read_bytes() == first.read_bytes()
