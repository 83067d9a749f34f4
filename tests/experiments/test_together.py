"""Start and step learned together: trained against predicted, and findings from made tables."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from companion.experiments import together
from companion.experiments.together import DEEP, EXPERIMENT, FULL, RATE, SMALL
from companion.records import Record
from companion.theory import together as theory

FULL_PROFILE = together.PROFILES["full"]
SHORT = replace(FULL_PROFILE, seeds=(1000, 1001), budget=replace(
    FULL_PROFILE.budget, steps=400, test_tasks=100))


@pytest.mark.parametrize(("mixture", "method", "arm", "over"), [
    ("full batch", "maml", RATE, 1.02), ("20 samples", "maml", FULL, 1.02),
    ("20 samples", "nal", RATE, 1.001), ("20 samples", "nal", FULL, 1.01)])
def test_it_lands_where_theory_says(mixture: str, method: str, arm: str, over: float) -> None:
    point = {"mixture": mixture, "method": method, "arm": arm}
    assert point in together.points(SHORT)
    exact = together.mixture_of(SHORT, mixture)
    best = getattr({RATE: theory.scalar, FULL: theory.full}[arm](exact), method)
    for row in together.measure(SHORT, point, "cpu"):
        assert row["predicted"] == pytest.approx(best.risk, rel=1e-5)
        assert 1 - 1e-5 < row["risk"] / row["predicted"] < over
        assert row["weight"] == pytest.approx(best.weight, abs=0.03)
        assert row["along"] == pytest.approx(best.rates[0, 0], rel=0.05)
        assert row["beside"] == pytest.approx(best.rates[0, 1], rel=0.1)


def test_deep_models_run_and_have_their_rows() -> None:
    config = replace(SHORT, budget=replace(SHORT.budget, steps=60))
    for method, arm in (("maml", DEEP), ("maml", "deep, 3 layers"), ("nal", SMALL)):
        rows = together.measure(config, {"mixture": "20 samples", "method": method, "arm": arm},
                                "cpu")
        assert [row["seed"] for row in rows] == [1000, 1001]
        assert (rows[0]["predicted"] is None) == (method == "nal")
        assert all(0.2 < row["risk"] < 5 for row in rows)


def test_a_trap_is_told_from_the_optimum() -> None:
    mixture = together.mixture_of(SHORT, "tight")
    first, _, last = theory.scalar(mixture).critical
    assert first.risk > 1.1 * last.risk
    rows = together.measure(SHORT, {"mixture": "tight", "method": "maml", "arm": RATE}, "cpu")
    assert all(row["predicted"] == pytest.approx(last.risk, rel=1e-5) for row in rows)
    assert all(row["nearest"] == pytest.approx(first.risk, rel=1e-5) for row in rows)


def test_the_points_and_the_keys() -> None:
    every = together.points(FULL_PROFILE)
    assert len(every) == len({tuple(point.values()) for point in every}) == 9 * 5 + 3 * 3
    assert len(FULL_PROFILE.seeds) >= 20
    assert EXPERIMENT.key("full") != EXPERIMENT.key("quick")


@pytest.fixture
def record(around: Callable[..., np.ndarray]) -> Callable[..., Record]:
    """Risks as predicted, but for a factor of some (mixture, method, arm)."""
    def made(factors: dict[tuple[str, str, str], float] | None = None) -> Record:
        rows = []
        for point in together.points(FULL_PROFILE):
            name, method, arm = point.values()
            mixture = together.mixture_of(FULL_PROFILE, name)
            found = getattr((theory.scalar if arm == RATE else theory.full)(mixture), method)
            risk = found.risk * (factors or {}).get((name, method, arm), 1.0)
            least = None if method == "nal" and DEEP in arm else found.risk
            rows += [{**point, "seed": seed, "risk": risk * share, "predicted": least,
                      "nearest": found.risk}
                     for seed, share in enumerate(around(1.001, 0.0005))]
        return Record(pd.DataFrame(rows), {"config": asdict(FULL_PROFILE)})

    return made


@pytest.mark.parametrize("name", EXPERIMENT.findings)
def test_what_theory_says_is_supported(record: Callable[..., Record], name: str) -> None:
    found = EXPERIMENT.findings[name](record())
    assert found.word == "supported"
    assert len(found.cases) == {"B1/optimum": 36, "B1/minimum": 36, "B2/preconditioner": 7,
                                "B2/depth": 3, "B3/rescue": 8}[name]


@pytest.mark.parametrize(("name", "factors", "case"), [
    ("B1/optimum", {("tight", "maml", RATE): 1.16}, "tight, maml, one rate"),
    ("B1/minimum", {("one centre", "nal", FULL): 1.1}, "one centre, nal, full P"),
    ("B2/preconditioner", {("20 samples", "maml", FULL): 1.2}, "20 samples"),
    ("B2/preconditioner", {("full batch", "maml", FULL): 0.9}, "full batch"),
    ("B2/depth", {("100 samples", "maml", DEEP): 1.5}, "100 samples"),
    ("B2/depth", {("full batch", "nal", SMALL): 1.5}, "full batch"),
    ("B3/rescue", {("tight", "maml", RATE): 1.16}, "tight"),
    ("B3/rescue", {("5 samples", "nal", FULL): 1.1}, "5 samples")])
def test_each_finding_flips(record: Callable[..., Record], name: str, factors: dict,
                            case: str) -> None:
    found = EXPERIMENT.findings[name](record(factors))
    assert found.word == "mixed"
    assert found.cases[case] == "contradicted"
    assert sum(word != "supported" for word in found.cases.values()) == 1
