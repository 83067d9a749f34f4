"""Every error of the package that a caller may want to catch by name."""

from collections.abc import Mapping, Sequence
from typing import Any


class RecordError(ValueError):
    """A file of a record or journal cannot be read, written or trusted; names it and the remedy."""


class MissingRecord(RecordError):
    """There is no record yet."""


class DataError(ValueError):
    """A data file is missing, damaged, or not what it should be; names it and says what to do."""


class MissingData(DataError):
    """No file of a source is there."""


class OutOfMemory(MemoryError):
    """The fleet does not fit into the memory of its device; says how to make it smaller."""


class Unfinished(RuntimeError):
    """Some points failed. The others are kept; the next run tries the failed ones alone."""

    def __init__(self, failures: Sequence[tuple[Mapping[str, Any], str]], total: int) -> None:
        lines = "\n".join(f"  {dict(point)}: {reason}" for point, reason in failures)
        super().__init__(f"{len(failures)} of {total} points failed; run again to try these alone:"
                         f"\n{lines}")


class Diverged(ArithmeticError):
    """A run's numbers are no longer finite; says at which step that was seen."""

    def __init__(self, step: int, what: str) -> None:
        super().__init__(f"{what} is not finite at step {step} or before; take a smaller rate")
        self.step = step

    def __reduce__(self) -> tuple[Any, ...]:  # so that it crosses to another process
        return (_again, (self.step, str(self)))


def _again(step: int, text: str) -> Diverged:
    error = Diverged(step, "")
    error.args = (text,)
    return error
