"""Families of linear-regression tasks with Gaussian inputs, drawn from groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Self

import numpy as np
import torch

from companion.checks import Array, at_least, one_number, real, require, step_size
from companion.losses import squared_error
from companion.streams import stream
from companion.tasks import Fleet, Task
from companion.theory import gaussian
from companion.theory.landscape import Mixture

_BLOCK = 2**17  # bytes of one seed's inputs drawn at once


@dataclass(frozen=True, eq=False)
class LinearFamily:
    """Tasks in groups: y = x.w* + z, x ~ N(0, covariance), w* ~ N(centre, (variance/d) I).

    Args:
        covariances: [group, d, d], of the inputs.
        centres: [group, d], of the optima.
        variances: [group], E|w* - centre|^2, >= 0.
        weights: [group], non-negative, normalised inside: the probability of each group.
        noise: standard deviation of z, the labels' noise, >= 0.

    Raises ValueError where shapes do not match or a number is out of range.
    """

    covariances: Array
    centres: Array
    variances: Array
    weights: Array
    noise: float = 0.0

    def __post_init__(self) -> None:
        shape = gaussian.check_covariance("covariances", self.covariances).shape
        require(len(shape) == 3, "covariances.shape", "be [group, d, d]", shape,
                "stack one matrix per group")
        variances = at_least("variances", self.variances, 0, "a variance is not negative")
        weights = at_least("weights", self.weights, 0, "a probability is not negative")
        for name, array, axes in (("centres", real("centres", self.centres), 2),
                                  ("variances", variances, 1), ("weights", weights, 1)):
            require(array.shape == shape[:axes], f"{name}.shape", f"be {shape[:axes]}",
                    array.shape, "give one entry per group")
        require(weights.sum() > 0, "weights", "have a positive sum", weights, "give one a weight")
        at_least("noise", self.noise, 0, "noise is a standard deviation")

    @classmethod
    def from_mixture(cls, mixture: Mixture) -> Self:
        """The easy and the hard group of ``mixture`` (a scalar one): centres R e_1 and 0."""
        require(np.ndim(mixture.risk_nal) == 0, "mixture", "hold numbers", "arrays",
                "build one family per mixture")
        d, p = int(np.asarray(mixture.dim)), float(np.asarray(mixture.hard_fraction))
        centres = np.zeros((2, d))
        centres[0, 0] = mixture.distance
        rho = np.array([mixture.rho_easy, mixture.rho_hard], dtype=float)
        variances = np.array([mixture.var_easy, mixture.var_hard], dtype=float)
        return cls(rho[:, None, None] * np.eye(d), centres, variances, np.array([1 - p, p]),
                   float(np.asarray(mixture.noise)))

    @cached_property
    def _roots(self) -> Array:
        """Symmetric square roots of the covariances."""
        values, vectors = np.linalg.eigh(self.covariances)
        scaled = vectors * np.sqrt(np.maximum(values, 0))[:, None, :]
        return np.asarray(scaled @ vectors.swapaxes(-1, -2))

    def draw_tasks(self, rng: np.random.Generator, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Group indices, ``shape``, and optima, ``[*shape, d]``."""
        p = self.weights / self.weights.sum()
        group = np.searchsorted(p.cumsum(), rng.random(shape), side="right").clip(max=len(p) - 1)
        d = self.centres.shape[1]
        spread = np.sqrt(self.variances / d)[group][..., None]
        return group, self.centres[group] + spread * rng.standard_normal((*shape, d))

    def draw_samples(self, rng: np.random.Generator, group: Array, optima: Array,
                     samples: int) -> tuple[Array, Array]:
        """x ``[*task, sample, d]`` and y ``[*task, sample]`` of the given tasks."""
        x = rng.standard_normal((*group.shape, samples, optima.shape[-1])) @ self._roots[group]
        y = (x @ optima[..., None])[..., 0]
        return x, y + self.noise * rng.standard_normal(y.shape) if self.noise else y

    def minimiser_nal(self) -> Array:
        """What NAL learns, [d]: the spread within groups averages out."""
        return gaussian.minimiser_nal(self.covariances, self.centres, self.weights)

    def minimiser_maml(self, alpha: float, support: float, *, steps: int = 1) -> Array:
        """What MAML learns, [d]."""
        return gaussian.minimiser_maml(self.covariances, self.centres, alpha, support,
                                       self.weights, steps=steps)

    def hessian(self, alpha: float, support: float, *, steps: int = 1) -> Array:
        """E[Q], the Hessian of :meth:`risk` in w, [d, d]; that of NAL's objective at alpha = 0."""
        q = gaussian.q_matrix(self.covariances, alpha, support, steps=steps)
        return np.asarray(np.einsum("g,gij->ij", self.weights / self.weights.sum(), q))

    def risk(self, w: Array, alpha: float, support: float, *, steps: int = 1) -> Array:
        """The exact excess risk of w [..., d]: that at the centres, plus E tr(Q) variance / 2d."""
        at_centres = gaussian.excess_risk(w, self.covariances, self.centres, alpha, support,
                                          self.weights, self.noise, steps=steps)
        q = gaussian.q_matrix(self.covariances, alpha, support, steps=steps)
        spread = np.trace(q, axis1=-2, axis2=-1) * self.variances / (2 * q.shape[-1])
        return np.asarray(at_centres + spread @ (self.weights / self.weights.sum()))


