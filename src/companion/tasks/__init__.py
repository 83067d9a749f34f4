"""Tasks, and the tasks of many runs at once. The modules below say where they come from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_map

from companion.adaptation import Loss
from companion.nets import Apply
from companion.streams import normals


class Task(NamedTuple):
    """What a task is adapted on and what it is scored on: two batches, usually (x, y)."""

    support: Any
    query: Any


@dataclass(frozen=True)
class Fleet:
    """The tasks of runs that are trained together, one run for every seed at every setting.

    Args:
        name: of the streams that everything is drawn from.
        settings: trees of tensors [run, ...].
        alpha: inner rates, [run].
        draw: (fleet, purpose, tasks, query) -> a function of the step: what its tasks are made
            from, [run, task, ...], with ``query`` samples to score on; alike for one seed.
        make: ``(drawn, *settings)`` of one task -> the task.
        classes: whether labels are classes, so that there is an accuracy.
        population: whether a side is a whole population and not samples, both sides the same.
        training_dtype: samples are noisier than float32; exact losses want float64.
        chunk: runs, and tasks of a run, computed at once in training; all by default.
    """

    name: str
    seeds: tuple[int, ...]
    settings: tuple[Any, ...]
    alpha: torch.Tensor
    draw: "Draw"
    make: Callable[..., Task]
    loss: Callable[[Apply], Loss]
    classes: bool = False
    population: bool = False
    training_dtype: torch.dtype = torch.float32
    chunk: int | None = None

    def to(self, dtype: torch.dtype) -> "Fleet":
        """The fleet with its floating numbers in another precision."""
        cast = partial(tree_map, lambda leaf: leaf.to(dtype))
        return replace(self, settings=cast(self.settings), alpha=cast(self.alpha))

    def at(self, alpha: torch.Tensor) -> "Fleet":
        """The fleet with other inner rates, [run]."""
        return replace(self, alpha=alpha.to(self.alpha))

    def run(self, index: int) -> tuple[Any, ...]:
        """The settings of one run, on the CPU."""
        return tuple(tree_map(lambda leaf: leaf[index].cpu(), self.settings))


Draw = Callable[[Fleet, str, int, int], Callable[[int], Any]]


def normal_draws(shapes: Callable[[int, int], dict[str, tuple[int, ...]]]) -> Draw:
    """A fleet's ``draw`` of standard normals; (tasks, samples to score on) -> their ``shapes``."""
    return lambda fleet, purpose, tasks, query: normals(
        fleet.seeds, f"{fleet.name}/{purpose}", shapes(tasks, query),
        device=str(fleet.alpha.device), dtype=fleet.alpha.dtype)


def stacked(families: Sequence[Any], device: str | None = None) -> Any:
    """Trees of tensors, one a run, as one tree [run, ...], on ``device`` or where they are."""
    return tree_map(lambda *leaves: torch.stack(leaves).to(device), *families)
