"""Image tasks as regressions: their moments against the images, draws, and the exact ratio."""

import math

import numpy as np
import pytest
import torch

from companion.streams import stream, torch_stream
from companion.tasks import image_regressions as ir
from companion.tasks.episodes import Pool
from companion.theory import gaussian

CLASSES, COUNT = 12, 9


@pytest.fixture(scope="module")
def images() -> Pool:
    """Twelve classes of noisy patterns in three groups; class 5 has more images, class 0 lies at
    the end."""
    rng = torch_stream(0, "tests/image_regressions")
    sizes = torch.tensor([COUNT] * 5 + [2 * COUNT] + [COUNT] * 6)
    kind = torch.repeat_interleave(torch.arange(CLASSES), sizes)
    ink = torch.rand(CLASSES, 2, 16, 16, generator=rng)[kind]
    drawn = (ink + 0.3 * torch.randn(ink.shape, generator=rng)).clamp(0, 1)
    first = sizes.cumsum(0) - sizes
    order = torch.tensor([*range(1, CLASSES), 0])
    return Pool((drawn * 255).to(torch.uint8), first[order], sizes[order],
                torch.arange(CLASSES) % 3)


def of_pair(images: Pool, space: ir.Moments, pair: tuple[int, int]) -> ir.Regressions:
    return ir.regressions(space, np.array([pair]), np.ones(1), np.array([True]))


def test_a_task_is_the_least_squares_problem_of_its_images(images: Pool) -> None:
    """Grey means over cells, centred and scaled by all images; then weighted least squares."""
    space = ir.moments(images, "pooled pixels", 1)
    grey = images.images.double().mean(1).unflatten(1, (4, 4)).unflatten(3, (4, 4)).mean((2, 4))
    x = grey.flatten(1).numpy() / 255
    x = x - x.mean(0)
    x = x / np.sqrt((x**2).sum(1).mean())
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    for pair in ((0, 3), (4, 1)):
        parts = [x[int(images.first[c]) : int(images.first[c] + images.sizes[c])] for c in pair]
        root = np.concatenate([np.full(len(part), len(part) ** -0.5 / 2**0.5) for part in parts])
        y = np.repeat([-1.0, 1.0], [len(part) for part in parts])
        rows = np.concatenate(parts) * root[:, None]
        found = of_pair(images, space, pair)
        np.testing.assert_allclose(found.covariances[0], rows.T @ rows, atol=1e-6)
        fitted, (rest,) = np.linalg.lstsq(rows, root * y)[:2]
        np.testing.assert_allclose(found.optima[0], fitted, rtol=1e-3)
        assert found.noise[0] ** 2 == pytest.approx(rest, rel=1e-3)


def test_swapping_a_pair_swaps_the_optimum(images: Pool) -> None:
    space = ir.moments(images, "components", 5)
    one, other = (of_pair(images, space, pair) for pair in ((2, 7), (7, 2)))
    np.testing.assert_array_equal(one.covariances, other.covariances)
    np.testing.assert_allclose(one.optima, -other.optima)
    assert np.abs(one.optima).max() > 0.1


@pytest.mark.parametrize("features", ir.FEATURES)
def test_feature_spaces_are_centred_scaled_and_have_a_constant(images: Pool,
                                                               features: str) -> None:
    space = ir.moments(images, features, 5)
    d = 17 if features == "pooled pixels" else 6
    assert space.mean.shape == (CLASSES, d)
    assert space.second.shape == (CLASSES, d, d)
    np.testing.assert_array_equal(space.mean[:, -1], 1)
    np.testing.assert_allclose(space.second[:, -1], space.mean)
    share = images.sizes.double().numpy() / int(images.sizes.sum())
    np.testing.assert_allclose(share @ space.mean[:, :-1], 0, atol=1e-6)
    whole = np.einsum("c,cij->ij", share, space.second)[:-1, :-1]
    assert np.trace(whole) == pytest.approx(1)
    if features != "pooled pixels":  # principal components are uncorrelated, rising
        np.testing.assert_allclose(whole, np.diag(np.diag(whole)), atol=1e-6)
        assert (np.diff(np.diag(whole)) > 0).all()


