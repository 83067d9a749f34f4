"""Frozen halves: what moves, the floors that theory sets, shares, and D4 from made tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from companion.experiments import freezing
from companion.fleets import CAP, Budget, scores, start, train
from companion.records import Record
from companion.streams import stream
from companion.tables import Finding

FULL = freezing.PROFILES["full"]
TINY = freezing.Config(
    dim=3, outputs=2, support=6, least=0.3, most=2.0, noise=1.0, hidden=4,
    alphas=(("linear", (0.3, 1.0)), ("mlp", (0.3, 1.0))), seeds=2,
    budget=Budget(15, 20, 0.02, query=20, test_tasks=50, test_query=30))
MODELS = ("linear", "mlp")


def test_the_points_of_freezing() -> None:
    points = freezing.points(FULL)
    assert len(points) == len({tuple(point.values()) for point in points}) == 5 * 2 * 4
    assert points[1] == {"family": "inputs", "model": "linear", "adapting": "both"}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("arm", ["one rate", "both", "bottom", "top"])
def test_frozen_layers_do_not_move(model: str, arm: str) -> None:
    point = {"family": "both", "model": model, "adapting": arm}
    fleet, network = freezing.fleet_of(TINY, point, (0.3,)), freezing.model_of(TINY, point)
    params = {name: value[0] for name, value in start(fleet, network).items()}
    drawn = fleet.draw(fleet, "tests", 1, 9)(0)
    task = fleet.make({name: value[0, 0] for name, value in drawn.items()}, *fleet.run(0))
    after = network.adapt(fleet.loss(network.net.apply), params, task.support, fleet.alpha[0], 1)
    last, names = (1, ("weight",)) if model == "linear" else (2, ("weight", "bias"))
    if arm == "one rate":
        last -= 1
    layers = {"bottom": range(last), "top": (last,)}.get(arm, range(last + 1))
    moved = {name for name, value in after.items() if not torch.equal(value, params[name])}
    assert moved == {f"{layer}.{part}" for layer in layers for part in names}
    assert params[f"{last}.weight"].shape[0] == TINY.outputs
    body = TINY.dim if model == "linear" else TINY.hidden
    assert params[f"{last}.weight"].shape[1] == body + (0 if arm == "one rate" else TINY.outputs)
    assert ("rule/scale" in params) == (arm == "one rate")


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("family", "spread"), [
    ("inputs", "x"), ("tasks, inputs", "t"), ("tasks, outputs", "o"), ("both", "to"),
    ("boundaries", "x")])
def test_what_is_spread(family: str, spread: str, model: str) -> None:
    fleet = freezing.fleet_of(TINY, {"family": family, "model": model}, (0.3,))
    (readout,) = fleet.run(0)
    inputs = readout.inputs
    assert inputs == (TINY.dim if model == "linear" else TINY.hidden)
    for name, root, size in (("x", readout.root, TINY.dim), ("t", readout.input_root, inputs),
                             ("o", readout.output_root, TINY.outputs)):
        scales = np.geomspace(0.3, 2.0, size) if name in spread else np.ones(size)
        np.testing.assert_allclose(np.linalg.svd(root.numpy())[1][::-1], scales)
    assert readout.noise == (1.0 if "o" in spread else 0.0)
    assert fleet.classes == (family == "boundaries")


def test_the_floors() -> None:
    found = freezing.floors(FULL, "both")
    assert list(found.values()) == pytest.approx([9.3349, 4.8591, 4.1317, 2.9669, 2.7897, 2.56],
                                                 abs=6e-5)
    assert freezing.floors(FULL, "inputs")["top adapts"] == pytest.approx(0.9242, abs=6e-5)
    assert freezing.floors(FULL, "tasks, inputs")["one rate"] == pytest.approx(1.5045, abs=6e-5)
    assert freezing.floors(FULL, "tasks, outputs")["bottom adapts"] == pytest.approx(2.6489,
                                                                                     abs=6e-5)


def test_training_reaches_the_floors() -> None:
    """Of all four arms, from data alone; no two floors are near each other."""
    config = replace(TINY, outputs=3, support=20, seeds=2, least=0.05, noise=3.0,
                     budget=Budget(250, 20, 0.03, test_tasks=2000, batch=500))
    floors, reached = freezing.floors(config, "both"), {}
    for arm, name in (("one rate", "one rate"), ("bottom", "bottom adapts"), ("top", "top adapts"),
                      ("both", "both adapt")):
        point = {"family": "both", "model": "linear", "adapting": arm}
        fleet, model = freezing.fleet_of(config, point, (0.5,)), freezing.model_of(config, point)
        risk = scores(fleet, model, train(fleet, model, config.budget), config.budget, (1,)).risk
        reached[name] = float(risk.mean())
    assert reached == pytest.approx({name: floors[name] for name in reached}, rel=0.03)
    values = sorted(floors[name] for name in reached)
    assert min(np.divide(values[1:], values[:-1])) > 1.15


@pytest.mark.parametrize(("family", "model", "arm"), [
    ("both", "linear", "top"), ("boundaries", "mlp", "bottom"), ("inputs", "mlp", "one rate")])
def test_a_measurement(family: str, model: str, arm: str) -> None:
    point = {"family": family, "model": model, "adapting": arm}
    assert point in freezing.points(TINY)
    first, second = (freezing.measure(TINY, point, "cpu") for _ in range(2))
    assert first == second
    assert list(first[0]) == [*point, "alpha", "seed", "risk_0", "risk_1", "accuracy_1", "valid"]
    assert [(row["alpha"], row["seed"]) for row in first] == [
        (alpha, seed) for alpha in (0.3, 1.0) for seed in (0, 1)]
    assert all((row["accuracy_1"] is None) == (family != "boundaries") for row in first)
    assert len({row["risk_1"] for row in first}) == len({row["valid"] for row in first}) == 4


def test_the_risks_are_before_and_after_the_step() -> None:
    """On test tasks, and after it on validation tasks."""
    point = {"family": "both", "model": "linear", "adapting": "both"}
    fleet, model = freezing.fleet_of(TINY, point, (0.3, 1.0)), freezing.model_of(TINY, point)
    params, found = train(fleet, model, TINY.budget), freezing.measure(TINY, point, "cpu")
    for column, k, purpose in (("risk_0", 0, "test"), ("risk_1", 1, "test"),
                               ("valid", 1, "validate")):
        risks = scores(fleet, model, params, TINY.budget, (k,), purpose=purpose).means.risk[:, 0]
        assert [row[column] for row in found] == pytest.approx(risks.tolist(), rel=1e-5)


def test_a_lost_rate() -> None:
    lost = replace(TINY, alphas=(("linear", (0.3, 1e9)),))
    point = {"family": "inputs", "model": "linear", "adapting": "both"}
    rows = freezing.measure(lost, point, "cpu")
    assert len({tuple(row) for row in rows}) == 1
    assert [row["valid"] == CAP for row in rows] == [False, False, True, True]
    assert [row["risk_1"] == CAP for row in rows] == [False, False, True, True]


MEANS = {"one rate": 1.5, "both": 1.0, "bottom": 1.1, "top": 1.4}


def table(around, *, noise: float = 0.01,
          **changed: tuple[tuple[str, ...], dict[str, float]]) -> pd.DataFrame:
    """All risks are those of MEANS, but in the families that ``changed`` names; validation tasks
    choose the rate 0.3."""
    rows = []
    for point in freezing.points(FULL):
        means = dict(MEANS)
        for families, other in changed.values():
            means |= other if point["family"] in families else {}
        for alpha in (0.1, 0.3, 1.0):
            risks = around(means[point["adapting"]], noise)
            rows += [{**point, "alpha": alpha, "seed": seed, "valid": abs(alpha - 0.3),
                      "risk_1": risk if alpha == 0.3 else 7.0} for seed, risk in enumerate(risks)]
    return pd.DataFrame(rows)


def test_the_share_that_a_half_keeps(around) -> None:
    found = freezing.kept(table(around, noise=0.0))
    assert len(found) == 5 * 2 * 2
    for half, share in (("bottom", 0.8), ("top", 0.2)):
        rows = found[found["adapting"] == half]
        np.testing.assert_allclose(rows[["value", "low", "high"]], share, rtol=1e-9)
    gained = freezing.gains(table(around, noise=0.0))
    assert len(gained) == 5 * 2
    np.testing.assert_allclose(gained[["value", "low", "high"]], 1.5, rtol=1e-9)


def test_a_share_is_of_means_over_paired_seeds() -> None:
    risks = np.array([[2.0, 1.5, 1.0], [4.0, 4.0, 1.0], [9.0, 5.0, 1.0]])
    assert freezing.share(risks) == pytest.approx((5 - 3.5) / (5 - 1))
    seeds = stream(0, "tests/seeds").normal(5, 1, 20)  # which differ by more than the arms do
    rows = [{"family": "both", "model": "mlp", "adapting": arm, "alpha": 1.0, "seed": seed,
             "valid": 1.0, "risk_1": level + offset}
            for arm, offset in (("one rate", 0.5), ("both", 0.0), ("bottom", 0.1), ("top", 0.5))
            for seed, level in enumerate(seeds)]
    found = freezing.kept(pd.DataFrame(rows)[::-1])
    np.testing.assert_allclose(found.set_index("adapting").loc["bottom", ["low", "high"]].astype(
        float), 0.8, rtol=1e-9)


def settled(rows: pd.DataFrame) -> Finding:
    return freezing.EXPERIMENT.findings["D4/who transforms whom"](Record(rows, {}))


def test_d4_flips(around) -> None:
    every, some = FULL.families, ("tasks, inputs",)
    holds = settled(table(around))
    assert holds.word == "supported"
    assert len(holds.cases) == 10
    assert holds.interval.low < holds.interval.value < holds.interval.high
    assert holds.interval.value == pytest.approx(0.8, abs=0.05)
    mixed = settled(table(around, few=(some, {"bottom": 1.45})))
    assert mixed.word == "mixed"
    assert mixed.cases["tasks, inputs, linear"] == "contradicted"
    assert settled(table(around, all=(every, {"bottom": 1.45}))).word == "contradicted"
    unsure = settled(table(around, few=(some, {"bottom": 1.25})))
    assert (unsure.word, unsure.detectable > 0) == ("inconclusive", True)
    assert settled(table(around, all=(every, {"top": 1.01}))).word == "supported"


def test_where_depth_gains_nothing_it_is_left_out_by_name(around) -> None:
    some, every = ("inputs", "both"), FULL.families
    level = {"one rate": 1.005, "bottom": 1.4}
    found, whole = settled(table(around, few=(some, level))), settled(table(around))
    assert found.word == "supported"
    assert found.interval == whole.interval
    names = {f"{family}, {model}" for family in some for model in MODELS}
    assert set(whole.cases) - set(found.cases) == names
    assert all(name in found.what for name in names)
    assert "depth gains" not in whole.what
    none = settled(table(around, all=(every, level)))
    assert (none.word, none.interval, len(none.cases)) == ("inconclusive", None, 0)
