"""Teacher-student tasks for two-layer networks: the label is a teacher's output, one teacher a
task.

A family has two groups, easy (0) and hard (1). It is a named tuple of tensors, so that a fleet of
families is one with a leading run axis. Everything below is for one task; batch it with
``torch.func.vmap``.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch.utils._pytree import tree_map

from companion.checks import at_least, require
from companion.nets import Apply
from companion.tasks import Task

EASY, HARD = 0, 1


class Teachers(NamedTuple):
    """A family of teachers: T = centres[group] + spread[group] z, x ~ N(0, rho[group] I), y = f(T;
    x).

    ``centres`` [group, hidden, dim], ``rho`` [group], ``spread`` [group] (standard deviation of one
    weight), and ``cut`` [], the normal quantile of the probability of a hard task.
    """

    centres: torch.Tensor
    rho: torch.Tensor
    spread: torch.Tensor
    cut: torch.Tensor


def family(generator: torch.Generator, *, dim: int, hidden: int, rho_easy: float, rho_hard: float,
           distance: float, var_easy: float, var_hard: float, hard_fraction: float = 0.5,
           length: float = 1.0, dtype: torch.dtype = torch.float64) -> Teachers:
    """A family with random centres, ``distance`` apart.

    Both centres have ``hidden`` orthogonal rows of the given ``length``: row j of the easy one is
    row j of the hard one, turned in a plane of its own. So the two groups have equally many equal
    curvatures, and one is harder than the other by ``rho`` alone. The distance is in the Frobenius
    norm; it is at most length sqrt(2 hidden), a right angle, beyond which a permutation of hidden
    units is nearer. ``var_*`` is E|T - centre|^2, as in the linear mixture. The same generator
    state gives the same rows and planes for every setting.

    Raises:
        ValueError: 2 hidden above dim, a variance below 0, a distance out of range, rho or length
            not positive, a fraction outside (0, 1).
    """
    at_least("dim", dim, 1, "a network has inputs", whole=True)
    at_least("hidden", hidden, 1, "a network has hidden units", whole=True)
    require(2 * hidden <= dim, "hidden", f"be at most dim / 2 = {dim / 2:g}", hidden,
            "every row turns in a plane")
    for name, value in {"rho_easy": rho_easy, "rho_hard": rho_hard, "length": length}.items():
        require(0 < value < math.inf, name, "be positive and finite", value, "it is a scale")
    for name, value in {"var_easy": var_easy, "var_hard": var_hard}.items():
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
    entries = hidden * dim
    cut = torch.special.ndtri(torch.tensor(hard_fraction, dtype=dtype))
    numbers = [torch.tensor(pair, dtype=dtype)
               for pair in ((rho_easy, rho_hard),
                            (math.sqrt(var_easy / entries), math.sqrt(var_hard / entries)))]
    return Teachers(length * torch.stack([easy, hard]),
                    *(t.to(generator.device) for t in (*numbers, cut)))


def stacked(families: Sequence[Teachers]) -> Teachers:
    """A fleet of families, [run, ...]."""
    return Teachers(*(torch.stack(leaves) for leaves in zip(*families, strict=True)))


def shapes(of: Teachers, tasks: int, samples: int = 0) -> dict[str, tuple[int, ...]]:
    """The standard normals that a batch of tasks is made from, for
    :func:`companion.streams.normals`."""
    hidden, dim = of.centres.shape[-2:]
    own = {"group": (tasks,), "teacher": (tasks, hidden, dim)}
    return own | ({"x": (tasks, samples, dim)} if samples else {})


def teacher(
    of: Teachers, normal: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One teacher from its normals: weights [hidden, dim], input variance [], and group []."""
    hard = normal["group"] < of.cut
    centre = torch.where(hard, of.centres[HARD], of.centres[EASY])
    spread, rho = (torch.where(hard, both[HARD], both[EASY]) for both in (of.spread, of.rho))
    return centre + spread * normal["teacher"], rho, hard.long()


def population_task(of: Teachers, normal: dict[str, torch.Tensor]) -> Task:
    """The task as (teacher, rho) on both sides, for the exact losses of
    :mod:`companion.theory.kernels`."""
    weights, rho, _ = teacher(of, normal)
    return Task((weights, rho), (weights, rho))


def sampled_task(of: Teachers, normal: dict[str, torch.Tensor], apply: Apply, support: int) -> Task:
    """The task as drawn samples: the first ``support`` of x [sample, dim] to adapt on, the others
    to score on."""
    weights, rho, _ = teacher(of, normal)
    x = rho.sqrt() * normal["x"]
    y = apply({"weight": weights}, x)
    return Task((x[:support], y[:support]), (x[support:], y[support:]))


def aligned(weights: torch.Tensor, to: torch.Tensor) -> torch.Tensor:
    """``weights`` [hidden, dim] with its rows permuted, which leaves f as it is, to lie nearest to
    ``to``."""
    cost = torch.cdist(to, weights).square().cpu().numpy()
    return weights[torch.from_numpy(np.asarray(linear_sum_assignment(cost)[1]))]


def on(of: Any, **options: Any) -> Any:
    """``of``, a family or any tree of tensors, after ``.to(**options)``."""
    return tree_map(lambda leaf: leaf.to(**options), of)
