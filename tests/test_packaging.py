"""What is installed: a wheel that settles the claims by itself, and what pyproject.toml says."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DECLARED = [*PROJECT["dependencies"],
            *(name for extra in PROJECT["optional-dependencies"].values() for name in extra)]
SOURCES = ("src", "results", "claims.yml", "pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE",
           "README.md")


def build(tree: Path, what: str, target: Path) -> Path:
    """The wheel or the source archive of a tree, by the backend that pip calls."""
    target.mkdir()
    code = f"from setuptools import build_meta; build_meta.build_{what}({str(target)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, built from the source archive of a copy of this checkout."""
    here = tmp_path_factory.mktemp("packaging")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            left = shutil.ignore_patterns("*.egg-info", "__pycache__", ".lock", "journal*")
            shutil.copytree(ROOT / name, here / "tree" / name, ignore=left)
        else:
            shutil.copy(ROOT / name, here / "tree" / name)
    (here / "tree" / "results" / "linear" / "full" / "journal-1.jsonl").touch()
    with tarfile.open(build(here / "tree", "sdist", here / "sdist")) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # from Python 3.11.4 on
        archive.extractall(here / "source")
    (source,) = (here / "source").iterdir()
    with zipfile.ZipFile(build(source, "wheel", here / "wheel")) as archive:
        archive.extractall(here / "installed")
    return here / "installed"


def test_a_wheel_carries_the_claims_and_every_record(installed: Path) -> None:
    carried = installed / "companion" / "packaged"
    assert (carried / "claims.yml").read_bytes() == (ROOT / "claims.yml").read_bytes()
    ours = {path.relative_to(ROOT) for path in (ROOT / "results").glob("*/*/*")
            if path.name in ("table.csv", "provenance.json")}
    assert Path("results/linear/full/table.csv") in ours
    files = {path.relative_to(carried) for path in carried.rglob("*") if path.is_file()}
    assert files == ours | {Path("claims.yml")}
    for name in ("py.typed", "tasks/cifar100.yml", "tasks/files.yml"):
        assert (installed / "companion" / name).is_file()


def companion(installed: Path, *arguments: str) -> tuple[int, str]:
    """The command of the unpacked wheel, started elsewhere."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("COMPANION_")}
    done = subprocess.run([sys.executable, "-m", "companion", *arguments], cwd=installed.parent,
                          env=kept | {"PYTHONPATH": str(installed), "COLUMNS": "999"},
                          capture_output=True, encoding="utf-8", timeout=900)
    return done.returncode, done.stdout + done.stderr


def test_an_installed_package_settles_the_claims(installed: Path) -> None:
    code, said = companion(installed, "verify")
    assert code == 0, said
    assert "proved" in said
    assert "linear/full" in said
    assert "untested" not in said


def test_an_installed_package_finds_an_altered_record(installed: Path) -> None:
    table = installed / "companion" / "packaged" / "results" / "linear" / "full" / "table.csv"
    sound = table.read_bytes()
    table.write_bytes(sound + b"\n")
    try:
        code, said = companion(installed, "list")
    finally:
        table.write_bytes(sound)
    assert code == 0
    assert f"{table} must have the hash" in said


def test_an_installed_package_is_not_written_to(installed: Path) -> None:
    before = sorted(installed.rglob("*.csv"))
    code, said = companion(installed, "run", "linear")
    assert code == 2
    assert said.count("\n") == 1
    assert "set COMPANION_RESULTS to a folder" in said
    assert sorted(installed.rglob("*.csv")) == before
    assert not list(installed.rglob(".lock"))


def distributions(requirements: list[str]) -> set[str]:
    """The names that requirements begin with, as package indices write them."""
    found = (re.match(r"[\w.-]+", text) for text in requirements)
    return {re.sub(r"[-_.]+", "-", match[0]).lower() for match in found if match}


def imported() -> set[str]:
    """The distributions that modules under src/ import."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    of = metadata.packages_distributions()
    foreign = names - sys.stdlib_module_names - {"companion"}
    return distributions([of.get(name, [name])[0] for name in foreign])


def test_what_is_imported_is_declared_and_the_other_way_round() -> None:
    asked = distributions(metadata.requires("dask") or [])
    assert "distributed" in asked  # which the extra `cluster` names as dask[distributed]
    assert imported() == distributions(DECLARED) - {"dask"} | {"distributed"}


def test_what_is_declared_is_pinned() -> None:
    pins = {}
    for name in ("requirements.txt", "constraints.txt"):
        for line in (ROOT / name).read_text(encoding="utf-8").splitlines():
            if found := re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", line):
                pins.setdefault(distributions([found[1]]).pop(), set()).add(found[2])
    assert distributions(DECLARED) <= pins.keys()
    assert {name: versions for name, versions in pins.items() if len(versions) > 1} == {}
