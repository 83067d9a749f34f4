"""What is measured on landscapes that we set, against oracles; and L5 and L6 from made tables."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import grad

from companion.experiments import controlled_images
from companion.fleets import CAP, Budget, Model, start, train
from companion.measures import controlled as measures
from companion.records import Record
from companion.streams import stream
from companion.tasks import controlled
from companion.theory.gaussian import excess_risk, hardness_spread, minimiser_maml, minimiser_nal

TINY = controlled_images.Config(
    "made", {"linear": (0.5, 1.0), "erf": (0.1, 0.4), "relu": (0.1, 0.4)},
    {"packed, far": (True, 0.0), "spread": (True, 1.0)}, (1.0, 0.4),
    images={"classes": 4, "drawings": 5, "variants": 4, "dim": 3, "shots": 6, "queries": 2},
    seeds=2, budget=Budget(steps=20, tasks=5, rate=0.05, test_tasks=40, batch=20))
BASE = {"net": "erf", "contrast": 0.4, "fraction": 0.5}


@pytest.fixture(autouse=True)
def images(patterns) -> Iterator[None]:
    """Noisy patterns in place of any source, none kept for other tests."""
    cached = controlled._loaded, controlled.components
    yield
    for function in cached:
        function.cache_clear()


def test_risks_are_means_over_the_tasks_of_a_group() -> None:
    fleet = controlled_images.fleet_of(TINY, BASE, 0.3, 0.5)
    model = Model(controlled_images.network("erf", 3))
    params, loss = start(fleet, model), fleet.loss(model.net.apply)
    found = measures.group_risks(fleet, model, params, TINY.budget, "test")
    draw = fleet.draw(fleet, "test", 20, 0)
    for run in range(len(fleet.seeds)):
        (of,), one = fleet.run(run), {name: value[run] for name, value in params.items()}
        risks: dict[int, list[float]] = {0: [], 1: []}
        for step in range(2):
            for i in range(20):
                normal = {name: value[run, i] for name, value in draw(step).items()}
                task, group = fleet.make(normal, of), controlled.labels(of, normal)[2]
                slope = grad(loss)(one, task.support)
                moved = {name: value - 0.3 * slope[name] for name, value in one.items()}
                risks[int(group)].append(float(loss(moved, task.query)))
        assert found[run] == pytest.approx([np.mean(risks[0]), np.mean(risks[1])], rel=1e-9)


def test_what_a_step_leaves_of_features() -> None:
    """Eigenvalues of E[(I - a H_hat) H (I - a H_hat)] over those of H, from drawn supports; a
    direction without variance counts for nothing."""
    rng, m, alpha = stream(0, "tests"), 8, 0.4
    phi = rng.exponential(size=(40, 3)) * [1.0, 0.5, 0.0]
    phi[:, 2] = phi[:, 0] - phi[:, 1]
    batches = phi[rng.integers(40, size=(60_000, m))]
    h = phi.T @ phi / 40
    shrink = np.eye(3) - alpha * batches.swapaxes(1, 2) @ batches / m
    q = (shrink @ h @ shrink).mean(0)
    sizes, axes = np.linalg.eigh(h)
    root = axes[:, 1:] / np.sqrt(sizes[1:])
    found = measures.leftovers(phi, alpha, m)
    assert found == pytest.approx(np.linalg.eigvalsh(root.T @ q @ root), rel=0.02)
    assert len(found) == 2


def test_the_spread_is_that_of_both_groups() -> None:
    """A linear network's features are the images; for Gaussian ones the theory has h."""
    x = torch.from_numpy(stream(0, "tests").standard_normal((2, 60_000, 2)) * [1.0, 0.7])
    of = controlled.landscape(x, far=True, contrast=0.5, permuted_easy=0, permuted_hard=0)
    model = Model(controlled_images.network("linear", 2))
    settings = ({name: value[None] for name, value in of._asdict().items()},)
    fleet = replace(controlled_images.fleet_of(TINY, BASE, 0.6, 0.5), seeds=(0,),
                    settings=(controlled.Landscape(**settings[0]),),
                    alpha=torch.tensor([0.6]).double())
    params = {"0.weight": torch.zeros(1, 1, 2).double()}
    (found,) = measures.spreads(fleet, model, params, 20)
    covariances = np.array([np.diag([1, 0.49]), np.diag([0.25, 0.1225])])
    assert found == pytest.approx(hardness_spread(covariances, 0.6, 20), rel=0.03)


