"""The diagnosis of tasks: known mixtures, coverage of its intervals, what it refuses and says."""

import math
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

import companion
from companion.diagnosis import Diagnosis, advise, observed
from companion.evaluation import Interval, estimate
from companion.streams import stream
from companion.tasks.regressions import LinearFamily
from companion.theory import gaussian, landscape, whitening
from companion.theory import preconditioners as pc
from companion.theory.landscape import Mixture

MIXTURE = Mixture(0.9, 0.1, 10, math.inf, 1.0, distance=3.0, var_easy=1.0, var_hard=0.01)


def drawn(mixture: Mixture, rng: np.random.Generator, tasks: int,
          samples: int = 0) -> dict[str, Any]:
    """Arguments of diagnose: the moments of drawn tasks, or their samples."""
    family = LinearFamily.from_mixture(mixture)
    group, optima = family.draw_tasks(rng, (tasks,))
    how = dict(alpha=float(np.asarray(mixture.alpha)), support=float(np.asarray(mixture.support)))
    if samples:
        x, y = family.draw_samples(rng, group, optima, samples)
        return how | dict(data=list(zip(x, y, strict=True)))
    return how | dict(covariances=family.covariances[group], optima=optima, noise=family.noise,
                      steps=int(np.asarray(mixture.steps)))


def isotropic_tasks(seed: int, tasks: int, scales: np.ndarray, lengths: np.ndarray) -> dict:
    """One covariance for all, diagonal, and normal optima of given standard deviations."""
    optima = stream(seed, "diagnosis/tasks").standard_normal((tasks, len(scales))) * lengths
    return dict(covariances=np.stack([np.diag(scales)] * tasks), optima=optima)


@pytest.mark.parametrize("mixture", [
    MIXTURE, replace(MIXTURE, support=20.0, alpha=0.7, noise=0.3),
    replace(MIXTURE, hard_fraction=0.2, steps=2, alpha=0.6), replace(MIXTURE, rho_hard=0.9)])
def test_known_mixtures(mixture: Mixture) -> None:
    found = companion.diagnose(**drawn(mixture, stream(0, "diagnosis/mixture"), 1500))
    ratio, h = float(mixture.ratio), float(landscape.hardness_spread(mixture))
    assert found.ratio.low <= ratio <= found.ratio.high
    assert found.ratio.high - found.ratio.low < 0.2 * ratio
    assert (found.ratio.low > 1.02) == (ratio > 1.02)
    assert found.spread == pytest.approx(h, abs=1e-9)
    assert found.ceiling == pytest.approx(landscape.ceiling(h))
    assert found.dimension == pytest.approx(10)
    for start in ("NAL", "MAML"):  # inputs that are isotropic can be whitened by a rate only
        if found.gains and ratio > 1.02:  # else one step solves all tasks
            assert found.gains[start, "whitening"].value == pytest.approx(
                found.gains[start, "learned rate"].value)


def test_what_it_says_of_the_groups() -> None:
    mixture = replace(MIXTURE, alpha=0.5)
    given = drawn(mixture, stream(1, "diagnosis/mixture"), 2000)
    hard = np.trace(given["covariances"], axis1=1, axis2=2) < 5
    found = companion.diagnose(**given, groups=np.where(hard, "slow", "quick"), resamples=20)
    np.testing.assert_allclose(found.hardness, np.where(hard, 0.95**2, 0.55**2))
    assert found.groups.names == ("group slow", "the other groups")
    assert (found.groups.hard == hard).all()
    metric = math.sqrt(0.5)  # E[S] = I / 2
    assert found.groups.distance == pytest.approx(3 * metric, rel=0.05)
    assert found.groups.spread == pytest.approx((0.1 * metric, metric), rel=0.05)
    assert found.groups.packing == pytest.approx(900, rel=0.1)
    halves = companion.diagnose(**given, resamples=20).groups
    assert abs(halves.hard.sum() - 1000) <= 1
    assert halves.hard[hard].mean() > halves.hard[~hard].mean()


def draw_mixture(rng: np.random.Generator) -> Mixture:
    return Mixture(rng.uniform(0.5, 1), rng.uniform(0.05, 0.9), int(rng.integers(2, 5)),
                   rng.choice([5.0, 20.0, math.inf]), rng.uniform(0.3, 1.1),
                   hard_fraction=rng.uniform(0.3, 0.7), distance=rng.uniform(0, 4),
                   var_easy=rng.uniform(0.1, 1.5), var_hard=rng.uniform(0.02, 1),
                   noise=rng.choice([0.0, 0.3]))


