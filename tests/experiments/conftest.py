from collections.abc import Callable

import numpy as np
import pytest

from companion.streams import stream


@pytest.fixture
def around() -> Callable[..., np.ndarray]:
    """Numbers of ``count`` seeds around a mean, the same ones for every call alike."""

    def numbers(mean: float, noise: float = 0.01, count: int = 20) -> np.ndarray:
        return mean * (1 + noise * stream(0, f"tests/{mean}").standard_normal(count))

    return numbers
