"""Where a measurement comes from: its commit, code, versions, data and processor.

A record is of one code, one data and one set of versions. This module says what they are here, in
this process; :mod:`companion.records` keeps it, and refuses to mix.
"""

import ast
import hashlib
import importlib.util
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from companion import paths

_PACKAGE = Path(__file__).resolve().parent
_LIBRARIES = ("numpy", "scipy", "sympy", "torch", "pandas")
_READ: dict[str, str] = {}  # source of images -> digest of what this process has read


@dataclass(frozen=True)
class Origin:
    """What a measurement was made with: ``code``, ``versions`` and ``data`` must be the same for
    all points of a record, the processor may differ."""

    code: str
    versions: Mapping[str, str]
    data: Mapping[str, str] = field(default_factory=dict)
    processor: str = ""


def here(module: str) -> Origin:
    """The origin of what this process measures by a function of ``module``."""
    return Origin(code(module), versions(), dict(_READ), processor())


def note(source: str, digest: str) -> None:
    """Remember that this process has read a source of images, and what was in it."""
    _READ[source] = digest


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What both name and is not the same, "torch: 2.12.0 then, 2.13.0 now"."""
    return [
        f"{name}: {then[name][:16]} then, {now[name][:16]} now"
        for name in then
        if name in now and then[name] != now[name]
    ]


@cache
def versions() -> dict[str, str]:
    """Python's version and those of the libraries that numbers depend on."""
    return {"python": platform.python_version()} | {
        name: metadata.version(name) for name in _LIBRARIES
    }


def platform_name() -> str:
    """System and architecture."""
    return f"{platform.system()} {platform.machine()}"


@cache
def processor() -> str:
    """The model of the processor, as the system names it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit(say: Callable[[str], None] = lambda message: None) -> str | None:
    """The checkout's commit, with ``+dirty`` where its source differs from it, files that git does
    not know yet included. None where there is no checkout, or git cannot read it, which ``say`` is
    told."""
    if (root := paths.checkout()) is None:
        return None
    try:
        head = _git(root, "rev-parse", "HEAD").strip()
        changed = _git(root, "status", "--porcelain", "--", "src")
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        say(f"the record will name no commit, for git could not read {root}: {reason.strip()}")
        return None
    return head + ("+dirty" if changed else "")


def _git(root: Path, *words: str) -> str:
    # who runs code from a folder may ask git about it, though another user owns the folder
    trusted = ("-c", f"safe.directory={root}")
    command = ["git", *trusted, "-C", str(root), *words]
    done = subprocess.run(command, check=True, capture_output=True, encoding="utf-8")
    return done.stdout


@cache
def code(module: str) -> str:
    """The digest of a module's code, and of the modules of this package that it imports, and those
    that these import. Comments, docstrings and the layout of lines do not count; a module that is
    in no file counts as empty. Other packages are told by :func:`versions`. It is taken once in a
    process, which goes on with the code that it has loaded."""
    return tree_digest(_PACKAGE, module, _file(module))


def _file(module: str) -> Path | None:
    """Where the code of a module is, which need not be of this package."""
    if (loaded := sys.modules.get(module)) is not None:
        place = getattr(loaded, "__file__", None)
        return Path(place) if place else None
    spec = importlib.util.find_spec(module)
    return Path(spec.origin) if spec is not None and spec.origin else None


def tree_digest(package: Path, module: str, file: Path | None = None) -> str:
    """:func:`code` for the package in a folder, which need not be the one that runs."""
    files = {module: file or _module_file(package, module)}
    todo = [module]
    while todo:
        path = files[todo.pop()]
        for name in sorted(_imported(package, path) if path else ()):
            if name not in files:
                files[name] = _module_file(package, name)
                todo.append(name)
    total = hashlib.sha256()
    for name, path in sorted(files.items()):
        total.update(f"{name}\n{_shape(path) if path else ''}\n".encode())
    return total.hexdigest()


def _module_file(package: Path, module: str) -> Path | None:
    parts = module.split(".")
    if parts[0] != "companion":
        return None
    path = package.joinpath(*parts[1:])
    candidates = path.with_suffix(".py") if parts[1:] else path, path / "__init__.py"
    return next((candidate for candidate in candidates if candidate.is_file()), None)


@cache
def _imported(package: Path, path: Path) -> frozenset[str]:
    """The modules of the package that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if _module_file(package, inner) else node.module)
    return frozenset(name for name in found if name.split(".")[0] == "companion")


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _shape(path: Path) -> str:
    """A file's syntax without docstrings, alike in all versions of Python."""
    return repr(_plain(_tree(path)))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [(name, _plain(value)) for name, value in _fields(node) if value not in (None, [])]
    return (type(node).__name__, *fields)


def _fields(node: ast.AST) -> Iterator[tuple[str, Any]]:
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(value, list) and _is_docstring(value):
            value = value[1:]
        if name not in ("kind", "type_comment"):
            yield name, value


def _is_docstring(body: Sequence[ast.stmt]) -> bool:
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
