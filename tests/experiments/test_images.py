"""Experiments on images: the parts that they share against plain loops, no leak, verdicts of tables
made for them."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from companion import nets, training
from companion.evaluation import estimate
from companion.experiments import depth_images, few_shot, landscape_images
from companion.experiments.few_shot import Model, Setting, Sizes
from companion.losses import cross_entropy
from companion.meta_optimizers import RULES
from companion.objectives import parted
from companion.records import Record
from companion.streams import torch_stream
from companion.tasks import Task
from companion.tasks.sources import SPLITS, Source

F64 = torch.float64
SIZES = Sizes(filters=4, blocks=1, inner=2, meta_batch=3, steps=6, rate=0.01, test_episodes=40,
              valid_episodes=25)
SETTING = Setting("made", 3, 2, 0.1, queries=4, within=True)
MODELS = [Model("MAML"), Model("ANIL"), Model("NAL-episodic"), Model("NAL-global"),
          Model("MAML", "KFO"), Model("ANIL", "Meta-SGD", 1), Model("MAML", "SGD", 2)]
GROUPS, EACH, IMAGES = 4, 16, 10


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Source:
    """Four groups of 16 classes of noisy 8 x 8 patterns, in place of any source."""
    rng = torch_stream(0, "tests/images")
    patterns = torch.rand(GROUPS * EACH, 1, 1, 8, 8, generator=rng)
    images = (patterns + 0.2 * torch.randn(GROUPS * EACH, IMAGES, 1, 8, 8, generator=rng)).clamp(
        0, 1
    )
    group = torch.arange(GROUPS * EACH) // EACH
    first, sizes = torch.arange(len(group)) * IMAGES, torch.full((len(group),), IMAGES)
    splits = {split: (torch.arange(len(group)) % 4).eq(i).nonzero().flatten()
              for i, split in enumerate(SPLITS)}
    names = tuple(map(str, range(len(group))))
    found = Source("made", (images * 255).to(torch.uint8).flatten(0, 1), first, sizes, group, names,
                   names[:4], splits)
    monkeypatch.setattr(few_shot.sources, "load", lambda name: found)
    few_shot._source.cache_clear()
    yield found
    few_shot._source.cache_clear()


def fleet(seeds=(0, 1), **options):
    return few_shot.fleet(SETTING, seeds, **options)


def double(tree):
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.double() if leaf.dtype.is_floating_point else leaf, tree
    )


def adapted_by_hand(model: Model, net: nets.Net, params, rule, support, steps: int, alpha: float):
    """The inner loop with plain autograd, one task at a time."""
    loss = cross_entropy(net.apply)
    names = nets.head_names(params) if model.method == "ANIL" else tuple(params)
    for _ in range(steps):
        slopes = torch.autograd.grad(loss(params, support), [params[n] for n in names],
                                     create_graph=True)
        updates = RULES[model.rule](alpha).apply(rule, dict(zip(names, slopes, strict=True)))
        params = params | {n: params[n] - updates[n] for n in names}
    return params


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_meta_gradients_equal_a_loop_over_tasks(model: Model) -> None:
    of = fleet(fraction=0.5)
    params = double(few_shot.start(of, model, SIZES))
    tasks = double(of.draw("train", "check", 3, global_labels=model.method == "NAL-global")(0))
    gradients, values = training.fleet_gradient(few_shot.objective(of, model, SIZES))(params, tasks)
    net = few_shot.network(of, model, SIZES)
    for run in range(2):
        leaves = {name: value[run].clone().requires_grad_() for name, value in params.items()}
        plain, rule = parted(leaves)
        total = torch.zeros((), dtype=F64)
        for i in range(3):
            task = torch.utils._pytree.tree_map(lambda leaf, run=run, i=i: leaf[run, i], tasks)
            if model.method.startswith("NAL"):
                x, y = (torch.cat(sides) for sides in zip(task.support, task.query, strict=True))
                total = total + torch.nn.functional.cross_entropy(net.apply(plain, x), y) / 3
            else:
                moved = adapted_by_hand(model, net, plain, rule, task.support, SIZES.inner,
                                        SETTING.alpha)
                total = total + cross_entropy(net.apply)(moved, task.query) / 3
        assert values[run].item() == pytest.approx(total.item(), rel=1e-9)
        for (name, leaf), slope in zip(
            leaves.items(),
            torch.autograd.grad(total, list(leaves.values()), allow_unused=True),
            strict=True,
        ):
            expected = torch.zeros_like(leaf) if slope is None else slope
            gap = (gradients[name][run] - expected).norm()
            assert gap <= 1e-5 * expected.norm() + 1e-12, name


@pytest.mark.parametrize("model", [MODELS[0], MODELS[4], MODELS[5]], ids=str)
def test_accuracies_equal_a_loop_over_episodes(model: Model) -> None:
    of = fleet()
    params, net, drawn = (few_shot.start(of, model, SIZES), few_shot.network(of, model, SIZES),
                          of.draw("test", "x", 25))
    found = few_shot.accuracies(of, model, SIZES, params, [0.1, 0.3], (0, 1, 3), drawn, 30)
    assert found.shape == (2, 30, 3)
    for run, i, (j, k) in product(range(2), (0, 7, 24, 26), enumerate((0, 1, 3))):
        task = torch.utils._pytree.tree_map(lambda leaf, run=run, i=i: leaf[run, i % 25],
                                            drawn(i // 25))
        plain, rule = parted(
            {name: value[run].clone().requires_grad_() for name, value in params.items()}
        )
        moved = adapted_by_hand(model, net, plain, rule, task.support, k, [0.1, 0.3][run])
        right = (net.apply(moved, task.query[0]).argmax(-1) == task.query[1]).double().mean().item()
        assert found[run, i, j] == pytest.approx(right, abs=1e-6)


def chance(of, model: Model, params, k: int, relabel: bool) -> float:
    """How many standard errors the accuracy over 400 episodes is away from chance."""
    drawn = of.draw("test", "chance", 25)

    def shuffled(step: int) -> Task:
        task = drawn(step)
        rng = torch_stream(step, "tests/relabel")
        order = torch.rand(*task.query[1].shape[:2], SETTING.ways, generator=rng).argsort(-1)
        return (Task(task.support, (task.query[0], order.gather(-1, task.query[1])))
                if relabel
                else task)

    right = few_shot.accuracies(of, model, SIZES, params, [0.1] * 2, [k], shuffled, 400)[..., 0]
    found = estimate(np.round(right, 6).ravel())
    return 0.0 if abs(found.value - 1 / SETTING.ways) < 1e-6 else found.sigmas(1 / SETTING.ways)


@pytest.mark.parametrize("model", [MODELS[0], MODELS[1], MODELS[4], MODELS[6]], ids=str)
def test_without_adaptation_or_with_labels_permuted_apart_it_is_chance(model: Model) -> None:
    of = fleet()
    params = few_shot.train(of, model, SIZES).params
    assert abs(chance(of, model, params, 0, relabel=False)) < 4
    assert abs(chance(of, model, params, 5, relabel=True)) < 4
    assert chance(of, model, params, 5, relabel=False) > 20  # so the test would see a leak


def test_the_global_head_is_replaced_by_zeros() -> None:
    of = fleet()
    start = few_shot.start(of, Model("NAL-global"), SIZES)
    assert start["head.weight"].shape[1] == len(of.pools["train"].first) == GROUPS * EACH // 2
    found = few_shot.train(of, Model("NAL-global"), SIZES)
    assert found.params["head.weight"].shape[1] == SETTING.ways
    assert not found.params["head.weight"].any()
    assert not torch.equal(found.params["0.conv"], start["0.conv"])
    assert (found.loss < np.log(GROUPS * EACH // 2) + 1).all()
    untrained = few_shot.train(of, Model("untrained"), SIZES)
    assert torch.equal(untrained.params["0.conv"],
                       few_shot.start(of, Model("MAML"), SIZES)["0.conv"])


@pytest.mark.parametrize(("method", "labels"),
                         [("NAL-global", GROUPS * EACH // 2), ("NAL-episodic", SETTING.ways)])
def test_nal_trains_on_labels_of_its_own_kind(method: str, labels: int,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def untrained(gradient, params, draw, **options):
        seen.extend(int(draw(step).support[1].max()) for step in range(20))
        return params

    monkeypatch.setattr(few_shot.training, "train", untrained)
    few_shot.train(fleet(), Model(method), SIZES)
    assert max(seen) == labels - 1


def test_hard_groups_are_those_of_the_seed_in_every_split() -> None:
    of = fleet(seeds=(0, 1, 2, 3), hard_groups=1, fraction=1.0)
    assert len(set(of.hard["train"])) > 1
    assert of.hard["train"] == of.hard["validation"] == of.hard["test"]
    assert fleet(hard_groups=0).hard["test"][0] == fleet(seeds=(0,)).hard["train"][0]
    apart = few_shot.fleet(replace(SETTING, within=False), (0, 1), hard_groups=1)
    assert [len(groups) for groups in apart.hard["train"]] == [1, 1]
    assert set(apart.hard["test"][0]) == set(range(GROUPS))


def test_the_own_step_is_the_best_on_validation_classes() -> None:
    of, model, sizes = fleet(), Model("MAML"), replace(SIZES, factors=(1e-4, 2.0))
    params = few_shot.start(of, model, sizes)
    chosen = few_shot.validated(of, model, sizes, params, (0, 5), fraction=0.0)
    assert chosen.alphas[:, 1].tolist() == [0.2, 0.2]  # the smaller one moves nothing
    assert (chosen.accuracy[:, 1] > chosen.accuracy[:, 0] + 0.1).all()
    rows = few_shot.scores(of, model, sizes, params, (0, 5), {"easy": 0.0, "hard": 1.0},
                           fraction=0.0)
    assert len(rows) == 2 * 2 * 2 * 2
    told = {(row["rate"], row["step"]) for row in rows if row["k"] == 5}
    assert told == {("training", 0.1), ("own", 0.2)}


def test_an_interrupted_training_ends_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path))
    monkeypatch.setattr(few_shot, "_CHECKPOINT_EVERY", 2)
    of, model = fleet(), Model("MAML", "KFO")
    whole = few_shot.train(of, model, SIZES)
    draws, plain_draw = [], few_shot.Fleet.draw

    def failing(self, split, purpose, *rest, **options):
        at = plain_draw(self, split, purpose, *rest, **options)

        def once(step: int) -> Task:
            draws.append(step)
            if step == 5 and draws.count(5) == 1:
                raise KeyboardInterrupt
            return at(step)

        return once

    monkeypatch.setattr(few_shot.Fleet, "draw", failing)
    with pytest.raises(KeyboardInterrupt):
        few_shot.train(of, model, SIZES, key="a point")
    assert len(list((tmp_path / "checkpoints").iterdir())) == 1
    again = few_shot.train(of, model, SIZES, key="a point")
    assert draws[6] == 4  # it went on where it had been kept
    assert all(torch.equal(whole.params[name], again.params[name]) for name in whole.params)
    assert (whole.loss == again.loss).all()
    assert not list((tmp_path / "checkpoints").iterdir())


def test_rules_take_smaller_outer_steps() -> None:
    of, model = fleet(), Model("MAML", "KFO")
    begin = few_shot.start(of, model, SIZES)
    moved = {}
    for share in (1.0, 0.1):
        params = few_shot.train(of, model, replace(SIZES, steps=1, rule_share=share)).params
        moved[share] = {name: (params[name] - begin[name]).abs().max().item() for name in params}
    assert moved[0.1]["0.conv"] == moved[1.0]["0.conv"] > 0
    assert moved[0.1]["rule/0.conv.R"] == pytest.approx(0.1 * moved[1.0]["rule/0.conv.R"], rel=1e-3)


# the experiments


FEW = replace(SIZES, steps=2, test_episodes=4, valid_episodes=4)
LANDSCAPE = replace(landscape_images.PROFILES["quick"], settings=(SETTING,),
                    sizes=replace(FEW, inner=1), packed=1, plain=(SETTING,), plain_sizes=FEW,
                    seeds=2, ks=(1, 2))


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few episodes at once, so that whole experiments of few episodes take seconds."""
    monkeypatch.setattr(few_shot, "_BATCH", 4)
    monkeypatch.setattr(few_shot, "_LOSS_STEPS", 2)


