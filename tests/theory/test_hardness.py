"""The hardness spread of a mixture, its supremum, and what few samples and directions do to it."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.tasks.regressions import LinearFamily
from companion.theory import gaussian
from companion.theory import landscape as ls
from companion.theory.landscape import Mixture
from companion.theory.placement import best_placed

EXAMPLE: dict[str, Any] = dict(rho_easy=0.9, rho_hard=0.1, dim=10, support=math.inf, alpha=1.0,
                               distance=3, var_easy=1, var_hard=0.01)


def test_the_supremum_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(15)
    distances = np.logspace(-3, 6, 60)[:, None, None]
    easy, hard = np.meshgrid(*2 * [np.append(0, np.logspace(-6, 2, 9))], indexing="ij")
    for _ in range(20):
        mixture = Mixture(rng.uniform(0.1, 2), rng.uniform(0.1, 2), int(rng.integers(1, 20)),
                          rng.choice([3.0, 30, math.inf]), rng.uniform(0.1, 1),
                          hard_fraction=rng.uniform(0.05, 0.95), noise=rng.choice([0.0, 1.0]),
                          steps=int(rng.integers(1, 4)))
        ratios = replace(mixture, distance=distances, var_easy=easy, var_hard=hard).ratio
        bound = ls.supremum(mixture)
        assert bound * (1 - 1e-4) <= ratios.max() <= bound * (1 + 1e-9)
        assert bound <= ls.ceiling(ls.hardness_spread(mixture)) * (1 + 1e-12)


def test_the_supremum_is_the_ceiling_where_nal_stops_halfway() -> None:
    for rho_hard, alpha, support in ((0.1, 1.0, math.inf), (0.3, 0.7, 20), (2.0, 1.1, 5)):
        mixture = Mixture(0.9, rho_hard, 6, support, alpha, hard_fraction=0.9 / (0.9 + rho_hard))
        assert mixture.weight_nal == pytest.approx(0.5)
        bound = ls.ceiling(ls.hardness_spread(mixture))
        assert mixture.ratio == pytest.approx(bound, rel=1e-12)
        assert ls.supremum(mixture) == pytest.approx(bound, rel=1e-12)
        assert ls.supremum(replace(mixture, hard_fraction=0.3)) < bound


groups = st.fixed_dictionaries(dict(
    rho_easy=st.floats(0.01, 10), rho_hard=st.floats(0.01, 10), dim=st.integers(1, 50),
    support=st.one_of(st.integers(1, 100), st.just(math.inf)), alpha=st.floats(0, 4),
    hard_fraction=st.integers(0, 64).map(lambda i: i / 64), distance=st.floats(0, 10),
    var_easy=st.floats(0, 10), var_hard=st.floats(0, 10), noise=st.floats(0, 10),
    steps=st.integers(0, 6)))


@given(groups)
def test_ratio_below_supremum_below_ceiling(fields: dict) -> None:
    mixture = Mixture(**fields)
    h, bound, q = ls.hardness_spread(mixture), ls.supremum(mixture), ls.matching_fraction(mixture)
    assert 0 <= h <= 1
    assert 1 <= mixture.ratio <= bound * (1 + 1e-9)
    assert bound <= ls.ceiling(h) * (1 + 1e-9)
    assert 0 <= q <= 1


@given(groups)
def test_isotropic_is_a_special_case(fields: dict) -> None:
    mixture, p = Mixture(**fields), fields["hard_fraction"]
    family = np.stack([fields[name] * np.eye(fields["dim"]) for name in ("rho_easy", "rho_hard")])
    h = gaussian.hardness_spread(family, fields["alpha"], fields["support"], [1 - p, p],
                                 steps=fields["steps"])
    assert ls.hardness_spread(mixture) == pytest.approx(h, rel=1e-9, abs=1e-25)


def test_twice_as_many_samples_as_isotropic_inputs_leave_little() -> None:
    family = np.stack([np.eye(10), 0.1 * np.eye(10)])
    assert gaussian.effective_dimension(family) == pytest.approx([10, 10])
    assert ls.ceiling(gaussian.least_spread(family, 20)) == pytest.approx(
        (1 + 11 / 31) ** 2 / (4 * 11 / 31))
    assert ls.ceiling(gaussian.least_spread(family, 20)) < 1.3


def test_few_samples_may_suffice_where_few_directions_count() -> None:
    family = LinearFamily(np.stack([np.diag([rho] + 9 * [0.001]) for rho in (1, 0.1)]),
                          np.stack([3 * np.eye(10)[0], np.zeros(10)]), np.array([1, 0.01]),
                          np.array([0.1, 0.9]))
    nal, maml = (family.risk(w, 0.9, 20)
                 for w in (family.minimiser_nal(), family.minimiser_maml(0.9, 20)))
    assert nal / maml == pytest.approx(2.8, abs=0.05)
    h = gaussian.hardness_spread(family.covariances, 0.9, 20, family.weights)
    assert nal / maml < ls.ceiling(h)
    assert gaussian.least_spread(family.covariances, 20) == pytest.approx(2 / 22, rel=1e-4)
    assert h == pytest.approx(0.0876, abs=1e-4)  # one direction keeps a little more than it had


@pytest.mark.parametrize(("alpha_rho", "ratio", "digits"),
                         [(0.945, 21.6, 0.05), (0.99, 342, 0.5), (1.035, 49, 0.5),
                          (0.9, 7.3, 0.05)])
def test_one_step_is_a_knifes_edge(alpha_rho: float, ratio: float, digits: float) -> None:
    mixture = Mixture(**EXAMPLE | {"alpha": alpha_rho / 0.9})
    assert mixture.ratio == pytest.approx(ratio, abs=digits)
    edge = Mixture(**EXAMPLE | {"alpha": 1 / 0.9}).ratio
    assert edge == pytest.approx(1 + 0.9**2 * 9 / 0.01, rel=1e-9)
    assert edge > 2 * mixture.ratio


def test_hardness_has_directions() -> None:
    family = np.stack([np.diag([1, 0.1]), np.diag([0.1, 1])])
    placed = best_placed(family, 1.0, math.inf, distance=3, variances=[0.01, 0.01])
    assert placed.ratio == pytest.approx(745, abs=0.5)
    assert gaussian.hardness_spread(family, 1.0, math.inf) == 0
    assert gaussian.hardness_spread(family[:1], 1.0, math.inf) == 0


EDGES = [
    (dict(alpha=0.0), 1), (dict(steps=0), 1), (dict(hard_fraction=0), 1),
    (dict(hard_fraction=1), 1), (dict(alpha=1 / 0.9), 0), (dict(alpha=10.0), 0),
    (dict(rho_hard=0.9), 1), (dict(rho_hard=0.9, alpha=1 / 0.9), 1), (dict(steps=10_000), 0),
    (dict(alpha=2.0), 1), (dict(support=1, alpha=0.01, steps=10_000, noise=1), 0),
    (dict(distance=0, var_easy=0, var_hard=0), (0.1 / 0.9) ** 2),
]


@pytest.mark.parametrize(("fields", "spread"), EDGES)
def test_edges(fields: dict, spread: float) -> None:
    mixture = Mixture(**EXAMPLE | fields)
    h = ls.hardness_spread(mixture)
    assert h == pytest.approx(spread, abs=1e-12)
    bound = ls.supremum(mixture)
    assert mixture.ratio <= bound <= ls.ceiling(h)
    assert (bound == math.inf) == (spread == 0 and h == 0)
    q = ls.matching_fraction(mixture)
    assert 0 <= q <= 1
    family, p = LinearFamily.from_mixture(mixture), mixture.hard_fraction
    assert gaussian.hardness_spread(family.covariances, mixture.alpha, mixture.support, [1 - p, p],
                                    steps=mixture.steps) == pytest.approx(float(h), abs=1e-12)


def test_a_solved_direction_and_one_without_variance() -> None:
    turn = np.linalg.qr(np.random.default_rng(17).standard_normal((3, 3)))[0]

    def turned(*spectra: list[float]) -> np.ndarray:
        made = np.stack([turn * np.array(spectrum) @ turn.T for spectrum in spectra])
        return (made + made.swapaxes(1, 2)) / 2

    h = gaussian.hardness_spread
    assert h(turned([1, 0.5, 0.2]), 2.0, math.inf) == 0  # exactly, in spite of the rounding
    assert h(turned([0.5, 0.5, 0.0], [0.5, 0.0, 0.0]), 2.0, math.inf) == 1  # nothing is left
    flat = h(turned([0.5, 0.5, 0.0]), 0.5, 7)
    assert flat == pytest.approx(1)
    assert h(turned([0.5, 0.5, 1e-9]), 0.5, 7) < 0.9
    assert h(turned([1, 0.5, 0.2], [1, 1, 1]), 0.5, 7, [0, 2]) == pytest.approx(1)
    assert h(np.stack([np.zeros((3, 3)), np.eye(3)]), 0.5, 7) == pytest.approx(1)
    assert h(turned([1, 0.5, 0.2]) * 1e-200, 1e200, 7) == pytest.approx(
        h(turned([1, 0.5, 0.2]), 1.0, 7))


def test_ceiling_of_arrays_and_at_the_ends() -> None:
    spread = np.array([[0.0, 5e-324], [0.1, 1.0]])
    top = ls.ceiling(spread)
    assert top.shape == (2, 2)
    assert np.isposinf(top[0]).all()
    assert top[1] == pytest.approx([1.1**2 / 0.4, 1])
    assert ls.ceiling(1) == 1
    assert (np.diff(ls.ceiling(np.linspace(0.001, 1, 1000))) < 0).all()


def test_arrays_are_broadcast_and_equal_one_call_each() -> None:
    grid = Mixture(**EXAMPLE | dict(rho_hard=np.linspace(0.1, 0.9, 3)[:, None], support=20,
                                    hard_fraction=[0.0, 0.2, 0.5, 1.0]))
    one = Mixture(**EXAMPLE | dict(rho_hard=0.5, support=20, hard_fraction=0.5))
    for function in (ls.hardness_spread, ls.supremum, ls.matching_fraction):
        assert function(grid).shape == (3, 4)
        assert function(grid)[1, 2] == function(one)
        assert isinstance(float(function(one)), float)


GOOD = np.stack([np.eye(2), 0.5 * np.eye(2)])
BAD = [
    (r"spread must lie in \[0, 1\], got 1.1", lambda: ls.ceiling(1.1)),
    (r"spread must lie in \[0, 1\], got -0.1 at index \[1\]", lambda: ls.ceiling([0.5, -0.1])),
    ("spread must be finite, got nan", lambda: ls.ceiling(math.nan)),
    (r"covariances.shape must be \[task, d, d\]", lambda: gaussian.hardness_spread(GOOD[0], 1, 3)),
    ("covariances must have a direction with variance",
     lambda: gaussian.hardness_spread(np.zeros((2, 2, 2)), 1, 3)),
    ("covariances must have a direction with variance",
     lambda: gaussian.least_spread(np.stack([np.eye(2), np.zeros((2, 2))]), 3, [0, 1])),
    ("alpha must be one number", lambda: gaussian.hardness_spread(GOOD, np.ones(2), 3)),
    ("alpha must be at least 0", lambda: gaussian.hardness_spread(GOOD, -1, 3)),
    ("alpha must be below 1e100", lambda: gaussian.hardness_spread(GOOD, 1e200, 3)),
    ("support must be one number", lambda: gaussian.hardness_spread(GOOD, 1, [3, 4])),
    ("support must be one number", lambda: gaussian.least_spread(GOOD, [3, 4])),
    ("support must be at least 1", lambda: gaussian.least_spread(GOOD, 0)),
    ("steps must be one number", lambda: gaussian.hardness_spread(GOOD, 1, 3, steps=[1, 2])),
    (r"weights.shape must be \[task\] = \(2,\)",
     lambda: gaussian.hardness_spread(GOOD, 1, 3, [1, 2, 3])),
    ("weights must have a positive sum", lambda: gaussian.hardness_spread(GOOD, 1, 3, [0, 0])),
    ("covariance must not vanish", lambda: gaussian.effective_dimension(np.zeros((2, 2)))),
    ("call once per mixture",
     lambda: ls.best_fraction(Mixture(**EXAMPLE | {"alpha": [1, 0.5]}))),
    ("mixture must have a ratio above 1 at some share, got 1.0",
     lambda: ls.best_fraction(Mixture(**EXAMPLE | {"distance": 0}))),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input(message: str, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()
