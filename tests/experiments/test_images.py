"""What the experiments on images share: against plain loops, without a leak, by seed."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_map

from companion import fleets, nets
from companion.checkpoints import Checkpoint
from companion.errors import Diverged
from companion.evaluation import estimate
from companion.experiment import unless_lost
from companion.experiments import images
from companion.experiments.images import Arm, Sizes, Trained, model_of, train_arm
from companion.fleets import Budget, Model, start
from companion.losses import cross_entropy
from companion.meta_optimizers import RULES
from companion.objectives import parted
from companion.streams import torch_stream
from companion.tasks import Fleet, Task
from companion.tasks.episodes import Setting, episode_fleet, pools

pytestmark = pytest.mark.usefixtures("patterns")
F64 = torch.float64
BUDGET = Budget(steps=6, tasks=3, rate=0.01, test_tasks=40, rule_share=0.1, batch=25)
SIZES = Sizes(filters=4, blocks=1, width=8, inner=2, factors=(1.0,), valid_episodes=25,
              budget=BUDGET)
SETTING = Setting("made", 3, 2, 0.1, queries=4, within=True)
ARMS = [Arm("MAML"), Arm("ANIL"), Arm("NAL-episodic"), Arm("NAL-global"), Arm("MAML", "KFO"),
        Arm("ANIL", "Meta-SGD", 1), Arm("MAML", "SGD", 2), Arm("BOIL", "SGD", 1)]
CLASSES = 32  # in training
SEEDS = (7, 3)


def fleet_of(seeds=SEEDS, **options) -> Fleet:
    return episode_fleet(SETTING, seeds, **options)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    return tmp_path


def trained(arm: Arm, seeds=SEEDS, sizes: Sizes = SIZES, key: str = "tests", **hard) -> Trained:
    return train_arm(arm, SETTING, sizes, seeds, key=key, **hard)


def place(tree, *index: int):
    return tree_map(lambda leaf: leaf[index], tree)


def double(tree):
    return tree_map(lambda leaf: leaf.double() if leaf.dtype.is_floating_point else leaf, tree)


def adapted_by_hand(arm: Arm, net: nets.Net, params, rule, support, steps: int, alpha: float):
    """The inner loop with plain autograd, one task at a time."""
    loss = cross_entropy(net.apply)
    top = nets.head_names(params)
    names = {"ANIL": top, "BOIL": [name for name in params if name not in top]}.get(
        arm.method, tuple(params))
    for _ in range(steps):
        slopes = torch.autograd.grad(loss(params, support), [params[n] for n in names],
                                     create_graph=True)
        updates = RULES[arm.rule](alpha).apply(rule, dict(zip(names, slopes, strict=True)))
        params = params | {n: params[n] - updates[n] for n in names}
    return params


@pytest.mark.parametrize("arm", ARMS, ids=str)
def test_meta_gradients_equal_a_loop_over_tasks(arm: Arm) -> None:
    everything = arm.method == "NAL-global"
    fleet = fleet_of(fraction=0.5, global_labels=everything)
    model = model_of(arm, SETTING, SIZES, CLASSES if everything else None)
    params, tasks = double(start(fleet, model)), double(fleet.draw(fleet, "train", 3, 0)(0))
    gradients, values = fleets.gradient(fleet, model)(params, tasks, fleet.alpha.double())
    net = model.net
    for run in range(2):
        leaves = {name: value[run].clone().requires_grad_() for name, value in params.items()}
        plain, rule = parted(leaves)
        total = torch.zeros((), dtype=F64)
        for i in range(3):
            task = place(tasks, run, i)
            if arm.method.startswith("NAL"):
                x, y = (torch.cat(sides) for sides in zip(*task, strict=True))
                total = total + torch.nn.functional.cross_entropy(net.apply(plain, x), y) / 3
            else:
                moved = adapted_by_hand(arm, net, plain, rule, task.support, SIZES.inner,
                                        fleet.alpha[run].double())
                total = total + cross_entropy(net.apply)(moved, task.query) / 3
        assert values[run].item() == pytest.approx(total.item(), rel=1e-9)
        slopes = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        for (name, leaf), slope in zip(leaves.items(), slopes, strict=True):
            expected = torch.zeros_like(leaf) if slope is None else slope
            gap = (gradients[name][run] - expected).norm()
            assert gap <= 1e-5 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("arm", [ARMS[0], ARMS[4], ARMS[5], ARMS[7]], ids=str)
def test_accuracies_equal_a_loop_over_episodes(arm: Arm) -> None:
    fleet, model = fleet_of().at(torch.tensor([0.1, 0.3])), model_of(arm, SETTING, SIZES)
    params, drawn = start(fleet, model), fleet.draw(fleet, "test", 25, 0)
    found = images.accuracies(fleet, model, params, BUDGET, (3, 0, 1))
    assert found.shape == (2, 40, 3)
    for run, i, (j, k) in product(range(2), (0, 7, 24, 26), enumerate((3, 0, 1))):
        task = place(drawn(i // 25), run, i % 25)
        plain, rule = parted({name: value[run].clone().requires_grad_()
                              for name, value in params.items()})
        moved = adapted_by_hand(arm, model.net, plain, rule, task.support, k, fleet.alpha[run])
        chosen = model.net.apply(moved, task.query[0]).argmax(-1)
        right = (chosen == task.query[1]).double().mean().item()
        assert found[run, i, j] == pytest.approx(right, abs=1e-6)


def test_one_by_one_and_patches_at_once_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a CPU computes, and what a GPU does."""
    arm = Arm("MAML", "per-step rates", 1)
    one, other = (model_of(arm, SETTING, SIZES, device=device) for device in ("cpu", "cuda"))
    fleet = fleet_of()
    at_once = replace(fleet, chunk=None)
    params, tasks = double(start(fleet, one)), double(fleet.draw(fleet, "train", 3, 0)(0))
    slopes, values = fleets.gradient(fleet, one)(params, tasks, fleet.alpha.double())
    again, same = fleets.gradient(at_once, other)(params, tasks, fleet.alpha.double())
    torch.testing.assert_close(values, same, rtol=1e-10, atol=0)
    assert slopes.keys() == again.keys()
    for name, slope in slopes.items():
        assert (slope - again[name]).norm() <= 1e-5 * slope.norm() + 1e-12, name
    params = start(fleet, one)
    right = images.accuracies(fleet, one, params, BUDGET, (2,))
    assert 0.3 < right.mean() < 1
    assert (right - images.accuracies(at_once, other, params, BUDGET, (2,))).mean() == (
        pytest.approx(0, abs=1e-3))


