"""Few-shot episodes: N-way K-shot tasks from a source, a whole batch at once, on its device.

An episode's classes are labelled 0 to N - 1 in random order, or by their number in the pool.
Support and query are different images. Easy episodes take their classes from anywhere in a pool,
hard ones from one group (an alphabet, a superclass).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple, cast

import torch

from companion.checks import at_least, require
from companion.losses import cross_entropy
from companion.streams import stream, torch_stream
from companion.tasks import Fleet, Task, sources, stacked
from companion.tasks.sources import Source


class Pool(NamedTuple):
    """What episodes are drawn from: images [image, channel, height, width], uint8; of each class
    its ``first`` image, their number ``sizes``, and its ``group``, all [class]."""

    images: torch.Tensor
    first: torch.Tensor
    sizes: torch.Tensor
    group: torch.Tensor


def pool(source: Source, split: str, *, groups: Sequence[int] | None = None,
         device: str = "cpu") -> Pool:
    """The classes of a split, or of some groups of it; ValueError for none or an unknown split."""
    if split not in source.splits:
        raise ValueError(f"split must be one of {', '.join(source.splits)}, got {split!r}")
    members = source.splits[split]
    if groups is not None:
        members = members[torch.isin(source.group[members], torch.tensor(list(groups)))]
    require(len(members) > 0, "groups", f"have a class in the {split} split", groups,
            "see source.group")
    return Pool(source.images.to(device), source.first[members], source.sizes[members],
                source.group[members])


def fitting_groups(of: Pool, ways: int) -> torch.Tensor:
    """The groups with at least ``ways`` classes: hard episodes can be drawn from them."""
    names, sizes = torch.unique(of.group, return_counts=True)
    return cast(torch.Tensor, names[sizes >= ways])


def sample(of: Pool, generator: torch.Generator, *, episodes: int, ways: int, shots: int,
           queries: int, hard_fraction: float = 0.0, hard_groups: Sequence[int] | None = None,
           global_labels: bool = False, dtype: torch.dtype = torch.float32) -> Task:
    """Episodes of ``ways`` classes, Task((x, y), (x, y)), y [episode, image].

    x is [episode, image, channel, height, width], uint8 / 255 - 1/2. Raises ValueError for more
    classes or images than there are, or an argument out of range.

    Args:
        generator: on the CPU, so that every device sees the same episodes.
        shots, queries: images of a class, in the support and in the query.
        hard_fraction: probability that an episode's classes are all of one group, in [0, 1].
        hard_groups: the groups that hard episodes take their classes from, one each; by default all
            that have enough. Few make packed hard tasks, many spread ones.
        global_labels: label by the class's number in the pool, the same in every episode.
    """
    for name, value in (("episodes", episodes), ("ways", ways), ("shots", shots),
                        ("queries", queries)):
        at_least(name, value, 1, "an episode needs one at least", whole=True)
    require(0 <= hard_fraction <= 1, "hard_fraction", "lie in [0, 1]", hard_fraction,
            "it is a probability")
    classes, each = len(of.first), shots + queries
    require(ways <= classes, "ways", f"be at most the {classes} classes of the pool", ways,
            "take fewer")
    least = int(of.sizes.min())
    require(each <= least, "shots + queries",
            f"be at most the {least} images of the smallest class", each, "fewer")
    uniform = partial(torch.rand, generator=generator)

    rank = uniform(episodes, classes)
    if hard_fraction > 0:
        groups = fitting_groups(of, ways)
        if hard_groups is not None:
            wanted = torch.tensor(sorted(set(hard_groups)))
            lacking = wanted[~torch.isin(wanted, groups)].tolist()
            require(not lacking, "hard_groups", f"have {ways} classes each", lacking,
                    "see fitting_groups")
            groups = wanted
        require(len(groups) > 0, "ways", "be at most the classes of some group", ways,
                "hard episodes need them")
        own = groups[(uniform(episodes) * len(groups)).long().clamp(max=len(groups) - 1)]
        hard = uniform(episodes) < hard_fraction
        # below every class of the group
        rank = rank - (hard[:, None] & (of.group != own[:, None])).to(rank.dtype)
    chosen = rank.topk(ways, dim=1).indices  # in random order: the labels are permuted
    order = uniform(episodes, ways, int(of.sizes.max()))
    order = order.masked_fill(torch.arange(order.shape[-1]) >= of.sizes[chosen][..., None], -1.0)
    images = of.first[chosen][..., None] + order.topk(each, dim=-1).indices
    labels = chosen if global_labels else torch.arange(ways).expand(episodes, ways)
    y = labels[..., None].expand(episodes, ways, each)

    def side(start: int, stop: int) -> tuple[torch.Tensor, torch.Tensor]:
        index, here = images[..., start:stop].flatten(1), of.images.device
        return (of.images[index.to(here)].to(dtype).div_(255).sub_(0.5),
                y[..., start:stop].flatten(1).to(here))

    return Task(side(0, shots), side(shots, each))


@dataclass(frozen=True)
class Setting:
    """A source of episodes, its classes split ``within`` groups or as published; their size; the
    inner rate ``alpha`` of training."""

    source: str
    ways: int
    shots: int
    alpha: float
    queries: int = 5
    within: bool = False


@lru_cache(maxsize=2)
def pools(source: str, within: bool, device: str = "cpu") -> dict[str, Pool]:
    """The pool of every split of a source, kept for the next fleet."""
    images = sources.within_groups(sources.load(source)) if within else sources.load(source)
    return {split: pool(images, split, device=device) for split in sources.SPLITS}


def hard_groups_of(setting: Setting, seed: int, count: int) -> list[int]:
    """The groups that a seed's hard training episodes come from: ``count`` of its own, or all for
    0, of those with classes enough in every split that shares them."""
    by_split = pools(setting.source, setting.within)
    fitting = set.intersection(*(set(fitting_groups(by_split[split], setting.ways).tolist())
                                 for split in (by_split if setting.within else ("train",))))
    groups: list[int] = stream(seed, "few_shot/hard groups").permutation(sorted(fitting)).tolist()
    return groups[:count] if count else groups


def episode_fleet(setting: Setting, seeds: Sequence[int], *, hard_groups: int = 0,
                  fraction: float = 0.0, global_labels: bool = False, device: str = "cpu") -> Fleet:
    """A run for every seed, on episodes of which a ``fraction`` is hard.

    Purposes "train", "validate" and "test" draw from the splits of that name. Hard episodes come
    from ``hard_groups`` groups that the seed picks, or from all for 0; where classes are not split
    within groups, those of validation and test come from all. On a CPU one episode of one run is
    computed at a time, where vmap would slow convolutions.
    """
    by_split = pools(setting.source, setting.within, device)
    chosen = {seed: hard_groups_of(setting, seed, hard_groups) for seed in seeds}

    def draw(fleet: Fleet, purpose: str, tasks: int, query: int) -> Callable[[int], Task]:
        split = {"train": "train", "validate": "validation", "test": "test"}[purpose]
        restricted = fraction > 0 and (setting.within or split == "train")

        def at(step: int) -> Task:
            name = f"few_shot/{split}/{fraction}/{step}"
            drawn = [sample(by_split[split], torch_stream(seed, name), episodes=tasks,
                            ways=setting.ways, shots=setting.shots, queries=setting.queries,
                            hard_fraction=fraction, global_labels=global_labels,
                            hard_groups=chosen[seed] if restricted else None)
                     for seed in fleet.seeds]
            return cast(Task, stacked(drawn, device))

        return at

    alpha = torch.full((len(seeds),), setting.alpha, device=device)
    return Fleet("few_shot", tuple(seeds), (), alpha, draw, lambda task: task, cross_entropy,
                 classes=True, chunk=1 if device == "cpu" else None)
