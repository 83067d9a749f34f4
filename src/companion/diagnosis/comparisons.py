r"""What starts and steps leave on the tasks' population, estimated from the tasks at hand.

The ratio of NAL and MAML has the interval of the percentile bootstrap over tasks, less twice the
bias that the jackknife finds: MAML's start fits the tasks at hand, so that its risk on them is too
small, and on resamples of them twice. Better steps are judged on tasks that neither start nor step
was learned from, thirds of the tasks in turn. Tasks are ``Observed``, see the module ``observed``,
``shares`` their weights, of sum 1, [task].
"""

import itertools
import math
import operator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from companion.checks import Array
from companion.diagnosis.observed import Observed, Quadratic, Sampled
from companion.evaluation import Interval
from companion.theory import preconditioners, whitening

STEPS = ("learned rate", "whitening", "full preconditioner")  # beyond the step alpha
STARTS = ("NAL", "MAML")
_FOLDS, _DESCENT = 3, 4  # of the tasks; preconditioners on the way to a full one
_RIDGE = 1e-12  # relative to the inputs: nothing may be left of some direction, or of any
_FAR = 50.0  # a log ratio that stands for infinity
_GRID = 40  # of steps between the least and the largest that may be best
_ROUNDING = 1e-12  # of the risk before a step: a risk below this share of it is 0
_BLOCK = 2**22  # numbers of resampled matrices held at once


def _centre(matrix: Array, vector: Array, inputs: Array) -> Array:
    """Minimisers of w.M w/2 - v.w, [..., d], where ``inputs`` have that covariance."""
    d = matrix.shape[-1]
    little = _RIDGE * np.trace(inputs, axis1=-2, axis2=-1)[..., None, None] / d
    return np.asarray(np.linalg.solve(matrix + little * np.eye(d), vector[..., None])[..., 0])


def _rounding(weights: Array, pull: Array, tasks: Observed) -> Array:
    """What may be left of a mean risk of 0, of tasks whose S w* is ``pull`` [task, d]."""
    return np.asarray(_ROUNDING * (weights @ (pull * tasks.optima).sum(1)))


def _unless_rounding(risks: Array, least: Array) -> Array:
    return np.where(np.abs(risks) <= least, least, risks)


def best_step(tasks: Observed, shares: Array, support: float, steps: int) -> float:
    """The step of the least risk of MAML: on a grid, and then between the neighbours of the best.
    After one step none is best for any start beyond the largest s/((1 + u) s^2 + u tr S^2), if
    inputs are normal; of any inputs, beyond the largest 1/s."""
    along = tasks.variances[shares > 0]
    counts = along > 1e-9 * along.max()
    own = along / ((1 + 1 / support) * along**2 + (along**2).sum(-1, keepdims=True) / support)
    most = 1 / along[counts] if isinstance(tasks, Sampled) else own[counts]
    low, high = math.log(own[counts].min() / 10), math.log(most.max())

    def mean(step: float) -> list[Array]:
        return [np.tensordot(shares, part, 1) for part in tasks.adapted(step)]

    unit, inputs = math.exp((low + high) / 2), np.tensordot(shares, tasks.covariances, 1)
    nodes = [mean(unit * i) for i in range(3)]  # one step's mean is a parabola in alpha

    def risk(log_step: float) -> float:
        x = math.exp(log_step) / unit
        lagrange = (1 - x) * (2 - x) / 2, x * (2 - x), x * (x - 1) / 2
        q, b, c = ([sum(map(operator.mul, lagrange, part)) for part in zip(*nodes, strict=True)]
                   if steps == 1 else mean(math.exp(log_step)))
        try:
            np.linalg.cholesky(q + _RIDGE * np.trace(inputs) * np.eye(len(q)))
        except np.linalg.LinAlgError:
            return math.inf  # estimates of which no start is the best
        return float(c - b @ _centre(q, b, inputs) / 2)

    grid = np.linspace(low, high, _GRID)
    best = int(np.argmin([risk(at) for at in grid]))
    near = grid[max(best - 1, 0)], grid[min(best + 1, _GRID - 1)]
    with np.errstate(invalid="ignore"):  # beside infinite risks its parabola is none
        found = minimize_scalar(risk, bounds=near, method="bounded", options={"xatol": 1e-7})
    return math.exp(min((float(grid[best]), float(found.x)), key=risk))


def _log_ratios(counts: Array, tasks: Observed, quadratic: Quadratic) -> Array:
    """The log ratio of the risks of NAL and MAML on resamples, from weights of tasks [resample,
    task]: starts and risks are of the same resample."""
    q, b, c = quadratic
    s, d = tasks.covariances, q.shape[-1]
    pull = np.einsum("tij,tj->ti", s, tasks.optima)
    found = []
    for part in np.array_split(counts, math.ceil(counts.shape[0] * d * d / _BLOCK)):
        before, after = ((part @ one.reshape(len(one), -1)).reshape(-1, d, d) for one in (s, q))
        vector = part @ b
        starts = _centre(before, part @ pull, before), _centre(after, vector, before)
        nal, maml = (np.einsum("ri,rij,rj->r", w, after, w, optimize=True) / 2
                     - (vector * w).sum(1) + part @ c for w in starts)
        least = _rounding(part, pull, tasks)
        nal, maml = (_unless_rounding(risk, least) for risk in (nal, maml))
        with np.errstate(divide="ignore", invalid="ignore"):
            each = np.where(maml > 0, np.maximum(nal, 0) / maml, np.inf)
            found.append(np.clip(np.log(each), -_FAR, _FAR))
    return np.concatenate(found)