def chance(fleet: Fleet, model: Model, params, k: int, relabel: bool) -> float:
    """How many standard errors the accuracy over 400 episodes is away from chance."""

    def draw(fleet: Fleet, purpose: str, tasks: int, query: int):
        plain = fleet_of().draw(fleet, purpose, tasks, query)

        def shuffled(step: int) -> Task:
            task, rng = plain(step), torch_stream(step, "tests/relabel")
            order = torch.rand(*task.query[1].shape[:2], SETTING.ways, generator=rng).argsort(-1)
            return Task(task.support, (task.query[0], order.gather(-1, task.query[1])))

        return shuffled if relabel else plain

    right = images.accuracies(replace(fleet, draw=draw, chunk=None), model, params,
                              replace(BUDGET, test_tasks=400), [k])
    found = estimate(np.round(right, 6).ravel())
    return 0.0 if abs(found.value - 1 / SETTING.ways) < 1e-6 else found.sigmas(1 / SETTING.ways)


@pytest.mark.parametrize("arm", [ARMS[0], ARMS[1], ARMS[4], ARMS[6]], ids=str)
def test_without_adaptation_or_with_labels_permuted_apart_it_is_chance(arm: Arm) -> None:
    # as on a GPU: the same, see above, in a fraction of the time
    fleet, model = fleet_of(), model_of(arm, SETTING, SIZES, device="cuda")
    params = trained(arm).params
    assert abs(chance(fleet, model, params, 0, relabel=False)) < 4
    assert abs(chance(fleet, model, params, 5, relabel=True)) < 4
    assert chance(fleet, model, params, 5, relabel=False) > 20  # so the test would see a leak


def test_the_global_head_is_replaced_by_zeros() -> None:
    arm = Arm("NAL-global")
    begin = start(fleet_of(), model_of(arm, SETTING, SIZES, CLASSES))
    assert begin["head.weight"].shape[1] == len(pools("made", True)["train"].first) == CLASSES
    found = trained(arm, sizes=replace(SIZES, budget=replace(BUDGET, steps=30)))
    assert found.params["head.weight"].shape[1] == SETTING.ways
    assert not found.params["head.weight"].any()
    assert not torch.equal(found.params["0.conv"], begin["0.conv"])
    assert (found.loss < np.log(CLASSES)).all()
    untrained = trained(Arm("untrained"))
    maml = start(fleet_of(), model_of(Arm("MAML"), SETTING, SIZES))
    assert torch.equal(untrained.params["0.conv"], maml["0.conv"])
    assert np.isnan(untrained.loss).all()


@pytest.mark.parametrize(("method", "labels"),
                         [("NAL-global", CLASSES), ("NAL-episodic", SETTING.ways)])
def test_nal_trains_on_labels_of_its_own_kind(method: str, labels: int,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def untrained(fleet, model, budget, *, watch, **options):
        draw = fleet.draw(fleet, "train", 4, 0)
        seen.extend(int(draw(step).support[1].max()) for step in range(20))
        watch(budget.steps, {}, torch.zeros(2))
        return start(fleet, model)

    monkeypatch.setattr(images, "train", untrained)
    trained(Arm(method))
    assert max(seen) == labels - 1


def test_only_long_trainings_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, bool, bool]] = []

    def untrained(fleet, model, budget, *, watch, compiled, graph, **options):
        seen.append((budget.steps, compiled, graph))
        watch(budget.steps, {}, torch.zeros(2))
        return start(fleet, model)

    monkeypatch.setattr(images, "train", untrained)
    for steps in (200, 201):
        trained(Arm("MAML"), sizes=replace(SIZES, budget=replace(BUDGET, steps=steps)))
    assert seen == [(200, False, False), (201, True, False)]


