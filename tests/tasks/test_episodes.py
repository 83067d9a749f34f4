"""Episodes: which classes and images they hold, and that nothing leaks."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from companion.streams import torch_stream
from companion.tasks import episodes
from companion.tasks.episodes import Setting
from companion.tasks.sources import SPLITS, Source, within_groups

CLASSES, GROUPS = 24, 4


@pytest.fixture(scope="module")
def source() -> Source:
    """Every image tells its class and its number in it: channels (class, number), 1 x 1."""
    count = torch.tensor([8 + c % 3 for c in range(CLASSES)])
    images = [torch.tensor([[c, i]]) for c in range(CLASSES) for i in range(int(count[c]))]
    stacked = torch.stack(images).reshape(-1, 2, 1, 1).to(torch.uint8)
    group = torch.arange(CLASSES) % GROUPS
    splits = {"train": torch.arange(16), "validation": torch.arange(16, 20),
              "test": torch.arange(20, 24)}
    names = tuple(map(str, range(CLASSES)))
    return Source("told", stacked, count.cumsum(0) - count, count, group, names, tuple("abcd"),
                  splits)


def told(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Class and number of every image, [episode, image]."""
    values = ((x + 0.5) * 255).round().long()[..., 0, 0]
    return values[..., 0], values[..., 1]


def draw(source: Source, count: int = 2000, split: str = "train", seed: int = 0, **options):
    of = episodes.pool(source, split, groups=options.pop("groups", None))
    sizes = {"ways": 3, "shots": 2, "queries": 4} | options
    return episodes.sample(of, torch_stream(seed, "tests/episodes"), episodes=count, **sizes)


def test_shapes_and_labels(source: Source) -> None:
    (x, y), (query, query_y) = draw(source, 7)
    assert x.shape == (7, 6, 2, 1, 1)
    assert query.shape == (7, 12, 2, 1, 1)
    assert y.tolist() == [[0, 0, 1, 1, 2, 2]] * 7
    assert query_y[0].tolist() == [0] * 4 + [1] * 4 + [2] * 4


def test_ten_thousand_episodes_leak_nothing(source: Source) -> None:
    """No image in support and query, no image twice, no class under two labels, none of another
    split."""
    for split in ("train", "test"):
        (x, y), (query, query_y) = draw(source, 10_000, split, queries=6)
        kind, number = (torch.cat(parts, 1) for parts in zip(told(x), told(query), strict=True))
        label = torch.cat([y, query_y], 1)
        image = (kind * 100 + number).sort(1).values
        assert (image[:, 1:] > image[:, :-1]).all()
        own = torch.stack([kind[label == k].reshape(10_000, -1) for k in range(3)], 1)
        assert (own == own[..., :1]).all()
        distinct = own[..., 0].sort(1).values
        assert (distinct[:, 1:] > distinct[:, :-1]).all()
        assert set(kind.unique().tolist()) == set(source.splits[split].tolist())


def test_classes_images_and_labels_are_even(source: Source) -> None:
    (x, y), (query, _) = draw(source, 20_000)
    kind, _ = told(x)
    for label in range(3):
        share = torch.bincount(kind[y == label], minlength=16)[:16] / (2 * 20_000)
        assert (share - 1 / 16).abs().max() < 4.5 * (15 / 16**2 / 20_000) ** 0.5
    query_kind, number = told(query)
    for c in (0, 2):  # classes of 8 and of 10 images
        share = torch.bincount(number[query_kind == c]).double()
        assert len(share) == source.sizes[c]
        assert (share / share.mean() - 1).abs().max() < 0.1


def test_hard_episodes_come_from_one_group(source: Source) -> None:
    for fraction in (0.0, 0.4, 1.0):
        (x, _), _ = draw(source, 4000, hard_fraction=fraction)
        group = told(x)[0] % GROUPS
        alone = (group == group[:, :1]).all(1)
        by_chance = 3 * 2 / (15 * 14)
        expected = fraction + (1 - fraction) * by_chance
        assert abs(alone.double().mean() - expected) < 4.5 * (0.25 / 4000) ** 0.5
        if fraction == 1:
            assert alone.all()
            assert torch.bincount(group[:, 0]).min() > 800


def test_packed_tasks_come_from_few_groups(source: Source) -> None:
    (x, _), _ = draw(source, 500, groups=[1, 3], hard_fraction=1.0)
    assert set((told(x)[0] % GROUPS).unique().tolist()) == {1, 3}


def test_hard_episodes_from_named_groups_alone(source: Source) -> None:
    (x, _), _ = draw(source, 2000, hard_groups=[2, 0], hard_fraction=0.5)
    group = told(x)[0] % GROUPS
    alone = (group == group[:, :1]).all(1)
    assert set(group.unique().tolist()) == set(range(GROUPS))  # the easy ones come from all
    share = torch.bincount(group[alone, 0], minlength=GROUPS) / 2000
    by_chance = 0.5 * 3 * 2 / (15 * 14) / GROUPS
    expected = torch.tensor([0.25, 0.0, 0.25, 0.0]) + by_chance
    assert (share - expected).abs().max() < 4.5 * (0.2 / 2000) ** 0.5


