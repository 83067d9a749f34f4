"""The state of a long training, kept in a file so that it goes on where it was cut off."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch

from companion.errors import RecordError
from companion.files import naming, write_atomically
from companion.meta_optimizers import Params


class Checkpoint(NamedTuple):
    """Where a training keeps its state, how often, and of what run: any text, no other is taken."""

    path: Path
    every: int
    of: str


def _state(params: Params, moments: Params) -> dict[str, torch.Tensor]:
    return ({f"params/{name}": value.contiguous() for name, value in params.items()}
            | {f"moments/{name}": value.contiguous() for name, value in moments.items()})


def _fingerprint(checkpoint: Checkpoint, state: dict[str, torch.Tensor]) -> str:
    shapes = {name: [str(value.dtype), *value.shape] for name, value in sorted(state.items())}
    return hashlib.sha256(json.dumps([checkpoint.of, shapes]).encode()).hexdigest()


def keep(checkpoint: Checkpoint, params: Params, moments: Params, step: int) -> None:
    """Write the hash of the rest, then a safetensors file with the step in its header."""
    from safetensors.torch import save

    state = _state(params, moments)
    data = save(state, metadata={"step": str(step), "of": _fingerprint(checkpoint, state)})
    write_atomically(checkpoint.path, hashlib.sha256(data).digest() + data)


def resume(checkpoint: Checkpoint, params: Params, moments: Params) -> tuple[Params, Params, int]:
    """What :func:`keep` wrote, for a run that would start with ``params`` and ``moments``."""
    from safetensors.torch import load

    path = checkpoint.path
    with naming(path, "read"):
        content = path.read_bytes()
    data = content[32:]
    if hashlib.sha256(data).digest() != content[:32]:
        raise RecordError(f"{path} must match its hash, got an altered or cut file; remove it to "
                          "start afresh")
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    if header["of"] != _fingerprint(checkpoint, _state(params, moments)):
        raise RecordError(f"{path} must be the checkpoint of this run, got that of another; "
                          "remove it")
    kept = load(data)
    return ({name: kept[f"params/{name}"].to(value.device) for name, value in params.items()},
            {name: kept[f"moments/{name}"].to(value.device) for name, value in moments.items()},
            int(header["step"]))
