"""Tasks that a shallow model solves: linear regression, boundaries, readouts of shared features.

x ~ N(0, S), S = root root.T, the same for every task of a family. W* = output_root N input_root.T /
sqrt(inputs), N standard normal; its inputs are x, or the shared features tanh(F x). Labels are W* x
+ noise z ("regression"), or the class whose output is the largest ("boundaries"; with one output, 1
where it is positive). A model sees lens x in place of x. Everything but :func:`readout_fleet` is
for one task.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from companion.checks import Array, at_least, real, require
from companion.losses import cross_entropy, logistic, squared_error
from companion.streams import torch_stream
from companion.tasks import Fleet, Task, normal_draws, stacked

KINDS = ("regression", "boundaries")


class Readout(NamedTuple):
    """A family: ``root`` [dim, dim], ``output_root`` [output, output], ``input_root`` [input,
    input], ``noise`` [], ``features`` [hidden, dim], none where ``hidden`` is 0, and ``lens`` [dim,
    dim]."""

    root: torch.Tensor
    output_root: torch.Tensor
    input_root: torch.Tensor
    noise: torch.Tensor
    features: torch.Tensor
    lens: torch.Tensor

    @property
    def linear(self) -> bool:
        """Whether labels depend on x through W* x."""
        return self.features.shape[-2] == 0

    @property
    def inputs(self) -> int:
        """Columns of W*."""
        return self.root.shape[-1] if self.linear else self.features.shape[-2]

    @property
    def covariance(self) -> torch.Tensor:
        """S, [..., dim, dim]."""
        return self.root @ self.root.mT

    @property
    def task_covariance(self) -> torch.Tensor:
        """C of vec(W*), its rows stacked: (output_root output_root.T) kron (input_root
        input_root.T) / inputs."""
        return torch.kron(self.output_root @ self.output_root.mT,
                          self.input_root @ self.input_root.mT) / self.inputs


def readout(generator: torch.Generator, *, scales: Sequence[float], outputs: int = 1,
            turned: bool = True, correlation: float = 0.0, noise: float = 0.0, hidden: int = 0,
            tasks: Sequence[float] | None = None, output_scales: Sequence[float] | None = None,
            ridge: float | None = None, dtype: torch.dtype = torch.float64) -> Readout:
    """A family whose inputs have the standard deviations ``scales`` [dim] along random axes.

    Raises ValueError for an argument out of range.

    Args:
        generator: of the axes and the features: one state gives the same for all ``scales``.
        turned: False leaves the axes of the inputs at those of the coordinates.
        correlation: between any two outputs of W*, in [0, 1).
        noise: standard deviation of the labels' noise.
        hidden: number of shared features; 0 for labels that are linear in x.
        tasks: standard deviations of W*, times sqrt(inputs), along the axes of the inputs, or one a
            feature; all 1 by default.
        output_scales: factors of the outputs of W*, [outputs]; all 1 by default.
        ridge: a model sees the whitened inputs (S + ridge I)^-1/2 x; None for x itself.
    """
    at_least("outputs", outputs, 1, "a task has an output", whole=True)
    lengths = _positive("scales", scales)
    require(0 <= correlation < 1, "correlation", "lie in [0, 1)", correlation,
            "0 for independent outputs")
    at_least("noise", noise, 0, "noise is a standard deviation")
    at_least("hidden", hidden, 0, "0 for labels linear in x", whole=True)
    dim, inputs = len(lengths), int(hidden) or len(lengths)
    here: dict[str, Any] = {"device": generator.device, "dtype": dtype}
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=generator, **here))[0]
    axes = axes if turned else torch.eye(dim, **here)
    root = axes * torch.tensor(scales, **here)
    alike = torch.full((outputs, outputs), correlation, **here)
    output_root = torch.linalg.cholesky(alike + (1 - correlation) * torch.eye(outputs, **here))
    features = torch.randn(hidden, dim, generator=generator, **here) / math.sqrt(dim)
    input_root = torch.eye(inputs, **here)
    if output_scales is not None:
        sizes = _positive("output_scales", output_scales, outputs)
        output_root = torch.tensor(sizes, **here)[:, None] * output_root
    if tasks is not None:
        input_root = input_root if hidden else axes
        input_root = input_root * torch.tensor(_positive("tasks", tasks, inputs), **here)
    lens = torch.eye(dim, **here)
    if ridge is not None:
        at_least("ridge", ridge, 0, "0 whitens fully")
        lens = (axes * (torch.tensor(lengths, **here) ** 2 + ridge) ** -0.5) @ axes.mT
    return Readout(root, output_root, input_root, torch.tensor(noise, **here), features, lens)


def _positive(name: str, values: Sequence[float], count: int | None = None) -> Array:
    lengths = real(name, values)
    require(lengths.ndim == 1 and lengths.size > 0 and count in (None, lengths.size),
            f"{name}.shape", f"be [{'dim' if count is None else count}]", lengths.shape,
            "one entry each")
    require(lengths > 0, name, "be positive", lengths, "leave out what is never there")
    return lengths


def spread(dim: int, least: float, most: float, inputs: str = "spread") -> tuple[float, ...]:
    """``scales``: from ``least`` to ``most``, geometric ("spread"), or all 1 ("isotropic")."""
    return (1.0,) * dim if inputs == "isotropic" else tuple(np.geomspace(least, most, dim).tolist())


def shapes(of: Readout, tasks: int, samples: int) -> dict[str, tuple[int, ...]]:
    """The normals that a batch of tasks is made from, for :func:`companion.streams.normals`."""
    outputs, dim = of.output_root.shape[-1], of.root.shape[-1]
    return {"task": (tasks, outputs, of.inputs), "x": (tasks, samples, dim),
            "noise": (tasks, samples, outputs)}


def optimum(of: Readout, normal: dict[str, torch.Tensor]) -> torch.Tensor:
    """W* of one task, [output, input]."""
    w = of.output_root @ normal["task"] @ of.input_root.mT
    return w / math.sqrt(w.shape[-1])


def outputs(of: Readout, normal: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """A task's outputs without noise: x [sample, dim] -> [sample, output]."""
    inputs = x if of.linear else torch.tanh(x @ of.features.mT)
    return inputs @ optimum(of, normal).mT


