"""Texts are UTF-8 on every system: by itself Windows reads and writes another code.

ruff's PLW1514 finds such a call where it can tell the type of the object; this finds the others."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for folder in ("src", "tools", "benchmarks", "book", "tests")
         for path in sorted((ROOT / folder).rglob("*.py"))] + [ROOT / "setup.py"]
OTHERS = {"Image", "archive", "os", "tarfile", "to"}  # whose `open` knows no text


def without_encoding(code: str) -> Iterator[int]:
    """The lines of calls that read or write a text in the system's own code."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.Call):
            continue
        names = {word.arg for word in node.keywords}
        if "encoding" in names or None in names:  # None is **options
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(
            node.func, "id", "")
        if name == "read_text" and node.args:
            continue
        if name in ("read_text", "write_text") or {"text", "universal_newlines"} & names:
            yield node.lineno
        elif name in ("open", "fdopen", "NamedTemporaryFile", "TemporaryFile"):
            owner = node.func.value if isinstance(node.func, ast.Attribute) else None
            if isinstance(owner, ast.Name) and owner.id in OTHERS and name == "open":
                continue
            modes = [word.value for word in node.keywords if word.arg == "mode"] + [
                argument for argument in node.args if isinstance(argument, ast.Constant)
                and isinstance(argument.value, str) and set(argument.value) <= set("rwaxbt+")]
            binary = "TemporaryFile" in name and not modes
            if not binary and not any("b" in str(getattr(mode, "value", "b")) for mode in modes):
                yield node.lineno


@pytest.mark.parametrize("code", ["p.read_text()", "p.write_text(t)", "open(p)", "open(p, 'w')",
                                  "p.open('a+')", "p.open(mode='w')", "run(c, text=True)"])
def test_such_calls_are_found(code: str) -> None:
    assert list(without_encoding(code)) == [1]


@pytest.mark.parametrize("code", ["p.read_text('utf-8')", "p.write_text(t, encoding='utf-8')",
                                  "open(p, 'rb')", "p.open('a+b', buffering=0)", "Image.open(p)",
                                  "run(c, encoding='utf-8')", "f(**options)"])
def test_others_are_not(code: str) -> None:
    assert list(without_encoding(code)) == []


def test_every_text_has_its_encoding() -> None:
    assert len(FILES) > 100
    found = [f"{path.relative_to(ROOT).as_posix()}:{line}" for path in FILES
             for line in without_encoding(path.read_text(encoding="utf-8"))]
    assert found == []
