"""The rungs of one step: against best_preconditioner, drawn tasks, and each other."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import sympy as sp

from companion.evaluation import Estimate, estimate
from companion.streams import stream
from companion.theory import depth, whitening

SCALES = np.geomspace(0.1, 3, 10) ** 2


def covariance(rng: np.random.Generator, size: int) -> np.ndarray:
    root = rng.standard_normal((size, size + 2))
    return root @ root.T / size


def test_the_theorems_are_proved() -> None:
    assert whitening.proofs() == dict.fromkeys(("ridge", "converse", "step", "isotropic"), True)


def test_the_symbolic_risk_is_the_numeric_one() -> None:
    """The traces of a drawn family, put into the symbols."""
    rng, alpha, m, noise = stream(0, "whitening/symbols"), 0.2, 7, 0.6
    s, c = covariance(rng, 4), covariance(rng, 4)
    risk, symbols = whitening.step_risk()
    traces = [np.trace(s @ s), *(np.trace(np.linalg.matrix_power(s, k) @ c) for k in (1, 2, 3))]
    values = [alpha, 1 / m, noise, *traces]
    assert float(sp.lambdify(symbols, risk)(*values)) == pytest.approx(
        depth.shallow_risk(s, c, alpha, m, noise), rel=1e-12)


@pytest.mark.parametrize("support", [1, 4, 30, math.inf])
@pytest.mark.parametrize("noise", [0.0, 0.7])
@pytest.mark.parametrize("d", [1, 3, 6])
def test_it_is_the_best_preconditioner(d: int, noise: float, support: float) -> None:
    rng = stream(0, f"whitening/{d}")
    s = covariance(rng, d)
    found = whitening.ridge_whitening(s, support, noise)
    best = depth.best_preconditioner(s, np.eye(d) / d, support, noise)
    np.testing.assert_allclose(found.preconditioner, best, rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(
        found.preconditioner @ (s + found.ridge * np.eye(d)), found.rate * np.eye(d), atol=1e-9)
    if noise == 0:  # then the scale of C does not matter
        scaled = depth.best_preconditioner(s, 7 * np.eye(d), support)
        np.testing.assert_allclose(found.preconditioner, scaled, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("support", [2, 20, math.inf])
def test_one_rate_on_whitened_inputs_reaches_the_best(support: float) -> None:
    s, c, noise = covariance(stream(0, "whitening/reach"), 4), np.eye(4) / 4, 0.5
    rate, ridge, p = whitening.ridge_whitening(s, support, noise)
    floor = depth.preconditioned_risk(p, s, c, support, noise)
    family = whitening.whitened(s, c, ridge)
    assert depth.best_shallow_step(*family, support, noise) == pytest.approx(rate, rel=1e-10)
    reached = whitening.whitened_risk(s, c, support, noise, ridge=ridge)
    assert reached == pytest.approx(floor, rel=1e-10)
    assert whitening.whitened_risk(s, c, support, noise, ridge=2 * ridge + 0.1) > floor * 1.0001
    assert whitening.best_ridge(s, c, support, noise) == pytest.approx(ridge, rel=1e-3, abs=1e-6)


def drawn(s: np.ndarray, c: np.ndarray, m: int, noise: float, learn: Callable[..., np.ndarray],
          draws: int) -> Estimate:
    """The mean excess risk of what ``learn`` makes of x [draw, m, d] and y [draw, m]."""
    rng = stream(0, "whitening/drawn")
    w = rng.standard_normal((draws, len(s))) @ np.linalg.cholesky(c).T
    x = rng.standard_normal((draws, m, len(s))) @ np.linalg.cholesky(s).T
    y = (x @ w[..., None])[..., 0] + noise * rng.standard_normal((draws, m))
    error = learn(x, y) - w
    return estimate(np.einsum("ti,ij,tj->t", error, s, error) / 2)


@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_drawn_tasks_reach_it_on_whitened_inputs(noise: float) -> None:
    """A gradient step of a shallow model that sees K x alone, its weights turned back."""
    s, c, m = np.diag([4.0, 0.3, 0.05]), np.eye(3) / 3, 6
    rate, ridge, p = whitening.ridge_whitening(s, m, noise)
    root = np.diag((np.diag(s) + ridge) ** -0.5)

    def step(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen = x @ root
        return rate * (y[:, None] @ seen / m)[:, 0] @ root

    value = drawn(s, c, m, noise, step, 700_000)
    assert value.error < 0.003 * value.value
    assert abs(value.sigmas(depth.preconditioned_risk(p, s, c, m, noise))) < 4
    assert abs(value.sigmas(whitening.whitened_risk(s, c, m, noise, ridge=ridge))) < 4
    for name, mutant in (("no ridge", rate * np.linalg.inv(s)),
                         ("no rate", np.linalg.inv(s + ridge * np.eye(3))),
                         ("no noise", whitening.ridge_whitening(s, m, 0.0).preconditioner)):
        if noise > 0 or name != "no noise":
            assert value.sigmas(depth.preconditioned_risk(mutant, s, c, m, noise)) < -4, name


def test_least_squares_on_drawn_tasks() -> None:
    rng = stream(0, "whitening/least")
    s, c, m, noise = covariance(rng, 3), covariance(rng, 3), 9, 0.7

    def solve(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        gram = x.swapaxes(1, 2) @ x
        return np.linalg.solve(gram, x.swapaxes(1, 2) @ y[..., None])[..., 0]

    value = drawn(s, c, m, noise, solve, 300_000)
    assert value.error < 0.003 * value.value
    assert abs(value.sigmas(whitening.least_squares_risk(3, m, noise))) < 4
    for mutant in (3 * noise**2 / (2 * m), 3 * noise**2 / (2 * (m - 3)), 3 * noise / (2 * (m - 4))):
        assert abs(value.sigmas(mutant)) > 4
    assert drawn(s, c, m, 0.0, solve, 100).value < 1e-20
    assert whitening.least_squares_risk(3, 3) == 0
    assert whitening.least_squares_risk(3, 4, noise) == math.inf
    assert whitening.least_squares_risk(3, math.inf, noise) == 0


def test_the_floor_is_the_same_in_any_coordinates_of_the_inputs() -> None:
    rng = stream(0, "whitening/turned")
    s, c, turn = covariance(rng, 3), covariance(rng, 3), rng.standard_normal((3, 3))
    floor = whitening.ladder(s, c, 5, 0.4)
    back = np.linalg.inv(turn)
    other = whitening.ladder(turn @ s @ turn.T, back.T @ c @ back, 5, 0.4)
    for rung in ("no step", "P*", "least squares"):
        assert other[rung] == pytest.approx(floor[rung], rel=1e-9)
    assert abs(other["one rate"] / floor["one rate"] - 1) > 0.05


@pytest.mark.parametrize("noise", [0.0, 0.4])
def test_the_ladder_of_spread_inputs_and_spread_tasks(noise: float) -> None:
    s, eye = np.diag(SCALES), np.eye(10)
    inputs = whitening.ladder(s, eye / 10, 20, noise)
    tasks = whitening.ladder(eye, s / 10, 20, noise)
    assert inputs["ridge-whitened"] == pytest.approx(inputs["P*"], rel=1e-10)
    assert inputs["best ridge"] == pytest.approx(inputs["P*"], rel=1e-9)
    assert inputs["one rate"] > 1.3 * inputs["P*"]
    for rung in ("ridge-whitened", "best ridge"):  # isotropic inputs are white already
        assert tasks[rung] == pytest.approx(tasks["one rate"], rel=1e-10)
    assert tasks["one rate"] > 1.3 * tasks["P*"]


def test_full_whitening_is_best_where_tasks_are_spread_against_the_inputs() -> None:
    """C = c S^-1: the converse of the theorem with a = 0."""
    s = covariance(stream(0, "whitening/against"), 3)
    c = np.linalg.inv(s)
    assert whitening.best_ridge(s, c, 8) == pytest.approx(0, abs=1e-6)
    rungs = whitening.ladder(s, c, 8)
    assert rungs["best ridge"] == pytest.approx(rungs["P*"], rel=1e-9)
    assert rungs["ridge-whitened"] > 1.01 * rungs["P*"]


def test_the_ladder_knows_the_scale_of_the_tasks() -> None:
    """C = 4 I/d with noise: the ridge takes the noise relative to the optima."""
    s, c = covariance(stream(0, "whitening/scale"), 3), 4 * np.eye(3) / 3
    rungs = whitening.ladder(s, c, 6, 0.9)
    assert rungs["ridge-whitened"] == pytest.approx(rungs["P*"], rel=1e-10)
    still = depth.preconditioned_risk(np.zeros((3, 3)), s, c, 6, 0.9)
    assert rungs["no step"] == pytest.approx(still, rel=1e-12)


def test_few_samples_have_no_least_squares() -> None:
    assert "least squares" not in whitening.ladder(np.eye(3), np.eye(3), 2)
    assert "least squares" in whitening.ladder(np.eye(3), np.eye(3), 3)


EYE = np.eye(2)


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: whitening.ridge_whitening(np.diag([1.0, 0.0]), 3), "positive definite"),
     (lambda: whitening.ridge_whitening(np.ones((2, 3)), 3), "covariance.shape"),
     (lambda: whitening.ridge_whitening(np.stack([EYE, EYE]), 3), "call once per family"),
     (lambda: whitening.ridge_whitening(EYE, 0.5), "support must be at least 1"),
     (lambda: whitening.ridge_whitening(EYE, [3, 4]), "support must be one number"),
     (lambda: whitening.ridge_whitening(EYE, 3, -1.0), "noise must be at least 0"),
     (lambda: whitening.whitened(EYE, np.eye(4), 1.0), "task_covariance.shape"),
     (lambda: whitening.whitened(EYE, EYE, -1.0), "ridge must be at least 0"),
     (lambda: whitening.least_squares_risk(3, 2), "support must be at least dim = 3"),
     (lambda: whitening.least_squares_risk(0, 2), "dim must be at least 1"),
     (lambda: whitening.ladder(EYE, 0 * EYE, 3, 0.1), "task_covariance must not vanish"),
     (lambda: whitening.ladder(EYE, np.diag([1.0, 0.0]), math.inf), "non-singular")],
)
def test_bad_input(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
