"""Linear layers and rules on images: how models are counted and chosen, and D2 and D3 from made
tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import depth_images as depth
from companion.experiments.images import Sizes
from companion.fleets import Budget
from companion.records import Record
from companion.tasks.episodes import Setting

BUDGET = Budget(steps=2, tasks=3, rate=0.01, test_tasks=4, rule_share=0.1, batch=4)
TINY = depth.Config(
    {"made": Setting("made", 3, 2, 0.1, queries=4, within=True)},
    Sizes(filters=4, blocks=1, inner=2, valid_episodes=4, budget=BUDGET),
    alphas=(0.3, 1.0), blocks=(1, 2), ks=(2, 4), seeds=2)
MODEL = ["blocks", "method", "model"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch, patterns) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))


def measured(config: depth.Config) -> pd.DataFrame:
    return pd.DataFrame([row for point in depth.points(config)
                         for row in depth.measure(config, point, "cpu")])


def test_models_and_rules_are_counted() -> None:
    table = measured(replace(TINY, blocks=(1,), alphas=(0.3,), ks=(2,)))
    counted = table.drop_duplicates(MODEL[1:]).set_index(MODEL[1:])
    plain = 9 * 4 + 8 + 3 * (4 * 16 + 1)
    assert counted.loc[("MAML", "learned rate"), "own_parameters"] == 1
    assert counted.loc[("MAML", "plain"), "parameters"] == plain
    assert counted.loc[("MAML", "Meta-SGD"), "own_parameters"] == plain
    assert counted.loc[("ANIL", "Meta-SGD"), "own_parameters"] == 3 * (4 * 16 + 1)
    assert counted.loc[("MAML", "LinNet"), "parameters"] == 9 * 4 + 8 + 64 * 65 + 3 * 65
    assert len(table) == (2 * (6 + 1) + 2) * 2 * 2
    assert depth.COLLAPSED in set(table["model"])


def test_losses_and_rows_are_of_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    point = dict(zip(depth.ARM, ("made", 1, "MAML", "LinNet", 0.3), strict=True))

    def rows(*seeds: int) -> list[dict]:
        monkeypatch.setattr(depth, "range", lambda count: seeds, raising=False)
        return depth.measure(TINY, point, "cpu")

    both, alone = rows(7, 3), rows(3)
    mine = [row for row in both if row["seed"] == 3]
    assert len({row["loss"] for row in both}) == 2
    assert [row | {"loss": 0} for row in mine] == [row | {"loss": 0} for row in alone]
    assert mine[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


def test_a_fleet_that_diverges_is_lost_and_never_chosen() -> None:
    table = measured(replace(TINY, methods=("MAML",), models=("plain", "LinNet"), blocks=(1,),
                             alphas=(1.0, 1e30), seeds=1, ks=(2,)))
    lost = table[table["alpha"] > 1e20]
    assert set(lost["model"]) == {"plain", "LinNet", depth.COLLAPSED}
    assert (lost["accuracy"] == 0).all()
    assert (depth.at_best(table)["alpha"] < 2).all()


@pytest.fixture
def table() -> pd.DataFrame:
    """All accuracies alike, of three seeds, the second rate as good on validation classes."""
    rows = []
    for point in depth.points(TINY):
        names = [point["model"], *([depth.COLLAPSED] if point["model"] == "LinNet" else [])]
        rows += [{**point, "model": name, "loss": 1.0, "valid": 0.5, "seed": seed, "k": k,
                  "rate": rate, "step": 0.1, "accuracy": 0.5, "error": 0.01}
                 for name in names for k in (2, 4) for rate in ("training", "own")
                 for seed in range(3)]
    return pd.DataFrame(rows)


def words(table: pd.DataFrame) -> list[str]:
    record = Record(table, {})
    return [finding(record).word for finding in (depth.gain, depth.collapse, depth.external)]


def test_d2_and_d3_flip(table: pd.DataFrame) -> None:
    yes, no, none = "supported", "contradicted", "inconclusive"

    def lifted(table: pd.DataFrame, model: str, by=0.1, where=True) -> pd.DataFrame:
        mine = (table["model"] == model) & where
        return table.assign(accuracy=table["accuracy"] + (by + 0.01 * table["seed"]) * mine)

    noisy = table.assign(accuracy=0.5 + 0.01 * (table["seed"] - 1) * (table["model"] == "plain")
                         - 0.01 * (table["seed"] - 1) * (table["model"] == "KFO"))
    assert words(noisy)[::2] == [none, none]
    one = table["blocks"] == 1
    lin, kfo = lifted(table, "LinNet"), lifted(table, "KFO")
    assert words(lin)[:2] == [yes, yes]
    assert words(kfo)[2] == yes
    assert words(lifted(table, "LinNet", -0.2))[:2] == [no, no]
    assert words(lifted(table, "KFO", -0.2))[2] == no
    assert words(lifted(lifted(table, "KFO", 0.1, one), "KFO", -0.2, ~one))[2] == "mixed"
    assert words(lifted(lin, depth.COLLAPSED, 0.3))[:2] == [yes, no]
    assert words(lifted(lin, "plain", 0.3, one))[:2] == ["mixed", yes]
    aside = (table["k"] == 4) | (table["rate"] == "training")
    assert words(lifted(lin, "plain", 0.5, aside))[:2] == [yes, yes]


def test_the_rate_is_chosen_on_validation_classes(table: pd.DataFrame) -> None:
    """Test classes have no say in it."""
    other = table["alpha"] == 1.0
    chosen = table.assign(accuracy=0.5 + 0.1 * other, valid=0.5 + 0.1 * other)
    maml = chosen["method"] == "MAML"
    assert depth.at_best(chosen[maml])["accuracy"].min() == 0.6
    opposed = chosen.assign(valid=0.5 - 0.1 * other)
    assert depth.at_best(opposed[maml])["accuracy"].max() == 0.5
    best = depth.at_best(chosen)
    assert (best.groupby(MODEL)["alpha"].nunique() == 1).all()
