"""Linear layers and KFO against learned rates that may move as far as they like, on few-shot images
(paper D, claims D2 and D3).

In :mod:`companion.experiments.depth_images` the numbers of every rule take steps ten times smaller
than the weights, since KFO diverges otherwise; a rate then moves by a few per cent at most. Here
those of the rates take the weights' own steps, from several starts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from companion.experiment import Experiment
from companion.experiments import depth_images
from companion.experiments.depth_images import ARM, RATES
from companion.records import Point, Record, Row
from companion.tables import Finding


@dataclass(frozen=True)
class Config:
    """``arms`` maps a number of blocks and a model, "4 KFO", to its inner rates at the start of
    training; the numbers of a rule of ``free`` are trained like the weights. All else is of
    ``images``, its own arms left out."""

    images: depth_images.Config
    arms: Mapping[str, Sequence[float]]
    free: Sequence[str] = RATES


PROFILES = {
    "quick": Config(replace(depth_images.PROFILES["quick"], ks=(1,)),
                    {"3 LinNet": (0.4,), "3 KFO": (0.4,), "3 learned rate": (0.1, 0.4),
                     "3 per-step rates": (0.4,), "3 Meta-SGD": (0.4,)}),
    "full": Config(replace(depth_images.PROFILES["full"], first=6, ks=(1, 10)),
                   {"4 LinNet": (0.4,), "4 KFO": (0.1,), "4 learned rate": (0.025, 0.1),
                    "4 per-step rates": (0.1,), "4 Meta-SGD": (0.1,)}),
}


def points(config: Config) -> list[Point]:
    """A fleet of MAML for every source, arm and inner rate."""
    return [dict(zip(ARM, (source, int(blocks), "MAML", model, alpha), strict=True))
            for source in config.images.settings for arm, rates in config.arms.items()
            for blocks, _, model in [arm.partition(" ")] for alpha in rates]


def measure(config: Config, point: Point, device: str) -> list[Row]:
    """As :func:`companion.experiments.depth_images.measure`, with the rule's own outer rate."""
    images = config.images
    if point["model"] in config.free:
        budget = replace(images.sizes.budget, rule_share=1.0)
        images = replace(images, sizes=replace(images.sizes, budget=budget))
    return depth_images.measure(images, point, device)


def gain(record: Record) -> Finding:
    """D2: LinNet is above plain with freely learned rates."""
    return depth_images.above_rates(record, "LinNet", "freely learned rates")


def external(record: Record) -> Finding:
    """D3: KFO is above plain with freely learned rates."""
    return depth_images.above_rates(record, "KFO", "freely learned rates")


EXPERIMENT = Experiment(
    "image_rates", "linear layers and KFO against freely learned rates on few-shot images",
    PROFILES, points, measure,
    {"D2/images free rates": gain, "D3/images free rates": external}, ("cuda", "cpu"))
