"""The command line: what it refuses, and how."""

import os
import subprocess
import sys
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import companion as package
from companion import claims, cli, records
from companion.diagnosis import task_files
from companion.experiments import EXPERIMENTS


def companion(*arguments: str, results: Path) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "companion", *arguments], capture_output=True,
                          text=True, timeout=120,
                          env=os.environ | {"COMPANION_RESULTS": str(results)})
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for results, not made yet."""
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
         ) -> Callable[..., tuple[int, str]]:
    """The command in this process, for a start takes seconds: its code, and what it said."""
    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["companion", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        code, said = end.value.code or 0, "".join(capsys.readouterr())
        return (1, f"{said}{code}\n") if isinstance(code, str) else (code, said)

    return call


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nope"],
         f"experiment must be one of {', '.join(EXPERIMENTS)}, got 'nope'"),
        (["run", "linear", "--profile", "big"], "profile must be one of quick, full, got 'big'"),
        (["run", "landscape_images", "--profile", "cpu"],
         "profile must be one of quick, pilot, full, again, large, got 'cpu'"),
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
def test_wrong_calls(results: Path, here: Callable[..., tuple[int, str]], arguments: list[str],
                     message: str) -> None:
    code, said = here(*arguments)
    assert code == 2
    assert message in said
    assert not results.exists()


def test_a_wrong_call_is_answered_in_one_line(tmp_path: Path) -> None:
    code, said = companion("run", "nope", results=tmp_path / "results")
    assert code == 2
    assert said.startswith("companion: experiment must be one of linear, ")
    assert said.count("\n") == 1


def test_a_scheduler_that_does_not_answer(tmp_path: Path) -> None:
    started = time.monotonic()
    code, said = companion("run", "linear", "--scheduler", "tcp://127.0.0.1:1",
                           results=tmp_path / "results")
    assert code == 2
    assert "must be a running Dask scheduler, got tcp://127.0.0.1:1" in said
    assert not (tmp_path / "results").exists()
    assert time.monotonic() - started < 60  # a hang, not a speed: it gives up after 8 seconds


def test_list_shows_what_is_on_record(results: Path, here: Callable[..., tuple[int, str]]) -> None:
    code, said = here("list")
    assert code == 0
    assert {"linear", "race"} <= EXPERIMENTS.keys()
    for name in EXPERIMENTS:
        assert name in said
    assert "none" in said


def test_verify_has_a_row_a_part(results: Path, here: Callable[..., tuple[int, str]]) -> None:
    code, said = here("verify")
    assert code == 0
    rows = [[cell.strip() for cell in line.split("│")[1:4]]
            for line in said.splitlines() if line.startswith("│")]
    assert ["L2", "zeros", "proved"] in rows
    assert ["L2", "trained", "untested"] in rows
    assert len(rows) == sum(len(entry["parts"]) for entry in claims.listed())


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_verify_fails_where_any_record_is_altered(
    results: Path, here: Callable[..., tuple[int, str]], profile: str
) -> None:
    where = results / "race" / profile
    where.mkdir(parents=True)
    (where / "table.csv").write_text("seed\n1\n")
    (where / "provenance.json").write_bytes(records.sealed({"key": "1"}, b"seed\n2\n"))
    code, said = here("verify")
    assert code == 1
    assert "table.csv must have the hash" in said


@pytest.mark.parametrize("command", [[], ["list"], ["run"], ["verify"], ["data"], ["diagnose"]])
def test_help_has_an_example(tmp_path: Path, command: list[str]) -> None:
    code, said = companion(*command, "--help", results=tmp_path)
    assert code == 0
    assert f"Example: companion {' '.join(command)}" in said


def regressions() -> tuple[np.ndarray, np.ndarray]:
    """Twelve tasks of 30 samples and two features, half of them easy."""
    rng = np.random.default_rng(0)
    hard = np.arange(12) % 2
    x = rng.standard_normal((12, 30, 2)) * np.where(hard, 0.4, 1.0)[:, None, None]
    optima = rng.standard_normal((12, 2)) * np.where(hard, 0.1, 1.0)[:, None]
    y = np.einsum("tnd,td->tn", x, optima) + 0.1 * rng.standard_normal((12, 30))
    return x, y


def test_diagnose_a_table(tmp_path: Path) -> None:
    """Tasks may be in any order of rows; the columns have names of their own."""
    x, y = regressions()
    rows = pd.DataFrame({"a": x[..., 0].ravel(), "who": np.repeat(np.arange(12), 30),
                         "out": y.ravel(), "b": x[..., 1].ravel()})
    file, picture = tmp_path / "tasks.csv", tmp_path / "picture.png"
    rows.to_csv(file, index=False)
    code, said = companion("diagnose", str(file), "--task", "who", "--target", "out", "--support",
                           "10", "--figure", str(picture), results=tmp_path)
    assert code == 0
    found = package.diagnose(data=list(zip(x, y, strict=True)), support=10)
    assert found.advice in said
    assert " ".join(found.ratio.texts) in " ".join(said.replace("│", " ").split())
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_diagnose_arrays(tmp_path: Path, here: Callable[..., tuple[int, str]]) -> None:
    x, y = regressions()
    covariances = np.einsum("tni,tnj->tij", x, x) / 30
    optima = np.stack([np.linalg.lstsq(a, b)[0] for a, b in zip(x, y, strict=True)])
    weights, groups = np.arange(1.0, 13), np.arange(12) % 2
    np.savez(tmp_path / "a.npz", covariances=covariances, optima=optima, weights=weights,
             groups=groups)
    np.savez(tmp_path / "b.npz", x=x, y=y)
    code, said = here("diagnose", str(tmp_path / "a.npz"), "--alpha", "0.5", "--noise", "0.1",
                      "--support", "8")
    found = package.diagnose(covariances, optima, weights=weights, groups=groups, alpha=0.5,
                             noise=0.1, support=8)
    assert (code, found.advice in said, "group 1" in said) == (0, True, True)
    code, said = here("diagnose", str(tmp_path / "b.npz"), "--intercept")
    assert (code, "12, 3" in said) == (0, True)
    assert package.diagnose(data=list(zip(x, y, strict=True)), intercept=True).advice in said


def test_diagnose_cannot_draw_over_a_folder(tmp_path: Path, here: Callable[..., tuple[int, str]]
                                            ) -> None:
    x, y = regressions()
    np.savez(tmp_path / "b.npz", x=x, y=y)
    (tmp_path / "a.png").mkdir()
    code, said = here("diagnose", str(tmp_path / "b.npz"), "--figure", str(tmp_path / "a.png"))
    assert code == 2
    assert "a.png: Is a directory; name another" in said


@pytest.mark.parametrize(("name", "content", "options", "message"), [
    ("none.npz", None, [], "none.npz must be a file, got none there"),
    ("tasks.txt", b"1", [], "tasks.txt must end in .npz or .csv, got .txt"),
    ("broken.npz", b"PK\x03\x04 broken", [], "broken.npz must be an .npz archive of numbers"),
    ("empty.npz", b"", [], "empty.npz must be an .npz archive of numbers"),
    ("pickled.npz", {"x": np.array([{}]), "y": np.zeros(1)}, [],
     "pickled.npz must be an .npz archive of numbers"),
    ("other.npz", {"z": np.zeros(2)}, [], "must hold covariances and optima, or x and y, got z"),
    ("shape.npz", {"x": np.zeros((2, 5, 1)), "y": np.zeros((2, 4))}, [],
     "must be [task, sample, d] and [task, sample], got ((2, 5, 1), (2, 4))"),
    ("few.npz", {"x": np.ones((2, 3, 2)), "y": np.zeros((2, 3))}, [],
     "must be at least d + 2 = 4 for 2 features"),
    ("empty.csv", b"", [], "empty.csv must be a table with a header"),
    ("columns.csv", b"a,y\n1,2\n", [], "must have the column 'task', got a, y; name it with"),
    ("target.csv", b"task,a\n1,2\n", [], "must have the column 'y', got task, a; name it with"),
    ("alone.csv", b"task,y\n1,2\n", [], "must hold a feature or more, got 0"),
    ("words.csv", b"task,a,y\n1,red,2\n", [], "must have numbers in the column 'a', got 'red'"),
    ("head.csv", b"task,a,y\n", [], "head.csv must be one or more, got 0"),
    ("blank.csv", b"task,a,y\n1,1,2\n,1,2\n", [], "name a task in every row, got none in 1 of"),
    ("twice.csv", b"task,a,y\n1,1,2\n", ["--target", "task"], "task and target must be two"),
    ("gaps.csv", b"task,a,y\n1,,2\n1,1,2\n1,2,2\n", [], "data[0] x must be finite, got nan"),
    ("x.npz", {"x": np.ones((2, 9, 2)), "y": np.zeros((2, 9))}, ["--figure", "nowhere/a.png"],
     "figure must be a .png in a folder that is there, got nowhere/a.png"),
    ("x.npz", {"x": np.ones((2, 9, 2)), "y": np.zeros((2, 9))}, ["--alpha", "1e200"],
     "alpha must be below 1e100 over the largest variance"),
    ("x.npz", {"x": np.ones((2, 9, 2)), "y": np.zeros((2, 9))}, ["--support", "0"],
     "support must be at least 1, got 0"),
])
def test_diagnose_refuses(tmp_path: Path, here: Callable[..., tuple[int, str]], name: str,
                          content: object, options: list[str], message: str) -> None:
    file = tmp_path / name
    if isinstance(content, dict):
        np.savez(file, **content)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    code, said = here("diagnose", str(file), *options)
    assert code == 2
    assert said.startswith("companion: ")
    assert message in said
    assert said.count("\n") == 1


def test_diagnose_refuses_what_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                            here: Callable[..., tuple[int, str]]) -> None:
    """A small file may unpack to any size: it is refused before it is read."""
    monkeypatch.setattr(task_files, "_MOST", 2**24)
    file = tmp_path / "x.npz"
    np.savez_compressed(file, x=np.zeros((200, 1000, 12)), y=np.zeros((200, 1000)),
                        more=np.zeros(10))
    assert file.stat().st_size < 30_000
    tracemalloc.start()
    code, said = here("diagnose", str(file))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (code, said) == (2, f"companion: {file} must hold at most 16 MiB, got 20 MiB; take "
                            "fewer tasks or samples, or give arrays to companion.diagnose\n")
    assert most < 2**20
    table = tmp_path / "x.csv"
    table.write_bytes(b"task,a,y\n" + b"1,2,3\n" * 3_000_000)
    code, said = here("diagnose", str(table))
    assert (code, "x.csv must hold at most 16 MiB, got 17 MiB; take fewer" in said) == (2, True)


def test_diagnose_takes_a_header_at_its_word_only_if_it_fits(
        tmp_path: Path, here: Callable[..., tuple[int, str]]) -> None:
    file = tmp_path / "x.npz"
    with zipfile.ZipFile(file, "w") as archive:
        for name, shape in (("x", (10**6, 10**3, 3)), ("y", (10**6, 10**3))):
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array_header_1_0(
                    member, {"descr": "<f8", "fortran_order": False, "shape": shape})
    code, said = here("diagnose", str(file))
    assert code == 2
    assert "(x.npy of 0 bytes for float64 (1000000, 1000, 3)); write it with numpy.savez" in said
