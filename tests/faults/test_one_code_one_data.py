"""A record is of one code, one data, one set of versions, and says on which commits it was made."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from companion import paths, provenance, runs, sweeps

HERE = Path(__file__).parent


def begun(toy) -> Path:
    """The journal of a run of which one point failed."""
    code, said = toy.run(bad='{"39": "raise"}')
    assert code == 1, said
    (journal,) = toy.record.glob("journal-*.jsonl")
    return journal


def other(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """What this process measures is from now on of another origin."""
    now = replace(provenance.here("toy"), **changes)
    monkeypatch.setattr(provenance, "here", lambda module: now)


VERSIONS = provenance.versions() | {"torch": "1.0"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"code": "f" * 64}, r"from this run code: \w{16} then, f{16} now"),
        ({"versions": VERSIONS}, r"from this run torch: 2\S+ then, 1\.0 now"),
    ],
    ids=["code", "versions"],
)
def test_another_sitting_with_other_code_is_refused(
    toy, reference: bytes, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
) -> None:
    journal = begun(toy)
    before = journal.read_bytes()
    with monkeypatch.context() as patch:
        other(patch, **changes)
        code, told = toy.run()
        assert code == 1
    assert re.search(said, told), told
    assert "start over with --fresh" in told
    assert journal.read_bytes() == before
    code, told = toy.run()  # with what it was begun with, it goes on
    assert code == 0, told
    assert "39 of 40 points are kept" in told
    assert toy.table() == reference


def test_fresh_starts_over_under_other_code(
    toy, reference: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(toy)
    other(monkeypatch, code="f" * 64)
    code, told = toy.run("fresh", "yes")
    assert code == 0, told
    assert toy.table() == reference
    known = json.loads((toy.record / "provenance.json").read_text(encoding="utf-8"))
    assert known["code"] == "f" * 64


def test_other_data_is_refused_and_kept_out(
    toy, reference: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        other(patch, data={"glyphs": "a" * 64})
        journal = begun(toy)
    with monkeypatch.context() as patch:
        other(patch, data={"glyphs": "b" * 64})
        code, told = toy.run()
        assert code == 1
    assert f"glyphs: {'a' * 16} then, {'b' * 16} now" in told
    assert "39" not in {json.loads(line.split(" ", 1)[1]).get("point", {}).get("index")
                        for line in journal.read_text(encoding="utf-8").splitlines()
                        if "rows" in line}
    other(monkeypatch, data={"glyphs": "a" * 64})
    code, told = toy.run()
    assert code == 0, told
    assert toy.table() == reference
    assert json.loads((toy.record / "provenance.json").read_text(encoding="utf-8"))["data"] == {
        "glyphs": "a" * 64}


def test_a_device_is_not_changed_on_the_way(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    begun(toy)
    toy_module = sys.modules["toy"]
    monkeypatch.setattr(toy_module.Experiment, "device", lambda self, wanted: "cuda")
    code, told = toy.run()
    assert code == 1
    assert "device: cpu then, cuda now" in told


def test_every_sitting_is_in_the_record(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, bad in enumerate(('{"7": "raise", "9": "raise"}', '{"9": "raise"}', "{}")):
        monkeypatch.setattr(provenance, "commit", lambda say, number=number: f"commit {number}")
        toy.run(bad=bad)
    sittings = json.loads((toy.record / "provenance.json").read_text(encoding="utf-8"))["sittings"]
    assert [(one["commit"], one["points"]) for one in sittings] == [
        ("commit 0", 38), ("commit 1", 1), ("commit 2", 1)]
    assert all(one["processor"] and one["started"] and one["seconds"] >= 0 for one in sittings)


def test_a_sitting_that_added_nothing_is_not_named(toy, monkeypatch: pytest.MonkeyPatch) -> None:
    for commit in "ab":
        monkeypatch.setattr(provenance, "commit", lambda say, commit=commit: commit)
        toy.run(bad='{"9": "raise"}')
    toy.run()
    known = json.loads((toy.record / "provenance.json").read_text(encoding="utf-8"))
    assert [one["points"] for one in known["sittings"]] == [39, 1]


def test_workers_with_other_code_are_refused(toy, make_toy) -> None:
    """A Dask cluster whose workers import another version of the measurement."""
    folder = toy.log.parent / "other"
    folder.mkdir()
    text = (HERE / "toy.py").read_text(encoding="utf-8")
    changed = text.replace("rng.random()", "rng.random() + 1")
    assert changed != text
    (folder / "toy.py").write_text(changed, encoding="utf-8")
    shutil.copy(HERE / "cluster.py", folder)
    known = {"TOY_LOG": str(toy.log), "PYTHONPATH": str(folder)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    command = [sys.executable, str(folder / "cluster.py")]
    with subprocess.Popen(command, env=os.environ | known, text=True, **pipes) as dask:
        address = dask.stdout.readline().split()[0]
        run = toy.start("scheduler", address)
        out, err = run.communicate(timeout=120)
        dask.stdin.close()
        dask.wait(timeout=60)
    assert run.returncode != 0
    assert "from a worker code:" in out + err
    assert not (toy.record / "table.csv").exists()
    (journal,) = toy.record.glob("journal-*.jsonl")
    assert b'"rows"' not in journal.read_bytes()


def test_a_worker_that_does_not_say_what_it_runs_is_refused(
    toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_measure", lambda function, config, device, point: function(
        config, point, device))  # as it was before
    code, told = toy.run()
    assert code == 1
    assert told.startswith("a worker must run the same version of this package")
    assert toy.computed() == [0]  # not tried point by point


def test_a_scheduler_without_workers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(sweeps, "PATIENCE", 0.3)
    with (
        distributed.LocalCluster(
            n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0"
        ) as cluster,
        pytest.raises(ValueError, match="scheduler must have a worker, got none at tcp"),
        sweeps.executor(scheduler=cluster.scheduler_address),
    ):
        pass


# --- the journal and its folder ---


def test_a_journal_that_is_a_link_is_refused_untouched(toy) -> None:
    journal = begun(toy)
    foreign = toy.log.parent / "notes.txt"
    foreign.write_bytes(b"a line\nand one that does not end")
    journal.unlink()
    journal.symlink_to(foreign)
    code, told = toy.run()
    assert code == 1
    assert f"{journal} must be a file, got a link to {foreign}; remove it" in told
    assert foreign.read_bytes() == b"a line\nand one that does not end"


def test_a_foreign_file_in_its_place_is_refused_untouched(toy) -> None:
    journal = begun(toy)
    header = json.dumps({"key": "of another run"}).encode()
    line = hashlib.sha256(header).hexdigest()[:16].encode() + b" " + header + b"\n"
    for text in (b"a line\nand one that does not end", b"0123456789abcdef {}\n{", line + b"0123 {"):
        journal.write_bytes(text)
        code, told = toy.run()
        assert code == 1
        assert str(journal) in told
        assert journal.read_bytes() == text


def test_a_lock_that_is_a_link_leaves_the_foreign_file(toy) -> None:
    toy.record.mkdir(parents=True)
    foreign = toy.log.parent / "notes.txt"
    foreign.write_bytes(b"not yours")
    (toy.record / ".lock").symlink_to(foreign)
    toy.run()
    assert foreign.read_bytes() == b"not yours"


def test_a_results_folder_that_is_a_dangling_link(toy) -> None:
    toy.folder.symlink_to(toy.folder.with_name("nowhere"))
    code, told = toy.run()
    assert code == 1
    assert f"{toy.folder} must be a folder, got a link to {toy.folder.with_name('nowhere')}" in told
    assert toy.computed() == []


def test_a_fresh_run_that_was_killed_goes_on(toy, reference: bytes) -> None:
    """It is not forgotten that the record is to be replaced, and nothing is measured twice."""
    toy.run()
    before = (toy.record / "provenance.json").read_bytes()
    code, told = toy.run("fresh", "yes", bad='{"39": "raise"}')
    assert code == 1
    assert len(toy.computed()) == 80
    code, told = toy.run()
    assert code == 0
    assert "39 of 40 points are kept" in told
    assert toy.computed()[80:] == [39]
    assert toy.table() == reference
    assert (toy.record / "provenance.json").read_bytes() != before
    assert not list(toy.record.glob("journal-*"))


def test_what_is_up_to_date_needs_no_folder_that_can_be_written(
    toy, small_disk: Callable[[str], Path]
) -> None:
    toy.folder = small_disk("size=256k")
    assert toy.run()[0] == 0
    (toy.record / ".lock").unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(toy.folder)], check=True)
    code, told = toy.run()
    assert (code, told) == (0, f"{toy.record} is up to date")


# --- what a process says of itself ---


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package whose first module imports two, one of them within a function, and one of these a
    fourth."""
    folder = tmp_path / "src" / "companion"
    (folder / "deep").mkdir(parents=True)
    files = {
        "one.py": "from companion import two\n\ndef f(x):\n    from companion.deep.three import g\n"
        "    return g(two.A + x)\n",
        "two.py": "from companion.five import C\nA = C\n",
        "five.py": "C = 1\n",
        "deep/__init__.py": "from companion import four\n",
        "deep/three.py": "def g(x):\n    return x\n",
        "four.py": "B = 2\n",
    }
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def digest(package: Path, tmp_path: Path) -> str:
    """Of a copy, since what a process has read once it does not read again."""
    copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
    shutil.copytree(package, copy)
    return provenance.tree_digest(copy, "companion.one")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("one.py", "from companion import two\ndef f(x):\n    from companion.deep.three import g\n"
         "    return g(two.A - x)\n"),
        ("two.py", "from companion.five import C\nA = C + 1\n"),
        ("five.py", "C = 1.0\n"),
        ("deep/three.py", "def g(x, y=0):\n    return x\n"),
    ],
)
def test_code_that_is_imported_counts(
    package: Path, tmp_path: Path, file: str, text: str
) -> None:
    before = digest(package, tmp_path)
    (package / file).write_text(text, encoding="utf-8")
    assert digest(package, tmp_path) != before


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("five.py", '"""A module."""\n\n# one\nC = (\n    1\n)\n'),
        ("deep/three.py", 'def g(x):\n    "The same."\n    return (x)  # x\n'),
        ("four.py", "B = 3\n"),
        ("deep/__init__.py", ""),
    ],
)
def test_what_reaches_no_number_does_not_count(
    package: Path, tmp_path: Path, file: str, text: str
) -> None:
    before = digest(package, tmp_path)
    (package / file).write_text(text, encoding="utf-8")
    assert digest(package, tmp_path) == before


