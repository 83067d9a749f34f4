"""Sphinx extension: MathJax from its wheel, the records that pages link to, texts for pictures that
another page made, and no script that a page would fetch from elsewhere."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes

from companion import paths

MATHJAX = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")


def copy_mathjax(app: Any, error: Exception | None) -> None:
    """Put MathJax and its fonts beside the built pages."""
    if error or app.builder.format != "html":
        return
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or spec.origin is None:
        raise RuntimeError(
            "sphinx-mathjax-offline is not installed: run `pip install -r requirements.txt`"
        )
    source = Path(spec.origin).parent / "static" / "mathjax"
    target = Path(app.outdir) / "_static" / "vendor" / "mathjax"
    for name in MATHJAX:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name, dirs_exist_ok=True)
        else:
            shutil.copyfile(source / name, target / name)


def copy_records(app: Any, error: Exception | None) -> None:
    """Put the records under results/ beside the built pages."""
    if error is None and app.builder.format == "html":
        shutil.copytree(paths.results(), Path(app.outdir) / "results", dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("journal*", ".*"))


def drop_thebe(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Leave out the live-code scripts, which load from another host."""

    def stays(script: Any) -> bool:
        inline = script.attributes.get("body") or ""
        return "THEBE_JS_URL" not in inline and "thebe" not in str(script.filename or "")

    context["script_files"][:] = [script for script in context["script_files"] if stays(script)]


def describe(app: Any, doctree: nodes.document, docname: str) -> None:
    """Give a picture that another page made its alternative text: in a container of the class
    "described" the first paragraph is that text, and is not shown."""
    for box in doctree.findall(nodes.container):
        if "described" in box["classes"]:
            text = next(box.findall(nodes.paragraph))
            for image in box.findall(nodes.image):
                image["alt"] = text.astext().replace("\n", " ")
            text.parent.remove(text)


def setup(app: Any) -> dict[str, bool]:
    """Register them."""
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", copy_records)
    app.connect("html-page-context", drop_thebe, priority=900)
    app.connect("doctree-resolved", describe)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
