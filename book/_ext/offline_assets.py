"""Sphinx extension: what a page fetches. MathJax from its wheel; the records that pages link to; no
icon that no page shows, and no script that a page would fetch from elsewhere."""

import importlib.util
import re
import shutil
from pathlib import Path
from typing import Any

from PIL import Image

from companion import paths

MATHJAX = ("tex-chtml-full.js", "output/chtml/fonts/woff-v2")
ICON = re.compile(r"(?:\.fa-[\w-]+:before,?)+\{content:[^}]*\}")
ICON_SCRIPT = re.compile(r'\s*<script src="[^"]*/scripts/fontawesome\.js[^"]*"></script>')


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


def slim(app: Any, error: Exception | None) -> None:
    """Leave out the theme's script of icons, which its font has too, and from its style sheet the
    icons that no page shows; fetch pictures when they come into sight."""
    if error or app.builder.name != "html":
        return
    static, shown = Path(app.outdir) / "_static", set()
    for page in Path(app.outdir).rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        shown |= set(re.findall(r"\bfa-[\w-]+", text))
        page.write_text(ICON_SCRIPT.sub("", text).replace("<img ", '<img loading="lazy" '),
                        encoding="utf-8")
    for script in static.glob("scripts/fontawesome.js*"):
        script.unlink()
    for script in static.glob("scripts/*.js"):  # which change icons
        shown |= set(re.findall(r"\bfa-[\w-]+", script.read_text(encoding="utf-8")))
    sheet = static / "styles" / "pydata-sphinx-theme.css"
    sheet.write_text(ICON.sub(
        lambda rule: rule[0] if shown & set(re.findall(r"fa-[\w-]+", rule[0])) else "",
        sheet.read_text(encoding="utf-8")), encoding="utf-8")


def shrink(app: Any, error: Exception | None) -> None:
    """Keep the pictures with 256 colours, of which a figure needs few: a third of the bytes."""
    if error is None and app.builder.name == "html":
        for path in (Path(app.outdir) / "_images").glob("*.png"):
            with Image.open(path) as picture:
                few = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            few.save(path, optimize=True)


def drop_thebe(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Leave out the live-code scripts, which load from another host."""

    def stays(script: Any) -> bool:
        inline = script.attributes.get("body") or ""
        return "THEBE_JS_URL" not in inline and "thebe" not in str(script.filename or "")

    context["script_files"][:] = [script for script in context["script_files"] if stays(script)]


def without_address(app: Any, config: Any) -> None:
    """Where the book is kept nowhere, no button leads there."""
    options = config.html_theme_options
    if not options.get("repository_url"):
        options.pop("launch_buttons", None)
        options.pop("repository_url", None)


def setup(app: Any) -> dict[str, bool]:
    """Register them."""
    app.connect("config-inited", without_address)
    app.connect("build-finished", copy_mathjax)
    app.connect("build-finished", copy_records)
    app.connect("build-finished", slim)
    app.connect("build-finished", shrink)
    app.connect("html-page-context", drop_thebe, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
