"""What upper layers do to the gradients of the layers below them (paper D): the gradients of the
bottom layers of a whole network, beside those of a small one, the head set upon these layers.

Networks are :func:`companion.nets.mlp` without biases; ``names`` are their bottom tensors, from the
first layer on, all of one shape.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.func import grad, vjp, vmap

from companion.checks import Array
from companion.measures.kronecker import fit_kronecker
from companion.meta_optimizers import Params
from companion.nets import Net
from companion.tasks import Fleet


def on_bottom(params: Params, names: Sequence[str]) -> Params:
    """The small network's parameters: of the whole network's, the bottom tensors and the head."""
    head = params[f"{len(params) - 1}.weight"]
    return {name: params[name] for name in names} | {f"{len(names)}.weight": head}


def bottom_gradients(fleet: Fleet, whole: Net, small: Net, names: Sequence[str], params: Params,
                     purpose: str, pairs: int) -> tuple[Array, Array]:
    """Gradients of the bottom tensors on ``pairs`` drawn supports, [name, run, task, n, m]: in the
    whole network; and in the small one, for the whole one's errors at the outputs."""
    loss = fleet.loss(whole.apply)

    def both(params: Params, normal: dict[str, torch.Tensor], family: Any) -> tuple[Params, Params]:
        x, y = fleet.make(normal, family).support
        little = on_bottom(params, names)
        back = vjp(lambda some: small.apply(little | some, x), {n: params[n] for n in names})[1]
        return grad(loss)(params, (x, y)), back((whole.apply(params, x) - y) / len(y))[0]

    normal = fleet.draw(fleet, purpose, pairs, 0)(0)
    sides = vmap(vmap(both, in_dims=(None, 0, None)))(params, normal, *fleet.settings)
    large, little = (np.stack([side[name].cpu().numpy() for name in names]) for side in sides)
    return large, little


def fitted(whole: Array, small: Array) -> tuple[Array, Array]:
    """The factors (left [name, run, n, n], right [name, run, m, m]) that bring the small network's
    gradients nearest to the whole one's, [name, run, task, n, m] each: an external rule."""
    pairs = [[fit_kronecker(*sides) for sides in zip(*layer, strict=True)]
             for layer in zip(small, whole, strict=True)]
    left, right = (np.array([[pair[side] for pair in layer] for layer in pairs]) for side in (0, 1))
    return left, right


def resized(rule: Sequence[Array], like: Sequence[Array],
            gradients: Array) -> tuple[Array, Array]:
    """A rule of :func:`fitted` times a number a tensor and run, at which its updates on
    ``gradients`` [name, run, task, n, m] have the mean norm of those of ``like``."""
    moved = [left[:, :, None] @ gradients @ right[:, :, None] for left, right in (rule, like)]
    sizes = [np.linalg.norm(updates, axis=(-2, -1)).mean(-1) for updates in moved]
    return rule[0] * (sizes[1] / sizes[0])[..., None, None], rule[1]


def named(names: Sequence[str], rule: Sequence[Array], like: torch.Tensor) -> Params:
    """A rule of :func:`fitted` as parameters of :func:`companion.meta_optimizers.kfo`, ``<name>.L``
    and ``.R`` [run, ...], of the precision and on the device of ``like``."""
    return {f"{name}.{side}": torch.from_numpy(factor[i]).to(like)
            for i, name in enumerate(names) for side, factor in zip("LR", rule, strict=True)}
