"""Upper layers beside a fitted rule: what is compared, when, and D4 from made tables."""

from dataclasses import replace

import pandas as pd
import pytest
import torch

from companion.experiments import alignment
from companion.fleets import Budget, Model, start, train
from companion.records import Record

QUICK = alignment.PROFILES["quick"]


def test_upper_linear_layers_are_an_external_optimizer() -> None:
    """Gradients of the bottom layers with and without linear upper layers: one Kronecker product
    fits, exactly."""
    config = replace(QUICK, seeds=2, pairs=60, looks=(0, 5),
                     budget=Budget(steps=5, tasks=20, rate=0.04, query=50))
    rows = alignment.measure(config, {"activation": "identity"}, "cpu")
    assert [(row["look"], row["layer"], row["seed"]) for row in rows] == [
        (look, layer, seed) for look in (0, 5) for seed in (0, 1) for layer in (0, 1)]
    assert all(row["aligned"] == pytest.approx(1, abs=1e-6) for row in rows)
    assert all(row["raw"] < 0.9 and row["shuffled"] < 0.9 for row in rows)
    relu = alignment.measure(config, {"activation": "relu"}, "cpu")
    assert all(row["raw"] < row["aligned"] < 0.999 for row in relu)


def test_looks_are_at_the_parameters_of_those_steps() -> None:
    budget = Budget(steps=4, tasks=5, rate=0.04, query=10)
    config = replace(QUICK, seeds=1, pairs=20, looks=(0, 4), budget=budget)
    fleet, model = alignment.fleet_of(config), Model(alignment.network(config, "tanh"))
    rows = alignment.measure(config, {"activation": "tanh"}, "cpu")
    begin = start(fleet.to(torch.float32), model)  # the precision of training
    begin = {name: value.double() for name, value in begin.items()}
    for look, params in ((0, begin), (4, train(fleet, model, budget))):
        expected = alignment.compare(config, fleet, "tanh", params)
        found = [row["aligned"] for row in rows if row["look"] == look]
        assert found == pytest.approx([row["aligned"] for row in expected], rel=1e-4)
    assert rows[0]["aligned"] != rows[2]["aligned"]


def test_d4_flips(around) -> None:
    config = alignment.PROFILES["full"]
    table = pd.DataFrame([
        {**point, "look": look, "layer": layer, "seed": seed, "aligned": cosine, "raw": 0.1,
         "shuffled": cosine - 0.3 - 0.001 * seed}
        for point in alignment.points(config) for look in config.looks for layer in (0, 1)
        for seed, cosine in enumerate(around(0.7))])

    def found(where, value):
        changed = table.assign(shuffled=table["shuffled"].where(~where, value))
        return alignment.nonlinear(Record(changed, {}))

    nonlinear = table["activation"] != "identity"
    early = (table["look"] == 0) & (table["activation"] == "relu")
    holds = found(early & False, 0)
    assert (holds.word, holds.interval.value) == ("supported", pytest.approx(0.3095, abs=1e-6))
    assert len(holds.cases) == 2 * 4 * 2
    assert found(~nonlinear, 0.9) == holds
    assert found(early, 0.9).word == "mixed"
    assert found(nonlinear, 0.9).word == "contradicted"
    unsure = found(early, table["aligned"] + 0.01 * (table["seed"] - 9.5))
    assert (unsure.word, unsure.detectable > 0) == ("inconclusive", True)
