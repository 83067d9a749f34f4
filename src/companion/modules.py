"""What a network is here, and how a ``torch.nn.Module`` becomes one."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.func import functional_call
from torch.nn.parameter import is_lazy

from companion.checks import require
from companion.updates import Params

Apply = Callable[[Params, torch.Tensor], torch.Tensor]


class Net(NamedTuple):
    """``init(generator, dtype=torch.float32)`` draws parameters on its device; ``apply`` maps x."""

    init: Callable[..., Params]
    apply: Apply


def from_module(module: nn.Module | Callable[[], nn.Module]) -> Net:
    """A ``torch.nn.Module`` as a network; its parameters keep their names, its outputs their shape.

    A module starts from the parameters that it has now, whatever the generator. A function that
    makes a module, such as its class, is called by ``init``, with torch's random numbers seeded
    from the generator and put back afterwards: every seed has a start of its own. ``init(generator,
    dtype=None)`` leaves the dtypes as they are unless one is named. Buffers, and parameters that
    require no gradient, are constants, those of a copy of the module (of the first that the
    function makes); floating ones follow the parameters' dtype.

    Raises ValueError for a part that draws at random or would change a buffer, by its name (dropout
    and tracked batch statistics, in training mode), a lazy module, and nothing to train; ``apply``
    does for any other buffer that the forward pass changes.
    """
    frame = _Steady(copy.deepcopy(module) if isinstance(module, nn.Module) else _made(module, 0))
    _check(frame.module)
    learned = [name for name, value in frame.module.named_parameters() if value.requires_grad]
    # kept apart: functional_call does not put back what two names share
    start = {name: value.detach() for name, value in frame.module.named_parameters()}
    constants = {f"module.{name}": value.detach()
                 for name, value in [*start.items(), *frame.module.named_buffers()]
                 if name not in learned}
    require(len(learned) > 0, "module", "have parameters that require a gradient", "none",
            "see requires_grad")

    def init(generator: torch.Generator, dtype: torch.dtype | None = None) -> Params:
        values = start
        if not isinstance(module, nn.Module):
            seed = torch.randint(2**62, (), generator=generator, device=generator.device)
            values = dict(_made(module, int(seed)).named_parameters())
        return {name: values[name].detach().to(generator.device, dtype, copy=True)
                for name in learned}

    def apply(params: Params, x: torch.Tensor) -> Any:
        like = next(iter(params.values()))
        held = {name: value.to(like.device, like.dtype if value.is_floating_point() else None)
                for name, value in constants.items()}
        given = {f"module.{name}": value for name, value in params.items()}
        return functional_call(frame, given | held, (x,))

    return Net(init, apply)


def _made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A module whose constructor draws from ``seed``; torch's random numbers stay as they were."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        return make()


def _check(module: nn.Module) -> None:
    for name, part in module.named_modules():
        label = f"{name or 'the module'} ({type(part).__name__})"
        require(not any(is_lazy(value) for value in part.parameters(False)), label,
                "know its shapes", "a lazy one", "call it once on an input")
        if not part.training:
            continue
        require(getattr(part, "running_mean", None) is None, label, "leave its buffers as they are",
                "running statistics", "pass track_running_stats=False, or call .eval()")
        place = "p" if isinstance(part, nn.modules.dropout._DropoutNd) else "dropout"
        rate = getattr(part, place, 0.0)
        require(not isinstance(rate, int | float) or rate == 0, label, "draw nothing at random",
                f"dropout {rate}", "set it to 0, or call .eval()")


class _Steady(nn.Module):
    """A module that refuses to change a buffer: the inner loop is a pure function."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> Any:
        before = [(name, buffer, _version(buffer)) for name, buffer in self.module.named_buffers()]
        try:
            outputs = self.module(x)
        except RuntimeError as error:  # what torch.func says of a change in place
            if before and ("vmap: inplace" in str(error) or "mutate a captured" in str(error)):
                _refuse([name for name, *_ in before], error)
            raise
        now = dict(self.module.named_buffers())
        changed = [name for name, buffer, version in before
                   if now[name] is not buffer or _version(buffer) != version]
        if changed:
            _refuse(changed, None)
        return outputs


def _version(buffer: torch.Tensor) -> int:
    """Counts changes in place, but not for torch.compile, which cannot see it."""
    return 0 if torch.compiler.is_compiling() else buffer._version


def _refuse(names: Sequence[str], cause: Exception | None) -> None:
    raise ValueError(f"the forward pass must leave buffers as they are, got a change of "
                     f"{' or '.join(names)}; switch it off (track_running_stats=False), or call "
                     f".eval()") from cause
