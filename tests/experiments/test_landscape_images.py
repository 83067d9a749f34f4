"""MAML against NAL on images: what the rows are of, and L5 and L6 from made tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import landscape_images as landscape
from companion.experiments.images import Sizes
from companion.experiments.landscape_images import Trial
from companion.fleets import Budget
from companion.measures.episodes import ENVIRONMENTS, differences, scatter, slopes
from companion.records import Record
from companion.tasks.episodes import Setting

BUDGET = Budget(steps=2, tasks=3, rate=0.01, test_tasks=4, rule_share=0.1, batch=4)
TINY = landscape.Config(
    {"made": Setting("made", 3, 2, 0.1, queries=4, within=True)},
    Sizes(filters=4, blocks=1, factors=(1.0,), valid_episodes=4, budget=BUDGET),
    {"MAML": Trial("MAML", 1, (0.1,), (0.0, 0.5, 1.0)),
     "MAML, 3 steps": Trial("MAML", 3, (0.1, 0.2), (0.5,)),
     "NAL-global": Trial("NAL-global", 0, (0.1,), (0.0, 0.5, 1.0)),
     "untrained": Trial("untrained", 0, (0.1,), ())}, packed=1, seeds=2, ks=(1, 2))
POINT = {"source": "made", "arm": "MAML", "alpha": 0.1, "trained": "packed", "fraction": 0.5}
TEST = ("environment", "episodes", "k")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch, patterns) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))


def environments(point: dict) -> tuple[str, ...]:
    """What a point is tested in."""
    known = ENVIRONMENTS
    return (point["trained"],) if point["trained"] in known else known


def test_points_are_one_an_arm_rate_environment_and_fraction() -> None:
    found = [tuple(point.values())[1:] for point in landscape.points(TINY)]
    assert found == [
        *(("MAML", 0.1, *each) for each in (("easy", 0.0), ("packed", 0.5), ("spread", 0.5),
                                            ("packed", 1.0), ("spread", 1.0))),
        *(("MAML, 3 steps", rate, *each) for rate in (0.1, 0.2)
          for each in (("packed", 0.5), ("spread", 0.5))),
        *(("NAL-global", 0.1, *each) for each in (("easy", 0.0), ("packed", 0.5), ("spread", 0.5),
                                                  ("packed", 1.0), ("spread", 1.0))),
        ("untrained", 0.1, "nothing", 0.0)]


def test_rows_are_of_the_environment_that_they_were_trained_in() -> None:
    points = [point for point in landscape.points(TINY) if point["fraction"] != 1]
    tables = [landscape.measure(TINY, point, "cpu") for point in points]
    for rows, point in zip(tables, points, strict=True):
        assert {tuple(row[name] for name in TEST) for row in rows} == {
            (environment, episodes, k) for environment in environments(point)
            for episodes in ("easy", "hard") for k in (1, 2)}
        assert all(row[name] == point[name] for row in rows for name in landscape.POINT)
        assert len(rows) == 2 * 4 * len(environments(point))
        assert all((row["loss"] is None) == (point["arm"] == "untrained") for row in rows)
    assert len({tuple(row) for rows in tables for row in rows}) == 1


def test_losses_and_rows_are_of_their_seeds() -> None:
    both, alone = (landscape.measure(replace(TINY, first=first, seeds=seeds), POINT, "cpu")
                   for first, seeds in ((2, 2), (3, 1)))
    assert {row["seed"] for row in both} == {2, 3}
    assert len({row["loss"] for row in both}) == 2
    for row, same in zip((row for row in both if row["seed"] == 3), alone, strict=True):
        assert row["loss"] == pytest.approx(same["loss"], rel=1e-5)
        assert row == same | {"loss": row["loss"]}


def test_every_arm_is_tested_at_the_same_rates() -> None:
    config = replace(TINY, sizes=replace(TINY.sizes, factors=(0.5, 2.0)))
    for point in landscape.points(config):
        assert {row["step"] for row in landscape.measure(config, point, "cpu")} <= {0.05, 0.2}


def test_a_fleet_that_diverges_is_lost() -> None:
    wild = POINT | {"alpha": 1e30}
    rows, usual = (landscape.measure(TINY, point, "cpu") for point in (wild, POINT))
    assert all((row["accuracy"], row["loss"]) == (1 / 3, None) for row in rows)
    names = (*TEST, "seed")
    assert {tuple(row[name] for name in names) for row in rows} == {
        tuple(row[name] for name in names) for row in usual}
    assert list(rows[0]) == list(usual[0])


@pytest.fixture
def table() -> pd.DataFrame:
    """All accuracies alike, of three seeds."""
    config = replace(TINY, trials=TINY.trials | {
        "MAML, 3 steps": replace_alphas(TINY.trials["MAML, 3 steps"])})
    return pd.DataFrame([
        {**point, "environment": environment, "episodes": episodes, "loss": 1.0, "valid": 0.5,
         "seed": seed, "k": k, "step": 0.1, "accuracy": 0.5, "error": 0.01}
        for point in landscape.points(config) for environment in environments(point)
        for episodes in ("easy", "hard") for k in (1, 2) for seed in range(3)])


def replace_alphas(trial: Trial) -> Trial:
    """The trial at its first rate alone, as in a full run."""
    return trial._replace(alphas=trial.alphas[:1])


def words(table: pd.DataFrame) -> tuple[str, str]:
    record = Record(table, {"config": {"base": 0.5}})
    return landscape.packed_minus_spread(record).word, landscape.more_hard_tasks(record).word


def test_l5_and_l6_flip(table: pd.DataFrame) -> None:
    adaptive = table["arm"].str.startswith("MAML") & (table["episodes"] == "hard")
    mine, once = adaptive & (table["arm"] == "MAML"), table["k"] == 1
    packed = (table["environment"] == "packed") & (table["fraction"] == 0.5)
    lift, rise = 0.1 + 0.01 * table["seed"], (0.2 + 0.01 * table["seed"]) * table["fraction"]

    def moved(where, by) -> pd.DataFrame:
        return table.assign(accuracy=table["accuracy"] + by * where)

    none, yes, no = "inconclusive", "supported", "contradicted"
    noise = 0.01 * (table["seed"] - 1)
    assert words(moved(adaptive & packed, noise)) == (none, none)
    assert words(moved(adaptive & packed, lift))[0] == yes
    assert words(moved(mine & packed, lift))[0] == none  # trained for longer it does not show
    assert words(moved(adaptive & packed, -lift))[0] == no
    assert words(moved(adaptive & packed, lift - 2 * lift * once))[0] == "mixed"
    assert words(moved(mine, rise)) == (none, yes)
    assert words(moved(mine, -rise)) == (none, no)
    assert words(moved(mine, rise - 2 * rise * once)) == (none, "mixed")
    assert words(moved(mine & once, rise)) == (none, none)
    assert words(moved(~adaptive & packed, lift))[1] == none


def test_numbers_of_made_tables(table: pd.DataFrame) -> None:
    mine = table["arm"] == "MAML"
    packed = mine & (table["environment"] == "packed")
    hard = table["episodes"] == "hard"
    better = table.assign(accuracy=table["accuracy"] + (0.1 + 0.01 * table["seed"])
                          * packed * (1 + hard))
    found = differences(better, 0.5)
    assert found["value"].tolist() == pytest.approx([0.22, 0.22, 0, 0])
    assert list(zip(found["arm"], found["k"], strict=True)) == [
        (arm, k) for arm in ("MAML", "MAML, 3 steps") for k in (1, 2)]
    assert differences(better, 0.5, "easy")["value"].tolist() == pytest.approx(
        [0.11, 0.11, 0, 0])
    rising = table.assign(accuracy=table["accuracy"] + 0.2 * table["fraction"] * mine * hard
                          + 0.01 * table["seed"] * table["fraction"] * mine * hard)
    assert slopes(rising)["value"].tolist() == pytest.approx([0.21] * 4)
    by_nal = slopes(rising, "NAL-global")
    assert by_nal["value"].tolist() == pytest.approx([0.0] * 4, abs=1e-12)


def test_scatter_is_of_what_was_run_twice(table: pd.DataFrame) -> None:
    keys = [*landscape.POINT, *TEST]
    spread = table.assign(accuracy=0.5 + 0.1 * table["seed"])
    few = spread[(spread["arm"] == "MAML") & (spread["seed"] < 2)]
    few = few.assign(accuracy=few["accuracy"] + 0.03 * (2 * few["seed"] - 1))
    found = scatter(spread, few, keys)
    assert len(found) == len(few) / 2
    assert found["apart"].tolist() == pytest.approx([0.03] * len(found))
    assert found["over_seeds"].tolist() == pytest.approx([0.1 / 2**0.5] * len(found))
    assert (found["again"] - found["accuracy"]).abs().max() < 1e-12
