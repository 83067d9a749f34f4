"""Few-shot image tasks whose landscape we set: hardness, packing and distance of the optima.

A family has some classes of images, half of them labelled +1 and half -1. An easy task (0) has this
class-to-label map, a hard task (1) the same or the opposite one; then the labels of some classes,
drawn anew for each task, are permuted among them. A task's images and labels are multiplied by its
contrast c: so its covariance is c^2 times the family's, and its optimum stays where it was, for
every model with f(c x) = c f(x). Everything but :func:`controlled_fleet` is for one family or one
task.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from companion.checks import at_least, require
from companion.losses import squared_error
from companion.streams import normals, stream, torch_stream
from companion.tasks import Fleet, Task, sources, stacked

EASY, HARD = 0, 1
_POOL = 2  # images are averaged over squares of this side, 28 x 28 to 14 x 14
_WARP = 0.08  # standard deviation of the entries of a variant's affine map


class Landscape(NamedTuple):
    """A family: ``images`` [class, image, dim], the first half of a class's to train on, the others
    new; ``maps`` [group, class] of +1 and -1; how many classes are ``permuted`` [group];
    ``contrast`` [group]; ``cut`` [], the normal quantile of the share of hard tasks."""

    images: torch.Tensor
    maps: torch.Tensor
    permuted: torch.Tensor
    contrast: torch.Tensor
    cut: torch.Tensor


@lru_cache(maxsize=2)
def _loaded(source: str) -> sources.Source:
    return sources.load(source)


@lru_cache(maxsize=64)
def components(source: str, seed: int, *, classes: int, drawings: int, variants: int,
               dim: int) -> torch.Tensor:
    """Images of the seed's classes, [class, 2 * drawings * variants, dim]: of every class first the
    ``variants`` of ``drawings`` of it, then those of as many others.

    A variant is the drawing under a random affine map close to the identity: so a network that
    trains does not know the few drawings by heart. Then come the ``dim`` first principal
    components of them all, each with mean 0 and variance 1; labels play no part in this.
    ValueError: fewer classes with enough drawings than are asked for, or more components than the
    pixels span.
    """
    for name, value in (("classes", classes), ("drawings", drawings), ("variants", variants),
                        ("dim", dim)):
        at_least(name, value, 1, "it counts things", whole=True)
    of, rng, count = _loaded(source), stream(seed, "controlled/images"), 2 * drawings
    fitting = np.flatnonzero(of.sizes.numpy() >= count)
    require(classes <= len(fitting), "classes",
            f"be at most the {len(fitting)} of {source} that have {count} drawings", classes,
            "take fewer classes or drawings")
    index = [of.first[c].item() + rng.permutation(of.sizes[c].item())[:count]
             for c in rng.permutation(fitting)[:classes]]
    drawn = of.images[torch.from_numpy(np.concatenate(index))].double().mean(1, keepdim=True) / 255
    varied = _varied(drawn, variants, torch_stream(seed, "controlled/variants"))
    pixels = F.avg_pool2d(varied, _POOL).flatten(1)
    _, sizes, axes = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    rank = int((sizes > 1e-9 * sizes[0]).sum())
    require(dim <= rank, "dim", f"be at most {rank}, which the pixels span", dim, "take fewer")
    scores = (pixels - pixels.mean(0)) @ axes[:dim].mT
    scaled: torch.Tensor = scores / sizes[:dim] * len(pixels) ** 0.5
    return scaled.reshape(classes, count * variants, dim)


def _varied(images: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``count`` variants of every image, [image, 1, side, side] -> [image * count, 1, side, side],
    those of an image together."""
    many = images.repeat_interleave(count, 0)
    warp = _WARP * torch.randn(len(many), 2, 3, generator=generator, dtype=images.dtype)
    grid = F.affine_grid(torch.eye(2, 3, dtype=images.dtype) + warp, list(many.shape),
                         align_corners=False)
    return F.grid_sample(many, grid, align_corners=False)


