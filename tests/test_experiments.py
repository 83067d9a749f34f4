import pytest
import torch

from companion import experiments, paths


def linear() -> experiments.Experiment:
    return experiments.get("linear")


def with_cuda() -> experiments.Experiment:
    plain = linear()
    return experiments.Experiment("both", "", plain.profiles, plain.points, plain.compute,
                                  ("cuda", "cpu"))


def test_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert linear().device("auto") == linear().device("cpu") == "cpu"
    assert with_cuda().device("auto") == "cpu"
    with pytest.raises(ValueError, match="got 'cuda' and no CUDA device; use --device cpu"):
        with_cuda().device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert with_cuda().device("auto") == with_cuda().device("cuda") == "cuda"
    assert linear().device("auto") == "cpu"


def test_points_are_distinct_and_plain() -> None:
    points = linear().points(linear().config("quick"))
    assert len({str(point) for point in points}) == len(points) == 24


def test_a_point_is_computed_the_same_way_twice() -> None:
    point = linear().points(linear().config("quick"))[3]
    rows = [linear().compute(linear().config("quick"), point, "cpu") for _ in range(2)]
    assert rows[0] == rows[1]
    assert abs(rows[0][0]["value"] - rows[0][0]["exact"]) < 4 * rows[0][0]["error"]


def test_folders_follow_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "r"))
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "d"))
    assert (paths.results(), paths.data()) == (tmp_path / "r", tmp_path / "d")
    monkeypatch.delenv("COMPANION_RESULTS")
    monkeypatch.delenv("COMPANION_DATA")
    assert (paths.results(), paths.data()) == (paths.checkout() / "results",
                                               paths.checkout() / "data")
