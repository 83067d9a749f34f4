"""Readers of image files under :func:`companion.paths.data`, as images in classes.

Nothing is unpickled. What is missing or damaged ends in a DataError that names file and remedy.
"""

import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional as F

from companion import paths
from companion.errors import DataError, MissingData
from companion.tasks.glyphs import SIDE

Bytes = NDArray[np.uint8]
_TABLES = yaml.safe_load((files("companion.tasks") / "cifar100.yml").read_text("utf-8"))
SUPERCLASSES: dict[str, list[str]] = _TABLES["superclasses"]
HELD_OUT: dict[str, dict[str, list[str]]] = _TABLES["held_out"]
CIFAR100 = sorted(name for names in SUPERCLASSES.values() for name in names)
_TILES, _COLUMNS, _PIXELS = 600, 20, 32  # of a sheet of CIFAR: images, images in a row, their side


class Classes(NamedTuple):
    """Images by class: ``images[class]`` is [image, channel, height, width] uint8. ``group``
    [class] numbers a class's alphabet or superclass, whose names are ``group_names``."""

    images: Sequence[Bytes]
    group: Sequence[int]
    names: Sequence[str]
    group_names: Sequence[str]


def _first(source: str, *candidates: str) -> Path:
    """The first of the files that is there, below the data folder."""
    for path in (paths.data() / candidate for candidate in candidates):
        if path.exists():
            return path
    raise MissingData(f"{source} needs {' or '.join(candidates)} under {paths.data()}, got none; "
                      + ("put your own files there" if source == "mini_imagenet" else
                         f"fetch it with `companion data {source}`")
                      + ", or name the folder that has it in COMPANION_DATA")


def _need(ok: Any, path: Path, must: str, got: Any, cause: Exception | None = None) -> None:
    if not ok:
        raise DataError(f"{path} must {must}, got {got}; remove it and fetch it again") from cause


@contextmanager
def _reading(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError."""
    try:
        yield
    except Exception as error:  # zlib's, zipfile's, tarfile's, PIL's, even tokenize's own
        _need(False, path, f"be {kind}", error, error)


def arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """The arrays of these names in an npz file."""
    with (_reading(path, "a whole npz file"), path.open("rb") as raw,
          np.load(raw, allow_pickle=False) as file):
        held = {name: file[name] for name in names if name in file.files}
    missing = ", ".join(sorted(set(names) - set(held)))
    _need(not missing, path, f"hold the arrays {', '.join(names)}", f"none named {missing}")
    return list(held.values())


def _need_labelled(path: Path, images: NDArray[Any], *labels: NDArray[Any],
                   colours: tuple[int, ...] = ()) -> None:
    """DataError unless ``images`` are uint8 [n, h, w, *colours] and each of ``labels`` is [n]."""
    ok = (images.dtype == np.uint8 and images.ndim >= 3 and images.shape[3:] == colours
          and len(images) > 0 and all(label.shape == images.shape[:1] for label in labels))
    _need(ok, path, f"hold uint8 images [{', '.join(map(str, ('n, h, w', *colours)))}], n labels",
          f"{images.dtype} {images.shape} and {', '.join(str(label.shape) for label in labels)}")


def omniglot() -> Classes:
    """Omniglot's background set: 30 alphabets, one channel of 28 x 28, ink 255. From
    omniglot/omniglot_background_32x32.npz (images [n, h, w], alphabet [n], character [n],
    alphabet_names), or from the publisher's images_background.zip beside it."""
    path = _first("omniglot", "omniglot/omniglot_background_32x32.npz",
                  "omniglot/images_background.zip")
    images, alphabet, character, names = (
        _omniglot_zip(path) if path.suffix == ".zip"
        else arrays(path, "images", "alphabet", "character", "alphabet_names"))
    _need_labelled(path, images, alphabet, character)
    _need(np.isin(alphabet, np.arange(len(names))).all(), path, "name every alphabet",
          f"{len(names)} names")
    small = F.interpolate(torch.from_numpy(images)[:, None].float(), size=(SIDE, SIDE),
                          mode="bilinear", antialias=True).round().to(torch.uint8).numpy()
    keys = sorted(set(zip(alphabet.tolist(), character.tolist(), strict=True)))
    return Classes([small[(alphabet == a) & (character == c)] for a, c in keys],
                   [a for a, _ in keys], [f"{names[a]}/{c + 1}" for a, c in keys], names.tolist())


def _omniglot_zip(path: Path) -> list[NDArray[Any]]:
    """The same arrays from drawings ALPHABET/characterNN/NNNN_NN.png, ink black on white."""
    from PIL import Image

    images, labels = [], []
    with _reading(path, "Omniglot's archive"), zipfile.ZipFile(path) as archive:
        for name in sorted(name for name in archive.namelist() if name.endswith(".png")):
            *_, alphabet, character, _ = name.split("/")
            with archive.open(name) as file:
                images.append(255 - np.asarray(Image.open(file).convert("L"), dtype=np.uint8))
            labels.append((alphabet, int(character.removeprefix("character")) - 1))
        stacked = np.stack(images)
    names, numbers = np.unique([alphabet for alphabet, _ in labels], return_inverse=True)
    return [stacked, numbers, np.array([character for _, character in labels]), names]


def cifar(source: str) -> Classes:
    """CIFAR-100, 600 images of 3 x 32 x 32 a class, for the ``source`` that an error names. From a
    folder cifar100 of one sheet CLASS.webp each, or from the publisher's binary archive."""
    path = _first(source, "cifar100", "cifar-100-binary.tar.gz")
    images = ([_sheet(path / f"{name}.webp") for name in CIFAR100] if path.is_dir()
              else _cifar_binary(path))
    group_of = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names}
    return Classes(images, [group_of[name] for name in CIFAR100], CIFAR100, list(SUPERCLASSES))


