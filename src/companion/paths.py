"""The only place that knows directories."""

import os
from pathlib import Path

_CACHE = ".cache/maml-companion"  # the user's, below home: for an installed package


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from; None where it is installed."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "book").is_dir() else None


def _folder(variable: str, inside: str) -> Path | None:
    """The folder that a variable of the environment names, else one in the checkout, if any."""
    if value := os.environ.get(variable):
        return Path(value).expanduser().absolute()
    root = checkout()
    return root / inside if root else None


def data() -> Path:
    """The data files: ``COMPANION_DATA``, else ``data/`` of the checkout or of the user's cache."""
    return _folder("COMPANION_DATA", "data") or Path.home() / _CACHE / "data"


def cache() -> Path:
    """What can be computed again: ``COMPANION_CACHE``, else ``_build/cache`` of the checkout or the
    user's cache."""
    return _folder("COMPANION_CACHE", "_build/cache") or Path.home() / _CACHE


def results() -> Path:
    """Where records are kept: ``COMPANION_RESULTS``, else ``results/`` of the checkout; ValueError
    where neither is there."""
    if folder := _folder("COMPANION_RESULTS", "results"):
        return folder
    raise ValueError("a folder for results must be known, got an installed package and no "
                     "COMPANION_RESULTS; set COMPANION_RESULTS to a folder, or work in a checkout")
