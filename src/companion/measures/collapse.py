"""What a deep model is worth once its linear layers are multiplied out: the same function, adapted
as a plain model (paper D)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch.func import vmap

from companion import nets
from companion.checks import Array
from companion.fleets import Budget, Model, scores
from companion.meta_optimizers import Params
from companion.tasks import Fleet

COLLAPSED = ("off", "collapsed", "collapsed_rate", "collapsed_tuned")


def collapsed(fleet: Fleet, deep: Model, plain: Model, params: Params, layers: int, budget: Budget,
              rates: Sequence[float], alphas: Array) -> dict[str, Array]:
    """The columns COLLAPSED, [run] each: how far outputs are off, the plain model's risk after one
    step at the fleet's own rates ``alphas``, its best rate, the risk at that one."""
    product, off = multiplied_out(fleet, deep, plain, params, layers)
    rate = best_rate(fleet, plain, product, budget, rates, alphas)
    after = [scores(each, plain, product, budget, [1]).means.risk[:, 0]
             for each in (fleet, scaled(fleet, rate / alphas))]
    return dict(zip(COLLAPSED, (off, after[0], rate, after[1]), strict=True))


def multiplied_out(fleet: Fleet, deep: Model, plain: Model, params: Params,
                   layers: int) -> tuple[Params, Array]:
    """The plain model's parameters with the added ``layers`` of ``params`` multiplied out, and how
    far its outputs are off before adaptation: the largest difference over the largest output, on
    drawn inputs, [run]."""
    product = nets.collapsed(params, layers)
    x = fleet.draw(fleet, "collapse", 1, 100)(0)["x"][:, 0] @ fleet.settings[0].root.mT
    outputs = [vmap(model.net.apply)(each, x)
               for model, each in ((deep, params), (plain, product))]
    off = (outputs[0] - outputs[1]).abs().amax(1) / outputs[0].abs().amax(1)
    return product, off.cpu().numpy()


def scaled(fleet: Fleet, factor: Array) -> Fleet:
    """The fleet with its inner rates times ``factor``, [run]."""
    return fleet.at(fleet.alpha * torch.from_numpy(factor).to(fleet.alpha))


def best_rate(fleet: Fleet, model: Model, params: Params, budget: Budget, rates: Sequence[float],
              alphas: Array) -> Array:
    """The scalar rate of least validation risk after one step, relative as ``alphas``, the fleet's
    own, are: [run] each.

    The least one of ``rates``, which are geometric, moved to the vertex of the parabola through it
    and its neighbours, on a log scale.
    """
    tried = [scaled(fleet, rate / alphas) for rate in rates]
    risks = np.stack([scores(each, model, params, budget, [1], purpose="validate").means.risk[:, 0]
                      for each in tried])
    best = risks.argmin(0).clip(1, len(rates) - 2)
    low, mid, high = (risks[best + shift, np.arange(risks.shape[1])] for shift in (-1, 0, 1))
    bend = low - 2 * mid + high
    shift = np.where(bend > 0, (low - high) / (2 * np.where(bend > 0, bend, 1)), 0).clip(-1, 1)
    logs = np.log(np.asarray(rates))
    return np.asarray(np.exp(logs[best] + shift * (logs[1] - logs[0])))
