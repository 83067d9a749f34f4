"""Images for few-shot tasks, from any source: classes, their groups, and splits of classes."""

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from companion import paths, provenance
from companion.checks import require
from companion.errors import DataError, RecordError
from companion.files import write_atomically
from companion.streams import stream
from companion.tasks import glyphs, readers
from companion.tasks.readers import Classes

SPLITS = ("train", "validation", "test")


class Source(NamedTuple):
    """Images in classes, classes in groups, groups of classes in splits.

    ``images`` [image, channel, height, width] uint8, those of a class together, ``sizes`` [class]
    of them from ``first`` [class]; ``group`` [class] is its alphabet or superclass; ``splits`` maps
    "train", "validation", "test" to class numbers, no class in two.
    """

    name: str
    images: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    group: torch.Tensor
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    splits: Mapping[str, torch.Tensor]


def _splits(split: Sequence[str]) -> dict[str, torch.Tensor]:
    """Class numbers by split, from the split of every class."""
    return {name: torch.from_numpy(np.flatnonzero(np.asarray(split) == name)) for name in SPLITS}


def _source(name: str, classes: Classes, split: Sequence[str]) -> Source:
    sizes = torch.tensor([len(images) for images in classes.images])
    return Source(name, torch.from_numpy(np.concatenate(classes.images)), sizes.cumsum(0) - sizes,
                  sizes, torch.tensor(classes.group), tuple(classes.names),
                  tuple(classes.group_names), _splits(split))


def fingerprint(source: Source) -> str:
    """The SHA-256 of all that a source is: its names, sizes, groups, splits, and every pixel."""
    told = {"name": source.name, "shape": list(source.images.shape),
            "dtype": str(source.images.dtype), "classes": source.class_names,
            "groups": source.group_names, "sizes": source.sizes.tolist(),
            "group": source.group.tolist(),
            "splits": {name: numbers.tolist() for name, numbers in source.splits.items()}}
    total = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
    total.update(source.images.cpu().contiguous().numpy().data)
    return total.hexdigest()


def _whole_groups(name: str, classes: Classes, *sizes: int) -> Source:
    """``sizes`` groups for training and validation, the rest for test, in a fixed order."""
    place = np.argsort(stream(0, f"sources/{name}").permutation(len(classes.group_names)))
    number = np.searchsorted(np.cumsum(sizes), place[classes.group], side="right")
    return _source(name, classes, [SPLITS[i] for i in number])


def within_groups(source: Source, shares: tuple[float, float, float] = (0.5, 0.25, 0.25)) -> Source:
    """The source with its classes split anew inside every group, so that all splits see all groups.
    ``shares`` of a group's classes, positive and of sum 1, else ValueError, go to the three splits,
    whole classes each, in an order that the stream of the source's name fixes."""
    require(len(shares) == 3 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-9, "shares",
            "be three positive shares that add up to 1", shares, "(0.5, 0.25, 0.25) is usual")
    rng = stream(0, f"sources/{source.name}/within")
    groups, split = source.group.numpy(), np.empty(len(source.group), dtype=object)
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        ends = np.floor(np.cumsum(shares) * len(members) + 1e-9).astype(int)
        for name, part in zip(SPLITS, np.split(members, ends[:2]), strict=True):
            split[part] = name
    return source._replace(splits=_splits(split.tolist()))


def _hash(parts: Sequence[Any]) -> str:
    """The SHA-256 of arrays: of their types, shapes and contents."""
    total = hashlib.sha256()
    for part in parts:
        total.update(f"{part.dtype} {part.shape} ".encode() + part.tobytes())
    return total.hexdigest()


def _kept(path: Path, samples: int) -> list[Any]:
    """The glyphs in the cache; DataError unless they are there as they were drawn."""
    most, remedy = 4096 * samples * glyphs.SIDE**2, "remove it"  # twice what there are
    try:
        with path.open("rb") as file:
            *parts, stated = readers.arrays(file, path, *Classes._fields, "sha256", most=most,
                                            remedy=remedy)
    except OSError as error:
        raise DataError(f"{path} must be readable, got {error}; {remedy}") from error
    if stated.tolist() != _hash(parts):
        raise DataError(f"{path} must have the hash it states, got another; {remedy}")
    return parts


def _glyphs(samples: int = 20) -> Source:
    """Drawn once and kept in the cache, under a name that tells what drew them."""
    path = paths.cache() / f"glyphs-{samples}-{glyphs.version()}.npz"
    try:
        parts = _kept(path, samples)
    except DataError:  # none there yet, or a damaged or altered one: nobody needs to know
        _, characters, alphabet, alphabets = glyphs.characters()
        parts = [glyphs.draw(samples), alphabet, np.array(characters), np.array(alphabets)]
        buffer = io.BytesIO()
        np.savez(buffer, sha256=np.array(_hash(parts)),
                 **dict(zip(Classes._fields, parts, strict=True)))
        with suppress(RecordError):  # a cache that cannot be written is no error
            write_atomically(path, buffer.getvalue())
    classes = Classes(list(parts[0][:, :, None]), *(part.tolist() for part in parts[1:]))
    count = len(classes.group_names)
    return _whole_groups("glyphs", classes, round(0.6 * count), round(0.15 * count))


def _cifar(name: str) -> Source:
    """The classes held out are named themselves (CIFAR-FS) or by their superclass (FC100)."""
    classes = readers.cifar(name)
    held = {entry: split for split, entries in readers.HELD_OUT[name].items() for entry in entries}
    split = [held.get(member) or held.get(classes.group_names[group], "train")
             for member, group in zip(classes.names, classes.group, strict=True)]
    return _source(name, classes, split)


def _mini_imagenet() -> Source:
    classes = readers.mini_imagenet(SPLITS)
    return _source("mini_imagenet", classes, [name.split("/")[0] for name in classes.names])


SOURCES: dict[str, Callable[[], Source]] = {
    "glyphs": _glyphs, "omniglot": lambda: _whole_groups("omniglot", readers.omniglot(), 20, 3),
    "cifar_fs": lambda: _cifar("cifar_fs"), "fc100": lambda: _cifar("fc100"),
    "mini_imagenet": _mini_imagenet}


_READ: dict[str, tuple[object, Source, str]] = {}  # the one read last: of which files, and its hash


def load(name: str) -> Source:
    """The source of that name: glyphs, omniglot, cifar_fs, fc100 or mini_imagenet. Glyphs are drawn
    (see :mod:`companion.tasks.glyphs`), the others read from files: the published ones of the
    hashes in files.yml, no other, and the user's own of mini_imagenet. Glyphs and Omniglot are
    split by alphabet (60/15/25 %, and 20/3/7), CIFAR-FS and FC100 as published. What is read is
    noted in :mod:`companion.provenance` by its :func:`fingerprint`, and kept until another is asked
    for or its files change. ValueError: an unknown name. DataError: a file is missing
    (MissingData), damaged, or not the published one."""
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    state = readers.state(name)  # before the files are read, so that a later change is seen
    kept = _READ.get(name)
    if kept is None or kept[0] != state:
        _READ.clear()  # before the next one takes its memory
        source = SOURCES[name]()
        kept = _READ[name] = state, source, fingerprint(source)
    provenance.note(name, kept[2])
    return kept[1]