def task(of: Readout, normal: dict[str, torch.Tensor], kind: str, support: int, *,
         exact: bool = False) -> Task:
    """One task: the first ``support`` samples to adapt on, the others, without noise, to score on.

    ``exact`` puts the d points sqrt(d) root_i in place of the samples to score on: their mean
    squared error is the expected one, for every model that is linear in x. Labels of one output are
    [sample]: numbers, or 0. and 1. for boundaries; of several, [sample, output] or whole class
    numbers [sample]. Raises ValueError for an unknown kind, or ``exact`` where nothing is linear.
    """
    if kind not in KINDS:  # in plain Python, which torch.compile can follow
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if exact and (kind != "regression" or not of.linear):
        raise ValueError(f"exact needs labels that are linear in x, got {kind}; score on samples")
    x = normal["x"] @ of.root.mT
    query = of.root.mT * math.sqrt(of.root.shape[-1]) if exact else x[support:]
    x, values = x[:support], [outputs(of, normal, inputs) for inputs in (x[:support], query)]
    if kind == "boundaries":
        y, query_y = ((value[:, 0] > 0).to(x.dtype) if value.shape[-1] == 1 else value.argmax(-1)
                      for value in values)
    else:
        values[0] = values[0] + of.noise * normal["noise"][:support]
        y, query_y = (value.squeeze(-1) if value.shape[-1] == 1 else value for value in values)
    return Task((x @ of.lens.mT, y), (query @ of.lens.mT, query_y))


def readout_fleet(kind: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int], *,
                  support: int, device: str = "cpu") -> Fleet:
    """A run for every setting and seed, settings outermost.

    A setting holds the arguments of :func:`readout` and ``alpha``, the inner rate times the largest
    curvature: the largest eigenvalue of the covariance of the inputs that a model sees, a quarter
    of it for boundaries. Runs of one seed share axes, features and draws. The expected loss of
    regression linear in x is exact.
    """
    families, alphas = [], []
    for setting in settings:
        options = {name: value for name, value in setting.items() if name != "alpha"}
        top = max(options["scales"]) ** 2
        if (ridge := options.get("ridge")) is not None:
            top /= top + ridge
        top *= 1 if kind == "regression" else 0.25
        families += [readout(torch_stream(seed, "synthetic/family"), **options) for seed in seeds]
        alphas += [setting["alpha"] / top] * len(seeds)
    every: Readout = stacked(families, device)
    exact = kind == "regression" and every.linear
    draw = normal_draws(lambda tasks, query: shapes(
        every, tasks, support + (0 if exact else query)))

    def make(normal: dict[str, torch.Tensor], family: Readout) -> Task:
        return task(family, normal, kind, support, exact=exact)

    one = every.output_root.shape[-1] == 1
    loss = squared_error if kind == "regression" else logistic if one else cross_entropy
    return Fleet("synthetic", tuple(seeds) * len(settings), (every,),
                 torch.tensor(alphas, dtype=torch.float64, device=device), draw, make, loss,
                 classes=kind == "boundaries")