def test_a_run_is_named_by_its_seed() -> None:
    """In whatever order and company: parameters, final objective, rates and rows."""
    arm, model = Arm("MAML", "KFO"), model_of(Arm("MAML", "KFO"), SETTING, SIZES)
    sizes, rows, found = replace(SIZES, factors=(0.5, 2.0)), {}, {}
    for seeds in ((7, 3), (3,), (3, 7)):
        fleet, found[seeds] = fleet_of(seeds), trained(arm, seeds)
        rows[seeds] = images.scored(found[seeds], model, sizes, (1, 3), fleet, {"test": fleet})
    order = {seeds: sorted(each, key=lambda row: (row["seed"], row["k"]))
             for seeds, each in rows.items()}
    for one, other in ((order[3, 7], order[7, 3]),
                       (order[(3,)], [row for row in order[7, 3] if row["seed"] == 3])):
        assert [row | {"loss": 0} for row in one] == [row | {"loss": 0} for row in other]
    assert [(row["seed"], row["k"]) for row in rows[7, 3]] == [(7, 1), (3, 1), (7, 3), (3, 3)]
    np.testing.assert_allclose(found[7, 3].loss[::-1], found[3, 7].loss, rtol=1e-6)
    assert found[(3,)].loss[0] == pytest.approx(found[7, 3].loss[1], rel=1e-6)
    assert found[7, 3].loss[0] != pytest.approx(found[7, 3].loss[1], rel=1e-3)


def test_the_own_rate_is_the_best_on_validation_classes() -> None:
    fleet, model = fleet_of(), model_of(Arm("MAML"), SETTING, SIZES)
    sizes, found = replace(SIZES, factors=(1e-4, 2.0)), trained(Arm("untrained"))
    rates, valid = images.best_rates(fleet, model, sizes, found.params, (0, 5))
    assert rates[:, 1].tolist() == pytest.approx([0.2, 0.2])  # the smaller one moves nothing
    assert (valid[:, 1] > valid[:, 0] + 0.1).all()
    rows = images.scored(found, model, sizes, (0, 5), fleet, {"test": fleet})
    assert len(rows) == 2 * 2
    assert {row["step"] for row in rows if row["k"] == 5} == {0.2}
    at = images.accuracies(fleet.at(torch.tensor([0.2, 0.2])), model, found.params, BUDGET,
                           [5])[..., 0]
    (row,) = (r for r in rows if (r["seed"], r["k"]) == (3, 5))
    assert (row["accuracy"], row["error"], row["valid"]) == pytest.approx(
        (at[1].mean(), at[1].std(ddof=1) / 40**0.5, valid[1, 1]), rel=1e-5)


def test_a_run_that_is_lost_takes_no_other_with_it() -> None:
    asked = []

    def rows(seeds):
        asked.append(tuple(seeds))
        if 2 in seeds:
            raise Diverged(3, "the objective")
        return [{"seed": seed, "accuracy": 0.9} for seed in seeds]

    found = unless_lost(rows, range(1, 4), lambda seed: images.lost(seed, ["hard"], [1], 5))
    assert asked == [(1, 2, 3), (1,), (2,), (3,)]
    assert [(row["seed"], row["accuracy"]) for row in found] == [(1, 0.9), (2, 0.2), (3, 0.9)]


def test_an_interrupted_training_ends_alike(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "Checkpoint", lambda path, every, of: Checkpoint(path, 2, of))
    arm, plain, draws = Arm("MAML", "KFO"), images.episode_fleet, []
    whole = trained(arm)

    def failing(*arguments, **options) -> Fleet:
        fleet = plain(*arguments, **options)

        def draw(each: Fleet, *rest):
            at = fleet.draw(each, *rest)

            def once(step: int) -> Task:
                draws.append(step)
                if step == 5 and draws.count(5) == 1:
                    raise KeyboardInterrupt
                return at(step)

            return once

        return replace(fleet, draw=draw)

    monkeypatch.setattr(images, "episode_fleet", failing)
    with pytest.raises(KeyboardInterrupt):
        trained(arm)
    assert len(list((cache / "checkpoints").iterdir())) == 1
    again = trained(arm)
    assert draws[6] == 4  # it went on where it had been kept
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)
    assert (whole.loss == again.loss).all()
    assert not list((cache / "checkpoints").iterdir())


def test_rules_take_smaller_outer_steps() -> None:
    arm, moved = Arm("MAML", "KFO"), {}
    begin = start(fleet_of(), model_of(arm, SETTING, SIZES))
    for share in (1.0, 0.1):
        budget = replace(BUDGET, steps=1, rule_share=share)
        params = trained(arm, sizes=replace(SIZES, budget=budget)).params
        moved[share] = {name: (params[name] - begin[name]).abs().max().item() for name in params}
    assert moved[0.1]["0.conv"] == moved[1.0]["0.conv"] > 0
    assert moved[0.1]["rule/0.conv.R"] == pytest.approx(0.1 * moved[1.0]["rule/0.conv.R"], rel=1e-3)
