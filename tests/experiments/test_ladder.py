"""The ladder: which rungs there are, what each sees, and D1 to D3 from made tables."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from companion.experiments import ladder, rungs
from companion.fleets import CAP, Budget, train
from companion.measures.least_squares import least_squares
from companion.records import Record
from companion.theory import whitening

FULL = ladder.PROFILES["full"]
TINY = ladder.Config(alphas=(("linear", 1, (0.3, 1.0)), ("mlp", 5, (0.3,))), dim=3, support=5,
                     hidden=4, ks=(0, 1), seeds=2,
                     budget=Budget(steps=2, tasks=3, rate=0.02, query=5, test_tasks=40,
                                   test_query=30))


def point(rung: str, family: str = "inputs", kind: str = "regression", model: str = "linear",
          steps: int = 1) -> dict:
    return {"kind": kind, "model": model, "family": family, "steps": steps, "rung": rung}


def test_the_ladder_has_every_rung_that_differs() -> None:
    points = ladder.points(FULL)
    assert len(points) == 154
    found = Counter(each["rung"] for each in points)
    assert set(found) == {*rungs.RUNGS, *ladder.LAYERS, *ladder.OTHERS}
    cases = 2 * 4 + 2 * 2 + 2 + 2
    assert found["one rate"] == found["matrix"] == found["1 added"] == cases
    assert found["4 added"] == cases - 2  # not MLPs through five steps
    assert found["per-step rates"] == 4 + 4  # one step of one tensor has one rate
    white = {each["family"] for each in points if rungs.RUNGS.get(
        each["rung"], rungs.Rung()).ridge}
    assert white == {"inputs", "both"}
    assert {each["family"] for each in points if each["rung"] == "best ridge"} == {"both"}
    assert {each["family"] for each in points if each["model"] == "mlp"} == {"inputs"}


def test_whitened_rungs_see_other_inputs_and_have_the_same_tasks() -> None:
    plain, white = (ladder.fleet_of(TINY, point(rung, "both"), (0.5,)) for rung in
                    ("one rate", "whitened"))
    drawn = {name: value[0, 0] for name, value in plain.draw(plain, "tests", 1, 0)(0).items()}
    (x, y), (seen, same) = (fleet.make(drawn, *fleet.run(0)).support for fleet in (plain, white))
    torch.testing.assert_close(y, same)
    (family,) = plain.run(0)
    ridge = whitening.ridge_whitening(family.covariance.numpy(), 5).ridge
    values, axes = torch.linalg.eigh(family.covariance)
    torch.testing.assert_close(seen, x @ (axes * (values + ridge) ** -0.5) @ axes.T)
    assert white.alpha[0].item() == pytest.approx(0.5 * (9 + ridge) / 9)
    (best,) = ladder.fleet_of(FULL, point("best ridge", "both"), (0.5,)).run(0)
    ridge = whitening.best_ridge(best.covariance.numpy(), best.task_covariance.numpy(), 20)
    assert ridge != pytest.approx(whitening.ridge_whitening(best.covariance.numpy(), 20).ridge, 0.1)
    values, axes = torch.linalg.eigh(best.covariance)
    torch.testing.assert_close(best.lens, (axes * (values + ridge) ** -0.5) @ axes.T,
                               rtol=1e-4, atol=1e-8)


def test_variances_of_a_family() -> None:
    for family, spread in (("neither", (0, 0)), ("inputs", (1, 0)), ("tasks", (0, 1)),
                           ("both", (1, 1))):
        (of,) = ladder.fleet_of(TINY, point("one rate", family), (0.5,)).run(0)
        for matrix, wide in zip((of.covariance, 3 * of.task_covariance), spread, strict=True):
            values = torch.linalg.eigvalsh(matrix).tolist()
            assert values == pytest.approx([0.01, 0.3, 9] if wide else [1, 1, 1], rel=1e-9)


def test_least_squares_on_the_support() -> None:
    fleet = ladder.fleet_of(TINY, point("least squares"), (0.5,))
    risk, _ = least_squares(fleet, 3, TINY.budget)  # no noise, more samples than inputs
    assert risk.shape == (2,)
    assert risk.max() < 1e-20
    few = replace(TINY, support=2)
    risk, _ = least_squares(ladder.fleet_of(few, point("least squares"), (0.5,)), 3, TINY.budget)
    assert risk.min() > 1e-3
    fleet = ladder.fleet_of(TINY, point("least squares", kind="boundaries"), (0.5,))
    risk, right = least_squares(fleet, 3, TINY.budget)
    assert np.isnan(risk).all()
    drawn = fleet.draw(fleet, "test", TINY.budget.batch, TINY.budget.test_query)(0)
    shares = []
    for task in range(40):
        (x, y), (query, label) = fleet.make({name: value[1, task] for name, value
                                             in drawn.items()}, *fleet.run(1))
        w = np.linalg.lstsq(x.numpy(), y.numpy() - 0.5, rcond=None)[0]
        shares.append(((query.numpy() @ w > 0) == label.numpy().astype(bool)).mean())
    assert right[1] == pytest.approx(np.mean(shares))


@pytest.mark.parametrize("rung", ["no step", "one rate", "whitened", "matrix", "2 added",
                                  "least squares"])
def test_the_rows_of_a_rung(rung: str) -> None:
    rows = ladder.measure(TINY, point(rung), "cpu")
    rates = (0.3,) if rung in ladder.OTHERS else (0.3, 1.0)
    assert [(row["alpha"], row["seed"]) for row in rows] == [
        (alpha, seed) for alpha in rates for seed in (0, 1)]
    assert all((row["risk_0"] == row["risk_1"]) == (rung in ladder.OTHERS) for row in rows)
    assert all((row["valid"] == 0) == (rung in ladder.OTHERS) for row in rows)


def test_a_rung_has_its_rule_and_its_layers() -> None:
    def numbers(rung: str, steps: int = 1, hidden: int = 0) -> dict:
        fleet = ladder.fleet_of(TINY, point(rung), (0.3,))
        return rungs.begin(fleet, rungs.model_of(rung, steps, 3, hidden), 8.0)

    shapes = {name: tuple(value.shape[1:]) for name, value in numbers("2 added").items()}
    assert shapes == {"0.weight": (3, 3), "1.weight": (3, 3), "2.weight": (1, 3)}
    scales = numbers("per-step rates", 5, hidden=4)["rule/0.weight.scales"]
    assert scales.shape == (2, 5)
    assert scales[1].tolist() == pytest.approx([0.125, 8**-0.5, 1, 8**0.5, 8])
    assert numbers("per-step rates", 1, hidden=4)["rule/0.weight.scales"].tolist() == [[1], [1]]
    assert {name for name in numbers("matrix") if name.startswith("rule/")} == {
        "rule/0.weight.L", "rule/0.weight.R"}
    assert rungs.model_of("no step", 1, 3, 0).method == "nal"


def test_equal_rates_per_step_stay_equal_on_one_support() -> None:
    """The steps of a linear model commute: why rates start apart."""
    at = point("per-step rates", steps=5)
    fleet, model = ladder.fleet_of(TINY, at, (0.3,)), rungs.model_of("per-step rates", 5, 3, 0)
    for apart, same in ((1.0, True), (8.0, False)):
        scales = train(fleet, model, replace(TINY.budget, steps=20), begin=rungs.begin(
            fleet, model, apart))["rule/0.weight.scales"]
        assert (scales.std(-1) < 1e-3).all() == same
        assert (scales - scales.mean()).abs().max() > 0 or same


def table(around, **risks: float) -> pd.DataFrame:
    """Every rung at 0.5, but "2 added", best on validation tasks, at 0.4 and the matrix at 0.45; or
    as ``risks`` say."""
    usual = {"2_added": 0.4, "matrix": 0.45} | risks
    rows = []
    for at in ladder.points(FULL):
        name = at["rung"].replace(" ", "_")
        mean = usual.get(f"{at['kind']}_{name}", usual.get(name, 0.5))
        for alpha, valid in ((0.3, 1.0), (1.0, 3.0)):
            values = around(mean) if alpha == 0.3 else np.full(20, 0.1)
            rows += [{**at, "alpha": alpha, "seed": seed, "accuracy_1": 0.7, "accuracy_5": 0.8,
                      "valid": valid * mean, "risk_1": risk if at["steps"] == 1 else 9.0,
                      "risk_5": risk if at["steps"] == 5 else 9.0}
                     for seed, risk in enumerate(values)]
    return pd.DataFrame(rows)


def words(rows: pd.DataFrame) -> list[str]:
    return [finding(Record(rows, {})).word for finding in ladder.EXPERIMENT.findings.values()]


@pytest.mark.parametrize(("changes", "expected"), [
    ({}, ["supported"] * 3 + ["inconclusive", "supported"]),
    ({name.replace(" ", "_"): 0.4 for name in ladder.LAYERS}, ["supported"] * 5),
    ({name.replace(" ", "_"): 0.6 for name in ladder.LAYERS},
     ["contradicted"] * 4 + ["supported"]),
    ({"whitened": 0.3}, ["supported", "mixed", "supported", "inconclusive", "supported"]),
    ({"boundaries_matrix": 0.2}, ["supported", "supported", "mixed", "inconclusive", "supported"]),
    ({"per-step_rates": 0.3}, ["mixed", "supported", "supported", "inconclusive", "mixed"])],
    ids=str)
def test_the_words_flip(around, changes: dict, expected: list[str]) -> None:
    assert list(ladder.EXPERIMENT.findings) == ["D1/rates", "D1/whitened", "D1/matrix", "D2/gain",
                                                "D3/every rate"]
    assert words(table(around, **changes)) == expected


def test_no_rung_is_left_out_and_nothing_spread_is_not_asked(around) -> None:
    rows = table(around)
    found = {part: finding(Record(rows, {})).cases
             for part, finding in ladder.EXPERIMENT.findings.items()}
    spread = [at for at in ladder.points(FULL) if at["family"] != "neither"]
    for part, asked in (("D1/rates", ladder.RATES), ("D1/whitened", ladder.WHITENED),
                        ("D1/matrix", ("matrix",)), ("D3/every rate", ladder.RATES)):
        assert len(found[part]) == sum(at["rung"] in asked for at in spread)
    assert set(rungs.RUNGS) == {*ladder.RATES, *ladder.WHITENED, "matrix"}
    assert len(found["D2/gain"]) == 4 * (2 * 3 + 2)
    aside = rows["family"] == "neither"
    worse = rows.assign(risk_1=rows["risk_1"].where(~aside, 9 - rows["risk_1"]))
    assert words(worse) == words(rows)


def test_a_lost_rung_counts_as_the_cap(around) -> None:
    lost = replace(TINY, alphas=(("linear", 1, (1e9,)),))
    rows = ladder.measure(lost, point("2 added"), "cpu")
    assert {row["valid"] for row in rows} == {CAP}
