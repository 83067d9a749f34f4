"""Image tasks measured: rows against the theory, and both findings from made tables."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace

import numpy as np
import pandas as pd
import pytest

from companion.experiments import image_tasks
from companion.records import Record
from companion.tasks.image_regressions import FEATURES, HARD
from companion.tasks.sources import Source
from companion.theory.landscape import ceiling

FULL = image_tasks.PROFILES["full"]
SMALL = replace(FULL, sources=("made",), components=6, pairs=12, episodes=4000, seeds=3,
                rates=(0.3, 1.0, 3.0))


@pytest.fixture
def space(patterns: Source) -> Iterator[None]:
    """The space of patterns is of them alone."""
    image_tasks.space_of.cache_clear()
    yield
    image_tasks.space_of.cache_clear()


def test_points_are_all_kinds() -> None:
    found = image_tasks.points(FULL)
    assert len(found) == 3 * len(FEATURES) * len(HARD) == 27
    assert len({tuple(point.values()) for point in found}) == 27


@pytest.mark.parametrize("hard", HARD)
def test_rows_obey_the_theory(space: None, hard: str) -> None:
    point = {"source": "made", "features": "components", "hard": hard}
    rows = image_tasks.measure(SMALL, point, "cpu")
    table = pd.DataFrame(rows)
    assert len(table) == 3 * 2 * 2
    assert table.groupby(["labels", "batch"])["seed"].nunique().eq(3).all()
    assert (table["maml"] <= table["nal"]).all()  # each at its best step
    assert (table["nal"] <= table["nal_shared"]).all()  # NAL at MAML's
    assert (table["slack"] > 0).all()
    shared = np.log(ceiling(table["h"]) * table["maml"] / table["nal_shared"])
    assert (shared > table["slack"] - 1e-4).all()  # the least of all steps
    by = table.set_index(["labels", "batch", "seed"])
    fixed, permuted = by.loc["fixed"], by.loc["permuted"]
    assert (fixed["nal_shared"] / fixed["maml"] > permuted["nal_shared"] / permuted["maml"]).all()
    assert (fixed["separation"] > 5 * permuted["separation"]).all()
    assert (permuted["nal_shared"] / permuted["maml"] - 1).max() < 0.01
    assert ((table["left_easy"] > 0) & (table["left_hard"] > 0)).all()
    assert rows == image_tasks.measure(SMALL, point, "cpu")


def test_best_steps_are_each_method_s(space: None) -> None:
    """Against every step of the grid measured alone, where there is no choice."""
    point = {"source": "made", "features": "components", "hard": "one pair"}
    config = replace(SMALL, rates=tuple(np.geomspace(0.5, 8, 8).round(4).tolist()))
    table = pd.DataFrame(image_tasks.measure(config, point, "cpu"))
    single = [pd.DataFrame(image_tasks.measure(replace(config, rates=(rate,)), point, "cpu"))
              for rate in config.rates]
    rows = np.arange(len(table))
    best = {method: np.stack([each[method] for each in single]).argmin(0)
            for method in ("nal", "maml")}
    assert (best["nal"] != best["maml"]).any()
    for column, method in (("nal", "nal"), ("maml", "maml"), ("nal_hard", "nal"),
                           ("maml_hard", "maml"), ("h", "maml"), ("left_easy", "maml"),
                           ("left_hard", "maml")):
        alone = np.stack([each[column] for each in single])
        np.testing.assert_array_equal(table[column], alone[best[method], rows])
    for method, place in best.items():
        np.testing.assert_array_equal(table[f"rate_{method}"], np.array(config.rates)[place])
    nal = np.stack([each["nal"] for each in single])
    np.testing.assert_array_equal(table["nal_shared"], nal[best["maml"], rows])
    slacks = np.stack([each["slack"] for each in single])
    np.testing.assert_array_equal(table["slack"], slacks.min(0))


@pytest.fixture
def table(around: Callable[..., np.ndarray]) -> Callable[..., Record]:
    """Two families; ``slack`` of one draw, and ratios by labels."""

    def made(fixed: float = 1.2, permuted: float = 1.0, slack: float = 0.5) -> Record:
        base, other = around(0.3), around(0.30001)
        rows = [{"source": source, "features": "components", "hard": "one pair", "labels": labels,
                 "batch": "full", "seed": seed, "nal": ratio * nal, "nal_shared": ratio * nal,
                 "maml": maml, "nal_hard": 2 * ratio * nal, "maml_hard": maml,
                 "slack": slack if (labels, seed, source) == ("fixed", 7, "omniglot") else 0.5}
                for source in ("glyphs", "omniglot")
                for labels, ratio in (("fixed", fixed),
                                      ("permuted", permuted if source == "glyphs" else 1.0))
                for seed, (nal, maml) in enumerate(zip(base, other, strict=True))]
        return Record(pd.DataFrame(rows), {"config": asdict(FULL)})

    return made


def test_permuted_flips(table: Callable[..., Record]) -> None:
    found = image_tasks.permuted(table())
    assert found.word == "supported"
    assert set(found.cases) == {"glyphs, components, one pair, full",
                                "omniglot, components, one pair, full"}
    assert image_tasks.permuted(table(fixed=0.5)).word == "supported"  # not asked of fixed labels
    for ratio in (0.95, 1.05):
        away = image_tasks.permuted(table(permuted=ratio))
        assert away.word == "mixed"
        assert away.cases["glyphs, components, one pair, full"] == "contradicted"
    assert image_tasks.permuted(table(permuted=1.01)).word == "inconclusive"
    wide = asdict(FULL) | {"band": [0.9, 1.1]}
    assert image_tasks.permuted(
        Record(table(permuted=1.05).table, {"config": wide})).word == "supported"


def test_one_draw_above_the_ceiling_is_one_too_many(table: Callable[..., Record]) -> None:
    found = image_tasks.below_the_ceiling(table())
    assert (found.word, found.interval.value) == ("supported", 0.5)
    broken = image_tasks.below_the_ceiling(table(slack=-0.01))
    assert broken.word == "mixed"
    assert broken.interval.value == -0.01
    assert broken.cases["omniglot, components, one pair, fixed, full"] == "contradicted"


def test_ratios_are_of_the_columns_asked_for(table: Callable[..., Record]) -> None:
    record = table(fixed=1.5)
    for on, scale in (("own", 1), ("shared", 1), ("hard", 2)):
        rows = image_tasks.ratios(record.table, on).set_index(["source", "labels"])["value"]
        assert rows["glyphs", "fixed"] == pytest.approx(1.5 * scale, rel=0.01)
    swapped = record.table.assign(nal_shared=record.table["maml"])
    assert image_tasks.ratios(swapped, "shared")["value"].tolist() == pytest.approx([1] * 4)