@pytest.mark.parametrize(("tasks", "samples"), [(15, 0), (25, 12)])
def test_the_interval_covers_the_ratio_of_the_population(tasks: int, samples: int) -> None:
    """At least 90 of 100 drawn problems, and it is not above the ratio more often than below."""
    rng = stream(2, f"diagnosis/coverage/{samples}")
    covered, above, widths = 0, 0, []
    for _ in range(100):
        mixture = draw_mixture(rng)
        found = companion.diagnose(**drawn(mixture, rng, tasks, samples)).ratio
        ratio = float(mixture.ratio)
        covered += found.low - 1e-12 <= ratio <= found.high
        above += ratio < found.low - 1e-12
        widths.append(found.high - found.low)
        assert 1 <= found.low <= found.value <= found.high
    assert covered >= 90
    assert above <= 5  # 10 and more without the correction for the bias
    assert np.median(widths) < 0.15


@pytest.mark.parametrize(("support", "steps"), [(math.inf, 1), (12.0, 1), (12.0, 2)])
def test_the_step_by_default_is_the_best_of_maml(support: float, steps: int) -> None:
    given = drawn(MIXTURE, stream(3, "diagnosis/mixture"), 12)
    s, optima = given["covariances"], given["optima"]
    found = companion.diagnose(s, optima, support=support, steps=steps, resamples=20)

    def risk(alpha: float) -> float:
        w = gaussian.minimiser_maml(s, optima, alpha, support, steps=steps)
        return float(gaussian.excess_risk(w, s, optima, alpha, support, steps=steps))

    assert risk(found.alpha) <= min(risk(a) for a in np.linspace(0.05, 3, 120)) * (1 + 1e-6)
    assert bool(found.gains) == (steps == 1)
    if steps == 1:
        joint = pc.together(s, optima, support, kind="rate")
        assert risk(found.alpha) == pytest.approx(joint.risk, rel=1e-5)


def test_whitening_is_found_where_the_inputs_are_spread() -> None:
    scales, lengths, support = np.array([3.0, 1, 0.3, 0.1]), np.full(4, 0.5), 20.0
    found = companion.diagnose(**isotropic_tasks(4, 600, scales, lengths), support=support)
    rungs = whitening.ladder(np.diag(scales), np.diag(lengths**2), support)
    for step, rung in (("whitening", "ridge-whitened"), ("full preconditioner", "P*")):
        gain = found.gains["NAL", step]
        assert gain.low <= rungs["one rate"] / rungs[rung] <= gain.high
        assert gain.low > 1.2
    assert found.gains["MAML", "learned rate"].value == pytest.approx(1, abs=0.01)
    assert found.advice.startswith("The inner step, not the initialisation, is what helps: the wh")
    assert "MAML's start gains at most 0" in found.advice


def test_a_full_preconditioner_is_found_where_the_tasks_are_spread() -> None:
    scales, lengths, support = np.ones(4), np.array([2.0, 1, 0.3, 0.1]), 6.0
    found = companion.diagnose(**isotropic_tasks(5, 600, scales, lengths), support=support)
    rungs = whitening.ladder(np.diag(scales), np.diag(lengths**2), support)
    gain = found.gains["NAL", "full preconditioner"]
    assert gain.low <= rungs["one rate"] / rungs["P*"] <= gain.high
    assert found.gains["NAL", "whitening"].high < 1.01 < 1.3 < gain.low
    assert "a full preconditioner divides the risk by" in found.advice


def test_what_is_learned_from_few_tasks_is_judged_on_others() -> None:
    """Ten tasks of ten features, the full batch: a preconditioner that solves them all is there."""
    given = isotropic_tasks(6, 12, np.ones(10), np.ones(10))
    given["covariances"] = given["covariances"] * np.linspace(0.5, 1.5, 12)[:, None, None]
    found = companion.diagnose(**given)
    assert found.gains["NAL", "full preconditioner"].low < 1.1


