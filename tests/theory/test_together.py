"""Start and step learned together: the risk against drawn tasks and against itself without a term,
optima against brute force, critical points against derivatives, and the theorems."""

import math
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.optimize import minimize

from companion.checks import Array
from companion.evaluation import Estimate, estimate
from companion.monte_carlo import draws_needed
from companion.streams import stream
from companion.theory import together
from companion.theory import together_proofs as proved
from companion.theory.landscape import Mixture
from companion.theory.together import fewest_samples, full, kronecker, learned, scalar

EXAMPLE = Mixture(0.9, 0.1, 10, math.inf, 0.0, distance=3, var_easy=1, var_hard=0.01)
BARE = replace(EXAMPLE, var_easy=0.0, var_hard=0.0)
KINDS = {"scalar": scalar, "full": full, "kronecker 2": partial(kronecker, outputs=2),
         "full 3": partial(full, outputs=3)}


def drawn_setting(seed: int) -> tuple[Mixture, float, Array, int]:
    """A mixture, a weight, the rates of a step and the number of outputs."""
    rng = stream(seed, "tests/together")
    rho, variances = rng.uniform(0.2, 1, 2), rng.uniform(0, 1.5, 2)
    mixture = Mixture(*rho, int(rng.integers(1, 5)), (3, 4, 6, 8, math.inf)[seed % 5], 0.0,
                      hard_fraction=rng.uniform(0.2, 0.8), distance=rng.uniform(0, 2),
                      var_easy=variances[0], var_hard=variances[1], noise=(0.0, 0.7)[seed % 2])
    return mixture, rng.uniform(-0.3, 1.3), rng.uniform(0, 1.1, (2, 2)), int(rng.integers(1, 4))


SETTINGS = [drawn_setting(seed) for seed in range(24)]


@cache
def monte_carlo(seed: int) -> Estimate:
    """The risk, from as many tasks as it takes."""
    pilot = drawn_risks(seed, 60_000)
    return estimate(drawn_risks(seed, draws_needed(pilot, 0.0027)))


def drawn_risks(seed: int, draws: int) -> Array:
    """Risks after a step from samples, along drawn orthogonal axes."""
    (m, weight, rates, k), rng = SETTINGS[seed], stream(seed, f"tests/drawn/{draws}")
    d = int(m.dim)
    a, b = (np.linalg.qr(rng.standard_normal((n, n)))[0][:, 0] for n in (k, d))
    hard = rng.random(draws) < m.hard_fraction
    rho, variance = (np.where(hard, *pair)[:, None, None] for pair in (
        (m.rho_hard, m.rho_easy), (m.var_hard, m.var_easy)))
    position = np.where(hard, weight, weight - 1)[:, None, None]
    error = m.distance * position * np.outer(a, b) + np.sqrt(
        variance / (k * d)) * rng.standard_normal((draws, k, d))  # W - W*
    if math.isinf(m.support):
        gradient = rho * error
    else:
        x = np.sqrt(rho) * rng.standard_normal((draws, int(m.support), d))
        residual = error @ x.swapaxes(1, 2)
        residual -= m.noise * rng.standard_normal(residual.shape)
        gradient = residual @ x / m.support
    outer, inner = np.outer(a, a), np.outer(b, b)
    step = sum(rates[o, i] * left @ gradient @ right
               for o, left in enumerate((outer, np.eye(k) - outer))
               for i, right in enumerate((inner, np.eye(d) - inner)))
    return np.asarray((rho * (error - step) ** 2).sum((1, 2)) / 2)


TERMS = ("sample", "trace", "noise", "distance", "variance", "second", "first")


