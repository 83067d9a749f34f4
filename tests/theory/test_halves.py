"""Halves that adapt: against kron matrices, brute force over the factors, and drawn tasks."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.optimize import lsq_linear, minimize

from companion.evaluation import estimate
from companion.streams import stream
from companion.theory import depth, halves

ONES, WIDE = np.ones(5), np.geomspace(0.1, 3, 5) ** 2
FLAT, SPREAD = np.ones(10), np.geomspace(0.1, 3, 10) ** 2
NAMES = ("no step", "one rate", "bottom adapts", "top adapts", "both adapt", "P*")


def test_the_theorems_are_proved() -> None:
    assert halves.proofs() == dict.fromkeys(("top", "bottom", "one output", "frozen"), True)


@pytest.mark.parametrize(("family", "risks"), [
    ((SPREAD, FLAT / 10, ONES, 20, 0.0), (4.2401, 1.3741, 1.3741, 0.9242, 0.9242, 0.9242)),
    ((FLAT, FLAT / 10, WIDE, 20, 2.0), (5.504, 3.2652, 2.6489, 3.2652, 2.6489, 2.6489)),
    ((FLAT, SPREAD / 10, WIDE, 20, 2.0), (9.3349, 4.8591, 4.1317, 2.9669, 2.7897, 2.56))])
def test_the_numbers_of_three_families(family: tuple, risks: tuple) -> None:
    found = halves.half_risks(*family)
    assert found == pytest.approx(dict(zip(NAMES, risks, strict=True)), abs=6e-5)


def drawn(name: str, d: int, o: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = stream(0, f"halves/{name}")
    return tuple(np.exp(rng.normal(0, 1.3, size)) for size in (d, d, o))


def matrices(s: np.ndarray, t: np.ndarray, o: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """S and C as :mod:`companion.theory.depth` takes them."""
    return np.diag(s), np.kron(np.diag(o), np.diag(t))


def factors(s: np.ndarray, t: np.ndarray, o: np.ndarray, m: float,
            noise: float) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The best diagonals l, r of both factors, from second moments by other means: entries summed
    one by one, and a bounded least squares."""
    size = len(o) * len(s)
    *_, gradients, cross = depth._moments(*matrices(s, t, o), m, noise)
    g, x = (np.diag(moment.reshape(size, size)).reshape(len(o), len(s))
            for moment in (gradients, cross))
    bottom = np.array([(s * x[a]).sum() / (s * g[a]).sum() for a in range(len(o))])
    top = np.array([x[:, i].sum() / g[:, i].sum() for i in range(len(s))])
    design = np.concatenate([np.kron(np.eye(len(o)), np.ones((len(s), 1))),
                             np.kron(np.ones((len(o), 1)), np.eye(len(s)))], axis=1)
    weights = np.sqrt(s * g).ravel()
    fit = lsq_linear(weights[:, None] * design, weights * (x / g).ravel(), bounds=(0, np.inf),
                     tol=1e-14).x
    return {"bottom adapts": (bottom, 0 * s), "top adapts": (0 * o, top),
            "both adapt": (fit[: len(o)], fit[len(o) :])}


@pytest.mark.parametrize("noise", [0.0, 0.9])
@pytest.mark.parametrize("support", [1, 5, math.inf])
@pytest.mark.parametrize("shape", [(1, 1), (4, 1), (1, 3), (3, 2)])
def test_it_is_the_risk_of_a_kronecker_sum(shape: tuple, support: float, noise: float) -> None:
    s, t, o = drawn(f"{shape}", *shape)
    found, family = halves.half_risks(s, t, o, support, noise), (*matrices(s, t, o), support, noise)

    def risk(left: np.ndarray, right: np.ndarray) -> float:
        p = np.kron(np.diag(left), np.eye(len(s))) + np.kron(np.eye(len(o)), np.diag(right))
        return depth.preconditioned_risk(p, *family)

    rate = depth.best_shallow_step(*family)
    expected = {name: risk(*pair) for name, pair in factors(s, t, o, support, noise).items()}
    expected |= {"no step": risk(0 * o, 0 * s), "one rate": depth.shallow_risk(
        *family[:2], rate, support, noise),
        "P*": depth.preconditioned_risk(depth.best_preconditioner(*family), *family)}
    assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)
    order = [found[name] for name in NAMES]
    assert order[0] >= order[1] >= max(order[2:4]) - 1e-12
    assert min(order[2:4]) >= order[4] - 1e-12
    assert order[4] >= order[5] - 1e-12


@pytest.mark.parametrize(("case", "noise"), [(0, 0.0), (1, 0.7), (2, 2.0), (3, 0.5)])
def test_no_other_factors_are_better(case: int, noise: float) -> None:
    """Minimised over U and B, whose U U.T and B.T B have any off-diagonal entries."""
    s, t, o = drawn(f"brute {case}", 2, 2)
    family, rng = (*matrices(s, t, o), 3, noise), stream(0, "halves/starts")
    found = halves.half_risks(s, t, o, 3, noise)

    def risk(entries: np.ndarray) -> float:
        left, right = entries[:4].reshape(2, 2), entries[4:].reshape(2, 2)
        p = np.kron(left @ left.T, np.eye(2)) + np.kron(np.eye(2), right.T @ right)
        return depth.preconditioned_risk(p, *family)

    for name, free in (("both adapt", np.ones(8)), ("bottom adapts", np.repeat((1, 0), 4)),
                       ("top adapts", np.repeat((0, 1), 4))):
        ends = [minimize(lambda entries, free=free: risk(entries * free), rng.standard_normal(8),
                         options={"gtol": 1e-7}).fun for _ in range(3)]
        assert min(ends) == pytest.approx(found[name], rel=1e-5), name
        assert min(ends) > found[name] * (1 - 1e-9)