@pytest.mark.parametrize("fraction", [0.5, 0.0, 0.8])
def test_predictions_are_the_linear_theory_on_the_images(fraction: float) -> None:
    """Task by task, by the formulas of linear regression."""
    fleet = controlled_images.fleet_of(TINY, BASE | {"net": "linear"}, 0.5, 0.5)
    (of,) = fleet.run(2)  # spread hard tasks of the first seed
    found = measures.predict(of, 0, 24, fraction, count=30)
    x = measures._new(of).numpy()
    assert len(x) == 4 * 20
    normal = controlled_images.measures.normals(
        [0], "controlled/maps", controlled.shapes(4, 1, 60), dtype=torch.float64)(0)
    covariances, optima, noise = [], [], []
    for i in range(60):
        each = {name: value[0, i] for name, value in normal.items()}
        each["group"] = torch.tensor(-9.0 if i >= 30 else 9.0)
        signs, contrast, group = controlled.labels(of, each)
        assert group == (i >= 30)
        scaled, y = contrast.item() * x, contrast.item() * np.repeat(signs.numpy(), 20)
        w = np.linalg.lstsq(scaled, y, rcond=None)[0]
        covariances.append(scaled.T @ scaled / len(x))
        optima.append(w)
        noise.append(np.mean((y - scaled @ w) ** 2))
    tasks, s = (np.array(covariances), np.array(optima)), np.array(noise)
    weights = np.repeat([1 - fraction, fraction], 30)

    def risks(w: np.ndarray, step: float) -> tuple[float, float]:
        parts = []
        for rows in (slice(0, 30), slice(30, 60)):
            sigma = s[rows].mean() ** 0.5
            parts.append(float(excess_risk(w, tasks[0][rows], tasks[1][rows], step, 24,
                                           noise=sigma)) + sigma**2 / 2)
        return float(np.mean(parts)), parts[1]

    steps = np.geomspace(0.1, 2, 25)
    nal = min(risks(minimiser_nal(*tasks, weights), step) for step in steps)
    maml = min(risks(minimiser_maml(*tasks, step, 24, weights), step) for step in steps)
    assert (found.nal, found.nal_hard) == pytest.approx(nal, rel=1e-9)
    assert (found.maml, found.maml_hard) == pytest.approx(maml, rel=1e-9)


