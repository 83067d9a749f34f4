"""Fleets: what they compute, how they are optimised, and what survives an interruption."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch.func import grad

from companion import nets, streams, training
from companion.errors import Diverged
from companion.losses import cross_entropy, squared_error
from companion.meta_optimizers import Params, kfo, per_step_rates, sgd
from companion.objectives import anil, first_order_maml, joined, learned, maml, nal
from companion.records import RecordError
from companion.tasks import Task
from companion.tasks.regressions import LinearFamily
from companion.training import (
    Checkpoint,
    Optimizer,
    adam,
    cosine,
    fleet_gradient,
    run_gradient,
    train,
)

F64 = torch.float64
NET = nets.mlp((3, 5, 1), "tanh")
RUNS, TASKS, SAMPLES = 64, 4, 10


def objective(params: Params, normal: dict[str, torch.Tensor], alpha: torch.Tensor) -> torch.Tensor:
    x = normal["x"]
    y = torch.sin(x @ normal["w"])
    task = Task((x[:5], y[:5]), (x[5:], y[5:]))
    return maml(squared_error(NET.apply), steps=2, update=sgd(alpha))(params, task)


def fleet(seeds: list[int]) -> tuple[Params, Callable, torch.Tensor]:
    """Starts, draws, and an inner step of its own for every run."""
    starts = [NET.init(streams.torch_stream(seed, "tests/start"), dtype=F64) for seed in seeds]
    params = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
    shapes = {"x": (TASKS, SAMPLES, 3), "w": (TASKS, 3)}
    draw = streams.normals(seeds, "tests/tasks", shapes, dtype=F64)
    return params, draw, torch.tensor([0.02 + 0.005 * seed for seed in seeds], dtype=F64)


def trained(seeds: list[int], steps: int = 15, gradient: training.Gradient | None = None,
            **options: object) -> Params:
    params, draw, alpha = fleet(seeds)
    gradient = gradient or fleet_gradient(objective)
    return train(gradient, params, draw, optimizer=adam(0.01), steps=steps, settings=(alpha,),
                 **options)


def test_a_fleet_equals_its_single_runs() -> None:
    """To 1e-10 after 15 steps of Adam: what summation in another order leaves. The first, the last,
    and some between."""
    many = trained(list(range(RUNS)))
    for seed in range(0, RUNS, 9):
        alone = trained([seed])
        for name, value in alone.items():
            torch.testing.assert_close(many[name][seed], value[0], rtol=1e-10, atol=1e-10)
    spread = torch.stack([value.flatten(1).std(0).max() for value in many.values()])
    assert spread.min() > 1e-3


@pytest.mark.parametrize(
    "chunks",
    [dict(chunk_size=1), dict(chunk_size=7), dict(task_chunk=1), dict(task_chunk=3),
     dict(chunk_size=5, task_chunk=2), dict(chunk_size=1, task_chunk=1)],
)
def test_chunks_change_nothing(chunks: dict[str, int]) -> None:
    params, draw, alpha = fleet(list(range(16)))
    whole, values = fleet_gradient(objective)(params, draw(0), alpha)
    parts, same = fleet_gradient(objective, **chunks)(params, draw(0), alpha)
    torch.testing.assert_close(same, values, rtol=1e-12, atol=0)
    for name in whole:
        assert whole[name].abs().max() > 1e-3
        torch.testing.assert_close(parts[name], whole[name], rtol=1e-12, atol=1e-14)


def test_a_gradient_is_that_of_the_mean_over_tasks() -> None:
    params, draw, alpha = fleet([3])
    found, value = fleet_gradient(objective)(params, draw(2), alpha)
    one = {name: leaf[0] for name, leaf in params.items()}

    def mean(p: Params) -> torch.Tensor:
        tasks = [{name: leaf[0, i] for name, leaf in draw(2).items()} for i in range(TASKS)]
        return torch.stack([objective(p, task, alpha[0]) for task in tasks]).mean()

    torch.testing.assert_close(value[0], mean(one), rtol=1e-12, atol=0)
    for name, exact in grad(mean)(one).items():
        torch.testing.assert_close(found[name][0], exact, rtol=1e-10, atol=1e-12)


@pytest.fixture
def failures(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """What compiled functions raise: with any of these the plain one is used, and no other test
    would notice."""
    found: list[Exception] = []
    real = torch.compile

    def spy(function: Callable, **options: object) -> Callable:
        fast = real(function, **options)

        def call(*arguments: object) -> object:
            try:
                return fast(*arguments)
            except Exception as error:
                found.append(error)
                raise

        return call

    monkeypatch.setattr(torch, "compile", spy)
    return found


@pytest.fixture
def plain_kernels(failures: list[Exception], monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The compiler's graphs by plain kernels, which are quick to have. Its own kernels are seen by
    one test here, by `make bench-check`, and for larger networks by `make bench-check-peers`."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    return failures


def test_compiled_gives_the_same(plain_kernels: list[Exception]) -> None:
    params, draw, alpha = fleet([0, 1, 2])
    plain, fast = fleet_gradient(objective), fleet_gradient(objective, compiled=True)
    expected, values = plain(params, draw(0), alpha)
    for _ in range(2):
        found, same = fast(params, draw(0), alpha)
        torch.testing.assert_close(same, values, rtol=1e-9, atol=0)
        for name in expected:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
    assert plain_kernels == []


IMAGES = nets.cnn((1, 4, 4), 2, 1, 3)
LOSS = cross_entropy(IMAGES.apply)
HEAD = ("head.weight", "head.bias")


def episodes() -> tuple[Params, Task]:
    """A convolutional network, and one run of two tasks."""
    rng = streams.torch_stream(3, "tests/episodes")
    x = torch.randn(1, 2, 15, 1, 4, 4, generator=rng, dtype=F64)
    y = (torch.arange(15) % 3).expand(1, 2, 15)
    return IMAGES.init(rng, dtype=F64), Task((x[:, :, :6], y[:, :, :6]), (x[:, :, 6:], y[:, :, 6:]))


OF_IMAGES = {
    "NAL": nal(LOSS),
    "MAML, 1 step": maml(LOSS, steps=1, update=sgd(0.3)),
    "MAML, 3 steps": maml(LOSS, steps=3, update=sgd(0.3)),
    "first order": first_order_maml(LOSS, steps=3, update=sgd(0.3)),
    "ANIL": anil(LOSS, steps=3, update=sgd(0.3), adapted=HEAD),
    "KFO": learned(LOSS, steps=3, rule=kfo(0.3)),
    "KFO of the head": learned(LOSS, steps=3, rule=kfo(0.3), adapted=HEAD),
    "KFO that adapts": learned(LOSS, steps=3, rule=kfo(0.3), rule_alpha=0.1),
    "per-step rates": learned(LOSS, steps=3, rule=per_step_rates(0.3, 3)),
}


@pytest.mark.parametrize("name", OF_IMAGES)
def test_compiled_losses_give_the_same(request: pytest.FixtureRequest, name: str) -> None:
    """With plain kernels but for one, which takes those of the compiler; and each of the two graphs
    is made once, whatever the number of steps."""
    failures = request.getfixturevalue("failures" if name == "KFO" else "plain_kernels")
    model, tasks = episodes()
    own = {key: model[key] for key in HEAD} if name == "KFO of the head" else model
    rule = {"KFO": kfo(0.3), "per": per_step_rates(0.3, 3)}.get(name[:3])
    params = joined(model, rule.init(own)) if rule else model
    params = {key: (value + 0.1 * torch.sin(torch.arange(value.numel(), dtype=F64))
                    .reshape(value.shape))[None] for key, value in params.items()}
    expected, values = fleet_gradient(OF_IMAGES[name], task_chunk=1)(params, tasks)
    torch._dynamo.utils.counters.clear()
    fast = fleet_gradient(OF_IMAGES[name], task_chunk=1, compiled=True)
    for _ in range(2):
        found, same = fast(params, tasks)
        torch.testing.assert_close(same, values, rtol=1e-10, atol=0)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-12)
    assert max(slope.abs().max() for slope in expected.values()) > 1e-2
    assert failures == []
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (1 if name == "NAL" else 2)


# by torch's own patch: what monkeypatch takes back is gone from its config for all later tests
@torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True)
def test_every_fleet_can_be_compiled(plain_kernels: list[Exception]) -> None:
    """torch gives up on a function after a number of recompilations; another fleet is another
    function."""
    params, draw, alpha = fleet([0, 1])
    for power in (1, 2, 3):

        def other(p: Params, normal: dict[str, torch.Tensor], alpha: torch.Tensor,
                  power: int = power) -> torch.Tensor:
            return (p["0.weight"] ** power).sum() * alpha * normal["x"].mean()

        fleet_gradient(other, compiled=True)(params, draw(0), alpha)
    assert plain_kernels == []


def test_without_a_compiler_the_plain_function_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def broken(function: Callable, **options: object) -> Callable:
        def fail(*arguments: object) -> None:
            tries.append(function)
            raise RuntimeError("no working C++ compiler")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    params, draw, alpha = fleet([0, 1])
    for chunks, functions in ((dict(), 1), (dict(chunk_size=1, task_chunk=1), 2)):
        tries.clear()
        fast = fleet_gradient(objective, compiled=True, **chunks)
        expected, _ = fleet_gradient(objective, **chunks)(params, draw(0), alpha)
        for _ in range(2):
            found, _ = fast(params, draw(0), alpha)
            assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert len(tries) == functions


class Stopped(Exception):
    pass


def test_a_resumed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.safetensors"
    keep = Checkpoint(path, every=10, of="a test")
    whole = trained([0, 1], 60)
    seen: list[int] = []

    def watch(step: int, params: Params, values: torch.Tensor) -> None:
        seen.append(step)
        if len(seen) == 38:
            raise Stopped

    with pytest.raises(Stopped):
        trained([0, 1], 60, checkpoint=keep, watch=watch)
    assert path.exists()
    again = trained([0, 1], 60, checkpoint=keep, watch=watch)
    assert seen == [*range(38), *range(30, 60)]
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert not path.exists()


@pytest.fixture
def interrupted(tmp_path: Path) -> Checkpoint:
    keep = Checkpoint(tmp_path / "run.safetensors", every=5, of="a test")

    def watch(step: int, params: Params, values: torch.Tensor) -> None:
        if step == 12:
            raise Stopped

    with pytest.raises(Stopped):
        trained([0, 1], checkpoint=keep, watch=watch)
    return keep


@pytest.mark.parametrize("damage", ["cut", "altered", "empty"])
def test_a_damaged_checkpoint_is_refused(interrupted: Checkpoint, damage: str) -> None:
    data = bytearray(interrupted.path.read_bytes())
    data[len(data) // 2] ^= 1
    interrupted.path.write_bytes(
        {"cut": data[: len(data) // 3], "altered": data, "empty": b""}[damage]
    )
    with pytest.raises(
        RecordError,
        match=r"run\.safetensors must match its hash, got .*; remove it to start afresh",
    ):
        trained([0, 1], checkpoint=interrupted)


def test_a_checkpoint_of_another_run_is_refused(interrupted: Checkpoint) -> None:
    for seeds, of in (([0, 1], "another"), ([0, 1, 2], "a test")):
        with pytest.raises(
            RecordError, match="must be the checkpoint of this run, got that of another; remove it"
        ):
            trained(seeds, checkpoint=interrupted._replace(of=of))
    with pytest.raises(RecordError, match=r"must be of a step up to 3, got \d+: a longer run"):
        trained([0, 1], 3, checkpoint=interrupted)
    with pytest.raises(ValueError, match=r"checkpoint.every must be at least 1, got 0"):
        trained([0, 1], checkpoint=interrupted._replace(every=0))
    trained([0, 1], checkpoint=interrupted)


@pytest.mark.parametrize(("ours", "theirs"),
                         [(adam(0.01), lambda p: torch.optim.Adam(p, 0.01)),
                          (training.sgd(0.05), lambda p: torch.optim.SGD(p, 0.05))])
def test_optimisers_are_those_of_torch(ours: Optimizer, theirs: Callable) -> None:
    params, draw, alpha = fleet([0, 1])
    gradient = fleet_gradient(objective)
    leaves = {name: value.clone() for name, value in params.items()}
    reference = theirs(list(leaves.values()))
    for step in range(25):
        found, _ = gradient(leaves, draw(step), alpha)
        for name, leaf in leaves.items():
            leaf.grad = found[name]
        reference.step()
    mine = train(gradient, params, draw, optimizer=ours, steps=25, settings=(alpha,))
    for name in params:
        assert (mine[name] - params[name]).abs().max() > 1e-3
        torch.testing.assert_close(mine[name], leaves[name], rtol=1e-10, atol=1e-10)


def test_every_run_can_have_its_own_rate() -> None:
    params, draw, alpha = fleet([0, 1])
    rates = torch.tensor([0.01, 0.1], dtype=F64)
    both = train(fleet_gradient(objective), params, draw, optimizer=training.sgd(rates), steps=5,
                 settings=(alpha,))
    for i, rate in enumerate(rates.tolist()):
        one, few, mine = fleet([i])
        alone = train(fleet_gradient(objective), one, few, optimizer=training.sgd(rate), steps=5,
                      settings=(mine,))
        for name in both:
            torch.testing.assert_close(both[name][i], alone[name][0], rtol=1e-10, atol=1e-12)


def test_cosine_falls_to_zero() -> None:
    rate = cosine(0.2, 10)
    assert rate(0) == 0.2
    assert rate(5) == pytest.approx(0.1)
    assert rate(10) == pytest.approx(0, abs=1e-12)


def linear_mixture(seed: int) -> LinearFamily:
    """Random: any covariances, distant centres, spread and noise."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((2, 3, 3))
    covariances = factors @ factors.swapaxes(1, 2) / 3 + 0.2 * np.eye(3)
    covariances[1] *= 0.3
    return LinearFamily(covariances, 2 * rng.standard_normal((2, 3)), np.array([0.3, 0.1]),
                        np.array([0.6, 0.4]), 0.2)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_engine_reaches_the_minimisers_of_the_theory(seed: int) -> None:
    """Hotelling's test over 40 seeds: the mean solution is the closed form's, and the other
    method's is rejected."""
    family, alpha, support, seeds, steps = linear_mixture(seed), 0.4, 10, 40, 800
    net = nets.linear(3)
    loss = squared_error(net.apply)
    exact = {"nal": family.minimiser_nal(), "maml": family.minimiser_maml(alpha, support)}
    rng = streams.stream(seed, "tests/mixture")

    def draw(step: int) -> Task:
        x, y = map(torch.from_numpy, family.draw_samples(
            rng, *family.draw_tasks(rng, (seeds, 10)), 2 * support))
        return Task((x[:, :, :support], y[:, :, :support]), (x[:, :, support:], y[:, :, support:]))

    start = {"0.weight": torch.zeros(seeds, 1, 3, dtype=F64)}
    for name, of in (("nal", nal(loss)), ("maml", maml(loss, steps=1, update=sgd(alpha)))):
        tail: list[torch.Tensor] = []
        train(fleet_gradient(of),
              start,
              draw,
              optimizer=training.sgd(lambda t: 0.4 / (1 + t / 50)),
              steps=steps,
              watch=lambda t, p, v, tail=tail: (
                  tail.append(p["0.weight"][:, 0]) if t >= steps - 200 else None
              ))
        last = torch.stack(tail).mean(0).numpy()
        p_values = {}
        for target, w in exact.items():
            miss = (last - w).mean(axis=0)
            statistic = (seeds
                         * miss
                         @ np.linalg.solve(np.cov(last.T), miss)
                         * (seeds - 3)
                         / (3 * (seeds - 1)))
            p_values[target] = stats.f.sf(statistic, 3, seeds - 3)
        assert p_values[name] > 1e-3
        assert p_values["maml" if name == "nal" else "nal"] < 1e-6


