"""The two-layer experiment and its quadratic models against oracles, and L4 from made tables."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad

from companion import nets
from companion.adaptation import adapt
from companion.experiments import two_layer
from companion.fleets import Budget, Model, start, train
from companion.measures import quadratic
from companion.meta_optimizers import sgd
from companion.records import Record
from companion.streams import torch_stream
from companion.tasks import teachers
from companion.theory.gaussian import excess_risk, minimiser_maml, minimiser_nal, q_matrix
from companion.theory.kernels import population_loss

F64 = torch.float64
BASE = {"rho_easy": 1.0, "rho_hard": 0.2, "distance": 1.0, "var_easy": 0.1, "var_hard": 0.02,
        "alpha": 0.9}
TINY = two_layer.Config(dim=6, hidden=2, base=BASE,
                        sweeps={"distance": (0.5, 1.5), "support": (30,), "hidden": (1,)},
                        softplus_support=60, seeds=2,
                        budget=Budget(steps=10, tasks=5, rate=0.05, query=10, test_tasks=50,
                                      test_query=60))


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch_stream(0, "tests"), dtype=F64)


def fleet_of(activation: str, seeds, support: int | None = None, **changes: float):
    return teachers.teacher_fleet(activation, [BASE | changes], seeds, dim=6, hidden=2,
                                  support=support)


def test_what_a_step_leaves_undone() -> None:
    """Q with m samples against drawn supports, for which Wick's formula for Gaussian features is
    too low."""
    m, alpha, draws = 12, 0.5, 40_000
    w, rho = normal(2, 3), torch.tensor(0.8, dtype=F64)
    h = teachers.curvature("relu", w, rho, normal(1, 3)).numpy()
    q = quadratic.leftover("relu", w, rho, h, alpha, m, normal(400_000, 3))
    phi = teachers.features("relu", w, rho.sqrt() * normal(draws * m, 3))
    phi = phi.reshape(draws, m, -1).numpy()
    shrink = np.eye(6) - alpha * phi.swapaxes(1, 2) @ phi / m
    drawn = np.trace(shrink @ h @ shrink, axis1=1, axis2=2)
    error = drawn.std() / draws**0.5
    assert error < 0.003 * drawn.mean()
    assert abs(drawn.mean() - np.trace(q)) < 4 * error
    assert abs(drawn.mean() - np.trace(q_matrix(h, alpha, m))) > 10 * error
    full = quadratic.leftover("relu", w, rho, h, alpha, None, normal(1, 3))
    np.testing.assert_allclose(full, (np.eye(6) - alpha * h) @ h @ (np.eye(6) - alpha * h),
                               atol=1e-12)


def test_predictions_are_the_linear_theory_at_the_teachers() -> None:
    """Both risks from the curvatures of the drawn teachers by the formulas of linear regression."""
    fleet = fleet_of("relu", (7,))
    (family,), alpha = fleet.run(0), float(fleet.alpha[0])
    easy = teachers.aligned(family.centres[0], family.centres[1])
    family = family._replace(centres=torch.stack([easy, family.centres[1]]))
    drawn = teachers.drawn(family, 7, 40)
    tasks = [teachers.teacher(family, {name: value[i] for name, value in drawn.items()})
             for i in range(40)]
    h = np.stack([teachers.curvature("relu", w, rho, normal(1, 6)).numpy() for w, rho, _ in tasks])
    optima = np.stack([w.flatten().numpy() for w, _, _ in tasks])
    found = quadratic.predict("relu", family, alpha, None, 7, count=40)
    for name, w, step in (("nal", minimiser_nal(h, optima), 0.0),
                          ("maml", minimiser_maml(h, optima, alpha, np.inf), alpha)):
        expected = excess_risk(w, h, optima, step, np.inf)
        assert getattr(found, f"risk_{name}") == pytest.approx(
            float(excess_risk(w, h, optima, alpha, np.inf)), rel=1e-7)
        assert step or expected > found.risk_nal  # a step helps, so NAL's is not its own risk
    assert found.distance == pytest.approx(1.0, rel=1e-9)


def test_groups_are_measured_as_each_task_is() -> None:
    fleet, model = fleet_of("erf", (3, 7)), Model(nets.two_layer(6, 2, "erf"))
    params, budget = start(fleet, model), replace(TINY.budget, test_tasks=8, batch=8)
    columns = quadratic.by_group(fleet, model, params, budget, "erf")
    drawn = fleet.draw(fleet, "test", 8, 60)(0)
    for run in range(2):
        (family,), one = fleet.run(run), {"weight": params["weight"][run]}
        rows = []
        for i in range(8):
            t, rho, group = teachers.teacher(family, {name: value[run, i]
                                                      for name, value in drawn.items()})

            def loss(p, batch, t=t, rho=rho):
                return population_loss(p["weight"], t, rho, "erf")

            moved = adapt(loss, one, None, steps=1, update=sgd(fleet.alpha[run]))
            slope = grad(loss)(one, None)["weight"]
            rows.append([int(group), loss(one, None), loss(moved, None), slope.norm()])
        table = pd.DataFrame(np.array(rows, dtype=float),
                             columns=["group", "before", "after", "gradient"])
        assert columns["maml"][run] == pytest.approx(table["after"].mean(), rel=1e-10)
        for name, number in (("easy", 0), ("hard", 1)):
            for column, value in table[table["group"] == number].mean().drop("group").items():
                assert columns[f"maml_{name}_{column}"][run] == pytest.approx(value, rel=1e-10)


def test_nearby_tasks_are_as_the_linear_theory_says() -> None:
    """Where all teachers are close together the quadratic models are exact: measured and predicted
    risks agree."""
    near = {name: value * 0.01 for name, value in BASE.items() if "var" in name}
    fleet = fleet_of("relu", (3, 7), distance=0.2, **near)
    budget = Budget(steps=250, tasks=20, rate=0.05, test_tasks=400, batch=100)
    for method in ("nal", "maml"):
        model = Model(nets.two_layer(6, 2, "relu"), method)
        trained = train(fleet, model, budget)
        risk = quadratic.by_group(fleet, model, trained, budget, "relu")[method]
        for i, seed in enumerate(fleet.seeds):
            said = quadratic.predict("relu", fleet.run(i)[0], float(fleet.alpha[i]), None, seed,
                                     count=400)
            assert risk[i] == pytest.approx(getattr(said, f"risk_{method}"), rel=0.15)


@pytest.mark.parametrize("index", range(9))
def test_the_rows_of_a_point(index: int) -> None:
    points = two_layer.points(TINY)
    assert len(points) == 9
    rows = two_layer.measure(TINY, points[index], "cpu")
    assert [(row["x"], row["seed"]) for row in rows] == [
        (x, seed) for x in points[index]["x"] for seed in range(2)]
    assert len({row["maml"] for row in rows}) == len(rows)
    assert all(0 < row["maml"] < 1 for row in rows)
    assert all(isinstance(value, str | int | float) for row in rows for value in row.values())
    if index == 0:
        assert rows == two_layer.measure(TINY, points[index], "cpu")


def test_values_of_a_sweep_do_not_see_each_other() -> None:
    """A run is the same in another fleet: draws and starts belong to the seed."""
    both = two_layer.measure(TINY, two_layer.points(TINY)[0], "cpu")
    alone = replace(TINY, sweeps={"distance": (1.5,)})
    one = two_layer.measure(alone, two_layer.points(alone)[0], "cpu")
    for row, same in zip(both[2:], one, strict=True):
        text = {"activation", "sweep"}
        assert all(row[name] == same[name] for name in text)
        assert {name: row[name] for name in row if name not in text} == pytest.approx(
            {name: same[name] for name in same if name not in text}, rel=1e-4)


def test_settings() -> None:
    assert two_layer.setting(TINY, "alpha", 0.3) == BASE | {"alpha": 0.3}
    assert two_layer.setting(TINY, "support", 30) == BASE
    assert two_layer.setting(TINY, "hidden", 1) == BASE | {"rho_hard": 1.0,
                                                           "distance": pytest.approx(2**-0.5)}
    for config in two_layer.PROFILES.values():
        for sweep, xs in config.sweeps.items():
            assert sweep in ("support", "hidden") or config.base[sweep] in xs


def made(noise: float = 0.001) -> pd.DataFrame:
    """A table in which every part of L4 holds."""
    rng = np.random.default_rng(0)
    config, rows = two_layer.PROFILES["full"], []
    for activation in config.activations:
        for sweep, xs in config.sweeps.items():
            for i, x in enumerate(xs):
                ratio = 1.0 if (sweep, x) == ("rho_hard", 1.0) else 1.5 + 0.1 * i
                for seed in range(config.seeds):
                    maml = 0.1 * (1 + noise * rng.standard_normal())
                    where = {"activation": activation, "sweep": sweep, "x": float(x), "seed": seed}
                    predicted = {"predicted_nal": 2 * ratio, "predicted_maml": 2.0}
                    rows.append(where | predicted | {"nal": ratio * 0.1, "maml": maml})
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame):
    record = Record(table, {"config": {"base": two_layer.PROFILES["full"].base}})
    return [finding(record) for finding in (two_layer.equal_hardness, two_layer.packed_and_far,
                                            two_layer.order)]


def test_l4_flips() -> None:
    table, yes = made(), "supported"
    erf, rho = table["activation"] == "erf", table["sweep"] == "rho_hard"
    unequal, near = rho & (table["x"] == 1), rho & (table["x"] == 0.2)

    def words(where, factor: float) -> list[str]:
        changed = table.assign(nal=table["nal"].where(~where, table["nal"] * factor))
        return [found.word for found in findings(changed)]

    assert words(erf & False, 1) == [yes] * 3
    assert words(unequal, 1.03) == ["contradicted", yes, yes]
    assert words(unequal & erf, 1.03) == ["mixed", yes, yes]
    assert words(unequal & erf, 1.02) == ["inconclusive", yes, yes]
    assert words(near & erf, 0.6) == [yes, "mixed", yes]
    assert words(rho & (table["x"] <= 0.2), 0.6)[1] == "contradicted"
    assert words(near & erf, 1.1 / 1.7) == [yes, "inconclusive", yes]
    assert findings(table)[1].cases == {
        f"{activation}, x {x}": yes for activation in ("erf", "relu", "softplus")
        for x in (0.05, 0.1, 0.2)}


def test_the_order_flips() -> None:
    table = made()
    reverse = 2 / table["predicted_nal"]
    erf = table["activation"] == "erf"
    assert findings(table.assign(predicted_nal=reverse))[2].word == "contradicted"
    assert findings(table.assign(predicted_nal=table["predicted_nal"].where(~erf, reverse))
                    )[2].word == "mixed"
    noisy = findings(made(noise=0.2))
    assert [found.word for found in noisy[::2]] == ["inconclusive"] * 2
    assert noisy[0].detectable > 0


def test_the_base_setting_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = two_layer.PROFILES["full"], []
    order = quadratic.order
    monkeypatch.setattr(quadratic, "order", lambda rows: seen.append(rows) or order(rows))
    two_layer.correlations(Record(made(), {"config": {"base": config.base}}))
    assert len(seen) == len(config.activations)
    settings = seen[0].groupby(["sweep", "x"]).size()
    assert (len(settings)
            == sum(len(xs) for sweep, xs in config.sweeps.items() if sweep != "hidden") - 3)
    assert ("distance", config.base["distance"]) in settings.index
