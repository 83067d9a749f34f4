"""Fleets of models trained and tested on tasks that a shallow model solves: what paper D's
experiments share."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from companion import streams, training
from companion.adaptation import Loss
from companion.checks import Array
from companion.errors import Diverged
from companion.evaluation import Interval, bootstrap
from companion.losses import cross_entropy, logistic, squared_error
from companion.meta_optimizers import RULES, Alpha, Params, Rule
from companion.nets import Apply, Net
from companion.objectives import adapted_by_rule, joined, learned, parted
from companion.records import Row
from companion.sweeps import Point
from companion.tasks import Task, readouts
from companion.tasks.readouts import Shallow

_BATCH = 50  # test tasks at once
# the most that a test task's loss counts for: repeated steps of a trained model can diverge
CAP = 1e3


class Sizes(NamedTuple):
    """What a training costs: tasks a step, outer steps, their first rate; samples to score on,
    tasks to test on."""

    tasks: int
    steps: int
    rate: float
    query: int
    test_tasks: int
    test_query: int


def sizes(config: Any) -> Sizes:
    """The sizes of the fleets of a config, which has fields of these names."""
    return Sizes(*(getattr(config, name) for name in Sizes._fields))


class Fleet(NamedTuple):
    """Runs trained together: families [run, ...] and inner steps ``alpha`` [run], one run a seed at
    a setting."""

    kind: str
    support: int
    seeds: tuple[int, ...]
    families: Shallow
    alpha: torch.Tensor

    @property
    def exact(self) -> bool:
        """Whether expected losses are had without samples (for models linear in x)."""
        return self.kind == "regression" and self.families.linear

    @property
    def outputs(self) -> int:
        """Outputs of a task."""
        return self.families.output_root.shape[-1]

    def loss(self, apply: Apply) -> Loss:
        """The loss of the fleet's kind of task."""
        if self.kind == "regression":
            return squared_error(apply)
        return logistic(apply) if self.outputs == 1 else cross_entropy(apply)

    def normals(
        self, purpose: str, tasks: int, query: int
    ) -> Callable[[int], dict[str, torch.Tensor]]:
        """The draws for ``purpose``, a step at a time; they depend on the seeds alone."""
        shapes = readouts.shapes(self.families, tasks, self.support + (0 if self.exact else query))
        device, dtype = str(self.alpha.device), self.alpha.dtype
        return streams.normals(self.seeds, f"synthetic/{purpose}", shapes, device=device,
                               dtype=dtype)

    def task(self, normal: dict[str, torch.Tensor], of: Shallow) -> Task:
        """One task from its normals."""
        return readouts.task(of, normal, self.kind, self.support, exact=self.exact)


def fleet(kind: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int], *, support: int,
          device: str = "cpu") -> Fleet:
    """A run for every setting and seed, settings outermost.

    A setting holds the arguments of :func:`companion.tasks.readouts.family` and ``alpha``, the
    inner step times the
    largest curvature: the largest eigenvalue of S, a quarter of it for boundaries. Runs of one seed
    share axes, features and draws.
    """
    families, alphas = [], []
    for setting in settings:
        of = {name: value for name, value in setting.items() if name != "alpha"}
        for seed in seeds:
            found = readouts.family(streams.torch_stream(seed, "synthetic/family"), **of)
            top = max(of["scales"]) ** 2 * (1 if kind == "regression" else 0.25)
            families.append(found)
            alphas.append(setting["alpha"] / top)
    stacked: Shallow = tree_map(lambda *leaves: torch.stack(leaves).to(device), *families)
    alpha = torch.tensor(alphas, dtype=torch.float64, device=device)
    return Fleet(kind, support, tuple(seeds) * len(settings), stacked, alpha)


def single(of: Fleet) -> Fleet:
    """The fleet in single precision, for training: samples are noisier than float32."""
    families, alpha = tree_map(lambda leaf: leaf.float(), (of.families, of.alpha))
    return of._replace(families=families, alpha=alpha)


class Model(NamedTuple):
    """A network, how it is adapted, and what of it: names of entries, or None for all."""

    net: Net
    rule: str = "SGD"
    steps: int = 1
    rule_alpha: float | None = None
    adapted: tuple[str, ...] | None = None

    def of_rule(self, alpha: Alpha) -> Rule:
        """The rule at an inner step."""
        return RULES[self.rule](alpha)


def start(of: Fleet, model: Model) -> Params:
    """Where the runs begin, [run, ...]: runs of one seed from one network, and rules at the
    identity."""
    drawn = {}
    for seed in set(of.seeds):
        params = model.net.init(streams.torch_stream(seed, "synthetic/start"), dtype=of.alpha.dtype)
        inner = {name: value
                 for name, value in params.items()
                 if model.adapted is None or name in model.adapted}
        drawn[seed] = joined(params, model.of_rule(1.0).init(inner))
    first = drawn[of.seeds[0]]
    return {name: torch.stack([drawn[seed][name] for seed in of.seeds]).to(of.alpha.device)
            for name in first}


def objective(of: Fleet, model: Model) -> training.Objective:
    """What the model minimises: (params, normals, family, alpha) -> scalar."""
    loss = of.loss(model.net.apply)

    def value(
        params: Params, normal: dict[str, torch.Tensor], family: Shallow, alpha: torch.Tensor
    ) -> torch.Tensor:
        made = learned(loss, steps=model.steps, rule=model.of_rule(alpha),
                       rule_alpha=model.rule_alpha, adapted=model.adapted)
        return made(params, of.task(normal, family))

    return value