def test_components_are_the_leading_ones(images: Pool) -> None:
    few, many = (ir.moments(images, "components", n) for n in (3, 6))
    variances = [np.average(np.diagonal(space.second, axis1=1, axis2=2)[:, :-1], axis=0,
                            weights=images.sizes) for space in (few, many)]
    np.testing.assert_allclose(variances[0] / variances[0][-1],
                               variances[1][-3:] / variances[1][-1])


@pytest.mark.parametrize("hard", [*ir.HARD, "none"])
def test_pairs_come_from_where_they_should(hard: str) -> None:
    group = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])  # two groups are too small for hard pairs
    apart, chosen = 0, set()
    for seed in range(20):
        pairs = ir.draw_pairs(group, stream(seed, "tests/pairs"), hard, 30)
        assert pairs.shape == (30, 2)
        assert (pairs[:, 0] < pairs[:, 1]).all()
        groups = group[pairs]
        chosen |= set(groups.ravel().tolist())
        if hard == "none":
            apart += (groups[:, 0] != groups[:, 1]).sum()
            continue
        assert (groups[:, 0] == groups[:, 1]).all()
        kinds, distinct = len(set(groups[:, 0])), len(np.unique(pairs, axis=0))
        assert (kinds > 1) == (hard == "all groups")
        assert (distinct == 1) == (hard == "one pair")
    assert chosen == ({0, 1, 2, 3} if hard == "none" else {0, 3})
    assert (apart > 300) == (hard == "none")


def test_drawn_tasks_are_half_hard_with_the_labels_asked_for(images: Pool) -> None:
    space = ir.moments(images, "components", 5)
    tasks, balances = ir.draw(space, stream(0, "tests/draw"), "one group", pairs=8,
                              episodes=20_000)
    assert tasks.weights.sum() == pytest.approx(1)
    assert tasks.weights[tasks.hard].sum() == pytest.approx(0.5)
    assert (balances["fixed"][tasks.hard] == 1).all()
    np.testing.assert_array_equal(balances["fixed"][~tasks.hard], balances["permuted"][~tasks.hard])
    episodes = 20_000 * tasks.weights
    sigmas = balances["permuted"] * np.sqrt(episodes)
    assert 0.3 < sigmas.std() < 2
    assert np.abs(sigmas).max() < 4.5


def test_a_balance_is_the_mean_of_the_orders_of_a_pair_s_episodes(images: Pool) -> None:
    space = ir.moments(images, "components", 5)
    tasks, balances = ir.draw(space, stream(0, "tests/draw"), "all groups", pairs=8, episodes=30)
    counts = 30 * tasks.weights
    np.testing.assert_allclose(counts, counts.round(), atol=1e-9)
    assert len(set(counts.round())) > 2
    ups = counts * (1 + balances["permuted"]) / 2
    np.testing.assert_allclose(ups, ups.round(), atol=1e-9)


@pytest.mark.parametrize("support", [4, math.inf])
def test_the_comparison_is_that_of_all_orders_as_tasks(images: Pool, support: float) -> None:
    """Against the theory on twice as many tasks, one for each order of the labels."""
    space = ir.moments(images, "components", 5)
    tasks, balances = ir.draw(space, stream(1, "tests/draw"), "one group", pairs=8, episodes=400)
    found = ir.compare(tasks, balances, 0.7, support)
    for name, balance in balances.items():
        covariances = np.concatenate([tasks.covariances] * 2)
        optima = np.concatenate([tasks.optima, -tasks.optima])
        weights = np.concatenate([tasks.weights * (1 + balance), tasks.weights * (1 - balance)])
        learned = (gaussian.minimiser_nal(covariances, optima, weights),
                   gaussian.minimiser_maml(covariances, optima, 0.7, support, weights))
        hard = weights * np.concatenate([tasks.hard] * 2)
        noise = np.concatenate([tasks.noise] * 2)
        exact = [float(gaussian.excess_risk(w, covariances, optima, 0.7, support, some, noise))
                 for some in (weights, hard) for w in learned]
        assert found[name] == pytest.approx(exact, rel=1e-9)
    assert found["fixed"].nal / found["fixed"].maml > 1 + 1e-5


