"""The formulas of the explorers, evaluated as a page does, against the functions of the package."""

import math

import numpy as np
import pytest
import sympy as sp

from companion.streams import stream
from companion.theory import landscape, preconditioners, programs, whitening
from companion.theory.landscape import Mixture
from companion.theory.landscape_proofs import identity, symbols


def knobs(count: int) -> dict[str, np.ndarray]:
    rng = stream(0, "programs")

    def some(*extremes: float, to: float) -> np.ndarray:
        drawn = rng.uniform(0, to, count)
        return np.where(rng.random(count) < 0.2, rng.choice(extremes, count), drawn)

    return {"alpha": some(0, 1, 2, to=2), "rho_E": some(0.05, 1, 2, to=1.9) + 0.01,
            "rho_H": some(0.01, 1, to=1.9) + 0.01, "R": some(0, 5, to=5), "v_E": some(0, 2, to=2),
            "v_H": some(0, 2, to=2), "p": some(0, 1, to=1), "sigma": some(0, 2, to=2),
            "d": rng.integers(1, 101, count).astype(float), "k": rng.integers(1, 11, count),
            "u": some(0, 1, 1e-4, to=0.2)}


def test_the_mixture_of_the_explorer_is_that_of_the_package() -> None:
    v = knobs(4000)
    v["rho_E"][:200] = v["rho_H"][:200] = v["alpha"][:200] = 1.0  # all solved, in part
    unbounded = {"rho_E": 1.0, "alpha": 1.0, "u": 0.0, "v_H": 0.0, "R": 2.0, "p": 0.5}
    for name, value in unbounded.items():  # MAML's risk is 0
        v[name][200:210] = value
    found = programs.evaluate(programs.mixture(), v)
    with np.errstate(divide="ignore"):
        mixture = Mixture(v["rho_E"], v["rho_H"], v["d"], 1 / v["u"], v["alpha"],
                          hard_fraction=v["p"], distance=v["R"], var_easy=v["v_E"],
                          var_hard=v["v_H"], noise=v["sigma"], steps=v["k"])
    h = landscape.hardness_spread(mixture)
    for name, value in {"ratio": mixture.ratio, "l_N": mixture.weight_nal, "h": h,
                        "l_M": mixture.weight_maml, "ceiling": landscape.ceiling(h),
                        "alpha_0": mixture.equal_hardness_step}.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, err_msg=name)
    assert np.isinf(mixture.ratio).any()
    assert (mixture.ratio == 1).any()
    assert (mixture.ratio > 2).sum() > 50


def test_the_ratio_is_the_identity_of_the_chapter() -> None:
    i, ratio = identity(), programs.mixture()["ratio"]
    names = {symbol.name: symbol for symbol in ratio.free_symbols}
    ratio = ratio.replace(programs.ORELSE, lambda x, y: x).subs(
        {names["q_N"]: 1 - i.nal, names["q_M"]: 1 - i.maml, names["l_N"]: i.nal,
         names["l_M"]: i.maml, names["nu"]: i.nu})
    assert sp.simplify(ratio - i.ratio) == 0
    assert symbols().R in ratio.free_symbols


@pytest.mark.parametrize("support", [3.0, 40.0, math.inf])
def test_the_preconditioner_of_the_explorer_is_that_of_the_package(support: float) -> None:
    s, g, noise = np.array([2.0, 0.3]), np.array([0.5, 1.5]), 0.7
    found = programs.evaluate(programs.preconditioner(), dict(zip(
        ("s_1", "s_2", "g_1", "g_2", "u", "sigma"), (*s, *g, 1 / support, noise), strict=True)))
    # four tasks at +-sqrt(g) of one covariance: the optima have covariance diag(g) about 0
    optima = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(g)
    tasks = np.tile(np.diag(s), (4, 1, 1)), optima
    before = preconditioners.risk(np.zeros(2), np.zeros((2, 2)), *tasks, support, noise=noise)
    ridge = whitening.ridge_whitening(np.diag(s), support, noise / math.sqrt(g.sum()))
    np.testing.assert_allclose(found["ridge"], ridge.ridge, rtol=1e-12)
    for left, step in (("left_rate", found["rate"] * np.eye(2)),
                       ("left_white", np.diag([found["W_1"], found["W_2"]])),
                       ("left_full", np.diag([found["P_1"], found["P_2"]]))):
        risk = preconditioners.risk(np.zeros(2), step, *tasks, support, noise=noise)
        np.testing.assert_allclose(found[left], risk / before, rtol=1e-12, atol=1e-15)
    rate = preconditioners.best_rate(np.zeros(2), *tasks, support, noise=noise)
    np.testing.assert_allclose(found["rate"], rate, rtol=1e-12)
    full = preconditioners.best(np.zeros(2), *tasks, support, noise=noise)
    np.testing.assert_allclose(np.diag([found["P_1"], found["P_2"]]), full, rtol=1e-8, atol=1e-8)
