"""The command line: what it refuses, and how."""

import io
import os
import shutil
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
from companion import claims, cli, criteria, experiment, provenance, records, runs
from companion.diagnosis import task_files
from companion.experiments import EXPERIMENTS
from companion.records import Record
from companion.tasks import downloads


def companion(*arguments: str, results: Path, **environment: str) -> tuple[int, str]:
    done = subprocess.run([sys.executable, "-m", "companion", *arguments], capture_output=True,
                          encoding="utf-8", timeout=120,
                          env=os.environ | {"COMPANION_RESULTS": str(results)} | environment)
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
    monkeypatch.delenv("COLUMNS", raising=False)  # xdist's workers have the width of a terminal

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


def spoil(results: Path, name: str, profile: str) -> None:
    """A record whose table has not the hash that is stated."""
    where = results / name / profile
    where.mkdir(parents=True)
    (where / "table.csv").write_text("seed\n1\n", encoding="utf-8")
    (where / "provenance.json").write_bytes(records.sealed({"key": "1"}, b"seed\n2\n"))


def pretend(monkeypatch: pytest.MonkeyPatch, profile: str, **provenance: object) -> None:
    """A record of race at that profile, with whatever provenance."""
    load = experiment.Experiment.load
    monkeypatch.setattr(experiment.Experiment, "load", lambda self, of: (
        Record(pd.DataFrame({"seed": [1]}), provenance) if (self.name, of) == ("race", profile)
        else load(self, of)))


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_verify_names_a_record_that_is_altered_and_shows_the_rest(
    results: Path, here: Callable[..., tuple[int, str]], profile: str
) -> None:
    """Exit 1. Claims that do not rest on it are settled: of the full profile all, where a quick
    record is altered."""
    spoil(results, "race", profile)
    code, said = here("verify")
    assert code == 1
    assert "companion: a record cannot be used" in said
    assert f"\n  race/{profile}: {results}/race/{profile}/table.csv must have the hash" in said
    rows = [[cell.strip() for cell in line.split("│")[1:4]]
            for line in said.splitlines() if line.startswith("│")]
    assert ["L2", "zeros", "proved"] in rows
    assert (["L1", "", "not usable"] in rows) == (profile == "full")
    assert ["L1", "mixture", "proved"] in rows or profile == "full"


@pytest.mark.parametrize("provenance", [{}, {"sittings": 5, "device": "cpu"}, {"sittings": []}])
def test_verify_and_list_of_a_provenance_that_is_not_whole(
    results: Path, here: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch,
    provenance: dict[str, object]
) -> None:
    pretend(monkeypatch, "full", **provenance)
    spoil(results, "shares", "quick")
    code, said = here("verify")
    assert code == 1
    assert "companion: 2 records cannot be used" in said
    assert "\n  race/full: its provenance and table must be whole, got " in said
    assert "\n  shares/quick: " in said
    assert "│ proved" in said
    code, said = here("list")
    assert code == 0
    assert said.count("not usable") == 2
    assert "must be whole, got" in said
    assert all(name in said for name in EXPERIMENTS)


