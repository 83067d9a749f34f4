"""Images for few-shot tasks, from any source behind one interface: classes, their groups, and
splits of classes.

``glyphs`` is drawn here and needs no file (:mod:`companion.tasks.glyphs`). The others are looked
for under :func:`companion.paths.data`, as their publishers' archives or in the formats named below.
"""

import io
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from companion import paths
from companion.checks import require
from companion.errors import DataError, MissingData, RecordError
from companion.files import write_atomically
from companion.streams import stream
from companion.tasks import glyphs

SPLITS = ("train", "validation", "test")
Bytes = NDArray[np.uint8]


class Source(NamedTuple):
    """Images in classes, classes in groups, groups of classes in splits.

    ``images`` [image, channel, height, width] uint8, those of a class together, from ``first``
    [class], ``sizes`` [class] of them. ``group`` [class] is its alphabet or superclass. ``splits``
    maps "train", "validation", "test" to class numbers; no class is in two.
    """

    name: str
    images: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    group: torch.Tensor
    class_names: tuple[str, ...]
    group_names: tuple[str, ...]
    splits: Mapping[str, torch.Tensor]


def _source(name: str, by_class: Sequence[Bytes], group: Sequence[int], class_names: Sequence[str],
            group_names: Sequence[str], splits: Mapping[str, Sequence[int]]) -> Source:
    count = torch.tensor([len(images) for images in by_class])
    images = torch.from_numpy(np.concatenate(list(by_class)))
    return Source(name, images, count.cumsum(0) - count, count, torch.tensor(group),
                  tuple(class_names), tuple(group_names),
                  {split: torch.tensor(sorted(members)) for split, members in splits.items()})


def split_groups(name: str, group: Sequence[int], sizes: Sequence[int]) -> dict[str, list[int]]:
    """Classes by split, whole groups in each: ``sizes`` groups for training, validation and test,
    in an order that the stream of ``name`` fixes."""
    order = stream(0, f"sources/{name}").permutation(max(group) + 1)
    ends = np.cumsum(sizes)
    of_group = {int(g): SPLITS[int(np.searchsorted(ends, i, side="right"))]
                for i, g in enumerate(order)}
    return {split: [i for i, g in enumerate(group) if of_group[g] == split] for split in SPLITS}


def within_groups(source: Source, shares: tuple[float, float, float] = (0.5, 0.25, 0.25)) -> Source:
    """The source with its classes split anew, inside every group: training, validation and test see
    the same groups.

    ``shares`` of a group's classes go to the three splits, whole classes each, in an order that the
    stream of the source's name fixes. Raises ValueError for shares that are not positive or do not
    add up to 1.
    """
    good = len(shares) == 3 and min(shares) > 0 and abs(sum(shares) - 1) < 1e-9
    require(good, "shares", "be three positive shares that add up to 1", shares,
            "(0.5, 0.25, 0.25) is usual")
    rng = stream(0, f"sources/{source.name}/within")
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    groups = source.group.numpy()
    for group in np.unique(groups):
        members = rng.permutation(np.flatnonzero(groups == group))
        ends = np.floor(np.cumsum(shares) * len(members) + 1e-9).astype(int)
        for split, start, end in zip(SPLITS, (0, *ends), ends, strict=False):
            splits[split] += members[start:end].tolist()
    return source._replace(
        splits={split: torch.tensor(sorted(members)) for split, members in splits.items()}
    )


def _found(*candidates: str, source: str) -> Path:
    """The first of the files that is there, below the data folder."""
    root = paths.data()
    for candidate in candidates:
        if (root / candidate).exists():
            return root / candidate
    names = " or ".join(candidates)
    raise MissingData(
        f"{source} needs {names} under {root}, got none; fetch it with `companion data "
        f"{source}`, or name the folder "
        "that has it in COMPANION_DATA"
    )


def _need(ok: Any, path: Path, must: str, got: Any) -> None:
    if not bool(ok):
        raise DataError(f"{path} must {must}, got {got}; remove it and fetch it again")


