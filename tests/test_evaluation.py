import math

import numpy as np
import pytest

from companion.evaluation import Estimate, estimate, log_log_slope, ratio
from companion.streams import stream


def test_estimate_is_the_mean_and_its_standard_error() -> None:
    e = estimate([1.0, 2.0, 3.0, 6.0])
    assert (e.value, e.count) == (3.0, 4)
    assert e.error == pytest.approx(math.sqrt(14 / 3 / 4))
    low, high = e.interval()
    assert high - 3 == pytest.approx(
        3.182446 * e.error, rel=1e-6
    )  # Student's t, 3 degrees of freedom
    assert low + high == pytest.approx(6)
    assert e.sigmas(3 - 2 * e.error) == pytest.approx(2)


@pytest.mark.parametrize(("value", "error", "text"),
                         [(4.33681, 0.0123, "4.337 ± 0.012"), (1234.5, 20.0, "1234 ± 20"),
                          (0.5, 0.0, "0.500000 ± 0.000000")])
def test_printed_to_two_digits_of_the_error(value: float, error: float, text: str) -> None:
    assert str(Estimate(value, error, 10)) == text


@pytest.mark.parametrize("seed", range(5))
def test_rounding_leaves_a_margin_for_another_machine(seed: int) -> None:
    """A relative change of 1e-12, more than another processor makes of float64 sums, changes no
    printed digit."""
    samples = stream(seed, "tests/rounding").standard_normal(1000) + 3
    assert len({str(estimate(samples * (1 + s * 1e-12))) for s in (-1, 0, 1)}) == 1


def test_no_spread() -> None:
    assert Estimate(1.0, 0.0, 5).sigmas(1.0) == 0
    assert Estimate(1.0, 0.0, 5).sigmas(2.0) == -math.inf


def test_slope() -> None:
    x = np.array([1.0, 10, 100])
    e = log_log_slope(x, np.stack([3 / x, 5 / x * np.array([1.0, 1.1, 1.0])]))
    assert e.value == pytest.approx(-1)


def test_ratio_of_means_and_its_error() -> None:
    rng = stream(0, "tests/ratio")
    tops, bottoms = rng.normal(4, 1, (400, 500)), rng.normal(2, 0.5, (400, 500))
    tops += bottoms  # paired
    found = [ratio(a, b) for a, b in zip(tops, bottoms, strict=True)]
    values = np.array([e.value for e in found])
    assert values.mean() == pytest.approx(3, abs=0.005)
    assert np.mean([e.error for e in found]) == pytest.approx(values.std(), rel=0.1)
    with pytest.raises(ValueError, match=r"top.shape must be that of bottom"):
        ratio([1.0, 2.0], [1.0])


@pytest.mark.parametrize("samples", [[1.0], [], [[1.0, 2.0]], [1.0, math.nan]])
def test_bad_samples(samples: list) -> None:
    with pytest.raises(ValueError, match="samples"):
        estimate(samples)


def test_bad_level() -> None:
    with pytest.raises(ValueError, match=r"level must lie in \(0, 1\)"):
        estimate([1.0, 2.0]).interval(95)