@pytest.mark.parametrize("options", [{}, {"task_chunk": 1}])
def test_a_single_run_needs_no_run_axis(options: dict[str, int], tmp_path: Path) -> None:
    """With a scalar among its parameters, a checkpoint, and a setting."""
    many, draw, alpha = fleet([5])
    many["gain"] = torch.ones(1, dtype=F64)

    def scaled(p: Params, normal: dict[str, torch.Tensor], alpha: torch.Tensor) -> torch.Tensor:
        return p["gain"] * objective({n: v for n, v in p.items() if n != "gain"}, normal, alpha)

    one = {name: value[0] for name, value in many.items()}
    seen: list[torch.Size] = []
    found = train(run_gradient(scaled, **options), one,
                  lambda step: {name: leaf[0] for name, leaf in draw(step).items()},
                  optimizer=adam(0.01), steps=15, settings=(alpha[0],),
                  watch=lambda step, params, value: seen.append(value.shape),
                  checkpoint=Checkpoint(tmp_path / "run", every=4, of="a run"))
    expected = train(fleet_gradient(scaled, **options), many, draw, optimizer=adam(0.01), steps=15,
                     settings=(alpha,))
    assert all(torch.equal(found[name], expected[name][0]) for name in expected)
    assert set(seen) == {()}
    assert all(torch.equal(value, one[name]) for name, value in train(
        run_gradient(scaled), one, draw, optimizer=adam(0.01), steps=0).items())


