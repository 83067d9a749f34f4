"""What an experiment is: profiles, points, one measurement, and the findings that it settles."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from companion import records
from companion.checks import require
from companion.errors import Diverged
from companion.records import Point, Record, Row
from companion.tables import Finding

T = TypeVar("T")


@dataclass(frozen=True)
class Experiment:
    """An experiment: its profiles, the points of a config, and how one point is measured.

    ``measure(config, point, device)`` returns rows of the same columns, the same in any process, so
    it draws from named streams only. A point is a plain dict of what tells it apart; all other
    numbers are in the config. ``findings`` map a claim's part, "D1/synthetic", to what settles it;
    ``devices`` begin with the preferred one.
    """

    name: str
    purpose: str
    profiles: Mapping[str, Any]
    points: Callable[[Any], Sequence[Point]]
    measure: Callable[[Any, Point, str], Sequence[Row]]
    findings: Mapping[str, Callable[[Record], Finding]] = field(default_factory=dict)
    devices: tuple[str, ...] = ("cpu",)

    def config(self, profile: str) -> Any:
        """The frozen config of a profile; ValueError for an unknown one."""
        require(profile in self.profiles, "profile", f"be one of {', '.join(self.profiles)}",
                repr(profile), "see companion list")
        return self.profiles[profile]

    def key(self, profile: str) -> str:
        """The hash of the config of a profile and of its points: what a record is of."""
        config = self.config(profile)
        return records.key(self.name, config, self.points(config))

    def load(self, profile: str) -> Record:
        """The record of a profile, verified, and of today's config and points."""
        return records.load(records.folder(self.name, profile), expected=self.key(profile))

    def device(self, wanted: str) -> str:
        """The device to run on: ``wanted``, or for "auto" the first that is usable and present."""
        if wanted not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device must be auto, cpu or cuda, got {wanted!r}")
        import torch  # only here: whoever reads records needs no torch

        here = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
        if wanted == "auto":
            return next(device for device in self.devices if device in here)
        if wanted not in self.devices:
            raise ValueError(f"device must be one that {self.name} uses, "
                             f"{', '.join(self.devices)}, got {wanted!r}")
        require(wanted in here, "device", "be present", "'cuda' and no CUDA device",
                "use --device cpu")
        return wanted


def rounded(**numbers: Any) -> Row:
    """Numbers to six digits, for a table; None for a number that there is not (NaN, or None)."""
    return {name: None if number is None or math.isnan(number) else float(f"{float(number):.6g}")
            for name, number in numbers.items()}


def rows_of(point: Point, alphas: Sequence[float], seeds: Sequence[int],
            columns: Mapping[str, Any]) -> list[Row]:
    """One row a run of a fleet, settings outermost: inner rate, seed and entries of ``columns``."""
    rates = [alpha for alpha in alphas for _ in range(len(seeds) // len(alphas))]
    return [{**point, "alpha": alpha, "seed": seed}
            | rounded(**{name: values[i] for name, values in columns.items()})
            for i, (alpha, seed) in enumerate(zip(rates, seeds, strict=True))]


def unless_lost(rows: Callable[[Sequence[T]], list[Row]], items: Sequence[T],
                otherwise: Callable[[T], list[Row]]) -> list[Row]:
    """The rows of a fleet with some ``items``, rates or seeds; where a run diverges in training,
    those of the items one by one, and ``otherwise`` of one that diverges alone."""
    try:
        return rows(items)
    except Diverged:
        if len(items) == 1:
            return otherwise(items[0])
        return [row for item in items for row in unless_lost(rows, [item], otherwise)]


def unless_diverged(rows: Callable[[Sequence[float]], list[Row]], alphas: Sequence[float],
                    point: Point, seeds: int, lost: Row) -> list[Row]:
    """:func:`unless_lost` over inner rates; the rows of a rate that is lost are ``lost``, for every
    seed."""
    return unless_lost(rows, alphas, lambda alpha: [
        {**point, "alpha": alpha, "seed": seed} | lost for seed in range(seeds)])