def _resamples(shares: Array, rng: np.random.Generator, resamples: int) -> Array:
    """Weights of tasks drawn with replacement, [resample, task]."""
    picks = rng.multinomial(len(shares), np.full(len(shares), 1 / len(shares)), resamples)
    return np.asarray(shares * np.where((picks @ shares > 0)[:, None], picks, 1))


def ratio(tasks: Observed, quadratic: Quadratic, shares: Array, rng: np.random.Generator,
           resamples: int) -> Interval:
    """The risk of NAL's start over that of MAML's, which is at least 1, with its interval."""
    count = np.count_nonzero(shares)
    every = _log_ratios(np.concatenate([
        shares[None], shares * (1 - np.eye(len(shares)))[shares > 0],
        _resamples(shares, rng, resamples)]), tasks, quadratic)
    if np.abs(every[:count + 1]).max() >= _FAR:  # a risk estimated as 0 or less: too few samples
        return Interval(1.0, 1.0, math.inf)
    bias = (count - 1) * (every[1:count + 1].mean() - every[0])
    ends = np.quantile(every[count + 1:], [0.025, 0.975])
    low, high = np.where(ends < _FAR, ends - 2 * bias, _FAR)
    value = min(max(every[0] - bias, low), high)
    return Interval(*(math.inf if number >= _FAR else math.exp(max(number, 0.0))
                      for number in (value, low, high)))


def gains(tasks: Observed, quadratic: Quadratic, alpha: float, support: float, shares: Array,
          rng: np.random.Generator, resamples: int) -> dict[tuple[str, str], Interval]:
    """Risk with the step alpha over risk with a better one, by start and step: both of every task,
    start and step from the thirds that it is not in."""
    count = len(shares)
    fold = rng.permutation(count) % min(_FOLDS, count)
    pull = np.einsum("tij,tj->ti", tasks.covariances, tasks.optima)
    risks = np.empty((len(STARTS), 5, count))  # alpha, rate, whitening, halfway to a full one, full
    for part in range(fold.max() + 1):
        train, test = np.flatnonzero(fold != part), np.flatnonzero(fold == part)
        weight = shares[train] if shares[train].any() else np.ones(len(train))
        of, judge, weight = tasks.some(train), tasks.some(test), weight / weight.sum()
        inputs = np.tensordot(weight, of.covariances, 1)
        for i, pair in enumerate(((tasks.covariances, pull), quadratic[:2])):
            matrix, vector = (np.tensordot(weight, one[train], 1) for one in pair)
            w = _centre(matrix, vector, inputs)
            rate, white, full = _better(w, of, weight, support)
            for j, step in enumerate((alpha * np.eye(len(w)), rate, white, (white + full) / 2,
                                      full)):
                risks[i, j, test] = judge.risks(w, step)
    picks = np.concatenate([shares[None], _resamples(shares, rng, resamples)])
    least = _rounding(picks, pull, tasks)
    return {(start, name): _gain(picks, each[0], better, least)
            for start, each in zip(STARTS, risks, strict=True)
            for name, better in zip(STEPS, (*each[1:3], _mixed(each[2:], fold, shares)),
                                    strict=True)}


def _better(w: Array, tasks: Observed, weight: Array,
            support: float) -> tuple[Array, Array, Array]:
    """The steps that tasks teach from w: a rate; the whitening of their inputs, with the ridge that
    the number of samples asks for, at a rate of its own; and a full preconditioner, on the way from
    there to the best one."""
    mean, identity = np.tensordot(weight, tasks.covariances, 1), np.eye(len(w))
    length = math.sqrt(weight @ ((tasks.optima - w) ** 2).sum(1))
    noise = math.sqrt(weight @ tasks.noise**2) / length if length > 0 else 0.0
    little = _RIDGE * np.trace(mean) * identity
    white = whitening.ridge_whitening(mean + little, support, noise).preconditioner
    white = tasks.rate(w, white, weight) * white
    of = preconditioners.Tasks(tasks.covariances, tasks.optima, weight, 1 / support,
                               tasks.noise**2)
    *_, full = itertools.islice(preconditioners.descend(w, of, white), _DESCENT)
    return tasks.rate(w, identity, weight) * identity, white, full


def _mixed(risks: Array, fold: NDArray[np.int64], shares: Array) -> Array:
    """The risks [task] of white + t (full - white) from those at t = 0, 1/2, 1, [3, task], a
    parabola in t; t in [0, 1] is the best one on the other thirds."""
    constant, bend = risks[0], 2 * (risks[0] - 2 * risks[1] + risks[2])
    slope = risks[2] - risks[0] - bend
    t = np.empty(len(fold))
    for part in range(fold.max() + 1):
        rest = shares * (fold != part)
        down, up = -(rest @ slope), 2 * (rest @ bend)
        t[fold == part] = min(max(down / up, 0.0), 1.0) if up > 0 else float(down > -up / 2)
    return np.asarray(constant + t * slope + t**2 * bend)


def _gain(picks: Array, before: Array, after: Array, least: Array) -> Interval:
    """The first of the ratios of mean risks, and an interval from the others. Risks below ``least``
    are 0 but for rounding, and over such a risk nothing is gained; where both are estimated as less
    than 0 the ratio may be anything."""
    top, bottom = (_unless_rounding(picks @ risks, least) for risks in (before, after))
    lost = (top < 0) & (bottom <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(bottom > 0, np.maximum(top, 0) / bottom, np.inf)
    each[top == least] = 1.0
    value = 1.0 if lost[0] else float(each[0])
    low = np.quantile(np.where(lost, 0.0, each)[1:], 0.025, method="nearest")
    high = np.quantile(each[1:], 0.975, method="nearest")
    return Interval(value, float(min(low, value)), float(max(high, value)))
