"""What torch.compile or a CUDA graph makes faster: whole functions, or the losses of one episode.

The episode of a convolutional network is compiled in two pieces, the gradient of its loss (an inner
step's, itself differentiable) and its value (the query's), and chained by autograd: compiling takes
as long for one inner step as for ten, and no rule has a part in it.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch.func import grad
from torch.utils._pytree import tree_leaves, tree_map

from companion.updates import Params

Loss = Callable[[Params, Any], torch.Tensor]


def compiled(plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain`` through ``torch.compile``, or itself where the compiler cannot be had."""
    chosen: list[Callable[..., Any]] = []

    def first(*arguments: Any) -> Any:
        if chosen:
            return chosen[0](*arguments)
        # torch counts recompilations by code object, which all fleets share, and gives up after
        # eight: take a copy
        of = cast(FunctionType, plain)
        own = FunctionType(of.__code__.replace(), of.__globals__, of.__name__, None, of.__closure__)
        fast = torch.compile(own, dynamic=False, fullgraph=True)
        try:
            with warnings.catch_warnings():  # the compiler's deprecations, not the reader's
                warnings.simplefilter("ignore")
                found = fast(*arguments)
            chosen.append(fast)
        except Exception:  # no compiler, or nothing it can do: a caller's error comes again below
            found = plain(*arguments)
            chosen.append(plain)
        return found

    return first


def captured(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` of tensors recorded as one CUDA graph at its first call and replayed from then
    on, for arguments of equal shapes: thousands of small kernels need not wait for Python."""
    kept: dict[str, Any] = {}

    def replay(*everything: Any) -> Any:
        if not kept:
            kept["given"] = tree_map(torch.clone, everything)
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):  # a first call may allocate and choose kernels
                function(*kept["given"])
            torch.cuda.current_stream().wait_stream(aside)
            kept["graph"] = torch.cuda.CUDAGraph()
            with torch.cuda.graph(kept["graph"]):
                kept["found"] = function(*kept["given"])
        for place, leaf in zip(tree_leaves(kept["given"]), tree_leaves(everything), strict=True):
            place.copy_(leaf)
        kept["graph"].replay()
        return tree_map(torch.clone, kept["found"])

    return replay


class Pieces(NamedTuple):
    """A loss's value and its gradient: functions of the loss, its parameters and a batch."""

    value: Callable[[Loss, Params, Any], torch.Tensor]
    slope: Callable[[Loss, Params, Any], Params]


def _value(loss: Loss, params: Params, batch: Any) -> torch.Tensor:
    return loss(params, batch)


def _slope(loss: Loss, params: Params, batch: Any) -> Params:
    found: Params = grad(loss)(params, batch)
    return found


PLAIN = Pieces(_value, _slope)
_NOW: ContextVar[Pieces] = ContextVar("pieces", default=PLAIN)


def compiled_pieces() -> Pieces:
    """Both compiled at their first call, each plain where it cannot be; for :func:`using`."""
    return Pieces(compiled(_value), compiled(_slope))


@contextmanager
def using(pieces: Pieces) -> Iterator[None]:
    """Within, :func:`value` and :func:`slope` are those of ``pieces``."""
    token = _NOW.set(pieces)
    try:
        yield
    finally:
        _NOW.reset(token)


def _now() -> Pieces:
    return PLAIN if torch.compiler.is_compiling() else _NOW.get()


def value(loss: Loss, params: Params, batch: Any) -> torch.Tensor:
    """loss(params, batch)."""
    return _now().value(loss, params, batch)


def slope(loss: Loss, params: Params, batch: Any) -> Params:
    """The gradient of ``loss`` at ``params``; it can be differentiated again."""
    return _now().slope(loss, params, batch)
