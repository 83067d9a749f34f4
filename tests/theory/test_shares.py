"""Shares of hard tasks, and centres: where NAL and MAML agree, and where MAML gains most."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from companion.tasks.regressions import LinearFamily
from companion.theory import gaussian
from companion.theory.landscape import Mixture, best_fraction, matching_fraction
from companion.theory.placement import best_placed

RNG = np.random.default_rng(21)
SETTINGS = [
    dict(rho_easy=float(RNG.uniform(0.3, 1.5)), rho_hard=float(RNG.uniform(0.05, 1)),
         dim=int(RNG.integers(1, 20)), support=float(RNG.choice([4, 30, math.inf])),
         alpha=float(RNG.uniform(0.2, 1)), hard_fraction=float(RNG.uniform(0.1, 0.9)),
         distance=float(RNG.uniform(0.5, 4)), var_easy=float(RNG.choice([0, 1.0])),
         var_hard=float(RNG.choice([0.01, 0.5])), noise=float(RNG.choice([0, 0.4])),
         steps=int(RNG.integers(1, 4)))
    for _ in range(20)
]
SHARES = np.linspace(0, 1, 20_001)


@pytest.mark.parametrize("fields", SETTINGS)
def test_nal_on_the_matching_share_is_maml(fields: dict[str, Any]) -> None:
    mixture, p = Mixture(**fields), fields["hard_fraction"]
    q = matching_fraction(mixture)
    assert replace(mixture, hard_fraction=q).weight_nal == pytest.approx(mixture.weight_maml)
    family = LinearFamily.from_mixture(mixture)
    nal = gaussian.minimiser_nal(family.covariances, family.centres, [1 - q, q])
    np.testing.assert_allclose(nal, family.minimiser_maml(
        mixture.alpha, mixture.support, steps=mixture.steps), atol=1e-12)
    trained = replace(mixture, hard_fraction=SHARES)
    for weights, stop in ((trained.weight_nal, q), (trained.weight_maml, p)):
        risks = mixture.risk(weights)
        assert SHARES[risks.argmin()] == pytest.approx(stop, abs=1e-4)
        assert risks.min() == pytest.approx(mixture.risk_maml, rel=1e-6)
        hard = replace(mixture, hard_fraction=1.0).risk(weights)
        assert (np.diff(hard) < 0).all()
        assert hard[-1] == replace(mixture, hard_fraction=1.0).risk(0.0)


@pytest.mark.parametrize("fields", SETTINGS)
def test_the_ratio_has_one_peak_over_the_share(fields: dict[str, Any]) -> None:
    mixture = Mixture(**fields)
    ratios = replace(mixture, hard_fraction=SHARES).ratio
    best = best_fraction(mixture)
    assert replace(mixture, hard_fraction=best).ratio >= ratios.max() * (1 - 1e-12)
    assert SHARES[ratios.argmax()] == pytest.approx(best, abs=1e-4)
    steps = np.sign(np.diff(ratios))[np.abs(np.diff(ratios)) > 1e-13]
    assert np.count_nonzero(np.diff(steps)) <= 1
    assert best == best_fraction(replace(mixture, hard_fraction=0.123))


def test_the_best_share_at_the_ends() -> None:
    mixture = Mixture(0.9, 0.1, 10, math.inf, 1.0, distance=3, var_easy=1, var_hard=0.01)
    assert best_fraction(replace(mixture, alpha=1 / 0.9)) == 0
    assert best_fraction(replace(mixture, alpha=10.0)) == 1
    packed = replace(mixture, var_easy=0.0, var_hard=0.0)
    assert best_fraction(packed) == pytest.approx(0.9)  # where lambda_NAL = 1/2
    assert best_fraction(replace(packed, steps=3)) == pytest.approx(0.9)
    assert matching_fraction(replace(mixture, alpha=1 / 0.9)) == 1
    solved = replace(mixture, rho_hard=0.9, alpha=1 / 0.9, hard_fraction=0.3)
    assert matching_fraction(solved) == pytest.approx(0.3)
    assert matching_fraction(replace(mixture, hard_fraction=[0.0, 1.0])) == pytest.approx([0, 1])


@pytest.mark.parametrize("seed", range(20))
def test_no_centres_are_better_than_the_best_placed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    d, alpha, steps = int(rng.integers(1, 5)), float(rng.uniform(0.1, 0.6)), int(rng.integers(1, 3))
    support, noise = float(rng.choice([5, math.inf])), float(rng.choice([0, 1]))
    factor = rng.standard_normal((2, d, d))
    covariances = factor @ factor.swapaxes(1, 2) / d + 0.05 * np.eye(d)
    weights, variances = rng.uniform(0.2, 1, 2), rng.uniform(0.01, 1, 2)
    placed = best_placed(covariances, alpha, support, distance=3, variances=variances,
                         weights=weights, noise=noise, steps=steps)

    def ratio(centre: np.ndarray) -> float:
        family = LinearFamily(covariances, np.stack([centre, np.zeros(d)]), variances, weights,
                              noise)
        nal, maml = (family.risk(w, alpha, support, steps=steps) for w in (
            family.minimiser_nal(), family.minimiser_maml(alpha, support, steps=steps)))
        return float(nal / maml)

    assert np.linalg.norm(placed.centres[0] - placed.centres[1]) == pytest.approx(3)
    assert ratio(placed.centres[0]) == pytest.approx(placed.ratio, rel=1e-9)
    others = rng.standard_normal((300, d))
    others *= 3 / np.linalg.norm(others, axis=1, keepdims=True)
    found = [ratio(other) for other in others]
    assert max(found) <= placed.ratio * (1 + 1e-12)
    if d == 2:
        assert max(found) == pytest.approx(placed.ratio, rel=1e-2)


PAIR = np.stack([np.diag([1, 0.1]), np.diag([0.1, 1])])
GOOD: dict[str, Any] = dict(covariances=PAIR, alpha=0.5, support=5, distance=3,
                            variances=[0.1, 0.1])
BAD = [
    (r"covariances.shape must be \[2, d, d\], got \(2, 2\)", dict(covariances=PAIR[0])),
    (r"covariances.shape must be \[2, d, d\], got \(1, 2, 2\)", dict(covariances=PAIR[:1])),
    (r"variances.shape must be \(2,\)", dict(variances=[0.1])),
    ("variances must be at least 0", dict(variances=[0.1, -1])),
    (r"weights.shape must be \(2,\)", dict(weights=[1, 1, 1])),
    ("weights must have a positive sum", dict(weights=[0, 0])),
    ("distance must be at least 0, got -1", dict(distance=-1)),
    ("the risk at the centres must be positive", dict(variances=[0, 0])),
    (r"E\[Q\], the mean over tasks, must be non-singular",
     dict(covariances=np.stack(2 * [np.diag([1, 0.5])]), alpha=1, support=math.inf)),
]


@pytest.mark.parametrize(("message", "fields"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_placement(message: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=message):
        best_placed(**GOOD | fields)


def test_at_no_distance_there_is_nothing_to_place() -> None:
    placed = best_placed(**GOOD | {"distance": 0})
    assert placed.ratio == pytest.approx(1)
    assert (placed.centres == 0).all()
