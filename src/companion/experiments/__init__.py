"""Every experiment, one a file."""

from companion.experiment import Experiment
from companion.experiments import (
    controlled_images,
    depth_images,
    equal_hardness,
    finite_tasks,
    freezing,
    image_rates,
    image_tasks,
    ladder,
    landscape_images,
    learned_step,
    linear,
    linear_layers,
    race,
    rules,
    shallow,
    shares,
    together,
    transplant,
    two_layer,
)

EXPERIMENTS: dict[str, Experiment] = {
    module.EXPERIMENT.name: module.EXPERIMENT
    for module in (linear, race, equal_hardness, finite_tasks, two_layer, image_tasks,
                   controlled_images, landscape_images, shallow, learned_step, ladder,
                   linear_layers, rules, freezing, transplant, depth_images, image_rates,
                   together, shares)}


def get(name: str) -> Experiment:
    """The experiment of that name; ValueError for an unknown one."""
    if name not in EXPERIMENTS:
        raise ValueError(f"experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    return EXPERIMENTS[name]
