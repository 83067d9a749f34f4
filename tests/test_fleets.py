"""A fleet of runs against plain loops over runs and tasks."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from companion import fleets, nets
from companion.fleets import CAP, Budget, Model
from companion.meta_optimizers import RULES, STEPWISE
from companion.objectives import adapted_by_rule, parted
from companion.streams import torch_stream
from companion.tasks import Fleet, Task
from companion.tasks.readouts import readout_fleet
from companion.tasks.teachers import teacher_fleet
from companion.theory.kernels import population_loss
from companion.training import cosine

F64 = torch.float64
BUDGET = Budget(steps=6, tasks=4, rate=0.05, query=8, test_tasks=50, test_query=30)
TEACHERS = {"rho_easy": 1.0, "rho_hard": 0.2, "distance": 1.0, "var_easy": 0.1, "var_hard": 0.02,
            "alpha": 0.9}
NET = nets.deep_linear((3, 4, 1))
MODELS = [Model(NET, steps=2), Model(NET, "nal"), Model(NET, adapted=("1.weight",)),
          Model(NET, rule="Meta-SGD", steps=2, adapted=("0.weight",)), Model(NET, rule="KFO"),
          Model(NET, rule="KFO, nonlinear", rule_alpha=0.01)]
NAMES = ["SGD", "NAL", "head alone", "Meta-SGD, bottom alone", "KFO", "KFO that adapts"]


def fleet(kind: str = "regression", alphas=(0.3, 0.6), seeds=(3, 7), **options) -> Fleet:
    settings = [{"scales": (0.3, 1.0, 2.0), "alpha": alpha} | options for alpha in alphas]
    return replace(readout_fleet(kind, settings, seeds, support=6), training_dtype=F64)


def run_of(tree, *place: int):
    return tree_map(lambda leaf: leaf[place], tree)


def tasks_of(each: Fleet, run: int, purpose: str, count: int, query: int, step: int = 0
             ) -> list[Task]:
    drawn = each.draw(each, purpose, count, query)(step)
    return [each.make(run_of(drawn, run, i), *each.run(run)) for i in range(count)]


def by_hand(each: Fleet, model: Model, both, task: Task, alpha: torch.Tensor) -> torch.Tensor:
    """What a model minimises, for one task, with plain autograd."""
    loss = each.loss(model.net.apply)
    params, rule = parted(both)
    if model.method == "nal":
        x, y = (torch.cat(sides) for sides in zip(*task, strict=True))
        return loss(params, (x, y))
    if model.rule_alpha is not None:  # its own loop has its own tests
        moved = adapted_by_rule(loss, both, task.support, steps=1, rule=RULES[model.rule](alpha),
                                rule_alpha=model.rule_alpha)
        return loss(moved, task.query)
    names = model.adapted or tuple(params)
    for _ in range(model.steps):
        slopes = torch.autograd.grad(loss(params, task.support), [params[n] for n in names],
                                     create_graph=True)
        moves = RULES[model.rule](alpha).apply(rule, dict(zip(names, slopes, strict=True)))
        params = params | {n: params[n] - moves[n] for n in names}
    return loss(params, task.query)


def leaves_of(params, run: int):
    return {name: value[run].clone().requires_grad_() for name, value in params.items()}


def slopes_by_hand(each: Fleet, model: Model, leaves, run: int, step: int = 0):
    """The mean objective of a step's tasks, and its gradient."""
    tasks = tasks_of(each, run, "train", BUDGET.tasks, BUDGET.query, step)
    total = torch.stack([by_hand(each, model, leaves, task, each.alpha[run])
                         for task in tasks]).mean()
    found = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return total, {name: torch.zeros_like(leaf) if slope is None else slope
                   for (name, leaf), slope in zip(leaves.items(), found, strict=True)}


