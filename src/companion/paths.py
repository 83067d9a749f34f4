"""The only place that knows directories."""

import os
from pathlib import Path


def checkout() -> Path | None:
    """The root of the checkout that this package is imported from; None for an installed
    package."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "pyproject.toml").exists() and (root / "book").is_dir() else None


def data() -> Path:
    """Where data files are looked for: ``COMPANION_DATA``, else ``data/`` of the checkout, else of
    the user's cache."""
    named = os.environ.get("COMPANION_DATA")
    if named:
        return Path(named).expanduser().absolute()
    return (checkout() or Path.home() / ".cache" / "maml-companion") / "data"


def cache() -> Path:
    """Where what can be computed again is kept: ``COMPANION_CACHE``, else ``_build/cache`` of the
    checkout, else the user's cache."""
    named = os.environ.get("COMPANION_CACHE")
    if named:
        return Path(named).expanduser().absolute()
    root = checkout()
    return root / "_build" / "cache" if root else Path.home() / ".cache" / "maml-companion"


def results() -> Path:
    """Where records are kept: ``COMPANION_RESULTS``, else ``results/`` of the checkout.

    Raises:
        ValueError: neither is there.
    """
    named = os.environ.get("COMPANION_RESULTS")
    if named:
        return Path(named).expanduser().absolute()
    root = checkout()
    if root is None:
        raise ValueError(
            "a folder for results must be known, got an installed package and no "
            "COMPANION_RESULTS; "
            "set COMPANION_RESULTS to a folder, or work in a checkout"
        )
    return root / "results"