def test_verify_tells_what_came_after_a_run(
    here: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the committed records: a criterion in other words than then, and code that moved on."""
    monkeypatch.setenv("COLUMNS", "1000")
    digest, now = criteria.digest, EXPERIMENTS["transplant"].load("full").provenance
    monkeypatch.setattr(provenance, "code", lambda module: now["code"] if module.endswith(
        "transplant") else "f" * 64)
    rows = [line for line in here("verify")[1].splitlines() if "transplant/full" in line]
    assert len(rows) == 1  # of the table: neither its code nor its criterion has changed
    assert "criterion changed" not in rows[0]
    monkeypatch.setattr(provenance, "code", lambda module: "f" * 64)
    monkeypatch.setattr(criteria, "digest", lambda text: digest(text + "!"))
    code, said = here("verify")
    assert code == 0
    told = said.partition("The code has moved on since these records were made: ")[2]
    assert "transplant/full" in told
    (row,) = [line for line in said.splitlines() if "transplant/full" in line and "│" in line]
    assert "criterion changed after the run" in row


def test_brackets_are_no_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                here: Callable[..., tuple[int, str]]) -> None:
    """Of a path, a provenance, or a user's own names: Rich takes [/x] for the end of a style."""
    monkeypatch.setenv("COLUMNS", "1000")
    results = tmp_path / "[/x] [bold]"
    monkeypatch.setenv("COMPANION_RESULTS", str(results))
    spoil(results, "race", "full")
    pretend(monkeypatch, "quick", sittings=[{"started": "[red][/y]", "seconds": None}])
    code, said = here("list")
    assert code == 0
    assert f"not usable: {results}/race/full/table.csv must have" in said
    assert "[red][/y], time unknown" in said
    code, said = here("verify")
    assert code == 1
    assert f"{results}/race/full/table.csv must have the hash" in said
    x, y = regressions()
    shown = package.diagnose(data=list(zip(x, y, strict=True)))
    monkeypatch.setattr(type(shown), "rows", lambda found: [("[/x]", "[bold]", ":smile: [/]")])
    np.savez(tmp_path / "b.npz", x=x, y=y)
    code, said = here("diagnose", str(tmp_path / "b.npz"))
    assert code == 0
    assert all(text in said for text in ("│ [/x] ", "│ [bold] ", "│ :smile: [/] "))


# what ends a command from outside


@pytest.mark.skipif(sys.platform == "win32", reason="a shell of POSIX")
@pytest.mark.parametrize(("line", "code", "said"), [
    ("(sleep 1; companion --help; echo $? >&2) | true", 1, "what reads the output has closed it"),
    ("companion list >&-; echo $? >&2", 2, "standard output must be open, got a closed one; send"),
])
def test_an_output_that_is_closed(tmp_path: Path, line: str, code: int, said: str) -> None:
    command = line.replace("companion", f"{sys.executable} -m companion")
    done = subprocess.run(["sh", "-c", command], capture_output=True, encoding="utf-8", timeout=120,
                          env=os.environ | {"COMPANION_RESULTS": str(tmp_path)})
    first, last = done.stderr.splitlines()
    assert first.startswith(f"companion: {said}")
    assert last == str(code)


@pytest.mark.parametrize("where", ["print", "table"])
def test_a_reader_that_goes_away(results: Path, monkeypatch: pytest.MonkeyPatch,
                                 capfd: pytest.CaptureFixture[str], where: str) -> None:
    """As Rich and Typer meet it: each ends the process without a word."""
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "argv", ["companion", "list"])
    if where == "print":
        monkeypatch.setattr(cli, "_show", lambda table: print("x" * 100_000))
    with os.fdopen(write, "w", encoding="utf-8") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        with pytest.raises(SystemExit) as end:
            cli.main()
    assert end.value.code == ("companion: what reads the output has closed it; the rest is not "
                              "shown")


def test_stderr_may_be_closed(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert not cli._watched()


@pytest.mark.parametrize("command", [["list"], ["verify"], ["run", "linear"], ["data", "glyphs"],
                                     ["diagnose", "x.npz"]])
def test_an_interrupt(results: Path, monkeypatch: pytest.MonkeyPatch,
                      here: Callable[..., tuple[int, str]], command: list[str]) -> None:
    def interrupted(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    for of, name in ((experiment.Experiment, "load"), (claims, "listed"), (runs, "run"),
                     (downloads, "locate"), (task_files, "read")):
        monkeypatch.setattr(of, name, interrupted)
    assert here(*command) == (130, "companion: interrupted\n")


def test_no_home(monkeypatch: pytest.MonkeyPatch, here: Callable[..., tuple[int, str]]) -> None:
    """An installed package, of a user without a home."""
    for variable in ("HOME", "USERPROFILE", "COMPANION_DATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what tells pathlib of it
    monkeypatch.setattr(package.paths, "checkout", lambda: None)
    code, said = here("data", "omniglot")
    assert (code, said) == (2, "companion: a home folder must be known, got none; set HOME, or set "
                            "COMPANION_RESULTS, COMPANION_DATA and COMPANION_CACHE to folders\n")


@pytest.mark.parametrize(("name", "way"), [("nets.py", "cut"), ("nets.py", "none"),
                                           ("tasks/files.yml", "none"),
                                           ("tasks/cifar100.yml", "cut")])
def test_a_damaged_installation(tmp_path: Path, name: str, way: str) -> None:
    installed = tmp_path / "companion"
    shutil.copytree(Path(package.__file__).parent, installed)
    if way == "none":
        (installed / name).unlink()
    else:
        (installed / name).write_text("x = (" if name == "nets.py" else "superclasses: [",
                                      encoding="utf-8")
    code, said = companion("list", results=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert said.startswith("companion: the installation must be whole, got ")
    assert Path(name).stem in said
    assert said.endswith("; install it anew, as the README says\n")


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


def test_the_version(here: Callable[..., tuple[int, str]]) -> None:
    assert here("--version") == (0, f"companion {package.__version__}\n")


def test_an_output_without_greek(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a file has on Windows."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252"))
    monkeypatch.setattr(cli, "app", lambda: print("ρ_H → 0 ± 1"))
    cli.main()
    assert written.getvalue().decode("cp1252").split() == ["?_H", "?", "0", "±", "1"]
