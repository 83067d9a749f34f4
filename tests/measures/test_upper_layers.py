"""Gradients below upper layers: against autograd, the exact rule of linear layers, and the fit."""

import numpy as np
import pytest
import torch

from companion import nets
from companion.checks import Array
from companion.fleets import Model, start
from companion.measures import kronecker
from companion.measures.upper_layers import bottom_gradients, fitted, named, on_bottom, resized
from companion.meta_optimizers import Params, kfo
from companion.streams import stream
from companion.tasks import Fleet
from companion.tasks.readouts import readout_fleet, spread

DIM, OUTPUTS, NAMES = 4, 3, ("0.weight", "1.weight")


def cosine(a: Array, b: Array) -> float:
    """The mean over tasks of the cosine between two gradients, [task, n, m]."""
    sizes = np.sqrt(np.square(a).sum((1, 2)) * np.square(b).sum((1, 2)))
    return float((np.einsum("tij,tij->t", a, b) / np.where(sizes > 0, sizes, 1)).mean())


def fleet_of(seeds: int) -> Fleet:
    setting = {"scales": spread(DIM, 0.3, 2.0), "outputs": OUTPUTS, "hidden": 6, "alpha": 1.0}
    return readout_fleet("regression", [setting], range(seeds), support=8)


def network(activation: str, hidden: int) -> nets.Net:
    return nets.mlp((*[DIM] * (hidden + 1), OUTPUTS), activation, bias=False)


def sides(activation: str, purpose: str, pairs: int = 60) -> tuple[Params, tuple[Array, Array]]:
    fleet, whole = fleet_of(2), network(activation, 4)
    params = start(fleet, Model(whole))
    return params, bottom_gradients(fleet, whole, network(activation, 2), NAMES, params, purpose,
                                    pairs)


def test_bottom_gradients_are_those_of_autograd() -> None:
    params, (full, small) = sides("tanh", "tests", pairs=2)
    fleet = fleet_of(2)
    drawn = fleet.draw(fleet, "tests", 2, 0)(0)
    for run in (0, 1):
        normal = {name: value[run, 1] for name, value in drawn.items()}
        x, y = fleet.make(normal, *fleet.run(run)).support
        w = [value[run].clone().requires_grad_() for value in params.values()]
        hidden = torch.tanh(torch.tanh(x @ w[0].T) @ w[1].T)
        out = torch.tanh(torch.tanh(hidden @ w[2].T) @ w[3].T) @ w[4].T
        error = (out - y).detach() / len(y)
        for upper, found in ((out, full), (hidden @ w[4].T, small)):
            slopes = torch.autograd.grad(upper, w[:2], error, retain_graph=True)
            for layer in (0, 1):
                np.testing.assert_allclose(found[layer][run, 1], slopes[layer].numpy(), rtol=1e-9,
                                           atol=1e-12)


def test_the_small_network_has_the_head_upon_the_bottom_layers() -> None:
    params = start(fleet_of(2), Model(network("tanh", 4)))
    small = on_bottom(params, NAMES)
    expected = {"0.weight": "0.weight", "1.weight": "1.weight", "2.weight": "4.weight"}
    assert list(small) == list(expected)
    assert all(torch.equal(small[here], params[there]) for here, there in expected.items())


def test_linear_upper_layers_are_one_rule() -> None:
    """G -> U.T G below upper layers U, and W1.T U.T W1^-T G one layer further down: the fit finds
    it, on tasks that it has not seen."""
    params, (large, small) = sides("identity", "fit")
    left, right = fitted(large, small)
    target, new = sides("identity", "test")[1]
    found = left[:, :, None] @ new @ right[:, :, None]
    for run in (0, 1):
        w = [value[run].numpy() for value in params.values()]
        upper = (w[3] @ w[2]).T
        exact = (w[1].T @ upper @ np.linalg.inv(w[1].T), upper)
        for layer in (0, 1):
            for got in (found, target):
                np.testing.assert_allclose(got[layer, run], exact[layer] @ new[layer, run],
                                           rtol=1e-6, atol=1e-9)
            assert cosine(found[layer, run], target[layer, run]) == pytest.approx(1)
            assert cosine(new[layer, run], target[layer, run]) < 0.95


def test_other_upper_layers_are_not() -> None:
    left, right = fitted(*sides("tanh", "fit")[1])
    target, new = sides("tanh", "test")[1]
    found = left[:, :, None] @ new @ right[:, :, None]
    for layer in (0, 1):
        for run in (0, 1):
            plain, rule = (cosine(g[layer, run], target[layer, run])
                           for g in (new, found))
            assert plain < rule < 0.9999


def test_a_resized_rule_is_the_same_but_for_its_size() -> None:
    rng = stream(0, "tests/upper")
    rule, like = ([rng.standard_normal((2, 3, n, n)) for n in (4, 5)] for _ in range(2))
    gradients = rng.standard_normal((2, 3, 20, 4, 5))
    left, right = resized(rule, like, gradients)
    for i, j in np.ndindex(2, 3):
        moved, other = ([a[i, j] @ g @ b[i, j] for g in gradients[i, j]]
                        for a, b in ((left, right), like))
        assert np.mean([np.linalg.norm(u) for u in moved]) == pytest.approx(
            np.mean([np.linalg.norm(u) for u in other]))
        factor = left[i, j] / rule[0][i, j]
        np.testing.assert_allclose(factor, factor[0, 0])
        assert (right[i, j] == rule[1][i, j]).all()
        assert abs(factor[0, 0] - 1) > 1e-3


def test_a_named_rule_is_one_of_kfo() -> None:
    rng = stream(0, "tests/named")
    rule = [rng.standard_normal((2, 3, n, n)) for n in (4, 5)]
    params = named(NAMES, rule, torch.zeros((), dtype=torch.float64))
    g = rng.standard_normal((2, 4, 5))
    for run in range(3):
        own = {name: value[run] for name, value in params.items()}
        found = kfo(0.5).apply(own, dict(zip(NAMES, torch.from_numpy(g), strict=True)))
        for i, name in enumerate(NAMES):
            np.testing.assert_allclose(found[name], 0.5 * rule[0][i, run] @ g[i] @ rule[1][i, run])
    assert named(NAMES, rule, torch.zeros(()))["0.weight.L"].dtype == torch.float32


def test_fit_kronecker_finds_a_product_that_there_is() -> None:
    rng = stream(0, "tests/fit")
    left, right, g = (rng.standard_normal((3, 3)), rng.standard_normal((4, 4)),
                      rng.standard_normal((50, 3, 4)))
    a, b = kronecker.fit_kronecker(g, left @ g @ right)
    np.testing.assert_allclose(a @ g @ b, left @ g @ right, atol=1e-9)
    assert cosine(g, 2 * g) == pytest.approx(1, abs=1e-12)
    assert cosine(g, -g) == pytest.approx(-1, abs=1e-12)
    assert cosine(g, 0 * g) == 0