@pytest.mark.parametrize("model", MODELS, ids=NAMES)
def test_meta_gradients_are_those_of_a_loop_over_tasks(model: Model) -> None:
    each = fleet(noise=0.3)
    params = fleets.start(each, model)
    drawn = each.draw(each, "train", BUDGET.tasks, BUDGET.query)(0)
    for chunk in (None, 1):
        found, values = fleets.gradient(replace(each, chunk=chunk), model)(
            params, drawn, *each.settings, each.alpha)
        for run in range(4):
            value, slopes = slopes_by_hand(each, model, leaves_of(params, run), run)
            assert values[run].item() == pytest.approx(value.item(), rel=1e-10)
            for name, slope in slopes.items():
                torch.testing.assert_close(found[name][run], slope, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("support", [None, 6])
def test_nal_of_a_population_is_its_exact_loss(support: int | None) -> None:
    """Both sides are the same population, which counts once; samples of both sides count all."""
    each = teacher_fleet("relu", [TEACHERS], (3,), dim=6, hidden=2, support=support)
    model = Model(nets.two_layer(6, 2, "relu"), "nal")
    params = run_of(fleets.start(each, model), 0)
    (task,) = tasks_of(each, 0, "train", 1, 10)
    drawn = run_of(each.draw(each, "train", 1, 10)(0), 0, 0)
    found = fleets.objective(each, model)(params, drawn, *each.run(0), each.alpha[0])
    if support is None:
        expected = population_loss(params["weight"], *task.query, "relu")
    else:
        x, y = (torch.cat(sides) for sides in zip(*task, strict=True))
        expected = (torch.relu(x @ params["weight"].T).sum(1) - y).square().mean() / 2
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)


def test_runs_start_from_the_network_of_their_seed() -> None:
    each, model = fleet(), Model(NET, rule="KFO")
    found = fleets.start(each, model)
    for run, seed in enumerate((3, 7, 3, 7)):
        alone = NET.init(torch_stream(seed, "synthetic/start"), dtype=F64)
        params, rule = parted(run_of(found, run))
        assert all(torch.equal(params[name], alone[name]) for name in alone)
        slopes = {name: torch.ones_like(value) for name, value in params.items()}
        moves = RULES["KFO"](0.25).apply(rule, slopes)
        assert all((move - 0.25).abs().max() < 1e-12 for move in moves.values())
    part = fleets.start(each, replace(model, adapted=("1.weight",)))
    assert {name.split("/")[1][0] for name in part if name.startswith("rule/")} == {"1"}


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_training_is_adam_on_fresh_tasks_run_by_run(share: float) -> None:
    each, model = fleet(), Model(NET, rule="Meta-SGD")
    budget = replace(BUDGET, rule_share=share)
    found, begin = fleets.train(each, model, budget), fleets.start(each, model)
    rate = cosine(budget.rate, budget.steps)
    for run in range(4):
        leaves = leaves_of(begin, run)
        adam = torch.optim.Adam([{"params": [leaf], "share": share if "rule/" in name else 1.0}
                                 for name, leaf in leaves.items()])
        for step in range(budget.steps):
            _, slopes = slopes_by_hand(each, model, leaves, run, step)
            for group, leaf, slope in zip(adam.param_groups, leaves.values(), slopes.values(),
                                          strict=True):
                group["lr"], leaf.grad = rate(step) * group["share"], slope
            adam.step()
        for name, leaf in leaves.items():
            assert (leaf - begin[name][run]).norm() > 1e-3
            torch.testing.assert_close(found[name][run], leaf.detach(), rtol=1e-7, atol=1e-9)


def test_a_fleet_equals_its_single_runs() -> None:
    many, one = fleet(), fleet(alphas=(0.6,), seeds=(7,))
    for model in MODELS[:2]:
        together, alone = (fleets.train(each, model, BUDGET) for each in (many, one))
        for name in together:
            torch.testing.assert_close(together[name][3], alone[name][0], rtol=1e-9, atol=1e-12)
        both, single = (fleets.scores(each, model, params, BUDGET, (0, 1)).risk
                        for each, params in ((many, together), (one, alone)))
        np.testing.assert_allclose(both[3], single[0], rtol=1e-9)
        assert np.abs(both[3] / both[2] - 1).max() > 0.01


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [("regression", 1), ("regression", 2), ("boundaries", 1), ("boundaries", 3)],
)
@pytest.mark.parametrize("rule", ["SGD", "KFO, nonlinear"])
def test_scores_are_those_of_each_task(kind: str, outputs: int, rule: str) -> None:
    each = fleet(kind, outputs=outputs)
    model = Model(nets.deep_linear((3, 4, outputs)), rule=rule, steps=2,
                  rule_alpha=None if rule == "SGD" else 0.01)
    params, loss = fleets.start(each, model), each.loss(model.net.apply)
    found = fleets.scores(each, model, params, BUDGET, (0, 2))
    assert found.risk.shape == (4, 50, 2)
    for run in range(4):
        for i, task in enumerate(tasks_of(each, run, "test", 50, 30)):
            moved = adapted_by_rule(loss, run_of(params, run), task.support, steps=2,
                                    rule=RULES[rule](each.alpha[run]), rule_alpha=model.rule_alpha)
            assert found.risk[run, i, 1] == pytest.approx(
                min(loss(moved, task.query).item(), CAP), rel=1e-9)
            if kind == "regression":
                assert math.isnan(found.accuracy[run, i, 1])
                continue
            logits = model.net.apply(moved, task.query[0])
            chosen = logits.argmax(-1) if outputs > 1 else (logits > 0).double()
            right = (chosen == task.query[1]).double().mean().item()
            assert found.accuracy[run, i, 1] == pytest.approx(right, abs=1e-12)
    np.testing.assert_array_equal(found.means.risk, found.risk.mean(1))


