"""What finitely many tasks teach, and what an estimate of risk is of."""

import math

import numpy as np
import pytest

from companion.evaluation import estimate, log_log_slope
from companion.monte_carlo import adapted_risks, drawn_ratio, from_finite_tasks, plug_in
from companion.streams import stream
from companion.tasks.regressions import LinearFamily
from companion.theory.landscape import Mixture

MIXTURE = Mixture(1.0, 0.1, 3, 10, 0.8, distance=2, var_easy=0.5, var_hard=0.2, noise=0.2)
FAMILY = LinearFamily.from_mixture(MIXTURE)


def test_finite_tasks_converge_at_rate_one_over_tasks() -> None:
    tasks = [300, 1000, 3000]
    exact = {"nal": FAMILY.minimiser_nal(), "maml": FAMILY.minimiser_maml(0.8, 10)}
    errors: dict[str, list] = {"nal": [], "maml": []}
    for seed in range(24):
        found = [from_finite_tasks(FAMILY, 0.8, 10, 10, t, stream(seed, f"tests/{t}"))
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
        found = [plug_in(FAMILY, 0.8, 10, samples, 20_000, stream(s, "tests"))[0]
                 for s in range(4)]
        misses.append(estimate(np.array(found) - exact[0]))
    assert misses[0].sigmas(0) > 10
    assert misses[0].value > 2 * misses[1].value > 4 * misses[2].value


def test_reusing_the_support_is_another_estimand() -> None:
    start = FAMILY.minimiser_maml(0.8, 10)[None]
    risks = {reuse: estimate(adapted_risks(FAMILY, start, 0.8, 10, stream(0, "tests"), 40_000,
                                           steps=3, reuse=reuse)[0]) for reuse in (False, True)}
    exact = float(FAMILY.risk(start[0], 0.8, 10, steps=3))
    assert abs(risks[False].sigmas(exact)) < 4
    assert abs(risks[True].sigmas(exact)) > 10


@pytest.mark.parametrize("support", [10, math.inf])
def test_the_drawn_ratio_is_the_exact_one(support: float) -> None:
    mixture = Mixture(1.0, 0.1, 3, support, 0.8, distance=2, var_easy=0.5, var_hard=0.2)
    found = drawn_ratio(mixture, stream(0, "tests/ratio"), 40_000)
    assert abs(found.sigmas(float(mixture.ratio))) < 4
    assert abs(found.sigmas(1)) > 10
