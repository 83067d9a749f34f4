"""Deep linear updates and preconditioners: against SymPy, autograd, drawn tasks and optimality
conditions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from companion.streams import stream
from companion.theory import depth
from companion.theory.gaussian import excess_risk

RNG = stream(0, "tests/depth")


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order(request: pytest.FixtureRequest) -> None:
    global RNG
    RNG = stream(0, request.node.name)


def layers(*sizes: int) -> list[np.ndarray]:
    return [RNG.standard_normal((out, into)) for into, out in pairwise(sizes)]


def covariance(size: int) -> np.ndarray:
    root = RNG.standard_normal((size, size + 2))
    return root @ root.T / size


def assert_close(got: np.ndarray, want: np.ndarray) -> None:
    assert np.abs(want).max() > 1e-2
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


@pytest.mark.parametrize(
    "sizes", [(2, 3), (3, 2, 1), (2, 3, 2), (2, 2, 2, 2), (1, 2, 1, 2, 1), (2, 1, 1, 1, 1, 2)]
)
def test_the_update_is_proved_for_symbols(sizes: tuple[int, ...]) -> None:
    exact, slope = depth.update_residuals(sizes)
    assert exact.is_zero_matrix
    assert slope.is_zero_matrix


def test_the_proof_can_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    around = depth._around
    monkeypatch.setattr(depth, "_around", lambda *a: [(u, b * 2) for u, b in around(*a)])
    exact, slope = depth.update_residuals((2, 2, 1))
    assert not exact.is_zero_matrix
    assert not slope.is_zero_matrix


SHAPES = [(4, 3), (4, 5, 1), (5, 2, 3), (3, 4, 2, 5), (2, 3, 4, 3, 2), (3, 2, 5, 4, 2, 3)]


@pytest.mark.parametrize("sizes", SHAPES)
def test_the_update_is_that_of_autograd(sizes: tuple[int, ...]) -> None:
    """A step on every layer of a random quadratic loss, and its derivative at alpha = 0."""
    weights, alpha = layers(*sizes), 0.3
    target, metric = RNG.standard_normal((sizes[-1], sizes[0])), covariance(sizes[0])
    leaves = [torch.tensor(weight, requires_grad=True) for weight in weights]

    def chain(factors: list[torch.Tensor]) -> torch.Tensor:
        found = factors[0]
        for factor in factors[1:]:
            found = factor @ found
        return found

    whole = chain(leaves)
    whole.retain_grad()
    error = whole - torch.tensor(target)
    (torch.trace(error @ torch.tensor(metric) @ error.T) / 2).backward()
    step = torch.tensor(alpha, dtype=torch.float64)
    moved = chain([leaf.detach() - step * leaf.grad for leaf in leaves])
    assert_close(depth.deep_update(weights, whole.grad.numpy(), alpha), moved.numpy())
    assert_close(depth.product(weights), whole.detach().numpy())
    slope = torch.autograd.functional.jacobian(
        lambda a: chain([leaf.detach() - a * leaf.grad for leaf in leaves]),
        torch.zeros((), dtype=torch.float64),
    )
    first = depth.first_order_update(weights, whole.grad.numpy())
    assert_close(-first, slope.numpy())
    assert_close(
        (depth.effective_preconditioner(weights) @ whole.grad.numpy().ravel()).reshape(first.shape),
        first,
    )


def test_depth_two_is_a_kronecker_sum() -> None:
    b, u = layers(4, 3, 2)
    g = RNG.standard_normal((2, 4))
    w = u @ b
    expected = w - 0.2 * (u @ u.T @ g + g @ b.T @ b) + 0.04 * g @ w.T @ g
    assert_close(depth.deep_update([b, u], g, 0.2), expected)
    sum_ = np.kron(u @ u.T, np.eye(4)) + np.kron(np.eye(2), b.T @ b)
    assert_close(depth.effective_preconditioner([b, u]), sum_)


def test_one_output_is_the_vector_form() -> None:
    """y = b.(A.T x): A A.T + |b|^2 I."""
    a, b = RNG.standard_normal((5, 7)), RNG.standard_normal(7)
    assert_close(depth.effective_preconditioner([a.T, b[None]]), a @ a.T + b @ b * np.eye(5))


def drawn_risk(
    p: np.ndarray, s: np.ndarray, c: np.ndarray, m: int, noise: float
) -> tuple[float, float]:
    """Mean and standard error of the excess risk after one preconditioned step, over drawn tasks
    and samples."""
    d, count = len(s), 1_500_000 // m
    outputs = len(c) // d
    w = (RNG.standard_normal((count, len(c))) @ np.linalg.cholesky(c).T).reshape(count, outputs, d)
    x = RNG.standard_normal((count, m, d)) @ np.linalg.cholesky(s).T
    y = x @ w.swapaxes(1, 2) + noise * RNG.standard_normal((count, m, outputs))
    moved = (p @ (y.swapaxes(1, 2) @ x / m).reshape(count, -1, 1)).reshape(w.shape)
    risks = np.einsum("taj,jk,tak->t", moved - w, s, moved - w) / 2
    return float(risks.mean()), float(risks.std() / math.sqrt(count))


@pytest.mark.parametrize(("outputs", "support", "noise"), [(1, 3, 0.5), (1, 1, 0.0), (2, 3, 0.7)])
def test_preconditioned_risk_is_the_drawn_one(outputs: int, support: int, noise: float) -> None:
    s, c = covariance(2), covariance(2 * outputs)
    p = depth.best_preconditioner(s, c, support, noise) + 0.02 * RNG.standard_normal(c.shape)
    value, error = drawn_risk(p, s, c, support, noise)
    assert error < 0.003 * value
    assert abs(depth.preconditioned_risk(p, s, c, support, noise) - value) < 4 * error
    for mutant in (depth.preconditioned_risk(p, s, c, support, noise + 1),
                   depth.preconditioned_risk(p, s, c, support + 1, noise),
                   depth.preconditioned_risk(p, s, np.diag(np.diag(c)), support, noise)):
        assert abs(mutant - value) > 4 * error


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("support", [1, 7, math.inf])
def test_the_best_preconditioner_is_best(outputs: int, support: float) -> None:
    s, c, noise = covariance(3), covariance(3 * outputs), 0.4
    best = depth.best_preconditioner(s, c, support, noise)
    least = depth.preconditioned_risk(best, s, c, support, noise)
    for _ in range(20):
        aside = best + 0.01 * RNG.standard_normal(best.shape)
        assert depth.preconditioned_risk(aside, s, c, support, noise) > least + 1e-9
    left, right = depth.best_kronecker(s, c, support, noise)
    factored = depth.preconditioned_risk(np.kron(left, right.T), s, c, support, noise)
    assert factored >= least - 1e-12
    for _ in range(20):
        near = [factor + 1e-3 * RNG.standard_normal(factor.shape) for factor in (left, right)]
        assert (
            depth.preconditioned_risk(np.kron(near[0], near[1].T), s, c, support, noise) > factored
        )
    alpha = depth.best_shallow_step(s, c, support, noise)
    shallow = depth.shallow_risk(s, c, alpha, support, noise)
    assert shallow > factored
    assert shallow == pytest.approx(
        depth.preconditioned_risk(alpha * np.eye(len(c)), s, c, support, noise), rel=1e-12
    )
    for other in (0.99 * alpha, 1.01 * alpha):
        assert depth.shallow_risk(s, c, other, support, noise) > shallow


def test_closed_forms_of_one_output() -> None:
    s, c, m, noise = covariance(4), covariance(4), 6, 0.3
    inverse = (1 + 1 / m) * s + (np.trace(s @ c) + noise**2) / m * np.linalg.inv(c)
    assert_close(depth.best_preconditioner(s, c, m, noise), np.linalg.inv(inverse))
    assert_close(depth.best_preconditioner(s, c, math.inf), np.linalg.inv(s))
    left, right = depth.best_kronecker(s, c, m, noise)
    assert_close(left * right.T, np.linalg.inv(inverse))


def test_isotropic_tasks_need_one_number() -> None:
    rho, d, m = 0.7, 5, 9
    eta = float(depth.optimal_step(rho, d, m))
    assert eta == pytest.approx(m / (rho * (m + d + 1)), rel=1e-14)
    assert_close(depth.best_preconditioner(rho * np.eye(d), np.eye(d) / d, m), eta * np.eye(d))
    assert depth.best_shallow_step(rho * np.eye(d), np.eye(d), m) == pytest.approx(eta, rel=1e-12)
    assert float(depth.optimal_step(2.0, 3, math.inf)) == 0.5


def test_kronecker_tasks_without_noise_have_a_kronecker_optimum() -> None:
    s, outer, inner = covariance(3), np.diag([1.0, 0.05]), covariance(3)
    c = np.kron(outer, inner)
    left, right = depth.best_kronecker(s, c, 4)
    np.testing.assert_allclose(
        np.kron(left, right.T), depth.best_preconditioner(s, c, 4), atol=1e-9
    )
    np.testing.assert_allclose(left, np.eye(2), atol=1e-9)
    noisy = [depth.best_kronecker(s, c, 4, 0.8), depth.best_preconditioner(s, c, 4, 0.8)]
    risks = [depth.preconditioned_risk(p, s, c, 4, 0.8)
             for p in (np.kron(noisy[0][0], noisy[0][1].T), noisy[1])]
    assert risks[0] > risks[1] * (1 + 1e-4)
    assert np.abs(noisy[0][0] - np.eye(2)).max() > 0.05


def test_the_shallow_floor_is_the_mean_of_excess_risks() -> None:
    """Tasks drawn at +- the roots of C have exactly that covariance."""
    s, c = covariance(3), covariance(3)
    root = np.linalg.cholesky(c).T * math.sqrt(3)
    optima = np.concatenate([root, -root])
    for steps in (1, 3):
        mean = excess_risk(np.zeros(3), np.stack([s] * 6), optima, 0.2, 5, noise=0.4, steps=steps)
        assert depth.shallow_risk(s, c, 0.2, 5, 0.4, steps=steps) == pytest.approx(
            float(mean), rel=1e-12
        )


@pytest.mark.parametrize(
    ("call", "said"),
    [(lambda: depth.update_residuals((3,)), "two or more"),
     (lambda: depth.update_residuals((3, 0, 1)), "at least one unit"),
     (lambda: depth.product([]), "layer or more"),
     (lambda: depth.product([np.ones((2, 3)), np.ones((2, 3))]), r"weights\[1\].shape"),
     (lambda: depth.deep_update([np.ones((2, 3))], np.ones((3, 2)), 0.1), "gradient.shape"),
     (lambda: depth.optimal_step(0.0, 3, 2), "rho must be positive"),
     (lambda: depth.optimal_step(1.0, 0, 2), "dim must be at least 1"),
     (lambda: depth.optimal_step(1.0, 1, 0.5), "support must be at least 1"),
     (lambda: depth.best_preconditioner(np.zeros((2, 2)), np.eye(2), 3), "positive definite"),
     (lambda: depth.best_preconditioner(np.eye(2), np.eye(3), 3), "task_covariance.shape"),
     (lambda: depth.best_preconditioner(np.eye(2), np.diag([1.0, 0.0]), math.inf), "non-singular"),
     (lambda: depth.preconditioned_risk(np.eye(3), np.eye(2), np.eye(2), 3),
      "preconditioner.shape"),
     (lambda: depth.best_shallow_step(np.eye(2), np.zeros((2, 2)), 3), "be positive somewhere"),
     (lambda: depth.shallow_risk(np.eye(2), np.eye(2), -1.0, 3), "alpha must be at least 0"),
     (lambda: depth.shallow_risk(np.eye(2), np.eye(2), 0.1, 3, -1.0), "noise must be at least 0")],
)
def test_bad_input(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