def train(
    of: Fleet, model: Model, sizes: Sizes, *, begin: Params | None = None, watch: Any = None
) -> Params:
    """Train a fleet by Adam on fresh tasks, its rate decayed to 0; the parameters in double
    precision."""
    low = single(of)
    begin = (start(low, model)
             if begin is None
             else {name: value.float() for name, value in begin.items()})
    found = training.train(training.fleet_gradient(objective(low, model)), begin,
                           low.normals("train", sizes.tasks, sizes.query),
                           optimizer=training.adam(training.cosine(sizes.rate, sizes.steps)),
                           steps=sizes.steps, settings=(low.families, low.alpha), watch=watch)
    return {name: value.double() for name, value in found.items()}


def by_alpha(compute: Callable[[Sequence[float]], list[Row]], alphas: Sequence[float], lost: Row,
             seeds: int) -> list[Row]:
    """The rows of a fleet at several inner steps. Where a run diverges in training, the inner steps
    one by one.

    An inner step with a run that diverges is lost: its rows are those of ``lost``, with ``alpha``
    and every seed.
    """
    try:
        return compute(alphas)
    except Diverged:
        if len(alphas) > 1:
            return [row for alpha in alphas for row in by_alpha(compute, [alpha], lost, seeds)]
        return [{**lost, "alpha": alphas[0], "seed": seed} for seed in range(seeds)]


class Scores(NamedTuple):
    """Means over test tasks, [run, k] for each number of inner steps: loss, and accuracy (0 for
    regression)."""

    risk: Array
    accuracy: Array


def scores(of: Fleet, model: Model, params: Params, sizes: Sizes, ks: Iterable[int],
           purpose: str = "test") -> Scores:
    """How trained models do on tasks that all share, after each number of inner steps in ``ks``.

    The risk is the mean query loss; of regression with a model linear in x, the exact excess risk.
    A task on which a model diverges counts as CAP, as does every loss above it.
    """
    loss, apply, counts = of.loss(model.net.apply), model.net.apply, tuple(ks)

    def judge(
        params: Params, normal: dict[str, torch.Tensor], family: Shallow, alpha: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        task = of.task(normal, family)
        plain, own = parted(params)
        names = plain.keys() if model.adapted is None else model.adapted
        fixed = {name: value for name, value in plain.items() if name not in names}
        inner = joined({name: plain[name] for name in names}, own)

        def part(some: Params, batch: Any) -> torch.Tensor:
            return loss(fixed | some, batch)

        move = partial(adapted_by_rule, part, inner, task.support, rule=model.of_rule(alpha),
                       rule_alpha=model.rule_alpha)
        moved = [fixed | move(steps=k) for k in counts]
        risk = torch.stack([loss(some, task.query) for some in moved])
        x, y = task.query
        classes = of.kind == "boundaries"
        right = torch.stack(
            [_right(apply(some, x), y) if classes else risk.new_zeros(()) for some in moved]
        )
        return torch.nan_to_num(risk, CAP).clamp(max=CAP), right

    of_fleet = vmap(vmap(judge, in_dims=(None, 0, None, None)))
    draw = of.normals(purpose, _BATCH, sizes.test_query)
    batches = -(-sizes.test_tasks // _BATCH)
    parts = [[leaf.mean(1) for leaf in of_fleet(params, draw(i), of.families, of.alpha)]
             for i in range(batches)]
    risk, right = (
        np.asarray(torch.stack(leaves).mean(0).cpu()) for leaves in zip(*parts, strict=True)
    )
    return Scores(risk, right)


def _right(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The share of classes that are right, from logits of class 1 [sample] or of all classes
    [sample, class]."""
    chosen = outputs.argmax(-1) if outputs.ndim > 1 else outputs > 0
    return (chosen == y).to(outputs.dtype).mean()


def rounded(columns: Mapping[str, Any]) -> dict[str, float]:
    """Numbers to six digits, for a table."""
    return {name: float(f"{float(value):.6g}") for name, value in columns.items()}


def as_rows(
    point: Point, of: Fleet, alphas: Sequence[float], columns: Mapping[str, Array]
) -> list[Row]:
    """One row for every run, at its inner step and seed; ``columns`` are [run]."""
    told = np.repeat(np.asarray(alphas), len(of.seeds) // len(alphas))
    return [{**point, "alpha": float(told[i]), "seed": seed}
            | rounded({name: own[i] for name, own in columns.items()})
            for i, seed in enumerate(of.seeds)]


def risk_ratio(top: Array, bottom: Array) -> Interval:
    """The mean risk of one model over that of another, both [seed], with its interval over
    seeds."""
    return bootstrap(lambda risks: risks[..., 0].mean(-1) / risks[..., 1].mean(-1),
                     np.stack([top, bottom], axis=1))


def mean_interval(values: Array) -> Interval:
    """The mean of ``values`` [seed] with its interval over seeds."""
    return bootstrap(lambda drawn: drawn.mean(axis=-2)[..., 0], np.asarray(values)[:, None])


def at_best(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows at the inner step of least mean validation risk, of every group of equal
    ``keys``."""
    means = table.groupby([*keys, "alpha"], sort=False)["valid"].mean().reset_index()
    best = means.loc[means.groupby(keys, sort=False)["valid"].idxmin(), [*keys, "alpha"]]
    return table.merge(best, on=[*keys, "alpha"])
