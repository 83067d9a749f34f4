"""Estimates with their errors, and intervals over seeds."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from companion.checks import Array, real, require
from companion.streams import stream


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error over ``count`` independent draws; prints rounded by it."""

    value: float
    error: float
    count: int

    def sigmas(self, exact: float) -> float:
        """How many standard errors the estimate lies above ``exact``."""
        if self.error == 0:
            return 0.0 if self.value == exact else math.copysign(math.inf, self.value - exact)
        return float((self.value - exact) / self.error)

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """The two-sided Student interval for the mean, at ``level`` in (0, 1)."""
        require(0 < level < 1, "level", "lie in (0, 1)", level, "0.95 is the book's")
        half = self.error * float(stats.t.ppf((1 + level) / 2, self.count - 1))
        return self.value - half, self.value + half

    @property
    def decimals(self) -> int:
        """Decimals that leave the standard error two digits: what a printed value can show."""
        return 6 if self.error == 0 else max(0, 1 - math.floor(math.log10(self.error)))

    def __str__(self) -> str:
        return f"{self.value:.{self.decimals}f} ± {self.error:.{self.decimals}f}"


def estimate(samples: ArrayLike) -> Estimate:
    """The mean of independent ``samples`` [draw], two or more, finite, and its standard error."""
    array = real("samples", samples)
    require(array.ndim == 1 and len(array) > 1, "samples.shape", "be [draw], two or more",
            array.shape, "draw more")
    error = float(array.std(ddof=1) / math.sqrt(len(array)))
    return Estimate(float(array.mean()), error, len(array))


def ratio(top: ArrayLike, bottom: ArrayLike) -> Estimate:
    """mean(top) / mean(bottom) for paired samples [draw], its error by the delta method."""
    a, b = real("top", top), real("bottom", bottom)
    require(a.shape == b.shape, "top.shape", f"be that of bottom, {b.shape}", a.shape,
            "pair the samples")
    value = float(a.mean() / b.mean())
    return Estimate(value, estimate((a - value * b) / b.mean()).error, len(a))


@dataclass(frozen=True)
class Interval:
    """A value with the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    @property
    def detectable(self) -> float:
        """The least distance from a null that is seen with 80 % power: (1.96 + 0.84) errors."""
        return float((self.high - self.low) / 2 * (1 + stats.norm.ppf(0.8) / stats.norm.ppf(0.975)))

    @property
    def texts(self) -> tuple[str, str]:
        """Value and interval, to the digits that the interval allows."""
        width = self.high - self.low
        return self.texts_to(width) if math.isfinite(width) else self.rough

    def texts_to(self, width: float) -> tuple[str, str]:
        """Value and interval, to the digits that an interval of this ``width`` allows."""
        decimals = Estimate(self.value, width / 4, 2).decimals
        return f"{self.value:.{decimals}f}", f"[{self.low:.{decimals}f}, {self.high:.{decimals}f}]"

    @property
    def rough(self) -> tuple[str, str]:
        """Value and interval to three digits, however large."""
        return f"{self.value:.3g}", f"[{self.low:.3g}, {self.high:.3g}]"

    def __str__(self) -> str:
        return " ".join(self.texts)


def bootstrap(statistic: Callable[[Array], Array], samples: ArrayLike, *,
              purpose: str = "bootstrap", resamples: int = 2000) -> Interval:
    """The percentile bootstrap of a statistic over seeds: two or more rows ``samples`` [seed,
    column], all finite, else ValueError. ``statistic`` maps [..., seed, column] to [...], for many
    resamples at once; ``purpose`` names the stream that they are drawn from."""
    array = real("samples", samples)
    require(array.ndim == 2 and len(array) > 1, "samples.shape", "be [seed, column], two or more",
            array.shape, "stack")
    picks = stream(0, purpose).integers(len(array), size=(resamples, len(array)))
    low, high = np.quantile(statistic(array[picks]), [0.025, 0.975])
    return Interval(float(statistic(array)), float(low), float(high))


def log_log_slope(x: ArrayLike, y: ArrayLike) -> Estimate:
    """The least-squares slope of log y on log x, one fit a run: x [point], y [run, point] > 0."""
    log_x, log_y = np.log(real("x", x)), np.log(real("y", y))
    centred = log_x - log_x.mean()
    return estimate(log_y @ centred / (centred @ centred))