def test_the_code_of_an_experiment_is_not_the_whole_package() -> None:
    names = ("linear", "transplant", "depth_images")
    digests = {provenance.code(f"companion.experiments.{name}") for name in names}
    assert len(digests) == 3
    package = Path(provenance.__file__).parent
    linear = package / "experiments" / "linear.py"
    assert "companion.monte_carlo" in provenance._imported(package, linear)


def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "a clone"
    (root / "src").mkdir(parents=True)
    (root / "src" / "code.py").write_text("x = 1\n", encoding="utf-8")
    name = ("-c", "user.name=A", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "."), (*name, "commit", "-q", "-m", "one")):
        subprocess.run(["git", "-C", str(root), *words], check=True)
    monkeypatch.setattr(paths, "checkout", lambda: root)
    return root


def test_a_commit_is_dirty_where_its_source_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(tmp_path, monkeypatch)
    clean = provenance.commit()
    assert len(clean) == 40
    (root / "README").write_text("not source", encoding="utf-8")
    assert provenance.commit() == clean
    (root / "src" / "new.py").write_text(  # not known to git, and yet imported
        "x = 2\n", encoding="utf-8")
    assert provenance.commit() == f"{clean}+dirty"
    (root / "src" / "new.py").unlink()
    (root / "src" / "code.py").write_text("x = 2\n", encoding="utf-8")
    assert provenance.commit() == f"{clean}+dirty"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")
def test_a_checkout_of_another_user_has_a_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = repository(tmp_path, monkeypatch)
    for path in (root, *root.rglob("*")):
        os.chown(path, 65534, 65534)
    assert len(provenance.commit()) == 40


def test_no_commit_is_said_aloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paths, "checkout", lambda: tmp_path)
    said: list[str] = []
    assert provenance.commit(said.append) is None
    (line,) = said
    assert line.startswith(f"the record will name no commit, for git could not read {tmp_path}: ")
    monkeypatch.setenv("PATH", "")
    assert provenance.commit(said.append) is None
    assert len(said) == 2
