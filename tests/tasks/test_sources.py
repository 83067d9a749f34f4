"""Sources of images: glyphs, and files that are made here in the publishers' formats."""

import hashlib
import io
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from companion import archives, paths, provenance
from companion.errors import DataError
from companion.tasks import glyphs, readers, sources
from companion.tasks.readers import Known
from companion.tasks.sources import Source

NPZ, ZIP = readers.PLACES["omniglot"]
TAR = "cifar-100-binary.tar.gz"


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Takes files made here for the published ones: so their readers get to see them."""
    def declare(*places: str) -> None:
        for place in places:
            content = (paths.data() / place).read_bytes()
            monkeypatch.setitem(readers.KNOWN, place, Known(
                "sha256", hashlib.sha256(content).hexdigest(), len(content)))

    return declare


Publish = Callable[..., None]


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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_glyphs_are_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sources._glyphs(2)
    with monkeypatch.context() as without:
        without.setattr(glyphs, "draw", None)  # what is kept is not drawn again
        again = sources._glyphs(2)
    assert torch.equal(first.images, again.images)
    assert first.class_names == again.class_names
    cache.with_name("file").write_bytes(b"")
    monkeypatch.setenv("COMPANION_CACHE", str(cache.with_name("file") / "cache"))
    again = sources._glyphs(2)  # a cache that cannot be written is no error
    assert torch.equal(again.images, first.images)


@pytest.mark.parametrize("way", ["cut", "noise", "names", "unsigned", "shape"])
def test_a_damaged_or_altered_cache_is_drawn_again(cache: Path, way: str) -> None:
    first = sources._glyphs(1)
    (kept,) = cache.iterdir()
    whole = kept.read_bytes()
    with np.load(kept) as file:
        arrays = dict(file)
    if way == "cut":
        kept.write_bytes(whole[:1000])
    else:
        arrays |= {"noise": {"images": noise(*arrays["images"].shape)},
                   "names": {"names": arrays["names"][::-1]},
                   "shape": {"images": arrays["images"].reshape(-1, 1, 784, 1)},
                   "unsigned": {"images": noise(*arrays["images"].shape)}}[way]
        if way == "unsigned":
            del arrays["sha256"]
        np.savez(kept, **arrays)
    again = sources._glyphs(1)
    assert torch.equal(again.images, first.images)
    assert again.class_names == first.class_names
    assert kept.read_bytes() == whole


def test_drawings_are_kept_by_what_draws_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another Pillow or another kind of processor draws a few pixels otherwise."""
    import PIL

    versions = [glyphs.version()]
    for of, name in ((PIL, "__version__"), (torch.backends.cpu, "get_cpu_capability")):
        with monkeypatch.context() as other:
            other.setattr(of, name, "1" if name == "__version__" else lambda: "OTHER")
            glyphs.version.cache_clear()
            versions.append(glyphs.version())
    glyphs.version.cache_clear()
    assert len(set(versions)) == 3
    assert glyphs.version() == versions[0]


