"""Trained fleets and finite data reach what the theory says."""

import math

import numpy as np
import pytest
from scipy import stats

from companion.evaluation import estimate, log_log_slope
from companion.experiments.linear import measure as linear
from companion.streams import stream
from companion.tasks.regressions import LinearFamily, easy_and_hard
from companion.theory.gaussian import q_matrix
from companion.theory.landscape import Mixture

FAMILY = LinearFamily.from_mixture(
    Mixture(1.0, 0.1, 3, 10, 0.8, distance=2, var_easy=0.5, var_hard=0.2, noise=0.2)
)
TRAINING = dict(alpha=0.8, support=10, query=10, meta_batch=8)


@pytest.mark.parametrize("method", ["nal", "maml"])
def test_trained_fleets_reach_the_minimiser(method: str) -> None:
    """Hotelling's test over seeds: the mean of the last iterates is the minimiser, and the other
    one is rejected."""
    start = np.zeros((24, 3))
    path = linear.train(
        FAMILY, method, np.array([1.0]), start, steps=1200, half_life=50, **TRAINING
    )
    last = path[-200:, :, 0].mean(axis=0)
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


def test_a_fleet_equals_its_single_runs() -> None:
    start = stream(0, "tests").standard_normal((3, 3))
    rates = np.array([0.1, 0.4])
    fleet = linear.train(FAMILY, "maml", rates, start, steps=60, **TRAINING)
    alone = linear.train(FAMILY, "maml", rates[1:], start[:1], steps=60, **TRAINING)
    assert np.abs(fleet[-1] - fleet[0]).min() > 1e-3
    np.testing.assert_allclose(fleet[:, :1, 1:], alone, rtol=1e-12, atol=1e-12)


def test_finite_tasks_converge_at_rate_one_over_tasks() -> None:
    tasks = [300, 1000, 3000]
    exact = {"nal": FAMILY.minimiser_nal(), "maml": FAMILY.minimiser_maml(0.8, 10)}
    errors: dict[str, list] = {"nal": [], "maml": []}
    for seed in range(24):
        found = [linear.from_finite_tasks(FAMILY, 0.8, 10, 10, t, stream(seed, f"tests/{t}"))
                 for t in tasks]
        for i, name in enumerate(errors):
            alpha = 0.0 if name == "nal" else 0.8
            best = FAMILY.risk(exact[name], alpha, 10)
            errors[name].append([float(FAMILY.risk(pair[i], alpha, 10) - best) for pair in found])
    for name in errors:
        mean_error = np.mean(errors[name], axis=0)
        slope = np.polyfit(np.log(tasks), np.log(mean_error), 1)[0]
        assert -1.35 < slope < -0.65
        low, high = log_log_slope(np.array(tasks), np.array(errors[name])).interval()
        assert low < -1 < high


def test_the_plug_in_is_biased_and_less_so_with_more_samples() -> None:
    exact = FAMILY.minimiser_maml(0.8, 10)
    misses = []
    for samples in (10, 40, 160):
        found = [linear.plug_in(FAMILY, 0.8, 10, samples, 20_000, stream(s, "tests"))[0]
                 for s in range(4)]
        misses.append(estimate(np.array(found) - exact[0]))
    assert misses[0].sigmas(0) > 10
    assert misses[0].value > 2 * misses[1].value > 4 * misses[2].value


def test_reusing_the_support_is_another_estimand() -> None:
    start = FAMILY.minimiser_maml(0.8, 10)[None]
    risks = {reuse: estimate(
                 linear.adapted_risks(FAMILY, start, 0.8, 10, stream(0, "tests"), 40_000, steps=3,
                                      reuse=reuse)[0]
             )
             for reuse in (False, True)}
    exact = float(FAMILY.risk(start[0], 0.8, 10, steps=3))
    assert abs(risks[False].sigmas(exact)) < 4
    assert abs(risks[True].sigmas(exact)) > 10


def test_a_race_counts_what_training_does() -> None:
    """Its steps are those of the plain training run, its condition that of E[Q], its noise falls
    with the batch."""
    family = easy_and_hard(stream(0, "tests/race"), np.array([1.0, 0.5, 0.2]),
                           np.array([0.3, 0.3, 0.1]), distance=2, var_easy=1, var_hard=1)
    setting = dict(alpha=0.8, support=10, query=10, steps=40)
    rates = np.array([0.25, 1.0, 2.0])
    run = linear.race(family, "maml", rates, meta_batch=8, tuning_seeds=3, seeds=4, **setting)
    optimum = family.minimiser_maml(0.8, 10)
    starts = 2 * np.stack([stream(seed, "linear/start").standard_normal(3) for seed in range(7)])
    path = linear.train(family, "maml", np.array([run.rate]), starts, meta_batch=8, **setting)[
        :, 3:, 0
    ]
    risk = family.risk(path, 0.8, 10)
    assert (run.steps.tolist()
            == linear.steps_to_reach(risk, 1.1 * family.risk(optimum, 0.8, 10)).tolist())
    assert run.steps.min() > 0
    mean_q = q_matrix(family.covariances, 0.8, 10).mean(axis=0)
    assert run.condition == pytest.approx(np.linalg.cond(mean_q), rel=1e-9)
    bigger = linear.race(family, "maml", rates, meta_batch=32, tuning_seeds=3, seeds=4, **setting)
    assert run.gradient_noise / bigger.gradient_noise == pytest.approx(4, rel=0.25)
    assert run.gradient_noise > 0


def test_steps_to_reach() -> None:
    risks = np.array([[3.0, 3], [2, 3], [0.5, 3], [1, 3]])
    assert linear.steps_to_reach(risks, 1.0).tolist() == [2, math.inf]
