import numpy as np
import pytest
import torch

from companion.streams import stream
from companion.tasks.regressions import LinearFamily, regression_fleet

COVARIANCES = np.array([[[1.0, 0.5], [0.5, 2.0]], [[0.2, 0.0], [0.0, 0.1]]])
FIELDS = dict(covariances=COVARIANCES, centres=np.array([[1.0, 0.0], [0.0, -2.0]]),
              variances=np.array([0.5, 3.0]), weights=np.array([1.0, 3.0]), noise=0.7)


def test_draws_have_the_moments_they_should() -> None:
    family, rng, n = LinearFamily(**FIELDS), stream(0, "tests"), 200_000
    group, optima = family.draw_tasks(rng, (n,))
    x, y = family.draw_samples(rng, group, optima, 2)
    assert group.mean() == pytest.approx(0.75, abs=0.005)
    for g in (0, 1):
        mine = group == g
        np.testing.assert_allclose(optima[mine].mean(axis=0), family.centres[g], atol=0.02)
        spread = ((optima[mine] - family.centres[g]) ** 2).sum(axis=1).mean()
        assert spread == pytest.approx(family.variances[g], rel=0.02)
        inputs = x[mine].reshape(-1, 2)
        np.testing.assert_allclose(inputs.T @ inputs / len(inputs), COVARIANCES[g], atol=0.02)
        residual = y[mine] - np.einsum("nmd,nd->nm", x[mine], optima[mine])
        assert residual.std() == pytest.approx(0.7, rel=0.01)


@pytest.mark.parametrize(
    ("message", "fields"),
    [("covariances must be symmetric",
      dict(covariances=COVARIANCES + np.triu(np.ones((2, 2)), 1))),
     (r"covariances.shape must be \[group, d, d\]", dict(covariances=COVARIANCES[0])),
     ("centres.shape must be", dict(centres=np.zeros((2, 3)))),
     ("variances must be at least 0", dict(variances=np.array([1.0, -1.0]))),
     ("weights must be at least 0", dict(weights=np.array([1.0, -1.0]))),
     ("weights must have a positive sum", dict(weights=np.zeros(2))),
     ("noise must be at least 0", dict(noise=-0.1))],
)
def test_bad_input(message: str, fields: dict) -> None:
    with pytest.raises(ValueError, match=message):
        LinearFamily(**FIELDS | fields)


@pytest.mark.parametrize(("message", "given"), [
    ("seeds must be one or more, got 0", dict(seeds=[])),
    ("support must be at least 0, got -3", dict(support=-3)),
    ("alpha must be at least 0, got -1", dict(alpha=-1.0))])
def test_what_a_fleet_refuses(message: str, given: dict) -> None:
    with pytest.raises(ValueError, match=message):
        regression_fleet(LinearFamily(**FIELDS), **dict(seeds=[0], support=5, alpha=0.3) | given)
    fleet = regression_fleet(LinearFamily(**FIELDS), seeds=[0], support=5, alpha=0.3)
    with pytest.raises(ValueError, match="query must be at least 1, got 0"):
        fleet.draw(fleet, "test", 3, 0)(0)


def test_what_a_fleet_draws(check_draws) -> None:
    family = LinearFamily(**FIELDS)
    check_draws(lambda seeds: regression_fleet(family, seeds, alpha=0.3, support=5, copies=2))
    fleet = regression_fleet(family, (3,), alpha=0.3, support=5)
    x, y = (side[0, 1] for side in fleet.draw(fleet, "train", 2, 4)(0))
    task = fleet.make((x, y))
    assert (x.shape, fleet.alpha.tolist()) == ((9, 2), [0.3])
    assert torch.equal(torch.cat([task.support[0], task.query[0]]), x)
    assert torch.equal(torch.cat([task.support[1], task.query[1]]), y)
    assert len(task.support[0]) == 5


def test_the_hessian_is_that_of_the_risk() -> None:
    """From second differences, which are exact for a quadratic; any covariance, uneven weights."""
    rng = np.random.default_rng(0)
    roots = rng.standard_normal((2, 3, 4))
    family = LinearFamily(roots @ roots.swapaxes(1, 2), rng.standard_normal((2, 3)),
                          np.array([0.3, 0.1]), np.array([3.0, 1.0]), 0.2)
    w, axes = rng.standard_normal(3), np.eye(3)

    def risk(*moves: np.ndarray) -> float:
        return float(family.risk(w + sum(moves), 0.1, 7, steps=2))

    second = [[risk(a, b) - risk(a) - risk(b) + risk(0 * w) for b in axes] for a in axes]
    np.testing.assert_allclose(family.hessian(0.1, 7, steps=2), second, rtol=1e-9, atol=1e-9)
