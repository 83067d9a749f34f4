"""The Gaussian closed forms against SymPy, and what they refuse."""

import math

import numpy as np
import pytest
import sympy as sp

from companion.theory import gaussian as g

RNG = np.random.default_rng(20)


def random_covariance(d: int, rng: np.random.Generator = RNG) -> np.ndarray:
    factor = rng.standard_normal((d, d))
    return factor @ factor.T / d + 0.1 * np.eye(d)


def test_wick_equals_the_moment_generating_function() -> None:
    a, b, c, s, t = sp.symbols("a b c s t")
    generating = sp.exp((a * s**2 + 2 * b * s * t + c * t**2) / 2)
    covariance = sp.Matrix([[a, b], [b, c]])
    for n in (0, 1, 2):
        for m in (0, 1, 2, 3):
            moment = generating
            if n:
                moment = sp.diff(moment, s, n)
            if m:
                moment = sp.diff(moment, t, m)
            moment = moment.subs({s: 0, t: 0})
            assert sp.expand(moment - g.wick(covariance, (0,) * n + (1,) * m)) == 0


def test_number_of_pairings() -> None:
    assert [len(list(g.pairings(range(n)))) for n in (0, 2, 4, 6)] == [1, 1, 3, 15]


@pytest.mark.parametrize("d", [1, 2, 3])
def test_gram_sandwich_is_the_matrix_formula(d: int) -> None:
    u = sp.Symbol("u")
    sigma = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"s{min(i, j)}{max(i, j)}"))
    middle = sp.Matrix(d, d, lambda i, j: sp.Symbol(f"m{min(i, j)}{max(i, j)}"))
    product = sigma * middle * sigma
    formula = product + u * (product + (sigma * middle).trace() * sigma)
    assert (g.gram_sandwich(sigma, middle, u) - formula).expand() == sp.zeros(d, d)


@pytest.mark.parametrize(("d", "support", "steps"),
                         [(1, 1, 1), (2, 3, 1), (3, 2, 2), (3, math.inf, 3), (2, 5, 0)])
def test_q_and_noise_equal_the_symbolic_recursion(d: int, support: float, steps: int) -> None:
    sigma = random_covariance(d)
    alpha, noise = 0.7, 0.4
    exact = sp.Matrix(d, d, lambda i, j: sp.Rational(float((sigma[i, j] + sigma[j, i]) / 2)))
    a, u = (sp.Rational(alpha),
            sp.Integer(0) if math.isinf(support) else sp.Rational(1, int(support)))
    power, labels = exact, sp.Integer(0)
    for _ in range(steps):
        labels += a**2 * sp.Rational(noise) ** 2 * u / 2 * (exact * power).trace()
        power = (
            power - a * (exact * power + power * exact) + a**2 * g.gram_sandwich(exact, power, u)
        )
    ours = g.q_matrix(np.array(exact, dtype=float), alpha, support, steps=steps)
    np.testing.assert_allclose(ours, np.array(power.evalf(30), dtype=float), rtol=1e-12, atol=1e-14)
    ours_noise = g.noise_risk(np.array(exact, dtype=float), alpha, support, noise, steps=steps)
    np.testing.assert_allclose(ours_noise, float(labels.evalf(30)), rtol=1e-12, atol=0)


def test_one_step_is_the_formula_of_the_text() -> None:
    sigma, alpha, m = random_covariance(4), 0.8, 3
    shrink = np.eye(4) - alpha * sigma
    text = shrink @ sigma @ shrink + alpha**2 / m * (
        np.trace(sigma @ sigma) * sigma + sigma @ sigma @ sigma
    )
    np.testing.assert_allclose(g.q_matrix(sigma, alpha, m), text, rtol=1e-12)


def test_broadcasting_equals_one_call_each() -> None:
    sigmas = np.stack([random_covariance(3) for _ in range(4)])
    alphas, supports = np.array([0.1, 0.5, 0.9, 0.0]), np.array([1, 2, 3, math.inf])
    batched = g.q_matrix(sigmas, alphas, supports, steps=2)
    assert batched.std() > 0.01
    for i in range(4):
        np.testing.assert_array_equal(batched[i],
                                      g.q_matrix(sigmas[i], alphas[i], supports[i], steps=2))