def omniglot(root: Path, characters: int = 964) -> tuple[np.ndarray, np.ndarray]:
    """A small set in the npz format: 964 characters of 30 alphabets with 1 or 2 drawings, in mixed
    order."""
    rows = [(i % 30, i // 30, d) for i in range(characters) for d in range(1 + i % 2)]
    rows = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    images, labels = noise(len(rows), 32, 32), np.array(rows)
    (root / "omniglot").mkdir(parents=True, exist_ok=True)
    np.savez(root / NPZ, images=images, alphabet=labels[:, 0],
             character=labels[:, 1], drawer=labels[:, 2],
             alphabet_names=np.array([f"A{i:02}" for i in range(30)]))
    return images, labels


def test_omniglot(data: Path, publish: Publish) -> None:
    images, labels = omniglot(data)
    publish(NPZ)
    source = sources.load("omniglot")
    check(source)
    assert source.images.shape == (len(images), 1, 28, 28)
    groups = [len(source.group[source.splits[split]].unique()) for split in sources.SPLITS]
    assert groups == [20, 3, 7]
    i = source.class_names.index("A07/2")
    mine = images[(labels[:, 0] == 7) & (labels[:, 1] == 1)]
    assert source.sizes[i] == len(mine) == 2
    first = source.images[source.first[i], 0].float().mean()
    assert first == pytest.approx(mine[0].mean(), abs=3)


def archive(path: Path, sides: tuple[int, ...] = (105,), characters: int = 964) -> None:
    """Drawings in the form of the publisher's archive: a blank and a grey one of each character."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as to:
        for i in range(characters):
            for d in (1, 2):
                buffer = io.BytesIO()
                side = sides[i % len(sides)]
                Image.new("L", (side, side), 255 if d == 1 else 55).save(buffer, "PNG")
                to.writestr(f"images_background/A{i % 30:02}/character{i // 30 + 1:02}/"
                            f"0001_0{d}.png", buffer.getvalue())


def test_omniglot_from_the_archive(data: Path, publish: Publish) -> None:
    archive(data / ZIP)
    publish(ZIP)
    source = sources.load("omniglot")
    check(source)
    assert source.images.shape == (2 * 964, 1, 28, 28)
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


@pytest.fixture
def sheet_data(sheet_folder: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_DATA", str(sheet_folder))
    publish(*(f"cifar100/{name}.webp" for name in readers.CIFAR100))
    return sheet_folder


def test_cifar_sheets(sheet_data: Path) -> None:
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


def binary(path: Path, labels: np.ndarray | None = None) -> None:
    """CIFAR's archive of images of one grey each."""
    records = np.zeros((60_000, 3074), np.uint8)
    records[:, 1] = np.arange(60_000) % 100 if labels is None else labels
    records[:, 2:] = (np.arange(60_000) // 100 % 256)[:, None]
    with tarfile.open(path, "w:gz", compresslevel=1) as to:
        for name, part in (("train.bin", records[:50_000]), ("test.bin", records[50_000:])):
            info = tarfile.TarInfo(f"cifar-100-binary/{name}")
            info.size = part.nbytes
            to.addfile(info, io.BytesIO(part.tobytes()))


def test_the_binary_archive_of_cifar(data: Path, publish: Publish) -> None:
    binary(data / TAR)
    publish(TAR)
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


def test_another_omniglot_is_refused(data: Path) -> None:
    """Whole and well formed, but not the file that the companion knows."""
    omniglot(data)
    with pytest.raises(DataError, match=r"background_32x32.npz must be the file of SHA256 6c855b0.*"
                       r" 3,379,108 bytes, got .* bytes; remove it and fetch it again with "
                       "`companion data omniglot`"):
        sources.load("omniglot")
    (data / NPZ).unlink()
    archive(data / ZIP, characters=1)  # Omniglot of one character
    with pytest.raises(DataError, match=r"background.zip must be the file of MD5 68d2efa"):
        sources.load("omniglot")


def test_another_cifar_is_refused(sheet_folder: Path, data: Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    binary(data / TAR)  # a grey one
    for name in ("cifar_fs", "fc100"):
        with pytest.raises(DataError, match="must be the file of MD5 03b5dce01913d631647c71ecec9e9"
                           rf"cb8, 168,513,733 bytes, got .* with `companion data {name}`"):
            sources.load(name)
    monkeypatch.setenv("COMPANION_DATA", str(sheet_folder))
    with pytest.raises(DataError, match=r"apple.webp must be the file of SHA256 ea3cdd3c961ccf44, "
                       r"got [0-9a-f]{16}; restore it, or remove the folder and fetch with"):
        sources.load("cifar_fs")


def test_of_one_altered_bit_the_hash_tells(data: Path, publish: Publish) -> None:
    omniglot(data)
    publish(NPZ)
    sources.load("omniglot")
    content = bytearray((data / NPZ).read_bytes())
    content[2000] ^= 1
    (data / NPZ).write_bytes(content)
    with pytest.raises(DataError, match=r"must be the file of SHA256 .*, got [0-9a-f]{64};"):
        sources.load("omniglot")


def test_known_files_are_named_in_full() -> None:
    for place, known in readers.KNOWN.items():
        digits = 16 if place.endswith(".webp") else {"md5": 32, "sha256": 64}[known.kind]
        assert len(known.digits) == digits
        assert int(known.digits, 16)
        assert place.endswith(".webp") or known.bytes > 10**6
    assert len({known.digits for known in readers.KNOWN.values()}) == len(readers.KNOWN) == 103


@pytest.mark.parametrize("name", ["omniglot", "cifar_fs", "fc100"])
def test_the_files_of_this_machine(name: str) -> None:
    """Where they are there: what is read of them is what is known of the data set."""
    try:
        readers.place(name)
    except DataError:
        pytest.skip(f"no files of {name}")
    source = sources.load(name)
    check(source)
    if name == "omniglot":
        assert len(source.sizes) == 964
        assert source.sizes.max() == 20
        assert source.images.shape[1:] == (1, 28, 28)
    else:
        assert source.sizes.tolist() == [600] * 100
        assert source.images.shape[1:] == (3, 32, 32)
        assert (source.images[:, 0] != source.images[:, 2]).any((1, 2)).float().mean() > 0.9


# fingerprints, and what is kept of a file


def made(**changes: object) -> Source:
    images = torch.from_numpy(noise(6, 1, 4, 4))
    source = Source("made", images, torch.tensor([0, 2, 4]), torch.tensor([2, 2, 2]),
                    torch.tensor([0, 0, 1]), ("a", "b", "c"), ("x", "y"),
                    {split: torch.tensor([i]) for i, split in enumerate(sources.SPLITS)})
    return source._replace(**changes)


def test_a_fingerprint_is_of_all_that_a_source_is() -> None:
    source = made()
    assert sources.fingerprint(source) == sources.fingerprint(made())
    assert len(sources.fingerprint(source)) == 64
    pixel = source.images.clone()
    pixel[5, 0, 3, 3] += 1
    others = [made(images=pixel), made(images=source.images.reshape(6, 1, 2, 8)),
              made(name="other"), made(class_names=("a", "b", "d")), made(group_names=("x", "z")),
              made(group=torch.tensor([0, 1, 1])), made(sizes=torch.tensor([2, 3, 1])),
              made(splits={**source.splits, "test": torch.tensor([0])})]
    assert len({sources.fingerprint(other) for other in [source, *others]}) == 1 + len(others)
    turned = made(images=source.images.mT.contiguous().mT)  # the same pixels, laid out otherwise
    assert sources.fingerprint(turned) == sources.fingerprint(source)


def test_what_is_loaded_is_noted_and_kept(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mini(data)
    noted: list[tuple[str, str]] = []
    monkeypatch.setattr(provenance, "note", lambda *facts: noted.append(facts))
    first = sources.load("mini_imagenet")
    assert sources.load("mini_imagenet") is first
    assert noted == [("mini_imagenet", sources.fingerprint(first))] * 2
    mini(data, images=noise(15, 12, 12, 3)[::-1])
    again = sources.load("mini_imagenet")
    assert not torch.equal(again.images, first.images)
    assert noted[2] == ("mini_imagenet", sources.fingerprint(again)) != noted[0]


# files that are known and cannot be read: say, with another Pillow


@pytest.mark.parametrize("keep", [0, 100, 3000])
def test_a_cut_npz(data: Path, publish: Publish, keep: int) -> None:
    omniglot(data)
    path = data / NPZ
    path.write_bytes(path.read_bytes()[:keep])
    publish(NPZ)
    with pytest.raises(
        DataError,
        match=r"omniglot_background_32x32.npz must be a whole npz file of .*, got .*; remove it",
    ):
        sources.load("omniglot")


@pytest.mark.parametrize(("save", "at"), [(np.savez, 5000), (np.savez_compressed, 60)])
def test_an_altered_npz(data: Path, publish: Publish, save: Callable[..., None], at: int) -> None:
    omniglot(data)
    path = data / NPZ
    with np.load(path) as file:
        save(path, **file)
    content = bytearray(path.read_bytes())
    content[at : at + 100] = b"\xff" * 100
    path.write_bytes(bytes(content))
    publish(NPZ)
    with pytest.raises(DataError, match="must be a whole npz file"):
        sources.load("omniglot")


def test_a_pickle_is_not_opened(data: Path, publish: Publish) -> None:
    omniglot(data)
    np.savez(data / NPZ, images=np.array([{}], dtype=object), alphabet=[0], character=[0],
             alphabet_names=["A"])
    publish(NPZ)
    with pytest.raises(DataError,
                       match=r"must be a whole npz file .*, got Object arrays cannot be loaded"):
        sources.load("omniglot")


def test_arrays_of_another_kind(data: Path, publish: Publish) -> None:
    omniglot(data)
    path = data / NPZ
    np.savez(path, images=noise(3, 32, 32), alphabet=[0, 1], character=[0, 1],
             alphabet_names=["A", "B"])
    publish(NPZ)
    with pytest.raises(DataError, match=r"must hold uint8 images \[n, h, w\], n labels"):
        sources.load("omniglot")
    np.savez(path, images=noise(3, 32, 32))
    publish(NPZ)
    with pytest.raises(
        DataError,
        match=r"must hold the arrays .* got none named alphabet, alphabet_names, character",
    ):
        sources.load("omniglot")
    with path.open("wb") as file:
        np.save(file, noise(3, 32, 32))
    publish(NPZ)
    with pytest.raises(DataError, match="must be a whole npz file"):
        sources.load("omniglot")


def test_omniglot_of_too_few_classes(data: Path, publish: Publish) -> None:
    omniglot(data, characters=963)
    publish(NPZ)
    with pytest.raises(DataError, match="must hold 30 named alphabets of 964 characters, at most "
                       "20 drawings each, got 30 names, 30 alphabets, 963 characters, 2 drawings"):
        sources.load("omniglot")


@pytest.mark.parametrize(("labels", "said"), [
    (np.zeros(60_000), "0 to 50000"),  # 99 empty classes
    (np.where(np.arange(60_000) == 0, 1, np.arange(60_000) % 100), "499 to 501")])
def test_cifar_of_uneven_classes(data: Path, publish: Publish, labels: np.ndarray, said: str
                                 ) -> None:
    binary(data / TAR, labels)
    publish(TAR)
    with pytest.raises(DataError, match=f"hold 500 images of every class in train.bin, got {said}"):
        sources.load("cifar_fs")


def test_a_damaged_archive(data: Path, publish: Publish) -> None:
    (data / "omniglot").mkdir()
    (data / ZIP).write_bytes(b"PK no zip")
    publish(ZIP)
    with pytest.raises(DataError,
                       match=r"must be Omniglot's archive, got .*; remove it and fetch it again"):
        sources.load("omniglot")
    (data / TAR).write_bytes(b"no tar")
    publish(TAR)
    with pytest.raises(DataError,
                       match=r"must be CIFAR-100's binary archive, got .*; remove it"):
        sources.load("fc100")


def test_a_damaged_sheet(data: Path, publish: Publish) -> None:
    (data / "cifar100").mkdir()
    with pytest.raises(DataError, match=r"apple.webp must be there, got none; a folder needs"):
        sources.load("cifar_fs")
    sheet = data / "cifar100/apple.webp"
    sheet.write_bytes(b"RIFF no picture")
    publish("cifar100/apple.webp")
    with pytest.raises(DataError, match=r"apple.webp must be a whole image"):
        sources.load("cifar_fs")
    Image.fromarray(noise(64, 64, 3)).save(sheet, lossless=True)
    publish("cifar100/apple.webp")
    with pytest.raises(DataError, match=r"apple.webp must be a sheet of 640 x 960 pixels, got 64 x "
                       "64; restore it"):
        sources.load("cifar_fs")


# sizes: nothing is unpacked or decoded before it is known to fit


@contextmanager
def within(mebibytes: int) -> Iterator[None]:
    """Fails where more memory than that is taken at any time: by Python or NumPy."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < mebibytes * 2**20
    finally:
        tracemalloc.stop()


def test_a_large_picture_is_not_decoded(data: Path, publish: Publish,
                                        monkeypatch: pytest.MonkeyPatch) -> None:
    archive(data / ZIP, sides=(105, 4000), characters=4)
    publish(ZIP)
    decoded, load = [], ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load",
                        lambda image: (decoded.append(image.size), load(image))[1])
    with pytest.raises(DataError, match=r"0001_01.png of 4000 x 4000 pixels; remove it and"):
        sources.load("omniglot")
    assert set(decoded) == {(105, 105)}


def bomb(path: Path, shape: tuple[int, ...], stated: tuple[int, ...] | None = None) -> None:
    """An npz of zero images, and as many labels; its header may state another shape."""
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as to:
        for name, of, says in (("images", shape, stated or shape), ("label", shape[:1], shape[:1])):
            with to.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "|u1", "fortran_order": False, "shape": says})
                file.write(bytes(int(np.prod(of))))


def test_an_npz_that_unpacks_to_more_than_a_source_holds(data: Path,
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_MOST", 2**24)
    mini(data)
    path = data / "mini_imagenet/train.npz"
    bomb(path, (7000, 30, 30, 3))
    assert path.stat().st_size < 50_000
    with within(1), pytest.raises(DataError, match=r"train.npz must be a whole npz file of at most "
                                  "16 MiB, got arrays that take 18 MiB; make it anew"):
        sources.load("mini_imagenet")
    bomb(path, (5, 30, 30, 3), stated=(10**4, 30, 30, 3))
    with within(1), pytest.raises(DataError, match=r"got images.npy of 13500 bytes for uint8 "
                                  r"\(10000, 30, 30, 3\); make it anew"):
        sources.load("mini_imagenet")


def test_an_archive_of_more_than_cifar(data: Path, publish: Publish) -> None:
    with tarfile.open(data / TAR, "w:gz", compresslevel=1) as to:
        info = tarfile.TarInfo("cifar-100-binary/train.bin")
        info.size = 2**27 + 2**26
        to.addfile(info, io.BytesIO(bytes(info.size)))
    publish(TAR)
    with within(100), pytest.raises(DataError, match=r"must hold 50,000 records of 3074 bytes in "
                                    "train.bin, got 201,326,592 bytes"):
        sources.load("cifar_fs")


def test_too_many_drawings(data: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "_DRAWERS", 1)
    archive(data / ZIP)
    publish(ZIP)
    with pytest.raises(DataError, match="must be Omniglot's archive, got 1928 drawings; remove it"):
        sources.load("omniglot")


def test_other_ways_to_compress(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as to:
        to.writestr("x.npy", b"")
    with (tmp_path / "a.npz").open("rb") as file:
        assert archives.sizes(file) == {"x": 0}
        with pytest.raises(ValueError, match=r"x.npy compressed by method 14"):
            archives.read(file, ["x"], most=100)


# files of the user's own


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


@pytest.mark.parametrize("label", [np.array([0.0, np.nan] * 8)[:15], np.array([True] * 15)])
def test_labels_that_name_no_class(data: Path, label: np.ndarray) -> None:
    mini(data, label=label)
    with pytest.raises(DataError, match=rf"test.npz must hold .* n labels, got .*{label.dtype}"):
        sources.load("mini_imagenet")


def test_a_class_is_in_one_split(data: Path) -> None:
    mini(data, label=np.repeat(["n01", "n02", "n03"], 5))
    sources.load("mini_imagenet")
    path = data / "mini_imagenet/train.npz"
    np.savez(path, images=noise(4, 12, 12, 3), label=["n03", "n04"] * 2)
    with pytest.raises(DataError, match=r"test.npz must have classes of its own, got n03 of "
                       "another split; make it anew"):
        sources.load("mini_imagenet")
