"""Linear layers: what they collapse to against closed forms, and D2 from made tables."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import vmap

from companion import nets
from companion.adaptation import adapt
from companion.experiments import linear_layers
from companion.fleets import Budget, Model, scores, start
from companion.measures import collapse
from companion.meta_optimizers import sgd
from companion.records import Record
from companion.streams import torch_stream
from companion.tasks import Fleet, readouts
from companion.theory import depth
from companion.theory.gaussian import excess_risk

F64 = torch.float64
SCALES = (0.3, 1.0, 2.0)
PLAIN = nets.linear(3)


def fleet_of(alpha: float = 0.3, seeds=(3,), hidden: int = 0) -> Fleet:
    setting = {"scales": SCALES, "alpha": alpha, "hidden": hidden}
    return readouts.readout_fleet("regression", [setting], seeds, support=6)


def first_task(fleet: Fleet) -> tuple[readouts.Readout, dict[str, torch.Tensor], np.ndarray]:
    (family,), drawn = fleet.run(0), fleet.draw(fleet, "tests", 1, 0)(0)
    normal = {name: value[0, 0] for name, value in drawn.items()}
    return family, normal, readouts.optimum(family, normal).numpy()


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_collapsed_model_adapts_as_the_shallow_one(layers: int) -> None:
    """Its full-batch risk after one step is |w_0 - w*|^2 in Q(alpha) / 2, w_0 the product: depth is
    gone."""
    fleet, alpha = fleet_of(), 0.17
    family, normal, optimum = first_task(fleet)
    net = nets.mlp((3, *[5] * layers, 1), bias=False, linear_layers=layers)
    params = net.init(torch_stream(0, "tests/collapse"), dtype=F64)
    w0 = depth.product([value.numpy() for value in params.values()])[0]
    task = readouts.task(family, normal, "regression", 0, exact=True).query
    exact = float(excess_risk(w0, family.covariance.numpy()[None], optimum, alpha, math.inf))
    risks = {}
    for name, model, begin in (("collapsed", PLAIN, nets.collapsed(params, layers)),
                               ("deep", net, params)):
        loss = fleet.loss(model.apply)
        risks[name] = loss(adapt(loss, begin, task, steps=1, update=sgd(alpha)), task).item()
    assert exact > 0.01
    assert risks["collapsed"] == pytest.approx(exact, rel=1e-10)
    assert risks["deep"] != pytest.approx(exact, rel=1e-2)


def test_a_collapsed_model_with_few_samples() -> None:
    """The same with m samples, in the mean over drawn supports."""
    m, alpha, draws = 6, 0.15, 60_000
    fleet = fleet_of()
    family, normal, optimum = first_task(fleet)
    begin = {"0.weight": torch.tensor([[0.5, -0.3, 0.8]], dtype=F64)}
    x = torch.randn(draws, m, 3, generator=torch_stream(0, "tests/x"), dtype=F64)
    loss = fleet.loss(PLAIN.apply)

    def risk(x: torch.Tensor) -> torch.Tensor:
        task = readouts.task(family, normal | {"x": x}, "regression", m, exact=True)
        return loss(adapt(loss, begin, task.support, steps=1, update=sgd(alpha)), task.query)

    found, sigma = vmap(risk)(x), family.covariance.numpy()[None]
    exact, mutant = (float(excess_risk(begin["0.weight"].numpy()[0], sigma, optimum, alpha, n))
                     for n in (m, m + 1))
    error = float(found.std()) / math.sqrt(draws)
    assert error < 0.003 * exact
    assert abs(float(found.mean()) - exact) < 4 * error
    assert abs(float(found.mean()) - mutant) > 4 * error


def test_how_far_a_collapsed_model_is_off() -> None:
    """Nothing for linear layers on top; the largest difference of outputs, where a layer is
    dropped that is not linear."""
    fleet, body = fleet_of(seeds=(3, 7), hidden=5), (3, 4)
    deep, plain = (Model(nets.mlp((*body, *[6] * added, 1), "tanh", linear_layers=added))
                   for added in (1, 0))
    params = start(fleet, deep)
    product, off = collapse.multiplied_out(fleet, deep, plain, params, 1)
    assert (off < 1e-12).all()
    bent = Model(nets.mlp((*body, 6, 1), "tanh"))
    _, off = collapse.multiplied_out(fleet, bent, plain, params, 1)
    drawn = fleet.draw(fleet, "collapse", 1, 100)(0)["x"][:, 0]
    for run in range(2):
        x = drawn[run] @ fleet.run(run)[0].root.T
        out, flat = (model.net.apply({name: value[run] for name, value in each.items()}, x)
                     for model, each in ((bent, params), (plain, product)))
        expected = (out - flat).abs().max() / out.abs().max()
        assert off[run] == pytest.approx(expected.item(), rel=1e-9)
    assert (off > 1e-3).all()


def test_the_rate_of_a_linear_model_is_the_best_shallow_step() -> None:
    fleet, plain = fleet_of(alpha=0.2, seeds=(3, 7, 5)), Model(PLAIN)
    zero, alphas = {"0.weight": torch.zeros(3, 1, 3, dtype=F64)}, np.full(3, 0.2)
    budget = Budget(steps=0, tasks=0, rate=0.1, test_tasks=20_000, batch=2000)
    found = collapse.best_rate(fleet, plain, zero, budget, np.geomspace(0.3, 2, 12).tolist(),
                               alphas)
    exact = depth.best_shallow_step(np.diag(np.square(SCALES)), np.eye(3) / 3, 6) * 4
    assert found == pytest.approx(np.full(3, exact), rel=0.05)
    risks = [scores(collapse.scaled(fleet, np.full(3, rate) / alphas), plain, zero, budget,
                    [1]).risk.mean() for rate in (exact, 0.7 * exact, 1.4 * exact)]
    assert risks[0] < min(risks[1:])


def test_the_record_of_collapse() -> None:
    """On isotropic inputs a rate of its own gives a collapsed model everything back: the null that
    was predicted."""
    table = linear_layers.EXPERIMENT.load("full").table
    isotropic = linear_layers.gains(table[table["inputs"] == "isotropic"], "collapsed_tuned")
    assert len(isotropic) == 8
    assert (isotropic["low"] > 0.98).all()
    assert (isotropic["high"] < 1.02).all()
    assert table["off"].max() < 1e-10


TINY = linear_layers.Config(
    dim=4, seeds=3, alphas=(0.2, 0.6), hidden=6, added=(0, 1, 2), widths=(4, 1), frozen_layers=1,
    rates=(0.1, 0.3, 1.0, 3.0),
    budget=Budget(steps=15, tasks=20, rate=0.02, query=50, test_tasks=50, test_query=100))


@pytest.mark.parametrize("kind", TINY.kinds)
def test_the_points_of_linear_layers(kind: str) -> None:
    points = [point for point in linear_layers.points(TINY) if point["kind"] == kind]
    deep = next(p for p in points if p["added"] == 2 and p["frozen"] == "none")
    first, second = (linear_layers.measure(TINY, deep, "cpu") for _ in range(2))
    assert first == second
    assert [(row["alpha"], row["seed"]) for row in first] == [
        (alpha, seed) for alpha in (0.2, 0.6) for seed in range(3)]
    assert all(row["off"] < 1e-10 for row in first)
    assert len({row["risk_1"] for row in first}) == 6
    froze = next(p for p in points if p["frozen"] == "bottom 1")
    fleet, model = linear_layers.fleet_of(TINY, froze, (0.2,)), linear_layers.model_of(TINY, froze)
    names = start(fleet, model)
    kept = [name for name in names if name not in model.adapted]
    assert kept
    assert all(name.startswith("0.") for name in kept)
    top = linear_layers.model_of(TINY, next(p for p in points if p["frozen"] == "top 1"))
    assert {int(name[0]) for name in top.adapted} == set(range(max(int(name[0]) for name in names)))


def test_a_lost_rate_has_the_columns_of_the_others() -> None:
    lost = replace(TINY, alphas=(0.2, 1e9), seeds=2)
    point = next(p for p in linear_layers.points(lost) if p["added"] == 1)
    rows = linear_layers.measure(lost, point, "cpu")
    assert len({tuple(row) for row in rows}) == 1
    assert [row["off"] is None for row in rows] == [False, False, True, True]


@pytest.fixture
def table(around) -> pd.DataFrame:
    """D2 holds: .5 for plain, .4 with layers, .55 collapsed, .45 at its own rate."""
    config, rows = linear_layers.PROFILES["full"], []
    for point in linear_layers.points(config):
        for alpha in config.alphas:
            layers = point["added"] > 0 and point["frozen"] == "none"
            multiplied = {"off": 1e-15, "collapsed": 0.55, "collapsed_tuned": 0.45}
            rows += [{**point, "alpha": alpha, "seed": seed, "risk_1": risk, "valid": risk + alpha}
                     | (multiplied if layers else dict.fromkeys(multiplied))
                     for seed, risk in enumerate(around(0.5 if point["added"] == 0 else 0.4))]
    return pd.DataFrame(rows)


def words(table: pd.DataFrame) -> list[str]:
    record = Record(table, {"config": {"widths": linear_layers.PROFILES["full"].widths}})
    findings = linear_layers.EXPERIMENT.findings
    return [findings[part](record).word for part in ("D2/collapse", "D2/own rate")]


def test_d2_flips(table: pd.DataFrame) -> None:
    some = (table["kind"] == "mlp") & (table["added"] == 3)

    def changed(where, **columns) -> list[str]:
        return words(table.assign(**{name: table[name].where(~where, value)
                                     for name, value in columns.items()}))

    every = table["added"] > 0
    assert words(table) == ["supported"] * 2
    assert changed(some, risk_1=0.6) == ["supported", "mixed"]
    assert changed(every, risk_1=0.6) == ["supported", "contradicted"]
    assert changed(some, collapsed=0.4) == ["mixed", "supported"]
    assert changed(every, collapsed=0.3) == ["contradicted", "supported"]
    assert changed(some, collapsed=0.495) == ["inconclusive", "supported"]
    assert changed(some, collapsed_tuned=0.3) == ["supported", "mixed"]
    assert changed(every, collapsed_tuned=0.3) == ["supported", "contradicted"]


def test_the_claim_is_about_spread_inputs_and_the_usual_width(table: pd.DataFrame) -> None:
    aside = (table["added"] > 0) & ((table["inputs"] == "isotropic") | (table["width"] != 10))
    columns = ("risk_1", "collapsed", "collapsed_tuned")
    worse = table.assign(**{name: table[name].where(~aside, table["risk_1"] * 2)
                            for name in columns})
    assert words(worse) == ["supported"] * 2


def test_lost_rates_have_no_collapsed_model(table: pd.DataFrame) -> None:
    lost = (table["kind"] == "mlp") & (table["added"] == 3)
    rest = table.assign(collapsed=table["collapsed"].where(~lost))
    assert len(linear_layers.collapses(rest)) == len(linear_layers.collapses(table)) - 2
    assert words(rest) == ["supported"] * 2