def tasks(n: int = 5, d: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    return (np.stack([random_covariance(d, rng) for _ in range(n)]), rng.standard_normal((n, d)),
            rng.uniform(0.2, 1, n))


@pytest.mark.parametrize("method", ["nal", "maml"])
def test_minimisers_minimise(method: str) -> None:
    covariances, optima, weights = tasks()
    alpha = 0.0 if method == "nal" else 0.6

    def risk(w: np.ndarray) -> np.ndarray:
        return g.excess_risk(w, covariances, optima, alpha, 4, weights, 0.3, steps=2)

    w = (g.minimiser_nal(covariances, optima, weights)
         if method == "nal"
         else g.minimiser_maml(covariances, optima, alpha, 4, weights, steps=2))
    nudges = 1e-3 * np.random.default_rng(4).standard_normal((200, 3))
    assert (risk(w + nudges) > risk(w)).all()
    h = 1e-5 * np.eye(3)
    np.testing.assert_allclose((risk(w + h) - risk(w - h)) / 2e-5, 0, atol=1e-9)


def test_weights_are_normalised_and_no_steps_is_nal() -> None:
    covariances, optima, weights = tasks()
    nal = g.minimiser_nal(covariances, optima, weights)
    np.testing.assert_allclose(nal, g.minimiser_nal(covariances, optima, 7 * weights), rtol=1e-13)
    np.testing.assert_allclose(nal, g.minimiser_maml(covariances, optima, 0.0, 3, weights),
                               rtol=1e-12)
    np.testing.assert_allclose(nal, g.minimiser_maml(covariances, optima, 0.5, 3, weights, steps=0),
                               rtol=1e-12)


GOOD = tasks()
BAD = [
    ("covariance must be symmetric", lambda: g.q_matrix([[1.0, 0.5], [0.2, 1.0]], 0.1, 2)),
    ("covariance must be positive semidefinite.*got -1",
     lambda: g.q_matrix([[1.0, 0.0], [0.0, -1.0]], 0.1, 2)),
    (r"covariance.shape must be \[..., d, d\], got \(2, 3\)",
     lambda: g.q_matrix(np.ones((2, 3)), 0.1, 2)),
    ("covariance must be finite, got nan", lambda: g.q_matrix([[math.nan]], 0.1, 2)),
    ("alpha must be at least 0, got -0.1", lambda: g.q_matrix(np.eye(2), -0.1, 2)),
    ("alpha must be finite, got inf", lambda: g.q_matrix(np.eye(2), math.inf, 2)),
    ("support must be at least 1, got 0.*math.inf", lambda: g.q_matrix(np.eye(2), 0.1, 0)),
    ("support must hold no NaN", lambda: g.q_matrix(np.eye(2), 0.1, math.nan)),
    ("steps must be at least 0, got -1", lambda: g.q_matrix(np.eye(2), 0.1, 2, steps=-1)),
    ("steps must be a whole number, got 1.5", lambda: g.q_matrix(np.eye(2), 0.1, 2, steps=1.5)),
    ("alpha must be numeric", lambda: g.q_matrix(np.eye(2), "big", 2)),
    ("alpha must be numeric, real", lambda: g.q_matrix(np.eye(2), 1j, 2)),
    (r"optima.shape must be \[task, d\] = \(5, 3\)", lambda: g.minimiser_nal(GOOD[0], GOOD[1][:4])),
    (r"weights must be at least 0, got -1.0 at index \[2\]",
     lambda: g.minimiser_nal(GOOD[0], GOOD[1], [1, 1, -1, 1, 1])),
    ("weights must have a positive sum", lambda: g.minimiser_nal(GOOD[0], GOOD[1], np.zeros(5))),
    (r"weights.shape must be \[task\]", lambda: g.minimiser_nal(GOOD[0], GOOD[1], [1.0])),
    (r"covariances.shape must be \[task, d, d\]", lambda: g.minimiser_nal(np.eye(3), GOOD[1])),
    (r"E\[Sigma\].*non-singular", lambda: g.minimiser_nal(np.zeros((5, 3, 3)), GOOD[1])),
    (r"E\[Q\].*non-singular",
     lambda: g.minimiser_maml(np.stack([np.eye(3)] * 5), GOOD[1], 1.0, math.inf)),
    (r"w.shape must end in d = 3", lambda: g.excess_risk(np.zeros(2), GOOD[0], GOOD[1], 0.1, 3)),
    ("noise must be at least 0",
     lambda: g.excess_risk(np.zeros(3), GOOD[0], GOOD[1], 0.1, 3, noise=-1)),
]


@pytest.mark.parametrize(("message", "call"), BAD, ids=[m for m, _ in BAD])
def test_bad_input(message: str, call) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_proofs_see_a_moment_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert g.proofs() == {"step": True, "gap": True}
    whole = g.wick
    monkeypatch.setattr(g, "wick", lambda covariance, indices: (
        whole(covariance, indices) - covariance[indices[0], indices[2]]
        * covariance[indices[1], indices[3]]))
    assert g.proofs.__wrapped__() == {"step": False, "gap": True}
