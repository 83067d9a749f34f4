"""Linear regression, measured: Monte Carlo of the closed forms, trained fleets, and finite data
(paper L)."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.func import grad, vmap

from companion.checks import Array
from companion.evaluation import Estimate, estimate
from companion.meta_optimizers import Params, sgd
from companion.objectives import maml, nal
from companion.streams import stream
from companion.tasks import Task
from companion.tasks.regressions import LinearFamily
from companion.theory.gaussian import q_matrix

_BYTES = 2**26  # of inputs held at once
_BLOCK = 2**17  # of inputs of one seed, drawn at once in training


def adapted_risks(
    family: LinearFamily, starts: Array, alpha: float, support: float, rng: np.random.Generator,
    draws: int, *, steps: int = 1, reuse: bool = False,
) -> Array:
    """Excess risks after adaptation on drawn tasks and samples, [start, draw].

    Every start in ``starts`` [start, d] is adapted on the same tasks and batches, so that
    differences between starts have little noise. A step sees a fresh batch of ``support`` samples,
    or with ``reuse`` always the first one; ``support=math.inf`` takes the exact gradient. The risk
    itself is exact given the adapted point.
    """
    d = starts.shape[1]
    per_draw = 8 * d * (1 if math.isinf(support) else int(support))
    chunk = max(1, _BYTES // per_draw)
    parts = []
    for first in range(0, draws, chunk):
        group, optima = family.draw_tasks(rng, (min(chunk, draws - first),))
        sigma = family.covariances[group]
        error = starts[:, None, :] - optima  # [start, draw, d]
        x = residual = np.empty(0)
        for step in range(steps):
            if math.isinf(support):
                error = error - alpha * np.einsum("nij,snj->sni", sigma, error)
                continue
            if step == 0 or not reuse:
                x, y = family.draw_samples(rng, group, optima, int(support))
                residual = y - (x @ optima[..., None])[..., 0]
            error = error - alpha / support * np.einsum(
                "nmd,snm->snd", x, np.einsum("nmd,snd->snm", x, error, optimize=True) - residual,
                optimize=True,
            )
        parts.append(np.einsum("sni,nij,snj->sn", error, sigma, error, optimize=True) / 2)
    return np.concatenate(parts, axis=1)


def draws_needed(pilot: Array, relative_error: float) -> int:
    """Draws that bring the standard error of a mean below ``relative_error`` of it, judged from
    ``pilot`` draws.

    A fifth is added to the error, since the pilot's own spread is uncertain.
    """
    spread = float(pilot.std(ddof=1) / abs(pilot.mean()))
    return max(len(pilot), math.ceil((1.2 * spread / relative_error) ** 2))


def monte_carlo(family: LinearFamily, w: Array, alpha: float, support: float,
                rng: np.random.Generator, *, relative_error: float = 0.003, pilot: int = 40_000,
                steps: int = 1) -> Estimate:
    """The excess risk of the initialisation ``w`` [d], drawn to ``relative_error``. Compare
    :meth:`LinearFamily.risk`.

    ``pilot`` draws, not used further, decide how many to take.
    """
    first = adapted_risks(family, w[None], alpha, support, rng, pilot, steps=steps)[0]
    draws = draws_needed(first, relative_error)
    return estimate(adapted_risks(family, w[None], alpha, support, rng, draws, steps=steps)[0])


def squared_loss(params: Params, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Half the mean squared error of the linear model x.w on (x [sample, d], y [sample])."""
    x, y = batch
    return ((x @ params["w"] - y) ** 2).mean() / 2


def _batch_loss(method: str, alpha: float) -> Callable[[Params, Task], torch.Tensor]:
    """The NAL or one-step MAML objective of the linear model, averaged over a batch of tasks."""
    if method not in ("nal", "maml"):
        raise ValueError(f'method must be "nal" or "maml", got {method!r}; name one of the two')
    objective = (
        nal(squared_loss) if method == "nal" else maml(squared_loss, steps=1, update=sgd(alpha))
    )
    return lambda params, tasks: vmap(objective, in_dims=(None, 0))(params, tasks).mean()


def _task_batches(family: LinearFamily, seeds: int, steps: int, meta_batch: int, support: int,
                  query: int) -> Iterator[Task]:
    """One batch of tasks a step for every seed: leaves [seed, task, sample, ...]. Each seed has its
    own stream."""
    rngs = [stream(seed, "linear/train") for seed in range(seeds)]
    step_bytes = 8 * meta_batch * (support + query) * family.centres.shape[1]
    block = max(
        1, _BLOCK // step_bytes
    )  # steps drawn at once: the same for any fleet and any number of steps
    for first in range(0, steps, block):
        drawn = []
        for rng in rngs:
            tasks = family.draw_tasks(rng, (block, meta_batch))
            drawn.append(family.draw_samples(rng, *tasks, support + query))
        x, y = (torch.from_numpy(np.stack(side, axis=1)) for side in zip(*drawn, strict=True))
        for t in range(min(block, steps - first)):
            yield Task((x[t, :, :, :support], y[t, :, :, :support]),
                       (x[t, :, :, support:], y[t, :, :, support:]))


