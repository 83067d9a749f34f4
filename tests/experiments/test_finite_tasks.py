"""How many tasks: rows against the solvers, limits against the theory, and L1 from made tables."""

from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import pytest

from companion import tables
from companion.experiments import finite_tasks
from companion.monte_carlo import from_finite_tasks
from companion.records import Record
from companion.streams import stream
from companion.theory.finite_tasks import constant_maml, constant_nal
from companion.theory.landscape import Mixture

FULL, QUICK = finite_tasks.PROFILES["full"], finite_tasks.PROFILES["quick"]
own_constants = finite_tasks.own_constants


@cache
def constants(index: int) -> dict[str, float]:
    return own_constants(FULL, finite_tasks.points(FULL)[index])


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The constants of every point of the full profile are computed once."""
    monkeypatch.setattr(finite_tasks, "own_constants", lambda config, point: constants(
        finite_tasks.points(FULL).index(point)))


def test_a_row_is_of_its_tasks() -> None:
    config = replace(QUICK, tasks=(30, 60), seeds=3)
    point = finite_tasks.points(config)[1]
    rows = finite_tasks.measure(config, point, "cpu")
    assert [(row["tasks"], row["seed"]) for row in rows] == [
        (t, seed) for t in (30, 60) for seed in range(3)]
    family, row = finite_tasks.family_of(config, point), rows[4]
    nal, maml = from_finite_tasks(family, 0.8, 20, 20, 60, stream(1, "finite_tasks/60"))
    own = [(family.risk(nal, 0, 20), family.risk(family.minimiser_nal(), 0, 20)),
           (family.risk(maml, 0.8, 20), family.risk(family.minimiser_maml(0.8, 20), 0.8, 20))]
    assert row["nal"] == pytest.approx(float(own[0][0] / own[0][1]) - 1, rel=1e-4)
    assert row["maml"] == pytest.approx(float(own[1][0] / own[1][1]) - 1, rel=1e-4)
    assert row["gain"] == pytest.approx(float(family.risk(nal, 0.8, 20) - own[1][0]), rel=1e-4)
    assert min(min(row["nal"], row["maml"]) for row in rows) > 0


def test_limits_are_those_of_the_closed_form() -> None:
    """For isotropic groups; relative to each method's own optimum."""
    for point in finite_tasks.points(FULL):
        if point["inputs"] == "isotropic":
            mixture = Mixture(1.0, point["hardness"], point["dim"], point["support"], 0.8,
                              hard_fraction=point["hard_fraction"], **FULL.groups)
            limits = finite_tasks.own_constants(FULL, point)
            plain = float(replace(mixture, alpha=0.0).risk_nal)
            samples = point["support"] + FULL.query
            assert limits["nal"] == pytest.approx(float(constant_nal(mixture, samples)) / plain)
            assert limits["maml"] == pytest.approx(
                float(constant_maml(mixture, FULL.query)) / float(mixture.risk_maml))


def made(factor: float = 1.5, power: float = -1.0, **cases: float) -> pd.DataFrame:
    """Relative excesses that fall like T^power from their limits; MAML's that of NAL times a
    factor, in ``cases`` of the inputs another one."""
    rng, rows = stream(0, "tests/finite"), []
    for point in finite_tasks.points(FULL):
        limits = finite_tasks.own_constants(FULL, point)
        for tasks in FULL.tasks:
            for seed in range(20):
                nal, maml = limits["nal"] / 1000 * (tasks / 1000)**power * rng.uniform(0.9, 1.1, 2)
                rows.append({**point, "tasks": tasks, "seed": seed, "nal": nal, "gain": 0.1,
                             "maml": maml * cases.get(point["inputs"], factor)})
    return pd.DataFrame(rows)


def test_l1_flips() -> None:
    def found(table: pd.DataFrame):
        return finite_tasks.more_tasks(Record(table, {}))

    holds = found(made())
    assert (holds.word, len(holds.cases)) == ("supported", len(FULL.mixtures) * len(FULL.tasks))
    assert found(made(0.8)).word == "contradicted"
    turned = found(made(anisotropic=0.8))
    assert turned.word == "mixed"
    assert {case.split(",")[0] for case, word in turned.cases.items()
            if word == "contradicted"} == {"anisotropic"}
    assert found(made(1.0)).word in {"inconclusive", "mixed"}
    table = made()
    one = (table["tasks"] == 30) & (table["hard_fraction"] == 0.9)
    bent = found(table.assign(maml=table["maml"].where(~one, table["nal"] / 2)))
    (case,) = (case for case, word in bent.cases.items() if word == "contradicted")
    assert case.endswith("hard fraction 0.9, tasks 30")


def test_rates_see_another_slope_and_another_constant() -> None:
    def inside(table: pd.DataFrame) -> bool:
        found = finite_tasks.rates(table, FULL)
        return bool((found["low"] >= -1.1).all() and (found["high"] <= -0.9).all())

    table = made()
    assert inside(table)
    assert not inside(made(power=-0.8))
    assert not inside(made(power=-1.2))
    nal = tables.where(finite_tasks.rates(table, FULL), method="nal")
    assert all(abs(over.sigmas(1)) < 4 for over in nal["over"])
    off = finite_tasks.rates(table.assign(nal=1.05 * table["nal"]), FULL)
    assert all(abs(over.sigmas(1)) > 4 for over in tables.where(off, method="nal")["over"])
    early = table["tasks"] < FULL.rate_from  # does not count
    assert inside(table.assign(nal=table["nal"].where(~early, 1.0)))


def test_the_record_agrees_with_the_theory() -> None:
    found = finite_tasks.rates(finite_tasks.EXPERIMENT.load("full").table, FULL)
    assert len(found) == 2 * len(FULL.mixtures)
    assert ((found["low"] >= -1.1) & (found["high"] <= -0.9)).all()
    assert max(abs(over.sigmas(1)) for over in found["over"]) < 4
    assert max(over.error for over in found["over"]) < 0.05
    assert np.ptp(found["limit"]) > 1
