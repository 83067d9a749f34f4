"""MAML against NAL on few-shot images, hard tasks packed or spread (paper L, claims L5 and L6)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

from companion import tables
from companion.experiment import Experiment, unless_lost
from companion.experiments import images
from companion.experiments.images import Arm, Sizes
from companion.fleets import Budget
from companion.measures.episodes import ENVIRONMENTS, PACKING, differences, slopes
from companion.records import Point, Record, Row
from companion.tables import Finding
from companion.tasks.episodes import Setting, episode_fleet

POINT = ["source", "arm", "alpha", "trained", "fraction"]


class Trial(NamedTuple):
    """How an arm is trained: its method, inner steps, the inner rates that it is trained at, and
    the fractions of hard training tasks."""

    method: str
    inner: int
    alphas: Sequence[float]
    fractions: Sequence[float]


@dataclass(frozen=True)
class Config:
    """Hard tasks come from ``packed`` groups or from all. What is not about fractions is at
    ``base``. ``ks``: inner steps at test. Every arm is tested at the same inner rates,
    ``sizes.factors`` times that of the setting. The seeds are those from ``first`` on."""

    settings: Mapping[str, Setting] = field(default_factory=lambda: {
        "omniglot": Setting("omniglot", 5, 1, 0.4, within=True)})
    sizes: Sizes = Sizes()
    trials: Mapping[str, Trial] = field(default_factory=lambda: {
        "MAML": Trial("MAML", 1, (0.1,), (0.0, 0.5, 1.0)),
        "MAML, 5 steps": Trial("MAML", 5, (0.1,), (0.5,)),
        "NAL-global": Trial("NAL-global", 0, (0.4,), (0.0, 0.5, 1.0)),
        "MAML, larger step": Trial("MAML", 1, (0.4,), (0.0,)),
        "untrained": Trial("untrained", 0, (0.4,), ())})
    packed: int = 2
    base: float = 0.5
    ks: Sequence[int] = (1, 10)
    seeds: int = 8
    first: int = 0


_ADAPTIVE = {"MAML": Trial("MAML", 1, (0.1, 0.4, 1.6), (0.5,)),
             "MAML, 5 steps": Trial("MAML", 5, (0.1, 0.4, 1.6), (0.5,)),
             "NAL-global": Trial("NAL-global", 0, (0.4,), (0.5,))}
_LARGE = Budget(steps=4_000, tasks=16, rate=0.001, test_tasks=500, batch=50)

PROFILES = {
    "quick": Config(
        {"glyphs": Setting("glyphs", 5, 1, 0.4, within=True)},
        Sizes(filters=8, blocks=3, factors=(1 / 4, 1), valid_episodes=20,
              budget=Budget(steps=150, tasks=4, rate=0.01, test_tasks=20, batch=20)),
        {"MAML": Trial("MAML", 1, (0.4,), (0.0, 0.5, 1.0)),
         "MAML, 3 steps": Trial("MAML", 3, (0.4,), (0.5,)),
         "NAL-global": Trial("NAL-global", 0, (0.4,), (0.0, 0.5, 1.0)),
         "untrained": Trial("untrained", 0, (0.4,), ())}, seeds=2),
    "pilot": Config(trials=_ADAPTIVE, seeds=4, first=1000,
                    sizes=Sizes(factors=(1 / 4, 1, 4), valid_episodes=60,
                                budget=replace(Sizes().budget, steps=250, test_tasks=100))),
    "full": Config(),
    # some of full once more, to be run on another machine
    "again": Config(trials={"MAML": Trial("MAML", 1, (0.1,), (0.5,))}, seeds=4),
    "large": Config(sizes=Sizes(filters=64, valid_episodes=200, budget=_LARGE)),
}


def points(config: Config) -> list[Point]:
    """A fleet for every source, arm, inner rate, environment and fraction of hard tasks."""
    found: list[tuple[object, ...]] = []
    for source in config.settings:
        for arm, trial in config.trials.items():
            found += [(source, arm, alpha, trained, fraction) for alpha in trial.alphas
                      for fraction in trial.fractions or (0.0,)
                      for trained in (ENVIRONMENTS if fraction else
                                      ("easy",) if trial.fractions else ("nothing",))]
    return [dict(zip(POINT, point, strict=True)) for point in found]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """Rows for every environment that the point is tested in, the one that it was trained in or
    both if in none, on easy and on hard episodes."""
    trial, setting = config.trials[point["arm"]], config.settings[point["source"]]
    arm, sizes = Arm(trial.method), replace(config.sizes, inner=trial.inner)
    groups = {"packed": config.packed}  # elsewhere all
    tested = [point["trained"]] if point["trained"] in ENVIRONMENTS else ENVIRONMENTS
    model = images.model_of(arm, setting, sizes, device=device)

    def rows(seeds: Sequence[int]) -> list[Row]:
        found = images.train_arm(
            arm, replace(setting, alpha=point["alpha"]), sizes, seeds, device=device,
            key=images.training_key("landscape_images", config, point),
            hard_groups=groups.get(point["trained"], 0), fraction=point["fraction"])
        every: list[Row] = []
        for environment in tested:
            of = partial(episode_fleet, setting, seeds, device=device,
                         hard_groups=groups.get(environment, 0))
            every += [{**point, "environment": environment} | row for row in images.scored(
                found, model, sizes, config.ks, of(fraction=config.base),
                {"easy": of(fraction=0.0), "hard": of(fraction=1.0)})]
        return every

    return unless_lost(
        rows, range(config.first, config.first + config.seeds),
        lambda seed: [{**point, "environment": environment} | row for environment in tested
                      for row in images.lost(seed, ("easy", "hard"), config.ks, setting.ways)])


def packed_minus_spread(record: Record) -> Finding:
    """L5: (MAML - NAL-global) on hard episodes, packed minus spread, is above 0."""
    rows = differences(record.table, record.provenance["config"]["base"])
    return tables.judge(rows, "(MAML - NAL-global), packed minus spread, in accuracy",
                        PACKING, above=0)


def more_hard_tasks(record: Record) -> Finding:
    """L6: the slope of MAML's accuracy on hard episodes against the fraction is above 0."""
    return tables.judge(slopes(record.table), "slope of accuracy against the share of hard tasks",
                        ["source", "environment", "k"], above=0)


EXPERIMENT = Experiment(
    "landscape_images", "MAML against NAL on few-shot images, hard tasks packed or spread",
    PROFILES, points, measure,
    {"L5/alphabets": packed_minus_spread, "L6/alphabets": more_hard_tasks}, ("cuda", "cpu"))
