"""Depth, linear layers and rules on images: how models are counted and chosen, and the findings of
made tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import depth_images as depth
from companion.experiments.images import Sizes
from companion.fleets import Budget
from companion.measures.episodes import at_best
from companion.records import Record
from companion.tasks.episodes import Setting

BUDGET = Budget(steps=2, tasks=3, rate=0.01, test_tasks=4, rule_share=0.1, batch=4)
RATES = {f"{blocks} {method} {model}": (0.3, 1.0) for blocks in (1, 2)
         for method in ("MAML", "ANIL", "BOIL") for model in depth.MODELS}
TINY = depth.Config(
    {"made": Setting("made", 3, 2, 0.3, queries=4, within=True)},
    Sizes(filters=4, blocks=2, width=8, factors=(1.0,), valid_episodes=4, budget=BUDGET),
    {"MAML": tuple(depth.MODELS), "ANIL": ("Meta-SGD", "LinNet"), "BOIL": ("LinNet",)},
    fewer=(1,), ks=(2, 4), seeds=2)
MODEL = ["blocks", "method", "model"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch, patterns) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))


def measured(config: depth.Config) -> pd.DataFrame:
    return pd.DataFrame([row for point in depth.points(config)
                         for row in depth.measure(config, point, "cpu")])


def test_models_and_rules_are_counted() -> None:
    table = measured(replace(TINY, ks=(2,)))
    counted = table.drop_duplicates(MODEL).set_index(MODEL)
    plain = 9 * 4 + 9 * 16 + 2 * 8 + 3 * (4 * 4 + 1)
    assert counted.loc[(2, "MAML", "learned rate"), "own_parameters"] == 1
    assert counted.loc[(2, "MAML", "plain"), "parameters"] == plain
    assert counted.loc[(2, "MAML", "per-step rates"), "own_parameters"] == 8
    assert counted.loc[(2, "MAML", "Meta-SGD"), "own_parameters"] == plain
    assert counted.loc[(2, "ANIL", "Meta-SGD"), "own_parameters"] == 3 * 17
    assert counted.loc[(2, "MAML", "LinNet"), "parameters"] == plain - 3 * 17 + 8 * 17 + 3 * 9
    assert counted.loc[(1, "MAML", "learned rate"), "parameters"] == 9 * 4 + 8 + 3 * (4 * 16 + 1)
    assert len(table) == (7 + 1 + 2 + 1 + (2 + 1) + 2) * 2  # collapsed forms are of MAML alone
    assert set(table.loc[table["model"] == depth.COLLAPSED, "method"]) == {"MAML"}


def test_losses_and_rows_are_of_their_seeds() -> None:
    point = dict(zip(depth.ARM, ("made", 1, "MAML", "LinNet", 0.3), strict=True))
    both, alone = (depth.measure(replace(TINY, first=first, seeds=seeds), point, "cpu")
                   for first, seeds in ((2, 2), (3, 1)))
    mine = [row for row in both if row["seed"] == 3]
    assert len({row["loss"] for row in both}) == 2
    assert [row | {"loss": 0} for row in mine] == [row | {"loss": 0} for row in alone]
    assert mine[0]["loss"] == pytest.approx(alone[0]["loss"], rel=1e-5)


def test_a_fleet_that_diverges_is_lost_and_never_chosen() -> None:
    alphas = {f"1 MAML {model}": (1.0, 1e30) for model in ("plain", "LinNet")}
    table = measured(replace(TINY, deep={}, fewer=(1,), shallow=("plain", "LinNet"), seeds=1,
                             alphas=alphas, ks=(2,)))
    lost = table[table["alpha"] > 1e20]
    assert set(lost["model"]) == {"plain", "LinNet", depth.COLLAPSED}
    assert (lost["accuracy"] == 1 / 3).all()
    assert table.columns.tolist() == list(depth.measure(
        TINY, depth.points(TINY)[0], "cpu")[0])
    table.loc[table["alpha"] < 1e20, "valid"] = 0.5
    assert (at_best(table)["alpha"] < 2).all()


@pytest.fixture
def table() -> pd.DataFrame:
    """All accuracies alike, of three seeds, the second rate as good on validation classes."""
    rows = []
    for point in depth.points(replace(TINY, alphas=RATES)):
        names = [point["model"], *([depth.COLLAPSED] if point["model"] == "LinNet"
                                   and point["method"] == "MAML" else [])]
        rows += [{**point, "model": name, "loss": 1.0, "valid": 0.5, "seed": seed, "k": k,
                  "step": 0.1, "accuracy": 0.5, "error": 0.01}
                 for name in names for k in (2, 4) for seed in range(3)]
    return pd.DataFrame(rows)


FINDINGS = (depth.depth, depth.gain, depth.collapse, depth.external, depth.below)


def words(table: pd.DataFrame) -> list[str]:
    record = Record(table, {"config": {"sizes": {"blocks": 2}, "fewer": [1]}})
    return [finding(record).word for finding in FINDINGS]


def lifted(table: pd.DataFrame, by: float = 0.1, **where) -> pd.DataFrame:
    mine = (table[list(where)] == pd.Series(where)).all(axis=1)
    return table.assign(accuracy=table["accuracy"] + (by + 0.01 * table["seed"]) * mine)


def test_the_findings_flip(table: pd.DataFrame) -> None:
    yes, no, none = "supported", "contradicted", "inconclusive"
    noise = 0.01 * (table["seed"] - 1) * (table["model"] == "learned rate")
    assert words(table.assign(accuracy=0.5 + noise * table["blocks"]))[:2] == [none, none]
    maml = {"method": "MAML"}
    deep = lifted(table, **maml, model="learned rate", blocks=2)
    assert words(deep)[:2] == [yes, none]
    assert words(lifted(table, -0.2, **maml, model="learned rate", blocks=2))[0] == no
    lin = lifted(table, **maml, model="LinNet")
    assert words(lin)[1:3] == [yes, yes]
    assert words(lifted(table, -0.2, **maml, model="LinNet"))[1:3] == [no, no]
    assert words(lifted(lin, 0.3, **maml, model=depth.COLLAPSED))[1:3] == [yes, no]
    assert words(lifted(lin, 0.3, **maml, model="learned rate", blocks=1))[1] == "mixed"
    kfo = lifted(table, **maml, model="KFO")
    assert words(kfo)[3] == yes
    assert words(lifted(table, -0.2, **maml, model="KFO"))[3] == no
    for rates in depth.RATES:
        assert words(lifted(kfo, 0.3, **maml, model=rates))[3] == "mixed", rates
    below = lifted(table, method="BOIL", model="LinNet")
    assert words(below)[4] == yes
    assert words(lifted(below, 0.3, method="ANIL", model="LinNet"))[4] == "mixed"
    assert words(lifted(below, 0.3, **maml, model="learned rate"))[4] == "mixed"
    assert words(lifted(lin, 0.5, **maml, model="learned rate", k=4))[1] == yes


def test_the_rate_is_chosen_on_validation_classes(table: pd.DataFrame) -> None:
    """Test classes have no say in it."""
    other = table["alpha"] == 1.0
    chosen = table.assign(accuracy=0.5 + 0.1 * other, valid=0.5 + 0.1 * other)
    maml = chosen["method"] == "MAML"
    assert at_best(chosen[maml])["accuracy"].min() == 0.6
    opposed = chosen.assign(valid=0.5 - 0.1 * other)
    assert at_best(opposed[maml])["accuracy"].max() == 0.5
    best = at_best(chosen)
    assert (best.groupby(MODEL)["alpha"].nunique() == 1).all()


def test_the_full_rates_are_the_pilots() -> None:
    """Those of highest mean accuracy on validation classes; with thousands of features, or where
    the pilot has none as small, a smaller one."""
    record, full = depth.EXPERIMENT.load("pilot"), depth.PROFILES["full"]
    assert set(record.table["seed"]).isdisjoint(range(full.seeds))
    best = at_best(record.table).groupby(MODEL, sort=False)["alpha"].first()
    for (blocks, method, model), rate in best.items():
        if model != depth.COLLAPSED and not method.startswith(("NAL", "untrained")):
            chosen = full.alphas[f"{blocks} {method} {model}"]
            assert chosen == ((0.025,) if blocks == 1 else (rate,)), (blocks, method, model)
