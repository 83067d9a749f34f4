"""Sandwich constants against drawn tasks, and the same formulas with one term missing, which must
be rejected: within 4 standard errors, these at most 0.3 % of the value."""

import math
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from companion.evaluation import Estimate, estimate
from companion.monte_carlo import drawn_constants, from_finite_tasks
from companion.streams import stream
from companion.tasks.regressions import LinearFamily, easy_and_hard
from companion.theory import finite_tasks as theory
from companion.theory.gaussian import q_matrix
from companion.theory.landscape import Mixture


@dataclass(frozen=True)
class Setting:
    dim: int
    support: int
    query: int
    alpha: float = 0.8
    noise: float = 0.0
    distance: float = 3.0
    hard_fraction: float = 0.5
    draws: int = 0

    @property
    def mixture(self) -> Mixture:
        return Mixture(1.0, 0.2, self.dim, self.support, self.alpha, distance=self.distance,
                       var_easy=0.5, var_hard=0.1, noise=self.noise,
                       hard_fraction=self.hard_fraction)

    @property
    def bent(self) -> LinearFamily:
        scales = np.geomspace(1, 0.2, self.dim)
        return easy_and_hard(stream(self.dim, "tests/bent"), scales, 0.2 * scales,
                             distance=self.distance, var_easy=0.5, var_hard=0.1, noise=self.noise,
                             hard_fraction=self.hard_fraction)


SETTINGS = [Setting(3, 20, 6, alpha=0.6, draws=650_000),
            Setting(5, 10, 10, noise=0.5, hard_fraction=0.3, draws=1_500_000),
            Setting(3, 8, 2, alpha=0.5, noise=2.0, draws=800_000),
            Setting(4, 30, 8, alpha=0.6, distance=0.0, draws=1_000_000),
            Setting(2, 3, 1, alpha=0.3, noise=0.5, draws=2_800_000)]
NAL_TERMS = ("cube", "trace", "label")
MAML_TERMS = ("cube of the query", "trace of the query", "label", "inner label", "fourth moment",
              "product of traces", "third moment")


def nal(setting: Setting, without: str = "") -> float:
    """Term by term, one of them left out; independent of the package's code."""
    mix, n, d = setting.mixture, setting.support + setting.query, setting.dim
    keep = {term: float(term != without) for term in NAL_TERMS}
    top = bottom = 0.0
    lam = float(mix.weight_nal)
    for p, rho, square in ((1 - setting.hard_fraction, 1.0, 0.5 + (1 - lam)**2 * mix.distance**2),
                           (setting.hard_fraction, 0.2, 0.1 + lam**2 * mix.distance**2)):
        top += p * (rho**2 * square * (1 + (keep["cube"] + keep["trace"] * d) / n)
                    + keep["label"] * setting.noise**2 * rho * d / n)
        bottom += p * rho
    return top / bottom / 2


def maml(setting: Setting, without: str = "") -> float:
    """Likewise, from the moments of a Wishart matrix W = m S_hat as the literature has them."""
    mix, m, q, d = setting.mixture, setting.support, setting.query, setting.dim
    keep = {term: float(term != without) for term in MAML_TERMS}
    n = m * d
    t1, t2 = d, d * (m + d + 1) / m
    t3 = d * (m**2 + d**2 + 3 * n + 3 * m + 3 * d + 4) / m**2
    t4 = d * (m**3 + 6 * m**2 * d + 6 * m * d**2 + d**3 + 6 * m**2 + 17 * n + 6 * d**2 + 21 * m
              + 21 * d + 20) / m**3
    t11, t12 = n * (n + 2) / m**2, n * (m + d + 1) * (n + 4) / m**3  # tr W is homogeneous
    t22 = float(theory.trace_moment(2, 2).eval((d, 1 / m)))  # against draws, below
    lam, top, bottom = float(mix.weight_maml), 0.0, 0.0
    for p, rho, square in ((1 - setting.hard_fraction, 1.0, 0.5 + (1 - lam)**2 * mix.distance**2),
                           (setting.hard_fraction, 0.2, 0.1 + lam**2 * mix.distance**2)):
        a = setting.alpha * rho
        b2 = d - 2 * a * t1 + a**2 * t2
        b4 = (d - 4 * a * t1 + 6 * a**2 * t2 - keep["third moment"] * 4 * a**3 * t3
              + keep["fourth moment"] * a**4 * t4)
        b22 = (d**2 - 4 * a * d * t1 + 4 * a**2 * t11 + 2 * a**2 * d * t2 - 4 * a**3 * t12
               + keep["product of traces"] * a**4 * t22)
        b2s, b2_s = t1 - 2 * a * t2 + a**2 * t3, d * t1 - 2 * a * t11 + a**2 * t12
        inner = setting.alpha**2 * setting.noise**2 / m * rho**3 * (b2s + (b2s + b2_s) / q)
        top += p * (rho**2 * square / d * (b4 + keep["cube of the query"] * b4 / q
                                           + keep["trace of the query"] * b22 / q)
                    + keep["label"] * setting.noise**2 * rho * b2 / q + keep["inner label"] * inner)
        bottom += p * rho * b2 / d
    return top / bottom / 2