def test_a_single_run_that_diverges() -> None:
    with pytest.raises(Diverged, match=r"^the objective is not finite at step 50 or before"):
        train(run_gradient(lambda p, x: (p["w"] * x) ** 2), {"w": torch.ones(())},
              lambda step: torch.ones(3), optimizer=training.sgd(50.0), steps=60)


def test_a_run_that_diverges_is_named() -> None:
    params, draw, alpha = fleet([0, 1, 2])
    alpha[1] = 1e9
    with pytest.raises(Diverged, match=r"the objective of run 1 \(1 of 3 runs\) is not finite at "
                                       r"step \d+ or before"):
        train(fleet_gradient(objective), params, draw, optimizer=training.sgd(1e200), steps=60,
              settings=(alpha * 0 + torch.tensor([0, 1e150, 0]),))


def test_a_fleet_that_does_not_fit() -> None:
    params, draw, alpha = fleet([0, 1])

    def huge(p: Params, normal: dict[str, torch.Tensor], alpha: torch.Tensor) -> torch.Tensor:
        return objective(p, normal, alpha) + torch.zeros(2**50).sum()

    with pytest.raises(
        MemoryError,
        match="the fleet must fit into memory, got 2 runs, 1 at once; pass a smaller chunk",
    ):
        fleet_gradient(huge, chunk_size=1)(params, draw(0), alpha)


