"""The experiment `landscape_images`: MAML against NAL on few-shot images, hard tasks packed or
spread (paper L)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from companion.checks import Array
from companion.claims import Finding
from companion.evaluation import interval_columns
from companion.experiments import Experiment, few_shot
from companion.experiments.few_shot import Fleet, Model, Setting, Sizes
from companion.records import Record, Row
from companion.sweeps import Point

KINDS = {"easy": 0.0, "hard": 1.0}  # of test episodes: the fraction of hard ones
ENVIRONMENTS = ("packed", "spread")


@dataclass(frozen=True)
class Config:
    """``settings`` have hard tasks, from ``packed`` groups or from all; ``plain`` ones have none,
    and sizes and seeds of their own. ``fractions`` of hard training tasks, from 0 on; all that is
    not about fractions is at ``base``, where MAML is also trained for ``longer`` inner steps.
    ``ks``: inner steps at test."""

    settings: Sequence[Setting]
    sizes: Sizes
    plain: Sequence[Setting]
    plain_sizes: Sizes
    packed: int = 2
    fractions: Sequence[float] = (0.0, 0.5, 1.0)
    base: float = 0.5
    longer: int = 5
    ks: Sequence[int] = (1, 10)
    seeds: int = 3
    plain_seeds: int = 1


_OMNIGLOT = Setting("omniglot", 5, 1, 0.02, within=True)
_CIFAR_FS = Setting("cifar_fs", 5, 5, 0.02)
_LARGE = Sizes(filters=32, blocks=4, inner=1, meta_batch=16, steps=10_000, rate=0.001,
               test_episodes=600, valid_episodes=300)
PROFILES = {
    "quick": Config(
        (replace(_OMNIGLOT, source="glyphs", alpha=0.1),),
        Sizes(filters=8, inner=1, steps=150, rate=0.01, test_episodes=25, valid_episodes=25), (),
        Sizes(), longer=3, seeds=2,
    ),
    "cpu": Config((_OMNIGLOT,), Sizes(inner=1, test_episodes=150, valid_episodes=50), (_CIFAR_FS,),
                  Sizes(test_episodes=600, valid_episodes=50)),
    "full": Config((_OMNIGLOT, Setting("fc100", 5, 5, 0.02)), _LARGE, (_CIFAR_FS,),
                   replace(_LARGE, inner=5), seeds=5, plain_seeds=3),
}


def points(config: Config) -> list[Point]:
    """A fleet for every setting, method, environment and fraction of hard training tasks."""
    found: list[Point] = []
    for of in config.plain:
        told = {**asdict(of), "hard": False, "inner": config.plain_sizes.inner, "trained": "easy",
                "fraction": 0.0}
        found += [told | {"method": method} for method in ("MAML", "NAL-global", "untrained")]
    for of in config.settings:
        told = {**asdict(of), "hard": True, "inner": config.sizes.inner}
        for fraction in config.fractions:
            for trained in ENVIRONMENTS if fraction else ("easy",):
                found += [told | {"method": method, "trained": trained, "fraction": fraction}
                          for method in ("MAML", "NAL-global")]
        for trained in ENVIRONMENTS:
            at = told | {"trained": trained, "fraction": config.base}
            found += [at | {"method": "MAML", "inner": config.longer},
                      at | {"method": "NAL-episodic"}]
        found.append(told | {"method": "untrained", "trained": "nothing", "fraction": 0.0})
    return found


def fleet(config: Config, point: Point, environment: str, device: str = "cpu") -> Fleet:
    """The fleet of a point in an environment: "packed", "spread", or any other word for no
    restriction."""
    return few_shot.fleet(few_shot.setting(point),
                          range(config.seeds if point["hard"] else config.plain_seeds),
                          hard_groups=config.packed if environment == "packed" else 0,
                          fraction=point["fraction"], device=device)


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """Rows for every environment that the point is tested in: the one that it was trained in, or
    both if in none."""
    model = Model(point["method"])
    sizes = replace(config.sizes if point["hard"] else config.plain_sizes, inner=point["inner"])
    found = few_shot.train(fleet(config, point, point["trained"], device), model, sizes,
                           key=few_shot.key(config, point))
    alone = point["trained"] in ENVIRONMENTS or not point["hard"]
    kinds, base = (KINDS, config.base) if point["hard"] else ({"easy": 0.0}, 0.0)
    rows: list[Row] = []
    for environment in [point["trained"]] if alone else ENVIRONMENTS:
        of = fleet(config, point, environment, device)
        scores = few_shot.scores(of, model, sizes, found.params, config.ks, kinds, fraction=base)
        rows += [
            {**point, "environment": environment, "loss": round(float(found.loss[row["seed"]]), 6)}
            | row
            for row in scores
        ]
    return rows


def _accuracy(rows: pd.DataFrame) -> Array:
    """Accuracy by seed."""
    return np.asarray(rows.sort_values("seed")["accuracy"])


def _hard(table: pd.DataFrame) -> pd.DataFrame:
    """Hard episodes, each run at its own inner step, trained for as many inner steps as the
    others."""
    asked = table[
        table["hard"].astype(bool) & (table["rate"] == "own") & (table["episodes"] == "hard")
    ]
    return asked[asked["inner"] == asked["inner"].min()]


def gains(table: pd.DataFrame, base: float, source: str, k: int, environment: str) -> Array:
    """MAML minus NAL-global in accuracy on hard episodes of an environment, by seed; trained at
    fraction ``base``."""
    asked = _hard(table)
    for name, value in {
        "fraction": base, "source": source, "k": k, "environment": environment,
    }.items():
        asked = asked[asked[name] == value]
    return _accuracy(asked[asked["method"] == "MAML"]) - _accuracy(
        asked[asked["method"] == "NAL-global"]
    )


def differences(table: pd.DataFrame, base: float) -> pd.DataFrame:
    """The :func:`gains` of every source and k: ``packed``, ``spread`` and their ``difference``,
    with intervals."""
    rows = []
    for (source, k), _ in _hard(table).groupby(["source", "k"], sort=False):
        by = {
            environment: gains(table, base, source, k, environment) for environment in ENVIRONMENTS
        }
        by["difference"] = by["packed"] - by["spread"]
        columns = interval_columns({name: few_shot.interval(values) for name, values in by.items()})
        rows.append({"source": source, "k": k} | columns)
    return pd.DataFrame(rows)


def slopes(table: pd.DataFrame, method: str = "MAML") -> pd.DataFrame:
    """The slope of accuracy on hard episodes against the fraction of hard training tasks, by least
    squares for each
    seed: a row for every source, environment and k, with its interval."""
    rows = []
    asked = _hard(table)
    for (source, environment, k), some in asked[asked["method"] == method].groupby(
        ["source", "environment", "k"], sort=False
    ):
        wide = some.pivot_table(index="seed", columns="fraction", values="accuracy")
        x = wide.columns.to_numpy(dtype=float) - wide.columns.to_numpy(dtype=float).mean()
        slope = few_shot.interval(wide.to_numpy() @ x / (x @ x))
        rows.append({"source": source, "environment": environment, "k": k}
                    | interval_columns({"slope": slope}))
    return pd.DataFrame(rows)


def _finding(rows: pd.DataFrame, column: str, keys: list[str], what: str) -> Finding:
    """Every row a part, which holds if the lower end of its interval is above 0."""

    def told(row: pd.Series) -> str:
        return ", ".join(str(row[name]) for name in keys) + f", k = {row['k']}"

    parts = {told(row): "holds" if row[f"{column}_low"] > 0 else "fails"
             for _, row in rows.iterrows()}
    least = rows.loc[rows[f"{column}_low"].idxmin()]
    value, low, high = (float(least[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return Finding(parts, value, (low, high), f"{what}, least ({told(least)})")


def settle_l5(record: Record) -> Finding:
    """L5: (MAML - NAL-global) on hard episodes, packed minus spread, above 0, of every source and
    k."""
    found = differences(record.table, record.provenance["config"]["base"])
    return _finding(found, "difference", ["source"],
                    "(MAML - NAL-global), packed minus spread, in accuracy")


def settle_l6(record: Record) -> Finding:
    """L6: the slope of MAML's accuracy on hard episodes against the fraction of hard training tasks
    is above 0."""
    what = "slope of accuracy on hard episodes against the fraction of hard training tasks"
    return _finding(slopes(record.table), "slope", ["source", "environment"], what)


EXPERIMENT = Experiment(
    "landscape_images",
    "MAML against NAL on few-shot images: hard tasks packed or spread, and their share", PROFILES,
    points, compute, ("cuda", "cpu"),
)
