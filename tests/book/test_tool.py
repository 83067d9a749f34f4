"""tools/book.py on a tiny book of its own."""

from pathlib import Path

import nbformat
import pytest

import book

GAP = (book.ROOT / "book" / "landscape" / "gap.md").read_text(encoding="utf-8")
HEAD = GAP.split("\n---\n")[0] + "\n---\n\n"
CELL = "```{{code-cell}} ipython3\n{}```\n\n"
PARAMETERS = CELL.format(':tags: [parameters]\n\nprofile = "quick"\n')


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one good chapter and one that fails."""
    monkeypatch.setattr(book, "ROOT", tmp_path)
    monkeypatch.setattr(book, "machinery", lambda: [])
    (tmp_path / "book").mkdir()
    good = (HEAD
            + "# Good\n\n"
            + PARAMETERS
            + CELL.format("print(profile)\n")
            + CELL.format("print(1)\nprint(2)\n"))
    (tmp_path / "book" / "good.md").write_text(good, encoding="utf-8")
    (tmp_path / "book" / "bad.md").write_text(HEAD + "# Bad\n\n" + CELL.format("1 / 0\n"),
                                             encoding="utf-8")
    (tmp_path / "book" / "page.md").write_text("# No chapter\n", encoding="utf-8")
    return tmp_path


def printed(path: Path) -> list[str]:
    return [
        output.text for cell in nbformat.read(path, 4).cells for output in cell.get("outputs", [])
    ]


def test_a_failing_chapter_is_named_and_the_others_are_kept(
    root: Path, capfd: pytest.CaptureFixture
) -> None:
    stage = root / "_build" / "stage"
    with pytest.raises(SystemExit, match="1 of 2 chapters failed; the others are kept"):
        book.execute_stale(stage, "quick", 2)
    said = capfd.readouterr().err
    assert "ZeroDivisionError" in said
    assert "book/bad.md failed" in said
    assert printed(stage / "book" / "good.ipynb") == ["quick\n", "1\n2\n"]
    assert not (stage / "book" / "bad.ipynb").exists()

    (root / "book" / "bad.md").write_text(HEAD + "# Mended\n\n" + CELL.format("print(3)\n"),
                                         encoding="utf-8")
    kept = (stage / "book" / "good.ipynb").stat().st_mtime_ns
    book.execute_stale(stage, "quick", 2)
    assert printed(stage / "book" / "bad.ipynb") == ["3\n"]
    assert (stage / "book" / "good.ipynb").stat().st_mtime_ns == kept
    (root / "book" / "good.md").write_text(
        (root / "book" / "good.md").read_text(encoding="utf-8").replace("print(2)", "print(4)"),
        encoding="utf-8")
    book.execute_stale(stage, "quick", 2)
    assert printed(stage / "book" / "good.ipynb") == ["quick\n", "1\n4\n"]


def test_the_full_profile_reaches_the_chapter_and_leaves_no_cell(root: Path) -> None:
    book.execute(root / "book" / "good.md", root / "full.ipynb", "full")
    assert printed(root / "full.ipynb")[0] == "full\n"
    assert len(nbformat.read(root / "full.ipynb", 4).cells) == 4


def test_the_stage_forgets_what_left_the_book(root: Path) -> None:
    for name in book.PAGES:
        (root / name).write_text("", encoding="utf-8")
    stage = root / "_build" / "stage"
    (stage / "book").mkdir(parents=True)
    (stage / "book" / "gone.ipynb").write_text("{}", encoding="utf-8")
    book.stage_pages(stage)
    found = {path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file()}
    assert found == {*book.PAGES, "book/page.md"}
