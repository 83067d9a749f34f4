"""Both trained at equal hardness: rows against the exact risks, and L2 from made tables."""

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from companion.experiments import equal_hardness
from companion.fleets import Budget
from companion.records import Record

FULL = equal_hardness.PROFILES["full"]
SHORT = replace(FULL, seeds=6, budget=Budget(steps=400, tasks=10, rate=2.0, query=20))


@pytest.mark.parametrize("point", equal_hardness.points(FULL), ids=lambda point: point["case"])
def test_both_come_near_their_exact_risks(point: dict) -> None:
    mixture = equal_hardness.mixture_of(SHORT, point)
    equal = {"equal curvature": True, "equal step": True, "control": False}[point["case"]]
    assert (abs(float(mixture.ratio) - 1) < 1e-12) == equal
    assert (float(mixture.rho_easy) > float(mixture.rho_hard)) == (point["hardness"] < 1)
    rows = equal_hardness.measure(SHORT, point, "cpu")
    assert [row["seed"] for row in rows] == list(range(6))
    for name in ("nal", "maml"):
        exact = float(getattr(mixture, f"risk_{name}"))
        found = np.array([row[name] for row in rows])
        assert abs(found.mean() / exact - 1) < 0.06  # the start is 80 times and more above it
    assert min(row["maml"] for row in rows) >= float(mixture.risk_maml) * (1 - 1e-6)


@pytest.fixture
def table(around: Callable[..., np.ndarray]) -> Callable[..., Record]:
    def made(**ratios: float) -> Record:
        cases = {"equal curvature": 1.0, "equal step": 1.0, "control": 1.1} | ratios
        rows = [{"case": case, "seed": seed, "nal": ratio * risk, "maml": other}
                for case, ratio in cases.items()
                for seed, (risk, other) in enumerate(zip(around(0.3), around(0.30001),
                                                         strict=True))]
        return Record(pd.DataFrame(rows), {"config": asdict(FULL)})

    return made


def test_l2_flips(table: Callable[..., Record]) -> None:
    found = equal_hardness.trained(table())
    assert (found.word, found.detectable) == ("supported", None)
    assert found.cases == {"equal curvature": "supported", "equal step": "supported"}
    for case in found.cases:
        away = equal_hardness.trained(table(**{case: 1.05}))
        assert (away.word, away.cases[case]) == ("mixed", "contradicted")
        assert equal_hardness.trained(table(**{case: 0.95})).cases[case] == "contradicted"
        near = equal_hardness.trained(table(**{case: 1.01}))
        assert near.cases[case] == "inconclusive"
    both = {"equal curvature": 1.05, "equal step": 1.05}
    assert equal_hardness.trained(table(**both)).word == "contradicted"


@pytest.mark.parametrize("control", [1.0, 1.01, 0.8])
def test_without_its_control_it_settles_nothing(table: Callable[..., Record],
                                                control: float) -> None:
    found = equal_hardness.trained(table(control=control))
    assert found.word == "inconclusive"
    assert "control is not above" in found.what
    assert found.detectable == found.interval.detectable > 0


def test_the_band_is_the_config_s(table: Callable[..., Record]) -> None:
    record = table(**{"equal step": 1.05})
    wide = asdict(FULL) | {"band": [0.9, 1.07]}
    assert equal_hardness.trained(Record(record.table, {"config": wide})).word == "supported"
