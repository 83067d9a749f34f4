"""Files written whole or not at all, and errors that name them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from companion.errors import RecordError


@contextmanager
def naming(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError into one that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        raise RecordError(f"{path} could not be {doing}: {error.strerror or error}; free or unlock "
                          "it, or set COMPANION_RESULTS to another folder, and run again: finished "
                          "points are kept") from error


def write_atomically(path: Path, data: bytes) -> None:
    """All of ``data`` under ``path``, its folder made, or an error and what was there before."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with naming(path, "written"):
        make_folder(path.parent)
        try:
            with scratch.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(scratch, path)
        finally:
            with suppress(OSError):
                scratch.unlink()


def make_folder(path: Path) -> None:
    """Make a folder and those above it, or an error that names what stands in its place."""
    for place in (path, *path.parents):
        if place.is_symlink() and not place.exists():
            raise RecordError(f"{place} must be a folder, got a link to {place.readlink()}, which "
                              "is not there; mend or remove the link")
    with naming(path, "made"):
        path.mkdir(parents=True, exist_ok=True)
