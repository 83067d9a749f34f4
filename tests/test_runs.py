"""What a run checks before it starts, and what crosses to other processes."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from companion import paths, runs, sweeps
from companion.errors import Diverged
from companion.experiments import linear

LINEAR = linear.EXPERIMENT
SHORT = replace(LINEAR, profiles={"quick": linear.Config(draws=500, sweeps={"distance": (1.0,)})})


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    both = replace(LINEAR, devices=("cuda", "cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert LINEAR.device("auto") == LINEAR.device("cpu") == both.device("auto") == "cpu"
    with pytest.raises(ValueError, match="got 'cuda' and no CUDA device; use --device cpu"):
        both.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert both.device("auto") == both.device("cuda") == "cuda"
    assert LINEAR.device("auto") == "cpu"
    with pytest.raises(ValueError, match="device must be one that linear uses, cpu, got 'cuda'"):
        LINEAR.device("cuda")
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda, got 'tpu'"):
        LINEAR.device("tpu")


@pytest.mark.parametrize(("options", "message"), [
    ({"workers": 0}, "workers must be at least 1, got 0"),
    ({"workers": 1, "scheduler": "tcp://127.0.0.1:1"}, "exclude each other"),
    ({"device": "tpu"}, "device must be"), ({"profile": "big"}, "profile must be one of quick")])
def test_nothing_is_written_before_arguments_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict, message: str
) -> None:
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "results"))
    with pytest.raises(ValueError, match=message):
        runs.run(SHORT, progress=False, **options)
    assert not (tmp_path / "results").exists()


def test_a_run_says_what_it_was_made_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path))
    said: list[str] = []
    record = runs.run(SHORT, progress=False, say=said.append)
    known = record.provenance
    assert (known["threads"], known["device"], known["points"]) == (1, "cpu", 1)
    (sitting,) = known["sittings"]
    assert sitting["points"] == 1
    assert sitting["processor"]
    assert (known["key"], known["config"]["draws"]) == (SHORT.key("quick"), 500)
    assert not said
    again = runs.run(SHORT, progress=False, say=said.append)
    assert again.provenance == known
    assert said == [f"{tmp_path / 'linear' / 'quick'} is up to date"]
    assert sorted(path.name for path in (tmp_path / "linear" / "quick").iterdir()) == [
        ".lock", "provenance.json", "table.csv"]


def test_divergence_crosses_processes() -> None:
    error = Diverged(17, "the weight")
    again = pickle.loads(pickle.dumps(error))
    assert (again.step, str(again)) == (17, str(error))


def test_an_executor_in_this_process_keeps_its_errors() -> None:
    with sweeps.executor() as (pool, in_flight):
        assert in_flight == 1
        assert pool.submit(divmod, 7, 2).result() == (3, 1)
        assert isinstance(pool.submit(divmod, 7, 0).exception(), ZeroDivisionError)


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "r"))
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "d"))
    assert (paths.results(), paths.data()) == (tmp_path / "r", tmp_path / "d")
    monkeypatch.delenv("COMPANION_RESULTS")
    monkeypatch.delenv("COMPANION_DATA")
    assert (paths.results(), paths.data()) == (paths.checkout() / "results",
                                               paths.checkout() / "data")


def test_folders_of_an_installed_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the wheel carries is read; what is new goes to the user, never into the package."""
    monkeypatch.setattr(paths, "checkout", lambda: None)
    for name in ("RESULTS", "DATA", "CACHE"):
        monkeypatch.delenv(f"COMPANION_{name}", raising=False)
    package = tmp_path / "companion"
    monkeypatch.setattr(paths, "_PACKAGED", package / "packaged")
    assert paths.claims() == package / "packaged" / "claims.yml"
    assert paths.results() == package / "packaged" / "results"
    assert package not in paths.data().parents
    assert paths.data() == paths.cache() / "data"
    with pytest.raises(ValueError, match="set COMPANION_RESULTS"):
        runs.run(SHORT)
    assert not package.exists()
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path))
    assert paths.results() == paths.own_results() == tmp_path
