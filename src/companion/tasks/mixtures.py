"""The easy/hard mixture of the theory as a fleet, with exact expected losses."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
import torch

from companion.checks import require
from companion.losses import squared_error
from companion.tasks import Fleet, Task, normal_draws
from companion.theory.landscape import Mixture


def mixture_fleet(mixture: Mixture, seeds: Sequence[int], *, alpha: float) -> Fleet:
    """A run for every seed at the inner rate ``alpha``; that of the mixture is not used.

    The hard centre is 0, the easy one ``distance`` away on the first axis. A task is scored on the
    d points sqrt(rho d) e_i, on which the mean squared error of a linear model is the expected one;
    with ``support=math.inf`` it also adapts on them, which is the full batch. Runs of one seed see
    the same tasks in every mixture. ValueError: a mixture with array fields, or with label noise.
    """
    require(np.ndim(mixture.risk_nal) == 0, "mixture", "hold numbers", "arrays",
            "make one fleet per mixture")
    sigma, m, p, distance = (float(np.asarray(value)) for value in (
        mixture.noise, mixture.support, mixture.hard_fraction, mixture.distance))
    require(sigma == 0, "noise", "be 0", sigma, "these tasks have exact labels")
    dim, whole = int(np.asarray(mixture.dim)), math.isinf(m)
    require(0 < p < 1, "hard_fraction", "lie inside (0, 1)", p, "it takes two groups")
    cut, eye = NormalDist().inv_cdf(1 - p), torch.eye(dim, dtype=torch.float64)
    pairs = [(float(np.asarray(a)), float(np.asarray(b))) for a, b in (
        (mixture.rho_easy, mixture.rho_hard), (mixture.var_easy, mixture.var_hard))]

    def make(normal: dict[str, torch.Tensor]) -> Task:
        hard, corner = (normal["group"][0] > cut).to(normal["task"]), eye.to(normal["task"])
        rho, variance = (easy + hard * (other - easy) for easy, other in pairs)
        optimum = (1 - hard) * distance * corner[0] + (variance / dim).sqrt() * normal["task"]
        query = (rho * dim).sqrt() * corner
        x = query if whole else rho.sqrt() * normal["x"]
        return Task((x, x @ optimum), (query, query @ optimum))

    draw = normal_draws(lambda tasks, query: {
        "group": (tasks, 1), "task": (tasks, dim), "x": (tasks, 1 if whole else int(m), dim)})
    alphas = torch.full((len(seeds),), alpha, dtype=torch.float64)
    return Fleet("mixture", tuple(seeds), (), alphas, draw, make, squared_error,
                 training_dtype=torch.float64)