def test_no_factor_is_negative() -> None:
    """Where least squares without bounds would take one that is, and reach less."""
    s, t, o, m, noise = np.ones(3), np.array([1.0, 1.0, 0.02]), np.array([3.0, 0.05]), 3, 1.0
    found = halves.half_risks(s, t, o, m, noise)
    left, right = factors(s, t, o, m, noise)["both adapt"]
    assert min(left) < 1e-6
    assert min(right) < 1e-6
    *_, gradients, cross = depth._moments(*matrices(s, t, o), m, noise)
    g, x = (np.diag(moment.reshape(6, 6)).reshape(2, 3) for moment in (gradients, cross))
    design = np.array([[*np.eye(2)[a], *np.eye(3)[i]] for a in range(2) for i in range(3)])
    free = np.linalg.lstsq(np.sqrt(g).reshape(6, 1) * design, (x / np.sqrt(g)).ravel())[0]
    entries = (design @ free).reshape(2, 3)
    less = np.sum(g * entries**2 - 2 * x * entries + np.outer(o, t)) / 2
    assert entries.min() < 0
    assert less < found["both adapt"] * (1 - 1e-4)


@pytest.mark.parametrize("name", ["bottom adapts", "top adapts", "both adapt"])
def test_drawn_tasks(name: str) -> None:
    """A gradient step on the halves themselves, of width d + o, from U B = 0."""
    s, t, o = np.array([2.0, 0.5, 0.1]), np.array([0.1, 1.0, 0.4]), np.array([1.5, 0.1])
    m, noise, draws, rng = 6, 0.8, 400_000, stream(0, "halves/drawn")
    left, right = factors(s, t, o, m, noise)[name]
    above = np.concatenate([np.diag(np.sqrt(left)), np.zeros((2, 3))], axis=1)
    below = np.concatenate([np.zeros((2, 3)), np.diag(np.sqrt(right))])
    w = np.sqrt(np.outer(o, t)) * rng.standard_normal((draws, 2, 3))
    x = np.sqrt(s) * rng.standard_normal((draws, m, 3))
    y = x @ w.swapaxes(1, 2) + noise * rng.standard_normal((draws, m, 2))
    gradient = (x @ (above @ below).T - y).swapaxes(1, 2) @ x / m
    moved_below = below - (above.T @ gradient if name != "top adapts" else 0)
    moved_above = above - (gradient @ below.T if name != "bottom adapts" else 0)
    error = moved_above @ moved_below - w
    risk = estimate(np.einsum("nai,i->n", error**2, s) / 2)
    found = halves.half_risks(s, t, o, m, noise)
    assert risk.error < 0.003 * risk.value
    assert abs(risk.sigmas(found[name])) < 4
    for other in {"one rate", "bottom adapts", "top adapts", "both adapt"} - {name}:
        assert abs(risk.sigmas(found[other])) > 4, other


def test_when_a_half_is_enough() -> None:
    s, t, o = drawn("enough", 4, 3)
    clear, alike = halves.half_risks(s, t, o, 6), halves.half_risks(0 * s + 2, 0 * t + 3, o, 6, 0.9)
    assert clear["top adapts"] == pytest.approx(clear["P*"], rel=1e-12)
    assert alike["bottom adapts"] == pytest.approx(alike["P*"], rel=1e-12)
    single = halves.half_risks(s, t, o[:1], 6, 0.9)
    assert single["bottom adapts"] == pytest.approx(single["one rate"], rel=1e-12)
    assert single["one rate"] > 1.01 * single["top adapts"]
    noisy = halves.half_risks(s, t, o, 6, 20.0)
    assert min(noisy["top adapts"], noisy["bottom adapts"]) > 1.001 * noisy["P*"]


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: halves.half_risks([1.0, 0.0], [1, 1], [1], 3), "inputs must be positive"),
     (lambda: halves.half_risks([1, 1], [1, -1], [1], 3), "tasks must be positive"),
     (lambda: halves.half_risks([1, 1], [1, 1], [0.0], 3), "outputs must be positive"),
     (lambda: halves.half_risks([1, 1], [1, 1, 1], [1], 3), r"tasks.shape must be \[2\]"),
     (lambda: halves.half_risks(np.eye(2), [1, 1], [1], 3), "inputs.shape"),
     (lambda: halves.half_risks([1, 1], [1, 1], [], 3), "outputs.shape"),
     (lambda: halves.half_risks([1, math.nan], [1, 1], [1], 3), "inputs must be finite"),
     (lambda: halves.half_risks([1], [1], [1], 0.5), "support must be at least 1"),
     (lambda: halves.half_risks([1], [1], [1], [3, 4]), "support must be one number"),
     (lambda: halves.half_risks([1], [1], [1], 3, -1.0), "noise must be at least 0"),
     (lambda: halves.half_risks([1], [1], [1], 3, [1.0]), "noise must be one number")],
)
def test_bad_input(call: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
