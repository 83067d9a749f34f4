"""Networks as pairs of pure functions: ``init(generator)`` -> params, ``apply(params, x)``.

``params`` is a dict of tensors, x the samples of one task, [sample, ...]; batch ``apply`` from
outside with ``torch.func.vmap``. One output gives [sample], several give [sample, output].
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt

import torch
from torch.nn import functional as F

from companion.checks import at_least, require
from companion.modules import Apply, Net, from_module
from companion.updates import Params

__all__ = ["ACTIVATIONS", "Apply", "Net", "activation", "cnn", "collapsed", "collapsed_head",
           "deep_linear", "fresh_head", "from_module", "head_names", "linear", "mlp", "two_layer"]

ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "identity": lambda u: u, "erf": lambda u: torch.erf(u / sqrt(2)), "relu": torch.relu,
    "softplus": F.softplus, "tanh": torch.tanh,
}
_NORM_SLACK = 1e-5  # added to the variance in batch normalisation


def activation(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The activation of that name; erf is erf(u / sqrt 2). ValueError for an unknown one."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {name!r}")
    return ACTIVATIONS[name]


def _sizes(name: str, sizes: Sequence[int]) -> list[int]:
    at_least(name, sizes, 1, "a layer has at least one unit", whole=True)
    return [int(size) for size in sizes]


def _normal(generator: torch.Generator, shape: Sequence[int], std: float,
            dtype: torch.dtype) -> torch.Tensor:
    return std * torch.randn(*shape, generator=generator, device=generator.device, dtype=dtype)


def two_layer(dim: int, hidden: int, activation_name: str = "relu") -> Net:
    """f(W; x) = sum_j s(<w_j, x>), the second layer fixed at ones.

    Params {"weight": [hidden, dim]}, rows N(0, I / dim) at the start; x [sample, dim]. Source:
    paper L's abstract names two-layer networks; the form is this companion's choice.
    """
    shape, act = _sizes("hidden, dim", (hidden, dim)), activation(activation_name)

    def init(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        return {"weight": _normal(generator, shape, shape[1] ** -0.5, dtype)}

    return Net(init, lambda params, x: act(x @ params["weight"].mT).sum(-1))


def mlp(widths: Sequence[int], activation_name: str = "relu", *, bias: bool = True,
        linear_layers: int = 0) -> Net:
    """A multilayer perceptron of the given ``widths``, from the inputs to the outputs.

    Params {"0.weight": [widths[1], widths[0]], "0.bias": [widths[1]], "1.weight": ...}; no
    activation after the last layer, nor after the ``linear_layers`` before it. Unless these are
    narrower than the outputs, they add depth but no functions (paper D); :func:`collapsed`
    multiplies them out. Weights start as N(0, g / fan-in), g = 2 before a ReLU and 1 otherwise;
    biases at 0. Raises ValueError for fewer than two widths, one below 1, more linear layers than
    there are, or an unknown activation.
    """
    sizes, act = _sizes("widths", widths), activation(activation_name)
    require(len(sizes) >= 2, "widths", "name inputs and outputs, two or more", sizes,
            "a linear map is (d, 1)")
    at_least("linear_layers", linear_layers, 0, "0 is a plain network", whole=True)
    top = len(sizes) - 2
    require(linear_layers <= top, "linear_layers", f"be at most {top} for these widths",
            linear_layers, "name more")
    last = top - int(linear_layers)  # the first layer without an activation

    def init(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        params = {}
        for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
            gain = 2.0 if activation_name == "relu" and i < last else 1.0
            std = sqrt(gain / fan_in)
            params[f"{i}.weight"] = _normal(generator, (fan_out, fan_in), std, dtype)
            if bias:
                params[f"{i}.bias"] = torch.zeros(fan_out, device=generator.device, dtype=dtype)
        return params

    def apply(params: Params, x: torch.Tensor) -> torch.Tensor:
        for i in range(top + 1):
            x = x @ params[f"{i}.weight"].mT
            if bias:
                x = x + params[f"{i}.bias"]
            x = act(x) if i < last else x
        return x.squeeze(-1) if sizes[-1] == 1 else x

    return Net(init, apply)


def collapsed(params: Params, linear_layers: int) -> Params:
    """Parameters of a plain :func:`mlp` for the function of one with ``linear_layers``.

    Its last layers are multiplied into one. Raises ValueError for more layers than there are.
    """
    count = sum(name.endswith(".weight") for name in params)
    at_least("linear_layers", linear_layers, 0, "0 collapses nothing", whole=True)
    require(linear_layers < count, "linear_layers", f"be below the {count} layers", linear_layers,
            "see the widths")
    first = count - 1 - int(linear_layers)
    kept = {name: value for name, value in params.items() if int(name.split(".")[0]) < first}
    return kept | _multiplied(params, [str(i) for i in range(first, count)], str(first))


def _multiplied(params: Params, layers: Sequence[str], name: str) -> Params:
    """The linear ``layers``, from the lowest on, as one layer called ``name``."""
    weight, bias = params[f"{layers[0]}.weight"], params.get(f"{layers[0]}.bias")
    for layer in layers[1:]:
        above = params[f"{layer}.weight"]
        weight = above @ weight
        if bias is not None:
            bias = (above @ bias[..., None])[..., 0] + params[f"{layer}.bias"]
    return {f"{name}.weight": weight} | ({} if bias is None else {f"{name}.bias": bias})


def deep_linear(widths: Sequence[int]) -> Net:
    """y = x W_1^T ... W_L^T: an :func:`mlp` without biases or activations."""
    return mlp(widths, "identity", bias=False)


def linear(dim: int, outputs: int = 1) -> Net:
    """y = x W^T, params {"0.weight": [outputs, dim]}."""
    return deep_linear((dim, outputs))


def cnn(image: tuple[int, int, int], filters: int, blocks: int, ways: int, *, pool: bool = True,
        linear_layers: int = 0, width: int = 32, patches: bool = False) -> Net:
    """Blocks of 3x3 convolution, normalisation by the batch's statistics, ReLU; a linear layer.

    ``image`` is (channels, height, width), x [sample, channels, height, width]; ``ways`` are the
    outputs. With ``pool`` every block ends in a 2x2 max-pooling and the features are flattened;
    without it they are averaged over the image. ``linear_layers`` of ``width``, with no activation,
    come before the head (paper D); at least ``ways`` wide they add no functions, and
    :func:`collapsed_head` multiplies them out. Params {"0.conv", "0.scale", "0.shift", ...,
    "linear.0.weight", ..., "head.weight": [ways, features], "head.bias"}. Convolutions start as He
    normal, a head alone as N(0, 1 / fan-in). A head with layers below starts balanced: L factors,
    semi-orthogonal times L^(-1 / (2 L - 2)), so that the first step of their product is no longer
    than that of a head alone. ``patches`` computes the same by matrix products of 3x3 patches,
    which vmap turns into batched products: the faster form for many networks on a GPU. Raises
    ValueError for a size below 1, or an image that the poolings reduce to nothing. Source: the
    few-shot literature's usual body; the balanced start is the companion's.
    """
    channels, height, across = _sizes("image", image)
    filters, blocks, ways, width = _sizes("filters, blocks, ways, width",
                                          (filters, blocks, ways, width))
    at_least("linear_layers", linear_layers, 0, "0 is a plain network", whole=True)
    side = (height >> blocks) * (across >> blocks) if pool else 1
    require(side >= 1, "image", f"be at least {2**blocks} wide and high for {blocks} poolings",
            image, "take fewer blocks")
    sizes = [filters * side, *[width] * int(linear_layers), ways]
    top = [*(f"linear.{i}" for i in range(int(linear_layers))), "head"]

    def init(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Params:
        params = {}
        for i in range(blocks):
            below = filters if i else channels
            params[f"{i}.conv"] = _normal(generator, (filters, below, 3, 3), sqrt(2 / (9 * below)),
                                          dtype)
            params[f"{i}.scale"] = torch.ones(filters, device=generator.device, dtype=dtype)
            params[f"{i}.shift"] = torch.zeros(filters, device=generator.device, dtype=dtype)
        for name, (fan_in, fan_out) in zip(top, pairwise(sizes), strict=True):
            weight = _normal(generator, (fan_out, fan_in), fan_in**-0.5, dtype)
            params[f"{name}.weight"] = _balanced(weight, len(top)) if len(top) > 1 else weight
            params[f"{name}.bias"] = torch.zeros(fan_out, device=generator.device, dtype=dtype)
        return params

    block = _block_of_patches if patches else _block

    def apply(params: Params, x: torch.Tensor) -> torch.Tensor:
        for i in range(blocks):
            x = block(x, params[f"{i}.conv"], params[f"{i}.scale"], params[f"{i}.shift"], pool)
        x = x.flatten(1) if pool else x.mean((-2, -1))
        for name in top:
            x = x @ params[f"{name}.weight"].mT + params[f"{name}.bias"]
        return x

    return Net(init, apply)


def _balanced(weight: torch.Tensor, factors: int) -> torch.Tensor:
    """The nearest semi-orthogonal matrix, so scaled that ``factors`` gradients add up to one."""
    left, _, right = torch.linalg.svd(weight, full_matrices=False)
    return torch.mul(left @ right, factors ** (-1 / (2 * factors - 2)))


def _block(x: torch.Tensor, conv: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor,
           pool: bool) -> torch.Tensor:
    x = F.conv2d(x, conv, padding=1)
    x = F.batch_norm(x, None, None, scale, shift, training=True, eps=_NORM_SLACK)
    # pooled first: the same, on a quarter of the values
    return torch.relu(F.max_pool2d(x, 2) if pool else x)


def _block_of_patches(x: torch.Tensor, conv: torch.Tensor, scale: torch.Tensor,
                      shift: torch.Tensor, pool: bool) -> torch.Tensor:
    """:func:`_block` as a product of patches [place, 9 channels] and filters."""
    (n, _, height, width), filters = x.shape, len(conv)
    padded = F.pad(x.movedim(1, -1), (0, 0, 1, 1, 1, 1))
    patches = torch.cat([padded[:, i:i + height, j:j + width]
                         for i in range(3) for j in range(3)], dim=-1)
    y = patches.flatten(0, 2) @ conv.permute(2, 3, 1, 0).reshape(-1, filters)
    variance, mean = torch.var_mean(y, 0, correction=0)
    slope = torch.rsqrt(variance + _NORM_SLACK) * scale
    y = (y * slope + (shift - mean * slope)).reshape(n, height, width, filters)
    if pool:
        y = y[:, :height // 2 * 2, :width // 2 * 2]
        y = y.reshape(n, height // 2, 2, width // 2, 2, filters).amax((2, 4))
    return torch.relu(y).movedim(-1, 1)


def head_names(params: Params) -> tuple[str, ...]:
    """Names of a :func:`cnn`'s linear layers, the added ones and the head: what ANIL adapts."""
    return tuple(name for name in params if name.split(".")[0] in ("linear", "head"))


def collapsed_head(params: Params) -> Params:
    """Parameters of a plain :func:`cnn` for the function of one with added linear layers."""
    names = head_names(params)
    layers = [name.removesuffix(".weight") for name in names if name.endswith(".weight")]
    kept = {name: value for name, value in params.items() if name not in names}
    return kept | _multiplied(params, layers, "head")


def fresh_head(params: Params, ways: int) -> Params:
    """Parameters of a plain :func:`cnn`, its head replaced by one of zeros for ``ways`` classes."""
    at_least("ways", ways, 1, "a head has one output at least", whole=True)
    old = params["head.weight"]
    weight = old.new_zeros(*old.shape[:-2], int(ways), old.shape[-1])
    return params | {"head.weight": weight, "head.bias": weight.new_zeros(weight.shape[:-1])}
