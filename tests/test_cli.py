"""The command line: what it refuses, and how."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from companion import claims
from companion.experiments import EXPERIMENTS


def companion(*arguments: str, results: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "companion", *arguments], capture_output=True,
                          text=True, timeout=120,
                          env=os.environ | {"COMPANION_RESULTS": str(results)})
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"],
         f"experiment must be one of {', '.join(EXPERIMENTS)}, got 'nope'"),
        (["run", "linear", "--profile", "big"], "profile must be one of quick, full, got 'big'"),
        (["run", "landscape_images", "--profile", "cpu"],
         "profile must be one of quick, pilot, full, large, got 'cpu'"),
        (["verify", "--profile", "cpu"], "profile must be one of quick, full, got 'cpu'"),
        (["run", "linear", "--workers", "0"], "workers must be at least 1, got 0"),
        (["run", "linear", "--workers", "two"], "Invalid value for '--workers'"),
        (["run", "linear", "--device", "tpu"], "device must be auto, cpu or cuda, got 'tpu'"),
        (["run", "linear", "--device", "cuda"],
         "device must be one that linear uses, cpu, got 'cuda'"),
        (["run", "two_layer", "--device", "cuda"],
         "device must be present, got 'cuda' and no CUDA device; use"),
        (["run", "linear", "--workers", "1", "--scheduler", "tcp://127.0.0.1:1"],
         "exclude each other"),
    ],
)
def test_wrong_calls(tmp_path: Path, arguments: list[str], message: str) -> None:
    code, said = companion(*arguments, results=tmp_path / "results")
    assert code == 2
    assert message in said
    assert "Traceback" not in said
    assert not (tmp_path / "results").exists()


def test_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    started = time.monotonic()
    code, said = companion("run", "linear", "--scheduler", "tcp://127.0.0.1:1",
                           results=tmp_path / "results")
    assert code == 2
    assert "must be a running Dask scheduler, got tcp://127.0.0.1:1" in said
    assert not (tmp_path / "results").exists()
    assert time.monotonic() - started < 60  # a hang, not a speed: it gives up after 8 seconds


def test_list_shows_what_is_on_record(tmp_path: Path) -> None:
    code, said = companion("list", results=tmp_path / "results")
    assert code == 0
    assert {"linear", "race"} <= EXPERIMENTS.keys()
    for name in EXPERIMENTS:
        assert name in said
    assert "none" in said


def test_verify_has_a_row_a_part(tmp_path: Path) -> None:
    code, said = companion("verify", results=tmp_path / "results")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:4]]
            for line in said.splitlines() if line.startswith("│")]
    assert ["L2", "zeros", "proved"] in rows
    assert ["L2", "trained", "untested"] in rows
    assert len(rows) == sum(len(entry["parts"]) for entry in claims.listed())


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_verify_fails_where_any_record_is_altered(tmp_path: Path, profile: str) -> None:
    where = tmp_path / "results" / "race" / profile
    where.mkdir(parents=True)
    (where / "table.csv").write_text("seed\n1\n")
    (where / "provenance.json").write_text(json.dumps({"table_sha256": "0" * 64, "key": "1"}))
    code, said = companion("verify", results=tmp_path / "results")
    assert code == 1
    assert "table.csv must have the hash" in said


@pytest.mark.parametrize("command", [[], ["list"], ["run"], ["verify"], ["data"]])
def test_help_has_an_example(tmp_path: Path, command: list[str]) -> None:
    code, said = companion(*command, "--help", results=tmp_path)
    assert code == 0
    assert f"Example: companion {' '.join(command)}" in said
