"""The hardness spread and its ceiling for any covariances: brute force, drawn and worst cases."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from scipy.optimize import minimize

from companion.theory import gaussian
from companion.theory import landscape as ls


def covariances(rng: np.random.Generator, tasks: int, d: int, *, ranks: int = 0) -> np.ndarray:
    """Random covariances [tasks, d, d], of spread eigenvalues; some singular for ``ranks`` > 0."""
    factor = rng.standard_normal((tasks, d, d)) * np.exp(rng.normal(0, 1, (tasks, 1, d)))
    if ranks:
        factor = factor * (np.arange(d) < rng.integers(ranks, d + 1, (tasks, 1, 1)))
    made = factor @ factor.swapaxes(1, 2)
    return (made + made.swapaxes(1, 2)) / 2 * np.exp(rng.normal(0, 1, (tasks, 1, 1)))


def setting(rng: np.random.Generator, family: np.ndarray) -> dict[str, Any]:
    """A step that leaves every direction less than four times of what it had, samples, steps."""
    largest = np.linalg.eigvalsh(family).max()
    support = math.inf if rng.random() < 0.4 else int(rng.integers(3, 60))
    return dict(alpha=rng.uniform(0, 2) / largest, support=support, steps=int(rng.integers(0, 4)))


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T


def stacked_risk(starts: np.ndarray, family: np.ndarray, optima: np.ndarray, weights: np.ndarray
                 ) -> float:
    """The least of sum_i p_i |w - w_i*|^2 in ``family`` is sought by ``starts``: least squares."""
    def rows(metrics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        roots = [math.sqrt(p) * root(m) for p, m in zip(weights, metrics, strict=True)]
        return np.concatenate(roots), np.concatenate(
            [r @ w for r, w in zip(roots, optima, strict=True)])

    w = np.linalg.lstsq(*rows(starts))[0]
    a, b = rows(family)
    return float(((a @ w - b) ** 2).sum() / 2)


def test_no_mixture_is_above_the_ceiling() -> None:
    rng, closest, counted = np.random.default_rng(11), 0.0, 0
    for _ in range(4000):
        tasks, d = int(rng.integers(2, 6)), int(rng.integers(1, 5))
        family = covariances(rng, tasks, d, ranks=int(rng.integers(0, 2)))
        how = setting(rng, family)
        optima = rng.standard_normal((tasks, d)) * np.exp(rng.normal(0, 1, (tasks, 1)))
        weights = rng.dirichlet(np.full(tasks, 0.7)) * (rng.random(tasks) > 0.1)
        if weights.sum() == 0:
            continue
        weights /= weights.sum()
        noise = weights @ gaussian.noise_risk(family, noise=rng.choice([0, 0, 0.3]), **how)
        q = gaussian.q_matrix(family, **how)
        nal, maml = (stacked_risk(metrics, q, optima, weights) for metrics in (family, q))
        top = ls.ceiling(gaussian.hardness_spread(family, weights=weights, **how))
        scale = 1e-12 * np.einsum("t,ti,tij,tj->", weights, optima, q, optima)
        assert nal + noise <= top * (maml + noise) * (1 + 1e-9) + scale
        if maml > 1e6 * scale and top > 1.01:
            counted, closest = counted + 1, max(closest, (nal / maml - 1) / (top - 1))
    assert counted > 2500
    assert 0.8 < closest <= 1 + 1e-9


def test_the_ceiling_is_reached() -> None:
    """Two groups apart along the directions of the least and the largest leftover, weights that
    make NAL stop halfway, and no spread: any dimension, samples and steps."""
    rng = np.random.default_rng(12)
    for _ in range(200):
        d, alpha, support = int(rng.integers(1, 5)), 0.6, rng.choice([3.0, 20, math.inf])
        steps = int(rng.integers(1, 4))
        spectra = rng.uniform(0.05, 1.5, (2, d))
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        family = np.stack([turn * spectrum @ turn.T for spectrum in spectra])
        family = (family + family.swapaxes(1, 2)) / 2
        q = gaussian.q_matrix(family, alpha, support, steps=steps)
        left = np.einsum("ji,tjk,ki->ti", turn, q, turn) / spectra
        axis = np.abs(np.log(left[0] / left[1])).argmax()
        bound = ls.ceiling(min(left[:, axis]) / max(left[:, axis]))
        weights = spectra[::-1, axis] / spectra[:, axis].sum()
        optima = np.stack([turn[:, axis], np.zeros(d)])
        assert stacked_risk(family, q, optima, weights) / stacked_risk(
            q, q, optima, weights) == pytest.approx(bound, rel=1e-4)
        whole = ls.ceiling(gaussian.hardness_spread(family, alpha, support, steps=steps))
        assert whole >= bound * (1 - 1e-6)
        if d == 1:
            assert whole == pytest.approx(bound, rel=1e-6)


def test_the_spread_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(13)
    for _ in range(20):
        family = covariances(rng, int(rng.integers(1, 4)), int(rng.integers(1, 5)), ranks=1)
        how = setting(rng, family)
        q = gaussian.q_matrix(family, **how)
        found = []
        for matrix, one in zip(q, family, strict=True):
            half = np.linalg.pinv(root(one), rcond=1e-7)  # so that x lies in the range

            def quotient(y: np.ndarray, sign: float, matrix: np.ndarray = matrix,
                         one: np.ndarray = one, half: np.ndarray = half) -> float:
                x = half @ y
                return float(sign * (x @ matrix @ x) / (x @ one @ x))

            found += [sign * min(float(minimize(quotient, rng.standard_normal(len(one)), sign,
                                                tol=1e-10).fun) for _ in range(4))
                      for sign in (1, -1)]
        assert gaussian.hardness_spread(family, **how) == pytest.approx(
            min(found) / max(found), rel=1e-5)


def test_the_spread_by_generalised_eigenvalues() -> None:
    rng = np.random.default_rng(14)
    for _ in range(100):
        family = covariances(rng, 3, 4)
        how = setting(rng, family)
        values = np.concatenate([scipy.linalg.eigh(*pair, eigvals_only=True) for pair in
                                 zip(gaussian.q_matrix(family, **how), family, strict=True)])
        assert gaussian.hardness_spread(family, **how) == pytest.approx(
            values.min() / values.max(), rel=1e-6)


def test_few_samples_bound_the_spread() -> None:
    rng = np.random.default_rng(16)
    close, over = 1.0, 0
    for i in range(500):
        d, support = int(rng.integers(1, 6)), int(rng.integers(1, 40))
        family = (covariances(rng, 3, d) if i % 2
                  else rng.uniform(0.2, 2, (3, 1, 1)) * np.eye(d))
        alpha = rng.uniform(0.05, 1.5) / np.linalg.eigvalsh(family).max()
        values = np.concatenate([scipy.linalg.eigh(*pair, eigvals_only=True) for pair in
                                 zip(gaussian.q_matrix(family, alpha, support), family,
                                     strict=True)])
        bound = gaussian.least_spread(family, support)
        least = gaussian.effective_dimension(family).min()
        assert 1 - 1e-9 <= least <= d + 1e-9
        assert bound == pytest.approx((1 + least) / (support + 1 + least))
        h, over = gaussian.hardness_spread(family, alpha, support), over + (values.max() > 1)
        assert h >= bound / max(1, values.max()) * (1 - 1e-9)
        close = min(close, h / bound)
    assert 100 < over < 500
    assert close < 1
    assert gaussian.least_spread(family, math.inf) == 0
