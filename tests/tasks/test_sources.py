"""Sources of images: glyphs, and files that are made here in the publishers' formats."""

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from companion.errors import DataError
from companion.tasks import glyphs, readers, sources
from companion.tasks.sources import Source


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    return tmp_path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(list(shape)).integers(0, 256, shape, dtype=np.uint8)


def check(source: Source) -> None:
    """What holds of every source."""
    classes = len(source.sizes)
    assert len(source.class_names) == len(source.group) == len(source.first) == classes
    assert len(set(source.class_names)) == classes
    assert source.images.dtype == torch.uint8
    assert source.images.ndim == 4
    assert int(source.sizes.sum()) == len(source.images)
    assert torch.equal(source.first, source.sizes.cumsum(0) - source.sizes)
    assert int(source.group.max()) < len(source.group_names)
    members = [set(source.splits[split].tolist()) for split in sources.SPLITS]
    assert sum(map(len, members)) == len(set.union(*members)) == classes
    assert all(members)


def test_glyphs_need_no_file(data: Path) -> None:
    source = sources.load("glyphs")
    check(source)
    assert source.images.shape[1:] == (1, glyphs.SIDE, glyphs.SIDE)
    groups = [set(source.group[source.splits[split]].tolist()) for split in sources.SPLITS]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not any(data.iterdir())


def test_glyphs_are_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources.paths, "cache", lambda: data / "cache")
    first = sources._glyphs(2)
    (kept,) = (data / "cache").iterdir()
    monkeypatch.setattr(glyphs, "draw", None)  # what is kept is not drawn again
    again = sources._glyphs(2)
    assert torch.equal(first.images, again.images)
    assert first.class_names == again.class_names
    monkeypatch.undo()
    monkeypatch.setattr(sources.paths, "cache", lambda: data / "cache")
    kept.write_bytes(kept.read_bytes()[:1000])
    assert torch.equal(sources._glyphs(2).images, first.images)  # a damaged one is
    (data / "file").write_bytes(b"")
    monkeypatch.setattr(sources.paths, "cache", lambda: data / "file" / "cache")
    again = sources._glyphs(2)  # a cache that cannot be written is no error
    assert torch.equal(again.images, first.images)


