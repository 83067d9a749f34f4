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
from companion.measures import networks, quadratic
from companion.meta_optimizers import sgd
from companion.records import Record
from companion.streams import torch_stream
from companion.tasks import teachers
from companion.theory.gaussian import excess_risk, minimiser_maml, minimiser_nal, q_matrix
from companion.theory.kernels import hessian, population_loss

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
    """Risks and pulls from one task after another; what MAML's gradient is, (I - a H) grad f(w+),
    from the Hessian of the exact loss."""
    fleet, model = fleet_of("erf", (3, 7)), Model(nets.two_layer(6, 2, "erf"))
    params, budget = start(fleet, model), replace(TINY.budget, test_tasks=8, batch=8)
    columns = quadratic.by_group(fleet, model, params, budget, "erf")
    drawn = fleet.draw(fleet, "test", 8, 60)(0)
    for run in range(2):
        (family,), one = fleet.run(run), {"weight": params["weight"][run]}
        alpha = fleet.alpha[run]
        risks, slopes = {0: [], 1: []}, {0: [], 1: []}
        for i in range(8):
            t, rho, group = teachers.teacher(family, {name: value[run, i]
                                                      for name, value in drawn.items()})

            def loss(p, batch, t=t, rho=rho):
                return population_loss(p["weight"], t, rho, "erf")

            moved = adapt(loss, one, None, steps=1, update=sgd(alpha))
            before, after = (grad(loss)(p, None)["weight"].flatten() for p in (one, moved))
            left = torch.eye(12, dtype=F64) - alpha * hessian(one["weight"], t, rho, "erf")
            risks[int(group)].append([loss(one, None), loss(moved, None)])
            slopes[int(group)].append(torch.stack([before, left @ after]) / 8)
        every = np.array(risks[0] + risks[1], dtype=float)
        assert columns["maml"][run] == pytest.approx(every[:, 1].mean(), rel=1e-10)
        pulls = [torch.stack(slopes[group]).sum(0) for group in (0, 1)]
        for k, when in enumerate(("before", "after")):
            for group, name in enumerate(("easy", "hard")):
                mean = np.array(risks[group], dtype=float)[:, k].mean()
                assert columns[f"maml_{name}_{when}"][run] == pytest.approx(mean, rel=1e-10)
                assert columns[f"maml_{name}_pull_{when}"][run] == pytest.approx(
                    float(pulls[group][k].norm()), rel=1e-9)
            whole = (pulls[0][k] + pulls[1][k]).norm() / sum(pull[k].norm() for pull in pulls)
            assert columns[f"maml_imbalance_{when}"][run] == pytest.approx(float(whole), rel=1e-9)


def test_hardness_is_measured_on_the_curvatures() -> None:
    """h against the eigenvalues of H^-1/2 Q H^-1/2 by another route, and what a step leaves of each
    group; where tasks are far from any step h is 1."""
    fleet = fleet_of("erf", (7,))
    (family,), alpha = fleet.run(0), float(fleet.alpha[0])
    easy = teachers.aligned(family.centres[0], family.centres[1])
    family = family._replace(centres=torch.stack([easy, family.centres[1]]))
    drawn = teachers.drawn(family, 7, 40)
    left, shares = [], {0: [], 1: []}
    for i in range(40):
        w, rho, group = teachers.teacher(family, {n: value[i] for n, value in drawn.items()})
        eigenvalues = torch.linalg.eigvalsh(teachers.curvature("erf", w, rho, normal(1, 6)))
        after = (1 - alpha * eigenvalues) ** 2  # of H^-1/2 Q H^-1/2: at m = infinity they commute
        left += after.tolist()
        shares[int(group)].append(float((after * eigenvalues).sum() / eigenvalues.sum()))
    said = quadratic.predict("erf", family, alpha, None, 7, count=40)
    assert said.spread == pytest.approx(min(left) / max(left), rel=1e-6)
    assert said.left_easy == pytest.approx(np.mean(shares[0]), rel=1e-6)
    assert said.left_hard == pytest.approx(np.mean(shares[1]), rel=1e-6)
    assert quadratic.predict("erf", family, 0.0, None, 7, count=40).spread == pytest.approx(1)


def test_nearby_tasks_are_as_the_linear_theory_says() -> None:
    """Where all teachers are close together the quadratic models are exact: measured and predicted
    risks agree."""
    near = {name: value * 0.01 for name, value in BASE.items() if "var" in name}
    fleet = fleet_of("relu", (3, 7), distance=0.2, **near)
    budget = Budget(steps=120, tasks=20, rate=0.1, test_tasks=400, batch=100)
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
                ratio = 1.5 + 0.1 * i
                for seed in range(config.seeds):
                    maml = 0.1 * (1 + noise * rng.standard_normal())
                    where = {"activation": activation, "sweep": sweep, "x": float(x), "seed": seed}
                    rows.append(where | {
                        "predicted_nal": 2 * ratio, "predicted_maml": 2.0, "nal": ratio * 0.1,
                        "maml": maml, "h": 0.05,  # a ceiling of 5.5
                        "nal_imbalance_before": 0.1, "maml_imbalance_before": 0.9,
                        "nal_imbalance_after": 0.8, "maml_imbalance_after": 0.1
                        + noise * rng.standard_normal()})
    return pd.DataFrame(rows)


