"""Convolutional networks trained and tested on few-shot episodes: what both papers' experiments on
images share."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch

from companion import nets, paths, records
from companion.checkpoints import Checkpoint
from companion.checks import Array
from companion.experiment import rounded
from companion.fleets import Budget, Model, measure, start, train
from companion.losses import accuracy
from companion.meta_optimizers import Params
from companion.records import Point, Row
from companion.tasks import Fleet
from companion.tasks.episodes import Setting, episode_fleet, pools

_LAST = 20  # outer steps that the final objective is a mean over


@dataclass(frozen=True)
class Sizes:
    """The network and its cost: ``width`` of the linear layers added; ``inner`` steps in training;
    ``factors`` times the setting's inner rate are tried on ``valid_episodes``."""

    filters: int = 32
    blocks: int = 4
    width: int = 32
    inner: int = 1
    factors: Sequence[float] = (1 / 16, 1 / 4, 1, 4)
    valid_episodes: int = 50
    budget: Budget = Budget(steps=500, tasks=8, rate=0.003, test_tasks=200, rule_share=0.1,
                            batch=50)


class Arm(NamedTuple):
    """A method, the rule that it adapts with, and the linear layers added before the head. "MAML"
    adapts all, "ANIL" the linear layers and the head alone, "BOIL" all but these; "NAL-global",
    "NAL-episodic" and "untrained" do not adapt in training."""

    method: str
    rule: str = "SGD"
    linear_layers: int = 0


def model_of(arm: Arm, setting: Setting, sizes: Sizes, outputs: int | None = None,
             device: str = "cpu") -> Model:
    """The network of an arm, with the episodes' ways as outputs if not named."""
    by_split = pools(setting.source, setting.within)
    channels, height, width = by_split["train"].images.shape[1:]
    net = nets.cnn((channels, height, width), sizes.filters, sizes.blocks,
                   setting.ways if outputs is None else outputs, linear_layers=arm.linear_layers,
                   width=sizes.width, patches=device != "cpu")
    params = net.init(torch.Generator())
    top = nets.head_names(params)
    adapted = {"ANIL": top, "BOIL": tuple(name for name in params if name not in top)}
    return Model(net, "nal" if arm.method.startswith("NAL") else "maml", arm.rule, sizes.inner,
                 adapted=adapted.get(arm.method))


class Trained(NamedTuple):
    """Parameters [run, ...], ready to be adapted to N-way episodes, and the objective that training
    came to, [run]; NaN without training."""

    params: Params
    loss: Array


def train_arm(arm: Arm, setting: Setting, sizes: Sizes, seeds: Sequence[int], *, key: str,
              device: str = "cpu", **hard: Any) -> Trained:
    """Train a run for every seed on episodes of the training split.

    NAL-global learns to tell all training classes apart; afterwards its head is a fresh one, of
    zeros. The state is kept in the cache under ``key``, any text that tells the training apart, and
    an interrupted training goes on from there. ``hard`` are options of
    :func:`companion.tasks.episodes.episode_fleet`.
    """
    everything = arm.method == "NAL-global"
    fleet = episode_fleet(setting, seeds, global_labels=everything, device=device, **hard)
    classes = len(pools(setting.source, setting.within)["train"].first)
    model = model_of(arm, setting, sizes, classes if everything else None, device)
    if arm.method == "untrained":
        return Trained(start(fleet, model), np.full(len(fleet.seeds), np.nan))
    values: list[torch.Tensor] = []

    def watch(step: int, params: Params, found: torch.Tensor) -> None:
        if step >= sizes.budget.steps - _LAST:
            values.append(found)

    name = hashlib.sha256(f"{key} of {list(seeds)} on {device}".encode()).hexdigest()[:16]
    kept = Checkpoint(paths.cache() / "checkpoints" / f"{name}.safetensors", 200, key)
    # compiling takes a minute: more than a short run
    params = train(fleet, model, sizes.budget, watch=watch, checkpoint=kept,
                   compiled=device == "cpu" and sizes.budget.steps > 200, graph=device != "cpu")
    params = {name: value.float() for name, value in params.items()}
    if everything:
        params = nets.fresh_head(params, setting.ways)
    return Trained(params, torch.stack(values).mean(0).double().cpu().numpy())


def accuracies(fleet: Fleet, model: Model, params: Params, budget: Budget, ks: Sequence[int], *,
               purpose: str = "test") -> Array:
    """The accuracy on every test task after each number of inner steps, [run, task, k]."""
    loss, right = fleet.loss(model.net.apply), accuracy(model.net.apply)

    def judge(params: Params, drawn: Any, alpha: Any) -> torch.Tensor:
        task = fleet.make(drawn)
        return torch.stack([right(one, task.query)
                            for one in model.path(loss, params, task.support, alpha, ks)])

    return np.asarray(measure(fleet, judge, params, budget, purpose=purpose))


def best_rates(fleet: Fleet, model: Model, sizes: Sizes, params: Params,
               ks: Sequence[int]) -> tuple[Array, Array]:
    """The tried inner rate of highest accuracy on validation classes, and that accuracy, for every
    run and number of steps: [run, k] each."""
    budget = replace(sizes.budget, test_tasks=sizes.valid_episodes)
    rates = torch.stack([factor * fleet.alpha for factor in sizes.factors])
    means = np.stack([accuracies(fleet.at(alpha), model, params, budget, ks,
                                 purpose="validate").mean(1) for alpha in rates])
    best = means.argmax(0)
    return np.take_along_axis(rates.cpu().numpy()[..., None], best[None], 0)[0], means.max(0)


def scored(found: Trained, model: Model, sizes: Sizes, ks: Sequence[int], valid: Fleet,
           tests: Mapping[str, Fleet]) -> list[Row]:
    """Accuracy on test classes of every run after ``ks`` inner steps, each at the run's own inner
    rate, the best on ``valid``: its mean over the episodes of every kind of ``tests``, and that
    mean's error."""
    rates, checked = best_rates(valid, model, sizes, found.params, ks)
    rows: list[Row] = []
    for kind, fleet in tests.items():
        right = np.empty((len(fleet.seeds), sizes.budget.test_tasks, len(ks)))
        for own in {tuple(column) for column in rates.T}:  # one path for all ks of equal rates
            same = [j for j in range(len(ks)) if tuple(rates[:, j]) == own]
            right[..., same] = accuracies(fleet.at(torch.tensor(own)), model, found.params,
                                          sizes.budget, [ks[j] for j in same])
        errors = right.std(axis=1, ddof=1) / right.shape[1] ** 0.5
        rows += [{"episodes": kind, "seed": seed, "k": k}
                 | rounded(loss=found.loss[run], valid=checked[run, j], step=rates[run, j],
                           accuracy=right[run, :, j].mean(), error=errors[run, j])
                 for j, k in enumerate(ks) for run, seed in enumerate(fleet.seeds)]
    return rows


def lost(seed: int, kinds: Sequence[str], ks: Sequence[int], ways: int) -> list[Row]:
    """The rows of a run that diverged in training: it is right by chance alone."""
    return [{"episodes": kind, "seed": seed, "k": k, "loss": None, "valid": 1 / ways, "step": 0.0,
             "accuracy": 1 / ways, "error": 0.0} for kind in kinds for k in ks]


def training_key(experiment: str, config: Any, point: Point) -> str:
    """What tells the training of a point apart."""
    return records.key(experiment, config, [point])