def test_other_runtime_errors_pass() -> None:
    params, draw, alpha = fleet([0, 1])

    def broken(*arguments: object) -> torch.Tensor:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fleet_gradient(broken)(params, draw(0), alpha)


def test_bad_input() -> None:
    params, draw, alpha = fleet([0, 1])
    gradient = fleet_gradient(objective)
    with pytest.raises(ValueError, match=r"start with one run axis, got \[2, 3\]; stack the runs"):
        gradient(params, draw(0), torch.ones(3))
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        fleet_gradient(objective, chunk_size=0)
    with pytest.raises(ValueError, match="task_chunk must be a whole number"):
        fleet_gradient(objective, task_chunk=1.5)
    for rate in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="rate must be positive and finite"):
            adam(rate)
    with pytest.raises(ValueError, match="steps must be at least 0"):
        train(gradient, params, draw, optimizer=adam(0.1), steps=-1, settings=(alpha,))
    still = train(gradient, params, draw, optimizer=adam(0.1), steps=0, settings=(alpha,))
    assert all(torch.equal(still[name], params[name]) for name in params)


def test_the_header_of_a_checkpoint_is_plain(interrupted: Checkpoint) -> None:
    data = interrupted.path.read_bytes()
    header = json.loads(data[40 : 40 + int.from_bytes(data[32:40], "little")])
    assert header["__metadata__"]["step"] == "10"
    assert {"params/0.weight", "moments/m.0.weight", "moments/v.0.weight"} <= set(header)