def formula(setting: tuple[Mixture, float, Array, int], without: str = "") -> float:
    """The risk, term by term; independent of the package's code."""
    m, weight, rates, outputs = setting
    keep = {term: float(term != without) for term in TERMS}
    total, d, u = 0.0, int(m.dim), 1 / m.support
    for p, rho, v, apart in ((1 - m.hard_fraction, m.rho_easy, m.var_easy, 1 - weight),
                             (m.hard_fraction, m.rho_hard, m.var_hard, weight)):
        for o in range(2):
            sizes = [(1, outputs - 1)[o] * n for n in (1, d - 1)]
            e = [keep["variance"] * v * n / (outputs * d) for n in sizes]
            e[0] += keep["distance"] * (apart * m.distance) ** 2 * (o == 0)
            for i, n in enumerate((1, d - 1)):
                q = rates[o, i]
                second = (keep["second"] + keep["sample"] * u) * e[i]
                second += keep["trace"] * u * n * sum(e)
                noise = keep["noise"] * u * sizes[i] * m.noise**2 / rho
                total += p * rho / 2 * (e[i] - keep["first"] * 2 * q * rho * e[i]
                                        + q**2 * rho**2 * (second + noise))
    return total


@pytest.mark.parametrize("seed", range(len(SETTINGS)))
def test_risk_against_drawn_tasks(seed: int) -> None:
    mixture, weight, rates, outputs = SETTINGS[seed]
    exact = learned(mixture, weight, rates, outputs=outputs).risk
    assert exact == pytest.approx(formula(SETTINGS[seed]), rel=1e-11)
    drawn = monte_carlo(seed)
    assert drawn.error <= 0.003 * drawn.value
    assert abs(drawn.sigmas(exact)) <= 4


@pytest.mark.parametrize("term", TERMS)
def test_a_risk_without_the_term_is_rejected(term: str) -> None:
    rejected = 0
    for seed, setting in enumerate(SETTINGS):
        exact, mutant = formula(setting), formula(setting, term)
        if abs(mutant - exact) >= 0.05 * exact:
            assert abs(monte_carlo(seed).sigmas(mutant)) > 4
            rejected += 1
    assert rejected >= 2


def test_one_output_and_one_rate_is_the_mixture_s_own_risk() -> None:
    for mixture, weight, rates, _ in SETTINGS:
        other = replace(mixture, alpha=rates[0, 0])
        here = learned(mixture, weight, np.full((2, 2), rates[0, 0]))
        assert here.risk == pytest.approx(float(other.risk(weight)), rel=1e-12)


def least(value, size: int, mixture: Mixture) -> float:
    """The least that a search finds from starts near either centre and between them, at the rate of
    either group."""
    rng = np.random.default_rng(size)
    starts = [np.append(weight, rng.uniform(0.8, 1.1, size) / rho) for weight in (0.001, 0.4, 0.999)
              for rho in (mixture.rho_easy, mixture.rho_hard)]
    return min(minimize(value, start, options={"gtol": 1e-9}).fun for start in starts)


MIXTURES = [EXAMPLE, replace(EXAMPLE, support=20, var_hard=1.0),
            replace(EXAMPLE, support=3, var_easy=0.05, noise=0.4, hard_fraction=0.3),
            Mixture(0.8, 0.5, 4, 50, 0.0, distance=2, var_easy=0.02, var_hard=0.05),
            Mixture(0.3, 0.9, 3, 200, 0.0, distance=1, var_easy=0.001, var_hard=0.003)]


@pytest.mark.parametrize("mixture", MIXTURES, ids=range(len(MIXTURES)))
@pytest.mark.parametrize("kind", KINDS)
def test_no_search_finds_less(kind: str, mixture: Mixture) -> None:
    outputs = int(kind.split()[1]) if " " in kind else 1
    tables = {"scalar": lambda z: np.full((2, 2), z[0]),
              "full": lambda z: np.resize(z, (2, 2)),
              "kronecker": lambda z: np.outer([1 - z[2], z[2]], z[:2])}
    name = kind.split()[0]
    size = {"scalar": 1, "full": 2 if outputs == 1 else 4, "kronecker": 3}[name]

    def risk(z: Array) -> float:
        return learned(mixture, z[0], tables[name](z[1:]), outputs=outputs).risk

    found = KINDS[kind](mixture)
    best = least(risk, size, mixture)
    assert found.maml.risk <= best * (1 + 1e-7)
    assert best == pytest.approx(found.maml.risk, rel=1e-3)
    at_nal = least(lambda z: risk(np.append(float(mixture.weight_nal), z[1:])), size, mixture)
    assert found.nal.risk == pytest.approx(at_nal, rel=1e-5)
    assert found.nal.risk <= at_nal * (1 + 1e-9)
    assert 1 <= found.ratio <= found.ceiling * (1 + 1e-9)


