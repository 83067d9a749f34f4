import itertools
import math

import pytest
import torch
from torch.func import vmap

from companion.nets import two_layer
from companion.streams import normals, torch_stream
from companion.tasks import Fleet, teachers
from companion.theory.kernels import hessian, population_loss

F64 = torch.float64
BASE = dict(dim=8, hidden=3, rho_easy=1.0, rho_hard=0.3, distance=1.5, var_easy=0.2, var_hard=0.05)


def family(**changes: float) -> teachers.Teachers:
    return teachers.teachers(torch_stream(0, "tests/teachers"), **BASE | changes)


@pytest.mark.parametrize("distance", [0.0, 0.7, 2.0, math.sqrt(6)])
def test_centres_are_apart_and_equally_curved(distance: float) -> None:
    of = family(distance=distance, length=1.2)
    easy, hard = of.centres
    assert (easy - hard).norm().item() == pytest.approx(distance, abs=1e-12)
    for centre in of.centres:
        torch.testing.assert_close(centre @ centre.T, 1.44 * torch.eye(3, dtype=F64))
    spectra = [torch.linalg.eigvalsh(hessian(centre, centre, 0.7, "relu")) for centre in of.centres]
    torch.testing.assert_close(*spectra, rtol=1e-7, atol=1e-9)
    assert spectra[0][-1] > 2 * spectra[0][0]


def test_no_permutation_is_nearer() -> None:
    easy, hard = family(distance=2.3).centres
    torch.testing.assert_close(teachers.aligned(easy, hard), easy)
    for order in itertools.permutations(range(3)):
        moved = easy[list(order)]
        torch.testing.assert_close(teachers.aligned(moved, hard), easy)
        assert population_loss(moved, easy, 1.0, "erf") == pytest.approx(0, abs=1e-12)


def test_families_of_one_seed_share_their_centre_and_direction() -> None:
    near, far = family(distance=0.5), family(distance=2.0, rho_hard=0.1)
    assert torch.equal(near.centres[teachers.HARD], far.centres[teachers.HARD])
    asides = [of.centres[teachers.EASY] - (1 - d**2 / 6) * of.centres[teachers.HARD]
              for of, d in ((near, 0.5), (far, 2.0))]
    torch.testing.assert_close(asides[0] / asides[0].norm(), asides[1] / asides[1].norm())


def test_drawn_teachers_have_the_stated_moments() -> None:
    of, count = family(hard_fraction=0.3), 20_000
    drawn = {
        name: value[0]
        for name, value in normals([1], "tests", teachers.shapes(of, count), dtype=F64)(0).items()
    }
    weights, rho, group = vmap(teachers.teacher, in_dims=(None, 0))(of, drawn)
    assert group.double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / count))
    for index, (variance, inputs) in enumerate([(0.2, 1.0), (0.05, 0.3)]):
        own = weights[group == index]
        squares = (own - of.centres[index]).square().sum((1, 2))
        error = squares.std().item() / math.sqrt(len(own))
        assert squares.mean().item() == pytest.approx(variance, abs=4 * error)
        assert (rho[group == index] == inputs).all()


def test_a_sampled_task_is_its_teachers_output() -> None:
    of = family()
    drawn = {
        name: value[0, 0]
        for name, value in normals([1], "tests", teachers.shapes(of, 1, 500), dtype=F64)(0).items()
    }
    net = two_layer(8, 3, "softplus")
    task = teachers.sampled_task(of, drawn, net.apply, 200)
    weights, rho, _ = teachers.teacher(of, drawn)
    assert [len(task.support[0]), len(task.query[0])] == [200, 300]
    x = torch.cat([task.support[0], task.query[0]])
    assert x.var().item() == pytest.approx(rho.item(), rel=0.1)
    for x, y in task:
        torch.testing.assert_close(y, net.apply({"weight": weights}, x))
    exact = teachers.population_task(of, drawn)
    assert all(torch.equal(side[0], weights) and torch.equal(side[1], rho) for side in exact)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"hidden": 5}, "hidden must be at most dim / 2 = 4, got 5"),
     ({"hidden": 0}, "hidden must be at least 1"), ({"dim": 7.5}, "dim must be a whole number"),
     ({"rho_hard": 0}, "rho_hard must be positive and finite"),
     ({"length": math.inf}, "length must be positive and finite"),
     ({"var_easy": -1}, "var_easy must be at least 0"),
     ({"distance": 2.5}, r"distance must lie in \[0, 2.449\], got 2.5; or make the rows longer"),
     ({"hard_fraction": 1}, r"hard_fraction must lie in \(0, 1\)")],
)
def test_bad_input(changes: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        family(**changes)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch_stream(0, "tests"), dtype=F64)


def test_features_are_the_derivative_of_the_output() -> None:
    w, x = normal(2, 4), normal(9, 4)
    phi = teachers.features("relu", w, x)
    torch.testing.assert_close(phi, ((x @ w.T > 0).double()[..., None] * x[:, None]).flatten(1))
    soft = teachers.features("softplus", w, x)
    torch.testing.assert_close(soft, (torch.sigmoid(x @ w.T)[..., None] * x[:, None]).flatten(1))


def test_the_drawn_curvature_is_the_exact_one() -> None:
    w, rho = normal(2, 4), torch.tensor(0.6, dtype=F64)
    x = normal(400_000, 4)
    exact = teachers.curvature("relu", w, rho, x[:1])
    phi = teachers.features("relu", w, rho.sqrt() * x)
    error = (phi[:, :, None] * phi[:, None]).std(0) / len(x) ** 0.5
    assert ((phi.mT @ phi / len(x) - exact).abs() / error).max() < 4.5


def fleet(seeds: tuple[int, ...], support: int | None = None, activation: str = "relu") -> Fleet:
    setting = {name: value for name, value in BASE.items() if name not in ("dim", "hidden")}
    return teachers.teacher_fleet(activation, [setting | {"alpha": a} for a in (0.9, 0.3)], seeds,
                                  dim=8, hidden=3, support=support)


@pytest.mark.parametrize("support", [None, 6])
def test_what_a_fleet_draws(check_draws, support: int | None) -> None:
    check_draws(lambda seeds: fleet(seeds, support))
    both, one = fleet((7, 4), support), fleet((4,), support)
    assert torch.equal(both.run(3)[0].centres, one.run(0)[0].centres)
    assert not torch.equal(both.run(2)[0].centres, both.run(3)[0].centres)
    assert (both.population, both.training_dtype) == (
        (True, F64) if support is None else (False, torch.float32))


@pytest.mark.parametrize("activation", ["relu", "softplus"])
def test_inner_rates_are_relative_to_the_largest_easy_curvature(activation: str) -> None:
    each = fleet((7,), activation=activation)
    (of,) = each.run(0)
    x, mean = teachers.inputs(7, 8), torch.zeros(24, 24, dtype=F64)
    for z in teachers.drawn(of, 7, 50)["teacher"]:
        w = of.centres[teachers.EASY] + of.spread[teachers.EASY] * z
        phi = (torch.sigmoid(x @ w.T)[..., None] * x[:, None]).flatten(1)  # rho is 1
        mean += (hessian(w, w, 1.0, "relu") if activation == "relu" else phi.T @ phi / 4000) / 50
    assert (each.alpha * torch.linalg.eigvalsh(mean)[-1]).tolist() == pytest.approx([0.9, 0.3])
