"""Convolutional networks trained and tested on few-shot episodes: what both papers' experiments on
images share."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from companion import nets, paths, records, training
from companion.adaptation import adapt
from companion.checkpoints import Checkpoint
from companion.checks import Array
from companion.evaluation import Interval, estimate
from companion.losses import cross_entropy
from companion.meta_optimizers import RULES, Alpha, Params
from companion.objectives import joined, learned, nal, parted
from companion.records import Row
from companion.streams import stream, torch_stream
from companion.sweeps import Point
from companion.tasks import Task, episodes, sources
from companion.tasks.episodes import Pool

_BATCH = 25  # test episodes at once
_LOSS_STEPS = 20  # steps of fresh episodes that the final objective is a mean over
_CHECKPOINT_EVERY = 200


@dataclass(frozen=True)
class Setting:
    """Where episodes come from: a source, its classes split ``within`` groups or as published;
    their size; the inner step ``alpha`` of training."""

    source: str
    ways: int
    shots: int
    alpha: float
    queries: int = 5
    within: bool = False


@dataclass(frozen=True)
class Sizes:
    """The network, its training, and its test. ``inner`` steps of a method that adapts in training;
    outer ``steps`` of ``meta_batch`` episodes, by Adam, the ``rate`` decayed to 0, that of a rule's
    parameters ``rule_share`` of it; ``factors`` times the setting's alpha are the inner steps that
    are tried on ``valid_episodes``."""

    filters: int = 16
    blocks: int = 2
    pool: bool = True
    inner: int = 5
    meta_batch: int = 4
    steps: int = 1000
    rate: float = 0.005
    rule_share: float = 0.1
    test_episodes: int = 300
    valid_episodes: int = 100
    factors: Sequence[float] = (1 / 16, 1 / 4, 1, 4, 16)


class Model(NamedTuple):
    """A method, the rule that it adapts with, and linear layers added before the head.

    The methods are MAML, ANIL, NAL-global, NAL-episodic and untrained.
    """

    method: str
    rule: str = "SGD"
    linear_layers: int = 0


class Fleet(NamedTuple):
    """Runs trained together, one a seed: pools by split, and by split the groups of each run's hard
    episodes."""

    setting: Setting
    seeds: tuple[int, ...]
    pools: Mapping[str, Pool]
    hard: Mapping[str, tuple[tuple[int, ...], ...]]
    fraction: float = 0.0
    device: str = "cpu"

    @property
    def image(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pools["train"].images.shape[1:]
        return channels, height, width

    def draw(self, split: str, purpose: str, count: int, *, fraction: float | None = None,
             global_labels: bool = False) -> Callable[[int], Task]:
        """step -> ``count`` episodes for every run, [run, episode, ...]; they depend on seed, step
        and purpose."""
        of, told = self.setting, self.fraction if fraction is None else fraction

        def at(step: int) -> Task:
            drawn = [episodes.sample(
                         self.pools[split],
                         torch_stream(seed, f"few_shot/{split}/{purpose}/{step}", self.device),
                         episodes=count, ways=of.ways, shots=of.shots, queries=of.queries,
                         hard_fraction=told, hard_groups=groups if told else None,
                         global_labels=global_labels,
                     )
                     for seed, groups in zip(self.seeds, self.hard[split], strict=True)]
            stacked: Task = tree_map(lambda *leaves: torch.stack(leaves), *drawn)
            return stacked

        return at


@lru_cache(maxsize=2)
def _source(name: str, within: bool) -> sources.Source:
    found = sources.load(name)
    return sources.within_groups(found) if within else found


def fleet(setting: Setting, seeds: Sequence[int], *, hard_groups: int = 0, fraction: float = 0.0,
          device: str = "cpu") -> Fleet:
    """A run for every seed.

    Hard training episodes come from ``hard_groups`` groups that the seed picks, or from all for 0.
    Where classes are split within groups, those of validation and test come from the same groups.
    """
    source = _source(setting.source, setting.within)
    pools = {split: episodes.pool(source, split, device=device) for split in sources.SPLITS}
    fitting = {split: set(episodes.fitting_groups(pool, setting.ways).tolist())
               for split, pool in pools.items()}
    if setting.within:
        fitting = dict.fromkeys(fitting, set.intersection(*fitting.values()))
    chosen = []
    for seed in seeds:
        groups = stream(seed, "few_shot/hard groups").permutation(sorted(fitting["train"])).tolist()
        chosen.append(tuple(groups[:hard_groups] if hard_groups else groups))
    hard = {split: tuple(chosen)
            if setting.within or split == "train"
            else (tuple(fitting[split]),) * len(chosen)
            for split in pools}
    return Fleet(setting, tuple(seeds), pools, hard, fraction, device)


def network(of: Fleet, model: Model, sizes: Sizes, outputs: int | None = None) -> nets.Net:
    """The network of a model, with the episodes' ways as outputs if not told."""
    return nets.cnn(of.image, sizes.filters, sizes.blocks,
                    of.setting.ways if outputs is None else outputs, pool=sizes.pool,
                    linear_layers=model.linear_layers)


