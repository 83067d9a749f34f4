r"""What a family of tasks lets one learn: from a start (MAML) or from the inner step, and how much.

NAL's start minimises the mean risk without adaptation, MAML's that after one step; their ratio of
risks after adaptation is what paper L is about. A better step is what paper D is about. Both are
estimated from the tasks at hand for the population that they come from. Explained in book/diagnose.
"""

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from companion.checks import Array, at_least, one_number, require, step_size, support_size
from companion.diagnosis.comparisons import best_step, gains, ratio
from companion.diagnosis.observed import Observed, known, sampled
from companion.evaluation import Interval
from companion.streams import stream
from companion.theory import gaussian, landscape

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WORTH = 1.1  # a ratio of risks from which on a gain is worth its trouble
_SHOWN, _TICKS = (0.1, 1000.0), (0.1, 0.2, 0.5, 0.8, 1, 1.25, 2, 5, 10, 30, 100, 1000)
_FEW = 8  # tasks: below, no interval tells


class Groups(NamedTuple):
    """Two groups of tasks, the hard ones and the others: ``names`` of both, hard first, and which
    tasks are ``hard``. ``distance`` R of their centres and ``spread``, the root of the variance of
    the optima within the hard and the other group, both as lengths of predictions, w.E[S] w."""

    names: tuple[str, str]
    hard: NDArray[np.bool_]
    distance: float
    spread: tuple[float, float]

    @property
    def packing(self) -> float:
        """R^2 over the variance of the hard optima: large where they are packed and far."""
        return self.distance**2 / self.spread[0] ** 2 if self.spread[0] > 0 else math.inf


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What tasks let one learn. Intervals are 95 % intervals for the tasks' population.

    ``alpha``: the step, given or the best one of MAML. ``hardness`` [task]: the share tr Q / tr S
    that it leaves of a task; ``spread`` h and ``ceiling`` (1 + h)^2/4h, those of the tasks at hand;
    ``dimension``: their mean effective dimension. ``ratio``: risk of NAL's start over MAML's.
    ``gains``: by start and step of ``STEPS``, risk with the step alpha over risk with the better
    step, on tasks that neither start nor step was learned from; none for several steps.
    ``advice``: one sentence."""

    tasks: int
    dim: int
    support: float
    alpha: float
    steps: int
    hardness: Array
    spread: float
    ceiling: float
    dimension: float
    groups: Groups
    ratio: Interval
    gains: Mapping[tuple[str, str], Interval]
    advice: str

    def rows(self) -> list[tuple[str, str, str]]:
        """The table: what, its value, its interval or a remark."""
        apart, (hard, rest) = self.groups, self.groups.spread
        found = [("tasks, features", f"{self.tasks}, {self.dim}",
                  f"effective dimension {self.dimension:.3g}"),
                 ("step", f"{self.alpha:.3g}", f"{self.steps} on " + (
                     f"{self.support:g} samples each" if math.isfinite(self.support)
                     else "the full batch, m = ∞")),
                 ("hardness spread h", f"{self.spread:.3g}",
                  f"a task keeps {max(self.hardness.min(), 0):.3g} to {self.hardness.max():.3g}"),
                 ("ceiling", f"{self.ceiling:.3g}",
                  "the most that NAL / MAML can be, for normal inputs"),
                 ("hard tasks", str(int(apart.hard.sum())), apart.names[0]),
                 ("distance of groups", f"{apart.distance:.3g}",
                  f"spread of hard {hard:.3g}, of others {rest:.3g}"),
                 ("risk NAL / MAML", *_texts(self.ratio))]
        return found + [(f"{start}: {step}", *_texts(gain))
                        for (start, step), gain in self.gains.items()]

    def __str__(self) -> str:
        rows = self.rows()
        wide = [max(len(row[i]) for row in rows) for i in (0, 1)]
        lines = [f"{what:<{wide[0]}}  {value:>{wide[1]}}  {rest}" for what, value, rest in rows]
        return "\n".join([*lines, "", *textwrap.wrap(self.advice, max(map(len, lines)))])

    def figure(self) -> "Figure":
        """A picture: the hardness of the tasks, the ratio under its ceiling, and the gains."""
        import matplotlib.pyplot as plt

        from companion import figures

        made, (left, right) = plt.subplots(2, 1, figsize=(5, 5.2), layout="constrained",
                                           height_ratios=(1, 1.4))
        order = np.argsort(self.hardness)
        for hard, color in ((False, figures.EASY), (True, figures.HARD)):
            here = self.groups.hard[order] == hard
            left.plot(np.flatnonzero(here) + 1, self.hardness[order][here], "o", color=color,
                      markersize=4, label="hard" if hard else "other")
        left.set(xlabel="task, by hardness", ylabel="share left",
                 ylim=(0, 1.08 * self.hardness.max() or 1))
        left.legend()
        bars = {"NAL / MAML": self.ratio} | {": ".join(key): gain
                                             for key, gain in self.gains.items()}
        for i, each in enumerate(bars.values()):
            low, value, high = np.clip((each.low, each.value, each.high), *_SHOWN)
            right.plot([low, high], [i, i], color=figures.INK)
            right.plot(value, i, "o", color=figures.MAML if i else figures.NAL)
        if self.ceiling < _SHOWN[1]:  # else it is out of sight
            right.plot([self.ceiling] * 2, [-0.4, 0.4], color=figures.INK)
            right.text(self.ceiling, -0.4, " ceiling", va="top", color=figures.INK)
        right.axvline(1, color=figures.FAINT, linewidth=0.8)
        right.set(xscale="log", xlabel="ratio of risks, with 95 % interval")
        least, most = right.get_xlim()
        ticks = [tick for tick in _TICKS if least <= tick <= most]
        right.set_xticks(ticks, labels=[f"{tick:g}" for tick in ticks])
        right.minorticks_off()
        right.set_yticks(range(len(bars)), labels=list(bars))
        right.invert_yaxis()
        return made


def _texts(interval: Interval) -> tuple[str, str]:
    if math.isfinite(interval.high) and interval.high < 1e3:
        return interval.texts_to(max(interval.high - interval.low, 4e-3))  # four decimals at most
    return interval.rough


def _said(interval: Interval) -> str:
    return " ".join(_texts(interval))


def diagnose(covariances: ArrayLike | None = None, optima: ArrayLike | None = None, *,
             data: Sequence[Any] | None = None, features: Callable[[Any], Any] | None = None,
             intercept: bool = False, groups: Sequence[Any] | None = None,
             support: float = math.inf, noise: ArrayLike = 0.0, alpha: float | None = None,
             steps: int = 1, weights: ArrayLike | None = None, resamples: int = 200,
             seed: int = 0) -> Diagnosis:
    """What the tasks let one learn, as a :class:`Diagnosis`.

    Args:
        covariances: of the tasks' inputs, second moments, [task, d, d]. With ``optima``, or
            ``data`` in their place.
        optima: [task, d].
        data: one pair (x, y) a task, x [sample, d] and y [sample], at least d + 2 samples each.
        features: for images: what maps them, [sample, ...], to x, such as a module. Whole-number
            labels must then be of two classes, which become -1 and 1; images of type uint8 are
            divided by 255.
        intercept: adds a feature 1 to the data.
        groups: [task], any labels; the group of the largest mean hardness is the hard one. Without
            them the harder half of the tasks is.
        support: samples in the inner step, m; math.inf for the full batch.
        noise: standard deviation of the labels' noise, a number or [task]; of data it is estimated.
        alpha: the inner step; by default the one at which MAML's risk is least.
        steps: inner steps on fresh samples; more than one only for known moments.
        weights: of the tasks, [task] >= 0, normalised.
        resamples: of the tasks, for the intervals.
        seed: of the resamples.

    The interval of the ratio is that of the percentile bootstrap, less twice the bias that the
    jackknife finds: MAML's start fits the tasks at hand, so that its risk on them is too small, and
    on resamples of them twice. Gains are judged on tasks that start and step were not learned from,
    thirds of the tasks in turn; so they are those of a step learned from two thirds of the tasks.
    Intervals are for drawn tasks: the ceiling, which is about the extremes, has none.

    Raises ValueError for fewer than two tasks, arguments out of range, shapes that do not match,
    covariances that are none, and data with too few samples.
    """
    given = {"covariances": covariances is not None, "optima": optima is not None,
             "data": data is not None}
    require(list(given.values()) in ([True, True, False], [False, False, True]), "the tasks",
            "be given by covariances and optima, or by data",
            ", ".join(name for name, there in given.items() if there) or "nothing", "see diagnose")
    size = one_number("support", support_size(support))
    if data is not None:
        require(np.all(np.asarray(noise) == 0), "noise", "be left out for data", noise,
                "it is estimated from the residuals")
        require(steps == 1, "steps", "be 1 for data", steps,
                "give covariances and optima for more")
        tasks: Observed = sampled(data, size, features=features, intercept=intercept)
    else:
        require(features is None and not intercept, "features and intercept", "come with data",
                "covariances", "leave them out")
        tasks = known(covariances, optima, noise, size, steps)  # type: ignore[arg-type]
    most = tasks.variances[:, -1]
    require(most > 0, "the largest variance of a task's inputs", "be positive", most,
            "drop tasks without inputs")
    shares = gaussian.check_weights(weights, len(tasks.optima))
    labels = _labels(groups, len(shares))
    at_least("resamples", resamples, 20, "200 is usual", whole=True)
    step = best_step(tasks, shares, size, int(steps)) if alpha is None else one_number(
        "alpha", step_size(alpha))
    spread = gaussian.spread_of_variances(tasks.variances[shares > 0], step, size, steps=int(steps))
    q, *_ = quadratic = tasks.adapted(step)
    hardness = np.trace(q, axis1=1, axis2=2) / np.trace(tasks.covariances, axis1=1, axis2=2)
    rng, few = stream(seed, "diagnosis"), bool(np.count_nonzero(shares) < _FEW)
    starts = ratio(tasks, quadratic, shares, rng, int(resamples))
    better = {} if steps > 1 else gains(tasks, quadratic, step, size, shares, rng,
                                            int(resamples))
    top = float(landscape.ceiling(spread))
    return Diagnosis(len(shares), q.shape[-1], size, step, int(steps), hardness, spread, top,
                     float(np.mean((tasks.variances**2).sum(1) / tasks.variances[:, -1] ** 2)),
                     _groups(tasks, hardness, labels, shares), starts, better,
                     advise(starts, better, top if data is None else math.inf, few=few))


def _labels(groups: Sequence[Any] | None, tasks: int) -> NDArray[Any] | None:
    if groups is None:
        return None
    labels = np.asarray(groups)
    require(not (labels.dtype.kind == "f" and np.isnan(labels).any()), "groups", "have no gaps",
            "nan", "name the group of every task")
    require(labels.shape == (tasks,), "groups.shape", f"be [task] = {(tasks,)}", labels.shape,
            "give one label per task")
    kinds = len(np.unique(labels))
    require(kinds > 1, "groups", "be two or more", kinds, "leave groups out")
    return labels


def _groups(tasks: Observed, hardness: Array, labels: NDArray[Any] | None,
            shares: Array) -> Groups:
    if labels is None:
        hard = np.argsort(np.argsort(hardness)) >= (len(hardness) + 1) // 2
        names = "the harder half", "the other half"
    else:
        hardest = max(np.unique(labels), key=lambda kind: hardness[labels == kind].mean())
        hard, names = labels == hardest, (f"group {hardest}", "the other groups")
    metric, centres, spreads = np.tensordot(shares, tasks.covariances, 1), [], []
    blurs = np.einsum("tij,ij->t", tasks.blur, metric)
    for which in (hard, ~hard):
        share = shares * which if (shares * which).any() else which * 1.0
        share = share / share.sum()
        centre = share @ tasks.optima
        off = tasks.optima - centre
        variance = share @ (np.einsum("ti,ij,tj->t", off, metric, off, optimize=True) - blurs)
        spreads.append(math.sqrt(max(variance, 0.0)))
        centres.append(centre)
    apart = centres[0] - centres[1]
    return Groups(names, hard, math.sqrt(apart @ metric @ apart), (spreads[0], spreads[1]))


def advise(ratio: Interval, gains: Mapping[tuple[str, str], Interval], ceiling: float, *,
           few: bool = False) -> str:
    """One sentence from the intervals: what is worth its trouble divides the risk by 1.1 or more.
    ``few``: too few tasks for any interval."""
    if few:
        return f"Too few tasks to tell: give {_FEW} or more."
    helps, idle = ratio.low > _WORTH, min(ratio.high, ceiling) < _WORTH
    start = "MAML" if helps else "NAL"
    mine = {step: gain for (of, step), gain in gains.items() if of == start}
    worth = {step: gain for step, gain in mine.items() if gain.low > _WORTH}
    most = f"MAML's start gains at most {_percent(min(ratio.high, ceiling))}"
    step = ""
    if worth:
        top = max(worth.values(), key=lambda gain: gain.value)
        name, gain = next(pair for pair in worth.items() if pair[1].value >= top.low)
        step = f"{'the ' if name == 'whitening' else 'a '}{name} divides the risk by {_said(gain)}"
    if helps:
        return f"Train with MAML: its start divides the risk of NAL's by {_said(ratio)}" + (
            f", and from there {step}." if step else ".")
    if idle and step:
        return f"The inner step, not the initialisation, is what helps: {step}; {most}."
    if step:
        return (f"Learn the inner step first: {step}; too few tasks or samples to tell what MAML's "
                f"start gains, {_said(ratio)}.")
    if not idle:
        return ("Too few tasks or samples to tell: the risk of NAL's start over MAML's is "
                f"{_said(ratio)}.")
    tops = [gain.high for gain in mine.values()]
    rest = "" if not tops else (f", and a step learned from two thirds of the tasks at "
                                f"most {_percent(max(tops))}"
                                if max(tops) < _WORTH else
                                ", and no better step is sure to help")
    return f"Train without adaptation: {most}{rest}."


def _percent(ratio: float) -> str:
    return f"{max(100 * (ratio - 1), 0):.2g} %"