def test_balanced_labels_leave_exactly_no_gain(images: Pool) -> None:
    space = ir.moments(images, "components", 5)
    tasks, _ = ir.draw(space, stream(1, "tests/draw"), "one pair", pairs=8, episodes=400)
    for support in (1, 10, math.inf):
        found = ir.compare(tasks, {"even": np.zeros(len(tasks.weights))}, 1.0, support)["even"]
        assert found.nal == found.maml
        assert found.nal_hard == found.maml_hard


def test_one_step_on_the_full_batch_is_exact_for_images(images: Pool) -> None:
    """No normality there: a step of gradient descent on all images of the task, from any start."""
    space = ir.moments(images, "convolutions", 5)
    tasks = ir.regressions(space, np.array([[0, 3], [2, 5]]), np.ones(2), np.array([False, True]))
    found = ir.compare(tasks, {"fixed": np.ones(2)}, 0.8, math.inf)["fixed"]
    start = gaussian.minimiser_nal(tasks.covariances, tasks.optima)
    risks = []
    for task, pair in enumerate(((0, 3), (2, 5))):
        second = (space.second[pair[0]] + space.second[pair[1]]) / 2
        cross = (space.mean[pair[1]] - space.mean[pair[0]]) / 2
        w = start - 0.8 * (second @ start - cross)

        def loss(w: np.ndarray, second: np.ndarray = second, cross: np.ndarray = cross) -> float:
            return float(w @ second @ w / 2 - w @ cross)

        risks.append(loss(w) - loss(tasks.optima[task]))
    assert found.nal == pytest.approx(np.mean(risks), rel=1e-8)
    assert found.nal_hard == pytest.approx(risks[1], rel=1e-8)


def test_separation_and_hardness_of_two_isotropic_groups() -> None:
    """Two hard and two easy tasks in two inputs, by hand."""
    covariances = np.array([1.0, 1, 0.2, 0.2])[:, None, None] * np.eye(2)
    optima = np.array([[3.0, 1], [3, -1], [0, 0.5], [0, -0.5]])
    tasks = ir.Regressions(covariances, optima, np.zeros(4), np.full(4, 0.25),
                           np.array([False, False, True, True]))
    assert ir.separation(tasks, np.ones(4)) == pytest.approx(9 / ((1 + 0.25) / 2))
    easy_even = np.array([0.0, 0, 1, 1])
    assert ir.separation(tasks, easy_even) == pytest.approx(0, abs=1e-12)
    unit = tasks._replace(noise=np.sqrt(1 - np.einsum("ti,tij,tj->t", optima, covariances,
                                                      optima) / 20))
    unit = unit._replace(optima=optima / 20**0.5)
    assert ir.share_left(unit, 0.5, math.inf) == pytest.approx((0.25, 0.81))


def test_bad_input_is_refused(images: Pool) -> None:
    with pytest.raises(ValueError, match="features must be one of"):
        ir.moments(images, "pixels", 3)
    with pytest.raises(ValueError, match="components must be at most 512"):
        ir.moments(images, "components", 513)
    with pytest.raises(ValueError, match="components must be at least 1"):
        ir.moments(images, "components", 0)
    rng = stream(0, "tests/refused")
    with pytest.raises(ValueError, match="hard must be one of one pair"):
        ir.draw_pairs(np.zeros(3, dtype=int), rng, "some", 3)
    with pytest.raises(ValueError, match="group must have three classes"):
        ir.draw_pairs(np.array([0, 0, 1]), rng, "one pair", 3)
    with pytest.raises(ValueError, match="episodes must be at least 2"):
        ir.draw(ir.moments(images, "components", 3), rng, "one pair", pairs=3, episodes=1)