def start(of: Fleet, model: Model, sizes: Sizes) -> Params:
    """Where the runs begin, [run, ...]: a network for each seed, and its rule at the identity."""
    outputs = len(of.pools["train"].first) if model.method == "NAL-global" else None
    drawn = []
    for seed in of.seeds:
        params = network(of, model, sizes, outputs).init(torch_stream(seed, "few_shot/start"))
        names = adapted(model, params)
        drawn.append(
            joined(params, RULES[model.rule](1.0).init({name: params[name] for name in names}))
        )
    return {name: torch.stack([one[name] for one in drawn]).to(of.device) for name in drawn[0]}


def adapted(model: Model, params: Params) -> tuple[str, ...]:
    """The names of what the model adapts: its linear layers for ANIL, all of it otherwise."""
    return nets.head_names(params) if model.method == "ANIL" else tuple(params)


def objective(of: Fleet, model: Model, sizes: Sizes) -> training.Objective:
    """What the model minimises in training: (params, task) -> scalar."""
    loss = cross_entropy(network(of, model, sizes).apply)
    if model.method.startswith("NAL"):
        return nal(loss)
    rule = RULES[model.rule](of.setting.alpha)

    def value(both: Params, task: Task) -> torch.Tensor:
        names = adapted(model, parted(both)[0])
        return learned(loss, steps=sizes.inner, rule=rule, adapted=names)(both, task)

    return value


def gradient(of: Fleet, model: Model, sizes: Sizes) -> training.Gradient:
    """The meta-gradient of a fleet: all at once, but on a CPU one episode at a time, where vmap
    slows convolutions."""
    one = 1 if of.device == "cpu" else None
    return training.fleet_gradient(objective(of, model, sizes), chunk_size=one, task_chunk=one)


class Trained(NamedTuple):
    """Parameters [run, ...], ready to be adapted to N-way episodes, and the objective that training
    came to, [run], on fresh training episodes; 0 where there was no training."""

    params: Params
    loss: Array


def train(of: Fleet, model: Model, sizes: Sizes, *, key: str | None = None) -> Trained:
    """Train a fleet on episodes of the training split.

    NAL-global learns to tell all training classes apart; afterwards its head is a fresh one, of
    zeros. With ``key``, any text that tells the training apart, its state is kept in the cache and
    an interrupted one goes on from there.
    """
    begin = start(of, model, sizes)
    if model.method == "untrained":
        return Trained(begin, np.zeros(len(of.seeds)))
    slope = gradient(of, model, sizes)
    draw = of.draw("train", "train", sizes.meta_batch, global_labels=model.method == "NAL-global")
    params = training.train(slope, begin, draw, optimizer=_optimizer(sizes), steps=sizes.steps,
                            checkpoint=_checkpoint(key, of.device))
    values = [slope(params, draw(sizes.steps + i))[1] for i in range(_LOSS_STEPS)]
    if model.method == "NAL-global":
        params = nets.fresh_head(params, of.setting.ways)
    return Trained(params, torch.stack(values).mean(0).double().cpu().numpy())


def _optimizer(sizes: Sizes) -> training.Optimizer:
    """Adam with smaller steps for the parameters of a rule: its factors are as large as the layers
    they transform."""
    plain = training.adam(training.cosine(sizes.rate, sizes.steps))

    def update(gradients: Params, moments: Params, step: int) -> tuple[Params, Params]:
        updates, moments = plain.update(gradients, moments, step)
        rule = parted(updates)[1]
        return updates | joined(
            {}, {name: sizes.rule_share * value for name, value in rule.items()}
        ), moments

    return training.Optimizer(plain.init, update)


def _checkpoint(key: str | None, device: str) -> Checkpoint | None:
    if key is None:
        return None
    name = hashlib.sha256(f"{key} on {device}".encode()).hexdigest()[:16]
    return Checkpoint(paths.cache() / "checkpoints" / f"{name}.safetensors",
                               _CHECKPOINT_EVERY, key)


