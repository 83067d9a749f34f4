"""Many runs at once, whatever their tasks are: how a fleet starts, trains, and is measured."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from companion import compiling, training
from companion.adaptation import Loss
from companion.checks import Array, at_least, require
from companion.losses import accuracy
from companion.meta_optimizers import Alpha, Params, Rule, rule_named
from companion.nets import Net
from companion.objectives import joined, learned, nal, parted, path_by_rule
from companion.streams import torch_stream
from companion.tasks import Fleet, stacked

CAP = 1e3  # the most that a test task's loss counts for: repeated steps can diverge


@dataclass(frozen=True)
class Budget:
    """What a fleet costs: ``steps`` of ``tasks`` by Adam at ``rate``, decayed to 0, a rule's
    parameters at ``rule_share`` of it, scored on ``query`` samples; then a test on ``test_tasks``
    of ``test_query`` samples, drawn ``batch`` at once: another ``batch`` draws other tasks."""

    steps: int
    tasks: int
    rate: float
    query: int = 0
    test_tasks: int = 0
    test_query: int = 0
    rule_share: float = 1.0
    batch: int = 50

    def __post_init__(self) -> None:
        for name, least in (("steps", 0), ("tasks", 0), ("query", 0), ("test_tasks", 0),
                            ("test_query", 0), ("batch", 1)):
            at_least(name, getattr(self, name), least, "see Budget", whole=True)


@dataclass(frozen=True)
class Model:
    """A network, and how it is trained ("maml" or "nal") and adapted: the rule, the number of inner
    steps, the rate of a rule that itself adapts, the names of the entries that adapt (all)."""

    net: Net
    method: str = "maml"
    rule: str = "SGD"
    steps: int = 1
    rule_alpha: float | None = None
    adapted: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        require(self.method in ("maml", "nal"), "method", 'be "maml" or "nal"', repr(self.method),
                "see Model")

    def split(self, both: Params) -> tuple[Params, Params]:
        """What stays in the inner loop, and what adapts, the rule's parameters with it."""
        params, rule = parted(both)
        names = params if self.adapted is None else self.adapted
        unknown = sorted(set(names) - set(params))
        require(not unknown, "adapted", f"name some of {', '.join(params)}", unknown,
                "see net.init")
        fixed = {name: value for name, value in params.items() if name not in names}
        return fixed, joined({name: params[name] for name in params if name in names}, rule)

    def rule_at(self, alpha: Alpha) -> Rule:
        """Its rule at an inner rate."""
        return rule_named(self.rule, alpha, self.steps)

    def path(self, loss: Loss, both: Params, support: Any, alpha: Any,
             ks: Sequence[int]) -> list[Params]:
        """All of the network's parameters after each number of inner steps at the rate
        ``alpha``."""
        fixed, inner = self.split(both)
        found = path_by_rule(lambda some, batch: loss(fixed | some, batch), inner, support,
                             steps=ks, rule=self.rule_at(alpha), rule_alpha=self.rule_alpha)
        return [fixed | moved for moved in found]

    def adapt(self, loss: Loss, both: Params, support: Any, alpha: Any, steps: int) -> Params:
        """:meth:`path` after one number of inner steps."""
        return self.path(loss, both, support, alpha, [steps])[0]


def start(fleet: Fleet, model: Model) -> Params:
    """Where the runs begin, [run, ...]: those of a seed from one network, rules at the identity."""
    drawn = {}
    for seed in set(fleet.seeds):
        params = model.net.init(torch_stream(seed, f"{fleet.name}/start"), dtype=fleet.alpha.dtype)
        inner = parted(model.split(params)[1])[0]
        drawn[seed] = joined(params, model.rule_at(1.0).init(inner))
    return {name: torch.stack([drawn[seed][name] for seed in fleet.seeds]).to(fleet.alpha.device)
            for name in drawn[fleet.seeds[0]]}


def objective(fleet: Fleet, model: Model) -> training.Objective:
    """What the model minimises: ``(params, drawn, *settings, alpha)`` -> scalar, for one task."""
    loss = fleet.loss(model.net.apply)

    def value(params: Params, drawn: Any, *settings: Any) -> torch.Tensor:
        *family, alpha = settings
        task = fleet.make(drawn, *family)
        if model.method == "nal":
            return (compiling.value(loss, params, task.query) if fleet.population else
                    nal(loss)(params, task))
        return learned(loss, steps=model.steps, rule=model.rule_at(alpha),
                       rule_alpha=model.rule_alpha, adapted=model.adapted)(params, task)

    return value


def gradient(fleet: Fleet, model: Model, *, compiled: bool = False) -> training.Gradient:
    """Its meta-gradient: ``(params, drawn, *settings, alpha)`` -> gradients, values; ``compiled``
    as in :func:`companion.training.fleet_gradient`."""
    return training.fleet_gradient(objective(fleet, model), chunk_size=fleet.chunk,
                                   task_chunk=fleet.chunk, compiled=compiled)


