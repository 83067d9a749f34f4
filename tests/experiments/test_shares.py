"""What landscape and step give: the sum of the parts, families whose answer is known, B4's word."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion.experiments import shares
from companion.records import Record
from companion.theory import depth

TINY = replace(shares.PROFILES["quick"], sources=(), tasks=200, seeds=2)


def of(family: str) -> pd.DataFrame:
    return pd.DataFrame(shares.measure(TINY, {"family": family}, "cpu"))


def by_what(table: pd.DataFrame) -> pd.DataFrame:
    return shares.gains(table).pivot(index="family", columns="what", values="value")


def test_points_are_every_family() -> None:
    names = [point["family"] for point in shares.points(shares.PROFILES["full"])]
    assert len(set(names)) == len(names) == 6 + 3 * 3
    assert "omniglot, one group" in names


def test_the_parts_are_the_whole_gain() -> None:
    table = of("running example")
    parts = by_what(table).loc["running example"]
    whole = np.log(table["nal_rate"] / table["maml_full"]).mean()
    assert parts.sum() == pytest.approx(whole, rel=1e-9)
    assert (parts > 0.01).all()
    assert (table["nal_rate"] < table["before"]).all()


def test_one_kind_of_tasks_has_no_landscape_and_gains_by_p_star() -> None:
    variances = np.geomspace(0.1, 3, 10) ** 2
    for family, spread in (("spread inputs", np.full(10, 0.1)),
                           ("inputs and tasks", variances / variances.sum())):
        table, cov = of(family), np.diag(variances)
        best = depth.best_preconditioner(cov, np.diag(spread), TINY.support)
        rest = np.eye(10) - best @ cov
        inner = best.T @ cov @ best
        q = rest.T @ cov @ rest + (cov @ inner @ cov + np.trace(cov @ inner) * cov) / TINY.support
        floor = np.trace(q @ np.diag(spread)) / 2
        assert table["nal_full"].mean() == pytest.approx(floor, rel=0.1)
        assert abs(by_what(table).loc[family, "landscape"]) < 0.02
        assert by_what(table).loc[family, "step"] > 0.1


def test_equal_curvature_has_no_landscape() -> None:
    assert abs(by_what(of("equal curvature")).loc["equal curvature", "landscape"]) < 0.02


def test_new_tasks_are_of_the_same_pair_and_group() -> None:
    config = replace(TINY, sources=("glyphs",), tasks=20)
    drawn = shares._images(config, "glyphs", "one pair", np.random.default_rng(0), 40)
    train, test = drawn.every_other(0), drawn.every_other(1)
    for half in (train, test):  # easy, hard, easy, hard
        assert len(half.optima) == 20
        assert np.ptp(half.optima[1::2], axis=0).max() == 0 < np.ptp(half.optima[::2], axis=0).min()
    assert (train.optima[1] == test.optima[1]).all()


def test_b4_flips() -> None:
    table = pd.DataFrame([
        {"family": family, "seed": seed, "nal_rate": 1.0, "nal_full": 0.5 + 0.01 * seed,
         "maml_rate": 0.9, "maml_full": 0.4}
        for family in ("glyphs, one pair", "spread inputs") for seed in range(3)])

    def word(rows: pd.DataFrame) -> str:
        return shares.step_on_images(Record(rows, {})).word

    images = table["family"].str.contains(",")
    assert word(table) == "supported"
    assert word(table.assign(maml_rate=table["maml_rate"] - 0.6 * images)) == "contradicted"
    assert word(table.assign(maml_rate=table["maml_rate"] - 0.6 * ~images)) == "supported"
    assert word(table.assign(maml_rate=table["nal_full"] + 0.1 * (table["seed"] - 1))
                ) == "inconclusive"