def test_what_does_not_adapt_stays_in_the_inner_loop() -> None:
    each, model = fleet(), Model(NET, adapted=("1.weight",))
    params = run_of(fleets.start(each, model), 0)
    (task,) = tasks_of(each, 0, "test", 1, 30)
    moved = model.adapt(each.loss(NET.apply), params, task.support, each.alpha[0], 2)
    assert torch.equal(moved["0.weight"], params["0.weight"])
    assert not torch.equal(moved["1.weight"], params["1.weight"])


@pytest.mark.parametrize("batch", [50, 7])
def test_measure_sees_every_test_task_once(batch: int) -> None:
    each, budget = fleet(), replace(BUDGET, batch=batch, test_tasks=20)

    def judge(params, drawn, family, alpha):
        return drawn["task"].sum(), alpha * params["0.weight"].sum()

    params = fleets.start(each, Model(NET))
    seen, scaled = fleets.measure(each, judge, params, budget, purpose="validate")
    draw = each.draw(each, "validate", batch, BUDGET.test_query)
    parts = [draw(step)["task"].sum((2, 3)) for step in range(math.ceil(20 / batch))]
    torch.testing.assert_close(seen, torch.cat(parts, 1)[:, :20])
    expected = each.alpha * params["0.weight"].sum((1, 2))
    torch.testing.assert_close(scaled, expected[:, None].expand(4, 20))


def test_a_task_on_which_a_model_diverges_counts_as_the_cap() -> None:
    each, model = fleet(alphas=(1e3,)), Model(nets.deep_linear((3, 3, 1)))
    for steps in (10, 60):  # beyond the cap, and not a number
        found = fleets.scores(each, model, fleets.start(each, model), BUDGET, (0, steps))
        assert (found.risk[..., 1] == CAP).all()
        assert (found.means.risk[:, 0] < 10).all()


@pytest.mark.parametrize("rule", [*RULES, *STEPWISE])
def test_compiled_losses_serve_every_rule(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By plain kernels, which are quick to have; the graphs are the compiler's."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    one = replace(fleet(alphas=(0.3,), seeds=(3,)), chunk=1)
    model = Model(NET, rule=rule, steps=2)
    params, drawn = fleets.start(one, model), one.draw(one, "train", 2, 8)(0)
    expected, _ = fleets.gradient(one, model)(params, drawn, *one.settings, one.alpha)
    torch._dynamo.utils.counters.clear()
    found, _ = fleets.gradient(one, model, compiled=True)(params, drawn, *one.settings, one.alpha)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-8, atol=1e-12)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


def test_what_a_model_or_a_budget_refuses() -> None:
    with pytest.raises(ValueError, match=r"method must be \"maml\" or \"nal\", got 'NAL'"):
        Model(NET, "NAL")
    with pytest.raises(ValueError, match=r"adapted must name some of 0.weight.*got \['typo'\]"):
        Model(NET, adapted=("typo",)).split(NET.init(torch_stream(0, "typo")))
    for wrong in ({"batch": 0}, {"steps": -1}, {"test_tasks": -3}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be at least"):
            replace(BUDGET, **wrong)
    with pytest.raises(ValueError, match="rate must be positive and finite, got"):
        cosine(-0.1, 10)
    one = fleet()
    with pytest.raises(ValueError, match="test_tasks must be 1 or more to measure, got 0"):
        fleets.scores(one, MODELS[0], fleets.start(one, MODELS[0]), replace(BUDGET, test_tasks=0),
                      [1])
