"""The only place that knows directories."""

import os
from pathlib import Path


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "book").is_dir() else None


def _named(variable: str) -> Path | None:
    """The folder that a variable of the environment names."""
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None


def _user() -> Path:
    return Path.home() / ".cache" / "maml-companion"


def data() -> Path:
    """The data files: ``COMPANION_DATA``, else ``data/`` of the checkout or of the user's cache."""
    return _named("COMPANION_DATA") or (checkout() or _user()) / "data"


def cache() -> Path:
    """What can be computed again: ``COMPANION_CACHE``, else ``_build/cache`` of the checkout.

    For an installed package it is the user's cache.
    """
    root = checkout()
    return _named("COMPANION_CACHE") or (root / "_build" / "cache" if root else _user())


def results() -> Path:
    """Where records are kept: ``COMPANION_RESULTS``, else ``results/`` of the checkout.

    Raises ValueError: neither is there.
    """
    root = checkout()
    folder = _named("COMPANION_RESULTS") or (root and root / "results")
    if folder:
        return folder
    raise ValueError("a folder for results must be known, got an installed package and no "
                     "COMPANION_RESULTS; set COMPANION_RESULTS to a folder, or work in a checkout")
