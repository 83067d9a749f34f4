"""The two-layer experiment: its parts against oracles, and its verdict against tables made for
it."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad

from companion.adaptation import adapt
from companion.experiments import two_layer
from companion.experiments.two_layer import local, measure
from companion.meta_optimizers import sgd
from companion.records import Record
from companion.streams import torch_stream
from companion.tasks import teachers
from companion.theory.gaussian import q_matrix
from companion.theory.kernels import population_loss

F64 = torch.float64
BASE = {"rho_easy": 1.0, "rho_hard": 0.2, "distance": 1.0, "var_easy": 0.1, "var_hard": 0.02,
        "alpha": 0.9}
TINY = two_layer.Config(dim=6, hidden=2, base=BASE,
                        sweeps={"distance": (0.5, 1.5), "support": (30,), "hidden": (1,)},
                        softplus_support=60, seeds=3, tasks=5, steps=20, query=10, test_tasks=100,
                        test_query=60)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch_stream(0, "tests"), dtype=F64)


def test_features_are_the_derivative_of_the_output() -> None:
    w, x = normal(2, 4), normal(9, 4)
    phi = local.features("relu", w, x)
    torch.testing.assert_close(phi, ((x @ w.T > 0).double()[..., None] * x[:, None]).flatten(1))
    soft = local.features("softplus", w, x)
    torch.testing.assert_close(soft, (torch.sigmoid(x @ w.T)[..., None] * x[:, None]).flatten(1))


def test_the_drawn_curvature_is_the_exact_one() -> None:
    w, rho = normal(2, 4), torch.tensor(0.6, dtype=F64)
    x = normal(400_000, 4)
    exact = local.curvature("relu", w, rho, x[:1])
    phi = local.features("relu", w, rho.sqrt() * x)
    error = (phi[:, :, None] * phi[:, None]).std(0) / len(x) ** 0.5
    assert ((phi.mT @ phi / len(x) - exact).abs() / error).max() < 4.5


def test_what_a_step_leaves_undone() -> None:
    """Q with m samples against drawn supports, for which Wick's formula for Gaussian features is
    too low."""
    m, alpha, draws = 12, 0.5, 40_000
    w, rho = normal(2, 3), torch.tensor(0.8, dtype=F64)
    h = local.curvature("relu", w, rho, normal(1, 3)).numpy()
    q = local.leftover("relu", w, rho, h, alpha, m, normal(400_000, 3))
    phi = local.features("relu", w, rho.sqrt() * normal(draws * m, 3)).reshape(draws, m, -1).numpy()
    shrink = np.eye(6) - alpha * phi.swapaxes(1, 2) @ phi / m
    drawn = np.trace(shrink @ h @ shrink, axis1=1, axis2=2)
    error = drawn.std() / draws**0.5
    assert error < 0.003 * drawn.mean()
    assert abs(drawn.mean() - np.trace(q)) < 4 * error
    assert abs(drawn.mean() - np.trace(q_matrix(h, alpha, m))) > 10 * error
    full = local.leftover("relu", w, rho, h, alpha, None, normal(1, 3))
    np.testing.assert_allclose(full, (np.eye(6) - alpha * h) @ h @ (np.eye(6) - alpha * h),
                               atol=1e-12)


def test_scores_are_those_of_each_task() -> None:
    of = measure.fleet("erf", [BASE], [0, 1], dim=6, hidden=2, support=None)
    params = measure.start(of)
    sizes = measure.Sizes(tasks=5, steps=1, rate=0.1, query=10, test_tasks=4)
    found = measure.scores(of, params, sizes, batch=4)
    drawn = of.normals("test", 4, 0)(0)
    for run in range(2):
        family = measure.run(of, run)
        one = {"weight": params["weight"][run]}
        for task in range(4):
            t, rho, group = teachers.teacher(
                family, {name: value[run, task] for name, value in drawn.items()}
            )

            def loss(p, batch, t=t, rho=rho):
                return population_loss(p["weight"], t, rho, "erf")

            moved = adapt(loss, one, None, steps=1, update=sgd(of.alpha[run]))
            slope = grad(loss)(one, None)["weight"]
            expected = (group, loss(one, None), loss(moved, None), slope.norm())
            for got, want in zip(found, expected, strict=True):
                assert got[run, task].item() == pytest.approx(want.item(), rel=1e-10)


def test_the_inner_step_is_relative_to_the_easy_curvature() -> None:
    of = measure.fleet("relu", [BASE], [0], dim=6, hidden=2, support=None)
    top = torch.linalg.eigvalsh(local.mean_curvature("relu", measure.run(of, 0), teachers.EASY, 0))[
        -1
    ]
    assert (of.alpha[0] * top).item() == pytest.approx(0.9, rel=1e-10)


def test_nearby_tasks_are_as_the_linear_theory_says() -> None:
    """Where all teachers are close together the quadratic models are exact: measured and predicted
    risks agree."""
    near = {name: value * 0.01 if "var" in name else value for name, value in BASE.items()} | {
        "distance": 0.2
    }
    of = measure.fleet("relu", [near], [0, 1, 2], dim=6, hidden=2, support=None)
    sizes = measure.Sizes(tasks=20, steps=600, rate=0.03, query=0, test_tasks=600)
    for method in measure.METHODS:
        risk = measure.scores(of, measure.train(of, method, sizes), sizes).after.mean(1)
        for i, seed in enumerate(of.seeds):
            said = local.predict("relu", measure.run(of, i), float(of.alpha[i]), None, seed,
                                 count=400)
            assert risk[i].item() == pytest.approx(getattr(said, f"risk_{method}"), rel=0.15)


@pytest.mark.parametrize("index", range(9))
def test_a_point_is_computed_the_same_way_twice(index: int) -> None:
    points = two_layer.points(TINY)
    assert len(points) == 9
    first, second = (two_layer.compute(TINY, points[index], "cpu") for _ in range(2))
    assert first == second
    assert len(first) == 3 * len(points[index]["x"])
    assert len({row["maml"] for row in first}) == len(first)
    assert all(0 < row["maml"] < 1 for row in first)
    assert all(isinstance(value, str | int | float) for row in first for value in row.values())


def test_values_of_a_sweep_do_not_see_each_other() -> None:
    """A run is the same in another fleet: draws and starts belong to the seed."""
    both = two_layer.compute(TINY, two_layer.points(TINY)[0], "cpu")
    alone = replace(TINY, sweeps={"distance": (1.5,)})
    one = two_layer.compute(alone, two_layer.points(alone)[0], "cpu")
    for row, same in zip(both[3:], one, strict=True):
        for name, value in row.items():
            assert (value == same[name]
                    if isinstance(value, str)
                    else value == pytest.approx(same[name], rel=1e-4))


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
    for activation in two_layer.ACTIVATIONS:
        for sweep, xs in config.sweeps.items():
            for i, x in enumerate(xs):
                ratio = 1.0 if (sweep, x) == ("rho_hard", 1.0) else 1.5 + 0.1 * i
                for seed in range(config.seeds):
                    maml = 0.1 * (1 + noise * rng.standard_normal())
                    where = {"activation": activation, "sweep": sweep, "x": float(x), "seed": seed}
                    predicted = {"predicted_nal": 2 * ratio, "predicted_maml": 2.0}
                    rows.append(where | predicted | {"nal": ratio * 0.1, "maml": maml})
    return pd.DataFrame(rows)


def parts(table: pd.DataFrame) -> list[str]:
    provenance = {"config": {"base": two_layer.PROFILES["full"].base}}
    return list(two_layer.settle_l4(Record(table, provenance)).parts.values())


def test_the_verdict_flips() -> None:
    table = made()
    assert parts(table) == ["holds"] * 3
    erf = table["activation"] == "erf"
    unequal = (table["sweep"] == "rho_hard") & (table["x"] == 1)
    near = (table["sweep"] == "rho_hard") & (table["x"] == 0.2)
    assert parts(table.assign(nal=table["nal"].where(~unequal, table["nal"] * 1.03))) == [
        "fails",
        "holds",
        "holds",
    ]
    assert parts(table.assign(nal=table["nal"].where(~(unequal & erf), table["nal"] * 1.03))) == [
        "partly",
        "holds",
        "holds",
    ]
    assert parts(table.assign(nal=table["nal"].where(~(near & erf), 0.105))) == [
        "holds",
        "partly",
        "holds",
    ]
    reverse = table.assign(predicted_nal=2 / table["predicted_nal"])
    assert parts(reverse) == ["holds", "holds", "fails"]
    wide = made(noise=0.2)
    assert parts(wide)[0] == "fails"


def test_the_base_setting_counts_once() -> None:
    config = two_layer.PROFILES["full"]
    rows = two_layer.landscape_rows(made(), config.base)
    settings = rows.groupby(["sweep", "x"]).size()
    assert (len(settings)
            == sum(len(xs) for sweep, xs in config.sweeps.items() if sweep != "hidden") - 3)
    assert ("distance", config.base["distance"]) in settings.index
