"""Meta-gradients of every objective against an inner loop written out by hand, and against central
differences."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from companion import nets
from companion.adaptation import adapt, after_steps, evaluate
from companion.losses import accuracy, cross_entropy, squared_error
from companion.meta_optimizers import Params, chain, momentum, sgd
from companion.objectives import anil, first_order_maml, maml, nal
from companion.tasks import Task

F64 = torch.float64
ALPHA = 0.07


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def regression(seed: int, dim: int) -> Task:
    g = generator(seed)
    x = torch.randn(11, dim, generator=g, dtype=F64)
    y = torch.sin(2 * x.sum(1)) + torch.randn(11, generator=g, dtype=F64)
    return Task((x[:5], y[:5]), (x[5:], y[5:]))


def images(seed: int) -> Task:
    g = generator(seed)
    x = torch.randn(16, 2, 8, 8, generator=g, dtype=F64)
    y = torch.arange(16) % 3
    return Task((x[:7], y[:7]), (x[7:], y[7:]))


CASES = {  # net, loss, task, what ANIL adapts; smooth activations, so that differences converge
    "one tensor": (nets.linear(4), squared_error, regression(1, 4), ["0.weight"]),
    "two layers": (nets.two_layer(4, 3, "erf"), squared_error, regression(2, 4), ["weight"]),
    "several tensors": (nets.mlp((4, 6, 5, 1), "tanh"), squared_error, regression(3, 4),
                        ["2.weight", "2.bias"]),
    "deep linear": (nets.deep_linear((4, 5, 1)), squared_error, regression(4, 4), ["0.weight"]),
    "relu": (nets.mlp((4, 6, 1)), squared_error, regression(5, 4), ["1.weight"]),
    "convolutions": (nets.cnn((2, 8, 8), 3, 2, 3), cross_entropy, images(6),
                     ["head.weight", "head.bias"]),
    "no pooling": (nets.cnn((2, 8, 8), 3, 1, 3, pool=False), cross_entropy, images(7),
                   ["head.weight"]),
}
NAMES = list(CASES)


def case(name: str) -> tuple[Callable, Params, Task, list[str]]:
    net, loss, task, adapted = CASES[name]
    assert task.support[0].std() > 0.1
    assert len(set(task.query[1].tolist())) > 1
    return loss(net.apply), net.init(generator(8), dtype=F64), task, adapted


def by_hand(loss: Callable, start: Params, task: Task, steps: int, *, first_order: bool,
            adapted: list[str]) -> Params:
    """The meta-gradient, with the inner loop spelled out in plain autograd."""
    leaves = {name: value.clone().requires_grad_() for name, value in start.items()}
    moved = dict(leaves)
    for _ in range(steps):
        inner = torch.autograd.grad(loss(moved, task.support), [moved[name] for name in adapted],
                                    create_graph=not first_order)
        for name, slope in zip(adapted, inner, strict=True):
            moved[name] = moved[name] - ALPHA * slope
    outer = torch.autograd.grad(loss(moved, task.query), list(leaves.values()))
    return dict(zip(leaves, outer, strict=True))


def size(gradient: Params) -> float:
    return math.sqrt(sum(value.square().sum().item() for value in gradient.values()))


def assert_equal(ours: Params, exact: Params, tolerance: float) -> None:
    """Equal to ``tolerance`` of the gradient's size."""
    assert ours.keys() == exact.keys()
    assert size(exact) > 1e-2
    assert size({name: ours[name] - exact[name] for name in exact}) < tolerance * size(exact)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 5])
def test_meta_gradients_by_hand(name: str, steps: int) -> None:
    loss, params, task, adapted = case(name)
    inner = dict(steps=steps, update=sgd(ALPHA))
    second = grad(maml(loss, **inner))(params, task)
    first = grad(first_order_maml(loss, **inner))(params, task)
    assert_equal(second,
                 by_hand(loss, params, task, steps, first_order=False, adapted=list(params)), 1e-9)
    assert_equal(first, by_hand(loss, params, task, steps, first_order=True, adapted=list(params)),
                 1e-9)
    some = grad(anil(loss, adapted=adapted, **inner))(params, task)
    assert_equal(some, by_hand(loss, params, task, steps, first_order=False, adapted=adapted), 1e-9)
    assert size({key: first[key] - second[key] for key in params}) > 1e-3 * size(second)
    if set(adapted) < set(params):
        assert size({key: some[key] - second[key] for key in params}) > 1e-3 * size(second)
    assert maml(loss, **inner)(params, task) == first_order_maml(loss, **inner)(params, task)
    assert maml(loss, **inner)(params, task) != maml(loss, steps=0, update=sgd(ALPHA))(params, task)


