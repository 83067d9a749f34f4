"""What a landscape and what a preconditioner give: four learners on every family of tasks (B4).

A start is NAL's or learned with the step; a step is one rate or a full matrix. All four are learned
on drawn tasks, exactly, and judged on as many new ones of the same family, with the closed form of
:mod:`companion.theory.preconditioners`. With the logarithms n, m of the risks of NAL's and of
MAML's start, 1 at one rate and P at a full matrix, the whole gain n_1 - m_P is the sum of

    landscape = [(n_1 - m_1) + (n_P - m_P)] / 2,    step = [(n_1 - n_P) + (m_1 - m_P)] / 2,

each the mean over both orders of adding the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import pandas as pd

from companion import tables
from companion.checks import Array
from companion.experiment import Experiment, rounded
from companion.experiments.image_tasks import space_of
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks import image_regressions
from companion.theory import gaussian, preconditioners

SPREAD = {"spread inputs": {"inputs": True, "tasks": False},
          "spread tasks": {"inputs": False, "tasks": True},
          "inputs and tasks": {"inputs": True, "tasks": True}}
RISKS = ("nal_rate", "nal_full", "maml_rate", "maml_full")


class Drawn(NamedTuple):
    """Tasks: covariances [task, d, d], optima [task, d] and the labels' noise [task]."""

    covariances: Array
    optima: Array
    noise: Array

    def every_other(self, first: int) -> "Drawn":
        """Every second task from ``first`` on."""
        return Drawn(*(leaf[first::2] for leaf in self))


@dataclass(frozen=True)
class Config:
    """``tasks`` to learn from and as many to judge, one step on ``support`` samples. ``mixtures``
    are rho_E, rho_H, R, v_E, v_H, all with ``dim`` inputs; ``scales`` the least and largest root of
    a spread variance. Of images: pairs of classes, half of them hard, ``components`` principal
    components and a constant."""

    sources: Sequence[str] = ("glyphs", "omniglot", "cifar_fs")
    components: int = 10
    mixtures: Mapping[str, tuple[float, float, float, float, float]] = field(
        default_factory=lambda: {"running example": (0.9, 0.1, 3.0, 1.0, 0.01),
                                 "spread hard tasks": (0.9, 0.1, 3.0, 1.0, 1.0),
                                 "equal curvature": (0.9, 0.9, 3.0, 1.0, 0.01)})
    dim: int = 10
    scales: tuple[float, float] = (0.1, 3.0)
    tasks: int = 300
    support: int = 20
    seeds: int = 20


PROFILES = {"quick": Config(("glyphs",), tasks=100, seeds=3), "full": Config()}


def _gaussian(config: Config, rng: np.random.Generator, count: int, *, inputs: bool,
              tasks: bool) -> Drawn:
    """One kind of tasks: the variances of inputs, of optima, or of both are spread; otherwise those
    of inputs are 1, and those of optima equal. Optima have the total variance 1."""
    spread = np.geomspace(*config.scales, config.dim) ** 2
    even = np.ones(config.dim)
    sizes = spread if tasks else even
    optima = rng.standard_normal((count, config.dim)) * np.sqrt(sizes / sizes.sum())
    covariance = np.diag(spread if inputs else even)
    return Drawn(np.broadcast_to(covariance, (count, *covariance.shape)), optima, np.zeros(count))


