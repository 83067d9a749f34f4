"""Images for few-shot tasks, from any source: classes, their groups, and splits of classes."""

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch

from companion import paths
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


def _glyphs(samples: int = 20) -> Source:
    """Drawn once and kept in the cache, under a name that tells the drawing program and font."""
    path = paths.cache() / f"glyphs-{samples}-{glyphs.version()}.npz"
    try:
        parts = readers.arrays(path, *Classes._fields)
    except DataError:  # none there yet, or a damaged one
        _, characters, alphabet, alphabets = glyphs.characters()
        parts = [glyphs.draw(samples), alphabet, np.array(characters), np.array(alphabets)]
        buffer = io.BytesIO()
        np.savez(buffer, **dict(zip(Classes._fields, parts, strict=True)))  # type: ignore[arg-type]
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


def load(name: str) -> Source:
    """The source of that name: glyphs, omniglot, cifar_fs, fc100 or mini_imagenet. Glyphs are drawn
    (see :mod:`companion.tasks.glyphs`), the others read from files. Glyphs and Omniglot are split
    by alphabet (60/15/25 %, and 20/3/7), CIFAR-FS and FC100 as published. ValueError: an unknown
    name. DataError: a file is damaged, or missing (MissingData)."""
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]()