def accuracies(of: Fleet, model: Model, sizes: Sizes, params: Params,
               alphas: Sequence[float] | Array, ks: Sequence[int], drawn: Callable[[int], Task],
               count: int) -> Array:
    """The share of queries that are right in each of ``count`` episodes after ``ks`` inner steps:
    [run, episode, k].

    ``alphas`` [run] are the inner steps; a rule is scaled by them. ``ks`` rise.
    """
    net = network(of, model, sizes)
    loss = cross_entropy(net.apply)

    def judge(both: Params, alpha: Alpha, task: Task) -> torch.Tensor:
        plain, own = parted(both)
        names = adapted(model, plain)
        fixed = {name: value for name, value in plain.items() if name not in names}
        moved, taken, right = {name: plain[name] for name in names}, 0, []
        update = partial(RULES[model.rule](alpha).apply, own)
        x, y = task.query
        for k in ks:
            moved = adapt(lambda some, batch: loss(fixed | some, batch), moved, task.support,
                          steps=k - taken, update=update)
            taken = k
            right.append((net.apply(fixed | moved, x).argmax(-1) == y).to(x.dtype).mean())
        return torch.stack(right)

    told = torch.as_tensor(np.asarray(alphas), dtype=torch.float32, device=of.device)
    of_fleet = vmap(
        vmap(judge, in_dims=(None, None, 0))
    )  # without second derivatives vmap is no slower on a CPU
    with torch.no_grad():
        found = [of_fleet(params, told, drawn(batch)) for batch in range(-(-count // _BATCH))]
    return np.asarray(torch.cat(found, 1)[:, :count].double().cpu())


class Chosen(NamedTuple):
    """The inner step of highest accuracy on validation classes, and that accuracy, for each k:
    [run, k]."""

    alphas: Array
    accuracy: Array


def validated(of: Fleet, model: Model, sizes: Sizes, params: Params, ks: Sequence[int], *,
              fraction: float) -> Chosen:
    """The best of the steps that are tried, on validation episodes of which a ``fraction`` is
    hard."""
    grid = np.array([factor * of.setting.alpha for factor in sizes.factors])
    drawn = lru_cache(maxsize=None)(of.draw("validation", "choose", _BATCH, fraction=fraction))
    means = np.stack([accuracies(of, model, sizes, params, [alpha] * len(of.seeds), ks, drawn,
                                 sizes.valid_episodes).mean(1)
                      for alpha in grid])
    return Chosen(grid[means.argmax(0)], means.max(0))


def scores(of: Fleet, model: Model, sizes: Sizes, params: Params, ks: Sequence[int],
           kinds: Mapping[str, float], *, fraction: float) -> list[Row]:
    """Accuracies on test classes: a row for every seed, kind of episode, k, and rate ("training"
    and "own").

    ``kinds`` maps a name to the fraction of hard episodes; ``fraction`` is that of the validation
    episodes on which a run's own inner step is chosen, with accuracy ``valid``. ``error`` is the
    standard error over episodes.
    """
    own = validated(of, model, sizes, params, ks, fraction=fraction)
    rows: list[Row] = []
    for kind, hard in kinds.items():
        drawn = lru_cache(maxsize=None)(of.draw("test", kind, _BATCH, fraction=hard))
        score = partial(
            accuracies, of, model, sizes, params, drawn=drawn, count=sizes.test_episodes
        )
        told = np.full(len(of.seeds), of.setting.alpha)
        together = score(told, ks)
        for j, k in enumerate(ks):
            found = {"training": (told, together[..., j]),
                     "own": (own.alphas[:, j], score(own.alphas[:, j], [k])[..., 0])}
            for rate, (steps, right) in found.items():
                errors = right.std(axis=1, ddof=1) / right.shape[1] ** 0.5
                rows += [{"seed": seed, "episodes": kind, "k": k, "rate": rate,
                          "step": float(steps[run])}
                         | rounded(accuracy=right[run].mean(), error=errors[run],
                                   valid=own.accuracy[run, j])
                         for run, seed in enumerate(of.seeds)]
    return rows


def lost(of: Fleet, ks: Sequence[int], kinds: Iterable[str]) -> list[Row]:
    """The rows of a fleet of which a run diverged in training: no accuracy at all."""
    none = rounded(accuracy=0, error=0, valid=0)
    return [{"seed": seed, "episodes": kind, "k": k, "rate": rate, "step": of.setting.alpha} | none
            for kind in kinds
            for k in ks
            for rate in ("training", "own")
            for seed in of.seeds]


def rounded(**columns: float) -> Row:
    """Numbers to six decimals, for a table."""
    return {name: round(float(value), 6) for name, value in columns.items()}


def key(config: Any, point: Point) -> str:
    """What tells the training of a point apart."""
    return f"{records.config_hash('few_shot', config)} {sorted(point.items())}"


def setting(point: Point) -> Setting:
    """The setting among the columns of a point."""
    return Setting(**{name: point[name] for name in Setting.__dataclass_fields__})


def interval(values: Array) -> Interval:
    """The mean over seeds with its 95 % Student interval: with few seeds a bootstrap's would be too
    short."""
    found = estimate(values)
    return Interval(found.value, *found.interval())
