"""The command line: what it refuses, and how."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def companion(*arguments: str, results: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "companion", *arguments], capture_output=True,
                          text=True, timeout=120,
                          env=os.environ | {"COMPANION_RESULTS": str(results)})
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["run", "nope"],
            "experiment must be one of linear, two_layer, shallow, linear_layers, "
            "meta_optimizers, landscape_images, "
            "depth_images, got 'nope'",
        ),
        (["run", "linear", "--profile", "big"], "profile must be one of quick, full, got 'big'"),
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
    assert "linear" in said
    assert "none" in said


@pytest.mark.parametrize("command", [[], ["list"], ["run"]])
def test_help_has_an_example(tmp_path: Path, command: list[str]) -> None:
    code, said = companion(*command, "--help", results=tmp_path)
    assert code == 0
    assert "Example: companion" in said
