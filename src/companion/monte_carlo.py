"""Linear regression from drawn tasks: adapted risks, and what finite sets of tasks teach."""

import math

import numpy as np

from companion.checks import Array
from companion.evaluation import Estimate, estimate, ratio
from companion.tasks.regressions import LinearFamily
from companion.theory.gaussian import q_matrix
from companion.theory.landscape import Mixture

_BYTES = 2**26  # of inputs held at once


def adapted_risks(family: LinearFamily, starts: Array, alpha: float, support: float,
                  rng: np.random.Generator, draws: int, *, steps: int = 1,
                  reuse: bool = False) -> Array:
    """Excess risks after adaptation on drawn tasks and samples, [start, draw]; exact given the
    adapted point. Every start in ``starts`` [start, d] is adapted on the same tasks and batches, so
    that differences have little noise. A step sees a fresh batch of ``support`` samples, or with
    ``reuse`` always the first one; ``support=math.inf`` takes the exact gradient."""
    d = starts.shape[1]
    chunk = max(1, _BYTES // (8 * d * (1 if math.isinf(support) else int(support))))
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
            off = np.einsum("nmd,snd->snm", x, error, optimize=True) - residual
            error = error - alpha / support * np.einsum("nmd,snm->snd", x, off, optimize=True)
        parts.append(np.einsum("sni,nij,snj->sn", error, sigma, error, optimize=True) / 2)
    return np.concatenate(parts, axis=1)


def draws_needed(pilot: Array, relative_error: float) -> int:
    """Draws that bring the standard error of a mean below ``relative_error`` of it, judged from
    ``pilot`` draws; a fifth is added to the error, since the pilot's own spread is uncertain."""
    spread = float(pilot.std(ddof=1) / abs(pilot.mean()))
    return max(len(pilot), math.ceil((1.2 * spread / relative_error) ** 2))


def monte_carlo(family: LinearFamily, w: Array, alpha: float, support: float,
                rng: np.random.Generator, *, relative_error: float = 0.003, pilot: int = 40_000,
                steps: int = 1) -> Estimate:
    """The excess risk of the initialisation ``w`` [d], drawn to ``relative_error``; ``pilot``
    draws, not used further, decide how many to take. Compare :meth:`LinearFamily.risk`."""
    first = adapted_risks(family, w[None], alpha, support, rng, pilot, steps=steps)[0]
    draws = draws_needed(first, relative_error)
    return estimate(adapted_risks(family, w[None], alpha, support, rng, draws, steps=steps)[0])


def drawn_ratio(mixture: Mixture, rng: np.random.Generator, draws: int) -> Estimate:
    """The ratio of risks NAL / MAML from tasks alone: both minimisers adapted on the same drawn
    tasks and samples. Compare :attr:`Mixture.ratio`."""
    family = LinearFamily.from_mixture(mixture)
    starts = np.outer([mixture.weight_nal, mixture.weight_maml], family.centres[0])
    alpha, support = (float(np.asarray(value)) for value in (mixture.alpha, mixture.support))
    return ratio(*adapted_risks(family, starts, alpha, support, rng, draws))


def from_finite_tasks(family: LinearFamily, alpha: float, support: int, query: int, tasks: int,
                      rng: np.random.Generator) -> tuple[Array, Array]:
    """What NAL and MAML learn, exactly, from ``tasks`` tasks of support + query samples: two [d].
    NAL pools all samples into one least-squares problem. The empirical MAML objective, inner and
    outer samples disjoint, is least squares too, in the inputs X_q (I - alpha S_s) and labels y_q -
    (alpha/m) X_q X_s.y_s."""
    group, optima = family.draw_tasks(rng, (tasks,))
    x, y = family.draw_samples(rng, group, optima, support + query)
    d = x.shape[-1]
    x_in, y_in, x_out, y_out = x[:, :support], y[:, :support], x[:, support:], y[:, support:]
    gram = np.einsum("tmi,tmj->tij", x_in, x_in, optimize=True) / support
    moved = np.einsum("tmi,tm->ti", x_in, y_in) * alpha / support
    inputs = x_out @ (np.eye(d) - alpha * gram)
    labels = y_out - np.einsum("tmi,ti->tm", x_out, moved)
    nal, maml = (np.linalg.solve(rows.T @ rows, rows.T @ targets.reshape(-1))  # least squares
                 for rows, targets in ((x.reshape(-1, d), y), (inputs.reshape(-1, d), labels)))
    return nal, maml


def drawn_constants(family: LinearFamily, alpha: float, support: int, query: int,
                    rng: np.random.Generator, draws: int) -> tuple[Estimate, Estimate]:
    """The sandwich constants of NAL, on support + query samples, and of MAML from the gradients g
    of ``draws`` single tasks at the minimisers: the mean of g.A^-1 g / 2, A the Hessian. Compare
    :attr:`companion.theory.finite_tasks.Sandwich.constant`."""
    nal, maml = family.minimiser_nal(), family.minimiser_maml(alpha, support)
    hessians = [family.hessian(step, support) for step in (0, alpha)]
    parts, chunk = [], max(1, _BYTES // (8 * len(nal) * (support + query)))
    for first in range(0, draws, chunk):
        group, optima = family.draw_tasks(rng, (min(chunk, draws - first),))
        x, y = family.draw_samples(rng, group, optima, support + query)
        inner, outer = (x[:, :support], y[:, :support]), (x[:, support:], y[:, support:])
        at_query = _slopes(*outer, maml - alpha * _slopes(*inner, maml))
        back = _slopes(inner[0], 0 * inner[1], at_query)  # the Hessian of the support times it
        parts.append([np.einsum("ti,ij,tj->t", g, np.linalg.inv(a), g, optimize=True) / 2
                      for g, a in zip((_slopes(x, y, nal), at_query - alpha * back), hessians,
                                      strict=True)])
    own_nal, own_maml = (estimate(np.concatenate(each)) for each in zip(*parts, strict=True))
    return own_nal, own_maml


def _slopes(x: Array, y: Array, w: Array) -> Array:
    """Gradients of the squared loss of every task's batch at w, [d] or [task, d]."""
    off = (x @ np.broadcast_to(w, (len(x), x.shape[-1]))[..., None])[..., 0] - y
    return np.asarray(np.einsum("tmi,tm->ti", x, off, optimize=True) / x.shape[1])


def plug_in(family: LinearFamily, alpha: float, support: int, samples: int, tasks: int,
            rng: np.random.Generator) -> Array:
    """The naive w_MAML [d]: Q of each task's empirical covariance, its least-squares optimum."""
    group, optima = family.draw_tasks(rng, (tasks,))
    x, y = family.draw_samples(rng, group, optima, samples)
    gram = np.einsum("tmi,tmj->tij", x, x, optimize=True) / samples
    own = np.linalg.solve(gram, (np.einsum("tmi,tm->ti", x, y) / samples)[..., None])[..., 0]
    q = q_matrix(gram, alpha, support)
    return np.linalg.solve(q.mean(axis=0), np.einsum("tij,tj->i", q, own) / tasks)
