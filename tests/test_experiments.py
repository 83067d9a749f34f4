"""Records are of today's experiments: they load, a cheap point of each comes out again, and no
number can change unseen."""

import ast
import io
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from companion import experiments, records, tables
from companion.errors import MissingData
from companion.experiments import EXPERIMENTS

CHEAP = {  # the index of a point that takes seconds, with two seeds
    ("two_layer", "full"): 17}
ON_GPU = ("landscape_images", "depth_images", "image_rates")  # a point takes a CPU many minutes
OTHERS = {"transplant": ("arm", "other seed")}  # rows of which a seed needs the one after it
RECORDED = [(name, profile) for name, experiment in EXPERIMENTS.items()
            for profile in experiment.profiles
            if name not in ON_GPU
            or (records.folder(name, profile) / "provenance.json").exists()]


@pytest.mark.parametrize(("name", "profile"), RECORDED)
def test_a_record_is_of_today(name: str, profile: str) -> None:
    record = EXPERIMENTS[name].load(profile)
    assert record.provenance["points"] == len(EXPERIMENTS[name].points(
        EXPERIMENTS[name].config(profile)))
    assert {"threads", "processor", "device", "started", "seconds"} <= record.provenance.keys()
    assert record.provenance["threads"] == 1


@pytest.mark.parametrize(("name", "profile"),
                         [each for each in RECORDED if each[0] not in ON_GPU])
def test_a_cheap_point_comes_out_again(name: str, profile: str) -> None:
    """For two seeds, which do not depend on the others."""
    experiment, table = EXPERIMENTS[name], EXPERIMENTS[name].load(profile).table
    config = experiment.config(profile)
    point = experiment.points(config)[CHEAP.get((name, profile), 0)]
    few = config
    if hasattr(config, "seeds"):
        few = replace(config, seeds=2 if isinstance(config.seeds, int) else config.seeds[:2])
    try:
        rows = experiment.measure(few, point, "cpu")
    except MissingData as error:
        pytest.skip(str(error))
    text = pd.DataFrame(list(rows)).to_csv(index=False)
    found = pd.read_csv(io.StringIO(text))
    expected = tables.where(table, **{column: tuple(value) if isinstance(value, list) else value
                                      for column, value in point.items() if column in table})
    if "seed" in table:
        expected = tables.where(expected, seed=tuple(found["seed"].unique()))
    if name in OTHERS:
        column, value = OTHERS[name]
        found, expected = (table[table[column] != value].reset_index(drop=True)
                           for table in (found, expected))
    assert len(found)
    pd.testing.assert_frame_equal(found, expected.reset_index(drop=True), rtol=1e-4, atol=1e-9,
                                  check_dtype=False)


def parts(value: Any) -> list[tuple[Any, Any]]:
    """What a config, a mapping or a sequence holds, by name or number."""
    if is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, tuple | list) else []


def changed(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """Every copy of a config or point with one leaf changed, and where that is."""
    if not parts(value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        yield path, value + 1 if number else f"{value}'"
    for name, part in parts(value):
        for where, other in changed(part, (*path, name)):
            if is_dataclass(value):
                yield where, replace(value, **{name: other})
            elif isinstance(value, dict):
                yield where, value | {name: other}
            else:
                yield where, [*value[:name], other, *value[name + 1 :]]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_number_is_in_the_key(name: str) -> None:
    experiment = EXPERIMENTS[name]
    config = experiment.config("quick")
    points = list(experiment.points(config))
    key = experiment.key("quick")
    assert key == records.key(name, config, points) != experiment.key("full")
    copies = list(changed(config))
    assert len(copies) > 10
    keys = {records.key(name, copy, points) for _, copy in copies}
    assert len(keys | {key}) == len(copies) + 1
    assert key != records.key(f"{name}'", config, points)
    others = [list(copy) for _, copy in changed(points)]
    others += [points[1:], [*points, {"new": 1}], *([points[::-1]] if len(points) > 1 else [])]
    assert len({records.key(name, config, other) for other in others} | {key}) == len(others) + 1


def test_no_constant_of_an_experiment_is_outside_its_config() -> None:
    """But how many last steps a final objective is a mean over, and that half of the tasks are
    hard."""
    found = set()
    for path in Path(experiments.__file__).parent.glob("*.py"):
        for line in ast.parse(path.read_text()).body:
            if isinstance(line, ast.Assign) and any(
                isinstance(node, ast.Constant) and type(node.value) in (int, float)
                for node in ast.walk(line.value) if not isinstance(line.value, ast.Call | ast.Dict)
            ):
                found |= {f"{path.stem}.{node.id}" for target in line.targets
                          for node in ast.walk(target) if isinstance(node, ast.Name)}
    assert found == {"images._LAST", "controlled_images.HALF"}


def test_an_unknown_experiment_or_profile() -> None:
    with pytest.raises(ValueError, match=r"one of linear, race, .*, got 'nope'"):
        experiments.get("nope")
    with pytest.raises(ValueError, match="profile must be one of quick, full, got 'large'"):
        experiments.get("linear").config("large")
    assert all(experiments.get(name).name == name for name in EXPERIMENTS)