def train(fleet: Fleet, model: Model, budget: Budget, *, begin: Params | None = None,
          optimizer: training.Optimizer | None = None, compiled: bool = False,
          graph: bool = False, **options: Any) -> Params:
    """Train a fleet on fresh tasks; the parameters [run, ...] in double precision.

    ``begin`` replaces :func:`start`, ``optimizer`` Adam; ``compiled`` as in :func:`gradient`;
    ``graph`` replays the gradient as a CUDA graph; ``options`` are those of
    :func:`companion.training.train`.
    """
    low = fleet.to(fleet.training_dtype)
    begin = start(low, model) if begin is None else begin
    slopes = gradient(low, model, compiled=compiled)
    if graph:
        slopes = compiling.captured(slopes)
    params = training.train(
        slopes, {name: value.to(low.alpha.dtype) for name, value in begin.items()},
        low.draw(low, "train", budget.tasks, budget.query), optimizer=optimizer or _adam(budget),
        steps=budget.steps, settings=(*low.settings, low.alpha), **options)
    return {name: value.double() for name, value in params.items()}


def _adam(budget: Budget) -> training.Optimizer:
    """Adam, its rate decayed to 0; with a share of the rate for the parameters of a rule."""
    plain = training.adam(training.cosine(budget.rate, budget.steps))

    def update(gradients: Params, moments: Params, step: int) -> tuple[Params, Params]:
        updates, moments = plain.update(gradients, moments, step)
        params, rule = parted(updates)
        return joined(params, {name: budget.rule_share * u for name, u in rule.items()}), moments

    return training.Optimizer(plain.init, update)


def measure(fleet: Fleet, judge: Callable[..., Any], params: Params, budget: Budget, *,
            purpose: str = "test") -> Any:
    """``judge(params, drawn, *settings, alpha)`` on every test task, [run, task, ...]; all models
    see the same tasks. The fleet must have the precision of the parameters. ValueError: a budget
    without test tasks."""
    require(budget.test_tasks >= 1, "test_tasks", "be 1 or more to measure", budget.test_tasks,
            "name them in the Budget")
    settings = (*fleet.settings, fleet.alpha)
    every = (partial(_one_by_one, judge) if fleet.chunk == 1 else
             vmap(vmap(judge, in_dims=(None, 0, *[None] * len(settings)))))
    draw = fleet.draw(fleet, purpose, budget.batch, budget.test_query)
    with torch.no_grad():
        parts = [every(params, draw(i), *settings)
                 for i in range(math.ceil(budget.test_tasks / budget.batch))]
    return tree_map(lambda *leaves: torch.cat(leaves, 1)[:, : budget.test_tasks].cpu(), *parts)


def _one_by_one(judge: Callable[..., Any], params: Params, drawn: Any, *settings: Any) -> Any:
    """``judge`` on every task of every run in turn, where vmap is the slower way."""
    def of_run(run: int) -> Any:
        own, tasks, *rest = tree_map(lambda leaf: leaf[run], (params, drawn, *settings))
        count = tree_leaves(tasks)[0].shape[0]
        return stacked([judge(own, tree_map(lambda leaf, i=i: leaf[i], tasks), *rest)
                        for i in range(count)])

    return stacked([of_run(run) for run in range(len(next(iter(params.values()))))])


class Scores(NamedTuple):
    """Of every run and test task after each number of inner steps, [run, task, k]: the query loss,
    at most CAP, and the accuracy, NaN where labels are no classes."""

    risk: Array
    accuracy: Array

    @property
    def means(self) -> "Scores":
        """Over the tasks, [run, k]."""
        return Scores(self.risk.mean(1), self.accuracy.mean(1))


def scores(fleet: Fleet, model: Model, params: Params, budget: Budget, ks: Sequence[int], *,
           purpose: str = "test") -> Scores:
    """How trained models do on tasks that all share, after each number of inner steps in ``ks``."""
    loss, right = fleet.loss(model.net.apply), accuracy(model.net.apply)

    def judge(params: Params, drawn: Any, *settings: Any) -> tuple[torch.Tensor, torch.Tensor]:
        *family, alpha = settings
        task = fleet.make(drawn, *family)
        moved = model.path(loss, params, task.support, alpha, ks)
        risk = torch.stack([loss(some, task.query) for some in moved])
        shares = [right(some, task.query) if fleet.classes else risk.new_tensor(math.nan)
                  for some in moved]
        return torch.nan_to_num(risk, CAP).clamp(max=CAP), torch.stack(shares)

    return Scores(*(np.asarray(leaf) for leaf in
                    measure(fleet, judge, params, budget, purpose=purpose)))
