"""Tasks that a shallow model solves: their moments, labels and exact losses."""

import math

import pytest
import torch
from torch.func import vmap

from companion import nets
from companion.losses import squared_error
from companion.streams import normals, torch_stream
from companion.tasks import Fleet, readouts

F64 = torch.float64
SCALES = (0.3, 1.0, 2.0)


def family(**options) -> readouts.Readout:
    return readouts.readout(torch_stream(0, "tests/readouts"), **({"scales": SCALES} | options))


def drawn(of: readouts.Readout, tasks: int, samples: int) -> dict[str, torch.Tensor]:
    found = normals([0], "tests/readouts", readouts.shapes(of, tasks, samples), dtype=F64)(0)
    return {name: value[0] for name, value in found.items()}


def test_inputs_and_optima_have_the_covariances_asked_for() -> None:
    of = family(outputs=2, correlation=0.6)
    assert torch.linalg.eigvalsh(of.covariance).tolist() == pytest.approx([0.09, 1, 4], rel=1e-10)
    assert (of.covariance - torch.diag(torch.diag(of.covariance))).abs().max() > 0.1
    normal = drawn(of, 100_000, 1)
    tasks = vmap(lambda n: readouts.task(of, n, "regression", 1))(normal)
    x = tasks.support[0][:, 0]
    w = vmap(lambda n: readouts.optimum(of, n))(normal).flatten(1)
    for sample, exact in ((x, of.covariance), (w, of.task_covariance)):
        products = sample[:, :, None] * sample[:, None]
        assert ((products.mean(0) - exact).abs() < 4.5 * products.std(0) / len(sample) ** 0.5).all()
    assert of.task_covariance[0, 3].item() == pytest.approx(
        0.2, rel=1e-10
    )  # outputs are correlated, inputs are not
    assert of.task_covariance[0, 1] == 0


@pytest.mark.parametrize("hidden", [0, 4])
def test_tasks_and_outputs_have_the_spread_asked_for(hidden: int) -> None:
    """Optima along the axes of the inputs, or of the features; outputs by their factors."""
    tasks = (3.0, 1.0, 0.2, 0.5)[: hidden or 3]
    of = family(outputs=2, correlation=0.6, output_scales=(2.0, 0.5), tasks=tasks, hidden=hidden)
    count, square = len(tasks), torch.tensor(tasks, dtype=F64) ** 2
    alike = torch.tensor([[4.0, 0.6], [0.6, 0.25]], dtype=F64)
    axes = of.root / of.root.norm(dim=0) if not hidden else torch.eye(4, dtype=F64)
    along = (axes * square) @ axes.T / count
    torch.testing.assert_close(of.task_covariance, torch.kron(alike, along))
    w = vmap(lambda n: readouts.optimum(of, n))(drawn(of, 100_000, 1)).flatten(1)
    products = w[:, :, None] * w[:, None]
    error = products.std(0) / len(w) ** 0.5
    assert ((products.mean(0) - of.task_covariance).abs() < 4.5 * error).all()


def test_a_lens_changes_what_a_model_sees_and_not_the_labels() -> None:
    plain, white = family(), family(ridge=0.7)
    values, axes = torch.linalg.eigh(plain.covariance)
    lens = (axes * (values + 0.7) ** -0.5) @ axes.T
    normal = {name: value[0] for name, value in drawn(plain, 1, 8).items()}
    for exact in (True, False):
        sides = [readouts.task(of, normal, "regression", 5, exact=exact) for of in (plain, white)]
        for (x, y), (seen, same) in zip(*sides, strict=True):
            torch.testing.assert_close(seen, x @ lens)
            assert torch.equal(y, same)
    seen = torch.linalg.eigvalsh(white.lens @ white.covariance @ white.lens.T)
    torch.testing.assert_close(seen, values / (values + 0.7))
    fleets = [fleet((3,), ridge=ridge) for ridge in (None, 0.7)]
    assert (fleets[1].alpha / fleets[0].alpha).tolist() == pytest.approx([4.7, 4.7])


def test_axes_can_be_those_of_the_coordinates() -> None:
    torch.testing.assert_close(family(turned=False).root,
                               torch.diag(torch.tensor(SCALES, dtype=F64)))


def test_labels() -> None:
    of = family(outputs=2, noise=0.5)
    normal = {name: value[0] for name, value in drawn(of, 1, 8).items()}
    w = readouts.optimum(of, normal)
    (x, y), (query, query_y) = readouts.task(of, normal, "regression", 5)
    assert (x.shape, query.shape) == ((5, 3), (3, 3))
    torch.testing.assert_close(y, x @ w.T + 0.5 * normal["noise"][:5])
    torch.testing.assert_close(query_y, query @ w.T)
    _, (query, query_y) = readouts.task(of, normal, "boundaries", 5)
    assert torch.equal(query_y, (query @ w.T).argmax(1))
    one = family()
    normal = {name: value[0] for name, value in drawn(one, 1, 40).items()}
    (x, y), _ = readouts.task(one, normal, "boundaries", 35)
    assert torch.equal(y, (x @ readouts.optimum(one, normal)[0] > 0).double())
    assert 0 < y.mean() < 1


