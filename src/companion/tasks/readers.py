"""Readers of image files under :func:`companion.paths.data`, as images in classes.

A published file is decoded only if it has the hash in files.yml; a file of the user's own within
limits of its size. Nothing is unpickled. What is missing, another file, or damaged ends in a
DataError that names file and remedy.
"""

import hashlib
import os
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch.nn import functional as F

from companion import archives, paths
from companion.errors import DataError, MissingData
from companion.tasks.glyphs import SIDE

Bytes = NDArray[np.uint8]


class Known(NamedTuple):
    """A file by the first digits of its hash, "md5" or "sha256", and its bytes where they count."""

    kind: str
    digits: str
    bytes: int | None = None


def _table(name: str) -> dict[str, Any]:
    """A table beside this module; ImportError where it is damaged, as of the module itself."""
    try:
        return dict(yaml.safe_load((files("companion.tasks") / name).read_text("utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ImportError(f"{name} cannot be read: {error}") from error


_TABLES, _FILES = _table("cifar100.yml"), _table("files.yml")
SUPERCLASSES: dict[str, list[str]] = _TABLES["superclasses"]
HELD_OUT: dict[str, dict[str, list[str]]] = _TABLES["held_out"]
CIFAR100 = sorted(name for names in SUPERCLASSES.values() for name in names)
KNOWN: dict[str, Known] = {  # by place under the data folder
    place: Known(kind, entry[kind], entry["bytes"]) for place, entry in _FILES["files"].items()
    for kind in ("md5", "sha256") if kind in entry}
KNOWN |= {f"cifar100/{name}.webp": Known("sha256", _FILES["sheets"][name]) for name in CIFAR100}
_CIFAR = ("cifar100", "cifar-100-binary.tar.gz")
PLACES = {"omniglot": ("omniglot/omniglot_background_32x32.npz", "omniglot/images_background.zip"),
          "cifar_fs": _CIFAR, "fc100": _CIFAR, "mini_imagenet": ("mini_imagenet",)}
_PUBLISHED, _TESTED = 500, 100  # images of a class of CIFAR in its two files
_TILES, _COLUMNS, _PIXELS = _PUBLISHED + _TESTED, 20, 32  # of a sheet: images, in a row, their side
_ALPHABETS, _CHARACTERS, _DRAWERS, _PAPER = 30, 964, 20, 105  # Omniglot's; the side of a drawing
_MOST = 2**30  # bytes of a user's file, unpacked: mini-ImageNet's largest takes 0.8 of it


class Classes(NamedTuple):
    """Images by class: ``images[class]`` is [image, channel, height, width] uint8. ``group``
    [class] numbers a class's alphabet or superclass, whose names are ``group_names``."""

    images: Sequence[Bytes]
    group: Sequence[int]
    names: Sequence[str]
    group_names: Sequence[str]


def _first(source: str, *candidates: str) -> str:
    """The first of the files that is there, below the data folder."""
    for candidate in candidates:
        if (paths.data() / candidate).exists():
            return candidate
    raise MissingData(f"{source} needs {' or '.join(candidates)} under {paths.data()}, got none; "
                      + ("put your own files there" if source == "mini_imagenet" else
                         f"fetch it with `companion data {source}`")
                      + ", or name the folder that has it in COMPANION_DATA")


def place(source: str) -> str:
    """Where the files of a source are that are read, below the data folder: a file, or a folder of
    them. MissingData: there is none."""
    return _first(source, *PLACES[source])


def state(source: str) -> list[tuple[str, int, int, int]]:
    """What changes when a file that the source may be read from changes: names, times, sizes."""
    found: list[Path] = []
    with _reading(paths.data(), "readable", "unlock it, or name another folder in COMPANION_DATA"):
        for candidate in PLACES.get(source, ()):
            path = paths.data() / candidate
            found += sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
        return [(str(file), of.st_mtime_ns, of.st_size, of.st_ino)
                for file in found for of in [file.stat()]]


def _need(ok: Any, path: Path, must: str, got: Any, remedy: str,
          cause: Exception | None = None) -> None:
    if not ok:
        raise DataError(f"{path} must {must}, got {got}; {remedy}") from cause


def _again(source: str) -> str:
    return f"remove it and fetch it again with `companion data {source}`"


@contextmanager
def _reading(path: Path, kind: str, remedy: str) -> Iterator[None]:
    """Turn whatever a damaged file raises into a DataError."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:  # zlib's, zipfile's, tarfile's, PIL's, even tokenize's own
        _need(False, path, f"be {kind}", error, remedy, error)


@contextmanager
def _known(place: str, kind: str, remedy: str) -> Iterator[IO[bytes]]:
    """The file at ``place`` below the data folder, open at its beginning. DataError unless it has
    the hash on record: before anything is decoded, and whatever is wrong with it."""
    path, known = paths.data() / place, KNOWN[place]
    with _reading(path, kind, remedy), path.open("rb") as file:
        must = f"be the file of {known.kind.upper()} {known.digits}"
        if known.bytes is not None:
            size = os.fstat(file.fileno()).st_size
            _need(size == known.bytes, path, f"{must}, {known.bytes:,} bytes", f"{size:,} bytes",
                  remedy)
        found = hashlib.file_digest(file, known.kind).hexdigest()[:len(known.digits)]
        _need(found == known.digits, path, must, found, remedy)
        file.seek(0)
        yield file


def arrays(file: IO[bytes], path: Path, *names: str, most: int, remedy: str
           ) -> list[NDArray[Any]]:
    """The arrays of these names in an npz file, of at most ``most`` bytes."""
    with _reading(path, f"a whole npz file of at most {archives.mebibytes(most)}", remedy):
        held = archives.read(file, names, most=most)
    missing = ", ".join(sorted(set(names) - set(held)))
    _need(not missing, path, f"hold the arrays {', '.join(names)}", f"none named {missing}", remedy)
    return list(held.values())


def _need_labelled(path: Path, remedy: str, images: NDArray[Any], *labels: NDArray[Any],
                   colours: tuple[int, ...] = ()) -> None:
    """DataError unless ``images`` are uint8 [n, h, w, *colours] and each of ``labels`` is [n], of
    whole numbers or words."""
    ok = (images.dtype == np.uint8 and images.ndim >= 3 and images.shape[3:] == colours
          and images.size > 0 and all(label.shape == images.shape[:1] and label.dtype.kind in "iuUS"
                                      for label in labels))
    _need(ok, path, f"hold uint8 images [{', '.join(map(str, ('n, h, w', *colours)))}], n labels",
          f"{images.dtype} {images.shape} and "
          f"{', '.join(f'{label.dtype} {label.shape}' for label in labels)}", remedy)


def omniglot() -> Classes:
    """Omniglot's background set: 30 alphabets, 964 characters of up to 20 drawings each, one
    channel of 28 x 28, ink 255. From omniglot/omniglot_background_32x32.npz (images [n, h, w],
    alphabet [n], character [n], alphabet_names), or from the publisher's images_background.zip
    beside it."""
    at, remedy = place("omniglot"), _again("omniglot")
    path = paths.data() / at
    packed = path.suffix == ".zip"
    with _known(at, "Omniglot's archive" if packed else "a whole npz file", remedy) as file:
        images, alphabet, character, names = (_omniglot_zip(file) if packed else arrays(
            file, path, "images", "alphabet", "character", "alphabet_names", most=2**26,
            remedy=remedy))
    _need_labelled(path, remedy, images, alphabet, character)
    keys, counts = np.unique(np.stack([alphabet, character], axis=1), axis=0, return_counts=True)
    _need(len(names) == _ALPHABETS and set(keys[:, 0].tolist()) == set(range(_ALPHABETS))
          and len(keys) == _CHARACTERS and counts.max() <= _DRAWERS, path,
          f"hold {_ALPHABETS} named alphabets of {_CHARACTERS} characters, at most {_DRAWERS} "
          "drawings each", f"{len(names)} names, {len(set(keys[:, 0].tolist()))} alphabets, "
          f"{len(keys)} characters, {counts.max()} drawings", remedy)
    small = F.interpolate(torch.from_numpy(images)[:, None].float(), size=(SIDE, SIDE),
                          mode="bilinear", antialias=True).round().to(torch.uint8).numpy()
    return Classes([small[(alphabet == a) & (character == c)] for a, c in keys],
                   keys[:, 0].tolist(), [f"{names[a]}/{c + 1}" for a, c in keys], names.tolist())


def _omniglot_zip(file: IO[bytes]) -> list[NDArray[Any]]:
    """The same arrays from drawings ALPHABET/characterNN/NNNN_NN.png, ink black on white."""
    from PIL import Image

    images, labels = [], []
    with zipfile.ZipFile(file) as archive:
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        if len(names) > _CHARACTERS * _DRAWERS:
            raise ValueError(f"{len(names)} drawings")
        for name in names:
            *_, alphabet, character, _ = name.split("/")
            with archive.open(name) as member, Image.open(member, formats=["PNG"]) as image:
                if image.size != (_PAPER, _PAPER):  # which its header states, before it is decoded
                    raise ValueError(f"{name} of {image.width} x {image.height} pixels")
                images.append(255 - np.asarray(image.convert("L"), dtype=np.uint8))
            labels.append((alphabet, int(character.removeprefix("character")) - 1))
        stacked = np.stack(images)
    alphabets, numbers = np.unique([alphabet for alphabet, _ in labels], return_inverse=True)
    return [stacked, numbers, np.array([character for _, character in labels]), alphabets]


def cifar(source: str) -> Classes:
    """CIFAR-100, 600 images of 3 x 32 x 32 a class, for the ``source`` that an error names. From a
    folder cifar100 of one sheet CLASS.webp each, or from the publisher's binary archive."""
    at = place(source)
    images = ([_sheet(f"{at}/{name}.webp", source) for name in CIFAR100]
              if (paths.data() / at).is_dir() else _cifar_binary(at, source))
    group_of = {name: i for i, names in enumerate(SUPERCLASSES.values()) for name in names}
    return Classes(images, [group_of[name] for name in CIFAR100], CIFAR100, list(SUPERCLASSES))


def _sheet(place: str, source: str) -> Bytes:
    """The images of a class [600, 3, 32, 32], from a sheet of 30 rows of 20 tiles."""
    from PIL import Image

    path, rows = paths.data() / place, _TILES // _COLUMNS
    remedy = f"restore it, or remove the folder and fetch with `companion data {source}`"
    if not path.exists():
        raise DataError(f"{path} must be there, got none; a folder needs a sheet for each class: "
                        + remedy)
    with (_known(place, "a whole image", remedy) as file,
          Image.open(file, formats=["WEBP"]) as image):
        want = (_COLUMNS * _PIXELS, rows * _PIXELS)
        _need(image.size == want, path, f"be a sheet of {want[0]} x {want[1]} pixels",
              f"{image.width} x {image.height}", remedy)  # as the header states: not yet decoded
        pixels = np.asarray(image.convert("RGB"))
    tiles = pixels.reshape(rows, _PIXELS, _COLUMNS, _PIXELS, 3).transpose(0, 2, 4, 1, 3)
    return tiles.reshape(_TILES, 3, _PIXELS, _PIXELS)


def _cifar_binary(place: str, source: str) -> list[Bytes]:
    """The archive's records: a coarse label, a fine label, and 3072 bytes; train before test."""
    size, path, remedy = 2 + 3 * _PIXELS**2, paths.data() / place, _again(source)
    parts = []
    with (_known(place, "CIFAR-100's binary archive", remedy) as file,
          tarfile.open(fileobj=file, mode="r:gz") as archive):
        for name, each in (("train.bin", _PUBLISHED), ("test.bin", _TESTED)):
            member, want = archive.getmember(f"cifar-100-binary/{name}"), each * len(CIFAR100)
            _need(member.size == want * size, path, f"hold {want:,} records of {size} bytes in "
                  f"{name}", f"{member.size:,} bytes", remedy)
            unpacked = archive.extractfile(member)
            records = np.frombuffer(unpacked.read() if unpacked else b"", dtype=np.uint8)
            parts.append(records.reshape(want, size))
            counts = np.bincount(parts[-1][:, 1], minlength=len(CIFAR100))
            _need((counts == each).all(), path, f"hold {each} images of every class in {name}",
                  f"{counts.min()} to {counts.max()}", remedy)
    records = np.concatenate(parts)
    images = records[:, 2:].reshape(-1, 3, _PIXELS, _PIXELS)
    return [images[records[:, 1] == label] for label in range(len(CIFAR100))]


def mini_imagenet(splits: Sequence[str]) -> Classes:
    """Files of the user's own, one of each of ``splits``; a class is named SPLIT/LABEL. From
    mini_imagenet/SPLIT.npz: images [n, h, w, 3], of one size in all, and label [n], whole numbers
    within the split or names, which are of one split each."""
    images, names, seen = list[Bytes](), list[str](), set[str]()
    remedy = "make it anew in this form"
    for split in splits:
        path = paths.data() / _first("mini_imagenet", f"mini_imagenet/{split}.npz")
        with _reading(path, "a whole npz file", remedy), path.open("rb") as file:
            pixels, label = arrays(file, path, "images", "label", most=_MOST, remedy=remedy)
        _need_labelled(path, remedy, pixels, label, colours=(3,))
        _need(not images or pixels.shape[1:3] == images[0].shape[2:], path,
              "have images of the other splits' size", pixels.shape[1:], remedy)
        pixels, kinds = pixels.transpose(0, 3, 1, 2), np.unique(label)
        if label.dtype.kind in "US":
            shared = seen.intersection(map(str, kinds))
            _need(not shared, path, "have classes of its own", f"{', '.join(sorted(shared))} of "
                  "another split", remedy)
            seen.update(map(str, kinds))
        images += [np.ascontiguousarray(pixels[label == kind]) for kind in kinds]
        names += [f"{split}/{kind}" for kind in kinds]
    return Classes(images, [0] * len(images), names, ["all"])