def omniglot(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """A small set in the npz format: 30 alphabets of 2 characters with 3 or 4 drawings, in mixed
    order."""
    rows = [(a, c, d) for a in range(30) for c in range(2) for d in range(3 + (a + c) % 2)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    images, labels = noise(len(rows), 32, 32), np.array(rows)
    (root / "omniglot").mkdir(parents=True)
    np.savez(root / "omniglot/omniglot_background_32x32.npz", images=images, alphabet=labels[:, 0],
             character=labels[:, 1], drawer=labels[:, 2],
             alphabet_names=np.array([f"A{i:02}" for i in range(30)]))
    return images, labels


def test_omniglot(data: Path) -> None:
    images, labels = omniglot(data)
    source = sources.load("omniglot")
    check(source)
    assert source.images.shape == (len(images), 1, 28, 28)
    assert [len(source.splits[split].unique()) for split in sources.SPLITS] == [40, 6, 14]
    i = source.class_names.index("A07/2")
    mine = images[(labels[:, 0] == 7) & (labels[:, 1] == 1)]
    assert source.sizes[i] == len(mine)
    first = source.images[source.first[i], 0].float().mean()
    assert first == pytest.approx(mine[0].mean(), abs=3)


def test_omniglot_from_the_archive(data: Path) -> None:
    (data / "omniglot").mkdir()
    with zipfile.ZipFile(data / "omniglot/images_background.zip", "w") as archive:
        for a in range(30):
            for c in (1, 2):
                for d in (1, 2):
                    buffer = io.BytesIO()
                    drawing = np.full((105, 105), 255 if d == 1 else 55, np.uint8)
                    Image.fromarray(drawing).save(buffer, "PNG")
                    archive.writestr(f"images_background/A{a:02}/character0{c}/0001_0{d}.png",
                                     buffer.getvalue())
    source = sources.load("omniglot")
    check(source)
    assert source.images.shape == (120, 1, 28, 28)
    assert source.images[0].unique().tolist() == [0]  # white paper, no ink
    assert source.images[1].unique().tolist() == [200]


def sheets(root: Path) -> None:
    (root / "cifar100").mkdir()
    for i, name in enumerate(readers.CIFAR100):
        tiles = np.broadcast_to(np.arange(600, dtype=np.uint16)[:, None, None, None] % 256,
                                (600, 32, 32, 3)).copy()
        tiles[..., 1] = i
        rows = tiles.astype(np.uint8).reshape(30, 20, 32, 32, 3)
        sheet = rows.swapaxes(1, 2).reshape(960, 640, 3)
        Image.fromarray(sheet).save(root / f"cifar100/{name}.webp", lossless=True, method=0)


@pytest.fixture(scope="module")
def sheet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cifar")
    sheets(root)
    return root


def test_cifar_sheets(sheet_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_DATA", str(sheet_folder))
    for name, sizes in (("cifar_fs", [64, 16, 20]), ("fc100", [60, 20, 20])):
        source = sources.load(name)
        check(source)
        assert source.images.shape == (60_000, 3, 32, 32)
        assert [len(source.splits[split]) for split in sources.SPLITS] == sizes
        whale = source.class_names.index("whale")
        assert source.group_names[source.group[whale]] == "aquatic_mammals"
        image = source.images[source.first[whale] + 300]
        assert image[0].unique().tolist() == [300 - 256]
        assert image[1].unique().tolist() == [whale]
    groups = [set(source.group[source.splits[split]].tolist()) for split in sources.SPLITS]
    assert sum(map(len, groups)) == 20  # of FC100, no superclass is in two splits
    held = {source.class_names[i] for i in sources.load("cifar_fs").splits["test"].tolist()}
    assert {"whale", "worm", "baby"} <= held
    assert "lamp" not in held


def test_the_binary_archive_of_cifar(data: Path) -> None:
    size = 3074
    records = np.zeros((60_000, size), np.uint8)
    records[:, 1] = np.arange(60_000) % 100
    records[:, 2:] = (np.arange(60_000) // 100 % 256)[:, None]
    with tarfile.open(data / "cifar-100-binary.tar.gz", "w:gz", compresslevel=1) as archive:
        for name, part in (("train.bin", records[:50_000]), ("test.bin", records[50_000:])):
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = part.nbytes
            archive.addfile(info, io.BytesIO(part.tobytes()))
    source = sources.load("cifar_fs")
    check(source)
    assert source.images[source.first[3] + 5].unique().tolist() == [5]


def mini(root: Path, **changed: np.ndarray) -> None:
    (root / "mini_imagenet").mkdir(exist_ok=True)
    for split, kinds in (("train", 4), ("validation", 2), ("test", 3)):
        label = np.repeat(np.arange(kinds), 5)
        arrays = {"images": noise(len(label), 12, 12, 3), "label": label}
        arrays |= changed if split == "test" else {}
        np.savez(root / f"mini_imagenet/{split}.npz", **arrays)


def test_mini_imagenet(data: Path) -> None:
    mini(data)
    source = sources.load("mini_imagenet")
    check(source)
    assert source.images.shape == (45, 3, 12, 12)
    assert source.splits["test"].tolist() == [6, 7, 8]


# damage


def test_an_unknown_source() -> None:
    with pytest.raises(ValueError, match=r"source must be one of glyphs, omniglot, .* got 'mnist'"):
        sources.load("mnist")


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "fc100", "mini_imagenet"])
def test_a_missing_file(data: Path, name: str) -> None:
    way = "put your own files" if name == "mini_imagenet" else "fetch it with `companion data"
    with pytest.raises(DataError, match=rf"{name} needs .* under {data}, got none; {way}"):
        sources.load(name)


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_cut_npz(data: Path, keep: int) -> None:
    omniglot(data)
    path = data / "omniglot/omniglot_background_32x32.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(
        DataError,
        match=r"omniglot_background_32x32.npz must be a whole npz file, got .*; remove it",
    ):
        sources.load("omniglot")


@pytest.mark.parametrize(("save", "at"), [(np.savez, 5000), (np.savez_compressed, 60)])
def test_an_altered_npz(data: Path, save: Callable[..., None], at: int) -> None:
    omniglot(data)
    path = data / "omniglot/omniglot_background_32x32.npz"
    with np.load(path) as file:
        save(path, **file)
    content = bytearray(path.read_bytes())
    content[at : at + 100] = b"\xff" * 100
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match="must be a whole npz file"):
        sources.load("omniglot")


