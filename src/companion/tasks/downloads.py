"""Fetching data files from their publishers: checked by hash, whole or not at all."""

from pathlib import Path
from typing import NamedTuple

from companion import paths
from companion.errors import DataError, MissingData
from companion.tasks.sources import SOURCES, Source, load


class Download(NamedTuple):
    """A publisher's file: where from, its MD5 as published, and its place under the data folder."""

    url: str
    md5: str
    place: str


_CIFAR = Download("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
                  "03b5dce01913d631647c71ecec9e9cb8", "cifar-100-binary.tar.gz")
DOWNLOADS = {"cifar_fs": _CIFAR, "fc100": _CIFAR, "omniglot": Download(
    "https://github.com/brendenlake/omniglot/raw/master/python/images_background.zip",
    "68d2efa1b9178cc56df9314c21c6e718", "omniglot/images_background.zip")}
_UNPUBLISHED = {"glyphs": "it is drawn, not fetched",
                "mini_imagenet": "put your own files under mini_imagenet/"}


def locate(name: str, *, progress: bool = False) -> Source:
    """The source of that name, its file fetched where none is there and checked by hash otherwise,
    where one is published. Errors as in :func:`fetch` and :func:`companion.tasks.sources.load`."""
    try:
        if name in DOWNLOADS and (paths.data() / DOWNLOADS[name].place).exists():
            fetch(name, progress=progress)
        return load(name)
    except MissingData:
        fetch(name, progress=progress)
        return load(name)


def fetch(name: str, *, progress: bool = False) -> Path:
    """The publisher's file of a source, downloaded unless a copy with the right hash is there. A
    file that is there is never half overwritten, and nothing partial is left. ValueError: an
    unknown source, or one that nobody publishes. DataError: no network, or not the whole file."""
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    if name not in DOWNLOADS:
        raise ValueError(f"source must be one that can be fetched, got {name}: "
                         f"{_UNPUBLISHED[name]}")
    import pooch  # only here: whoever has the files needs no downloader
    import requests

    url, md5, place = DOWNLOADS[name]
    path = paths.data() / place
    try:
        pooch.retrieve(url, f"md5:{md5}", fname=path.name, path=path.parent,
                       downloader=pooch.HTTPDownloader(progressbar=progress, timeout=30))
    except requests.RequestException as error:
        raise DataError(f"{url} must be reachable and whole, got {type(error).__name__}: {error}; "
                        f"try again, or put the file at {path} by hand") from error
    except OSError as error:
        raise DataError(f"{path} could not be written: {error.strerror or error}; free or unlock "
                        "it, or set COMPANION_DATA to another folder") from error
    except ValueError as error:  # pooch's word for a wrong hash; it has removed what came
        raise DataError(f"{url} must have the published MD5 {md5}, got another file; try again "
                        f"later, or put it at {path}") from error
    return path
