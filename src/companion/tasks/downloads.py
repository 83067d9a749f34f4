"""Fetching data files from their publishers: checked by hash, whole or not at all."""

import io
import math
from pathlib import Path
from typing import Any, NamedTuple

from companion import paths
from companion.errors import DataError, MissingData
from companion.tasks import readers
from companion.tasks.sources import SOURCES, Source, load


class Download(NamedTuple):
    """A publisher's file: where from, and its place under the data folder, by which files.yml tells
    its MD5 and its bytes as published."""

    url: str
    place: str


_CIFAR = Download("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                  "cifar-100-binary.tar.gz")
DOWNLOADS = {"cifar_fs": _CIFAR, "fc100": _CIFAR, "omniglot": Download(
    "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
    "omniglot/images_background.zip")}
_UNPUBLISHED = {"glyphs": "it is drawn, not fetched",
                "mini_imagenet": "put your own files under mini_imagenet/"}


def locate(name: str, *, progress: bool = False) -> Source:
    """The source of that name, its file fetched where none is there, or where the publisher's is
    and is not whole. Errors as in :func:`fetch` and :func:`companion.tasks.sources.load`."""
    if name in readers.PLACES:
        try:
            there = readers.place(name)
        except MissingData:
            there = None
        if there is None or (name in DOWNLOADS and there == DOWNLOADS[name].place):
            fetch(name, progress=progress)
    return load(name)


def fetch(name: str, *, progress: bool = False) -> Path:
    """The publisher's file of a source, downloaded unless a copy with the right hash is there. A
    file that is there is never half overwritten, nothing partial is left, and a server that sends
    more than was published is cut off. ValueError: an unknown source, or one that nobody publishes.
    DataError: no network, or not the published file."""
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    if name not in DOWNLOADS:
        raise ValueError(f"source must be one that can be fetched, got {name}: "
                         f"{_UNPUBLISHED[name]}")
    import pooch  # only here: whoever has the files needs no downloader
    import requests

    url, place = DOWNLOADS[name]
    path, known = paths.data() / place, readers.KNOWN[place]
    want = f"{known.kind.upper()} {known.digits}"
    # a copy with the right hash is never replaced, so that one which is there has another
    there = f"{path} must have the {want}, got another file; " if path.exists() else ""
    by_hand = f"put the right file {'in its place' if there else f'at {path}'} by hand"

    def limited(url: str, scratch: str, of: object) -> None:
        with _Limited(scratch, known.bytes) as file:
            pooch.HTTPDownloader(progressbar=progress, timeout=30, chunk_size=2**16,
                                 hooks={"response": file.announced})(url, file, of)

    try:
        pooch.retrieve(url, f"{known.kind}:{known.digits}", fname=path.name, path=path.parent,
                       downloader=limited)
    except requests.RequestException as error:
        raise DataError(f"{there}{url} must be reachable and whole, got {type(error).__name__}: "
                        f"{error}; try again, or {by_hand}") from error
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}; free or unlock "
                        "it, or set COMPANION_DATA to another folder") from error
    except ValueError as error:  # too long, or of a wrong hash; pooch has removed what came
        got = error if isinstance(error, _TooLong) else "another file"
        raise DataError(f"{there}{url} must have the published {want}, got {got}; try again later, "
                        f"or {by_hand}") from error
    return path


class _TooLong(ValueError):
    """More than was published."""


class _Limited(io.BufferedWriter):
    """A file to write a download to, of at most ``most`` bytes; it closes the connection, too."""

    def __init__(self, path: str, most: int | None) -> None:
        super().__init__(io.FileIO(path, "w"))
        self._most = math.inf if most is None else most
        self._responses: list[Any] = []

    def announced(self, response: Any, **_: object) -> None:
        """Refuse a response that is too long by its own word, before any of it is read."""
        self._responses.append(response)
        if response.ok and (size := int(response.headers.get("Content-Length", 0))) > self._most:
            raise _TooLong(f"{size:,} bytes where {self._most:,} are published")

    def write(self, data: Any) -> int:
        """Write all of it, unless that is more than the limit."""
        if self.tell() + len(data) > self._most:
            raise _TooLong(f"more than the {self._most:,} bytes published")
        return super().write(data)

    def close(self) -> None:
        """Close the file, and hang up: pooch leaves that to the collector of garbage."""
        for response in self._responses:
            response.close()
        super().close()
