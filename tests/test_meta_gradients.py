"""Autograd through the inner loop against the closed-form meta-gradients, in float64."""

import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

from companion.adaptation import adapt
from companion.losses import squared_error
from companion.meta_optimizers import sgd
from companion.objectives import maml, nal
from companion.tasks import Task
from companion.theory.gaussian import minimiser_maml, q_matrix

RNG = np.random.default_rng(7)
squared_loss = squared_error(lambda params, x: x @ params["w"])
D, TASKS = 4, 6


def family() -> tuple[np.ndarray, np.ndarray]:
    factor = RNG.standard_normal((TASKS, D, D))
    return factor @ factor.swapaxes(1, 2) / D + 0.1 * np.eye(D), RNG.standard_normal((TASKS, D))


def population_loss(params, batch):
    sigma, optimum = batch
    error = params["w"] - optimum
    return error @ sigma @ error / 2


@pytest.mark.parametrize("steps", [1, 3])
def test_full_batch_meta_gradient_is_the_mean_q(steps: int) -> None:
    covariances, optima = family()
    w, alpha = RNG.standard_normal(D), 0.4
    task = Task(*[(torch.from_numpy(covariances), torch.from_numpy(optima))] * 2)
    objective = maml(population_loss, steps=steps, update=sgd(alpha))
    ours = (vmap(grad(objective), in_dims=(None, 0))({"w": torch.from_numpy(w)}, task)["w"]
            .mean(0)
            .numpy())
    q = q_matrix(covariances, alpha, math.inf, steps=steps).mean(axis=0)
    exact = q @ (w - minimiser_maml(covariances, optima, alpha, math.inf, steps=steps))
    assert np.abs(exact).min() > 1e-3
    np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-12)


def drawn_task(m: int, n: int) -> tuple[Task, np.ndarray]:
    optimum = RNG.standard_normal(D)
    sides = []
    for size in (m, n):
        x = torch.from_numpy(RNG.standard_normal((size, D)))
        sides.append((x, x @ torch.from_numpy(optimum)))
    return Task(*sides), optimum


def gram(side: tuple[torch.Tensor, torch.Tensor]) -> np.ndarray:
    x = side[0].numpy()
    return x.T @ x / len(x)


@pytest.mark.parametrize(("m", "n"), [(5, 7), (2, 3)])
def test_meta_gradient_on_given_samples(m: int, n: int) -> None:
    task, optimum = drawn_task(m, n)
    w, alpha = RNG.standard_normal(D), 0.3
    ours = grad(maml(squared_loss, steps=1, update=sgd(alpha)))({"w": torch.from_numpy(w)}, task)[
        "w"
    ].numpy()
    shrink = np.eye(D) - alpha * gram(task.support)
    exact = shrink @ gram(task.query) @ shrink @ (w - optimum)
    assert np.abs(exact).min() > 1e-3
    np.testing.assert_allclose(ours, exact, rtol=1e-10, atol=1e-12)


def test_nal_is_the_mean_over_all_samples() -> None:
    task, optimum = drawn_task(3, 9)
    w = RNG.standard_normal(D)
    ours = grad(nal(squared_loss))({"w": torch.from_numpy(w)}, task)["w"].numpy()
    pooled = (3 * gram(task.support) + 9 * gram(task.query)) / 12
    np.testing.assert_allclose(ours, pooled @ (w - optimum), rtol=1e-10, atol=1e-12)


def test_adapting_leaves_the_start_alone() -> None:
    task, _ = drawn_task(5, 5)
    start = {"w": torch.zeros(D, dtype=torch.float64)}
    moved = adapt(squared_loss, start, task.support, steps=2, update=sgd(0.1))
    assert not start["w"].any()
    assert moved["w"].abs().min() > 0
    still = adapt(squared_loss, start, task.support, steps=0, update=sgd(0.1))
    assert torch.equal(still["w"], start["w"])


@pytest.mark.parametrize("steps", [-1, 1.5, math.nan])
def test_bad_steps(steps: float) -> None:
    task, _ = drawn_task(2, 2)
    with pytest.raises(ValueError, match="steps must"):
        adapt(squared_loss, {"w": torch.zeros(D, dtype=torch.float64)}, task.support, steps=steps,
              update=sgd(0.1))


@pytest.mark.parametrize("alpha", [0, -1.0, math.inf, math.nan])
def test_bad_rate(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be positive and finite"):
        sgd(alpha)
