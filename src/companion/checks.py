"""Argument checks. A failed one says what must hold, what came, and what to do."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def real(name: str, value: ArrayLike, *, infinite: bool = False) -> Array:
    """``value`` as a float64 array; ValueError unless all entries are real (or inf, if allowed)."""
    remedy = "give a real number or an array of them"
    try:
        raw = np.asarray(value)
        if raw.dtype.kind not in "iufO":
            raise TypeError(f"{name} has dtype {raw.dtype}")
        array = np.asarray(raw, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numeric, real and rectangular, got {value!r}; {remedy}"
                         ) from error
    bad = np.isnan(array) if infinite else ~np.isfinite(array)
    require(~bad, name, "hold no NaN" if infinite else "be finite", array, remedy)
    return array


def require(ok: ArrayLike, name: str, must: str, value: Any, remedy: str) -> None:
    """ValueError unless ``ok`` holds everywhere; the message shows the first offending entry."""
    ok = np.asarray(ok)
    if ok.all():
        return
    if ok.ndim and np.shape(value) == ok.shape:
        index = tuple(int(i) for i in np.argwhere(~ok)[0])
        value = f"{value[index]} at index {list(index)}"
    raise ValueError(f"{name} must {must}, got {value}; {remedy}")


def at_least(name: str, value: ArrayLike, least: float, remedy: str, *, infinite: bool = False,
             whole: bool = False) -> Array:
    """``value`` as a float64 array with every entry ``>= least`` (and whole, if asked for)."""
    array = real(name, value, infinite=infinite)
    require(array >= least, name, f"be at least {least:g}", array, remedy)
    if whole:
        require(array == np.floor(array), name, "be a whole number", array, remedy)
    return array


def one_number(name: str, array: Array) -> float:
    """The number in an array without axes; ValueError for any other."""
    require(array.ndim == 0, name, "be one number", f"shape {array.shape}", "call once a value")
    return float(array)


def support_size(value: ArrayLike) -> Array:
    """The number of support samples: at least 1, ``math.inf`` for the full batch."""
    return at_least("support", value, 1, "use math.inf for the full batch", infinite=True)


def step_count(value: ArrayLike) -> Array:
    """The number of inner steps: a whole number, 0 for no adaptation."""
    return at_least("steps", value, 0, "steps=0 means no adaptation", whole=True)


def step_size(value: ArrayLike) -> Array:
    """The inner step: finite and not negative."""
    return at_least("alpha", value, 0, "alpha=0 means no adaptation, and alpha may exceed 2/rho")
