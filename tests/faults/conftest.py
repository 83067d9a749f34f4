import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from companion import errors

HERE = Path(__file__).resolve().parent
SPEC = importlib.util.spec_from_file_location("toy", HERE / "toy.py")
toy_module = importlib.util.module_from_spec(SPEC)
sys.modules["toy"] = toy_module  # where its code is looked for
SPEC.loader.exec_module(toy_module)


@dataclass
class Toy:
    """The toy experiment with a results folder of its own."""

    folder: Path
    log: Path

    @property
    def record(self) -> Path:
        return self.folder / "toy" / "quick"

    def environment(self, seconds: float, bad: str) -> dict[str, str]:
        return {"COMPANION_RESULTS": str(self.folder), "TOY_LOG": str(self.log),
                "TOY_SECONDS": str(seconds), "TOY_BAD": bad}

    def start(self, *arguments: str, seconds: float = 0, bad: str = "{}") -> subprocess.Popen:
        """A run in a process of its own, which takes seconds to start."""
        environment = os.environ | self.environment(seconds, bad) | {"PYTHONPATH": str(HERE)}
        command = [sys.executable, str(HERE / "toy.py"), *arguments]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, encoding="utf-8")

    def run(self, *arguments: str, bad: str = "{}") -> tuple[int, str]:
        """A run, in this process unless it has workers: whether it failed, and what it said."""
        if "workers" in arguments:
            process = self.start(*arguments, bad=bad)
            out, err = process.communicate(timeout=120)
            return process.returncode, out + err
        said: list[str] = []
        with mock.patch.dict(os.environ, self.environment(0, bad)):
            try:
                toy_module.main(*arguments, say=said.append)
            except (errors.RecordError, errors.Unfinished) as error:
                return 1, "\n".join([*said, str(error)])
        return 0, "\n".join(said)

    def computed(self) -> list[int]:
        text = self.log.read_text(encoding="utf-8") if self.log.exists() else ""
        return [int(line) for line in text.split()]

    def table(self) -> bytes:
        return (self.record / "table.csv").read_bytes()


@pytest.fixture
def make_toy(tmp_path: Path) -> Callable[[str], Toy]:
    return lambda name: Toy(tmp_path / name, tmp_path / f"{name}.log")


@pytest.fixture
def toy(make_toy: Callable[[str], Toy]) -> Toy:
    return make_toy("results")


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The table of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("reference")
    toy = Toy(folder / "results", folder / "log")
    code, said = toy.run()
    assert code == 0, said
    assert toy.computed() == list(range(40))
    return toy.table()


@pytest.fixture
def small_disk(tmp_path: Path, ci: bool) -> Iterator[Callable[[str], Path]]:
    """Mounts a tmpfs with the given options; needs root."""
    mounted: list[Path] = []

    def mount(options: str) -> Path:
        where = tmp_path / f"disk{len(mounted)}"
        where.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(where)]
        done = subprocess.run(command, capture_output=True, encoding="utf-8")
        if done.returncode:
            reason = f"cannot mount a small tmpfs, run as root: {done.stderr.strip()}"
            pytest.fail(reason) if ci else pytest.skip(reason)
        mounted.append(where)
        return where

    yield mount
    for where in mounted:
        subprocess.run(["umount", str(where)], check=True)
