"""Exact two-layer losses against drawn inputs, central differences and symmetries."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.func import grad, vmap

from companion.evaluation import Estimate
from companion.nets import two_layer
from companion.theory import kernels
from companion.theory.kernels import hessian, population_loss

F64 = torch.float64
DRAWS = 2_000_000


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def drawn(student: torch.Tensor, teacher: torch.Tensor, rho: float, activation: str) -> Estimate:
    apply = two_layer(1, 1, activation).apply
    x = math.sqrt(rho) * normal(99, DRAWS, student.shape[1])
    losses = (apply({"weight": student}, x) - apply({"weight": teacher}, x)) ** 2 / 2
    return Estimate(losses.mean().item(), losses.std().item() / math.sqrt(DRAWS), DRAWS)


SETTINGS = [
    (3, 2, 0.7),
    (2, 4, 1.5),
    (1, 1, 0.2),
]  # hidden units of student and teacher, input variance


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize(("k", "k_teacher", "rho"), SETTINGS)
def test_population_loss_is_the_mean_over_inputs(
    activation: str, k: int, k_teacher: int, rho: float
) -> None:
    student, teacher = normal(1, k, 4), normal(2, k_teacher, 4)
    found = drawn(student, teacher, rho, activation)
    assert found.error < 0.003 * found.value
    assert abs(found.sigmas(population_loss(student, teacher, rho, activation).item())) < 4


def without_size(a, b, rho):  # the 1 + C_uu below the arcsine
    sizes = [rho * side.square().sum(-1) for side in (a, b)]
    return (2
            / math.pi
            * torch.asin((rho * a @ b.mT / (sizes[0][:, None] * sizes[1]).sqrt()).clamp(-1, 1)))


def without_sine(a, b, rho):
    angle, _ = kernels._angles(a, b)
    size = kernels._lengths(a)[:, None] * kernels._lengths(b)
    return rho * size * (math.pi - angle) * torch.cos(angle) / (2 * math.pi)


def without_angle(a, b, rho):  # pi for pi - t
    angle, sine = kernels._angles(a, b)
    size = kernels._lengths(a)[:, None] * kernels._lengths(b)
    return rho * size * (sine + math.pi * torch.cos(angle)) / (2 * math.pi)


@pytest.mark.parametrize(("activation", "mutant"),
                         [("erf", without_size), ("relu", without_sine), ("relu", without_angle)])
def test_a_kernel_without_one_of_its_terms_is_rejected(activation: str, mutant: Callable,
                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = normal(1, 3, 4), normal(2, 2, 4)
    found = drawn(student, teacher, 0.7, activation)
    right = population_loss(student, teacher, 0.7, activation).item()
    monkeypatch.setitem(kernels.KERNELS, activation, mutant)
    wrong = population_loss(student, teacher, 0.7, activation).item()
    assert abs(wrong - right) > 0.05 * right
    assert abs(found.sigmas(wrong)) > 4


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("missing", ["student", "cross", "teacher"])
def test_a_loss_without_one_of_its_sums_is_rejected(activation: str, missing: str) -> None:
    student, teacher = normal(1, 3, 4), normal(2, 2, 4)
    kernel = kernels.KERNELS[activation]
    sums = {"student": kernel(student, student, 0.7).sum() / 2,
            "cross": -kernel(student, teacher, 0.7).sum(),
            "teacher": kernel(teacher, teacher, 0.7).sum() / 2}
    right = sum(sums.values()).item()
    assert right == pytest.approx(population_loss(student, teacher, 0.7, activation).item(),
                                  rel=1e-12)
    assert abs(sums[missing].item()) > 0.05 * right
    assert abs(drawn(student, teacher, 0.7, activation).sigmas(right - sums[missing].item())) > 4


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_symmetries(activation: str) -> None:
    student, teacher = normal(3, 4, 5), normal(4, 3, 5)
    loss = population_loss(student, teacher, 0.8, activation)
    assert loss > 0.1
    assert population_loss(student, student, 0.8, activation) == pytest.approx(0, abs=1e-13)
    for order in ([1, 0, 3, 2], [3, 2, 1, 0]):
        assert population_loss(student[order], teacher, 0.8, activation) == pytest.approx(
            loss.item(), rel=1e-12
        )
        assert population_loss(student[order], student, 0.8, activation) == pytest.approx(
            0, abs=1e-13
        )
    turn = torch.linalg.qr(normal(5, 5, 5))[0]
    assert population_loss(student @ turn, teacher @ turn, 0.8, activation) == pytest.approx(
        loss.item(), rel=1e-12
    )


def central(function: Callable, at: torch.Tensor, step: float = 1e-5) -> torch.Tensor:
    """The derivative of ``function`` by central differences, one row for every entry of ``at``."""
    units = torch.eye(at.numel(), dtype=F64).reshape(-1, *at.shape)
    return torch.stack([(function(at + step * e) - function(at - step * e)).reshape(-1) / (2 * step)
                        for e in units])


@pytest.mark.parametrize("activation", ["erf", "relu"])
@pytest.mark.parametrize("same", [False, True])
def test_derivatives_of_many_networks(activation: str, same: bool) -> None:
    """200 random networks, and 200 at student = teacher: gradient and Hessian are finite, and
    right."""
    students, teachers = normal(6, 200, 2, 3), normal(7, 200, 2, 3)
    teachers = students if same else teachers

    def slope(w: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return grad(population_loss)(w, t, 0.6, activation)

    slopes = vmap(slope)(students, teachers)
    hessians = vmap(lambda w, t: hessian(w, t, 0.6, activation))(students, teachers)
    assert slopes.isfinite().all()
    assert hessians.isfinite().all()
    assert hessians.abs().amax((1, 2)).min() > 1e-3
    if same:
        assert slopes.abs().max() < 1e-12
        assert torch.linalg.eigvalsh(hessians).min() > -1e-9
    losses = vmap(lambda w, t: population_loss(w, t, 0.6, activation))
    for i, unit in enumerate(torch.eye(6, dtype=F64).reshape(6, 2, 3)):
        slope_i = (
            losses(students + 1e-5 * unit, teachers) - losses(students - 1e-5 * unit, teachers)
        ) / 2e-5
        torch.testing.assert_close(slope_i, slopes.flatten(1)[:, i], atol=1e-8, rtol=1e-7)
        # the ReLU's Hessian is only Lipschitz at an angle of 0, so differences there are off by the
        # step
        row = (vmap(slope)(students + 1e-6 * unit, teachers)
               - vmap(slope)(students - 1e-6 * unit, teachers)) / 2e-6
        torch.testing.assert_close(row.flatten(1), hessians[:, i], atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", ["erf", "relu"])
def test_derivatives_in_the_teacher_and_the_variance(activation: str) -> None:
    student, teacher, rho = normal(8, 3, 4), normal(9, 2, 4), torch.tensor(0.6, dtype=F64)
    for argument in (1, 2):

        def at(value: torch.Tensor, argument: int = argument) -> torch.Tensor:
            arguments = [student, teacher, rho]
            arguments[argument] = value
            return grad(population_loss)(*arguments, activation)

        point = (student, teacher, rho)[argument]
        exact = torch.func.jacrev(at)(point).reshape(student.numel(), -1).mT
        assert exact.abs().max() > 1e-2
        torch.testing.assert_close(central(at, point), exact, atol=1e-8, rtol=1e-7)


def test_the_hessian_at_the_teacher_is_the_mean_of_the_features() -> None:
    weights, rho = normal(10, 2, 3), 0.5
    x = math.sqrt(rho) * normal(11, 400_000, 3)
    phi = ((x @ weights.mT > 0).double()[..., None] * x[:, None]).flatten(1)
    products = phi[:, :, None] * phi[:, None]
    error = products.std(0) / math.sqrt(len(x))
    off = (products.mean(0) - hessian(weights, weights, rho, "relu")).abs() / error
    assert off.max() < 4.5  # the largest of 36


def test_a_row_of_zeros_is_finite() -> None:
    student = torch.stack([torch.zeros(3, dtype=F64), normal(12, 3)])
    for value in (student, student.roll(1, 0)):
        assert population_loss(value, normal(13, 2, 3), 1.0, "relu").isfinite()
        assert grad(population_loss)(value, normal(13, 2, 3), 1.0, "relu").isfinite().all()
        assert hessian(value, normal(13, 2, 3), 1.0, "relu").isfinite().all()


def test_bad_input() -> None:
    w = normal(1, 2, 3)
    with pytest.raises(
        ValueError, match="activation must have a closed form, erf or relu, got 'softplus'; draw"
    ):
        population_loss(w, w, 1.0, "softplus")
    with pytest.raises(ValueError,
                       match=r"teacher must be a float tensor \[hidden, dim\] .*\(2, 4\)"):
        population_loss(w, normal(1, 2, 4), 1.0, "erf")
    with pytest.raises(ValueError, match="student must be a float tensor"):
        population_loss(w.long(), w, 1.0, "erf")