@pytest.mark.parametrize("kind", ["scalar", "full", "full 3"])
def test_critical_points_are_zeros_of_the_slope_and_are_all(kind: str) -> None:
    outputs = int(kind.split()[1]) if " " in kind else 1
    wells = Mixture(0.7, 0.3, 4, 4000, 0.0, distance=2, var_easy=0.01, var_hard=0.02)
    counts = []
    for mixture in (MIXTURES[1], MIXTURES[2], MIXTURES[4], wells):
        g = together._groups(mixture, outputs)
        parts = together._quadratics(g)
        tie = together._ONE if kind == "scalar" else together._FREE

        def profile(weight: float, g=g, parts=parts, tie=tie) -> float:
            return together._best_step(g, parts, tie, weight).risk

        grid = (1 - np.cos(np.linspace(0, np.pi, 601))) / 2
        slopes = np.diff([profile(weight) for weight in grid])
        turns = grid[1:-1][np.sign(slopes[1:]) != np.sign(slopes[:-1])]
        found = [one.weight for one in KINDS[kind](mixture).critical]
        np.testing.assert_allclose(found, turns, atol=3e-3)
        counts.append(len(found))
        for weight in found:
            middle, width = profile(weight), 1e-5
            slope = (profile(weight + width) - profile(weight - width)) / (2 * width)
            bend = (profile(weight + 1e-3) + profile(weight - 1e-3) - 2 * middle) / 1e-6
            assert abs(slope) <= 1e-4 * abs(bend)
    assert set(counts) == {1, 3}


@pytest.mark.parametrize("mixture", MIXTURES, ids=range(len(MIXTURES)))
def test_kronecker_lies_between_full_and_scalar(mixture: Mixture) -> None:
    one, free = kronecker(mixture, 1), full(mixture)
    for name in ("nal", "maml"):
        here, there = getattr(one, name), getattr(free, name)
        assert here.risk == pytest.approx(there.risk, rel=1e-10)
        np.testing.assert_allclose(here.rates, there.rates, rtol=1e-4)
    risks = [kind(mixture, outputs=3) for kind in (full, kronecker, scalar)]
    for name in ("nal", "maml"):
        least, between, most = (getattr(one, name).risk for one in risks)
        assert least <= between * (1 + 1e-12)
        assert between <= most * (1 + 1e-12)
        assert least < most * (1 - 1e-6)


def test_kronecker_needs_no_more_than_four_rates() -> None:
    """A search over all L and R, a start on the line, finds nothing below."""
    m, k, d, rng = MIXTURES[2], 2, 2, np.random.default_rng(4)
    m = replace(m, dim=d)
    unit = np.zeros((k * d, k * d))
    unit[0, 0] = 1.0

    def risk(z: Array) -> float:
        step, total = np.kron(z[1:5].reshape(k, k), z[5:].reshape(d, d)), 0.0
        for p, rho, v, apart in ((1 - m.hard_fraction, m.rho_easy, m.var_easy, 1 - z[0]),
                                 (m.hard_fraction, m.rho_hard, m.var_hard, z[0])):
            e = (apart * m.distance) ** 2 * unit + v / (k * d) * np.eye(k * d)
            sums = np.trace(e.reshape(k, d, k, d), axis1=1, axis2=3)
            spread = rho * np.kron(sums, np.eye(d)) + m.noise**2 * np.eye(k * d)
            cost = rho**2 * e + (rho**2 * e + rho * spread) / m.support
            total += p * rho * np.trace(e - 2 * rho * step @ e + step.T @ step @ cost)
        return total / 2

    best = min(minimize(risk, np.append(rng.uniform(0, 1), rng.uniform(0, 1.5, 8)), tol=1e-12).fun
               for _ in range(20))
    assert kronecker(m, k).maml.risk == pytest.approx(best, rel=1e-6)


