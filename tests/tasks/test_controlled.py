from collections.abc import Iterator

import pytest
import torch
from torch.func import vmap

from companion.streams import normals, torch_stream
from companion.tasks import controlled
from companion.tasks.sources import Source

SIZES = {"classes": 4, "drawings": 3, "variants": 2, "dim": 3}
SETTING = {"far": True, "contrast": 0.5, "permuted_easy": 0.5, "permuted_hard": 0.0}


@pytest.fixture(autouse=True)
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[Source]:
    """Ten classes of 6 or 8 random drawings of 8 x 8 pixels; one class of 5."""
    sizes = torch.tensor([6, 8] * 5 + [5])
    images = torch.randint(256, (int(sizes.sum()), 1, 8, 8), dtype=torch.uint8,
                           generator=torch_stream(0, "tests/controlled"))
    names = tuple(map(str, range(11)))
    found = Source("made", images, sizes.cumsum(0) - sizes, sizes, torch.zeros(11), names, ("one",),
                   {})
    monkeypatch.setattr(controlled.sources, "load", lambda name: found)
    for cached in (controlled._loaded, controlled.components):
        cached.cache_clear()
    yield found
    for cached in (controlled._loaded, controlled.components):
        cached.cache_clear()


def test_components_are_centred_and_white() -> None:
    x = controlled.components("made", 3, **SIZES)
    assert x.shape == (4, 12, 3)
    flat = x.flatten(0, 1)
    torch.testing.assert_close(flat.mean(0), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(flat.T @ flat / len(flat), torch.eye(3).double())
    assert not torch.allclose(x, controlled.components("made", 4, **SIZES))


def test_both_halves_are_of_other_drawings(monkeypatch: pytest.MonkeyPatch, source: Source) -> None:
    """Without a warp variants are the drawing itself: six of a class, each twice, in order."""
    monkeypatch.setattr(controlled, "_WARP", 0.0)
    x = controlled.components("made", 3, **SIZES)
    torch.testing.assert_close(x[:, ::2], x[:, 1::2])
    for one in x[:, ::2]:
        assert torch.pdist(one).min() > 0.01
    torch.testing.assert_close(
        controlled._varied(source.images[:5].double(), 2, torch_stream(0, "tests"))[::2],
        source.images[:5].double())


def test_variants_differ_a_little(source: Source) -> None:
    smooth = torch.linspace(0, 1, 28, dtype=torch.float64).expand(1, 1, 28, 28).mT
    varied = controlled._varied(smooth, 200, torch_stream(0, "tests"))
    inner = varied[:, 0, 10:18, 10:18] - smooth[0, 0, 10:18, 10:18]
    assert len(varied.unique(dim=0)) == 200
    # along the gradient the shift is .08 of half the side, a value of .04
    assert inner.mean((1, 2)).std().item() == pytest.approx(0.04, rel=0.2)
    assert abs(inner.mean().item()) < 0.01


def family(classes: int = 4, **changes: float) -> controlled.Landscape:
    images = torch.arange(classes * 6 * 2, dtype=torch.float64).reshape(classes, 6, 2)
    return controlled.landscape(images, **SETTING | changes)


def drawn(of: controlled.Landscape, count: int) -> dict[str, torch.Tensor]:
    shapes = controlled.shapes(len(of.images), 3, count)
    return {name: value[0] for name, value in normals([1], "tests", shapes,
                                                      dtype=torch.float64)(0).items()}


@pytest.mark.parametrize("far", [True, False])
def test_packed_hard_tasks_share_a_map(far: bool) -> None:
    of = family(far=far, permuted_easy=0.0)
    signs, contrast, group = vmap(controlled.labels, in_dims=(None, 0))(of, drawn(of, 50))
    assert 0 < group.sum() < 50
    base = torch.tensor([1.0, -1, 1, -1]).double()
    for label, one, scale in zip(signs, group, contrast, strict=True):
        assert torch.equal(label, -base if far and one else base)
        assert scale == (0.5 if one else 1)


def test_permuted_labels() -> None:
    """All of them: each class has either label as often. Half of four: a class keeps its own but
    in one task of six, where it changes places with one of the other label."""
    for share, mean in ((1.0, 0.0), (0.5, 2 / 3)):
        of = family(permuted_easy=share, fraction=0.0)
        signs, _, group = vmap(controlled.labels, in_dims=(None, 0))(of, drawn(of, 6000))
        assert not group.any()
        assert not signs.sum(1).any()
        found = (signs * of.maps[0]).mean(0)
        assert found.numpy() == pytest.approx([mean] * 4, abs=4 / 6000**0.5)
    assert set((signs != of.maps[0]).sum(1).tolist()) == {0, 2}


def test_the_share_of_hard_tasks() -> None:
    for fraction in (0.0, 0.3, 1.0):
        of = family(fraction=fraction)
        group = vmap(controlled.labels, in_dims=(None, 0))(of, drawn(of, 4000))[2]
        error = 4 * (fraction * (1 - fraction) / 4000) ** 0.5
        assert group.double().mean().item() == pytest.approx(fraction, abs=error)


def test_support_and_query_are_different_images_of_the_half() -> None:
    """Images and labels both at the task's contrast, in the order of classes."""
    of = family(fraction=1.0)
    for first in (0, 3):
        normal = {name: value[0] for name, value in drawn(of, 1).items()}
        signs, contrast, _ = controlled.labels(of, normal)
        assert contrast == 0.5
        support, query = controlled.task(of, normal | {"first": torch.tensor(first)}, 2, 1)
        assert (support[0].shape, query[0].shape) == ((8, 2), (4, 2))
        for kept, (x, y) in ((2, support), (1, query)):
            assert torch.equal(y, contrast * signs.repeat_interleave(kept))
            numbers = (x[:, 0] / contrast / 2).round().long()
            assert (numbers // 6).tolist() == sorted(list(range(4)) * kept)
            assert ((numbers % 6 >= first) & (numbers % 6 < first + 3)).all()
        every = torch.cat([support[0], query[0]])
        assert len(every.unique(dim=0)) == 12


def fleet(seeds: tuple[int, ...]) -> controlled.Fleet:
    settings = [SETTING | {"alpha": alpha} for alpha in (0.3, 0.9)]
    return controlled.controlled_fleet("made", settings, seeds, **SIZES, shots=2, queries=1)


def test_what_a_fleet_draws(check_draws) -> None:
    check_draws(fleet)
    both, one = fleet((7, 4)), fleet((4,))
    assert torch.equal(both.run(3)[0].images, one.run(0)[0].images)
    assert not torch.equal(both.run(2)[0].images, both.run(3)[0].images)
    assert both.alpha.tolist() == [0.3, 0.3, 0.9, 0.9]
    for purpose, first in (("train", 0), ("validate", 0), ("test", 6)):
        assert (both.draw(both, purpose, 5, 0)(0)["first"] == first).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"contrast": 0}, "contrast must be positive and finite"),
     ({"permuted_hard": 1.5}, r"permuted_hard must lie in \[0, 1\]"),
     ({"fraction": -0.1}, r"fraction must lie in \[0, 1\]"),
     ({"classes": 3}, "classes must be even, got 3")])
def test_bad_landscapes(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        family(**changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"classes": 11}, "classes must be at most the 10 of made that have 6 drawings, got 11"),
     ({"drawings": 0}, "drawings must be at least 1"),
     ({"dim": 17}, "dim must be at most 16, which the pixels span, got 17")])
def test_bad_images(changes: dict[str, int], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        controlled.components("made", 0, **SIZES | changes)


def test_no_image_twice() -> None:
    with pytest.raises(ValueError, match="shots, queries must be 1 or more, together at most 6"):
        controlled.controlled_fleet("made", [SETTING | {"alpha": 1}], [0], **SIZES, shots=4,
                                    queries=3)
