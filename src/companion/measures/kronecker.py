"""Is one set of gradients a fixed Kronecker product of another? (paper D)"""

import numpy as np

from companion.checks import Array


def fit_kronecker(inputs: Array, targets: Array, rounds: int = 60) -> tuple[Array, Array]:
    """The factors (left, right) of least sum over tasks of ``|left G right - target|^2``, [task, n,
    m] each: an external optimizer, fitted by least squares for one factor after the other."""
    left, right = np.eye(inputs.shape[1]), np.eye(inputs.shape[2])
    for _ in range(rounds):
        moved = left @ inputs
        gram, cross = (np.einsum("tai,taj->ij", moved, side) for side in (moved, targets))
        right = np.linalg.pinv(gram) @ cross
        moved = inputs @ right
        gram, cross = (np.einsum("tai,tbi->ab", side, moved) for side in (moved, targets))
        left = cross @ np.linalg.pinv(gram)
    return left, right