@cache
def drawn(setting: Setting, bent: bool = False) -> tuple[Estimate, Estimate]:
    family = setting.bent if bent else LinearFamily.from_mixture(setting.mixture)
    return drawn_constants(family, setting.alpha, setting.support, setting.query,
                           stream(0, f"tests/{setting}/{bent}"), setting.draws)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_isotropic_constants(setting: Setting) -> None:
    n = setting.support + setting.query
    exact = (float(theory.constant_nal(setting.mixture, n)),
             float(theory.constant_maml(setting.mixture, setting.query)))
    assert exact == pytest.approx((nal(setting), maml(setting)), rel=1e-12)
    family = LinearFamily.from_mixture(setting.mixture)
    general = (theory.sandwich_nal(family, n),
               theory.sandwich_maml(family, setting.alpha, setting.support, setting.query))
    assert exact == pytest.approx(tuple(each.constant for each in general), rel=1e-10)
    for mc, value in zip(drawn(setting), exact, strict=True):
        assert mc.error <= 0.003 * mc.value
        assert abs(mc.sigmas(value)) <= 4


@pytest.mark.parametrize(("which", "term"), [(0, t) for t in NAL_TERMS]
                         + [(1, t) for t in MAML_TERMS])
def test_a_formula_without_the_term_is_rejected(which: int, term: str) -> None:
    formula, rejected = (nal, maml)[which], 0
    for setting in SETTINGS:
        mutant = formula(setting, without=term)
        if abs(formula(setting) - mutant) >= 0.05 * formula(setting):
            assert abs(drawn(setting)[which].sigmas(mutant)) > 4
            rejected += 1
    assert rejected


BENT = [Setting(3, 20, 6, alpha=0.6, noise=0.5, draws=1_000_000),
        Setting(5, 20, 4, hard_fraction=0.3, draws=800_000)]