@pytest.mark.parametrize("name", NAMES)
def test_nal_by_hand(name: str) -> None:
    loss, params, task, _ = case(name)
    leaves = {key: value.clone().requires_grad_() for key, value in params.items()}
    both = tuple(torch.cat(sides) for sides in zip(*task, strict=True))
    outer = torch.autograd.grad(loss(leaves, both), list(leaves.values()))
    assert_equal(grad(nal(loss))(params, task), dict(zip(leaves, outer, strict=True)), 1e-9)


@pytest.mark.parametrize(
    "name",
    [name for name in NAMES if "relu" not in name and "pool" not in name and "conv" not in name],
)
@pytest.mark.parametrize("method", ["nal", "maml 1", "maml 5", "anil 1", "anil 5"])
def test_meta_gradients_by_central_differences(name: str, method: str) -> None:
    loss, params, task, adapted = case(name)
    kind, _, steps = method.partition(" ")
    objective = {
        "nal": lambda: nal(loss),
        "maml": lambda: maml(loss, steps=int(steps), update=sgd(ALPHA)),
        "anil": lambda: anil(loss, steps=int(steps), update=sgd(ALPHA), adapted=adapted),
    }[kind]()
    exact = grad(objective)(params, task)
    numeric = {}
    for key, value in params.items():
        units = torch.eye(value.numel(), dtype=F64).reshape(-1, *value.shape)
        ends = [[objective(params | {key: value + sign * 1e-5 * e}, task) for sign in (1, -1)]
                for e in units]
        numeric[key] = torch.stack([(up - down) / 2e-5 for up, down in ends]).reshape(value.shape)
    assert_equal(numeric, exact, 1e-6)


def test_a_learned_rate_keeps_its_derivative_in_first_order() -> None:
    loss, params, task, _ = case("several tensors")

    def of_rate(rate: torch.Tensor, kind: Callable) -> torch.Tensor:
        return kind(loss, steps=1, update=sgd(rate))(params, task)

    rate = torch.tensor(ALPHA, dtype=F64)
    slopes = [grad(partial(of_rate, kind=kind))(rate) for kind in (maml, first_order_maml)]
    assert abs(slopes[0]) > 1e-3
    torch.testing.assert_close(
        *slopes, rtol=1e-12, atol=0
    )  # one step: the inner gradient does not depend on it


@pytest.mark.parametrize("adapted", [["nope"], ["0.weight", "nope"], []])
def test_anil_needs_names_that_there_are(adapted: list[str]) -> None:
    loss, params, task, _ = case("several tensors")
    with pytest.raises(
        ValueError,
        match=r"adapted must name some of 0\.weight, .* got (\['nope'\]|none); see net.init",
    ):
        anil(loss, steps=1, update=sgd(ALPHA), adapted=adapted)(params, task)


def test_anil_takes_one_name() -> None:
    loss, params, task, _ = case("deep linear")
    one, many = (
        anil(loss, steps=1, update=sgd(ALPHA), adapted=a) for a in ("0.weight", ["0.weight"])
    )
    assert one(params, task) == many(params, task)


@pytest.mark.parametrize(
    "objective", [nal, *(partial(f, steps=1, update=sgd(ALPHA)) for f in (maml, first_order_maml))]
)
def test_a_task_needs_both_sides(objective: Callable) -> None:
    loss, params, task, _ = case("one tensor")
    with pytest.raises(
        ValueError, match=r"a task must have support and query, got tuple; use companion\.tasks"
    ):
        objective(loss)(params, tuple(task))
    with pytest.raises(
        ValueError, match=r"a batch must be a pair \(x, y\), got tuple of 1; give inputs and labels"
    ):
        objective(loss)(params, Task((task.support[0],), (task.query[0],)))


def test_sides_that_do_not_stack() -> None:
    loss, params, task, _ = case("one tensor")
    with pytest.raises(ValueError,
                       match="support and query must agree but for the number of samples"):
        nal(loss)(params, Task(task.support, (task.query[0][:, :2], task.query[1])))


@pytest.mark.parametrize("objective", [nal, partial(maml, steps=1, update=sgd(ALPHA))])
def test_parameters_elsewhere_than_the_data(objective: Callable) -> None:
    loss, params, task, _ = case("one tensor")
    away = {name: value.to("meta") for name, value in params.items()}
    with pytest.raises(
        ValueError,
        match="parameters and data must be on one device, got meta and cpu; move one with",
    ):
        objective(loss)(away, task)
    single = {name: value.float() for name, value in params.items()}
    with pytest.raises(ValueError, match="must have one floating dtype, got "):
        objective(loss)(single, task)
    with pytest.raises(ValueError, match="must be on one device"):
        adapt(loss, away, task.support, steps=1, update=sgd(ALPHA))


