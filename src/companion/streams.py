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
    """The NumPy generator of ``seed``, whole and >= 0, else ValueError, for ``purpose``: the same
    numbers on every machine, and independent ones for other arguments."""
    number = at_least("seed", seed, 0, "number the runs from 0", whole=True)
    require(number.ndim == 0, "seed", "be one number", seed, "make one stream per run")
    digest = hashlib.sha256(purpose.encode()).digest()
    return np.random.default_rng([int(seed), *np.frombuffer(digest, dtype=np.uint32).tolist()])


def torch_stream(seed: int, purpose: str, device: str = "cpu") -> "torch.Generator":
    """The torch generator of ``seed`` for ``purpose``: the same numbers on every machine with that
    kind of device; CPU and CUDA draw different ones."""
    import torch

    return torch.Generator(device).manual_seed(int(stream(seed, purpose).integers(2**63)))


def normals(seeds: Sequence[int], purpose: str, shapes: Mapping[str, tuple[int, ...]], *,
            device: str = "cpu", dtype: "torch.dtype | None" = None,
            ) -> Callable[[int], dict[str, "torch.Tensor"]]:
    """Standard normal draws for a fleet, one run a seed: ``step -> {name: [run, *shape]}``. A
    step's numbers depend on its number and the seed alone, not on the other runs, nor on earlier
    calls. Runs of one seed get equal numbers, whatever their settings. Steps are drawn in
    blocks."""
    import torch

    distinct = sorted(set(seeds))
    place = torch.tensor([distinct.index(seed) for seed in seeds], device=device)
    sizes = [int(np.prod(shape)) for shape in shapes.values()]
    block = max(1, min(64, _BLOCK // max(1, sum(sizes))))

    @lru_cache(maxsize=1)
    def drawn(number: int) -> "torch.Tensor":
        rngs = [torch_stream(seed, f"{purpose}/{number}", device) for seed in distinct]
        return torch.stack([torch.randn((block, sum(sizes)), generator=rng, device=device,
                                        dtype=dtype) for rng in rngs], dim=1)

    def at(step: int) -> dict[str, "torch.Tensor"]:
        number, offset = divmod(step, block)
        parts = torch.split(drawn(number)[offset], sizes, dim=1)
        return {name: part[place].reshape(-1, *shapes[name])
                for name, part in zip(shapes, parts, strict=True)}

    return at
