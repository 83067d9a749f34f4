"""Named, seeded streams of random numbers: the only source of randomness in the package."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from companion.checks import at_least, require

if TYPE_CHECKING:  # imported where it is used: who draws from NumPy alone starts without torch
    import torch

_BLOCK = 2**18  # normals of one seed drawn at once; for any fleet, so that no run depends on it


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The NumPy generator of ``seed``, a whole number >= 0, for ``purpose``.

    The same two arguments give the same numbers on every machine; other ones independent numbers.
    """
    number = at_least("seed", seed, 0, "number the runs from 0", whole=True)
    require(number.ndim == 0, "seed", "be one number", seed, "make one stream per run")
    digest = hashlib.sha256(purpose.encode()).digest()
    return np.random.default_rng([int(seed), *np.frombuffer(digest, dtype=np.uint32).tolist()])


def torch_stream(seed: int, purpose: str, device: str = "cpu") -> "torch.Generator":
    """The torch generator of ``seed`` for ``purpose`` on a device.

    The same numbers on every machine with that kind of device; CPU and CUDA draw different ones.
    Errors as in :func:`stream`.
    """
    import torch

    return torch.Generator(device).manual_seed(int(stream(seed, purpose).integers(2**63)))


def normals(
    seeds: Sequence[int], purpose: str, shapes: Mapping[str, tuple[int, ...]], *,
    device: str = "cpu", dtype: "torch.dtype | None" = None,
) -> Callable[[int], dict[str, "torch.Tensor"]]:
    """Standard normal draws for a fleet, one run a seed: ``step -> {name: [run, *shape]}``.

    A step's numbers depend on its number and the seed alone, not on the other runs, nor on earlier
    calls. Runs of one seed get equal numbers, whatever their settings. Steps are drawn in blocks.
    Raises ValueError: a seed that is not a whole number >= 0.
    """
    import torch

    distinct = sorted(set(seeds))
    place = torch.tensor([distinct.index(seed) for seed in seeds], device=device)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    block = max(1, min(64, _BLOCK // max(1, sum(sizes))))

    @lru_cache(maxsize=1)
    def drawn(number: int) -> "torch.Tensor":
        rngs = [torch_stream(seed, f"{purpose}/{number}", device) for seed in distinct]
        size = (block, sum(sizes))
        return torch.stack([torch.randn(size, generator=rng, device=device, dtype=dtype)
                            for rng in rngs], dim=1)

    def at(step: int) -> dict[str, "torch.Tensor"]:
        number, offset = divmod(step, block)
        parts = torch.split(drawn(number)[offset], sizes, dim=1)
        return {name: part[place].reshape(-1, *shapes[name])
                for name, part in zip(shapes, parts, strict=True)}

    return at