def test_the_start_may_leave_the_line() -> None:
    near = Mixture(1.0, 0.9, 2, 800, 0.0, distance=3)
    on, (weight, offset, risk) = full(near).maml.risk, together.off_the_line(near)
    assert risk < 0.96 * on
    assert offset > 0.1
    assert together.off_line_risk(near, weight, offset) == pytest.approx(risk)
    for mixture in MIXTURES:
        found = full(mixture)
        for one in (found.nal, found.maml):
            assert together.off_line_risk(mixture, one.weight, 0) == pytest.approx(one.risk)
        assert together.off_the_line(mixture)[2] <= found.maml.risk
    assert together.off_the_line(EXAMPLE)[1] == 0


def test_off_the_line_it_is_the_best_of_all_preconditioners() -> None:
    m, weight, offset = replace(MIXTURES[2], dim=2), 0.4, 0.8

    def risk(flat: Array) -> float:
        step, total = flat.reshape(2, 2), 0.0
        for p, rho, v, apart in ((1 - m.hard_fraction, m.rho_easy, m.var_easy, weight - 1),
                                 (m.hard_fraction, m.rho_hard, m.var_hard, weight)):
            delta = np.array([apart * m.distance, offset])
            e = np.outer(delta, delta) + v / 2 * np.eye(2)
            cost = rho**2 * e + (rho**2 * (e + np.trace(e) * np.eye(2))
                                 + rho * m.noise**2 * np.eye(2)) / m.support
            total += p * rho * np.trace(e - 2 * rho * step @ e + step.T @ step @ cost)
        return total / 2

    best = minimize(risk, np.ones(4), tol=1e-12).fun
    assert together.off_line_risk(m, weight, offset) == pytest.approx(best, rel=1e-8)


def test_maml_specialises_and_equal_hardness_is_the_top() -> None:
    found = scalar(BARE)
    low, top, high = found.critical
    assert (low.weight, high.weight) == (pytest.approx(0, abs=1e-9), pytest.approx(1, abs=1e-9))
    np.testing.assert_allclose([low.rates[0, 0], high.rates[0, 0]], [1 / 0.9, 1 / 0.1])
    assert found.maml.risk < 1e-15
    assert found.maml.spread < 1e-15
    assert top.weight == pytest.approx(found.nal.weight)
    assert top.rates[0, 0] == pytest.approx(float(BARE.equal_hardness_step))
    assert top.spread == pytest.approx(1)
    assert found.nal.risk > 0.1
    for p in (0.2, 0.7):
        _, top, _ = scalar(replace(BARE, hard_fraction=p)).critical
        root = ((1 - p) / p) ** (1 / 3) * 9
        assert top.weight == pytest.approx(root / (1 + root))
        assert top.spread == pytest.approx(min(p / (1 - p), (1 - p) / p) ** (2 / 3))


@pytest.mark.parametrize("rho_hard", [0.1, 0.5, 0.8])
def test_fewest_samples(rho_hard: float) -> None:
    settings = [(kind, dim) for dim, kind in ((10, scalar), (1, full), (10, full))
                if fewest_samples(0.9, rho_hard, dim if kind is scalar else 1) > 1.1]
    assert settings
    for kind, dim in settings:
        inputs = dim if kind is scalar else 1
        few = fewest_samples(0.9, rho_hard, inputs)
        below, above = (kind(replace(BARE, rho_hard=rho_hard, dim=dim, support=share * few))
                        for share in (0.98, 1.02))
        assert below.ratio == pytest.approx(1, abs=1e-12)
        step = 2 * 0.98 * few / ((0.98 * few + inputs + 1) * (0.9 + rho_hard))
        assert below.maml.rates[0, 0] == pytest.approx(step)
        assert above.ratio > 1 + 1e-5


def test_more_samples_never_lower_the_gain_of_one_rate() -> None:
    for mixture, *_ in SETTINGS:
        ratios = [scalar(replace(mixture, support=m, noise=0.0)).ratio
                  for m in (1, 3, 10, 100, math.inf)]
        assert (np.diff(ratios) >= -1e-9).all()


