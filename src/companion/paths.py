"""The only place that knows directories."""

import os
from pathlib import Path

_PACKAGED = Path(__file__).resolve().parent / "packaged"  # what setup.py puts into a wheel


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


def _user_cache() -> Path:
    """The user's cache, for an installed package; RuntimeError where there is no home folder."""
    import platformdirs  # only here: a checkout needs it not

    return platformdirs.user_cache_path("maml-companion", appauthor=False).expanduser()


def data() -> Path:
    """The data files: ``COMPANION_DATA``, else ``data/`` of the checkout or of the user's cache."""
    return _folder("COMPANION_DATA", "data") or _user_cache() / "data"


def cache() -> Path:
    """What can be computed again: ``COMPANION_CACHE``, else ``_build/cache`` of the checkout or the
    user's cache."""
    return _folder("COMPANION_CACHE", "_build/cache") or _user_cache()


def claims() -> Path:
    """The file ``claims.yml``, of the checkout or of the installed package."""
    return (checkout() or _PACKAGED) / "claims.yml"


def results() -> Path:
    """Where records are read: ``COMPANION_RESULTS``, else ``results/`` of the checkout or of the
    installed package."""
    return _folder("COMPANION_RESULTS", "results") or _PACKAGED / "results"


def own_results() -> Path:
    """Where records are written: as :func:`results`, but never into an installed package;
    ValueError there, unless ``COMPANION_RESULTS`` is set."""
    if folder := _folder("COMPANION_RESULTS", "results"):
        return folder
    raise ValueError("a folder for results must be known, got an installed package and no "
                     "COMPANION_RESULTS; set COMPANION_RESULTS to a folder, or work in a checkout")
