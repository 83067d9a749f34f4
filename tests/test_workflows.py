"""What the code host runs: workflows with few rights, which call the Makefile's own targets."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"),
                         flags=re.MULTILINE))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in read(path)["jobs"].values() for step in job["steps"]]


def test_the_two_commands_are_run() -> None:
    assert {"book", "test", "unit"} <= TARGETS
    commands = [step.get("run", "") for step in steps(GITHUB / "workflows" / "test.yml")]
    assert {"make book", "make test"} <= set(commands)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 90, name
        assert set(job.get("permissions", {})) <= {"pages", "id-token"}, name
    for step in steps(path):
        for line in step.get("run", "").splitlines():
            called = re.match(r"make (.+?)(?: *#.*)?$", line)
            assert called or "make " not in line, line
            assert not called or set(called[1].split()) <= TARGETS, line
        if uses := step.get("uses"):
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", uses), uses


def test_the_oldest_and_the_newest_python_are_tested() -> None:
    jobs = read(GITHUB / "workflows" / "test.yml")["jobs"]
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.findall(r"Python :: (3\.\d+)", project)
    assert jobs["linux"]["strategy"]["matrix"]["python"] == [listed[0], listed[-1]]


def test_the_forms() -> None:
    form = read(GITHUB / "ISSUE_TEMPLATE" / "does-not-reproduce.yml")
    assert {"name", "description", "body"} <= form.keys()
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids))
    updates = read(GITHUB / "dependabot.yml")["updates"]
    assert {one["package-ecosystem"] for one in updates} == {"pip", "github-actions"}
    assert all(one["schedule"]["interval"] == "monthly" and one["groups"] for one in updates)
    folders = updates[0]["directories"]
    assert all((ROOT / folder.strip("/") / "requirements.txt").is_file() for folder in folders)