def test_a_pickle_is_not_opened(data: Path) -> None:
    omniglot(data)
    path = data / "omniglot/omniglot_background_32x32.npz"
    np.savez(path, images=np.array([{}], dtype=object), alphabet=[0], character=[0],
             alphabet_names=["A"])
    with pytest.raises(DataError,
                       match="must be a whole npz file, got Object arrays cannot be loaded"):
        sources.load("omniglot")


def test_arrays_of_another_kind(data: Path) -> None:
    omniglot(data)
    path = data / "omniglot/omniglot_background_32x32.npz"
    np.savez(path, images=noise(3, 32, 32), alphabet=[0, 1], character=[0, 1],
             alphabet_names=["A", "B"])
    with pytest.raises(DataError, match=r"must hold uint8 images \[n, h, w\], n labels"):
        sources.load("omniglot")
    np.savez(path, images=noise(3, 32, 32))
    with pytest.raises(
        DataError,
        match=r"must hold the arrays .* got none named alphabet, alphabet_names, character",
    ):
        sources.load("omniglot")
    with path.open("wb") as file:
        np.save(file, noise(3, 32, 32))
    with pytest.raises(DataError, match="must be a whole npz file"):
        sources.load("omniglot")


def test_a_damaged_archive(data: Path) -> None:
    (data / "omniglot").mkdir()
    (data / "omniglot/images_background.zip").write_bytes(b"PK no zip")
    with pytest.raises(DataError,
                       match=r"must be Omniglot's archive, got .*; remove it and fetch it again"):
        sources.load("omniglot")
    (data / "cifar-100-binary.tar.gz").write_bytes(b"no tar")
    with pytest.raises(DataError,
                       match=r"must be CIFAR-100's binary archive, got .*; remove it"):
        sources.load("fc100")


def test_a_damaged_sheet(data: Path) -> None:
    (data / "cifar100").mkdir()
    with pytest.raises(DataError, match=r"apple.webp must be there, got none; a folder needs"):
        sources.load("cifar_fs")
    sheet = data / "cifar100/apple.webp"
    sheet.write_bytes(b"RIFF no picture")
    with pytest.raises(DataError, match=r"apple.webp must be a whole image"):
        sources.load("cifar_fs")
    Image.fromarray(noise(64, 64, 3)).save(sheet, lossless=True)
    with pytest.raises(
        DataError, match=r"apple.webp must be a sheet of shape \(960, 640, 3\), got \(64, 64, 3\)"
    ):
        sources.load("cifar_fs")


@pytest.mark.parametrize("shape", [(15, 12, 12), (15, 12, 12, 1), (14, 12, 12, 3)])
def test_mini_imagenet_of_a_wrong_shape(data: Path, shape: tuple[int, ...]) -> None:
    mini(data, images=noise(*shape))
    with pytest.raises(DataError,
                       match=r"test.npz must hold uint8 images \[n, h, w, 3\], n labels"):
        sources.load("mini_imagenet")


def test_mini_imagenet_of_two_sizes(data: Path) -> None:
    mini(data, images=noise(15, 10, 10, 3))
    with pytest.raises(
        DataError, match=r"test.npz must have images of the other splits' size, got \(10, 10, 3\)"
    ):
        sources.load("mini_imagenet")
