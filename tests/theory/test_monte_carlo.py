"""Every closed form against drawn tasks, and the same formula with one term missing, which must be
rejected.

The rule: |Monte Carlo - exact| within 4 standard errors, the standard error at most 0.3 % of the
value. A mutant is the formula without one named term; it must be rejected in a setting where the
term is at least 5 % of the value.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest

from companion.evaluation import Estimate, estimate
from companion.monte_carlo import adapted_risks, draws_needed, monte_carlo
from companion.streams import stream
from companion.tasks.regressions import LinearFamily, easy_and_hard
from companion.theory.landscape import Mixture

TERMS = ("first order", "squared step", "cube", "trace", "distance", "variance", "noise")


@dataclass(frozen=True)
class Setting:
    dim: int
    support: float
    steps: int = 1
    alpha: float = 0.5
    noise: float = 0.0
    anisotropic: bool = False
    variance: float = 1.0
    distance: float = 2.0
    hard_fraction: float = 0.5

    def family(self) -> LinearFamily:
        """Two groups; anisotropic ones have scales from 0.2 to 1.2 in unrelated directions."""
        scales = np.linspace(0.2, 1.2, self.dim) if self.anisotropic else np.ones(self.dim)
        return easy_and_hard(stream(self.dim, "tests/covariances"), scales, 0.2 * scales,
                             distance=self.distance, var_easy=self.variance,
                             var_hard=self.variance / 2, hard_fraction=self.hard_fraction,
                             noise=self.noise)

    @property
    def start(self) -> np.ndarray:
        return np.linspace(-0.5, 1.0, self.dim)


SETTINGS = [Setting(3, 1), Setting(3, 2, noise=1.0), Setting(3, 6), Setting(3, math.inf),
            Setting(5, 2), Setting(5, 3, noise=1.0), Setting(5, 10),
            Setting(5, math.inf, anisotropic=True), Setting(1, 1, noise=0.5, alpha=0.3),
            Setting(1, 4, alpha=1.0), Setting(4, 8, alpha=1.0, noise=2.0),
            Setting(4, 2, anisotropic=True), Setting(4, 3, anisotropic=True, noise=1.0),
            Setting(4, 12, anisotropic=True), Setting(6, 4, anisotropic=True, alpha=0.8),
            Setting(3, 6, steps=3), Setting(3, 6, steps=3, noise=1.0),
            Setting(4, 8, steps=3, anisotropic=True),
            Setting(4, 6, steps=3, anisotropic=True, noise=1.5),
            Setting(4, math.inf, steps=3, anisotropic=True),
            Setting(2, 10, steps=2, alpha=0.8, noise=1.0), Setting(3, 5, variance=0.0),
            Setting(3, 5, distance=0.0, variance=3.0), Setting(3, 5, hard_fraction=0.9),
            Setting(3, 1, alpha=0.7, anisotropic=True), Setting(2, 3, alpha=0.0)]


def formula(setting: Setting, without: str = "") -> float:
    """The excess risk written out term by term, one of them left out. Independent of the package's
    code."""
    family, a, u = setting.family(), setting.alpha, 1 / setting.support
    keep = {term: float(term != without) for term in TERMS}
    total = 0.0
    for sigma, centre, variance, weight in zip(family.covariances, family.centres, family.variances,
                                               family.weights, strict=True):
        matrix, noise = sigma, 0.0
        for _ in range(setting.steps):
            noise += a**2 * setting.noise**2 * u / 2 * np.trace(sigma @ matrix)
            product = sigma @ matrix @ sigma
            matrix = (matrix
                      - keep["first order"] * a * (sigma @ matrix + matrix @ sigma)
                      + keep["squared step"] * a**2 * product
                      + keep["cube"] * a**2 * u * product
                      + keep["trace"] * a**2 * u * np.trace(sigma @ matrix) * sigma)
        error = setting.start - centre
        total += weight * (keep["distance"] * error @ matrix @ error / 2
                           + keep["variance"] * np.trace(matrix) * variance / (2 * setting.dim)
                           + keep["noise"] * noise)
    return total


@cache
def drawn(setting: Setting) -> Estimate:
    rng = stream(0, f"tests/{setting}")
    return monte_carlo(setting.family(), setting.start, setting.alpha, setting.support, rng,
                       steps=setting.steps)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_closed_form(setting: Setting) -> None:
    exact = float(
        setting.family().risk(setting.start, setting.alpha, setting.support, steps=setting.steps)
    )
    assert exact == pytest.approx(formula(setting), rel=1e-12)
    mc = drawn(setting)
    assert mc.error <= 0.003 * mc.value
    assert abs(mc.sigmas(exact)) <= 4


@pytest.mark.parametrize("term", TERMS)
def test_a_formula_without_the_term_is_rejected(term: str) -> None:
    rejected = 0
    for setting in SETTINGS:
        exact, mutant = formula(setting), formula(setting, without=term)
        if abs(exact - mutant) >= 0.05 * exact:
            assert abs(drawn(setting).sigmas(mutant)) > 4, (
                f"{setting} cannot tell that {term} is missing"
            )
            rejected += 1
    assert rejected >= 1


def test_the_settings_cover_what_the_claim_says() -> None:
    assert len(SETTINGS) >= 20
    assert any(s.anisotropic for s in SETTINGS)
    assert any(s.support < s.dim for s in SETTINGS)
    assert any(s.noise > 0 and s.steps == 3 for s in SETTINGS)


MIXTURES = [
    Mixture(1.0, 0.1, 4, math.inf, 1.0, distance=2, var_easy=1, var_hard=0.5),
    Mixture(0.9, 0.1, 3, 20, 0.9, distance=4, var_easy=0.1, var_hard=0.1, noise=0.3,
            hard_fraction=0.7),
    Mixture(0.8, 0.1, 3, 12, 0.9, distance=4, var_easy=0.1, var_hard=0.1, noise=0.2, steps=3),
]


@pytest.mark.parametrize("mixture", MIXTURES, ids=range(len(MIXTURES)))
def test_mixture_risks_and_their_gap(mixture: Mixture) -> None:
    family = LinearFamily.from_mixture(mixture)
    starts = np.outer([mixture.weight_nal, mixture.weight_maml], family.centres[0])

    def draw(count: int) -> np.ndarray:
        rng = stream(count, "tests/mixture")
        return adapted_risks(family, starts, mixture.alpha, mixture.support, rng, count,
                             steps=mixture.steps)

    pilot = draw(40_000)
    risks = draw(max(draws_needed(samples, 0.003) for samples in (*pilot, pilot[0] - pilot[1])))
    for samples, exact in zip((*risks, risks[0] - risks[1]),
                              (mixture.risk_nal, mixture.risk_maml, mixture.gap), strict=True):
        mc = estimate(samples)
        assert mc.error <= 0.003 * mc.value
        assert abs(mc.sigmas(exact)) <= 4
