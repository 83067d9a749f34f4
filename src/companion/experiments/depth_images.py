"""Depth, linear layers and meta-optimizers on few-shot images (paper D, claims D1 to D4)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from companion import nets, tables
from companion.experiment import Experiment, unless_lost
from companion.experiments import images
from companion.experiments.images import Arm, Sizes
from companion.fleets import Budget, start
from companion.measures.episodes import over
from companion.objectives import counted
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks.episodes import Setting, episode_fleet

MODELS = {  # what adapts -> the rule, and how many linear layers are added
    "plain": ("SGD", 0), "learned rate": ("learned rate", 0),
    "per-step rates": ("per-step rates", 0), "LinNet": ("SGD", 1), "Meta-SGD": ("Meta-SGD", 0),
    "Meta-Curvature": ("Meta-Curvature", 0), "KFO": ("KFO", 0)}
RATES = ("learned rate", "per-step rates", "Meta-SGD")
COLLAPSED = "LinNet, collapsed"
ARM = ["source", "blocks", "method", "model", "alpha"]
_CHOSEN = {  # by the pilot: the rate of highest mean accuracy on validation classes after one step
    "4 MAML plain": (0.1,), "4 MAML learned rate": (0.1,), "4 MAML per-step rates": (0.1,),
    "4 MAML LinNet": (0.4,), "4 MAML Meta-SGD": (0.1,), "4 MAML Meta-Curvature": (0.1,),
    "4 MAML KFO": (0.1,), "4 ANIL plain": (1.6,), "4 ANIL LinNet": (1.6,), "4 ANIL KFO": (0.4,),
    "4 BOIL plain": (0.4,), "4 BOIL LinNet": (1.6,),
    # with thousands of features a smaller one, for the pilot's made LinNet guess by chance
    "1 MAML learned rate": (0.025,), "1 MAML LinNet": (0.025,), "2 MAML learned rate": (0.1,),
    "2 MAML LinNet": (0.1,), "3 MAML learned rate": (0.1,), "3 MAML LinNet": (0.1,)}


@dataclass(frozen=True)
class Config:
    """``deep`` maps methods to the models that they adapt, at ``sizes.blocks`` blocks; with
    ``fewer`` blocks MAML adapts those of ``shallow``. ``alphas``: inner rates of training, by
    blocks, method and model; by default the setting's. ``ks``: inner steps at test, the first
    those of training. Every arm is tested at the same inner rates. Seeds are those from ``first``
    on."""

    settings: Mapping[str, Setting] = field(default_factory=lambda: {
        "omniglot": Setting("omniglot", 5, 1, 0.4)})
    sizes: Sizes = Sizes()
    deep: Mapping[str, Sequence[str]] = field(default_factory=lambda: {
        "MAML": tuple(MODELS), "ANIL": ("plain", "LinNet", "KFO"), "BOIL": ("plain", "LinNet")})
    fewer: Sequence[int] = (1, 2, 3)
    shallow: Sequence[str] = ("learned rate", "LinNet")
    alphas: Mapping[str, Sequence[float]] = field(default_factory=dict)
    ks: Sequence[int] = (1, 0, 2, 5, 10, 20)
    seeds: int = 6
    first: int = 0


_LONGER = Sizes(budget=replace(Sizes().budget, steps=600))
_MAML = ("learned rate", "LinNet", "KFO", "per-step rates", "Meta-SGD", "Meta-Curvature")

PROFILES = {
    "quick": Config(
        {"glyphs": Setting("glyphs", 5, 1, 0.4)},
        Sizes(filters=8, blocks=3, width=8, factors=(1 / 4, 1), valid_episodes=20,
              budget=Budget(steps=150, tasks=4, rate=0.01, test_tasks=40, rule_share=0.1,
                            batch=20)),
        {"MAML": ("plain", "learned rate", "per-step rates", "LinNet", "KFO"),
         "ANIL": ("LinNet",), "BOIL": ("LinNet",)}, fewer=(1,), ks=(1, 10), seeds=2),
    "pilot": Config(
        sizes=Sizes(factors=(1 / 4, 1, 4), valid_episodes=60,
                    budget=replace(Sizes().budget, steps=250, test_tasks=100)),
        alphas={f"{blocks} {method} {model}": (0.1, 0.4, 1.6) for blocks in (1, 2, 3, 4)
                for method in ("MAML", "ANIL", "BOIL") for model in MODELS},
        ks=(1, 10), seeds=3, first=1000),
    "full": Config(alphas=_CHOSEN),
    # some of full once more, to be run on another machine
    "again": Config(alphas=_CHOSEN, deep={"MAML": ("LinNet",)}, fewer=(), seeds=4),
    "large": Config(
        {"omniglot, 20 ways": Setting("omniglot", 20, 1, 0.4)}, _LONGER,
        {"MAML": _MAML, "ANIL": ("LinNet",), "BOIL": ("LinNet",)}, fewer=(2,),
        shallow=("learned rate",), alphas=_CHOSEN, seeds=4),
    "colours": Config(
        {"cifar_fs": Setting("cifar_fs", 5, 5, 0.4)}, _LONGER,
        {"MAML": _MAML, "ANIL": ("LinNet",)}, fewer=(2,), shallow=("learned rate",),
        alphas=_CHOSEN, seeds=4),
}


def points(config: Config) -> list[Point]:
    """A fleet for every source, number of blocks, method, model and inner rate; and, unless the
    profile is of one number of blocks, two that do not adapt in training."""
    found: list[tuple[object, ...]] = []
    for source, setting in config.settings.items():
        arms = [(config.sizes.blocks, method, model) for method, models in config.deep.items()
                for model in models]
        arms += [(blocks, "MAML", model) for blocks in config.fewer for model in config.shallow]
        for arm in arms:
            rates = config.alphas.get(" ".join(map(str, arm)), (setting.alpha,))
            found += [(source, *arm, alpha) for alpha in rates]
        found += [(source, config.sizes.blocks, method, "plain", setting.alpha)
                  for method in ("NAL-global", "untrained") if config.fewer]
    return [dict(zip(ARM, point, strict=True)) for point in found]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed and k; for LinNet also those of the plain network that it collapses
    to."""
    setting, sizes = config.settings[point["source"]], replace(config.sizes, blocks=point["blocks"])
    arm = Arm(point["method"], *MODELS[point["model"]])
    flat = arm._replace(linear_layers=0)

    def rows(seeds: Sequence[int]) -> list[Row]:
        found = images.train_arm(
            arm, replace(setting, alpha=point["alpha"]), sizes, seeds, device=device,
            key=images.training_key("depth_images", config, point))
        fleet, every = episode_fleet(setting, seeds, device=device), []
        forms = {point["model"]: (arm, found)}
        if arm.linear_layers and arm.method == "MAML":
            forms[COLLAPSED] = flat, found._replace(params=nets.collapsed_head(found.params))
        for name, (form, trained) in forms.items():
            model = images.model_of(form, setting, sizes, device=device)
            shared = {**point, "model": name, **counted(start(fleet, model))}
            every += [shared | row for row in images.scored(
                trained, model, sizes, config.ks, fleet, {"test": fleet})]
        return every

    def lost(seed: int) -> list[Row]:
        model = images.model_of(arm, setting, sizes, device=device)
        count = counted(start(episode_fleet(setting, [seed], device=device), model))
        names = [point["model"], *([COLLAPSED] if arm.linear_layers else [])]
        return [{**point, "model": name, **count} | row for name in names
                for row in images.lost(seed, ["test"], config.ks, setting.ways)]

    return unless_lost(rows, range(config.first, config.first + config.seeds), lost)


