r"""Two-class tasks on images as linear regressions: the landscape of image tasks, measured.

An image is seen through a fixed feature map; a task is a pair of classes, labelled -1 and +1, and a
linear head is fitted to the labels by squared loss. The population of a task is all images of its
two classes, each class with half of the weight. So a task has a second-moment matrix Sigma = E[x
x.T], an optimum w* and a residual variance E(y - x.w*)^2, and every formula of
:mod:`companion.theory.gaussian` applies: exactly with the full batch, which knows second moments
alone, and with m samples as if x were normal with the second moment Sigma and the residual
independent of it. Risks are excess risks, above those of the tasks' own optima.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from companion.checks import Array, at_least, require
from companion.streams import torch_stream
from companion.tasks.episodes import Pool
from companion.theory import gaussian, label_orders

HARD = ("one pair", "one group", "all groups")  # where hard tasks take their classes from
_SIDE, _CELLS, _FILTERS = 16, 4, 32
_CHUNK = 2048  # images seen at once
_RANK = 1e-10  # a variance below this share of the largest counts as none


class Moments(NamedTuple):
    """A feature space: of every class the second moment [class, d, d] and mean [class, d] of its
    images' features, the last of which is 1, and its group [class]."""

    second: Array
    mean: Array
    group: NDArray[np.int64]


class Regressions(NamedTuple):
    """A finite set of tasks: ``covariances`` Sigma [task, d, d], ``optima`` w* [task, d], ``noise``
    [task], the root of the residual variance, ``weights`` [task], and which tasks are ``hard``."""

    covariances: Array
    optima: Array
    noise: Array
    weights: Array
    hard: NDArray[np.bool_]


class Risks(NamedTuple):
    """Excess risks after adaptation from NAL's and from MAML's minimiser: the mean over all tasks,
    and over the hard ones."""

    nal: float
    maml: float
    nal_hard: float
    maml_hard: float


def _pooled(x: torch.Tensor) -> torch.Tensor:
    return F.adaptive_avg_pool2d(x, _CELLS).flatten(1)


def _convolutions(x: torch.Tensor) -> torch.Tensor:
    """Two random blocks of convolution, max-pooling and ReLU: 4 x 4 cells of every filter."""
    rng = torch_stream(0, "image_regressions/body")
    for _ in range(2):
        shape = (_FILTERS, x.shape[1], 3, 3)
        kernel = torch.randn(shape, generator=rng) * (2 / (9 * x.shape[1])) ** 0.5
        x = torch.relu(F.max_pool2d(F.conv2d(x, kernel, padding=1), 2))
    return x.flatten(1)


FEATURES: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = {
    "pooled pixels": (lambda x: _pooled(x.mean(1, keepdim=True)), False),
    "components": (lambda x: x.flatten(1), True),
    "convolutions": (_convolutions, True)}  # the map, and whether principal components follow


def moments(of: Pool, features: str, components: int) -> Moments:
    """The classes of a pool in a feature space, one of ``FEATURES``, on images of 16 x 16 pixels.

    "pooled pixels" are means of the grey image over 4 x 4 cells; "components" the leading
    ``components`` principal components of the pixels; "convolutions" those of a random
    convolutional body. Components are those of the pool's images. Features are centred at the mean
    of all images and divided by one number, so that their mean squared norm is 1; then comes a
    constant feature 1: the head has an intercept, and no task is centred by itself. ValueError: an
    unknown feature space, or more components than there are features.
    """
    require(features in FEATURES, "features", f"be one of {', '.join(FEATURES)}", repr(features),
            "see moments")
    at_least("components", components, 1, "a feature space has a dimension", whole=True)
    see, reduce = FEATURES[features]
    index = torch.cat([torch.arange(int(first), int(first + size))
                       for first, size in zip(of.first, of.sizes, strict=True)])
    x = torch.cat([see(F.adaptive_avg_pool2d(of.images[part].float() / 255, _SIDE))
                   for part in torch.split(index, _CHUNK)]).double()
    x = x - x.mean(0)
    if reduce:
        require(components <= x.shape[1], "components", f"be at most {x.shape[1]}", components,
                "take fewer")
        x = x @ torch.linalg.eigh(x.mT @ x)[1][:, -components:]
    x = x / x.square().sum(1).mean().sqrt()
    x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
    parts = torch.split(x, of.sizes.tolist())
    second = torch.stack([part.mT @ part / len(part) for part in parts])
    mean = torch.stack([part.mean(0) for part in parts])
    return Moments(second.numpy(), mean.numpy(), of.group.numpy())


def draw_pairs(group: NDArray[np.int64], rng: np.random.Generator, hard: str,
               count: int) -> NDArray[np.int64]:
    """``count`` pairs of different classes [pair, 2], the smaller number first, ``group`` [class]:
    of one group that is drawn first ("one group"), of a group drawn for every pair ("all groups"),
    one pair of one group, ``count`` times ("one pair"), or from anywhere ("none"). Only groups of
    three classes or more serve, whose pairs are several. ValueError: an unknown kind, or no such
    group."""
    require(hard in (*HARD, "none"), "hard", f"be one of {', '.join(HARD)}, none", repr(hard),
            "see draw_pairs")
    names, sizes = np.unique(group, return_counts=True)
    require(hard == "none" or sizes.max() > 2, "group", "have three classes somewhere",
            f"{sizes.max()} at most", "take another source")
    fits = np.ones((1, len(group)), dtype=bool)
    if hard != "none":
        own = rng.choice(names[sizes > 2], count if hard == "all groups" else 1)
        fits = own[:, None] == group
    drawn = [np.sort(rng.choice(np.flatnonzero(fits[i % len(fits)]), 2, replace=False))
             for i in range(1 if hard == "one pair" else count)]
    return np.resize(drawn, (count, 2))


