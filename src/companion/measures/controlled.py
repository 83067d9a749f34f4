"""What is measured on networks trained on landscapes that we set: risks by group of tasks, the
hardness spread of their gradients, and what linear regression says of the same images (paper L)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch.func import grad, vmap

from companion import tables
from companion.checks import Array
from companion.fleets import CAP, Budget, Model, measure
from companion.measures import networks
from companion.meta_optimizers import Params
from companion.streams import normals
from companion.tasks import Fleet, controlled
from companion.tasks.controlled import Landscape
from companion.theory import gaussian

FLEET = ["net", "contrast", "fraction", "landscape", "method"]  # what names a trained fleet
SETTING = ["net", "contrast", "landscape"]
_STEPS = np.geomspace(0.1, 2, 25)  # inner steps that the theory chooses from
_NO_VARIANCE = 1e-6  # of the largest: directions with less have none


def group_risks(fleet: Fleet, model: Model, params: Params, budget: Budget, purpose: str) -> Array:
    """The query loss after one step, a mean over the tasks of each group, [run, group]; a task's
    counts for at most CAP."""
    loss = fleet.loss(model.net.apply)

    def judge(params: Params, drawn: Any, of: Landscape,
              alpha: Any) -> tuple[torch.Tensor, torch.Tensor]:
        task = fleet.make(drawn, of)
        risk = loss(model.adapt(loss, params, task.support, alpha, 1), task.query)
        return controlled.labels(of, drawn)[2], torch.nan_to_num(risk, CAP).clamp(max=CAP)

    group, risk = measure(fleet, judge, params, budget, purpose=purpose)
    return np.stack([(risk * (group == one)).sum(1) / (group == one).sum(1)
                     for one in (controlled.EASY, controlled.HARD)], axis=-1)


def _new(of: Landscape) -> torch.Tensor:
    """The images that nothing was trained on, [image, dim]."""
    return of.images[:, of.images.shape[1] // 2 :].flatten(0, 1)


def spreads(fleet: Fleet, model: Model, params: Params, support: int) -> list[float]:
    """The hardness spread h of every run, over both groups of tasks and all directions.

    Tasks are taken by their quadratic model at the trained weights: phi = df/dW of a group's new
    images, H = E[phi phi^T], and from m = ``support`` samples Q = H - 2 a H^2 + a^2 ((1 - 1/m) H^3
    + E[(phi.H phi) phi phi^T] / m); see :mod:`companion.measures.quadratic`.
    """
    def output(some: Params, x: torch.Tensor) -> torch.Tensor:
        return model.net.apply(some, x[None])[0]

    found = []
    for run in range(len(fleet.seeds)):
        (of,), alpha = fleet.run(run), float(fleet.alpha[run])
        weights = {name: value[run].cpu() for name, value in params.items()}
        left = []
        for contrast in of.contrast:
            slopes = vmap(grad(output), in_dims=(None, 0))(weights, contrast * _new(of))
            phi = torch.cat([slope.flatten(1) for slope in slopes.values()], 1)
            left.append(leftovers(phi.numpy(), alpha, support))
        every = np.concatenate(left)
        found.append(float(max(every.min(), 0.0) / every.max()))
    return found


def leftovers(phi: Array, alpha: float, support: int) -> Array:
    """The eigenvalues of H^-1/2 Q H^-1/2 over the directions with variance, of features ``phi``
    [sample, n]."""
    white, sizes, _ = np.linalg.svd(phi, full_matrices=False)
    kept = sizes**2 > _NO_VARIANCE * sizes[0] ** 2
    white, variances = white[:, kept] * len(phi) ** 0.5, sizes[kept] ** 2 / len(phi)
    fourth = (white * (white**2 @ variances**2)[:, None]).T @ white / len(phi)
    second = (1 - 1 / support) * np.diag(variances**2) + fourth / support
    whole = np.eye(len(variances)) - 2 * alpha * np.diag(variances) + alpha**2 * second
    return np.asarray(np.linalg.eigvalsh(whole))


def columns(fleet: Fleet, model: Model, params: Params | None, budget: Budget,
            support: int) -> dict[str, Sequence[float | None]]:
    """What a table says of trained runs, as columns [run]: ``valid`` on the images that they were
    trained on, ``risk`` and ``risk_hard`` on new ones, and h, for MAML. Lost ones, None, count for
    CAP."""
    lost = [CAP] * len(fleet.seeds)
    h: Sequence[float | None] = [None] * len(fleet.seeds)
    if params is None:
        return {"valid": lost, "risk": lost, "risk_hard": lost, "h": h}
    valid, risk = (group_risks(fleet, model, params, budget, purpose)
                   for purpose in ("validate", "test"))
    if model.method == "maml":
        h = spreads(fleet, model, params, support)
    return {"valid": valid.mean(1), "risk": risk.mean(1), "risk_hard": risk[:, controlled.HARD],
            "h": h}


class Prediction(NamedTuple):
    """Mean loss on new images after one step from each method's solution, at its own best step; and
    that on hard tasks alone."""

    nal: float
    maml: float
    nal_hard: float
    maml_hard: float


def predict(of: Landscape, seed: int, support: int, fraction: float,
            count: int = 100) -> Prediction:
    """What linear regression on the images says of a family, no network trained.

    Every task is y = w*.x + z on the new images, w* by least squares and z what that leaves: from
    ``count`` class-to-label maps of each group. Solutions are of tasks of which a ``fraction`` is
    hard; steps are chosen, and risks stated, on tasks half of which are hard.
    """
    x = _new(of)
    drawn = {name: value[0] for name, value in normals(
        [seed], "controlled/maps", controlled.shapes(len(of.images), 1, 2 * count),
        dtype=x.dtype)(0).items()}
    drawn["group"] = torch.tensor([torch.inf, -torch.inf]).repeat_interleave(count)
    signs, contrast, _ = vmap(controlled.labels, in_dims=(None, 0))(
        of._replace(cut=torch.zeros_like(of.cut)), drawn)
    y = signs.repeat_interleave(len(x) // len(of.images), 1)  # [map, image]
    second = x.mT @ x / len(x)
    found = torch.linalg.solve(second, x.mT @ y.mT / len(x)).mT
    left = (contrast**2 * (y - found @ x.mT).square().mean(1)).reshape(2, count).mean(1).numpy()
    optima = found.reshape(2, count, -1).numpy()
    # all tasks of a group have one covariance: its mean optimum gives both solutions
    covariances = (of.contrast**2)[:, None, None].numpy() * second.numpy()
    tasks, shares = (covariances, optima.mean(1)), np.array([1 - fraction, fraction])

    def risk(w: Array, step: float) -> tuple[float, float]:
        """On half and half, and on hard tasks."""
        error, q = w - optima, gaussian.q_matrix(covariances, step, support)
        groups = np.einsum("gti,gij,gtj->g", error, q, error) / (2 * count) + left / 2
        groups += gaussian.noise_risk(covariances, step, support, left**0.5)
        return float(groups.mean()), float(groups[controlled.HARD])

    plain = gaussian.minimiser_nal(*tasks, shares)
    nal = min(risk(plain, step) for step in _STEPS)
    maml = min(risk(gaussian.minimiser_maml(*tasks, step, support, shares), step)
               for step in _STEPS)
    return Prediction(nal[0], maml[0], nal[1], maml[1])


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """One row for every setting and seed, half of the training tasks hard, each method at its own
    inner rate: risks ``nal`` and ``maml``, measured and predicted, and h of MAML's networks."""
    best = tables.best(tables.where(table, fraction=0.5), FLEET)
    nal, maml = (tables.where(best, method=method).set_index([*SETTING, "seed"])
                 for method in ("nal", "maml"))
    found = pd.DataFrame({"nal": nal["risk"], "maml": maml["risk"], "h": maml["h"],
                          "predicted_nal": nal["predicted"], "predicted_maml": maml["predicted"]})
    return found.loc[maml.index].reset_index()


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The measured ratio of risks NAL / MAML of every setting, the predicted one, and the hardness
    spread h, its geometric mean over seeds."""
    return networks.ratios(pairs(table), SETTING)


def slack(table: pd.DataFrame) -> pd.DataFrame:
    """The mean over seeds of log(ceiling at the measured h / measured ratio), of every setting."""
    return networks.slack(pairs(table), SETTING)


def differences(table: pd.DataFrame, landscape: str, other: str) -> pd.DataFrame:
    """MAML's gain, log(risk NAL / risk MAML), in one landscape minus that in another, at the lowest
    contrast, of every network."""
    rows = pairs(table)
    rows = rows[rows["contrast"] == rows["contrast"].min()]
    gain = rows.assign(gain=np.log(rows["nal"] / rows["maml"]))
    found = tables.contrast(gain, ["net", "landscape"], "gain", {"landscape": other},
                            tables.difference)
    return tables.where(found, landscape=landscape)


def slopes(table: pd.DataFrame, column: str = "risk_hard") -> pd.DataFrame:
    """The least-squares slope of minus the logarithm of MAML's risk on hard tasks against the share
    of hard training tasks, over seeds; ``column`` "predicted_hard" has the theory's. Only where
    there are several shares."""
    best = tables.best(tables.where(table, method="maml"), FLEET)
    gain = best.assign(gain=-np.log(best[column]))
    return pd.DataFrame([dict(zip(SETTING, key, strict=True))
                         | tables.columns(tables.slope(rows, "fraction", "gain"))
                         for key, rows in gain.groupby(SETTING, sort=False)
                         if rows["fraction"].nunique() > 1])