def findings(table: pd.DataFrame):
    record = Record(table, {"config": {"base": two_layer.PROFILES["full"].base}})
    return {name: finding(record).word
            for name, finding in two_layer.EXPERIMENT.findings.items()}


PARTS = ["L4/ceiling", "L4/packed and far", "L4/order", "L4/stationarity"]


def test_l4_flips() -> None:
    table, yes = made(), "supported"
    erf, rho = table["activation"] == "erf", table["sweep"] == "rho_hard"
    near, base = rho & (table["x"] == 0.2), (table["sweep"] == "distance") & (table["x"] == 2)

    def words(where, column: str, factor: float) -> list[str]:
        changed = table.assign(**{column: table[column].where(~where, table[column] * factor)})
        return list(findings(changed).values())

    assert list(findings(table)) == PARTS
    assert words(erf & False, "nal", 1) == [yes] * 4
    assert words(near & erf, "nal", 0.6)[1] == "mixed"
    assert words(rho & (table["x"] <= 0.2), "nal", 0.6)[1] == "contradicted"
    assert words(near & erf, "nal", 1.1 / 1.7)[1] == "inconclusive"
    assert words(erf, "h", 10)[0] == "mixed"  # h = .5, a ceiling of 1.125
    assert words(erf | ~erf, "h", 10)[0] == "contradicted"
    assert words(erf & base, "maml_imbalance_after", 10)[3] == "mixed"
    assert words(base, "nal_imbalance_before", 9)[3] == "mixed"
    assert words(erf & ~base, "maml_imbalance_after", 10)[3] == yes  # elsewhere nothing is asked


def test_the_order_flips() -> None:
    table = made()
    reverse = 2 / table["predicted_nal"]
    erf = table["activation"] == "erf"
    one = erf & (table["sweep"] == "support")
    for where, word in ((erf | ~erf, "contradicted"), (erf, "mixed"), (one, "mixed")):
        changed = table.assign(predicted_nal=table["predicted_nal"].where(~where, reverse))
        assert findings(changed)["L4/order"] == word
    assert findings(made(noise=0.2))["L4/order"] == "inconclusive"


def test_the_ceiling_leaves_its_slack() -> None:
    found = networks.slack(made(noise=0.01))
    first = found.iloc[0]  # distance 0, a ratio of 1.5
    assert first["low"] < np.log(1.05**2 / 0.2 / 1.5) < first["high"]


def test_own_steps_are_chosen_in_every_resample() -> None:
    """Each method's best step, and an interval that knows of the choice: where steps are equally
    good the ratio of least means is below that at any one step."""
    xs = two_layer.PROFILES["full"].sweeps["alpha"]
    rng = np.random.default_rng(0)
    nal, maml = 1 + (np.array(xs) - 0.6) ** 2, 0.5 + (np.array(xs) - 1.2) ** 2
    rows = [{"activation": "erf", "sweep": "alpha", "x": x, "seed": seed,
             "nal": nal[i] + 0.01 * rng.standard_normal(),
             "maml": maml[i] + 0.01 * rng.standard_normal()}
            for i, x in enumerate(xs) for seed in range(20)]
    (row,) = networks.own_steps(pd.DataFrame(rows)).to_dict("records")
    assert (row["step NAL"], row["step MAML"]) == (0.6, 1.2)
    assert row["low"] < 2 < row["high"]
    assert row["high"] - row["low"] < 0.1
    flat = pd.DataFrame(rows).assign(nal=1 + 0.1 * rng.standard_normal(len(rows)), maml=1.0)
    (row,) = networks.own_steps(flat).to_dict("records")
    assert row["value"] < flat.groupby("x")["nal"].mean().median()


def test_a_shared_setting_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, seen = two_layer.PROFILES["full"], []
    order = networks.order
    monkeypatch.setattr(networks, "order", lambda rows: seen.append(rows) or order(rows))
    found = networks.correlations(Record(made(), {"config": {"base": config.base}}))
    assert len(seen) == len(found) == len(config.activations) * (1 + len(config.sweeps))
    for rows, sweep in zip(seen, found["sweep"], strict=True):
        settings = rows.groupby(["sweep", "x"]).size()
        expected = (sum(map(len, config.sweeps.values())) - 3 if sweep == "all"
                    else len(config.sweeps[sweep]))
        assert len(settings) == expected
        assert sweep != "all" or ("distance", config.base["distance"]) in settings.index
