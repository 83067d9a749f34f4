"""One preconditioner for any tasks: drawn steps, brute force, the closed forms it reduces to."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from companion.evaluation import estimate
from companion.streams import stream
from companion.theory import depth, gaussian, whitening
from companion.theory import preconditioners as pc
from companion.theory.rate_search import Profile


def family(seed: int, tasks: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = stream(seed, "preconditioners")
    root = rng.standard_normal((tasks, d, d + 1))
    return root @ root.swapaxes(1, 2) / d, rng.standard_normal((tasks, d))


def test_the_risk_is_that_of_drawn_steps() -> None:
    """And no term can be left out: each mutant is rejected where its term is 5 % or more."""
    rng, m, noise, draws = stream(0, "preconditioners/drawn"), 3, 0.8, 300_000
    covariances, optima = family(1, 1, 3)
    s, w = covariances[0], optima[0] + np.array([1.0, -0.5, 0.7])
    p = 0.15 * np.linalg.inv(s) + 0.05 * rng.standard_normal((3, 3))
    x = rng.standard_normal((draws, m, 3)) @ np.linalg.cholesky(s).T
    off = x @ (w - optima[0]) - noise * rng.standard_normal((draws, m))
    after = w - optima[0] - np.einsum("nmd,nm->nd", x, off) / m @ p.T
    drawn = estimate(np.einsum("ni,ij,nj->n", after, s, after) / 2)
    assert drawn.error <= 0.003 * drawn.value
    exact = pc.risk(w, p, covariances, optima, m, noise=noise)
    assert abs(drawn.sigmas(exact)) < 4
    e = w - optima[0]
    inner, size = p.T @ s @ p, e @ s @ e
    terms = {"wick": e @ s @ inner @ s @ e / (2 * m), "noise": noise**2 * np.trace(inner @ s) / 6,
             "trace": size * np.trace(inner @ s) / (2 * m)}
    mutants = {name: exact - term for name, term in terms.items()}
    mutants["transposed"] = pc.risk(w, p.T, covariances, optima, m, noise=noise)
    for name, wrong in mutants.items():
        assert abs(drawn.sigmas(wrong)) > 4, name


@pytest.mark.parametrize("support", [1.0, 7.0, math.inf])
def test_one_rate_is_gaussian_s_step(support: float) -> None:
    covariances, optima = family(2, 4, 3)
    weights, w = np.array([1.0, 2, 0, 3]), np.array([0.3, -1, 2])
    how = (covariances, optima, support, weights, 0.6)
    assert pc.risk(w, 0.2 * np.eye(3), *how) == pytest.approx(
        gaussian.excess_risk(w, covariances, optima, 0.2, support, weights, 0.6), rel=1e-12)
    np.testing.assert_allclose(pc.minimiser(0.2 * np.eye(3), *how), gaussian.minimiser_maml(
        covariances, optima, 0.2, support, weights), rtol=1e-9)
    q = pc.leftover(0.2 * np.eye(3), pc.tasks_of(*how))
    np.testing.assert_allclose(q, gaussian.q_matrix(covariances, 0.2, support), atol=1e-12)


@pytest.mark.parametrize("support", [1.0, 7.0, math.inf])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_the_best_of_each_is_that_of_brute_force(support: float, noise: float) -> None:
    covariances, optima = family(3, 5, 3)
    how = (covariances, optima, support, np.arange(1.0, 6), noise)
    w, d = np.array([0.5, -1, 0.2]), 3
    rate, along = pc.best_rate(w, *how), np.diag([1.0, 2, 3])
    turned = pc.best_rate(w, *how, along=along)
    found = minimize(lambda v: pc.risk(w, v.reshape(d, d), *how), np.zeros(d * d), tol=1e-12)
    best = pc.best(w, *how)
    assert pc.risk(w, best, *how) <= found.fun * (1 + 1e-8)
    assert pc.risk(w, best, *how) == pytest.approx(found.fun, rel=1e-6)
    for r, matrix in ((rate, np.eye(d)), (turned, along)):
        line = minimize(lambda v, matrix=matrix: pc.risk(w, v[0] * matrix, *how), [0.1], tol=1e-12)
        assert r == pytest.approx(line.x[0], rel=1e-4)
    p = np.eye(3) * 0.2 + np.diag([0.1, -0.05], 1)  # not symmetric
    start = minimize(lambda v: pc.risk(v, p, *how), w, tol=1e-12)
    np.testing.assert_allclose(pc.minimiser(p, *how), start.x, atol=1e-4)


@pytest.mark.parametrize("support", [2.0, 20.0, math.inf])
def test_a_centred_family_has_p_star(support: float) -> None:
    """Tasks at plus and minus the axes of C, one S: second moments are all that counts."""
    rng, d, noise = stream(4, "preconditioners"), 4, 0.3
    root = rng.standard_normal((d, d))
    s, tasks = root @ root.T / d + 0.1 * np.eye(d), rng.standard_normal((d, d))
    optima = np.concatenate([tasks, -tasks]) * math.sqrt(d)
    how = (np.stack([s] * 2 * d), optima, support, None, noise)
    c = tasks.T @ tasks
    p_star = depth.best_preconditioner(s, c, support, noise)
    np.testing.assert_allclose(pc.best(np.zeros(d), *how), p_star, rtol=1e-6, atol=1e-8)
    rungs = whitening.ladder(s, c, support, noise)
    assert pc.risk(np.zeros(d), p_star, *how) == pytest.approx(rungs["P*"])
    rate = pc.best_rate(np.zeros(d), *how)
    assert pc.risk(np.zeros(d), rate * np.eye(d), *how) == pytest.approx(rungs["one rate"])


def test_few_tasks_leave_the_best_one_open() -> None:
    """Two tasks and four features: any of many P solves them; the descent ends at one."""
    covariances, optima = family(5, 2, 4)
    w = optima.mean(0)
    p = pc.best(w, covariances, optima, math.inf)
    assert pc.risk(w, p, covariances, optima, math.inf) < 1e-12
    assert np.isfinite(p).all()


def test_a_rate_and_its_start_are_the_global_best() -> None:
    """Where there are several minima, and two of them far apart; most searches would miss one."""
    rng, several = stream(8, "preconditioners"), 0
    for support in [math.inf, 30.0] * 6:
        covariances = np.exp(rng.normal(0, 1.5, (3, 2)))[..., None] * np.eye(2)
        optima = rng.standard_normal((3, 2)) * np.exp(rng.standard_normal((3, 1)))
        found = pc.together(covariances, optima, support, kind="rate")
        profile = Profile(*pc.tasks_of(covariances, optima, support))
        grid = np.array([profile.at(rate) for rate in np.geomspace(1e-3, profile.most, 600)])
        several += ((grid[1:-1] < grid[:-2]) & (grid[1:-1] < grid[2:])).sum() > 1
        assert found.risk <= min(grid) * (1 + 1e-9)
        assert found.risk * (1 - 1e-5) <= found.bound <= found.risk
        assert found.risk == pytest.approx(pc.risk(found.w, found.preconditioner, covariances,
                                                   optima, support), rel=1e-9)
    assert several > 3


def test_the_bound_holds_on_every_interval() -> None:
    profile = Profile(*pc.tasks_of(*family(6, 3, 3), 9.0, None, 0.4))
    rng, tight = stream(7, "preconditioners"), 0.0
    for _ in range(200):
        a, b = np.sort(rng.uniform(0, profile.most, 2))
        inside = min(profile.at(rate) for rate in np.linspace(a, b, 20))
        assert profile.bound(a, b) <= inside * (1 + 1e-12)
        tight = max(tight, profile.bound(a, b) / inside)
    assert tight > 0.99


@pytest.mark.parametrize(("seed", "support"), [(1, 20.0), (2, 5.0), (0, math.inf)])
def test_start_and_preconditioner_together(seed: int, support: float) -> None:
    d = 2
    how = (*family(seed, 5, d), support)
    found, rate = pc.together(*how), pc.together(*how, kind="rate")
    assert all(np.diff(found.descent) <= 1e-12 * found.descent[0])
    assert found.risk == pytest.approx(pc.risk(found.w, found.preconditioner, *how), rel=1e-9)
    assert found.risk <= rate.risk
    rng = stream(seed, "preconditioners/brute")
    brute = min(minimize(lambda v: pc.risk(v[:d], v[d:].reshape(d, d), *how),
                         rng.standard_normal(d + d * d), tol=1e-12).fun for _ in range(5))
    assert found.risk <= brute * (1 + 1e-6)


def test_starts_away_from_the_tasks_find_the_better_minimum() -> None:
    rng = np.random.default_rng(0)
    root = rng.standard_normal((5, 3, 4))
    how = (root @ root.swapaxes(1, 2) / 3, rng.standard_normal((5, 3)), math.inf)
    assert pc.together(*how, starts=2).risk < 0.5 * pc.together(*how, starts=0).risk


@pytest.mark.parametrize(("change", "message"), [
    (dict(kind="best"), "kind must be one of rate, full, got 'best'"),
    (dict(support=0.5), "support must be at least 1, got 0.5"),
    (dict(optima=np.zeros((3, 2))), r"optima.shape must be \[task, d\] = \(2, 2\), got \(3, 2\)"),
    (dict(noise=[1.0, 2, 3]), r"noise.shape must be \(\) or \(2,\), got \(3,\)"),
    (dict(starts=-1), "starts must be at least 0"),
])
def test_what_it_refuses(change: dict[str, object], message: str) -> None:
    given = dict(covariances=np.stack([np.eye(2)] * 2), optima=np.eye(2), support=3.0) | change
    with pytest.raises(ValueError, match=message):
        pc.together(**given)  # type: ignore[arg-type]


def test_shapes_of_start_and_preconditioner() -> None:
    how = (np.stack([np.eye(2)] * 2), np.eye(2), 3.0)
    with pytest.raises(ValueError, match=r"w.shape must be \[d\] = \(2,\), got \(3,\)"):
        pc.risk(np.zeros(3), np.eye(2), *how)
    with pytest.raises(ValueError, match=r"preconditioner.shape must be \[d, d\] = \(2, 2\)"):
        pc.risk(np.zeros(2), np.eye(3), *how)
