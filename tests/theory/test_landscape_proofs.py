"""The proofs go through, and each fails, quietly, where its theorem is made wrong."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import sympy as sp

from companion.theory import landscape_proofs as proved
from companion.theory.landscape import Mixture

S = proved.symbols()


def test_all_go_through() -> None:
    assert proved.proofs() == dict.fromkeys(
        ("gap", "zeros", "identity", "monotone", "limit", "supremum", "ceiling", "few", "matching",
         "share"), True)


def mutant(source: SimpleNamespace, **changed: sp.Expr) -> SimpleNamespace:
    return SimpleNamespace(**vars(source) | changed)


DERIVED, IDENTITY, SHARE = proved.derive(), proved.identity(), proved.share()
LEVEL = IDENTITY.maml * S.v_E + (1 - IDENTITY.maml) * S.v_H + IDENTITY.nu
APART = (IDENTITY.nal - IDENTITY.maml) ** 2 * S.R**2
MUTANTS = [
    ("derive", mutant(DERIVED, weight_nal=DERIVED.weight_maml),
     {"limit", "monotone", "supremum", "matching"}),
    ("derive", mutant(DERIVED, weight_maml=DERIVED.weight_nal),
     {"identity", "supremum", "matching", "share"}),
    ("derive", mutant(DERIVED, gap=2 * DERIVED.gap), {"gap", "share"}),
    ("derive", mutant(DERIVED, gap=DERIVED.gap + S.R), {"gap", "share"}),
    ("derive", mutant(DERIVED, risk=DERIVED.risk.subs(S.v_E, 2 * S.v_E)), {"identity", "share"}),
    ("derive", mutant(DERIVED, leftover_easy=DERIVED.leftover_hard), {"zeros", "limit"}),
    ("derive", mutant(DERIVED, leftover_hard=S.rho_H), {"zeros"}),
    ("identity", mutant(IDENTITY, ratio=1 + APART / LEVEL), {"identity", "supremum"}),
    ("identity", mutant(IDENTITY, ratio=1 + APART / (LEVEL.subs(IDENTITY.nu, 0) + S.R**2)),
     {"identity", "supremum", "monotone"}),
    ("identity", mutant(IDENTITY, ratio=IDENTITY.ratio.subs(S.v_H, S.v_E)),
     {"identity", "monotone"}),
    ("share", mutant(SHARE, cubic=SHARE.cubic + 1), {"share"}),
    ("share", mutant(SHARE, cubic=-SHARE.cubic), {"share"}),
    ("share", mutant(SHARE, quadratic=SHARE.quadratic + SHARE.odds), {"share"}),
    ("contraction", lambda rho, alpha, dim, u: 1 - alpha * rho + (dim + 1) * u * alpha * rho,
     {"zeros"}),
]


@pytest.mark.parametrize(("name", "wrong", "fail"), MUTANTS)
def test_each_can_fail(monkeypatch: pytest.MonkeyPatch, name: str, wrong, fail: set[str]) -> None:
    if name == "contraction":
        monkeypatch.setattr(proved, "contraction", wrong)
        wrong, name = proved.derive.__wrapped__(), "derive"
    monkeypatch.setattr(proved, name, lambda: wrong)
    through = proved.proofs.__wrapped__()
    assert {key for key, value in through.items() if not value} == fail


def test_no_sign_is_no_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proved, "has_sign", lambda *_, **__: False)
    through = proved.proofs.__wrapped__()
    assert {key for key, value in through.items() if value} == {"limit", "identity"}


@pytest.mark.parametrize("support", [3, 25, math.inf])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_identity_is_the_ratio_of_the_mixture(support: float, steps: int) -> None:
    rng = np.random.default_rng(31)
    easy, hard, alpha, p, distance, v_easy, v_hard, noise = rng.uniform(0.05, 1, (8, 500))
    mixture = Mixture(easy, hard, 6, support, alpha, hard_fraction=p, distance=3 * distance,
                      var_easy=v_easy, var_hard=v_hard, noise=noise, steps=steps)
    whole = sum(share * rho * ((1 - alpha * rho) ** 2 + 7 * (alpha * rho) ** 2 / support) ** steps
                for share, rho in ((1 - p, easy), (p, hard)))
    at_centres = Mixture(easy, hard, 6, support, alpha, hard_fraction=p, distance=0, noise=noise,
                         steps=steps).risk_maml
    values = {S.R: 3 * distance, S.v_E: v_easy, S.v_H: v_hard, IDENTITY.nal: mixture.weight_nal,
              IDENTITY.maml: mixture.weight_maml, IDENTITY.nu: 2 * at_centres / whole}
    ratio = sp.lambdify(list(values), IDENTITY.ratio, "numpy")(*values.values())
    np.testing.assert_allclose(mixture.ratio, ratio, rtol=1e-10)
    assert np.ptp(ratio) > 0.1