def _arrays(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Arrays of an npz file. Nothing is unpickled."""
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = sorted(set(names) - set(file.files))
            _need(not missing, path, f"hold the arrays {', '.join(names)}",
                  f"none named {', '.join(missing)}")
            return {name: file[name] for name in names}
    except DataError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise DataError(
            f"{path} must be a whole npz file, got {error}; remove it and fetch it again"
        ) from error


def _glyphs(samples: int = 20) -> Source:
    """Drawn once and kept in the cache, under a name that tells the drawing program and the
    font."""
    path = paths.cache() / f"glyphs-{samples}-{glyphs.version()}.npz"
    names = ("images", "names", "alphabet", "alphabets")
    try:
        found = _arrays(path, names)
    except DataError:  # none there yet, or a damaged one
        characters = glyphs.characters()
        parts = (glyphs.draw(samples), characters.names, characters.alphabet, characters.alphabets)
        found = {name: np.asarray(part) for name, part in zip(names, parts, strict=True)}
        buffer = io.BytesIO()
        np.savez(buffer, **found)  # type: ignore[arg-type]
        with suppress(RecordError, OSError):  # a cache that cannot be written is no error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, buffer.getvalue())
    group, count = found["alphabet"].tolist(), len(found["alphabets"])
    splits = split_groups("glyphs", group, (round(0.6 * count), round(0.15 * count), count))
    by_class = list(found["images"][:, :, None])
    return _source("glyphs", by_class, group, found["names"].tolist(), found["alphabets"].tolist(),
                   splits)


def _resized(images: Bytes, side: int) -> Bytes:
    """Images [n, h, w] averaged down to [n, side, side]."""
    small = F.interpolate(torch.from_numpy(images)[:, None].float(), size=(side, side),
                          mode="bilinear", antialias=True).round()
    return np.asarray(small[:, 0].to(torch.uint8))


def _omniglot() -> Source:
    """The background set: 30 alphabets, split 20 / 3 / 7."""
    path = _found("omniglot/omniglot_background_32x32.npz", "omniglot/images_background.zip",
                  source="omniglot")
    if path.suffix == ".zip":
        images, alphabet, character, names = _omniglot_zip(path)
    else:
        found = _arrays(path, ("images", "alphabet", "character", "alphabet_names"))
        images, alphabet, character = (found[name] for name in ("images", "alphabet", "character"))
        names = [str(name) for name in found["alphabet_names"]]
        n = len(images)
        ok = (images.ndim == 3
              and images.dtype == np.uint8
              and alphabet.shape == character.shape == (n,)
              and n > 0)
        _need(ok, path, "hold uint8 images [n, h, w] with n labels",
              f"{images.dtype} {images.shape}")
        _need(alphabet.max() < len(names), path, "name every alphabet", f"{len(names)} names")
    images = _resized(images, glyphs.SIDE)
    keys = sorted(set(zip(alphabet.tolist(), character.tolist(), strict=True)))
    members = [images[(alphabet == a) & (character == c)][:, None] for a, c in keys]
    group = [a for a, _ in keys]
    return _source("omniglot", members, group, [f"{names[a]}/{c + 1}" for a, c in keys], names,
                   split_groups("omniglot", group, (20, 3, len(names))))


def _omniglot_zip(path: Path) -> tuple[Bytes, NDArray[Any], NDArray[Any], list[str]]:
    """The publisher's archive: images_background/ALPHABET/characterNN/NNNN_NN.png, ink black on
    white."""
    from PIL import Image

    images, labels = [], []
    try:
        with zipfile.ZipFile(path) as archive:
            files = sorted(name for name in archive.namelist() if name.endswith(".png"))
            for name in files:
                *_, alphabet, character, _ = name.split("/")
                with archive.open(name) as file:
                    images.append(255 - np.asarray(Image.open(file).convert("L"), dtype=np.uint8))
                labels.append((alphabet, int(character.removeprefix("character")) - 1))
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} must be Omniglot's archive, got {error}; remove it and fetch it again"
        ) from error
    _need(images, path, "hold drawings ALPHABET/characterNN/*.png", "none")
    names = sorted({alphabet for alphabet, _ in labels})
    numbers = np.array([(names.index(alphabet), character) for alphabet, character in labels])
    return np.stack(images), numbers[:, 0], numbers[:, 1], names


_SUPERCLASSES = {  # of CIFAR-100 (Krizhevsky 2009), each with its five classes
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
_CIFAR = tuple(sorted(name for names in _SUPERCLASSES.values() for name in names.split()))
_CIFAR_GROUP = [next(i for i, names in enumerate(_SUPERCLASSES.values()) if name in names.split())
                for name in _CIFAR]
_CIFAR_FS = {  # Bertinetto et al. (2019); the other 64 classes train
    "validation": "beaver beetle butterfly camel cattle crab crocodile flatfish lamp "
                  "maple_tree motorcycle otter sea "
    "shark television tractor",
    "test": "baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose "
            "snail sweet_pepper table "
    "telephone wardrobe whale woman worm",
}
_FC100 = {  # Oreshkin et al. (2018), by superclass; the other 12 train
    "validation": "large_carnivores large_omnivores_and_herbivores non-insect_invertebrates "
                  "small_mammals",
    "test": "aquatic_mammals insects medium_mammals people",
}
_TILES, _COLUMNS, _SIDE = 600, 20, 32


def _cifar_splits(name: str) -> dict[str, list[int]]:
    """Class numbers by split."""
    if name == "cifar_fs":
        held = {split: set(names.split()) for split, names in _CIFAR_FS.items()}
    else:
        held = {split: {c for group in groups.split() for c in _SUPERCLASSES[group].split()}
                for split, groups in _FC100.items()}
    held["train"] = set(_CIFAR) - held["validation"] - held["test"]
    return {split: [_CIFAR.index(c) for c in held[split]] for split in SPLITS}


def _cifar(name: str) -> Source:
    path = _found("cifar100", "cifar-100-binary.tar.gz", source=name)
    by_class = (
        [_sheet(path / f"{c}.webp") for c in _CIFAR] if path.is_dir() else _cifar_binary(path)
    )
    return _source(name, by_class, _CIFAR_GROUP, _CIFAR, tuple(_SUPERCLASSES), _cifar_splits(name))


def _sheet(path: Path) -> Bytes:
    """The 600 images of a class [600, 3, 32, 32], from a sheet of 30 rows of 20 tiles."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} must be there, got none; a folder of sheets needs one for each class"
        ) from error
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(
            f"{path} must be a whole image, got {error}; remove it and fetch it again"
        ) from error
    rows = _TILES // _COLUMNS
    want = (rows * _SIDE, _COLUMNS * _SIDE, 3)
    _need(pixels.shape == want, path, f"be a sheet of shape {want}", pixels.shape)
    tiles = (pixels.reshape(rows, _SIDE, _COLUMNS, _SIDE, 3)
             .swapaxes(1, 2)
             .reshape(_TILES, _SIDE, _SIDE, 3))
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2))


