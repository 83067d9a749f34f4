"""Pictures on the cards of the front page: they come with the pages, whoever builds these."""

import base64
import importlib.util
import io
import re
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import pytest
from PIL import Image

import book


@pytest.fixture(scope="module")
def extension() -> ModuleType:
    path = book.ROOT / "book" / "_ext" / "thumbnails.py"
    spec = importlib.util.spec_from_file_location("thumbnails", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_card_shows_the_first_figure(tmp_path: Path, extension: ModuleType) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (800, 1000), (255, 0, 0)).save(picture, "PNG")
    data = {"image/png": base64.b64encode(picture.getvalue()).decode()}
    cell = nbformat.v4.new_code_cell("1", outputs=[nbformat.v4.new_output("display_data", data)])
    for name, cells in (("some", [cell]), ("none", [])):
        (tmp_path / "book" / "part").mkdir(parents=True, exist_ok=True)
        nbformat.write(nbformat.v4.new_notebook(cells=cells),
                       tmp_path / "book" / "part" / f"{name}.ipynb")
    assert extension.thumbnail(tmp_path, Path("book/part/none.ipynb")) is None
    name = extension.thumbnail(tmp_path, Path("book/part/some.ipynb"))
    assert name == Path("book/static/thumbs/part-some.png")
    with Image.open(tmp_path / name) as small:
        assert small.size == (400, 320)


def test_the_committed_notebooks_have_every_picture_of_the_front_page(
        tmp_path: Path, extension: ModuleType) -> None:
    """As `jupyter-book build .` in a fresh clone, which executes nothing."""
    for path in (book.ROOT / "book").rglob("*.ipynb"):
        to = tmp_path / path.relative_to(book.ROOT)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, to)
    extension.thumbnails(SimpleNamespace(srcdir=str(tmp_path)))
    index = (book.ROOT / "index.md").read_text(encoding="utf-8")
    asked = re.findall(r":img-top: (\S+)", index)
    asked += ["book/static/" + name for name in re.findall(r"_static/(thumbs/\S+\.png)", index)]
    assert len(asked) > 10
    assert [name for name in asked if not (tmp_path / name).is_file()] == []


def test_the_pages_are_built_with_them() -> None:
    assert "thumbnails: book/_ext" in (book.ROOT / "_config.yml").read_text(encoding="utf-8")
    assert "book/static/thumbs/" in (book.ROOT / ".gitignore").read_text(encoding="utf-8")
