"""Where tasks come from."""

from typing import Any, NamedTuple


class Task(NamedTuple):
    """One task: what it is adapted on and what it is scored on. Each side is a batch, usually (x,
    y)."""

    support: Any
    query: Any