def test_shared_features() -> None:
    of = family(hidden=6)
    normal = {name: value[0] for name, value in drawn(of, 1, 8).items()}
    (x, y), _ = readouts.task(of, normal, "regression", 8)
    torch.testing.assert_close(y, torch.tanh(x @ of.features.T) @ readouts.optimum(of, normal)[0])


def test_the_exact_query_is_the_expectation() -> None:
    """d points give the mean squared error of a linear model over all inputs."""
    of, net = family(outputs=2), nets.linear(3, 2)
    normal = {name: value[0] for name, value in drawn(of, 1, 200_000).items()}
    params, loss = net.init(torch_stream(1, "tests"), dtype=F64), squared_error(net.apply)
    exact = loss(params, readouts.task(of, normal, "regression", 5, exact=True).query)
    error = params["0.weight"] - readouts.optimum(of, normal)
    assert exact.item() == pytest.approx((torch.trace(error @ of.covariance @ error.T) / 2).item(),
                                         rel=1e-12)
    x, y = readouts.task(of, normal, "regression", 5).query
    each = (net.apply(params, x) - y).square().sum(1) / 2
    assert abs(each.mean() - exact) < 4 * each.std() / math.sqrt(len(x))


@pytest.mark.parametrize(
    ("options", "said"),
    [({"scales": (1.0, 0.0)}, "scales must be positive, got 0.0 at index"),
     ({"scales": ()}, r"scales.shape must be \[dim\]"),
     ({"outputs": 0}, "outputs must be at least 1"),
     ({"correlation": 1.0}, r"correlation must lie in \[0, 1\)"),
     ({"noise": -1.0}, "noise must be at least 0"), ({"hidden": -1}, "hidden must be at least 0"),
     ({"tasks": (1.0, 2.0)}, r"tasks.shape must be \[3\], got \(2,\)"),
     ({"tasks": (1.0, 2.0, 3.0), "hidden": 4}, r"tasks.shape must be \[4\]"),
     ({"tasks": (1.0, -2.0, 3.0)}, "tasks must be positive, got -2.0 at index"),
     ({"output_scales": (1.0, 2.0)}, r"output_scales.shape must be \[1\]"),
     ({"ridge": -0.1}, "ridge must be at least 0")],
)
def test_bad_input(options, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        family(**options)


def test_bad_tasks() -> None:
    of = family(hidden=4)
    normal = {name: value[0] for name, value in drawn(of, 1, 8).items()}
    with pytest.raises(ValueError, match="kind must be one of regression, boundaries, got 'waves'"):
        readouts.task(of, normal, "waves", 5)
    with pytest.raises(ValueError, match="exact needs labels that are linear in x"):
        readouts.task(of, normal, "regression", 5, exact=True)


def fleet(seeds: tuple[int, ...], kind: str = "regression", **options) -> Fleet:
    settings = [{"scales": SCALES, "alpha": alpha} | options for alpha in (0.8, 2.0)]
    return readouts.readout_fleet(kind, settings, seeds, support=5)


@pytest.mark.parametrize("options", [{}, {"kind": "boundaries"}, {"hidden": 4}], ids=str)
def test_what_a_fleet_draws(check_draws, options) -> None:
    check_draws(lambda seeds: fleet(seeds, **options))
    (family,), (alone,) = fleet((7, 4), **options).run(3), fleet((4,), **options).run(0)
    assert torch.equal(family.root, alone.root)
    assert torch.equal(family.features, alone.features)


def test_inner_rates_are_relative_to_the_largest_curvature() -> None:
    assert fleet((3, 7)).alpha.tolist() == pytest.approx([0.2, 0.2, 0.5, 0.5], rel=1e-12)
    assert fleet((3,), "boundaries").alpha.tolist() == pytest.approx([0.8, 2.0], rel=1e-12)


def test_a_fleet_makes_its_tasks_exact_where_they_can_be() -> None:
    for options, queries in (({}, 3), ({"hidden": 4}, 6), ({"kind": "boundaries"}, 6)):
        each = fleet((3,), **options)
        drawn = {name: value[1, 0] for name, value in each.draw(each, "test", 1, 6)(0).items()}
        task = each.make(drawn, *each.run(1))
        assert (len(task.support[0]), len(task.query[0])) == (5, queries)
        assert each.classes == ("kind" in options)