def table_of(module, config) -> pd.DataFrame:
    rows = [row for point in module.points(config) for row in module.compute(config, point, "cpu")]
    return pd.DataFrame(rows)


def record(table: pd.DataFrame, base: float = 0.5) -> Record:
    return Record(table, {"config": {"base": base}})


def test_landscape_rows_name_their_environment_and_verdicts_follow_them(short: None) -> None:
    table = table_of(landscape_images, LANDSCAPE)
    hard = table[table["hard"]]
    assert set(hard[hard["trained"].isin(["easy", "nothing"])]["environment"]) == {
        "packed",
        "spread",
    }
    trained = hard[hard["trained"].isin(["packed", "spread"])]
    assert (trained["trained"] == trained["environment"]).all()
    assert set(table[~table["hard"]]["method"]) == {"MAML", "NAL-global", "untrained"}
    own = (table["method"] == "MAML") & (table["episodes"] == "hard") & (table["inner"] == 1)

    def told(table: pd.DataFrame) -> tuple[str, str]:
        return tuple(settle(record(table)).verdict
                     for settle in (landscape_images.settle_l5, landscape_images.settle_l6))

    flat = table.assign(accuracy=0.5)
    assert told(flat) == ("fails", "fails")
    packed = flat["environment"] == "packed"
    better = flat.assign(
        accuracy=flat["accuracy"].where(~(own & packed), 0.6 + 0.01 * flat["seed"])
    )
    assert told(better) == ("holds", "fails")
    rising = flat.assign(
        accuracy=flat["accuracy"].where(~own, 0.5 + (0.2 + 0.01 * flat["seed"]) * flat["fraction"])
    )
    assert told(rising) == ("fails", "holds")
    once = rising.assign(accuracy=rising["accuracy"].where(rising["k"] == 1, 0.5))
    assert told(once) == ("fails", "partly")
    found = landscape_images.differences(better, 0.5)
    assert found["difference"].tolist() == pytest.approx([0.105, 0.105])
    assert landscape_images.slopes(rising)["slope"].tolist() == pytest.approx([0.205] * 4)