def train(
    family: LinearFamily, method: str, rates: Array, start: Array, *, alpha: float, support: int,
    query: int, meta_batch: int, steps: int, half_life: float = math.inf,
) -> Array:
    """Train by SGD on fresh tasks, a fleet of seeds and rates at once; every iterate, [step + 1,
    seed, rate, d].

    ``start`` is [seed, d]. The rate after t steps is rate / (1 + t/half_life). All rates of a seed
    see the same
    tasks, and so do both methods: NAL takes support and query samples together.
    """
    gradient = vmap(
        vmap(grad(_batch_loss(method, alpha)), in_dims=(0, None))
    )  # over seeds, then rates
    w = torch.from_numpy(start)[:, None, :].repeat(1, len(rates), 1)
    scale = torch.from_numpy(rates)[:, None]
    path = [w]
    for t, tasks in enumerate(_task_batches(family, len(start), steps, meta_batch, support, query)):
        w = w - scale / (1 + t / half_life) * gradient({"w": w}, tasks)["w"]
        path.append(w)
    return torch.stack(path).numpy()


@dataclass(frozen=True)
class Race:
    """How fast one method reaches ``factor`` times its own optimum by SGD, and what makes it slow.

    ``steps`` [seed] are counted at ``rate``, the best of the grid on other seeds; inf where the
    budget ended first. ``condition`` is that of the objective's Hessian. ``gradient_noise`` is E|g
    - E g|^2 / (2 L f) at the optimum: g the gradient of one meta-batch, L the largest eigenvalue of
    the Hessian, f the optimum; it has no unit.
    """

    rate: float
    steps: Array
    condition: float
    gradient_noise: float


def race(family: LinearFamily, method: str, rates: Array, *, alpha: float, support: int, query: int,
         meta_batch: int, steps: int, tuning_seeds: int, seeds: int, factor: float = 1.1) -> Race:
    """Run ``method`` at every rate from random starts; pick the rate on the first seeds, count on
    the others."""
    step = 0.0 if method == "nal" else alpha
    optimum = family.minimiser_nal() if method == "nal" else family.minimiser_maml(alpha, support)
    weights = family.weights / family.weights.sum()
    hessian = np.einsum("g,gij->ij", weights, q_matrix(family.covariances, step, support))
    least = float(family.risk(optimum, step, support))
    d = len(optimum)
    start = 2 * np.stack(
        [stream(seed, "linear/start").standard_normal(d) for seed in range(tuning_seeds + seeds)]
    )
    path = train(family, method, rates, start, alpha=alpha, support=support, query=query,
                 meta_batch=meta_batch, steps=steps)
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # runs at too high a rate diverge; they never arrive
        error = path - optimum
        counts = steps_to_reach(least + np.einsum("tsri,ij,tsrj->tsr", error, hessian, error) / 2,
                                factor * least)
    best = int(np.argmin(counts[:tuning_seeds].mean(axis=0)))
    tasks = next(_task_batches(family, 1000, 1, meta_batch, support, query))
    gradients = vmap(grad(_batch_loss(method, alpha)), in_dims=(None, 0))(
        {"w": torch.from_numpy(optimum)}, tasks
    )
    eigenvalues = np.linalg.eigvalsh(hessian)
    return Race(rate=float(rates[best]),
                steps=counts[tuning_seeds:, best],
                condition=float(eigenvalues[-1] / eigenvalues[0]),
                gradient_noise=float(gradients["w"].var(dim=0).sum())
                / (2 * float(eigenvalues[-1]) * least))


def steps_to_reach(risks: Array, target: float) -> Array:
    """The first step at which ``risks`` [step, ...] is at or below ``target``; inf where it never
    is."""
    reached = risks <= target
    return np.where(reached.any(axis=0), reached.argmax(axis=0).astype(float), np.inf)


def _least_squares(x: Array, y: Array) -> Array:
    """The w that minimises |x w - y|; by the normal equations, for x with many more rows than
    columns."""
    return np.asarray(np.linalg.solve(x.T @ x, x.T @ y))


def from_finite_tasks(family: LinearFamily, alpha: float, support: int, query: int, tasks: int,
                      rng: np.random.Generator) -> tuple[Array, Array]:
    """What NAL and MAML learn from ``tasks`` tasks of support + query samples each, both exactly:
    two [d].

    NAL pools all samples into one least-squares problem. The empirical MAML objective, inner and
    outer samples disjoint, is least squares too, in the inputs X_q (I - alpha S_s) and labels y_q -
    (alpha/m) X_q X_s.y_s.
    """
    group, optima = family.draw_tasks(rng, (tasks,))
    x, y = family.draw_samples(rng, group, optima, support + query)
    d = x.shape[-1]
    x_in, y_in, x_out, y_out = x[:, :support], y[:, :support], x[:, support:], y[:, support:]
    gram = np.einsum("tmi,tmj->tij", x_in, x_in, optimize=True) / support
    moved = np.einsum("tmi,tm->ti", x_in, y_in) * alpha / support
    inputs = x_out @ (np.eye(d) - alpha * gram)
    labels = y_out - np.einsum("tmi,ti->tm", x_out, moved)
    return _least_squares(x.reshape(-1, d), y.reshape(-1)), _least_squares(
        inputs.reshape(-1, d), labels.reshape(-1)
    )


def plug_in(family: LinearFamily, alpha: float, support: int, samples: int, tasks: int,
            rng: np.random.Generator) -> Array:
    """The naive estimate of w_MAML, [d]: Q of each task's empirical covariance, its own
    least-squares optimum."""
    group, optima = family.draw_tasks(rng, (tasks,))
    x, y = family.draw_samples(rng, group, optima, samples)
    gram = np.einsum("tmi,tmj->tij", x, x, optimize=True) / samples
    own = np.linalg.solve(gram, (np.einsum("tmi,tm->ti", x, y) / samples)[..., None])[..., 0]
    q = q_matrix(gram, alpha, support)
    return np.linalg.solve(q.mean(axis=0), np.einsum("tij,tj->i", q, own) / tasks)
