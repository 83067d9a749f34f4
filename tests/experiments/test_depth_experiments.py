"""Paper D's experiments: their parts against oracles, and their verdicts against tables made for
them."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import vmap

from companion import nets
from companion.adaptation import adapt
from companion.experiments import linear_layers, meta_optimizers, shallow, synthetic
from companion.experiments.synthetic import Model, Sizes
from companion.meta_optimizers import RULES, sgd
from companion.objectives import adapted_by_rule, counted, joined
from companion.records import Record
from companion.streams import stream, torch_stream
from companion.tasks import readouts as tasks
from companion.theory import depth
from companion.theory.gaussian import excess_risk

F64 = torch.float64
SPREAD = (0.3, 1.0, 2.0)
SIZES = Sizes(tasks=10, steps=40, rate=0.02, query=20, test_tasks=50, test_query=30)


def fleet(kind: str = "regression", alphas=(0.3,), seeds=(0, 1), **options):
    settings = [{"scales": SPREAD, "alpha": alpha} | options for alpha in alphas]
    return synthetic.fleet(kind, settings, seeds, support=6)


# what a fleet measures


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("regression", 1), ("regression", 2), ("boundaries", 1), ("boundaries", 3)],
)
@pytest.mark.parametrize("rule", ["SGD", "KFO, nonlinear"])
def test_scores_are_those_of_each_task(kind: str, outputs: int, rule: str) -> None:
    of = fleet(kind, alphas=(0.2, 0.4), outputs=outputs)
    model = Model(nets.deep_linear((3, 4, outputs)), rule, 2,
                  rule_alpha=None if rule == "SGD" else 0.01)
    params = synthetic.start(of, model)
    found = synthetic.scores(of, model, params, SIZES, (0, 2))
    draw, loss = of.normals("test", 50, 30)(0), of.loss(model.net.apply)
    for run in range(4):
        one = {name: value[run] for name, value in params.items()}
        family = tasks.Shallow(*(leaf[run] for leaf in of.families))
        risks, right = [], []
        for i in range(50):
            task = of.task({name: value[run, i] for name, value in draw.items()}, family)
            moved = adapted_by_rule(loss, one, task.support, steps=2,
                                    rule=RULES[rule](of.alpha[run]), rule_alpha=model.rule_alpha)
            outputs_ = model.net.apply(moved, task.query[0])
            chosen = outputs_.argmax(-1) if outputs > 1 else (outputs_ > 0).double()
            risks.append(min(loss(moved, task.query).item(), synthetic.CAP))
            right.append(
                (chosen == task.query[1]).double().mean().item() if kind == "boundaries" else 0.0
            )
        assert found.risk[run, 1] == pytest.approx(np.mean(risks), rel=1e-9)
        assert found.accuracy[run, 1] == pytest.approx(np.mean(right), abs=1e-12)


def test_the_inner_step_is_relative_to_the_largest_curvature() -> None:
    assert fleet(alphas=(0.8,)).alpha.tolist() == pytest.approx([0.2, 0.2], rel=1e-12)
    assert fleet("boundaries", alphas=(0.8,)).alpha.tolist() == pytest.approx([0.8, 0.8], rel=1e-12)


def test_a_task_on_which_a_model_diverges_counts_as_the_cap() -> None:
    of = fleet(alphas=(1e3,))
    model = Model(nets.deep_linear((3, 3, 1)))
    found = synthetic.scores(of, model, synthetic.start(of, model), SIZES, (0, 10))
    assert (found.risk[:, 1] == synthetic.CAP).all()
    assert (found.risk[:, 0] < 10).all()


def test_a_diverged_inner_step_is_lost_alone() -> None:
    config = replace(shallow.PROFILES["quick"], alphas=(0.1, 1e6), seeds=2, steps=20, test_tasks=50)
    (point,) = [p
                for p in shallow.points(config)
                if p["part"] == "curves"
                and p["model"] == "deep"
                and (p["kind"], p["inputs"]) == ("regression", "spread")]
    rows = shallow.compute(config, point, "cpu")
    assert [(row["alpha"], row["seed"]) for row in rows] == [(0.1, 0), (0.1, 1), (1e6, 0), (1e6, 1)]
    assert all((row["valid"] == synthetic.CAP) == (row["alpha"] == 1e6) for row in rows)
    alone = shallow.compute(replace(config, alphas=(0.1,)), point, "cpu")
    assert rows[:2] == alone


def test_shallow_training_reaches_the_floor() -> None:
    """Meta-trained from data, the shallow models come down to what the theory says is their
    least."""
    of, m = fleet(alphas=(0.4,), seeds=range(6)), 6
    s, c = np.diag(np.square(SPREAD)), np.eye(3) / 3
    size = Sizes(20, 400, 0.03, 0, 3000, 0)
    floor = depth.shallow_risk(s, c, 0.4 / 4, m)
    own = depth.shallow_risk(s, c, depth.best_shallow_step(s, c, m), m)
    for rule, exact in (("SGD", floor), ("learned rate", own)):
        model = Model(nets.linear(3), rule)
        risks = synthetic.scores(of, model, synthetic.train(of, model, size), size, [1]).risk[:, 0]
        assert risks.mean() == pytest.approx(exact, rel=0.03)
    assert floor > 1.05 * own


# the learned step


def test_depth_learns_the_best_step() -> None:
    """The protocol of the record, shorter: eigenvalues of alpha (A A.T + |b|^2 I) at eta*."""
    config = replace(shallow.PROFILES["quick"], seeds=4, step_steps=600, settings=((10, 2, 2.0),))
    (point,) = [p for p in shallow.points(config) if p.get("how") == "as told"]
    rows = shallow.compute(config, point, "cpu")
    assert len(rows) == 4
    assert np.mean([row["mean"] for row in rows]) == pytest.approx(1, abs=0.02)
    assert all(0.9 < row["smallest"] <= row["mean"] <= row["largest"] < 1.1 for row in rows)


def test_the_preconditioner_is_that_of_the_net() -> None:
    of = fleet(seeds=(0,))
    params = shallow.near_identity(of, 4, 1.5, 0.1, 0.2)
    a, b = params["0.weight"][0].mT, params["1.weight"][0, 0]
    expected = of.alpha[0] * (a @ a.mT + b @ b * torch.eye(3, dtype=F64))
    np.testing.assert_allclose(shallow.preconditioners(of, params)[0], expected.numpy(), rtol=1e-12)


def test_the_record_of_the_learned_step() -> None:
    """Nine settings fixed beforehand, 20 seeds: every 95 % interval inside [.97, 1.03]."""
    found = shallow.learned_steps(shallow.EXPERIMENT.load("full").table)
    told = found[found["how"] == "as told"]
    assert [tuple(row) for row in told[["support", "dim", "rho"]].to_numpy()] == list(
        shallow.SETTINGS
    )
    assert {1} <= set(told["support"])
    assert {1, 8} <= set(told["dim"])
    assert (told["seeds"] >= 20).all()
    assert (told["low"] > 0.97).all()
    assert (told["high"] < 1.03).all()


# linear layers


@pytest.mark.parametrize("layers", [1, 2, 4])
def test_a_collapsed_model_adapts_as_the_shallow_one(layers: int) -> None:
    """Its full-batch risk after one step is |w_0 - w*|^2 in Q(alpha) / 2, w_0 the product: depth is
    gone."""
    of, alpha = fleet(seeds=(0,)), 0.17
    family = tasks.Shallow(*(leaf[0] for leaf in of.families))
    net = nets.mlp((3, *[5] * layers, 1), bias=False, linear_layers=layers)
    params = net.init(torch_stream(0, "tests/collapse"), dtype=F64)
    one, plain = nets.collapsed(params, layers), nets.linear(3)
    w0 = depth.product([value.numpy() for value in params.values()])[0]
    normal = {name: value[0, 0] for name, value in of.normals("tests", 1, 0)(0).items()}
    task = tasks.task(family, normal, "regression", 0, exact=True).query
    optimum = tasks.optimum(family, normal).numpy()
    exact = float(excess_risk(w0, family.covariance.numpy()[None], optimum, alpha, math.inf))
    risks = {}
    for name, model, start in (("collapsed", plain, one), ("deep", net, params)):
        loss = of.loss(model.apply)
        risks[name] = loss(adapt(loss, start, task, steps=1, update=sgd(alpha)), task).item()
    assert exact > 0.01
    assert risks["collapsed"] == pytest.approx(exact, rel=1e-10)
    assert risks["deep"] != pytest.approx(exact, rel=1e-2)


def test_a_collapsed_model_with_few_samples() -> None:
    """The same with m samples, in the mean over drawn supports."""
    m, alpha, draws = 6, 0.15, 60_000
    of = fleet(seeds=(0,))
    family, plain = tasks.Shallow(*(leaf[0] for leaf in of.families)), nets.linear(3)
    normal = {name: value[0, 0] for name, value in of.normals("tests", 1, 0)(0).items()}
    start = {"0.weight": torch.tensor([[0.5, -0.3, 0.8]], dtype=F64)}
    x = torch.randn(draws, m, 3, generator=torch_stream(0, "tests/x"), dtype=F64)
    loss = of.loss(plain.apply)

    def risk(x: torch.Tensor) -> torch.Tensor:
        task = tasks.task(family, normal | {"x": x}, "regression", m, exact=True)
        return loss(adapt(loss, start, task.support, steps=1, update=sgd(alpha)), task.query)

    found = vmap(risk)(x)
    optimum = tasks.optimum(family, normal).numpy()
    sigma = family.covariance.numpy()[None]
    exact, mutant = (float(excess_risk(start["0.weight"].numpy()[0], sigma, optimum, alpha, n))
                     for n in (m, m + 1))
    error = float(found.std()) / math.sqrt(draws)
    assert error < 0.003 * exact
    assert abs(float(found.mean()) - exact) < 4 * error
    assert abs(float(found.mean()) - mutant) > 4 * error


def test_the_record_of_collapse() -> None:
    """On isotropic inputs a rate of its own gives a collapsed model everything back: the null that
    was predicted."""
    table = linear_layers.EXPERIMENT.load("full").table
    isotropic = linear_layers.ratios(table[table["inputs"] == "isotropic"])
    assert len(isotropic) == 8
    assert (isotropic["tuned_low"] > 0.98).all()
    assert (isotropic["tuned_high"] < 1.02).all()
    assert table["off"].max() < 1e-10


TINY = replace(linear_layers.PROFILES["quick"], dim=4, seeds=3, steps=15, test_tasks=50,
               alphas=(0.2, 0.6), hidden=6, widths=(4, 1), rates=(0.1, 0.3, 1.0, 3.0))


@pytest.mark.parametrize("kind", linear_layers.KINDS)
def test_the_points_of_linear_layers(kind: str) -> None:
    points = [point for point in linear_layers.points(TINY) if point["kind"] == kind]
    deep = next(p for p in points if p["added"] == 2 and p["frozen"] == "none")
    first, second = (linear_layers.compute(TINY, deep, "cpu") for _ in range(2))
    assert first == second
    assert len(first) == 6
    assert all(row["off"] < 1e-10 for row in first)
    assert len({row["risk_1"] for row in first}) == 6
    froze = next(p for p in points if p["frozen"] == "bottom 1")
    of, model = linear_layers.fleet(TINY, froze, (0.2,)), linear_layers.model(TINY, froze)
    start = synthetic.start(of, model)
    kept = [name for name in start if name not in model.adapted]
    assert kept
    assert all(name.startswith("0.") for name in kept)
    top = linear_layers.model(TINY, next(p for p in points if p["frozen"] == "top 1"))
    assert {int(name[0]) for name in top.adapted} == set(range(max(int(name[0]) for name in start)))


def test_the_own_rate_of_a_linear_model_is_the_best_shallow_step() -> None:
    of, plain = fleet(alphas=(0.2,), seeds=range(3)), Model(nets.linear(3))
    zero = {"0.weight": torch.zeros(3, 1, 3, dtype=F64)}
    size = Sizes(0, 0, 0, 0, 2000, 0)
    told = np.full(3, 0.2)
    found = linear_layers.at_own_rate(
        of, plain, zero, size, np.geomspace(0.1, 3, 10).tolist(), told
    )
    exact = depth.best_shallow_step(np.diag(np.square(SPREAD)), np.eye(3) / 3, 6) * 4
    assert found == pytest.approx(np.full(3, exact), rel=0.1)
    risks = [synthetic.scores(
                 linear_layers.at_rate(of, told * 0 + r, told), plain, zero, size, [1]
             ).risk.mean()
             for r in (exact, 0.7 * exact, 1.4 * exact)]
    assert risks[0] < min(risks[1:])


# meta-optimizers


def test_theory_orders_the_preconditioners() -> None:
    found = list(meta_optimizers.theory(meta_optimizers.PROFILES["full"]).values())
    assert found[0] > 1.2 * found[1]
    assert found[1] > found[2]


def test_upper_linear_layers_are_an_external_optimizer() -> None:
    """Gradients of the bottom layers with and without linear upper layers: one Kronecker product
    fits, exactly."""
    config = replace(meta_optimizers.PROFILES["quick"], seeds=2, pairs=60, steps=5, looks=(0, 5))
    point = {"part": "alignment", "activation": "identity"}
    rows = meta_optimizers.compute(config, point, "cpu")
    assert len(rows) == 2 * 2 * 2
    assert all(row["aligned"] == pytest.approx(1, abs=1e-6) for row in rows)
    assert all(row["raw"] < 0.9 and row["shuffled"] < 0.9 for row in rows)
    relu = meta_optimizers.compute(config, point | {"activation": "relu"}, "cpu")
    assert all(row["raw"] < row["aligned"] < 0.999 for row in relu)


def test_bottom_gradients_are_those_of_autograd() -> None:
    config = replace(meta_optimizers.PROFILES["quick"], seeds=1, pairs=2)
    of = meta_optimizers.fleet(config, "mlp")
    net = meta_optimizers.alignment_net(config, "tanh")
    params = synthetic.start(of, Model(net))
    full, small = meta_optimizers.bottom_gradients(of, config, "tanh", params, "tests")
    family = tasks.Shallow(*(leaf[0] for leaf in of.families))
    draw = of.normals("tests", 2, 0)(0)
    x, y = of.task({name: value[0, 1] for name, value in draw.items()}, family).support
    w = [value[0].clone().requires_grad_() for value in params.values()]
    hidden = torch.tanh(torch.tanh(x @ w[0].T) @ w[1].T)
    out = torch.tanh(torch.tanh(hidden @ w[2].T) @ w[3].T) @ w[4].T
    error = (out - y).detach() / len(y)
    for upper, found in ((out, full), (hidden @ w[4].T, small)):
        slopes = torch.autograd.grad(upper, w[:2], error, retain_graph=True)
        for layer in (0, 1):
            np.testing.assert_allclose(found[layer][0, 1], slopes[layer].numpy(), rtol=1e-9,
                                       atol=1e-12)


def test_fit_kronecker_finds_a_product_that_there_is() -> None:
    rng = stream(0, "tests/fit")
    left, right, g = (rng.standard_normal((3, 3)), rng.standard_normal((4, 4)),
                      rng.standard_normal((50, 3, 4)))
    a, b = meta_optimizers.fit_kronecker(g, left @ g @ right)
    np.testing.assert_allclose(a @ g @ b, left @ g @ right, atol=1e-9)
    assert meta_optimizers.cosine(g, 2 * g) == pytest.approx(1, abs=1e-12)
    assert meta_optimizers.cosine(g, -g) == pytest.approx(-1, abs=1e-12)
    assert meta_optimizers.cosine(g, 0 * g) == 0


def test_a_rule_is_counted() -> None:
    config = meta_optimizers.PROFILES["quick"]
    point = {"kind": "regression", "model": "shallow", "rule": "KFO", "steps": 1, "adapting": False}
    params = synthetic.start(meta_optimizers.fleet(config, "regression"),
                             meta_optimizers.model(config, point))
    plain, own = (
        {k: v for k, v in params.items() if k.startswith("rule/") == flag} for flag in (False, True)
    )
    assert counted(joined(plain, own)) == {"parameters": 30, "own_parameters": 9 + 100}
    assert joined(plain, {}) == plain


def test_a_rule_starts_at_the_first_rate_that_does_not_diverge() -> None:
    config = replace(meta_optimizers.PROFILES["quick"], seeds=2, steps=15, test_tasks=50,
                     alphas=(1e7, 0.2))
    point = {"part": "rules", "kind": "regression", "steps": 3, "adapting": False, "turned": True,
             "model": "deep", "rule": "SGD"}
    rows = meta_optimizers.compute(config, point, "cpu")
    assert [row["alpha"] for row in rows] == [0.2, 0.2]
    assert rows == meta_optimizers.compute(replace(config, alphas=(0.2,)), point, "cpu")
    lost = meta_optimizers.compute(replace(config, alphas=(1e7,)), point, "cpu")
    assert [row["after"] for row in lost] == [synthetic.CAP] * 2


# verdicts


def seeds_of(mean: float, noise: float = 0.01, count: int = 20) -> np.ndarray:
    return mean * (1 + noise * stream(0, f"tests/{mean}").standard_normal(count))


def curves() -> pd.DataFrame:
    rows = []
    for kind in ("regression", "boundaries"):
        for steps in (1, 5):
            for model, mean in (("shallow, learned rate", 0.5), ("deep", 0.4)):
                for alpha, worse in ((0.1, 1.3), (1.0, 1.0)):
                    for seed, risk in enumerate(seeds_of(mean * worse)):
                        rows.append(
                            {"part": "curves", "kind": kind, "inputs": "spread", "model": model,
                             "train_steps": steps, "alpha": alpha, "seed": seed, "valid": risk,
                             f"risk_{steps}": risk}
                        )
    return pd.DataFrame(rows)


def test_d1_flips() -> None:
    table, told = curves(), {"config": {"train_steps": [1, 5]}}
    settled = shallow.settle_d1(Record(table, told))
    assert settled.verdict == "holds"
    assert settled.value == pytest.approx(1.25, rel=0.02)
    one = (table["kind"] == "boundaries") & (table["model"] == "deep")
    for column in ("risk_1", "risk_5"):
        worse = table.assign(**{column: table[column].where(~one, 0.5)})
        assert shallow.settle_d1(Record(worse, told)).verdict == "partly"
    all_worse = table.assign(risk_1=0.5 + 0.001 * table["seed"], risk_5=0.5 + 0.001 * table["seed"])
    assert shallow.settle_d1(Record(all_worse, told)).verdict == "fails"


def layered() -> pd.DataFrame:
    config, rows = linear_layers.PROFILES["full"], []
    for point in linear_layers.points(config):
        for alpha in config.alphas:
            risks = seeds_of(0.5 if point["added"] == 0 else 0.4)
            rows += [{**point, "alpha": alpha, "seed": seed, "risk_1": risk, "valid": risk + alpha,
                      "off": 1e-15, "collapsed": 0.55, "collapsed_tuned": 0.45}
                     for seed, risk in enumerate(risks)]
    return pd.DataFrame(rows)


def test_d2_flips() -> None:
    table = layered()

    def outcomes(changed: pd.DataFrame) -> list[str]:
        return list(linear_layers.settle_d2(Record(changed, {})).parts.values())

    assert outcomes(table) == ["holds"] * 3
    mlp = (table["kind"] == "mlp") & (table["added"] == 3)
    no_gain = table.assign(risk_1=table["risk_1"].where(~mlp, 0.5))
    assert outcomes(no_gain) == ["partly", "holds", "partly"]
    assert outcomes(table.assign(collapsed=table["collapsed"].where(~mlp, 0.4))) == [
        "holds",
        "partly",
        "holds",
    ]
    assert outcomes(table.assign(collapsed=0.3)) == ["holds", "fails", "holds"]
    assert outcomes(table.assign(collapsed_tuned=0.4)) == ["holds", "holds", "fails"]
    lost = table.assign(off=table["off"].where(~mlp, np.nan))
    assert outcomes(lost) == ["holds"] * 3
    assert len(linear_layers.collapses(lost)) == len(linear_layers.collapses(table)) - 2


def ruled() -> pd.DataFrame:
    config, rows = meta_optimizers.PROFILES["full"], []
    for point in meta_optimizers.points(config):
        if point["part"] == "rules":
            means = {"learned rate": 0.5, "KFO": 0.4}
            rows += [{**point, "parameters": 1, "own_parameters": 2, "alpha": 1.0, "seed": seed,
                      "after": risk}
                     for seed, risk in enumerate(seeds_of(means.get(point["rule"], 0.45)))]
        else:
            for look in config.looks:
                for layer in (0, 1):
                    for seed, cosine in enumerate(seeds_of(0.7)):
                        rows.append(
                            {**point, "look": look, "layer": layer, "seed": seed, "aligned": cosine,
                             "raw": 0.1, "shuffled": cosine - 0.3 - 0.001 * seed}
                        )
    return pd.DataFrame(rows)


def test_d3_flips() -> None:
    table = ruled()
    assert meta_optimizers.settle_d3(Record(table, {})).parts == {"synthetic": "holds"}
    worse = (table["rule"] == "KFO") & (table["kind"] == "mlp")
    parts = meta_optimizers.settle_d3(
        Record(table.assign(after=table["after"].where(~worse, 0.6)), {})
    ).parts
    assert parts["synthetic"] == "partly"
    all_worse = table.assign(after=table["after"].where(table["rule"] != "KFO", 0.6))
    assert meta_optimizers.settle_d3(Record(all_worse, {})).parts["synthetic"] == "fails"


def test_d4_flips(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ruled()
    settled = meta_optimizers.settle_d4(Record(table, {}))
    assert (settled.verdict, settled.value) == ("derived", pytest.approx(0.3095, abs=1e-6))
    early = (table["look"] == 0) & (table["activation"] == "relu")
    some = table.assign(shuffled=table["shuffled"].where(~early, 0.9))
    assert list(meta_optimizers.settle_d4(Record(some, {})).parts.values()) == ["derived", "partly"]
    linear = table.assign(shuffled=table["shuffled"].where(table["activation"] != "identity", 0.9))
    assert meta_optimizers.settle_d4(Record(linear, {})).verdict == "derived"
    around = depth._around
    monkeypatch.setattr(depth, "_around", lambda *a: [(u, 2 * b) for u, b in around(*a)])
    assert meta_optimizers.settle_d4(Record(table, {})).verdict == "partly"