def draw(space: Moments, rng: np.random.Generator, hard: str, *, pairs: int,
         episodes: int) -> tuple[Regressions, dict[str, Array]]:
    """The tasks of ``episodes`` episodes, half of them easy and half ``hard``, each of one of
    ``pairs`` pairs of its kind (see :func:`draw_pairs`). And the ``balance`` [task] of their labels
    (see :mod:`companion.theory.label_orders`): the episodes of a pair come in random order; where
    labels are "fixed", those of hard pairs do not, and the smaller class number is always -1;
    where "permuted", all do. ValueError as there, or fewer than two episodes."""
    at_least("episodes", episodes, 2, "half are easy, half hard", whole=True)
    parts = []
    for kind in ("none", hard):
        drawn = draw_pairs(space.group, rng, kind, pairs)[rng.integers(pairs, size=episodes // 2)]
        order = rng.choice([-1, 1], size=episodes // 2)
        found, place, counts = np.unique(drawn, axis=0, return_inverse=True, return_counts=True)
        balance = np.bincount(place.ravel(), order) / counts
        parts.append((found, counts, balance, np.full(len(found), kind != "none")))
    found, counts, balance, is_hard = (np.concatenate(part) for part in zip(*parts, strict=True))
    return (regressions(space, found, counts / counts.sum(), is_hard),
            {"fixed": np.where(is_hard, 1.0, balance), "permuted": balance})


def regressions(space: Moments, pairs: NDArray[np.int64], weights: Array,
                hard: NDArray[np.bool_]) -> Regressions:
    """The tasks that tell the second class of a pair [task, 2] (+1) from the first (-1).

    With S_c and u_c the moments of class c, Sigma = (S_a + S_b)/2, E[x y] = (u_b - u_a)/2, w* =
    Sigma^+ E[x y] by the pseudo-inverse, variances below 1e-10 of the largest counting as none, and
    the residual variance is 1 - w*.E[x y].
    """
    first, second = np.asarray(pairs).T
    covariances = (space.second[first] + space.second[second]) / 2
    cross = (space.mean[second] - space.mean[first]) / 2
    inverse = np.linalg.pinv(covariances, rcond=_RANK, hermitian=True)
    optima = np.einsum("tij,tj->ti", inverse, cross)
    residual = 1 - np.einsum("ti,ti->t", optima, cross)
    return Regressions(covariances, optima, np.sqrt(np.maximum(residual, 0)),
                       np.asarray(weights, dtype=float), np.asarray(hard))


def compare(tasks: Regressions, balances: Mapping[str, Array], alpha: float,
            support: float) -> dict[str, Risks]:
    """The exact :class:`Risks` for every balance [task] of the labels, after one step ``alpha`` on
    ``support`` samples, ``math.inf`` for the full batch."""
    q = gaussian.q_matrix(tasks.covariances, alpha, support)
    noise = gaussian.noise_risk(tasks.covariances, alpha, support, tasks.noise)
    found = {}
    for name, balance in balances.items():
        centres = balance[:, None] * tasks.optima
        risks = [label_orders.risks(w, q, tasks.optima, balance) + noise
                 for w in (gaussian.minimiser_nal(tasks.covariances, centres, tasks.weights),
                           gaussian.weighted_centre(q, centres, tasks.weights, "E[Q]"))]
        found[name] = Risks(*(float(np.average(risk, weights=tasks.weights * share))
                              for share in (np.ones(len(balance)), tasks.hard) for risk in risks))
    return found


def separation(tasks: Regressions, balance: Array) -> float:
    """R^2/v: the squared distance of the mean optima of easy and hard tasks over the variance of
    optima within the two, their mean. Lengths are those of predictions, ||w||^2 = w.E[Sigma] w: in
    directions of little variance optima are long and mean little."""
    metric = np.einsum("t,tij->ij", tasks.weights / tasks.weights.sum(), tasks.covariances)
    centres, inside = [], []
    for hard in (False, True):
        share = np.where(tasks.hard == hard, tasks.weights, 0)
        centre = np.average(balance[:, None] * tasks.optima, axis=0, weights=share)
        lengths = np.einsum("ti,ij,tj->t", tasks.optima, metric, tasks.optima)
        centres.append(centre)
        inside.append(np.average(lengths, weights=share) - centre @ metric @ centre)
    apart = centres[1] - centres[0]
    return float(apart @ metric @ apart / np.mean(inside))


def share_left(tasks: Regressions, alpha: float, support: float) -> tuple[float, float]:
    """The share of the excess risk of w = 0 that is left after one step: of easy and of hard tasks.
    It is the hardness of tasks with permuted labels, in one number."""
    left = label_orders.risks(
        np.zeros(tasks.optima.shape[1]), gaussian.q_matrix(tasks.covariances, alpha, support),
        tasks.optima, np.zeros(len(tasks.optima)))
    left += gaussian.noise_risk(tasks.covariances, alpha, support, tasks.noise)
    before = (1 - tasks.noise**2) / 2  # w*.Sigma w*/2
    easy, hard = (float((tasks.weights * part) @ left / ((tasks.weights * part) @ before))
                  for part in (~tasks.hard, tasks.hard))
    return easy, hard
