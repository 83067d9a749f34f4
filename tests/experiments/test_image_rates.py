"""Freely learned rates: which outer rate each arm gets, and the findings of made tables."""

from dataclasses import replace

import pandas as pd
import pytest

from companion.experiments import depth_images, image_rates
from companion.experiments.images import Sizes
from companion.fleets import Budget
from companion.records import Record
from companion.tasks.episodes import Setting

TINY = image_rates.Config(
    depth_images.Config({"made": Setting("made", 3, 2, 0.3, queries=4, within=True)},
                        Sizes(filters=4, blocks=2, width=8, factors=(1.0,), valid_episodes=4,
                              budget=Budget(steps=3, tasks=3, rate=0.01, test_tasks=4,
                                            rule_share=1e-6, batch=4)), ks=(1,), seeds=2),
    {"2 LinNet": (0.3,), "2 KFO": (0.3,), "2 learned rate": (0.3, 1.0), "2 per-step rates": (0.3,),
     "2 Meta-SGD": (0.3,)})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch: pytest.MonkeyPatch, patterns) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))


def test_only_rates_learn_at_the_weights_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = {}

    def spy(config: depth_images.Config, point: dict, device: str) -> list:
        shares.setdefault(point["model"], set()).add(config.sizes.budget.rule_share)
        return []

    with monkeypatch.context() as patch:
        patch.setattr(depth_images, "measure", spy)
        for point in image_rates.points(TINY):
            image_rates.measure(TINY, point, "cpu")
    assert shares == {"LinNet": {1e-6}, "KFO": {1e-6}} | {
        rates: {1.0} for rates in depth_images.RATES}
    point = dict(zip(depth_images.ARM, ("made", 2, "MAML", "Meta-SGD", 0.3), strict=True))
    free, bound = (image_rates.measure(replace(TINY, free=kinds), point, "cpu")
                   for kinds in (depth_images.RATES, ()))
    assert [row["loss"] for row in free] != [row["loss"] for row in bound]


def words(table: pd.DataFrame) -> list[str]:
    return [finding(Record(table, {})).word for finding in image_rates.EXPERIMENT.findings.values()]


def test_the_findings_flip() -> None:
    scatter = {"learned rate": 0.01, "per-step rates": 0.01, "Meta-SGD": 0.01}
    rows = [{**point, "seed": seed, "k": 1, "valid": 0.5,
             "accuracy": 0.5 + scatter.get(point["model"], 0) * (seed - 1) * point["blocks"]}
            for point in image_rates.points(TINY) for seed in range(3)]
    table, none = pd.DataFrame(rows), "inconclusive"

    def lifted(by: float, **where: object) -> pd.DataFrame:
        mine = (table[list(where)] == pd.Series(where)).all(axis=1)
        return table.assign(accuracy=table["accuracy"] + by * mine)

    assert words(table) == [none] * 2
    for i, model in enumerate(("LinNet", "KFO")):
        assert words(lifted(0.1, model=model))[i] == "supported"
        assert words(lifted(-0.1, model=model))[i] == "contradicted"
        assert words(lifted(0.1, model=model))[1 - i] == none
    better = lifted(0.1, model="Meta-SGD").assign(
        accuracy=lambda rows: rows["accuracy"] + 0.05 * (rows["model"] == "LinNet"))
    assert words(better)[0] == "mixed"
    chosen = lifted(0.3, model="learned rate", alpha=1.0)  # at another start rate, and not chosen
    assert words(chosen.assign(valid=0.5 - 0.1 * (chosen["alpha"] == 1.0))) == [none] * 2


def test_the_full_rates_include_the_pilots() -> None:
    full, pilot = image_rates.PROFILES["full"], depth_images.PROFILES["full"].alphas
    for arm, rates in full.arms.items():
        blocks, _, model = arm.partition(" ")
        assert set(pilot[f"{blocks} MAML {model}"]) <= set(rates)
    images = full.images
    seeds = range(images.first, images.first + images.seeds)
    assert set(seeds).isdisjoint(range(depth_images.PROFILES["full"].seeds))