def landscape(images: torch.Tensor, *, far: bool, contrast: float, permuted_easy: float,
              permuted_hard: float, fraction: float = 0.5) -> Landscape:
    """A family on ``images`` [class, image, dim].

    Hard tasks that are ``far`` have the opposite of the easy tasks' map. Of a group's classes the
    share ``permuted_*`` is permuted in every task: 0 for packed optima, 1 for spread ones.
    ``contrast`` > 0 is that of hard tasks, easy ones have 1; ``fraction`` is the share of hard
    tasks. ValueError: an odd number of classes, or an argument out of range.
    """
    classes = len(images)
    require(classes % 2 == 0, "classes", "be even", classes, "half of them are labelled +1")
    require(0 < contrast < np.inf, "contrast", "be positive and finite", contrast,
            "1 leaves images as they are")
    shares = {"permuted_easy": permuted_easy, "permuted_hard": permuted_hard, "fraction": fraction}
    for name, share in shares.items():
        require(0 <= share <= 1, name, "lie in [0, 1]", share, "it is a share")

    def numbers(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=images.dtype)

    one = numbers(1, -1).repeat(classes // 2)
    counts = (classes * numbers(permuted_easy, permuted_hard)).round()
    return Landscape(images, torch.stack([one, -one if far else one]), counts,
                     numbers(1, contrast), torch.special.ndtri(numbers(fraction))[0])


def shapes(classes: int, images: int, tasks: int) -> dict[str, tuple[int, ...]]:
    """The normals that a batch of tasks is made from, for :func:`companion.streams.normals`;
    ``images`` of a class to choose from."""
    each = (tasks, classes)
    return {"group": (tasks,), "order": (*each, images), "chosen": each, "here": each,
            "there": each}


def labels(of: Landscape,
           drawn: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of one task the labels +1 and -1 of its classes [class], its contrast [] and group []."""
    hard = drawn["group"] < of.cut
    base, count, contrast = (torch.where(hard, both[HARD], both[EASY])
                             for both in (of.maps, of.permuted, of.contrast))
    chosen = drawn["chosen"].argsort().argsort() < count
    # the chosen classes in two random orders; the others, tied and last, stay where they are
    here, there = (torch.where(chosen, drawn[name], torch.inf).argsort(stable=True)
                   for name in ("here", "there"))
    return base[there][here.argsort()], contrast, hard.long()


def task(of: Landscape, drawn: Mapping[str, torch.Tensor], shots: int, queries: int) -> Task:
    """One task: ``shots`` images of every class to adapt on, ``queries`` others to score on, chosen
    from image number ``drawn["first"]`` on; x [image, dim], y [image]."""
    signs, contrast, _ = labels(of, drawn)
    order = drawn["first"] + drawn["order"].argsort(-1)[:, : shots + queries, None]
    x = contrast * of.images.take_along_dim(order, 1)
    y = (contrast * signs)[:, None].expand(-1, shots + queries)
    return Task((x[:, :shots].flatten(0, 1), y[:, :shots].flatten()),
                (x[:, shots:].flatten(0, 1), y[:, shots:].flatten()))


def controlled_fleet(source: str, settings: Sequence[Mapping[str, Any]], seeds: Sequence[int], *,
                     classes: int, drawings: int, variants: int, dim: int, shots: int,
                     queries: int, device: str = "cpu") -> Fleet:
    """A run for every setting and seed, settings outermost.

    A setting holds the arguments of :func:`landscape` and the inner rate ``alpha``; images are
    those of :func:`components`. Tasks "train" and "validate" draw from the first half of a class's
    images, "test" from the other. Runs of one seed share images and draws. ValueError: more
    ``shots`` and ``queries`` than images.
    """
    half = drawings * variants
    require(min(shots, queries) >= 1 and shots + queries <= half, "shots, queries",
            f"be 1 or more, together at most {half}", (shots, queries),
            "support and query are different images")
    shared = {seed: components(source, seed, classes=classes, drawings=drawings,
                               variants=variants, dim=dim) for seed in seeds}
    families, alphas = [], []
    for setting in settings:
        options = {name: value for name, value in setting.items() if name != "alpha"}
        families += [landscape(shared[seed], **options) for seed in seeds]
        alphas += [setting["alpha"]] * len(seeds)

    def draw(fleet: Fleet, purpose: str, tasks: int, query: int) -> Callable[[int], Any]:
        at = normals(fleet.seeds, f"{fleet.name}/{purpose}", shapes(classes, half, tasks),
                     device=device, dtype=fleet.alpha.dtype)
        first = torch.full((len(fleet.seeds), tasks), half * (purpose == "test"), device=device)
        return lambda step: at(step) | {"first": first}

    return Fleet("controlled", tuple(seeds) * len(settings), (stacked(families, device),),
                 torch.tensor(alphas, dtype=torch.float64, device=device), draw,
                 lambda drawn, of: task(of, drawn, shots, queries), squared_error)