def depth(record: Record) -> Finding:
    """D1 on images: the deepest network is above each with fewer blocks, all with a learned
    rate."""
    config = record.provenance["config"]
    arm = {"blocks": config["sizes"]["blocks"], "method": "MAML", "model": "learned rate"}
    rows = pd.concat([over(record.table, {"blocks": blocks}, **arm).assign(fewer=blocks)
                      for blocks in config["fewer"]], ignore_index=True)
    return tables.judge(rows, "the deepest minus fewer blocks, in accuracy", ["source", "fewer"],
                        above=0)


def gain(record: Record) -> Finding:
    """D2 on images: LinNet is above plain with a learned rate."""
    rows = over(record.table, {"model": "learned rate"}, model="LinNet", method="MAML")
    return tables.judge(rows, "LinNet minus learned rate, in accuracy", ["source", "blocks"],
                        above=0)


def collapse(record: Record) -> Finding:
    """D2 on images: LinNet is above what it collapses to."""
    rows = over(record.table, {"model": COLLAPSED}, model="LinNet", method="MAML")
    return tables.judge(rows, "LinNet minus its collapsed form, in accuracy", ["source", "blocks"],
                        above=0)


def above_rates(record: Record, model: str, rates: str = "learned rates") -> Finding:
    """A model is above plain with one learned rate, one for each tensor, and one for each
    parameter; ``rates`` is what the finding calls them."""
    rows = pd.concat([over(record.table, {"model": kind}, model=model, method="MAML")
                      .assign(against=kind) for kind in RATES], ignore_index=True)
    return tables.judge(rows, f"{model} minus {rates}, in accuracy", ["source", "against"],
                        above=0)


def external(record: Record) -> Finding:
    """D3 on images: KFO is above plain with every kind of learned rate."""
    return above_rates(record, "KFO")


def below(record: Record) -> Finding:
    """D4 on images: LinNet whose convolutions alone adapt is above plain with a learned rate, and
    above one whose linear layers alone adapt."""
    rows = pd.concat([over(record.table, against, model="LinNet", method="BOIL")
                      .assign(against=" ".join(against.values())) for against in
                      ({"method": "MAML", "model": "learned rate"}, {"method": "ANIL"})],
                     ignore_index=True)
    return tables.judge(rows, "LinNet, its convolutions alone adapting, minus others, in accuracy",
                        ["source", "against"], above=0)


EXPERIMENT = Experiment(
    "depth_images", "depth, linear layers and meta-optimizers on few-shot images", PROFILES, points,
    measure,
    {"D1/images": depth, "D2/images gain": gain, "D2/images collapse": collapse,
     "D3/images": external, "D4/images": below}, ("cuda", "cpu"))