def _cifar_binary(path: Path) -> list[Bytes]:
    """The publisher's binary archive: records of a coarse label, a fine label, and 3072 bytes,
    train before test."""
    size = 2 + 3 * _SIDE**2
    try:
        with tarfile.open(path, "r:gz") as archive:
            parts = []
            for member in ("train.bin", "test.bin"):
                file = archive.extractfile(f"cifar-100-binary/{member}")
                parts.append(file.read() if file else b"")
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(
            f"{path} must be CIFAR-100's binary archive, got {error}; fetch it again"
        ) from error
    data = b"".join(parts)
    _need(len(data) == 60_000 * size, path, f"hold 60,000 records of {size} bytes",
          f"{len(data)} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    images = records[:, 2:].reshape(-1, 3, _SIDE, _SIDE)
    return [images[records[:, 1] == label] for label in range(len(_CIFAR))]


def _mini_imagenet() -> Source:
    """Files of the user's own: mini_imagenet/{train,validation,test}.npz with images [n, h, w, 3]
    and label [n]."""
    by_class: list[Bytes] = []
    splits: dict[str, list[int]] = {}
    names: list[str] = []
    sides = set()
    for split in SPLITS:
        path = _found(f"mini_imagenet/{split}.npz", source="mini_imagenet")
        found = _arrays(path, ("images", "label"))
        images, label = found["images"], found["label"]
        ok = (images.ndim == 4
              and images.shape[3] == 3
              and images.dtype == np.uint8
              and label.shape == images.shape[:1])
        got = f"{images.dtype} {images.shape} and {label.shape}"
        _need(ok and len(label), path, "hold uint8 images [n, h, w, 3] and label [n]", got)
        sides.add(images.shape[1:])
        _need(len(sides) == 1, path, "have images of the other splits' size", images.shape[1:])
        kinds = np.unique(label)
        splits[split] = list(range(len(by_class), len(by_class) + len(kinds)))
        by_class += [
            np.ascontiguousarray(images[label == kind].transpose(0, 3, 1, 2)) for kind in kinds
        ]
        names += [f"{split}/{kind}" for kind in kinds]
    group = [0] * len(by_class)
    return _source("mini_imagenet", by_class, group, names, ("all",), splits)


SOURCES: dict[str, Callable[[], Source]] = {
    "glyphs": _glyphs, "omniglot": _omniglot, "cifar_fs": lambda: _cifar("cifar_fs"),
    "fc100": lambda: _cifar("fc100"), "mini_imagenet": _mini_imagenet,
}


def load(name: str) -> Source:
    """The source of that name: glyphs, omniglot, cifar_fs, fc100 or mini_imagenet.

    Omniglot comes as 28 x 28, one channel, ink 255; the colour sources in their own size. Glyphs
    and Omniglot are split by alphabet (60 / 15 / 25 %, and 20 / 3 / 7), CIFAR-FS and FC100 as
    published.

    Raises:
        ValueError: an unknown name.
        DataError: a file is missing (MissingData) or damaged; says which, and what to do.
    """
    if name not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {name!r}")
    return SOURCES[name]()
