"""Companion to two papers on model-agnostic meta-learning (MAML).

Rooms: ``theory`` (mathematics), ``tasks`` (where tasks come from), ``adaptation``,
``meta_optimizers`` and ``objectives`` (one task at a time), ``experiments`` (whole fleets),
``evaluation`` (intervals), ``figures``. Imports run in that order and never back.
``companion.diagnose`` says what your own tasks let one learn.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from companion.diagnosis import Diagnosis as Diagnosis
    from companion.diagnosis import diagnose as diagnose

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """``diagnose`` and ``Diagnosis``, imported where they are asked for: the rest starts fast."""
    if name in ("diagnose", "Diagnosis"):
        from companion import diagnosis

        return getattr(diagnosis, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