def test_labels_of_another_shape() -> None:
    loss, params, task, _ = case("one tensor")
    x, y = task.support
    with pytest.raises(ValueError,
                       match=r"y must have the outputs' shape \(5,\), got \(5, 1\); reshape it"):
        loss(params, (x, y[:, None]))
    with pytest.raises(ValueError, match="x and y must be tensors with as many samples"):
        loss(params, (x, y[:3]))
    loss, params, task, _ = case("no pooling")
    with pytest.raises(ValueError, match=r"y must be class numbers \[sample\], got torch.float64"):
        loss(params, (task.support[0], task.support[1].double()))


def few_shot(tasks: int = 6) -> Task:
    each = [images(seed) for seed in range(tasks)]
    return Task(*[tuple(torch.stack(parts) for parts in zip(*sides, strict=True))
                  for sides in zip(*each, strict=True)])


NET = nets.cnn((2, 8, 8), 3, 1, 3)


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_evaluation_is_adaptation_task_by_task(chunk_size: int | None) -> None:
    """Also with a state, which one path carries on, and for steps in any order."""
    loss, right, update = (cross_entropy(NET.apply), accuracy(NET.apply),
                           chain(momentum(0.5), sgd(0.3)))
    params, tasks, steps = NET.init(generator(1), dtype=F64), few_shot(), [5, 0, 2, 5]
    found = evaluate(loss, params, tasks, steps=steps, update=update, chunk_size=chunk_size,
                     metrics={"loss": loss, "right": right})
    assert {name: value.shape for name, value in found.items()} == {"loss": (6, 4), "right": (6, 4)}
    for i in range(6):
        task = images(i)
        for k, count in enumerate(steps):
            moved = adapt(loss, params, task.support, steps=count, update=update)
            assert found["loss"][i, k].item() == pytest.approx(
                loss(moved, task.query).item(), rel=1e-9)
            guesses = [row.argmax().item() for row in NET.apply(moved, task.query[0])]
            share = np.mean([g == y for g, y in zip(guesses, task.query[1].tolist(), strict=True)])
            assert found["right"][i, k].item() == pytest.approx(share)
    assert found["loss"][:, :3].std(1).min() > 1e-3
    assert 0 < found["right"].mean() < 1
    alone = evaluate(loss, params, tasks, steps=[2], update=update)
    torch.testing.assert_close(alone, {"loss": found["loss"][:, 2:3]})


def test_a_fleet_is_evaluated_by_vmap() -> None:
    loss, runs = cross_entropy(NET.apply), [NET.init(generator(i), dtype=F64) for i in (1, 2)]
    fleet = {name: torch.stack([run[name] for run in runs]) for name in runs[0]}
    tasks = few_shot()
    judge = lambda params: evaluate(loss, params, tasks, steps=[0, 2], update=sgd(0.3))["loss"]
    torch.testing.assert_close(vmap(judge)(fleet), torch.stack([judge(run) for run in runs]))


def test_chunks_of_tasks_are_adapted_one_after_the_other() -> None:
    calls = []

    def counting(params: Params, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        calls.append(1)
        return cross_entropy(NET.apply)(params, batch)

    for chunk_size, expected in ((None, 2), (2, 6)):
        calls.clear()
        evaluate(counting, NET.init(generator(1), dtype=F64), few_shot(), steps=[1],
                 update=sgd(0.1), chunk_size=chunk_size)
        assert len(calls) == expected


def test_a_path_takes_no_step_twice() -> None:
    calls = []

    def counting(gradients: Params) -> Params:
        calls.append(1)
        return sgd(0.1)(gradients)

    loss, params, task, _ = case("one tensor")
    assert len(after_steps(loss, params, task.support, steps=[1, 3, 7], update=counting)) == 3
    assert len(calls) == 7
    assert after_steps(loss, params, task.support, steps=[], update=counting) == []
    with pytest.raises(ValueError, match="steps must be a whole number of at least 0, got -1"):
        after_steps(loss, params, task.support, steps=[2, -1], update=counting)


def test_accuracy_of_logits() -> None:
    metric = accuracy(lambda params, x: x)
    x = torch.tensor([0.5, -1.0, 2.0, -3.0])
    assert metric({}, (x, torch.tensor([1.0, 0.0, 0.0, 0.0]))) == 0.75
    with pytest.raises(ValueError, match=r"y must be \[sample\] .* \(4,\), got \(4, 1\)"):
        metric({}, (x, torch.ones(4, 1)))
