"""The experiment `depth_images`: linear layers and meta-optimizers on few-shot images (paper D)."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
import pandas as pd

from companion import nets
from companion.checks import Array
from companion.claims import Finding, all_or_some
from companion.errors import Diverged
from companion.experiments import Experiment, few_shot
from companion.experiments.few_shot import Fleet, Model, Setting, Sizes
from companion.objectives import counted
from companion.records import Record, Row
from companion.sweeps import Point

ADDED = 1  # linear layers of LinNet, before the head
MODELS = {  # what adapts -> the rule, and how many linear layers are added
    "plain": ("SGD", 0),
    "learned rate": ("learned rate", 0),
    "LinNet": ("SGD", ADDED),
    "Meta-SGD": ("Meta-SGD", 0),
    "Meta-Curvature": ("Meta-Curvature", 0),
    "KFO": ("KFO", 0),
}
COLLAPSED = "LinNet, collapsed"
_KEYS = ["source", "blocks", "method"]


@dataclass(frozen=True)
class Config:
    """``sizes`` but for the number of blocks; ``alphas`` that every model is trained with, times
    that of the setting; ``methods`` that adapt in training; ``ks``: inner steps at test, the first
    those of training."""

    settings: Sequence[Setting]
    sizes: Sizes
    alphas: Sequence[float] = (1.0,)
    blocks: Sequence[int] = (2,)
    methods: Sequence[str] = ("MAML",)
    models: Sequence[str] = tuple(MODELS)
    ks: Sequence[int] = (5, 10)
    seeds: int = 3


_OMNIGLOT = Setting("omniglot", 5, 1, 0.01)
_FEW = ("plain", "learned rate", "LinNet", "KFO")
PROFILES = {
    "quick": Config(
        (replace(_OMNIGLOT, source="glyphs", alpha=0.1),),
        Sizes(filters=8, inner=3, steps=150, rate=0.01, test_episodes=50, valid_episodes=25),
        models=_FEW, ks=(3, 10), seeds=2,
    ),
    "cpu": Config(
        (_OMNIGLOT,), Sizes(steps=400, test_episodes=200, valid_episodes=50), models=_FEW
    ),
    "full": Config((Setting("omniglot", 20, 1, 0.01), Setting("cifar_fs", 5, 5, 0.01)),
                   Sizes(filters=32, meta_batch=16, steps=10_000, rate=0.001, test_episodes=600,
                         valid_episodes=300),
                   alphas=(0.5, 2.0),
                   blocks=(2, 4),
                   methods=("MAML", "ANIL")),
}


def points(config: Config) -> list[Point]:
    """A fleet for every setting, number of blocks, method, model and alpha; and two that do not
    adapt in training."""
    found: list[Point] = []
    for of in config.settings:
        for blocks in config.blocks:
            told = {**asdict(of), "blocks": blocks}
            found += [told | {"method": method, "model": model, "alpha": alpha * of.alpha}
                      for method in config.methods
                      for model in config.models
                      for alpha in config.alphas]
            found += [told | {"method": method, "model": "plain"}
                      for method in ("NAL-global", "untrained")]
    return found


def sizes(config: Config, point: Point) -> Sizes:
    """The sizes of a point."""
    return replace(config.sizes, blocks=point["blocks"])


def fleet(config: Config, point: Point, device: str = "cpu") -> Fleet:
    """The fleet of a point."""
    return few_shot.fleet(few_shot.setting(point), range(config.seeds), device=device)


def model(point: Point) -> Model:
    """The model of a point."""
    return Model(point["method"], *MODELS[point["model"]])


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed, k and rate; for LinNet also those of the plain network that it
    collapses to."""
    of, own, size = fleet(config, point, device), model(point), sizes(config, point)
    told = {**point, **counted(few_shot.start(of, own, size))}
    names = [point["model"], *([COLLAPSED] if own.linear_layers else [])]
    try:
        found = few_shot.train(of, own, size, key=few_shot.key(config, point))
    except Diverged:
        rows = few_shot.lost(of, config.ks, ["all"])
        return [told | {"model": name, "loss": 0.0} | row for name in names for row in rows]
    tested = [(point["model"], own, found.params)]
    if own.linear_layers:
        tested.append((COLLAPSED, own._replace(linear_layers=0), nets.collapsed_head(found.params)))
    return [
        told | {"model": name, "loss": round(float(found.loss[row["seed"]]), 6)} | row
        for name, some, params in tested
        for row in few_shot.scores(of, some, size, params, config.ks, {"all": 0.0}, fraction=0.0)
    ]


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every model at the training alpha of highest mean accuracy on validation classes,
    at its own step after the steps trained for."""
    keys = [*_KEYS, "model"]
    asked = table[(table["rate"] == "own") & (table["k"] == table["k"].iloc[0])]
    means = asked.groupby([*keys, "alpha"], sort=False)["valid"].mean().reset_index()
    best = means.loc[means.groupby(keys, sort=False)["valid"].idxmax(), [*keys, "alpha"]]
    return table.merge(best, on=[*keys, "alpha"])


def _accuracy(rows: pd.DataFrame, model: str) -> Array:
    return np.asarray(rows[rows["model"] == model].sort_values("seed")["accuracy"])


def differences(table: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """The accuracy of model ``one`` minus that of ``other``, each at its best, after the steps
    trained for.

    A row for every source, number of blocks and method that has both, with its interval over seeds.
    """
    best, rows = at_best(table), []
    asked = best[(best["rate"] == "own") & (best["k"] == table["k"].iloc[0])]
    for key, some in asked.groupby(_KEYS, sort=False):
        if {one, other} <= set(some["model"]):
            found = few_shot.interval(_accuracy(some, one) - _accuracy(some, other))
            told = dict(zip(_KEYS, key, strict=True))
            rows.append(told | {"difference": found.value, "low": found.low, "high": found.high})
    return pd.DataFrame(rows)


def _finding(found: pd.DataFrame, parts: dict[str, str], what: str) -> Finding:
    least = found.loc[found["low"].idxmin()]
    where = f"{least['source']}, {least['blocks']} blocks, {least['method']}"
    told = f"{what} in accuracy, least ({where})"
    return Finding(parts, float(least["difference"]), (float(least["low"]), float(least["high"])),
                   told)


def settle_d2(record: Record) -> Finding:
    """D2 on images: LinNet above plain, and above what it collapses to, each at its best."""
    plain, one = (differences(record.table, "LinNet", other) for other in ("plain", COLLAPSED))
    parts = {"images: added layers beat plain": all_or_some(plain["low"] > 0),
             "images: collapsed no longer": all_or_some(one["low"] > 0)}
    return _finding(plain, parts, "LinNet minus plain")


def settle_d3(record: Record) -> Finding:
    """D3 on images: KFO above plain with one learned rate, each at its best."""
    found = differences(record.table, "KFO", "learned rate")
    return _finding(found, {"images": all_or_some(found["low"] > 0)}, "KFO minus one learned rate")


EXPERIMENT = Experiment("depth_images", "linear layers and meta-optimizers on few-shot images",
                        PROFILES, points, compute, ("cuda", "cpu"))