def test_the_risks_of_data_are_unbiased() -> None:
    """For the risk after one step on m samples, from data sets of 7; and for Q."""
    rng, d, draws, alpha = stream(7, "diagnosis/unbiased"), 2, 5_000, 0.2
    root = rng.standard_normal((d, d))
    s, optimum, w = root @ root.T, rng.standard_normal(d), rng.standard_normal(d)
    p = 0.2 * np.eye(d) + 0.1 * rng.standard_normal((d, d))
    x = rng.standard_normal((draws, 7, d)) @ root.T
    y = x @ optimum + 0.4 * rng.standard_normal((draws, 7))
    for support in (4.0, math.inf):
        tasks = observed.of_samples(list(x), list(y), support)
        q, b, c = tasks.adapted(alpha)
        at = np.einsum("i,tij,j->t", w, q, w) / 2 - b @ w + c
        np.testing.assert_allclose(at, tasks.risks(w, alpha * np.eye(d)), atol=1e-8)
        how = (s[None], optimum[None], support)
        assert abs(estimate(at).sigmas(float(gaussian.excess_risk(
            w, s[None], optimum[None], alpha, support, noise=0.4)))) < 4
        assert abs(estimate(tasks.risks(w, p)).sigmas(pc.risk(w, p, *how, noise=0.4))) < 4
        exact = gaussian.q_matrix(s, alpha, support)
        for i, j in ((0, 0), (0, 1), (1, 1)):
            assert abs(estimate(q[:, i, j]).sigmas(exact[i, j])) < 4
        naive = gaussian.q_matrix(tasks.covariances, alpha, support)
        assert abs(estimate(naive[:, 0, 0]).sigmas(exact[0, 0])) > 4
        rate = tasks.rate(w, p, np.full(draws, 1 / draws))
        assert rate == pytest.approx(pc.best_rate(w, *how, noise=0.4, along=p), rel=0.1)


def test_data_agree_with_their_moments() -> None:
    rng = stream(8, "diagnosis/data")
    mixture = replace(MIXTURE, dim=3, support=20.0, alpha=0.8, noise=0.2, distance=4.0)
    found = companion.diagnose(**drawn(mixture, rng, 200, 30))
    assert found.ratio.low <= float(mixture.ratio) <= found.ratio.high
    assert found.ratio.low > 1.05
    noisy = companion.diagnose(**drawn(replace(mixture, noise=1.0), rng, 200, 30), resamples=20)
    assert noisy.groups.spread[0] < 0.3  # it is .07; that of the estimates is .7
    assert noisy.groups.spread[1] == pytest.approx(0.7, rel=0.2)
    x, y = rng.standard_normal((2, 9, 40, 2)), rng.standard_normal((2, 9, 40))
    data = list(zip(x[0], x[0] @ np.array([1.0, -1]) + 5 + 0.1 * y[0], strict=True))
    assert companion.diagnose(data=data, intercept=True).dim == 3


def test_the_origin_and_the_axes_do_not_matter() -> None:
    given = drawn(replace(MIXTURE, support=20.0), stream(9, "diagnosis/mixture"), 12)
    turn = np.linalg.qr(stream(9, "diagnosis/turn").standard_normal((10, 10)))[0]
    moved = given | dict(covariances=turn @ given["covariances"] @ turn.T,
                         optima=given["optima"] @ turn.T + 50)
    one, other = companion.diagnose(**given), companion.diagnose(**moved)
    assert one.ratio.value == pytest.approx(other.ratio.value, rel=1e-6)
    assert one.gains["MAML", "whitening"].value == pytest.approx(
        other.gains["MAML", "whitening"].value, rel=1e-6)


def test_weights_repeat_tasks() -> None:
    given = drawn(MIXTURE, stream(10, "diagnosis/mixture"), 10)
    weights = np.array([2, 1, 1, 0, 3, 1, 1, 2, 1, 1.0])
    repeated = given | {name: np.repeat(given[name], weights.astype(int), axis=0)
                        for name in ("covariances", "optima")}
    one, other = companion.diagnose(**given, weights=weights), companion.diagnose(**repeated)
    assert one.spread == pytest.approx(other.spread)
    assert one.groups.distance > 0
    assert companion.diagnose(**given, weights=5 * weights).ratio == one.ratio


