"""Sphinx extension: a small picture of every chapter's first figure, for the cards of the front
page. They lie under book/static/thumbs beside the pages that are built, and git ignores them."""

import base64
import io
from pathlib import Path
from typing import Any

import nbformat
from PIL import Image

THUMBS = Path("book", "static", "thumbs")


def thumbnail(root: Path, chapter: Path) -> Path | None:
    """Make the picture of one chapter, whose path in ``root`` is given; returns its own path there,
    None for a chapter without a figure."""
    pictures = [output.data["image/png"] for cell in nbformat.read(root / chapter, 4).cells
                for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    if not pictures:
        return None
    name = THUMBS / "-".join(chapter.with_suffix(".png").parts[1:])
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as figure:
        width, height = figure.size
        part = figure.convert("RGB").crop((0, 0, width, min(height, width * 4 // 5)))
        part.thumbnail((400, 400))
        part.save(root / name)
    return name


def thumbnails(app: Any) -> None:
    """Make those of all chapters, before any page is read."""
    root = Path(app.srcdir)
    for path in (root / "book").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in path.parts:
            thumbnail(root, path.relative_to(root))


def setup(app: Any) -> dict[str, bool]:
    """Register them."""
    app.connect("builder-inited", thumbnails)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
