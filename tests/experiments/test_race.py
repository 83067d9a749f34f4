"""Races of SGD: trained fleets reach what the theory says, and L1 from made tables."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from companion import nets
from companion.experiments import race
from companion.fleets import Budget, Model
from companion.measures import descent
from companion.records import Record
from companion.streams import stream
from companion.tasks.regressions import LinearFamily, regression_fleet
from companion.theory.finite_tasks import sandwich_maml, sandwich_nal
from companion.theory.gaussian import q_matrix
from companion.theory.landscape import Mixture
from companion.training import sgd

FAMILY = LinearFamily.from_mixture(
    Mixture(1.0, 0.1, 3, 10, 0.8, distance=2, var_easy=0.5, var_hard=0.2, noise=0.2))
TINY = race.Config(mixtures=(("anisotropic", 0.3, 10),), dim=3, distance=2.0, var_hard=1.0,
                   alpha=0.8, rates=(1.4, 1.8, 2.2, 2.6), tuning_seeds=3, seeds=4,
                   budget=Budget(steps=40, tasks=8, rate=1.0, query=10))


def paths(method: str, seeds, begin: np.ndarray, rates, steps: int) -> np.ndarray:
    fleet = regression_fleet(FAMILY, seeds, alpha=0.8, support=10)
    budget = Budget(steps=steps, tasks=8, rate=1.0, query=10)
    return descent.paths(fleet, Model(nets.linear(3), method), budget, begin, sgd(rates))


@pytest.mark.parametrize("method", ["nal", "maml"])
def test_trained_fleets_reach_the_minimiser(method: str) -> None:
    """Hotelling's test over seeds: the mean of the last iterates is the minimiser, and the other
    one is rejected."""
    path = paths(method, range(24), np.zeros((24, 3)), lambda t: 1 / (1 + t / 50), 1200)
    last = path[-200:].mean(axis=0)
    targets = {"nal": FAMILY.minimiser_nal(), "maml": FAMILY.minimiser_maml(0.8, 10)}
    p_values = {}
    for name, w in targets.items():
        miss = (last - w).mean(axis=0)
        n, d = last.shape
        statistic = n * miss @ np.linalg.solve(np.cov(last.T), miss) * (n - d) / (d * (n - 1))
        p_values[name] = stats.f.sf(statistic, d, n - d)
    other = "nal" if method == "maml" else "maml"
    assert p_values[method] > 1e-3
    assert p_values[other] < 1e-6


def test_paths_are_of_their_seed_and_rate() -> None:
    begin = stream(0, "tests").standard_normal((3, 3))
    rates = torch.tensor([0.1, 0.4, 0.4], dtype=torch.float64)
    many = paths("maml", (3, 3, 7), begin, rates, 60)
    assert many.shape == (61, 3, 3)
    np.testing.assert_array_equal(many[0], begin)
    assert np.abs(many[-1] - many[0]).min() > 1e-3
    for run, seed in enumerate((3, 3, 7)):
        alone = paths("maml", (seed,), begin[run : run + 1], rates[run].item(), 60)
        np.testing.assert_allclose(many[:, [run]], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "samples", "each_step"), [
    ("nal", "equal samples", 8 * 20), ("nal", "equal queries", 8 * 10), ("maml", "both", 8 * 30)])
def test_a_race_counts_what_training_does(method: str, samples: str, each_step: int) -> None:
    """Its steps are those of the plain training run on the seeds that are left, NAL at equal
    queries on a task's first ones alone; its condition is that of E[Q], its noise falls with the
    batch."""
    (point,) = (p for p in race.points(TINY) if (p["method"], p["samples"]) == (method, samples))
    rows = race.measure(TINY, point, "cpu")
    assert [row["seed"] for row in rows] == [3, 4, 5, 6]
    family = race.family_of(TINY, point)
    alpha = 0.0 if method == "nal" else 0.8
    optimum = family.minimiser_nal() if method == "nal" else family.minimiser_maml(0.8, 10)
    counts = {}
    seen = 0 if samples == "equal queries" else 10
    for rate in TINY.rates:
        fleet = regression_fleet(family, range(7), alpha=0.8, support=seen)
        begin = 2 * np.stack([stream(seed, "linear/start").standard_normal(3)
                              for seed in range(7)])
        path = descent.paths(fleet, Model(nets.linear(3), method), TINY.budget, begin, sgd(rate))
        risk = family.risk(path, alpha, 10)
        counts[rate] = descent.steps_to_reach(risk, 1.1 * float(family.risk(optimum, alpha, 10)))
    best = min(TINY.rates, key=lambda rate: counts[rate][:3].mean())
    assert {row["rate"] for row in rows} == {best}
    assert {row["inside"] for row in rows} == {TINY.rates.index(best) in (1, 2)}
    assert [row["steps"] for row in rows] == counts[best][3:].tolist()
    assert [row["evaluations"] for row in rows] == (each_step * counts[best][3:]).tolist()
    assert min(row["steps"] for row in rows) > 0
    mean_q = q_matrix(family.covariances, alpha, 10).mean(axis=0)
    assert rows[0]["condition"] == pytest.approx(np.linalg.cond(mean_q), rel=1e-5)
    bigger = race.measure(replace(TINY, budget=replace(TINY.budget, tasks=32)), point, "cpu")
    assert rows[0]["gradient_noise"] / bigger[0]["gradient_noise"] == pytest.approx(4, rel=0.25)


def test_noise_is_that_of_the_sandwich() -> None:
    """E|g - E g|^2 of a meta-batch is the trace of Cov g of one task over the tasks."""
    family = race.family_of(TINY, race.points(TINY)[0])
    exact = {"nal": sandwich_nal(family, 20), "maml": sandwich_maml(family, 0.8, 10, 10)}
    for method, one in exact.items():
        fleet = regression_fleet(family, range(1500), alpha=0.8, support=10)
        drawn = descent.gradient_variance(fleet, Model(nets.linear(3), method), TINY.budget,
                                          one.minimiser)
        assert drawn == pytest.approx(np.trace(one.spread) / 8, rel=0.15)


@pytest.mark.parametrize("profile", ["quick", "full"])
def test_every_best_rate_is_inside_the_grid(profile: str) -> None:
    table = race.EXPERIMENT.load(profile).table
    assert table["inside"].all()
    assert np.isfinite(table["steps"]).all()


def test_steps_to_reach() -> None:
    risks = np.array([[3.0, 3], [2, 3], [0.5, 3], [1, 3]])
    assert descent.steps_to_reach(risks, 1.0).tolist() == [2, math.inf]


def made(maml: float, queries: float = 1.0) -> pd.DataFrame:
    """MAML needs the same seed's NAL steps times a factor, NAL at equal queries ``queries`` times
    those at equal samples; an evaluation of MAML is of twice the samples."""
    config, rng = race.PROFILES["full"], stream(0, "tests/race")
    nal = rng.integers(10, 30, config.seeds)
    factors = {"equal samples": 1.0, "equal queries": queries, "both": maml}
    rows = []
    for point in race.points(config):
        for seed, steps in enumerate(nal):
            count = steps * factors[point["samples"]]
            if point["method"] == "maml":
                count *= 1 + 0.1 * (seed % 3)
            rows.append({**point, "seed": seed, "condition": 1.0, "gradient_noise": 2.0,
                         "steps": count, "evaluations": count * (1 + (point["method"] == "maml"))})
    return pd.DataFrame(rows)


def test_l1_flips() -> None:
    def found(table: pd.DataFrame):
        return race.optimise(Record(table, {}))

    holds = found(made(1.2))
    assert (holds.word, len(holds.cases)) == ("supported", 20)
    assert holds.interval.value == pytest.approx(1.2 * np.exp(
        np.log([1, 1.1, 1.2])[np.arange(200) % 3].mean()), rel=1e-6)
    assert found(made(0.3)).word == "contradicted"
    by_steps = found(made(0.7))  # but not by evaluations
    assert by_steps.word == "mixed"
    assert {case.split(", ")[-1]: word for case, word in by_steps.cases.items()} == {
        "steps": "contradicted", "evaluations": "supported"}
    by_budget = found(made(1.2, queries=4.0))
    assert {case.split(", ")[-2] + word for case, word in by_budget.cases.items()} == {
        "equal samplessupported", "equal queriescontradicted"}
    assert found(made(1 / 1.0970)).word == "inconclusive"
    table = made(1.2)
    first = (table["inputs"] == "isotropic") & (table["support"] == 20) & (
        table["method"] == "maml")
    one = found(table.assign(steps=table["steps"].where(~first, table["steps"] / 2)))
    assert [case for case, word in one.cases.items() if word == "contradicted"] == [
        f"isotropic, hardness 0.1, support 20, {budget}, steps" for budget in race.BUDGETS]


def test_maml_is_counted_once_a_budget() -> None:
    duels = race.duels(made(1.5, queries=2.0))
    assert len(duels) == 20
    assert not duels.duplicated(race.CASES).any()
    steps = duels[duels["counted"] == "steps"].set_index([*race.MIXTURE, "samples"])["value"]
    for mixture in race.PROFILES["full"].mixtures:
        assert steps[(*mixture, "equal samples")] == pytest.approx(
            2 * steps[(*mixture, "equal queries")])