DEPTH = replace(depth_images.PROFILES["quick"], settings=(SETTING,), sizes=FEW, blocks=(1, 2),
                methods=("MAML", "ANIL"), models=tuple(depth_images.MODELS), alphas=(0.3, 1.0),
                ks=(2, 4), seeds=2)


def test_depth_rows_and_verdicts(short: None) -> None:
    table = table_of(depth_images, DEPTH)
    counted = table.drop_duplicates(["blocks", "method", "model"]).set_index(
        ["blocks", "method", "model"]
    )
    assert counted.loc[(1, "MAML", "learned rate"), "own_parameters"] == 1
    plain = counted.loc[(1, "MAML", "plain"), "parameters"]
    assert (counted.loc[(1, "MAML", "Meta-SGD"), "own_parameters"]
            == plain
            == 9 * 4 + 8 + 3 * (4 * 16 + 1))
    assert counted.loc[(1, "ANIL", "Meta-SGD"), "own_parameters"] == 3 * (4 * 16 + 1)
    assert counted.loc[(1, "MAML", "LinNet"), "parameters"] == 9 * 4 + 8 + 64 * 65 + 3 * 65
    best = depth_images.at_best(table)
    assert (best.groupby(["blocks", "method", "model"])["alpha"].nunique() == 1).all()
    flat = table.assign(accuracy=0.5, valid=0.5)

    def told(table: pd.DataFrame) -> tuple[str, str]:
        return tuple(settle(record(table)).verdict
                     for settle in (depth_images.settle_d2, depth_images.settle_d3))

    assert told(flat) == ("fails", "fails")

    def raised(model: str, where=True) -> pd.DataFrame:
        mine = (flat["model"] == model) & where
        return flat.assign(accuracy=flat["accuracy"].where(~mine, 0.6 + 0.01 * flat["seed"]))

    assert told(raised("LinNet")) == ("holds", "fails")
    assert told(raised("KFO")) == ("fails", "holds")
    assert told(raised("KFO", flat["blocks"] == 1)) == ("fails", "partly")
    lifted = raised("LinNet")
    both = lifted.assign(
        accuracy=lifted["accuracy"].where(lifted["model"] != depth_images.COLLAPSED, 0.7)
    )
    assert told(both) == ("partly", "fails")
    worse = flat["alpha"] != flat["alpha"].iloc[0]
    chosen = flat.assign(accuracy=0.5 + 0.1 * worse, valid=0.5 + 0.1 * worse)
    assert depth_images.at_best(chosen)["accuracy"].min() == 0.6
    opposed = chosen.assign(valid=0.5 - 0.1 * worse)  # test classes have no say in the choice
    several = depth_images.at_best(opposed[opposed["method"] == "MAML"])
    assert several["accuracy"].max() == 0.5


def test_a_fleet_that_diverges_is_lost_and_never_chosen(short: None) -> None:
    config = replace(DEPTH, methods=("MAML",), models=("plain", "LinNet"), blocks=(1,),
                     alphas=(1.0, 1e30))
    table = table_of(depth_images, config)
    lost = table[table["alpha"] > 1e20]
    assert set(lost["model"]) == {"plain", "LinNet", depth_images.COLLAPSED}
    assert (lost["accuracy"] == 0).all()
    assert (depth_images.at_best(table)["alpha"] < 1).all()
