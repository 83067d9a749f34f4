from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from companion.experiments import images
from companion.streams import stream, torch_stream
from companion.tasks import episodes
from companion.tasks.sources import SPLITS, Source


@pytest.fixture
def around() -> Callable[..., np.ndarray]:
    """Numbers of ``count`` seeds around a mean, the same ones for every call alike."""

    def numbers(mean: float, noise: float = 0.01, count: int = 20) -> np.ndarray:
        return mean * (1 + noise * stream(0, f"tests/{mean}").standard_normal(count))

    return numbers


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """Four groups of 16 classes of noisy 8 x 8 patterns, in place of any source; a final objective
    over two steps."""
    rng, group = torch_stream(0, "tests/images"), torch.arange(64) // 16
    ink = torch.rand(64, 1, 1, 8, 8, generator=rng)
    drawn = (ink + 0.2 * torch.randn(64, 10, 1, 8, 8, generator=rng)).clamp(0, 1)
    splits = {split: torch.arange(i, 64, 4) for i, split in enumerate(SPLITS)}
    names = tuple(map(str, range(64)))
    found = Source("made", (drawn * 255).to(torch.uint8).flatten(0, 1), torch.arange(64) * 10,
                   torch.full((64,), 10), group, names, names[:4], splits)
    monkeypatch.setattr(episodes.sources, "load", lambda name: found)
    monkeypatch.setattr(images, "_LAST", 2)
    episodes.pools.cache_clear()
    yield found
    episodes.pools.cache_clear()
