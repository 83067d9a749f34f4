"""Labels swapped at random: the risk over both orders, and that R = 0 leaves MAML no gain."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from companion.streams import stream
from companion.theory import gaussian, label_orders


def tasks(seed: int, count: int = 4, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(seed, "tests/label_orders")
    roots = rng.standard_normal((count, d, d))
    return roots @ roots.swapaxes(-1, -2), rng.standard_normal((count, d))


def test_the_proof_goes_through() -> None:
    assert label_orders.proofs() == {"permuted": True}


@given(st.integers(0, 50), st.floats(0.01, 2), st.sampled_from([1, 7, math.inf]),
       st.integers(1, 3))
def test_balanced_labels_leave_no_gain(seed: int, rate: float, support: float, steps: int) -> None:
    """Every task in both orders, as tasks of their own: both minimisers are 0, the ratio is 1."""
    covariances, optima = tasks(seed)
    both, orders = np.concatenate([covariances] * 2), np.concatenate([optima, -optima])
    alpha = rate / np.linalg.eigvalsh(covariances).max()
    nal = gaussian.minimiser_nal(both, orders)
    maml = gaussian.minimiser_maml(both, orders, alpha, support, steps=steps)
    assert np.abs(nal).max() < 1e-12
    assert np.abs(maml).max() < 1e-12
    risk = [gaussian.excess_risk(w, both, orders, alpha, support, noise=0.1, steps=steps)
            for w in (nal, maml, np.zeros(3))]
    assert risk[0] / risk[1] == pytest.approx(1, abs=1e-12)
    # a mutant: one task keeps its labels, and the two no longer agree
    away = np.concatenate([optima, np.concatenate([optima[:1], -optima[1:]])])
    apart = (gaussian.minimiser_nal(both, away)
             - gaussian.minimiser_maml(both, away, alpha, support, steps=steps))
    assert np.abs(apart).max() > 1e-9


def test_risks_are_means_over_the_orders() -> None:
    covariances, optima = tasks(3)
    q = gaussian.q_matrix(covariances, 0.1, 5)
    w, balance = np.array([0.3, -1.0, 2.0]), np.array([1.0, -1.0, 0.0, 0.4])
    expected = np.zeros(4)
    for order in (-1, 1):
        error = w - order * optima
        each = np.einsum("ti,tij,tj->t", error, q, error) / 2
        expected += (1 + order * balance) / 2 * each
    np.testing.assert_allclose(label_orders.risks(w, q, optima, balance), expected, rtol=1e-12)
    even = label_orders.risks(np.zeros(3), q, optima, np.zeros(4))
    assert (even < label_orders.risks(0.01 * w, q, optima, np.zeros(4))).all()


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_no_gradient_at_zero_on_given_samples(steps: int, alpha: float) -> None:
    """Neither Gaussian inputs nor fresh batches are needed: any samples, reused in every step."""
    rng = stream(0, "tests/label_orders/samples")
    x, query = rng.exponential(size=(6, 3)), rng.uniform(size=(8, 3))
    y, target = rng.choice([-1.0, 1.0], 6), rng.choice([-1.0, 1.0], 8)

    def loss(w: np.ndarray, order: int) -> float:
        for _ in range(steps):
            w = w - alpha * x.T @ (x @ w - order * y) / 6
        return float(((query @ w - order * target) ** 2).mean())

    slopes = [[(loss(1e-4 * axis, order) - loss(-1e-4 * axis, order)) / 2e-4
               for axis in np.eye(3)] for order in (-1, 1)]
    scale = np.abs(slopes).max()
    assert scale > 0.1 * abs(1 - alpha) ** steps  # one order alone has a gradient
    assert np.abs(np.sum(slopes, axis=0)).max() < 1e-6 * max(scale, 1)


@pytest.mark.parametrize(("name", "value"), [
    ("w", np.zeros(2)), ("q", np.zeros((4, 3, 2))), ("balance", np.zeros(3)),
    ("balance", np.full(4, 1.1)), ("optima", np.zeros(3)), ("balance", np.full(4, np.nan))])
def test_bad_input_is_refused(name: str, value: np.ndarray) -> None:
    covariances, optima = tasks(0)
    good = {"w": np.zeros(3), "q": covariances, "optima": optima, "balance": np.zeros(4)}
    with pytest.raises(ValueError, match="must"):
        label_orders.risks(**(good | {name: value}))
    assert list(itertools.chain(label_orders.risks(**good)))
