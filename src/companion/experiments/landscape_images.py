"""MAML against NAL on few-shot images, hard tasks packed or spread (paper L, claims L5 and L6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import pandas as pd

from companion import tables
from companion.checks import Array
from companion.errors import Diverged
from companion.experiment import Experiment, rounded
from companion.experiments import images
from companion.experiments.images import Arm, Sizes
from companion.fleets import Budget
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks.episodes import Setting, episode_fleet

ARM = ["source", "method", "inner", "trained", "fraction"]
TEST = ["environment", "episodes", "k", "rate"]
ENVIRONMENTS = ("packed", "spread")
_OMNIGLOT = Setting("omniglot", 5, 1, 0.02, within=True)
_LARGE = Budget(steps=10_000, tasks=16, rate=0.001, test_tasks=600, rule_share=0.1, batch=25)


@dataclass(frozen=True)
class Config:
    """Hard tasks come from ``packed`` groups or from all. ``fractions`` of hard training tasks,
    from 0 on; all that is not about fractions is at ``base``, where MAML is also trained for
    ``longer`` inner steps. ``ks``: inner steps at test."""

    settings: Mapping[str, Setting] = field(default_factory=lambda: {
        "omniglot": _OMNIGLOT, "fc100": Setting("fc100", 5, 5, 0.02)})
    sizes: Sizes = Sizes(filters=32, blocks=4, inner=1, valid_episodes=300, budget=_LARGE)
    packed: int = 2
    fractions: Sequence[float] = (0.0, 0.5, 1.0)
    base: float = 0.5
    longer: int = 5
    ks: Sequence[int] = (1, 10)
    seeds: int = 5


PROFILES = {
    "quick": Config(
        {"glyphs": replace(_OMNIGLOT, source="glyphs", alpha=0.1)},
        Sizes(filters=8, inner=1, valid_episodes=25,
              budget=Budget(steps=150, tasks=4, rate=0.01, test_tasks=25, batch=25)),
        longer=3, seeds=2),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every setting, method, environment and fraction of hard training tasks."""
    inner, found = config.sizes.inner, []
    for source in config.settings:
        for fraction in config.fractions:
            for trained in ENVIRONMENTS if fraction else ("easy",):
                found += [(source, method, inner, trained, fraction)
                          for method in ("MAML", "NAL-global")]
        for trained in ENVIRONMENTS:
            found += [(source, "MAML", config.longer, trained, config.base),
                      (source, "NAL-episodic", inner, trained, config.base)]
        found.append((source, "untrained", inner, "nothing", 0.0))
    return [dict(zip(ARM, point, strict=True)) for point in found]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """Rows for every environment that the point is tested in, the one that it was trained in or
    both if in none, on easy and on hard episodes."""
    setting, arm = config.settings[point["source"]], Arm(point["method"])
    sizes, seeds = replace(config.sizes, inner=point["inner"]), range(config.seeds)
    groups = {"packed": config.packed}  # elsewhere all
    key = images.training_key("landscape_images", config, point)
    tested = [point["trained"]] if point["trained"] in ENVIRONMENTS else ENVIRONMENTS
    try:
        found = images.train_arm(arm, setting, sizes, seeds, key=key, device=device,
                                 hard_groups=groups.get(point["trained"], 0),
                                 fraction=point["fraction"])
    except Diverged:
        return [{**point, "environment": environment, "episodes": kind, "loss": None} | row
                for environment in tested for kind in ("easy", "hard")
                for row in images.lost(seeds, config.ks)]
    model, losses = images.model_of(arm, setting, sizes), dict(zip(seeds, found.loss, strict=True))
    rows = []
    for environment in tested:
        fleet = partial(episode_fleet, setting, seeds, hard_groups=groups.get(environment, 0),
                        device=device)
        rates, _ = images.best_rates(fleet(fraction=config.base), model, sizes, found.params,
                                     config.ks)
        rows += [{**point, "environment": environment, "episodes": kind}
                 | rounded(loss=losses[row["seed"]]) | row
                 for kind, hard in (("easy", 0.0), ("hard", 1.0))
                 for row in images.test_rows(fleet(fraction=hard), model, sizes, found.params,
                                             config.ks, rates)]
    return rows


def hard_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Hard episodes, each run at its own inner rate, trained for the one step of the theory."""
    return tables.where(table, rate="own", episodes="hard", inner=table["inner"].min())


def gains(table: pd.DataFrame, base: float, source: str, k: int, environment: str) -> Array:
    """MAML - NAL-global in accuracy on hard episodes of an environment, by seed; at fraction
    ``base``."""
    maml, nal = (tables.by_seed(hard_rows(table), "accuracy", method=method, fraction=base,
                                source=source, k=k, environment=environment)
                 for method in ("MAML", "NAL-global"))
    return maml - nal


def differences(table: pd.DataFrame, base: float) -> pd.DataFrame:
    """The :func:`gains` packed minus spread, of every source and k."""
    return pd.DataFrame([
        {"source": source, "k": k} | tables.columns(tables.difference(
            *(gains(table, base, source, k, environment) for environment in ENVIRONMENTS)))
        for source, k in hard_rows(table).groupby(["source", "k"], sort=False).groups])


def slopes(table: pd.DataFrame, method: str = "MAML") -> pd.DataFrame:
    """The least-squares slope of accuracy on hard episodes against the fraction, over seeds."""
    keys, rows = ["source", "environment", "k"], []
    for key, some in tables.where(hard_rows(table), method=method).groupby(keys, sort=False):
        wide = some.pivot_table(index="seed", columns="fraction", values="accuracy")
        x = np.asarray(wide.columns, dtype=float) - np.mean(wide.columns)
        slope = tables.mean(wide.to_numpy() @ x / (x @ x))
        rows.append(dict(zip(keys, key, strict=True)) | tables.columns(slope))
    return pd.DataFrame(rows)


def packed_minus_spread(record: Record) -> Finding:
    """L5: (MAML - NAL-global) on hard episodes, packed minus spread, is above 0."""
    rows = differences(record.table, record.provenance["config"]["base"])
    return tables.judge(rows, "(MAML - NAL-global), packed minus spread, in accuracy",
                        ["source", "k"], above=0)


def more_hard_tasks(record: Record) -> Finding:
    """L6: the slope of MAML's accuracy on hard episodes against the fraction is above 0."""
    return tables.judge(slopes(record.table), "slope of accuracy against the share of hard tasks",
                        ["source", "environment", "k"], above=0)


EXPERIMENT = Experiment(
    "landscape_images", "MAML against NAL on few-shot images, hard tasks packed or spread",
    PROFILES, points, measure,
    {"L5/alphabets": packed_minus_spread, "L6/alphabets": more_hard_tasks}, ("cuda", "cpu"))