def test_images_through_a_module() -> None:
    rng = stream(11, "diagnosis/images")
    body = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    images = rng.integers(0, 256, (9, 40, 1, 8, 8), dtype=np.uint8)
    labels = rng.integers(3, 5, (9, 40))
    found = companion.diagnose(data=list(zip(images, labels, strict=True)), features=body,
                               intercept=True)
    assert found.dim == 5
    by_hand = [(body(torch.from_numpy(one).float() / 255).numpy(), 2.0 * own - 7)
               for one, own in zip(images, labels, strict=True)]
    same = companion.diagnose(data=by_hand, intercept=True)
    assert (same.ratio, same.alpha) == (found.ratio, found.alpha)
    torch.manual_seed(2)  # beside its best step lie some at which no start is the best
    weighty = torch.nn.Sequential(body, torch.nn.Linear(4, 4))
    single, double = (companion.diagnose(
        data=list(zip(images.astype(kind) / 255, labels, strict=True)), features=weighty)
        for kind in (np.float32, np.float64))  # NumPy's own type is no module's
    assert single.ratio == double.ratio
    drawing = torch.nn.Sequential(body, torch.nn.Dropout(0.5))
    with pytest.raises(ValueError, match="features must map equal images to equal features"):
        companion.diagnose(data=[(images[0], labels[0])] * 2, features=drawing)
    with pytest.raises(ValueError, match=r"data\[0\] y must have two classes, or be real"):
        companion.diagnose(data=[(images[0], np.arange(40) % 3)] * 2, features=body)


TASKS = dict(covariances=np.stack([np.eye(2)] * 3), optima=np.arange(6.0).reshape(3, 2))
X, Y = np.random.default_rng(0).standard_normal((2, 6, 6, 3))
DATA = dict(data=[(x, y[:, 0]) for x, y in zip(X, Y, strict=True)])


@pytest.mark.parametrize(("given", "message"), [
    ({}, "the tasks must be given by covariances and optima, or by data, got nothing"),
    (TASKS | DATA, "the tasks must be given by covariances and optima, or by data, got cov"),
    ({"optima": TASKS["optima"]}, "got optima; see diagnose"),
    (TASKS | {"optima": np.full((3, 2), np.nan)}, r"optima must be finite, got nan at index \[0"),
    (TASKS | {"covariances": np.full((3, 2, 2), np.inf)}, "covariances must be finite, got inf"),
    (TASKS | {"optima": np.zeros((2, 2))}, r"optima.shape must be \[task, d\] = \(3, 2\), got"),
    (TASKS | {"covariances": np.array([[[1, 0.5], [0, 1]]] * 3)}, "covariances must be symmetric"),
    (TASKS | {"covariances": np.stack([-np.eye(2)] * 3)}, "covariances must be positive semidef"),
    ({name: value[:1] for name, value in TASKS.items()}, "tasks must be two or more, got 1"),
    ({"data": DATA["data"][:1]}, "tasks must be two or more, got 1"),
    (TASKS | {"covariances": np.stack([np.eye(2), np.zeros((2, 2)), np.eye(2)])},
     "the largest variance of a task's inputs must be positive, got 0.0 at index"),
    (TASKS | {"support": 0}, "support must be at least 1, got 0"),
    (TASKS | {"alpha": -1.0}, "alpha must be at least 0, got -1.0"),
    (TASKS | {"steps": 0}, "steps must be at least 1, got 0"),
    (TASKS | {"noise": -0.1}, "noise must be at least 0, got -0.1"),
    (TASKS | {"weights": [1, 2]}, r"weights.shape must be \[task\] = \(3,\), got \(2,\)"),
    (TASKS | {"groups": [1, 2]}, r"groups.shape must be \[task\] = \(3,\), got \(2,\)"),
    (TASKS | {"groups": [1, 1, 1]}, "groups must be two or more, got 1"),
    (TASKS | {"groups": [1.0, math.nan, 2.0]}, "groups must have no gaps, got nan"),
    (TASKS | {"resamples": 5}, "resamples must be at least 20, got 5"),
    (TASKS | {"intercept": True}, "features and intercept must come with data, got covariances"),
    (DATA | {"noise": 0.1}, "noise must be left out for data, got 0.1"),
    (DATA | {"steps": 2}, "steps must be 1 for data, got 2"),
    ({"data": [(x[:4], y[:4, 0]) for x, y in zip(X, Y, strict=True)]},
     r"the samples of data\[0\] must be at least d \+ 2 = 5 for 3 features, got 4; too few"),
    ({"data": [(x[:5], y[:5, 0]) for x, y in zip(X, Y, strict=True)], "intercept": True},
     "= 6 for 4 features, with the intercept, got 5"),
    ({"data": [(X[0], Y[0, :, 0]), (X[1, :, :2], Y[1, :, 0])]},
     r"data\[1\] x.shape must be \[sample, 3\] as before, got \(6, 2\)"),
    ({"data": [(X[0], Y[0, :5, 0])] * 2}, r"data\[0\] y.shape must be \[sample\] = \(6,\), got"),
    ({"data": [(X, Y[0, :, 0])] * 2}, r"data\[0\] x.shape must be \[sample, d\], got \(6, 6, 3\)"),
    ({"data": [X[0], X[1]]}, r"data\[0\] must be a pair \(x, y\), got ndarray"),
])
def test_what_it_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        companion.diagnose(**given)