def _sheet(path: Path) -> Bytes:
    """The images of a class [600, 3, 32, 32], from a sheet of 30 rows of 20 tiles."""
    from PIL import Image

    if not path.exists():
        raise DataError(f"{path} must be there, got none; a folder needs a sheet for each class")
    with _reading(path, "a whole image"), Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
    rows = _TILES // _COLUMNS
    want = (rows * _PIXELS, _COLUMNS * _PIXELS, 3)
    _need(pixels.shape == want, path, f"be a sheet of shape {want}", pixels.shape)
    tiles = pixels.reshape(rows, _PIXELS, _COLUMNS, _PIXELS, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(_TILES, 3, _PIXELS, _PIXELS)


def _cifar_binary(path: Path) -> list[Bytes]:
    """The archive's records: a coarse label, a fine label, and 3072 bytes; train before test."""
    size, data = 2 + 3 * _PIXELS**2, b""
    with _reading(path, "CIFAR-100's binary archive"), tarfile.open(path, "r:gz") as archive:
        for member in ("train.bin", "test.bin"):
            file = archive.extractfile(f"cifar-100-binary/{member}")
            data += file.read() if file else b""
    _need(len(data) == 60_000 * size, path, f"hold 60,000 records of {size} bytes",
          f"{len(data)} bytes")
    records = np.frombuffer(data, dtype=np.uint8).reshape(-1, size)
    images = records[:, 2:].reshape(-1, 3, _PIXELS, _PIXELS)
    return [images[records[:, 1] == label] for label in range(len(CIFAR100))]


def mini_imagenet(splits: Sequence[str]) -> Classes:
    """Files of the user's own, one of each of ``splits``; a class is named SPLIT/LABEL. From
    mini_imagenet/SPLIT.npz: images [n, h, w, 3], of one size in all, and label [n]."""
    images, names = list[Bytes](), list[str]()
    for split in splits:
        path = _first("mini_imagenet", f"mini_imagenet/{split}.npz")
        pixels, label = arrays(path, "images", "label")
        _need_labelled(path, pixels, label, colours=(3,))
        _need(not images or pixels.shape[1:3] == images[0].shape[2:], path,
              "have images of the other splits' size", pixels.shape[1:])
        pixels, kinds = pixels.transpose(0, 3, 1, 2), np.unique(label)
        images += [np.ascontiguousarray(pixels[label == kind]) for kind in kinds]
        names += [f"{split}/{kind}" for kind in kinds]
    return Classes(images, [0] * len(images), names, ["all"])
