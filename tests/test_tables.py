"""Contrasts over seeds against oracles of scipy and counting, and the words that intervals earn."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from companion import tables
from companion.evaluation import Interval
from companion.streams import stream
from companion.tables import judge, together, word


@pytest.fixture
def table() -> pd.DataFrame:
    """Two kinds, three models, six seeds; a seed shifts all models alike."""
    rng = stream(0, "tests/tables")
    shift = rng.normal(0, 5, 6)
    mean = {"plain": 20.0, "LinNet": 17.0, "KFO": 18.0}
    return pd.DataFrame([
        {"kind": kind, "model": model, "alpha": alpha, "seed": seed,
         "valid": abs(alpha - best), "loss": mean[model] + shift[seed] + rng.normal(0, 0.3)}
        for kind, best in (("a", 0.1), ("b", 0.4)) for model in mean for alpha in (0.1, 0.4)
        for seed in (5, 3, 4, 0, 1, 2)])


def test_rows_by_what_they_are(table: pd.DataFrame) -> None:
    rows = tables.where(table, kind="a", model=("plain", "KFO"))
    assert set(rows["model"]) == {"plain", "KFO"}
    assert len(rows) == 24
    values = tables.by_seed(table, "loss", kind="a", model="KFO", alpha=0.1)
    by_hand = [table[(table.kind == "a") & (table.model == "KFO") & (table.alpha == 0.1)
                     & (table.seed == seed)]["loss"].item() for seed in range(6)]
    assert values.tolist() == by_hand


@pytest.mark.parametrize("named", [{"kind": "a", "model": "KFO"}, {"kind": "none"}])
def test_one_row_a_seed(table: pd.DataFrame, named: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="must name one row a seed"):
        tables.by_seed(table, "loss", **named)


def test_a_difference_is_students_paired_interval(table: pd.DataFrame) -> None:
    top, bottom = (tables.by_seed(table, "loss", kind="a", model=name, alpha=0.1)
                   for name in ("plain", "LinNet"))
    expected = stats.ttest_rel(top, bottom).confidence_interval(0.95)
    found = tables.difference(top, bottom)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.high - found.low < 2  # the seeds' common shift, of 5, has gone


def test_a_ratio_of_means_resamples_pairs(table: pd.DataFrame) -> None:
    top, bottom = (tables.by_seed(table, "loss", kind="a", model=name, alpha=0.1)
                   for name in ("plain", "LinNet"))
    found = tables.ratio(top, bottom)
    expected = stats.bootstrap((top, bottom), lambda a, b, axis: a.mean(axis) / b.mean(axis),
                               paired=True, method="percentile", n_resamples=20_000,
                               rng=np.random.default_rng(1)).confidence_interval
    assert found.value == pytest.approx(top.mean() / bottom.mean())
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_contrast_puts_every_group_beside_its_baseline(table: pd.DataFrame) -> None:
    found = tables.contrast(table, ["kind", "model", "alpha"], "loss", {"model": "plain"},
                            tables.difference)
    assert len(found) == 2 * 2 * 2  # plain is nobody's opponent but its own
    row = tables.where(found, kind="b", model="KFO", alpha=0.4).iloc[0]
    pair = [tables.by_seed(table, "loss", kind="b", model=name, alpha=0.4)
            for name in ("KFO", "plain")]
    assert row["value"] == pytest.approx(np.mean(pair[0] - pair[1]))
    swapped = tables.contrast(table, ["kind", "model", "alpha"], "loss", {"model": "plain"},
                              tables.difference, swap=True)
    np.testing.assert_allclose(swapped["value"], -found["value"])
    assert tables.contrast(table, ["kind", "model", "alpha"], "loss", {"model": "none"}).empty


def test_contrast_with_another_column(table: pd.DataFrame) -> None:
    half = table.assign(half=table["loss"] / 2)
    found = tables.contrast(half, ["kind", "model", "alpha"], "loss", "half")
    np.testing.assert_allclose(found[["value", "low", "high"]], 2)
    assert len(found) == 12


def test_best_takes_the_choice_of_least_mean(table: pd.DataFrame) -> None:
    picked = tables.best(table, ["kind", "model"])
    assert picked.groupby("kind")["alpha"].unique().map(list).to_dict() == {"a": [0.1], "b": [0.4]}
    most = tables.best(table, ["kind", "model"], most=True)
    assert most.groupby("kind")["alpha"].unique().map(list).to_dict() == {"a": [0.4], "b": [0.1]}
    assert len(picked) == len(table) / 2


def test_means_are_students(table: pd.DataFrame) -> None:
    row = tables.means(table, ["kind", "model", "alpha"], "loss").iloc[0]
    values = tables.by_seed(table, "loss", kind="a", model="plain", alpha=0.1)
    low, high = stats.t.interval(0.95, 5, values.mean(), stats.sem(values))
    assert (row["value"], row["low"], row["high"]) == pytest.approx((values.mean(), low, high))


@pytest.mark.parametrize(("low", "high", "above", "inside"), [
    (1.1, 1.3, "supported", "contradicted"), (0.5, 0.9, "contradicted", "contradicted"),
    (0.99, 1.01, "inconclusive", "supported"), (0.9, 1.01, "inconclusive", "inconclusive"),
    (1.0, 1.01, "inconclusive", "supported"), (0.98, 1.02, "inconclusive", "supported"),
])
def test_the_word_of_an_interval(low: float, high: float, above: str, inside: str) -> None:
    interval = Interval((low + high) / 2, low, high)
    assert word(interval, above=1) == above
    assert word(interval, inside=(0.98, 1.02)) == inside


@pytest.mark.parametrize(("words", "part"), [
    (["supported"], "supported"), (["supported"] * 3, "supported"),
    (["contradicted"] * 2, "contradicted"), (["supported", "contradicted"], "mixed"),
    (["supported", "inconclusive", "contradicted"], "mixed"),
    (["supported", "inconclusive"], "inconclusive"),
    (["contradicted", "inconclusive"], "inconclusive"), (["inconclusive"] * 2, "inconclusive"),
])
def test_the_words_of_cases_together(words: list[str], part: str) -> None:
    assert together(words) == together(reversed(words)) == part


def intervals(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame([{"kind": kind, "value": (low + high) / 2, "low": low, "high": high}
                         for kind, low, high in rows])


def test_the_weakest_case_gives_the_number() -> None:
    found = judge(intervals(("a", 1.2, 1.4), ("b", 1.1, 1.9), ("c", 1.3, 1.31)), "gain", ["kind"],
                  above=1)
    assert (found.word, found.detectable) == ("supported", None)
    assert found.interval == Interval(1.5, 1.1, 1.9)
    assert found.what == "gain, weakest case (b)"
    assert found.cases == dict.fromkeys("abc", "supported")


def test_inside_a_range_the_weakest_is_nearest_to_an_end() -> None:
    found = judge(intervals(("a", 0.99, 1.019), ("b", 0.985, 1.0)), "ratio", ["kind"],
                  inside=(0.98, 1.02))
    assert (found.word, found.interval.high) == ("supported", 1.019)


def test_a_part_that_is_mixed_names_its_cases() -> None:
    found = judge(intervals(("a", 1.2, 1.4), ("b", 0.6, 0.8)), "gain", ["kind"], above=1)
    assert (found.word, found.interval.low) == ("mixed", 0.6)
    assert found.cases == {"a": "supported", "b": "contradicted"}
    assert found.detectable is None


def test_an_inconclusive_part_has_power_of_80_percent_at_its_detectable_effect() -> None:
    """By counting: of 4,000 experiments with that true effect, 80 % have their interval above the
    null."""
    seeds, spread = 200, 1.0
    found = judge(pd.DataFrame([tables.columns(Interval(0.0, -0.1386, 0.1386))]), "gain", above=0)
    assert (found.word, found.cases, found.what) == ("inconclusive", {}, "gain")
    assert found.detectable == pytest.approx(2.8 * spread / seeds**0.5, rel=0.01)
    drawn = stream(0, "tests/power").normal(found.detectable, spread, (4000, seeds))
    errors = drawn.std(1, ddof=1) / seeds**0.5
    power = np.mean(drawn.mean(1) - stats.t.ppf(0.975, seeds - 1) * errors > 0)
    assert power == pytest.approx(0.8, abs=0.03)


def test_a_case_of_a_sweep_has_its_name() -> None:
    rows = pd.DataFrame([{"net": "erf", "sweep": sweep, "x": 0.5, "value": 2.0, "low": 1.9,
                          "high": 2.1} for sweep in ("alpha", "rho_hard")])
    found = tables.judge(rows, "the ratio", ["net", "sweep", "x"], above=1)
    assert list(found.cases) == ["erf, alpha 0.5", "erf, rho hard 0.5"]
    assert list(tables.judge(rows[:1], "it", ["net", "x"], above=1).cases) == ["erf, alpha 0.5"]
    assert list(tables.judge(rows[:1], "it", ["net", "sweep"], above=1).cases) == ["erf, alpha"]
