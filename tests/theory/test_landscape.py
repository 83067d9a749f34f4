"""The mixture: its closed forms against SymPy, against the general theory, and its properties."""

import math

import numpy as np
import pytest
import sympy as sp
from hypothesis import given
from hypothesis import strategies as st

from companion.theory import gaussian
from companion.theory.landscape import Mixture, best_step
from companion.theory.landscape_proofs import derive, symbols
from companion.theory.signs import proved_sign


@pytest.mark.parametrize(("rho_hard", "var_hard", "ratio"),
                         [(0.1, 0.01, 7.2677), (0.1, 1, 4.1823), (0.01, 0.01, 1.8586)])
def test_known_values(rho_hard: float, var_hard: float, ratio: float) -> None:
    mixture = Mixture(0.9, rho_hard, 10, math.inf, 1.0, distance=3, var_easy=1, var_hard=var_hard)
    assert mixture.ratio == pytest.approx(ratio, abs=5e-5)


def test_equal_hardness_gains_nothing_at_any_distance() -> None:
    distances = np.array([0, 1, 3, 100.0])
    assert (
        Mixture(0.9, 0.9, 10, math.inf, 1.0, distance=distances, var_easy=1, var_hard=0.01).ratio
        == 1
    ).all()


def test_the_derived_gap_is_a_square_over_positive_terms() -> None:
    s, d = symbols(), derive()
    text = (s.p * (1 - s.p) * (s.rho_E * s.a_H - s.rho_H * s.a_E)) ** 2 * s.R**2 / 2
    text /= ((1 - s.p) * s.rho_E + s.p * s.rho_H) ** 2 * ((1 - s.p) * s.a_E + s.p * s.a_H)
    assert sp.simplify(d.gap - text) == 0
    odds = sp.Symbol("odds", positive=True)
    assert proved_sign(d.gap.subs(s.p, 1 / (1 + odds)), strict=False) == 1


def test_the_derived_zero_is_equal_hardness() -> None:
    s, d = symbols(), derive()
    cross = (s.rho_E * d.leftover_hard - s.rho_H * d.leftover_easy).subs(s.k, 1)
    zeros = sp.solve(sp.cancel(cross / s.alpha), s.alpha)
    assert len(zeros) == 1
    assert sp.simplify(zeros[0] - 2 / ((1 + (s.d + 1) * s.u) * (s.rho_E + s.rho_H))) == 0


POINTS = [
    dict(rho_easy=0.9, rho_hard=0.1, dim=10, support=20, alpha=0.8, distance=3.0, var_easy=1.0,
         var_hard=0.1, noise=0.5, hard_fraction=0.3, steps=1),
    dict(rho_easy=0.2, rho_hard=1.7, dim=3, support=1, alpha=0.3, distance=0.5, var_easy=0.0,
         var_hard=2.0, noise=1.5, hard_fraction=0.8, steps=3),
    dict(rho_easy=1.0, rho_hard=0.4, dim=50, support=math.inf, alpha=0.45, distance=2.0,
         var_easy=0.3, var_hard=0.0, noise=0.7, hard_fraction=0.5, steps=5),
    dict(rho_easy=2.0, rho_hard=1.9, dim=7, support=12, alpha=1.6, distance=1.0, var_easy=0.1,
         var_hard=0.2, noise=0.0, hard_fraction=0.9, steps=2),
]