def test_global_labels_are_numbers_of_the_pool(source: Source) -> None:
    (x, y), (query, query_y) = draw(source, 200, split="test", global_labels=True)
    assert torch.equal(source.splits["test"][y], told(x)[0])
    assert torch.equal(source.splits["test"][query_y], told(query)[0])
    plain = draw(source, 200, split="test")
    assert torch.equal(plain.support[0], x)


def test_classes_split_within_groups(source: Source) -> None:
    found = within_groups(source)
    everything = torch.cat([found.splits[split] for split in SPLITS])
    assert everything.sort().values.tolist() == list(range(CLASSES))
    for split, each in zip(SPLITS, (3, 1, 2), strict=True):  # of six classes in a group
        assert torch.bincount(source.group[found.splits[split]]).tolist() == [each] * GROUPS
    assert all(
        torch.equal(found.splits[split], within_groups(source).splits[split]) for split in SPLITS
    )
    for shares in ((0.5, 0.5, 0.0), (0.5, 0.4, 0.2), (0.5, 0.5)):
        with pytest.raises(ValueError, match="shares must be three positive shares"):
            within_groups(source, shares)


def test_only_groups_with_enough_classes_are_hard(source: Source) -> None:
    few = source._replace(group=torch.tensor([0] * 14 + [1] * 2 + [2] * 8))
    of = episodes.pool(few, "train")
    assert episodes.fitting_groups(of, 3).tolist() == [0]
    (x, _), _ = draw(few, 200, hard_fraction=1.0)
    assert told(x)[0].max() < 14


def test_a_seed_fixes_them(source: Source) -> None:
    first, again, other = draw(source, 5), draw(source, 5), draw(source, 5, seed=1)
    assert torch.equal(first.query[0], again.query[0])
    assert not torch.equal(first.query[0], other.query[0])


@pytest.mark.parametrize(
    ("options", "said"),
    [({"ways": 17}, "ways must be at most the 16 classes of the pool, got 17"),
     ({"queries": 7},
      r"shots \+ queries must be at most the 8 images of the smallest class, got 9"),
     ({"shots": 0}, "shots must be at least 1"),
     ({"hard_fraction": 1.5}, r"hard_fraction must lie in \[0, 1\]"),
     ({"ways": 5, "hard_fraction": 0.5}, "ways must be at most the classes of some group, got 5"),
     ({"split": "all"}, "split must be one of train, validation, test, got 'all'"),
     ({"hard_fraction": 0.5, "hard_groups": [1, 9]},
      r"hard_groups must have 3 classes each, got \[9\]"),
     ({"groups": [9]}, "groups must have a class in the train split")],
)
def test_bad_input(source: Source, options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        draw(source, 5, **options)


@pytest.fixture
def setting(source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(episodes.sources, "load", lambda name: source)
    episodes.pools.cache_clear()
    yield Setting("told", ways=1, shots=2, alpha=0.1, queries=3, within=True)
    episodes.pools.cache_clear()


def test_what_a_fleet_draws(check_draws, setting: Setting) -> None:
    check_draws(lambda seeds: episodes.episode_fleet(setting, seeds * 2, hard_groups=1,
                                                     fraction=0.5))


def test_hard_groups_are_those_of_the_seed_in_every_split_that_shares_them(
    setting: Setting
) -> None:
    seeds = (9, 3, 5, 7)

    def groups(setting: Setting, purpose: str) -> list[set[int]]:
        fleet = episodes.episode_fleet(setting, seeds, hard_groups=1, fraction=1.0)
        x = fleet.draw(fleet, purpose, 60, 0)(0).query[0]
        return [set((told(each)[0] % GROUPS).unique().tolist()) for each in x]

    chosen = [set(episodes.hard_groups_of(setting, seed, 1)) for seed in seeds]
    assert len(set(map(frozenset, chosen))) > 1
    for purpose in ("train", "validate", "test"):
        assert groups(setting, purpose) == chosen
    everything = episodes.hard_groups_of(setting, 9, 0)
    assert {everything[0]} == chosen[0]
    assert set(everything) == set(range(GROUPS))
    apart = replace(setting, within=False)
    assert [len(each) for each in groups(apart, "train")] == [1] * 4
    assert groups(apart, "test") == [set(range(GROUPS))] * 4


def test_purposes_draw_from_their_splits(setting: Setting, source: Source) -> None:
    fleet = episodes.episode_fleet(replace(setting, within=False), (3,), global_labels=True)
    for purpose, split in (("train", "train"), ("validate", "validation"), ("test", "test")):
        x, y = fleet.draw(fleet, purpose, 100, 0)(0).support
        assert torch.equal(source.splits[split][y], told(x)[0])
        assert set(y.unique().tolist()) == set(range(len(source.splits[split])))
