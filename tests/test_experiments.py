"""Records are of today's experiments: they load, a cheap point of each comes out again, and no
number can change unseen."""

import ast
import io
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import pytest
import torch

from companion import experiments, provenance, records, runs, tables
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


UNCOMMITTED = {  # made from code that is in no commit, on a GPU; to be made anew on two cores
    "depth_images": ("pilot", "full", "again", "large", "colours"),
    "landscape_images": ("full", "again"),
}
OTHER_MACHINE = {"ATEN_CPU_CAPABILITY": "default"}  # no vector instructions: another rounding


@pytest.mark.parametrize(("name", "profile"), RECORDED)
def test_a_record_is_of_today(name: str, profile: str) -> None:
    record = EXPERIMENTS[name].load(profile)
    origin = record.provenance
    config = EXPERIMENTS[name].config(profile)
    assert origin["points"] == len(EXPERIMENTS[name].points(config))
    assert origin["points"] == sum(sitting["points"] for sitting in records.sittings(origin))
    assert origin["threads"] == 1
    assert records.processors(origin)
    assert set(origin["versions"]) == set(provenance.versions())


@pytest.mark.parametrize(("name", "profile"), RECORDED)
def test_a_record_is_of_commits(name: str, profile: str) -> None:
    origin = EXPERIMENTS[name].load(profile).provenance
    assert records.committed(origin) == (profile not in UNCOMMITTED.get(name, ()))
    assert (origin["code"] is not None) or not records.committed(origin)


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process that rounds as another processor does."""
    context = multiprocessing.get_context("spawn")
    with mock.patch.dict(os.environ, OTHER_MACHINE), ProcessPoolExecutor(1, context) as pool:
        capability = pool.submit(torch.backends.cpu.get_cpu_capability).result()
        assert capability in ("DEFAULT", "NO AVX")
        yield lambda function, *args: pool.submit(function, *args).result()


def here(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def cheap_point(name: str, profile: str, call: Callable[..., Any]) -> pd.DataFrame:
    """A cheap point of an experiment, for two seeds, which do not depend on the others."""
    experiment = EXPERIMENTS[name]
    config = experiment.config(profile)
    point = experiment.points(config)[CHEAP.get((name, profile), 0)]
    if hasattr(config, "seeds"):
        few = 2 if isinstance(config.seeds, int) else config.seeds[:2]
        config = replace(config, seeds=few)
    try:
        rows = call(runs._measure, experiment.measure, config, "cpu", point).rows
    except MissingData as error:
        pytest.skip(str(error))
    return pd.read_csv(io.StringIO(pd.DataFrame(list(rows)).to_csv(index=False)))


def comes_out(found: pd.DataFrame, table: pd.DataFrame, name: str, profile: str) -> None:
    """Every number is within a tenth of its scatter over the record's seeds, so that no contrast
    over seeds can leave its interval; what has no scatter is equal to four digits."""
    experiment = EXPERIMENTS[name]
    point = experiment.points(experiment.config(profile))[CHEAP.get((name, profile), 0)]
    same = {column: tuple(value) if isinstance(value, list) else value
            for column, value in point.items() if column in table}
    expected = tables.where(table, **same)
    if "seed" in table:
        # every seed has the same settings in the same order
        place = expected.groupby("seed").cumcount()
        scatter = expected.select_dtypes("number").groupby(place).transform("std").fillna(0)
        expected = tables.where(expected, seed=tuple(found["seed"].unique()))
    else:
        scatter = 0 * expected.select_dtypes("number")
    if name in OTHERS:
        column, value = OTHERS[name]
        found = found[found[column] != value]
        expected = expected[expected[column] != value]
    assert len(found) == len(expected) > 0
    assert list(found) == list(expected)
    scatter = scatter.loc[expected.index].reset_index(drop=True)
    found, expected = found.reset_index(drop=True), expected.reset_index(drop=True)
    texts = [column for column in found if column not in scatter]
    pd.testing.assert_frame_equal(found[texts], expected[texts], check_dtype=False)
    for column in scatter:
        allowed = 0.1 * scatter[column] + 1e-4 * expected[column].abs() + 1e-9
        away = (found[column] - expected[column]).abs()
        assert (found[column].isna() == expected[column].isna()).all(), column
        assert (away[found[column].notna()] <= allowed[found[column].notna()]).all(), (
            f"{column}: {(away / allowed).max():.2f} of what is allowed")


CHECKED = [each for each in RECORDED if each[0] not in ON_GPU]


@pytest.mark.parametrize(("name", "profile"), CHECKED)
def test_a_cheap_point_comes_out_again(name: str, profile: str) -> None:
    table = EXPERIMENTS[name].load(profile).table
    comes_out(cheap_point(name, profile, here), table, name, profile)


@pytest.mark.parametrize("name", [name for name, profile in CHECKED if profile == "full"])
def test_a_cheap_point_comes_out_on_another_processor(
    name: str, elsewhere: Callable[..., Any]
) -> None:
    table = EXPERIMENTS[name].load("full").table
    comes_out(cheap_point(name, "full", elsewhere), table, name, "full")


def test_a_number_off_by_more_than_a_tenth_of_its_scatter_does_not_come_out() -> None:
    """Of a real record, in a column that was measured, a setting, and a lost value."""
    table = EXPERIMENTS["shallow"].load("full").table
    config = EXPERIMENTS["shallow"].config("full")
    point = EXPERIMENTS["shallow"].points(config)[0]
    rows = tables.where(table, **{name: point[name] for name in point if name in table})
    few = tables.where(rows, seed=(0, 1)).reset_index(drop=True)
    comes_out(few, table, "shallow", "full")
    scatter = rows.groupby("alpha")["risk_1"].std().iloc[0]
    for share, passes in ((0.08, True), (0.2, False)):
        moved = few.copy()
        moved.loc[0, "risk_1"] += share * scatter
        if passes:
            comes_out(moved, table, "shallow", "full")
        else:
            with pytest.raises(AssertionError, match=r"risk_1: .* of what is allowed"):
                comes_out(moved, table, "shallow", "full")
    for column, value in (("alpha", 0.123), ("risk_1", None)):
        moved = few.copy()
        moved.loc[0, column] = value
        with pytest.raises(AssertionError, match=column):
            comes_out(moved, table, "shallow", "full")
    with pytest.raises(AssertionError):
        comes_out(few.iloc[1:], table, "shallow", "full")


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
        for line in ast.parse(path.read_text(encoding="utf-8")).body:
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