def test_a_linear_network_does_as_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the images are almost Gaussian, as the theory has them."""
    def drawn(source: str, seed: int, *, classes: int, dim: int, **_: int) -> torch.Tensor:
        rng = stream(seed, "tests/gaussian")
        x = rng.standard_normal((classes, 160, dim)) + 0.9 * rng.standard_normal((classes, 1, dim))
        return torch.from_numpy(x)

    monkeypatch.setattr(controlled, "components", drawn)
    config = replace(TINY, contrasts=(0.4,), alphas={"linear": (0.25, 0.4)}, images=TINY.images | {
        "drawings": 20, "shots": 20}, budget=Budget(
            steps=100, tasks=10, rate=0.05, test_tasks=400, batch=200))
    rows = controlled_images.measure(config, BASE | {"net": "linear"}, "cpu")
    found = measures.pairs(pd.DataFrame(rows))
    for name in ("nal", "maml"):
        assert found[name].to_numpy() == pytest.approx(found[f"predicted_{name}"].to_numpy(),
                                                       rel=0.05)
    ratios = measures.ratios(pd.DataFrame(rows)).set_index("landscape")
    assert ratios["predicted"]["packed, far"] > 1.02
    assert ratios["value"].to_numpy() == pytest.approx(ratios["predicted"].to_numpy(), abs=0.02)


def test_the_rows_of_a_point() -> None:
    points = controlled_images.points(TINY)
    assert [tuple(point.values()) for point in points if point["net"] == "erf"] == [
        ("erf", 1.0, 0.5), ("erf", 0.4, 0.5), ("erf", 0.4, 0.0), ("erf", 0.4, 1.0)]
    for point in points[5:7]:
        rows = controlled_images.measure(TINY, point, "cpu")
        methods = ("nal", "maml") if point["fraction"] == 0.5 else ("maml",)
        assert [(row["method"], row["alpha"], row["landscape"], row["seed"]) for row in rows] == [
            (method, alpha, name, seed) for method in methods for alpha in (0.1, 0.4)
            for name in ("packed, far", "spread") for seed in range(2)]
        assert all((row["h"] is None) == (row["method"] == "nal") for row in rows)
        assert all(0 < row["risk_hard"] < 2 * row["risk"] < 9 for row in rows)
        assert all(row[name] == point[name] for row in rows for name in point)
        assert rows == controlled_images.measure(TINY, point, "cpu")


def test_each_row_is_of_its_own_training() -> None:
    """MAML at its inner rate and share of hard tasks, all tested on the same tasks."""
    point = BASE | {"fraction": 1.0}
    rows = controlled_images.measure(TINY, point, "cpu")
    for alpha in (0.1, 0.4):
        model = Model(controlled_images.network("erf", 3))
        params = train(controlled_images.fleet_of(TINY, point, alpha, 1.0), model, TINY.budget)
        asked = controlled_images.fleet_of(TINY, point, alpha, 0.5)
        risks = measures.group_risks(asked, model, params, TINY.budget, "test")
        mine = [row for row in rows if row["alpha"] == alpha]
        assert [row["risk"] for row in mine] == pytest.approx(risks.mean(1), rel=1e-4)
        assert [row["risk_hard"] for row in mine] == pytest.approx(risks[:, 1], rel=1e-4)


def test_a_run_that_diverges_is_lost() -> None:
    wild = replace(TINY, alphas={"relu": (0.1, 1e30)})
    rows = controlled_images.measure(wild, BASE | {"net": "relu"}, "cpu")
    lost = [row for row in rows if row["alpha"] == 1e30]
    assert all(row["valid"] == row["risk"] == CAP for row in lost if row["method"] == "maml")
    assert all(row["risk"] < CAP for row in rows if row["alpha"] == 0.1)


def made(**changes: float) -> pd.DataFrame:
    """A table in which all parts hold; the second inner rate is MAML's own, the first NAL's."""
    rng, rows = np.random.default_rng(0), []
    config = replace(controlled_images.PROFILES["full"], seeds=8)
    for point in controlled_images.points(config):
        for name in controlled_images.names(config, point):
            gain = 0.3 if (name, point["contrast"]) == ("packed, far", 0.4) else 0.1
            for method in ("nal", "maml") if point["fraction"] == 0.5 else ("maml",):
                for alpha in (0.1, 0.2):
                    bad = (method == "maml") == (alpha == 0.1)
                    for seed in range(8):
                        noise = 0.01 * rng.standard_normal()
                        log = gain * (method == "nal") + noise + bad
                        rows.append(point | {
                            "landscape": name, "method": method, "alpha": alpha, "seed": seed,
                            "valid": 1.0 + bad, "risk": np.exp(log), "predicted": 1 + gain
                            * (method == "nal"), "h": None if method == "nal" else 0.1,
                            "risk_hard": np.exp(noise - 0.5 * point["fraction"] + bad),
                            "predicted_hard": np.exp(-0.3 * point["fraction"])})
    return pd.DataFrame(rows).astype({"h": float})


def words(table: pd.DataFrame) -> list[str]:
    return [finding(Record(table, {})).word
            for finding in controlled_images.EXPERIMENT.findings.values()]


def test_parts_flip() -> None:
    table, yes, no = made(), "supported", "contradicted"
    assert list(controlled_images.EXPERIMENT.findings) == [
        "L5/controlled", "L5/controlled ceiling", "L6/controlled"]
    maml = (table["method"] == "maml") & (table["fraction"] == 0.5)
    far = maml & (table["landscape"] == "packed, far") & (table["contrast"] == 0.4)
    erf, linear = table["net"] == "erf", table["net"] == "linear"

    def changed(where, column: str, factor) -> list[str]:
        return words(table.assign(**{column: table[column].where(~where, table[column] * factor)}))

    assert words(table) == [yes] * 3
    assert changed(far, "risk", np.exp(0.4))[:1] == [no]
    assert changed(far & erf, "risk", np.exp(0.4))[:1] == ["mixed"]
    assert changed(far, "risk", np.exp(0.2))[:1] == ["inconclusive"]
    assert changed(far & linear, "risk", np.exp(0.4)) == [yes] * 3  # not asked
    assert changed(maml, "risk", np.exp(-3))[1] == no  # ceiling of 3.03
    assert changed(far & erf, "h", 9)[1] == "mixed"
    fraction = table["fraction"]
    assert changed(erf | ~erf, "risk_hard", np.exp(fraction))[2] == no
    assert changed(erf, "risk_hard", np.exp(fraction))[2] == "mixed"
    assert changed(linear, "risk_hard", np.exp(fraction))[2] == yes


def test_numbers_of_a_made_table() -> None:
    table = made()
    found = measures.differences(table, "packed, far", "spread")
    assert found["net"].tolist() == ["linear", "erf", "relu"]
    assert found["value"].tolist() == pytest.approx([0.2] * 3, abs=0.03)
    assert measures.slopes(table)["value"].tolist() == pytest.approx([0.5] * 6, abs=0.03)
    said = measures.slopes(table, "predicted_hard")
    assert said["value"].tolist() == pytest.approx([0.3] * 6)
    ratios = measures.ratios(table).set_index(measures.SETTING)
    assert len(ratios) == 3 * 3 * 5
    row = ratios.loc["erf", 0.4, "packed, far"]
    assert (row["predicted"], row["h"]) == pytest.approx((1.3, 0.1))
    assert 0.97 * row["low"] < np.exp(0.3) < 1.03 * row["high"]