def easy_and_hard(rng: np.random.Generator, scales_easy: Array, scales_hard: Array, *,
                  distance: float, var_easy: float, var_hard: float, hard_fraction: float = 0.5,
                  noise: float = 0.0) -> LinearFamily:
    """An easy and a hard group whose inputs have given variances [d] along random directions.

    The hard centre is 0, the easy one ``distance`` away along (1, ..., 1).
    """
    d, halves = len(scales_easy), []
    for scales in (scales_easy, scales_hard):
        turn = np.linalg.qr(rng.standard_normal((d, d)))[0]
        halves.append((turn * scales) @ turn.T / 2)
    covariances = np.stack([half + half.T for half in halves])
    centres = np.stack([np.full(d, distance / np.sqrt(d)), np.zeros(d)])
    return LinearFamily(covariances, centres, np.array([var_easy, var_hard]),
                        np.array([1 - hard_fraction, hard_fraction]), noise)


def regression_fleet(family: LinearFamily, seeds: Sequence[int], *, alpha: float, support: int,
                     copies: int = 1) -> Fleet:
    """``copies`` runs of every seed on one family's tasks, the seeds innermost, drawn by NumPy: the
    same on any processor. ValueError: no seed, or ``alpha``, ``support`` or a query below what it
    can be."""
    require(len(seeds) > 0, "seeds", "be one or more", 0, "range(8) is usual")
    at_least("support", support, 0, "0 is for plain training", whole=True)
    one_number("alpha", step_size(alpha))
    distinct = sorted(set(seeds))
    run = torch.tensor([distinct.index(seed) for seed in seeds] * copies)

    def draw(fleet: Fleet, purpose: str, tasks: int, query: int) -> Callable[[int], Any]:
        at_least("query", query, 1, "name query and test_query in the Budget", whole=True)
        samples = support + query
        block = max(1, _BLOCK // (8 * tasks * samples * family.centres.shape[1]))

        @lru_cache(maxsize=1)
        def drawn(number: int) -> list[torch.Tensor]:
            rngs = [stream(seed, f"{fleet.name}/{purpose}/{number}") for seed in distinct]
            parts = [family.draw_samples(rng, *family.draw_tasks(rng, (block, tasks)), samples)
                     for rng in rngs]
            return [torch.from_numpy(np.stack(side, axis=1)) for side in zip(*parts, strict=True)]

        return lambda step: tuple(side[step % block][run] for side in drawn(step // block))

    def make(drawn: tuple[torch.Tensor, torch.Tensor]) -> Task:
        x, y = drawn
        return Task((x[:support], y[:support]), (x[support:], y[support:]))

    alphas = torch.full((len(run),), alpha, dtype=torch.float64)
    return Fleet("linear", tuple(seeds) * copies, (), alphas, draw, make, squared_error,
                 training_dtype=torch.float64)