@pytest.mark.parametrize("setting", BENT, ids=str)
def test_constants_of_any_covariance(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """And three wrong ones are rejected: inputs taken as isotropic; the empirical covariance taken
    as its mean; pairings weighted as if every one had as many loops."""
    def found(family: LinearFamily) -> list[float]:
        return [theory.sandwich_nal(family, setting.support + setting.query).constant,
                theory.sandwich_maml(family, setting.alpha, setting.support,
                                     setting.query).constant]

    for mc, value in zip(drawn(setting, True), found(setting.bent), strict=True):
        assert mc.error <= 0.003 * mc.value
        assert abs(mc.sigmas(value)) <= 4
    covariances = setting.bent.covariances
    level = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / setting.dim * np.eye(
        setting.dim)
    flat = found(replace(setting.bent, covariances=level))
    assert all(abs(mc.sigmas(value)) > 4
               for mc, value in zip(drawn(setting, True), flat, strict=True))
    with monkeypatch.context() as patch:
        patch.setattr(theory, "pairings", lambda items: [list(zip(items[::2], items[1::2],
                                                                  strict=True))])
        assert abs(drawn(setting, True)[1].sigmas(found(setting.bent)[1])) > 4
    monkeypatch.setattr(theory, "_loops", lambda one, other: len(list(one)) - 1)
    assert abs(drawn(setting, True)[1].sigmas(found(setting.bent)[1])) > 4


def test_moments_of_an_empirical_covariance() -> None:
    """At d = 1 those of chi-square, E[S^k] = prod (1 + 2 j / m); E[tr(S) h] = (d + 2 k / m) E[h]
    for a homogeneous h of degree k; the product of traces and a matrix product against draws."""
    for m in (1, 3, 10):
        for k in (1, 2, 3, 4):
            exact = math.prod(1 + 2 * j / m for j in range(k))
            assert float(theory.trace_moment(k).eval((1, 1 / m))) == pytest.approx(exact)
        assert float(theory.trace_moment(2, 2).eval((1, 1 / m))) == pytest.approx(
            math.prod(1 + 2 * j / m for j in range(4)))
    for k in (1, 2, 3):
        left, right = theory.trace_moment(1, k), theory.trace_moment(k)
        assert (left - right * theory.sp.Poly(theory.D + 2 * k * theory.U, theory.D,
                                              theory.U)).is_zero
    rng, d, m, alpha = stream(0, "tests/moments"), 3, 4, 0.7
    x = rng.standard_normal((1_000_000, m, d))
    gram = x.swapaxes(1, 2) @ x / m
    traces = estimate(np.einsum("nij,nji->n", gram, gram) ** 2)
    assert traces.error < 0.003 * traces.value
    assert abs(traces.sigmas(float(theory.trace_moment(2, 2).eval((d, 1 / m))))) < 4
    factor, middle = rng.standard_normal((2, d, d))
    covariance = factor @ factor.T
    root = np.linalg.cholesky(covariance)
    gram = root @ gram[:200_000] @ root.T
    shrink = np.eye(d) - alpha * gram
    product = shrink @ middle @ gram @ shrink
    mean = theory.moment("ab,bc,cd,de->ae", ["B", middle, "S", "B"], covariance, alpha, m)
    assert np.abs((product.mean(0) - mean) / (product.std(0) / 200_000**0.5)).max() < 4
    full = theory.moment("ab,bc,cd,de->ae", ["B", middle, "S", "B"], covariance, alpha, math.inf)
    fixed = np.eye(d) - alpha * covariance
    np.testing.assert_allclose(full, fixed @ middle @ covariance @ fixed, atol=1e-10)


def test_the_full_batch_needs_no_moments() -> None:
    """m = inf: Cov g from B = I - alpha S; and the limit of ever larger supports."""
    family = replace(Setting(4, 1, 1).bent, noise=0.5)
    exact = theory.sandwich_maml(family, 0.8, math.inf, 5)
    share, total = family.weights / family.weights.sum(), np.zeros((4, 4))
    for p, s, centre, v in zip(share, family.covariances, family.centres, family.variances,
                               strict=True):
        b, off = np.eye(4) - 0.8 * s, exact.minimiser - centre
        u = b @ (np.outer(off, off) + v / 4 * np.eye(4)) @ b
        total += p * b @ (1.2 * s @ u @ s + (np.trace(s @ u) + 0.25) / 5 * s) @ b
    np.testing.assert_allclose(exact.spread, total, rtol=1e-10)
    near = theory.sandwich_maml(family, 0.8, 10**7, 5)
    assert near.constant == pytest.approx(exact.constant, rel=1e-5)
    broadcast = Mixture(1.0, 0.2, np.array([2, 5]), np.array([[10], [math.inf]]), 0.8, var_easy=1)
    assert theory.constant_maml(broadcast, 5).shape == (2, 2)
    assert theory.constant_nal(broadcast, 5).shape in {(2,), (2, 2)}


def test_what_adaptation_makes_of_nal() -> None:
    """K against what T = 200 tasks teach; the linear term, of mean 0, is taken off. Without the
    drift, and without the spread, K is rejected."""
    family, alpha, m, q, tasks = Setting(3, 20, 10).bent, 0.8, 20, 10, 200
    own = theory.sandwich_nal(family, m + q)
    w, best = own.minimiser, family.minimiser_maml(alpha, m)
    share = family.weights / family.weights.sum()
    q_mean = np.einsum("g,gij->ij", share, q_matrix(family.covariances, alpha, m))
    slope, found = q_mean @ (w - best), []
    for seed in range(2500):
        nal_w, _ = from_finite_tasks(family, alpha, m, q, tasks, stream(seed, "tests/adapted"))
        rng = stream(seed, "tests/adapted")
        x, y = family.draw_samples(rng, *family.draw_tasks(rng, (tasks,)), m + q)
        g = np.einsum("tmi,tm->i", x, x @ w - y) / (tasks * (m + q))
        found.append(tasks * (float(family.risk(nal_w, alpha, m) - family.risk(w, alpha, m))
                              + slope @ np.linalg.solve(own.hessian, g)))
    exact = theory.adapted_constant(family, alpha, m, m + q)
    spread = float(np.trace(q_mean @ own.covariance) / 2)
    assert abs(estimate(found).sigmas(exact)) < 4
    assert abs(estimate(found).sigmas(spread)) > 4
    assert abs(estimate(found).sigmas(exact - spread)) > 4


def test_tasks_to_keep_and_to_win() -> None:
    """Where the first-order risks say so."""
    constant, adapted, gap = 0.7, 0.2, 0.05
    keep = theory.tasks_to_keep(constant, gap, 0.9)
    assert gap - constant / keep == pytest.approx(0.9 * gap)
    win = theory.tasks_to_win(constant, adapted, gap)
    assert gap + adapted / win - constant / win == pytest.approx(0)
    assert theory.tasks_to_win(0.2, 0.7, gap) == 0
    assert theory.tasks_to_keep(constant, 0.0) == theory.tasks_to_win(0.7, 0.2, 0.0) == math.inf


@pytest.mark.parametrize(("call", "message"), [
    (lambda f: theory.sandwich_nal(f, 0), "samples must be at least 1, got 0"),
    (lambda f: theory.sandwich_maml(f, -0.1, 10, 5), "alpha must be at least 0, got -0.1"),
    (lambda f: theory.sandwich_maml(f, 0.1, 10.5, 5), "support must be a whole number"),
    (lambda f: theory.sandwich_maml(f, 0.1, 10, 2.5), "query must be a whole number, got 2.5"),
    (lambda f: theory.tasks_to_keep(1.0, 1.0, 1.0), r"share must lie in \[0, 1\), got 1.0"),
    (lambda f: theory.constant_maml(replace(Setting(3, 10, 5).mixture, steps=2), 5),
     "mixture.steps must be 1, got 2"),
])
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(Setting(3, 10, 5).bent)
