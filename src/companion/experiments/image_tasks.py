"""The landscape of image tasks, measured: what the theory leaves MAML to gain in a linear head.

Pairs of classes as linear regressions in a fixed feature space (paper L, claim L5); every number is
exact for the finite set of tasks that a seed draws. Criteria: with permuted labels the ratio of
mean risks after adaptation, NAL / MAML, both at MAML's best step, has its 95 % interval inside
``band`` = [.99, 1.01] in every family; and in no family, draw or step is the ratio above the
ceiling at the hardness spread h that is measured there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from companion import tables
from companion.experiment import Experiment, rounded
from companion.records import Point, Record, Row
from companion.streams import stream
from companion.tables import Finding
from companion.tasks import image_regressions, sources
from companion.tasks.episodes import pool
from companion.tasks.image_regressions import Moments
from companion.theory.gaussian import hardness_spread
from companion.theory.landscape import ceiling

FAMILY = ["source", "features", "hard", "labels", "batch"]  # what names a family of tasks
BATCHES = ("samples", "full")  # what an inner step sees


@dataclass(frozen=True)
class Config:
    """Every seed draws ``episodes`` episodes of ``pairs`` easy and as many hard pairs, adapted by
    one step on ``support`` samples or on the full batch. ``rates`` are inner steps times the
    largest curvature of any task."""

    sources: Sequence[str] = ("glyphs", "omniglot", "cifar_fs")
    components: int = 20
    pairs: int = 60
    episodes: int = 20_000
    support: int = 10
    rates: Sequence[float] = tuple(np.geomspace(0.1, 20, 12).round(4).tolist())
    band: tuple[float, float] = (0.99, 1.01)
    seeds: int = 20


PROFILES = {"quick": Config(("glyphs",), components=10, pairs=30, rates=(0.5, 1.5, 4.5), seeds=5),
            "full": Config()}


def points(config: Config) -> list[Point]:
    """Every source, feature space, and kind of hard tasks."""
    return [{"source": source, "features": features, "hard": hard} for source in config.sources
            for features in image_regressions.FEATURES for hard in image_regressions.HARD]


@lru_cache(maxsize=1)
def space_of(source: str, features: str, components: int) -> Moments:
    """The training classes of a source in a feature space, kept for the next point."""
    return image_regressions.moments(pool(sources.load(source), "train"), features, components)


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """A row for every seed, batch and labels. ``nal`` and ``maml`` are risks after adaptation, each
    at its own best step, with those on the hard tasks; ``nal_shared`` is NAL's at MAML's step,
    where ``h`` and the shares that a step leaves of easy and of hard tasks are measured, too;
    ``slack`` is the least of log(ceiling / ratio) over all steps."""
    space = space_of(point["source"], point["features"], config.components)
    rows = []
    for seed in range(config.seeds):
        rng = stream(seed, f"image_tasks/{point['source']}/{point['hard']}")
        tasks, balances = image_regressions.draw(space, rng, point["hard"], pairs=config.pairs,
                                                 episodes=config.episodes)
        alphas = np.array(config.rates) / np.linalg.eigvalsh(tasks.covariances).max()
        for batch in BATCHES:
            support = config.support if batch == "samples" else math.inf
            compared = [image_regressions.compare(tasks, balances, a, support) for a in alphas]
            spreads = [hardness_spread(tasks.covariances, a, support, tasks.weights)
                       for a in alphas]
            for labels, balance in balances.items():
                nal, maml, nal_hard, maml_hard = np.array([risks[labels] for risks in compared]).T
                i, j = nal.argmin(), maml.argmin()
                easy, hard = image_regressions.share_left(tasks, alphas[j], support)
                rows.append({**point, "labels": labels, "batch": batch, "seed": seed} | rounded(
                    rate_nal=config.rates[i], rate_maml=config.rates[j], h=spreads[j],
                    separation=image_regressions.separation(tasks, balance), left_easy=easy,
                    left_hard=hard, nal=nal[i], maml=maml[j], nal_hard=nal_hard[i],
                    maml_hard=maml_hard[j], nal_shared=nal[j],
                    slack=np.log(ceiling(spreads) * maml / nal).min()))
    return rows


def ratios(table: pd.DataFrame, on: str = "own") -> pd.DataFrame:
    """The ratio of mean risks NAL / MAML of every family: on all tasks, each method at its "own"
    best step; on the "hard" tasks at these steps; or on all tasks, both at MAML's step, the
    "shared" one, where it is largest."""
    top, bottom = {"own": ("nal", "maml"), "hard": ("nal_hard", "maml_hard"),
                   "shared": ("nal_shared", "maml")}[on]
    return tables.contrast(table, FAMILY, top, bottom)


def permuted(record: Record) -> Finding:
    """L5: with permuted labels the ratio at MAML's best step is 1 within the band."""
    rows = ratios(tables.where(record.table, labels="permuted"), "shared")
    return tables.judge(rows, "risk NAL / MAML, labels permuted",
                        ["source", "features", "hard", "batch"],
                        inside=tuple(record.provenance["config"]["band"]))


def below_the_ceiling(record: Record) -> Finding:
    """L5: the ratio is never above the ceiling. A theorem has no exceptions: not the mean over
    draws is asked but the least, so the interval is one number."""
    rows = record.table.groupby(FAMILY, sort=False)["slack"].min().reset_index(name="value")
    return tables.judge(rows.assign(low=rows["value"], high=rows["value"]),
                        "least log(ceiling / ratio) of all draws and steps", FAMILY, above=0)


EXPERIMENT = Experiment(
    "image_tasks", "pairs of image classes as linear regressions: hardness, ceiling and ratio",
    PROFILES, points, measure, {"L5/permuted": permuted, "L5/ceiling": below_the_ceiling})