def _mixture(config: Config, name: str, rng: np.random.Generator, count: int) -> Drawn:
    """Easy and hard tasks, half each."""
    rho_easy, rho_hard, distance, var_easy, var_hard = config.mixtures[name]
    hard = rng.permuted(np.arange(count) // 2 % 2)  # as many in both halves, nearly
    rho, size = np.where(hard, rho_hard, rho_easy), np.where(hard, var_hard, var_easy)
    optima = rng.standard_normal((count, config.dim)) * np.sqrt(size / config.dim)[:, None]
    optima[:, 0] += distance * hard
    return Drawn(rho[:, None, None] * np.eye(config.dim), optima, np.zeros(count))


def _images(config: Config, source: str, hard: str, rng: np.random.Generator, count: int) -> Drawn:
    """Pairs of classes, easy ones in random order and hard ones in a fixed order."""
    space, half = space_of(source, "components", config.components), count // 2
    kinds = [image_regressions.draw_pairs(space.group, rng, kind, half) for kind in ("none", hard)]
    pairs = np.stack(kinds, axis=1).reshape(-1, 2)  # easy, hard, easy, hard
    pairs = pairs.reshape(-1, 2, 2, 2).swapaxes(1, 2).reshape(-1, 2)  # both in either half
    is_hard = np.tile([False, False, True, True], len(pairs) // 4)
    found = image_regressions.regressions(space, pairs, np.ones(len(pairs)), is_hard)
    order = np.where(is_hard, 1, rng.choice([-1, 1], len(pairs)))
    return Drawn(found.covariances, order[:, None] * found.optima, found.noise)


def points(config: Config) -> list[Point]:
    """Every family."""
    return [{"family": name} for name in (*config.mixtures, *SPREAD, *(
        f"{source}, {hard}" for source in config.sources for hard in image_regressions.HARD))]


def drawn_of(config: Config, family: str, rng: np.random.Generator, count: int) -> Drawn:
    """``count`` tasks of a family."""
    if family in config.mixtures:
        return _mixture(config, family, rng, count)
    if family in SPREAD:
        return _gaussian(config, rng, count, **SPREAD[family])
    source, hard = family.split(", ")
    return _images(config, source, hard, rng, count)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed: the risks on new tasks, and before any step."""
    rows, support = [], config.support
    for seed in range(config.seeds):
        rng = stream(seed, f"shares/{point['family']}")
        drawn = drawn_of(config, point["family"], rng, 2 * config.tasks)
        train, test = drawn.every_other(0), drawn.every_other(1)
        tasks = (train.covariances, train.optima, support, None, train.noise)
        nal, identity = gaussian.minimiser_nal(*tasks[:2]), np.eye(train.optima.shape[1])
        one, full = (preconditioners.together(*tasks, kind=kind, starts=0)
                     for kind in preconditioners.KINDS)
        risks = {name: preconditioners.risk(w, step, test.covariances, test.optima, support,
                                            noise=test.noise)
                 for name, w, step in (
                     ("before", nal, 0 * identity),
                     ("nal_rate", nal, preconditioners.best_rate(nal, *tasks) * identity),
                     ("nal_full", nal, preconditioners.best(nal, *tasks)),
                     ("maml_rate", one.w, one.preconditioner),
                     ("maml_full", full.w, full.preconditioner))}
        rows.append({**point, "seed": seed} | rounded(**risks))
    return rows


def gains(table: pd.DataFrame) -> pd.DataFrame:
    """Of every family: the parts of the logarithm of the whole gain, by ``what``."""
    n1, nf, m1, mf = (np.log(table[name]) for name in RISKS)
    parts = {"landscape": (n1 - m1 + nf - mf) / 2, "step": (n1 - nf + m1 - mf) / 2}
    return pd.concat([tables.means(table.assign(part=values), ["family"], "part").assign(what=what)
                      for what, values in parts.items()], ignore_index=True)


def step_on_images(record: Record) -> Finding:
    """B4: on pairs of image classes the step's part is larger than the landscape's."""
    images = record.table[record.table["family"].str.contains(", ")]
    more = np.log(images["maml_rate"] / images["nal_full"])  # step - landscape, exactly
    rows = tables.means(images.assign(more=more), ["family"], "more")
    return tables.judge(rows, "the step's part minus the landscape's, in log risk", ["family"],
                        above=0)


EXPERIMENT = Experiment(
    "shares", "what a landscape and what a preconditioner give, family by family", PROFILES, points,
    measure, {"B4/images": step_on_images})