def test_a_full_step_raises_the_gain_and_lowers_it() -> None:
    few = replace(BARE, support=20)
    assert full(few).ratio > 1.5 * scalar(few).ratio
    shares = [full(m).ratio / scalar(m).ratio
              for m in (replace(EXAMPLE, var_hard=v) for v in (1e-2, 1e-4))]
    limit = full(replace(EXAMPLE, var_hard=1e-9)).nal.risk / scalar(
        replace(EXAMPLE, var_hard=1e-9)).nal.risk
    assert limit < 0.97
    assert shares[0] < 0.97
    assert shares[1] == pytest.approx(limit, rel=1e-3)


@pytest.mark.parametrize("mixture", MIXTURES, ids=range(len(MIXTURES)))
def test_the_ratio_lies_between_those_at_the_two_steps(mixture: Mixture) -> None:
    found = scalar(mixture)
    at_nal, at_maml = (float(replace(mixture, alpha=one.rates[0, 0]).ratio)
                       for one in (found.nal, found.maml))
    assert at_nal * (1 - 1e-9) <= found.ratio <= at_maml * (1 + 1e-9)
    assert at_nal < at_maml


def test_one_centre_leaves_nothing_to_gain() -> None:
    for kind in KINDS.values():
        assert kind(replace(EXAMPLE, distance=0.0)).ratio == 1
        nothing = kind(replace(BARE, distance=0.0))
        assert (nothing.ratio, nothing.maml.risk, nothing.ceiling) == (1, 0, 1)
    single = replace(EXAMPLE, dim=1)
    assert full(single).ratio == pytest.approx(scalar(single).ratio)


SINGLE = replace(EXAMPLE, dim=1)
BAD = [(lambda: scalar(replace(EXAMPLE, rho_hard=[0.1, 0.2])), "mixture must hold numbers"),
       (lambda: full(replace(EXAMPLE, hard_fraction=1.0)), r"hard_fraction must lie inside \(0, 1"),
       (lambda: scalar(replace(EXAMPLE, steps=2)), "steps must be 1, got 2"),
       (lambda: kronecker(EXAMPLE, 0), "outputs must be at least 1"),
       (lambda: learned(EXAMPLE, 0.5, np.ones(3)), r"rates.shape must be \(2, 2\)"),
       (lambda: learned(EXAMPLE, math.nan, np.ones((2, 2))), "weight must be finite"),
       (lambda: together.off_line_risk(SINGLE, 0.5, 0.1), "dim must be at least 2"),
       (lambda: together.off_the_line(SINGLE), "dim must be at least 2"),
       (lambda: fewest_samples(0.9, 0.0, 3), "rho_hard must be positive")]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_bad_input(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_equal_curvature_needs_infinitely_many_samples() -> None:
    assert fewest_samples(0.9, 0.9, 3) == math.inf
    assert scalar(replace(BARE, rho_hard=0.9, support=1000)).ratio == pytest.approx(1)


def test_every_theorem_goes_through() -> None:
    assert proved.proofs() == dict.fromkeys(proved.proofs(), True)
    assert len(proved.proofs()) == 9


S, D = proved.symbols(), proved.derive()
WRONG = {
    "risk": (D.risk * 1.01, {"scalar", "full"}),
    "rate": (2 * D.rate, {"scalar", "well", "balanced"}),
    "well": (D.well / (1 + S.x), {"well"}), "transition": (D.transition + 1, {"transition"}),
    "bare": ({S.T_E: S.R**2, S.T_H: (S.lam * S.R) ** 2}, {"well", "balanced", "transition"})}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_formula_is_not_proved(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    wrong, fail = WRONG[name]
    monkeypatch.setattr(proved, "derive", lambda: SimpleNamespace(**(vars(D) | {name: wrong})))
    assert not any(getattr(proved, f"_{theorem}")() for theorem in fail)


def test_without_a_sign_or_a_moment_there_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proved, "gram_sandwich", lambda s, middle, u: s * middle * s)
    monkeypatch.setattr(proved, "has_sign", lambda *_, **__: False)
    through = proved.proofs.__wrapped__()
    assert {name for name, value in through.items() if value} == {"scalar", "full", "parallel"}
