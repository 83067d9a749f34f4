"""Teacher-student tasks for two-layer networks: each task's labels are a teacher's outputs.

A family has two groups, easy (0) and hard (1). Near its teacher a task's loss is (W - T).H (W -
T)/2, H = E[phi phi^T], phi = df/dW: its spectrum is how fast gradient descent solves the task, its
hardness. Everything but :func:`teacher_fleet` is for one task.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.func import grad, vmap

from companion.adaptation import Loss
from companion.checks import at_least, require
from companion.losses import squared_error
from companion.nets import Apply, two_layer
from companion.streams import normals, torch_stream
from companion.tasks import Fleet, Task, normal_draws, stacked
from companion.theory.kernels import KERNELS, hessian, population_loss

EASY, HARD = 0, 1
_DRAWS = 4000  # inputs for a mean that has no closed form


class Teachers(NamedTuple):
    """A family: T = centres[group] + spread[group] z, x ~ N(0, rho[group] I), y = f(T; x).

    ``centres`` are [group, hidden, dim], ``rho`` and ``spread`` [group]; ``cut`` [] is the normal
    quantile of the probability of a hard task.
    """

    centres: torch.Tensor
    rho: torch.Tensor
    spread: torch.Tensor
    cut: torch.Tensor


def teachers(generator: torch.Generator, *, dim: int, hidden: int, rho_easy: float, rho_hard: float,
             distance: float, var_easy: float, var_hard: float, hard_fraction: float = 0.5,
             length: float = 1.0, dtype: torch.dtype = torch.float64) -> Teachers:
    """A family with random centres, ``distance`` apart.

    Both centres have ``hidden`` orthogonal rows of the given ``length``: row j of the easy one is
    row j of the hard one, turned in a plane of its own. So the groups have equally many equal
    curvatures, and one is harder by ``rho`` alone. The distance is in the Frobenius norm, at most
    length sqrt(2 hidden), a right angle, beyond which a permutation of hidden units is nearer.
    ``var_*`` is E|T - centre|^2. One generator state gives one set of rows and planes for all
    settings. Raises ValueError for 2 hidden above dim, or a number out of range.
    """
    at_least("dim", dim, 1, "a network has inputs", whole=True)
    at_least("hidden", hidden, 1, "a network has hidden units", whole=True)
    require(2 * hidden <= dim, "hidden", f"be at most dim / 2 = {dim / 2:g}", hidden,
            "every row turns in a plane")
    for name, value in (("rho_easy", rho_easy), ("rho_hard", rho_hard), ("length", length)):
        require(0 < value < math.inf, name, "be positive and finite", value, "it is a scale")
    for name, value in (("var_easy", var_easy), ("var_hard", var_hard)):
        at_least(name, value, 0, "a variance is not negative")
    furthest = length * math.sqrt(2 * hidden)
    require(0 <= distance <= furthest, "distance", f"lie in [0, {furthest:.4g}]", distance,
            "or make the rows longer")
    require(0 < hard_fraction < 1, "hard_fraction", "lie in (0, 1)", hard_fraction,
            "both groups are needed")

    normal = torch.randn(dim, 2 * hidden, generator=generator, device=generator.device, dtype=dtype)
    hard, aside = torch.linalg.qr(normal)[0].mT.split(hidden)
    sine = distance / (2 * length * math.sqrt(hidden))  # of half the angle
    easy = (1 - 2 * sine**2) * hard + 2 * sine * math.sqrt(1 - sine**2) * aside
    cut = torch.special.ndtri(torch.tensor(hard_fraction, dtype=dtype))
    spread = [math.sqrt(variance / (hidden * dim)) for variance in (var_easy, var_hard)]
    numbers = torch.tensor([[rho_easy, rho_hard], spread], dtype=dtype, device=generator.device)
    return Teachers(length * torch.stack([easy, hard]), numbers[0], numbers[1],
                    cut.to(generator.device))


def shapes(of: Teachers, tasks: int, samples: int = 0) -> dict[str, tuple[int, ...]]:
    """The normals that a batch of tasks is made from, for :func:`companion.streams.normals`."""
    hidden, dim = of.centres.shape[-2:]
    x = {"x": (tasks, samples, dim)} if samples else {}
    return {"group": (tasks,), "teacher": (tasks, hidden, dim)} | x


def teacher(of: Teachers, normal: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor,
                                                                    torch.Tensor]:
    """One teacher from its normals: weights [hidden, dim], input variance [], and group []."""
    hard = normal["group"] < of.cut
    centre, spread, rho = (torch.where(hard, both[HARD], both[EASY])
                           for both in (of.centres, of.spread, of.rho))
    return centre + spread * normal["teacher"], rho, hard.long()


def population_task(of: Teachers, normal: dict[str, torch.Tensor]) -> Task:
    """The task as (teacher, rho) on both sides, for exact losses (theory.kernels)."""
    side = teacher(of, normal)[:2]
    return Task(side, side)


def sampled_task(of: Teachers, normal: dict[str, torch.Tensor], apply: Apply, support: int) -> Task:
    """The task as samples: the first ``support`` of x [sample, dim] to adapt, others to score."""
    weights, rho, _ = teacher(of, normal)
    x = rho.sqrt() * normal["x"]
    y = apply({"weight": weights}, x)
    return Task((x[:support], y[:support]), (x[support:], y[support:]))


def aligned(weights: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """``weights`` [hidden, dim], its rows permuted (f stays the same) to lie nearest to ``to``."""
    cost = torch.cdist(to, weights).square().cpu().numpy()
    return weights[torch.from_numpy(np.asarray(linear_sum_assignment(cost)[1]))]


def features(activation: str, weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """phi = df/dW at inputs: weights [hidden, dim], x [sample, dim] -> [sample, hidden * dim]."""
    apply = two_layer(1, 1, activation).apply

    def output(w: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
        return apply({"weight": w}, one[None])[0]

    return cast(torch.Tensor, vmap(grad(output), in_dims=(None, 0))(weights, x)).flatten(1)


def curvature(activation: str, weights: torch.Tensor, rho: torch.Tensor,
              x: torch.Tensor) -> torch.Tensor:
    """H = E[phi phi^T] of one teacher, [hidden * dim, hidden * dim]; standard normal ``x``
    [draw, dim] are used only where the activation has no closed form."""
    if activation in KERNELS:
        return hessian(weights, weights, rho, activation)
    phi = features(activation, weights, rho.sqrt() * x)
    return phi.mT @ phi / len(phi)


def inputs(seed: int, dim: int) -> torch.Tensor:
    """Standard normal inputs of a seed, for means that have no closed form, [draw, dim]."""
    return torch.randn(_DRAWS, dim, generator=torch_stream(seed, "two_layer/inputs"),
                       dtype=torch.float64)


def drawn(of: Teachers, seed: int, count: int) -> dict[str, torch.Tensor]:
    """The normals of ``count`` teachers of a seed, other than those of its tasks."""
    draw = normals([seed], "two_layer/local", shapes(of, count), dtype=torch.float64)(0)
    return {name: value[0] for name, value in draw.items()}


def mean_curvature(activation: str, of: Teachers, group: int, seed: int,
                   count: int = 50) -> torch.Tensor:
    """The mean H of ``count`` teachers of a group."""
    normal = drawn(of, seed, count)["teacher"]
    x = inputs(seed, normal.shape[-1])
    weights = of.centres[group] + of.spread[group] * normal
    return vmap(lambda w: curvature(activation, w, of.rho[group], x))(weights).mean(0)


def population(activation: str) -> Loss:
    """The exact loss on a batch (teacher, rho)."""
    return lambda params, batch: population_loss(params["weight"], batch[0], batch[1], activation)


def teacher_fleet(activation: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int], *,
                  dim: int, hidden: int, support: int | None, device: str = "cpu") -> Fleet:
    """A run for every setting and seed, settings outermost.

    A setting holds the arguments of :func:`teachers` and ``alpha``, the inner rate times the
    largest curvature of the easy tasks. ``support`` are the samples to adapt on; None is the full
    batch, the exact gradient of the population. Runs of one seed share centres, start and draws.
    """
    families, alphas = [], []
    for setting in settings:
        options = {name: value for name, value in setting.items() if name != "alpha"}
        for seed in seeds:
            family = teachers(torch_stream(seed, "two_layer/centres"), dim=dim, hidden=hidden,
                              **options)
            top = torch.linalg.eigvalsh(mean_curvature(activation, family, EASY, seed))[-1]
            families.append(family)
            alphas.append(setting["alpha"] / top)
    every: Teachers = stacked(families, device)
    apply, exact = two_layer(dim, hidden, activation).apply, support is None
    draw = normal_draws(lambda tasks, query: shapes(
        every, tasks, 0 if support is None else support + query))

    def make(normal: dict[str, torch.Tensor], family: Teachers) -> Task:
        return (population_task(family, normal) if support is None
                else sampled_task(family, normal, apply, support))

    return Fleet("two_layer", tuple(seeds) * len(settings), (every,),
                 torch.stack(alphas).to(device), draw, make,
                 (lambda apply: population(activation)) if exact else squared_error,
                 population=exact, training_dtype=torch.float64 if exact else torch.float32)
