"""CITATION.cff, the entry for BibTeX and the package say the same, and no more than is true."""

import re
import tomllib
from pathlib import Path

import yaml

import companion

ROOT = Path(__file__).resolve().parents[1]
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version() -> None:
    assert CITATION["version"] == companion.__version__
    assert CITATION["license"] == PROJECT["license"]
    assert [author["name"] for author in CITATION["authors"]] == [
        author["name"] for author in PROJECT["authors"]]
    assert {paper["url"] for paper in CITATION["references"]} == set(PROJECT["urls"].values())


def test_a_date_comes_with_a_release() -> None:
    log = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    version, state = re.findall(r"^## (\S+) \((.+)\)$", log, flags=re.MULTILINE)[0]
    assert version == CITATION["version"]
    assert str(CITATION.get("date-released", "unreleased")) == state


def test_the_entry_for_bibtex() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (entry,) = re.findall(r"@software\{\w+,\n(.*?)\n\}", readme, flags=re.DOTALL)
    fields = dict(re.findall(r"(\w+) += \{(.*)\}", entry))
    assert fields["version"] == CITATION["version"]
    assert fields["title"] == CITATION["title"]
    assert fields["author"] == f"{{{CITATION['authors'][0]['name']}}}"
