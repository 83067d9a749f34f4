"""MAML against NAL on images: what the rows are of, and L5 and L6 from made tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import landscape_images as landscape
from companion.experiments.images import Sizes
from companion.fleets import Budget
from companion.records import Record
from companion.tasks.episodes import Setting

BUDGET = Budget(steps=2, tasks=3, rate=0.01, test_tasks=4, rule_share=0.1, batch=4)
TINY = landscape.Config(
    {"made": Setting("made", 3, 2, 0.1, queries=4, within=True)},
    Sizes(filters=4, blocks=1, inner=1, valid_episodes=4, budget=BUDGET), packed=1, longer=3,
    seeds=2, ks=(1, 2))
POINT = {"source": "made", "method": "MAML", "inner": 1, "trained": "packed", "fraction": 0.5}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch, patterns) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))


def environments(point: dict) -> tuple[str, ...]:
    """What a point is tested in."""
    known = landscape.ENVIRONMENTS
    return (point["trained"],) if point["trained"] in known else known


def test_rows_are_of_the_environment_that_they_were_trained_in() -> None:
    tables = [landscape.measure(TINY, point, "cpu") for point in landscape.points(TINY)
              if point["fraction"] != 1]
    for rows, point in zip(tables, (p for p in landscape.points(TINY) if p["fraction"] != 1),
                           strict=True):
        assert {tuple(row[name] for name in landscape.TEST) for row in rows} == {
            (environment, episodes, k, rate) for environment in environments(point)
            for episodes in ("easy", "hard") for k in (1, 2) for rate in ("training", "own")}
        assert all(row[name] == point[name] for row in rows for name in landscape.ARM)
        assert len(rows) == 2 * 8 * len(environments(point))
        assert all((row["loss"] is None) == (point["method"] == "untrained") for row in rows)
    assert len({tuple(row) for rows in tables for row in rows}) == 1


def test_losses_and_rows_are_of_their_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    def rows(*seeds: int) -> list[dict]:
        monkeypatch.setattr(landscape, "range", lambda count: seeds, raising=False)
        return landscape.measure(TINY, POINT, "cpu")

    both, alone = rows(7, 3), rows(3)
    assert {row["seed"] for row in both} == {3, 7}
    assert len({row["loss"] for row in both}) == 2
    for row, same in zip((row for row in both if row["seed"] == 3), alone, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-5)
        assert row == same | {"loss": row["loss"]}


def test_a_fleet_that_diverges_is_lost() -> None:
    wild = replace(TINY, settings={"made": replace(TINY.settings["made"], alpha=1e30)})
    rows, usual = (landscape.measure(config, POINT, "cpu") for config in (wild, TINY))
    assert all((row["accuracy"], row["loss"]) == (0.0, None) for row in rows)
    names = (*landscape.ARM, *landscape.TEST, "seed")
    assert [[row[name] for name in names] for row in rows] == [
        [row[name] for name in names] for row in usual]
    assert list(rows[0]) == list(usual[0])


@pytest.fixture
def table() -> pd.DataFrame:
    """All accuracies alike, of three seeds."""
    return pd.DataFrame([
        {**point, "environment": environment, "episodes": episodes, "loss": 1.0, "seed": seed,
         "k": k, "rate": rate, "step": 0.1, "accuracy": 0.5 + 0.1 * (rate == "training"),
         "error": 0.01}
        for point in landscape.points(TINY) for environment in environments(point)
        for episodes in ("easy", "hard") for k in (1, 2) for rate in ("training", "own")
        for seed in range(3)])


def words(table: pd.DataFrame) -> tuple[str, str]:
    record = Record(table, {"config": {"base": 0.5}})
    return landscape.packed_minus_spread(record).word, landscape.more_hard_tasks(record).word


def test_l5_and_l6_flip(table: pd.DataFrame) -> None:
    mine = ((table["method"] == "MAML") & (table["episodes"] == "hard") & (table["inner"] == 1)
            & (table["rate"] == "own"))
    packed, once = table["environment"] == "packed", table["k"] == 1
    lift, rise = 0.1 + 0.01 * table["seed"], (0.2 + 0.01 * table["seed"]) * table["fraction"]

    def moved(where, by) -> pd.DataFrame:
        return table.assign(accuracy=table["accuracy"] + by * where)

    none, yes, no = "inconclusive", "supported", "contradicted"
    noise = 0.01 * (table["seed"] - 1)
    assert words(moved(mine & packed, noise)) == (none, none)
    assert words(moved(mine & packed, lift)) == (yes, none)
    assert words(moved(mine & packed, -lift)) == (no, none)
    assert words(moved(mine & packed, lift - 2 * lift * once)) == ("mixed", none)
    assert words(moved(mine, rise)) == (none, yes)
    assert words(moved(mine, -rise)) == (none, no)
    assert words(moved(mine, rise - 2 * rise * once)) == (none, "mixed")
    assert words(moved(mine & once, rise)) == (none, none)
    assert words(moved(~mine & packed, lift))[1] == none


def test_numbers_of_made_tables(table: pd.DataFrame) -> None:
    mine = (table["method"] == "MAML") & (table["rate"] == "own") & (table["inner"] == 1)
    packed = mine & (table["environment"] == "packed")
    better = table.assign(accuracy=table["accuracy"] + (0.1 + 0.01 * table["seed"]) * packed)
    found = landscape.differences(better, 0.5)
    assert found["value"].tolist() == pytest.approx([0.11, 0.11])
    assert found["k"].tolist() == [1, 2]
    rising = table.assign(accuracy=table["accuracy"] + 0.2 * table["fraction"] * mine
                          + 0.01 * table["seed"] * table["fraction"] * mine)
    assert landscape.slopes(rising)["value"].tolist() == pytest.approx([0.21] * 4)
    by_nal = landscape.slopes(rising, "NAL-global")
    assert by_nal["value"].tolist() == pytest.approx([0.0] * 4, abs=1e-12)
