"""Named, seeded streams of random numbers: the only source of randomness in the package."""

import hashlib

import numpy as np

from companion.checks import at_least, require


def stream(seed: int, purpose: str) -> np.random.Generator:
    """The NumPy generator of ``seed`` for ``purpose``. Streams of different purposes or seeds are independent.

    The same two arguments give the same numbers on every machine. ``seed`` is a whole number >= 0.
    """
    number = at_least("seed", seed, 0, "number the runs from 0", whole=True)
    require(number.ndim == 0, "seed", "be one number", seed, "make one stream per run")
    digest = hashlib.sha256(purpose.encode()).digest()
    return np.random.default_rng([int(seed), *np.frombuffer(digest, dtype=np.uint32).tolist()])
