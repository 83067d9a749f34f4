"""Linear layers and meta-optimizers on few-shot images (paper D, claims D2 and D3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from companion import nets, tables
from companion.errors import Diverged
from companion.experiment import Experiment, rounded
from companion.experiments import images
from companion.experiments.images import Arm, Sizes
from companion.fleets import Budget, start
from companion.objectives import counted
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks.episodes import Setting, episode_fleet

MODELS = {  # what adapts -> the rule, and how many linear layers are added
    "plain": ("SGD", 0), "learned rate": ("learned rate", 0), "LinNet": ("SGD", 1),
    "Meta-SGD": ("Meta-SGD", 0), "Meta-Curvature": ("Meta-Curvature", 0), "KFO": ("KFO", 0)}
COLLAPSED = "LinNet, collapsed"
ARM = ["source", "blocks", "method", "model", "alpha"]
_FEW = ("plain", "learned rate", "LinNet", "KFO")


@dataclass(frozen=True)
class Config:
    """``alphas`` are inner rates that every model is trained at; ``methods`` adapt in training.
    ``ks``: inner steps at test, the first those of training."""

    settings: Mapping[str, Setting] = field(default_factory=lambda: {
        "omniglot": Setting("omniglot", 20, 1, 0.01), "cifar_fs": Setting("cifar_fs", 5, 5, 0.01)})
    sizes: Sizes = Sizes(filters=32, valid_episodes=300,
                         budget=Budget(steps=10_000, tasks=16, rate=0.001, test_tasks=600,
                                       rule_share=0.1, batch=25))
    alphas: Sequence[float] = (0.005, 0.02)
    blocks: Sequence[int] = (2, 4)
    methods: Sequence[str] = ("MAML", "ANIL")
    models: Sequence[str] = tuple(MODELS)
    ks: Sequence[int] = (5, 10)
    seeds: int = 3


PROFILES = {
    "quick": Config(
        {"glyphs": Setting("glyphs", 5, 1, 0.1)},
        Sizes(filters=8, inner=3, valid_episodes=25,
              budget=Budget(steps=150, tasks=4, rate=0.01, test_tasks=50, rule_share=0.1,
                            batch=25)),
        alphas=(0.1,), blocks=(2,), methods=("MAML",), models=_FEW, ks=(3, 10), seeds=2),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every setting, number of blocks, method, model and inner rate; and two that do
    not adapt in training."""
    found = []
    for source in config.settings:
        for blocks in config.blocks:
            found += [(source, blocks, method, model, alpha) for method in config.methods
                      for model in config.models for alpha in config.alphas]
            found += [(source, blocks, method, "plain", config.alphas[0])
                      for method in ("NAL-global", "untrained")]
    return [dict(zip(ARM, point, strict=True)) for point in found]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed, k and rate; for LinNet also those of the plain network that it
    collapses to."""
    setting = replace(config.settings[point["source"]], alpha=point["alpha"])
    sizes, seeds = replace(config.sizes, blocks=point["blocks"]), range(config.seeds)
    arm = Arm(point["method"], *MODELS[point["model"]])
    fleet, model = (episode_fleet(setting, seeds, device=device),
                    images.model_of(arm, setting, sizes))
    shared = {**point, **counted(start(fleet, model))}
    names = [point["model"], *([COLLAPSED] if arm.linear_layers else [])]
    try:
        key = images.training_key("depth_images", config, point)
        found = images.train_arm(arm, setting, sizes, seeds, key=key, device=device)
    except Diverged:
        return [shared | {"model": name, "loss": None, "valid": 0.0} | row for name in names
                for row in images.lost(seeds, config.ks)]
    losses, rows = dict(zip(seeds, found.loss, strict=True)), []
    for name in names:
        params = nets.collapsed_head(found.params) if name == COLLAPSED else found.params
        some = (images.model_of(arm._replace(linear_layers=0), setting, sizes)
                if name == COLLAPSED else model)
        rates, valid = images.best_rates(fleet, some, sizes, params, config.ks)
        numbers = {(seed, k): valid[i, j] for i, seed in enumerate(seeds)
                   for j, k in enumerate(config.ks)}
        rows += [shared | {"model": name}
                 | rounded(loss=losses[row["seed"]], valid=numbers[row["seed"], row["k"]]) | row
                 for row in images.test_rows(fleet, some, sizes, params, config.ks, rates)]
    return rows


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every model at the training rate of highest mean accuracy on validation classes,
    at its own rate after the steps trained for."""
    asked = tables.where(table, rate="own", k=table["k"].iloc[0])
    return tables.best(asked, ARM[:-1], most=True)


def differences(table: pd.DataFrame, model: str, against: str) -> pd.DataFrame:
    """The accuracy of one model minus that of another, each at its best, after the steps trained
    for, of every source, number of blocks and method that has both."""
    rows = tables.contrast(at_best(table), ARM[:-1], "accuracy", {"model": against},
                           tables.difference)
    return tables.where(rows, model=model)


def _finding(record: Record, model: str, against: str) -> Finding:
    return tables.judge(differences(record.table, model, against),
                        f"{model} minus {against}, in accuracy", ["source", "blocks", "method"],
                        above=0)


def gain(record: Record) -> Finding:
    """D2 on images: LinNet is above plain, each at its best."""
    return _finding(record, "LinNet", "plain")


def collapse(record: Record) -> Finding:
    """D2 on images: LinNet is above what it collapses to."""
    return _finding(record, "LinNet", COLLAPSED)


def external(record: Record) -> Finding:
    """D3 on images: KFO is above plain with one learned rate."""
    return _finding(record, "KFO", "learned rate")


EXPERIMENT = Experiment(
    "depth_images", "linear layers and meta-optimizers on few-shot images", PROFILES, points,
    measure,
    {"D2/images gain": gain, "D2/images collapse": collapse, "D3/images": external},
    ("cuda", "cpu"))