def gains(**of: tuple[float, float]) -> dict[tuple[str, str], Interval]:
    return {(start, step.replace("_", " ")): Interval(sum(ends) / 2, *ends)
            for start in ("NAL", "MAML") for step, ends in of.items()}


SURE, NONE, OPEN = (1.5, 2.1), (0.99, 1.02), (0.9, 1.4)


@pytest.mark.parametrize(("ratio", "better", "ceiling", "words"), [
    (SURE, gains(whitening=NONE), 5, "Train with MAML: its start divides the risk of NAL's by 1.80 "
                                     "[1.50, 2.10]."),
    (SURE, gains(whitening=SURE), 5, "and from there the whitening divides the risk by 1.80"),
    (NONE, gains(whitening=NONE), 5, "Train without adaptation: MAML's start gains at most 2 %, "
                                     "and a step learned from two thirds of the tasks at most "
                                     "2 %."),
    (NONE, gains(whitening=OPEN), 5, "gains at most 2 %, and no better step is sure to help."),
    (NONE, {}, 5, "Train without adaptation: MAML's start gains at most 2 %."),
    (OPEN, {}, 1.03, "Train without adaptation: MAML's start gains at most 3 %."),
    (NONE, gains(learned_rate=SURE, whitening=(1.55, 1.8), full_preconditioner=(2.5, 3)), 5,
     "The inner step, not the initialisation, is what helps: a full preconditioner divides"),
    (NONE, gains(learned_rate=NONE, whitening=SURE, full_preconditioner=(1.4, 2)), 5,
     "is what helps: the whitening divides the risk by 1.80 [1.50, 2.10]; MAML's start gains"),
    (OPEN, gains(whitening=SURE), 5, "Learn the inner step first: the whitening divides"),
    (OPEN, gains(whitening=OPEN), 5, "Too few tasks or samples to tell: the risk of NAL's start "
                                     "over MAML's is 1.15 [0.90, 1.40]."),
    ((1, math.inf), {}, 5, "Too few tasks or samples to tell: the risk of NAL's start over MAML's "
                           "is inf [1, inf]."),
])
def test_the_advice(ratio: tuple[float, float], better: dict[tuple[str, str], Interval],
                    ceiling: float, words: str) -> None:
    assert words in advise(Interval(sum(ratio) / 2, *ratio), better, ceiling)


def test_tasks_that_one_step_solves() -> None:
    found = companion.diagnose(**TASKS)
    assert found.alpha == pytest.approx(1, abs=1e-3)
    assert found.hardness == pytest.approx(0, abs=1e-6)
    assert companion.diagnose(**TASKS, alpha=1.0).ratio.low == 1


def test_nothing_is_gained_over_a_risk_of_zero() -> None:
    """What rounding leaves is no risk, and no ratio of such."""
    normal = stream(16, "diagnosis/solved").standard_normal
    eye, optima = np.stack([np.eye(3)] * 12), normal((12, 3))
    solved = companion.diagnose(eye, optima)
    assert {str(gain) for gain in solved.gains.values()} == {str(Interval(1.0, 1.0, 1.0))}
    alike = companion.diagnose(eye, np.ones((12, 3)), support=10)
    assert alike.gains["NAL", "full preconditioner"] == Interval(1.0, 1.0, 1.0)
    mute = companion.diagnose(data=[(x, np.zeros(9)) for x in normal((12, 9, 3))], support=4)
    assert set(mute.gains.values()) == {Interval(1.0, 1.0, 1.0)}
    hard = np.arange(12) % 2 == 1
    apart = companion.diagnose(np.where(hard, 0.1, 1.0)[:, None, None] * eye,
                               np.where(hard, 3.0, 0.0)[:, None] * np.eye(3)[0], alpha=1.0)
    assert apart.ratio.low > 1e6
    assert apart.advice.startswith("Train with MAML")


