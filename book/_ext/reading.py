"""Sphinx extension: what a page says about itself. Folded cells are named after what they do, a
chapter's head tells how long it takes to read, pictures that another page made get a text, every
page a description, and the API leaves out the fields of named tuples."""

import html
import math
import re
from typing import Any

from docutils import nodes

WORDS, FORMULA, FIGURE = 180, 0.2, 0.5  # words a minute; minutes for what takes a longer look
LENGTH = 160  # of a description
KINDS = (  # of folded code, by what is in it; the first that fits
    (re.compile(r"figures\.use_style"), "Imports and settings"),
    (re.compile(r"figures\.explorer"), "Make the explorer"),
    (re.compile(r"plt\.|pages\.show|\.figure\("), "Draw the figure"),
    (re.compile(r"figures\.table|pages\.pivot"), "Make the table"),
    (re.compile(r"^\s*assert ", re.MULTILINE), "Check"),
    (re.compile(r"^def |^class ", re.MULTILINE), "Define the helpers"),
    (re.compile(r""), "Show the code"),
)


def purpose(code: str, tags: list[str]) -> str:
    """What a folded cell does, as the words on its bar."""
    if "solution" in tags:
        return "Check the solution"
    name = next(name for pattern, name in KINDS if pattern.search(code))
    return f"{name} in SymPy" if name == "Check" and re.search(r"\bsp\.", code) else name


def name_toggles(app: Any, doctree: nodes.document) -> None:
    """Name every folded cell that no author has named."""
    for cell in doctree.findall(nodes.container):
        if cell.get("nb_element") != "cell_code" or "prompt_show" not in cell:
            continue
        if "{type}" in cell["prompt_show"]:
            code = "\n".join(block.astext() for block in cell.findall(nodes.literal_block))
            tags = [name.removeprefix("tag_") for name in cell["classes"]]
            name = purpose(code + "\n", tags)
            cell["prompt_show"], cell["prompt_hide"] = name, f"{name}: hide"


def minutes(doctree: nodes.document) -> int:
    """How long a page takes: its prose, and a longer look at formulas and figures."""
    prose = sum(len(node.astext().split()) for node in doctree.findall(nodes.paragraph))
    formulas = sum(1 for _ in doctree.findall(nodes.math_block))
    figures = sum(1 for _ in doctree.findall(nodes.figure))
    return max(1, math.ceil(prose / WORDS + FORMULA * formulas + FIGURE * figures))


def tell_time(app: Any, doctree: nodes.document) -> None:
    """End the head of a chapter, a container of the class "takeaways", with its reading time."""
    for box in doctree.findall(nodes.container):
        if "takeaways" in box["classes"]:
            last = next(reversed(list(box.findall(nodes.paragraph))))
            last += nodes.Text(f" About {minutes(doctree)} minutes to read.")


def describe(app: Any, doctree: nodes.document, docname: str) -> None:
    """Give a picture that another page made its alternative text: in a container of the class
    "described" the first paragraph is that text, and is not shown."""
    for box in doctree.findall(nodes.container):
        if "described" in box["classes"]:
            text = next(box.findall(nodes.paragraph))
            for image in box.findall(nodes.image):
                image["alt"] = text.astext().replace("\n", " ")
            text.parent.remove(text)


def summarise(
    app: Any, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Tell searchers what a page is about: its first paragraph, where it has no description."""
    if doctree is None or 'name="description"' in context.get("metatags", ""):
        return
    text = next((node.astext() for node in doctree.findall(nodes.paragraph)
                 if len(node.astext()) > 40), context["title"])
    words = html.escape(" ".join(text.split()))
    if len(words) > LENGTH:
        words = words[:LENGTH].rsplit(" ", 1)[0] + " …"
    context["metatags"] += f'<meta name="description" content="{words}">\n'


def fields(app: Any, what: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out the fields of named tuples, which their class describes."""
    alias = (getattr(member, "__doc__", None) or "").startswith("Alias for field number")
    return True if alias else None


def setup(app: Any) -> dict[str, bool]:
    """Register them."""
    app.connect("doctree-read", name_toggles)
    app.connect("doctree-read", tell_time)
    app.connect("doctree-resolved", describe)
    app.connect("html-page-context", summarise)
    app.connect("autodoc-skip-member", fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