@pytest.mark.parametrize("point", POINTS)
def test_numpy_equals_sympy(point: dict[str, float]) -> None:
    s, d = symbols(), derive()
    names = dict(rho_easy=s.rho_E, rho_hard=s.rho_H, dim=s.d, alpha=s.alpha, distance=s.R,
                 var_easy=s.v_E, var_hard=s.v_H, noise=s.sigma, hard_fraction=s.p, steps=s.k)
    exact = {symbol: sp.Rational(point[name]) for name, symbol in names.items()}
    exact[s.u] = (
        sp.Integer(0) if math.isinf(point["support"]) else sp.Rational(1, int(point["support"]))
    )
    exact[s.a_E], exact[s.a_H] = d.leftover_easy.subs(exact), d.leftover_hard.subs(exact)

    def value(expression: sp.Expr) -> float:
        return float(expression.subs(exact).evalf(30))

    mixture = Mixture(**point)
    risks = [(d.risk + d.noise).subs(s.lam, weight) for weight in (d.weight_nal, d.weight_maml)]
    zero = 2 / ((1 + (s.d + 1) * s.u) * (s.rho_E + s.rho_H))
    pairs = [(mixture.weight_nal, d.weight_nal), (mixture.weight_maml, d.weight_maml),
             (mixture.risk_nal, risks[0]), (mixture.risk_maml, risks[1]), (mixture.gap, d.gap),
             (mixture.ratio, risks[0] / risks[1]),
             (mixture.risk(0.3), (d.risk + d.noise).subs(s.lam, sp.Rational(0.3))),
             (mixture.equal_hardness_step, zero)]
    for ours, expression in pairs:
        assert ours == pytest.approx(value(expression), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("point", POINTS)
def test_the_mixture_is_a_special_case_of_the_general_theory(point: dict[str, float]) -> None:
    mixture, d, p = Mixture(**point), int(point["dim"]), point["hard_fraction"]
    covariances = np.stack([point[name] * np.eye(d) for name in ("rho_easy", "rho_hard")])
    centres = np.zeros((2, d))
    centres[0, 0] = point["distance"]
    setting = dict(alpha=point["alpha"], support=point["support"], weights=[1 - p, p],
                   steps=int(point["steps"]))
    nal = gaussian.minimiser_nal(covariances, centres, [1 - p, p])
    maml = gaussian.minimiser_maml(covariances, centres, **setting)
    assert nal[0] == pytest.approx(mixture.weight_nal * point["distance"], rel=1e-12)
    assert maml[0] == pytest.approx(mixture.weight_maml * point["distance"], rel=1e-12)
    tight = Mixture(**point | {"var_easy": 0.0, "var_hard": 0.0})
    risk = gaussian.excess_risk(np.stack([nal, maml]), covariances, centres, noise=point["noise"],
                                **setting)
    np.testing.assert_allclose(risk, [tight.risk_nal, tight.risk_maml], rtol=1e-11)


variances = st.floats(0.01, 10)
fractions = st.integers(0, 1024).map(lambda i: i / 1024)  # 1 - p is exact
sizes = st.floats(0, 10)
mixtures = st.fixed_dictionaries(
    dict(rho_easy=variances, rho_hard=variances, dim=st.integers(1, 50),
         support=st.one_of(st.integers(1, 100), st.just(math.inf)), alpha=st.floats(0, 4),
         hard_fraction=fractions, distance=sizes, var_easy=sizes, var_hard=sizes, noise=sizes,
         steps=st.integers(0, 6))
)


@given(mixtures)
def test_maml_never_loses(fields: dict) -> None:
    mixture = Mixture(**fields)
    assert mixture.gap >= 0
    assert mixture.ratio >= 1
    assert mixture.risk_nal - mixture.risk_maml == pytest.approx(
        mixture.gap, abs=1e-9 * (1 + mixture.risk_nal)
    )
    assert 0 <= mixture.weight_maml <= 1


@given(mixtures, st.sampled_from(["distance", "rho", "alpha_0", "alpha", "p0", "p1", "steps"]))
def test_the_ratio_is_one_at_each_zero(fields: dict, zero: str) -> None:
    there = {
        "distance": {"distance": 0.0},
        "rho": {"rho_hard": fields["rho_easy"]},
        "alpha_0": {"alpha": Mixture(**fields).equal_hardness_step},
        "alpha": {"alpha": 0.0},
        "p0": {"hard_fraction": 0.0},
        "p1": {"hard_fraction": 1.0},
        "steps": {"steps": 0},
    }[zero]
    mixture = Mixture(**fields | there)
    assert mixture.ratio == pytest.approx(1, abs=1e-12)


@given(mixtures)
def test_the_names_of_the_groups_do_not_matter(fields: dict) -> None:
    mixture = Mixture(**fields)
    swapped = Mixture(**fields
                      | dict(rho_easy=fields["rho_hard"], rho_hard=fields["rho_easy"],
                             hard_fraction=1 - fields["hard_fraction"], var_easy=fields["var_hard"],
                             var_hard=fields["var_easy"]))
    assert swapped.weight_nal == pytest.approx(1 - mixture.weight_nal, abs=1e-12)
    assert swapped.weight_maml == pytest.approx(1 - mixture.weight_maml, abs=1e-12)
    for name in ("gap", "risk_nal", "risk_maml", "ratio"):
        assert getattr(swapped, name) == pytest.approx(getattr(mixture, name), rel=1e-9, abs=1e-12)


@given(mixtures, st.floats(0.1, 10), st.floats(0.1, 10))
def test_units(fields: dict, x_unit: float, y_unit: float) -> None:
    """x -> x_unit x and y -> y_unit y: risks are in units of y^2, weights and ratio have none."""
    w_unit = y_unit / x_unit
    mixture = Mixture(**fields)
    scaled = Mixture(
        **fields
        | dict(rho_easy=fields["rho_easy"] * x_unit**2, rho_hard=fields["rho_hard"] * x_unit**2,
               alpha=fields["alpha"] / x_unit**2, distance=fields["distance"] * w_unit,
               noise=fields["noise"] * y_unit, var_easy=fields["var_easy"] * w_unit**2,
               var_hard=fields["var_hard"] * w_unit**2)
    )
    for name, unit in (("weight_nal", 1), ("gap", y_unit**2), ("risk_nal", y_unit**2),
                       ("risk_maml", y_unit**2)):
        expected = getattr(mixture, name) * unit
        assert getattr(scaled, name) == pytest.approx(expected, rel=1e-6,
                                                      abs=1e-9 * (1 + abs(expected)))


@given(st.integers(0, 10**6), st.integers(1, 3))
def test_rotation_changes_nothing(seed: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    d, n = 4, 3
    factor = rng.standard_normal((n, d, d))
    covariances, optima = factor @ factor.swapaxes(1, 2) / d, rng.standard_normal((n, d))
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    turned = rotation @ covariances @ rotation.T
    turned = (turned + turned.swapaxes(1, 2)) / 2
    w = gaussian.minimiser_maml(covariances, optima, 0.3, 5, steps=steps)
    w_turned = gaussian.minimiser_maml(turned, optima @ rotation.T, 0.3, 5, steps=steps)
    np.testing.assert_allclose(w_turned, rotation @ w, rtol=1e-6, atol=1e-8)
    risks = [gaussian.excess_risk(a, b, c, 0.3, 5, noise=0.4, steps=steps)
             for a, b, c in ((w, covariances, optima), (rotation @ w, turned, optima @ rotation.T))]
    assert risks[0] == pytest.approx(risks[1], rel=1e-10)


def test_arrays_are_broadcast_and_equal_one_call_each() -> None:
    hard, distances = np.linspace(0.1, 0.9, 4)[:, None], np.array([0.5, 1, 2])
    grid = Mixture(0.9, hard, 10, [5, 20, math.inf], 1.0, distance=distances, var_hard=0.1,
                   noise=0.2)
    assert grid.ratio.shape == grid.weight_nal.shape == (4, 3)
    assert grid.risk(np.zeros((2, 1, 1))).shape == (2, 4, 3)
    one = Mixture(0.9, hard[2, 0], 10, 20, 1.0, distance=1, var_hard=0.1, noise=0.2)
    for name in ("ratio", "gap", "risk_nal", "weight_maml", "equal_hardness_step"):
        assert getattr(grid, name)[2, 1] == getattr(one, name)
    assert isinstance(float(one.ratio), float)


def test_nothing_left_to_gain_or_everything() -> None:
    solved = Mixture(
        1.0, 1.0, 3, math.inf, 1.0, distance=2.0, hard_fraction=0.25
    )  # one step solves every task
    assert (solved.risk_nal, solved.risk_maml, solved.ratio, solved.gap) == (0, 0, 1, 0)
    assert solved.weight_maml == solved.weight_nal == 0.75
    hard_only = Mixture(
        1.0, 0.5, 3, math.inf, 1.0, distance=2.0
    )  # one step solves the easy tasks only
    assert hard_only.risk_maml == 0
    assert math.isinf(hard_only.ratio)


def test_many_steps_do_not_underflow_into_a_wrong_ratio() -> None:
    ratio = Mixture(1.0, 0.4, 3, math.inf, 0.5, distance=2.0, var_hard=0.1,
                    steps=[10, 100, 1000, 10_000]).ratio
    c_hard, c_easy, k = 0.8**2, 0.5**2, 10
    left = (0.4 * c_hard**k, 1.0 * c_easy**k)
    weights = [1 / 1.4, left[1] / (left[0] + left[1])]
    nal, maml = ((left[1] * (1 - w) ** 2 * 4 + left[0] * (0.1 + w**2 * 4)) / 4 for w in weights)
    assert ratio[0] == pytest.approx(nal / maml, rel=1e-12)
    np.testing.assert_allclose(ratio[2:], 1 + (1 / 1.4) ** 2 * 4 / 0.1, rtol=1e-12)


@pytest.mark.parametrize("method", ["nal", "maml"])
@pytest.mark.parametrize(
    "fields",
    [dict(support=20, noise=0.3, steps=1), dict(support=math.inf, noise=0.0, steps=1),
     dict(support=5, noise=0.0, steps=3), dict(support=1, noise=2.0, steps=1),
     dict(support=math.inf, noise=0.0, steps=10), dict(support=20, noise=0.5, steps=25)],
)
def test_best_step_beats_a_grid(method: str, fields: dict) -> None:
    base = dict(rho_easy=0.9, rho_hard=0.1, dim=4, distance=3, var_easy=1, var_hard=0.1) | fields
    step = best_step(Mixture(**base, alpha=0.0), method)
    name = f"risk_{method}"
    found = getattr(Mixture(**base, alpha=step), name)
    grid = getattr(Mixture(**base, alpha=np.linspace(0, 4, 40001)), name)
    assert found <= grid.min() * (1 + 1e-12)
    assert found == pytest.approx(grid.min(), rel=1e-3, abs=1e-5)


MINIMAL = dict(rho_easy=0.9, rho_hard=0.1, dim=10, support=20, alpha=1.0)
BAD = [("rho_easy must be positive, got 0.0", dict(rho_easy=0)),
       (r"rho_hard must be positive, got -1.0 at index \[1\]", dict(rho_hard=[0.5, -1])),
       ("rho_hard must be finite, got nan", dict(rho_hard=math.nan)),
       ("dim must be at least 1", dict(dim=0)),
       ("dim must be a whole number, got 2.5", dict(dim=2.5)),
       ("support must be at least 1, got 0", dict(support=0)),
       ("alpha must be at least 0", dict(alpha=-1)), ("alpha must be finite", dict(alpha=math.inf)),
       (r"hard_fraction must lie in \[0, 1\], got 1.1", dict(hard_fraction=1.1)),
       (r"hard_fraction must lie in \[0, 1\], got -0.1", dict(hard_fraction=-0.1)),
       ("distance must be at least 0", dict(distance=-1)),
       ("var_easy must be at least 0", dict(var_easy=-1)),
       ("var_hard must be at least 0", dict(var_hard=-1)),
       ("noise must be at least 0", dict(noise=-1)),
       ("noise must be finite, got nan", dict(noise=math.nan)),
       ("steps must be a whole number", dict(steps=0.5)),
       ("fields must broadcast together", dict(distance=[1, 2], noise=[1, 2, 3])),
       ("c\\^steps must be finite", dict(alpha=1e10, steps=100))]


@pytest.mark.parametrize(("message", "fields"), BAD, ids=[m for m, _ in BAD])
def test_bad_input(message: str, fields: dict) -> None:
    with pytest.raises(ValueError, match=message):
        Mixture(**MINIMAL | fields)


def test_bad_calls() -> None:
    with pytest.raises(ValueError, match='method must be "nal" or "maml"'):
        best_step(Mixture(**MINIMAL), "reptile")
    with pytest.raises(ValueError, match="call once per mixture"):
        best_step(Mixture(**MINIMAL | {"alpha": [0.1, 0.2]}), "nal")
    with pytest.raises(ValueError, match="weight must be finite"):
        Mixture(**MINIMAL).risk(math.nan)