def test_features_that_are_always_zero_change_nothing() -> None:
    rng = stream(17, "diagnosis/dead")
    x, w = rng.standard_normal((40, 30, 4)), rng.standard_normal((40, 4))
    y = np.einsum("tsi,ti->ts", x, w) + 2 * rng.standard_normal((40, 30))
    dead = np.concatenate([x, np.zeros((40, 30, 15))], axis=2)
    live, both = (companion.diagnose(data=list(zip(each, y, strict=True)), support=10, alpha=0.3)
                  for each in (x, dead))
    assert both.ratio.value == pytest.approx(live.ratio.value)
    assert both.gains["NAL", "learned rate"].value == pytest.approx(
        live.gains["NAL", "learned rate"].value)


def test_inputs_that_are_not_normal() -> None:
    """Of inputs -1 and 1 a step of 1 solves a task from one sample; and tasks of the same
    covariance, so of h = 1, differ in hardness by how their inputs are distributed."""
    rng = stream(18, "diagnosis/signs")
    signs = rng.choice([-1.0, 1.0], (30, 40, 1))
    data = [(x, w * x[:, 0]) for x, w in zip(signs, rng.standard_normal(30), strict=True)]
    assert companion.diagnose(data=data, support=1).alpha == pytest.approx(1, abs=0.03)
    hard = np.arange(60) % 2 == 1
    x = rng.choice([-1.0, 1.0], (60, 400, 1))
    x[hard] *= math.sqrt(10) * (rng.uniform(size=(30, 400, 1)) < 0.1)
    w = np.where(hard, 3.0, 0.0) + 0.1 * rng.standard_normal(60)
    found = companion.diagnose(data=list(zip(x, x[..., 0] * w[:, None], strict=True)), support=1,
                               alpha=0.5)
    assert found.ceiling < 1.3 < found.ratio.low
    assert found.advice.startswith("Train with MAML")


def test_a_handful_of_tasks_is_too_few() -> None:
    found = companion.diagnose(**drawn(MIXTURE, stream(12, "diagnosis/mixture"), 4))
    assert found.advice == "Too few tasks to tell: give 8 or more."
    assert companion.diagnose(**TASKS, alpha=0.5).tasks == 3
    given = drawn(MIXTURE, stream(12, "diagnosis/mixture"), 12)
    idle = companion.diagnose(**given, weights=(np.arange(12) < 2) * 1.0)
    assert idle.advice == found.advice


def test_samples_that_drown_in_noise_tell_nothing() -> None:
    rng = stream(13, "diagnosis/noise")
    data = [(x, 30 * y) for x, y in zip(rng.standard_normal((9, 6, 4)),
                                        rng.standard_normal((9, 6)), strict=True)]
    found = companion.diagnose(data=data, support=3, alpha=0.5)
    assert found.ratio.low == 1
    assert found.ratio.high > 2
    assert str(found.ratio) == "1 [1, inf]"
    assert "to tell" in found.advice
    assert str(found)


def test_it_prints_and_draws() -> None:
    found = companion.diagnose(**drawn(replace(MIXTURE, support=20.0), stream(14, "diagnosis"), 40))
    said = str(found)
    assert found.advice == " ".join(said.split("\n\n")[1].splitlines())
    assert len(said.split("\n\n")[0].splitlines()) == len(found.rows())
    assert " ".join(found.ratio.texts) in " ".join(said.split())
    assert isinstance(found, Diagnosis)
    for each in (found, replace(found, ceiling=math.inf), replace(found, gains={}),
                 replace(found, ratio=Interval(1, 1, math.inf))):
        figure = each.figure()
        figure.canvas.draw()
        above, below = figure.axes
        assert sum(len(line.get_xdata()) for line in above.lines) == 40
        assert [text.get_text() for text in below.texts] == (
            [" ceiling"] if math.isfinite(each.ceiling) else [])
        plt.close(figure)


def test_two_hundred_tasks_of_a_hundred_features_take_seconds() -> None:
    rng, scales = stream(15, "diagnosis/speed"), np.geomspace(0.1, 3, 100)
    root = rng.standard_normal((200, 100, 120)) * scales[:, None] / 10
    given = (root @ root.swapaxes(1, 2), rng.standard_normal((200, 100)))
    started = time.process_time()
    found = companion.diagnose(*given, support=50)
    assert time.process_time() - started < 4  # 1.4 measured on one quiet core, 0.6 with all samples
    assert found.gains["NAL", "full preconditioner"].low > 0.99


def test_the_package_starts_without_it() -> None:
    code = ("import sys, companion; assert 'numpy' not in sys.modules; companion.diagnose; "
            "assert 'torch' not in sys.modules and 'matplotlib' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'diagnosed'"):
        companion.diagnosed  # noqa: B018
