"""The experiment `meta_optimizers`: rules that transform gradients, on shallow and deep models, and
what upper layers do to the gradients of the layers below them (paper D)."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.func import grad, vjp, vmap

from companion import nets
from companion.checks import Array
from companion.claims import Finding, all_or_some
from companion.errors import Diverged
from companion.evaluation import interval_columns
from companion.experiments import Experiment, shallow, synthetic
from companion.experiments.synthetic import Fleet, Model
from companion.meta_optimizers import RULES, Params
from companion.objectives import counted
from companion.records import Record, Row
from companion.sweeps import Point
from companion.tasks.readouts import Shallow
from companion.theory import depth

KINDS = ("regression", "boundaries", "mlp")
MODELS = ("shallow", "deep")
OWN = tuple(name for name in RULES if name != "SGD")  # rules with parameters of their own
BOTTOM, UPPER = (
    (0, 1), (2, 3),
)  # hidden layers of the network whose gradients are compared; the fifth is the head
NUMBERS = ("parameters", "own_parameters")  # of the model, and of its rule
_ROUNDS = 60  # of the alternating fit


@dataclass(frozen=True)
class Config:
    """Sizes. ``alphas`` are inner rates to start from, relative to the largest curvature: the first
    one at which no run diverges in training is taken. ``rule_alpha`` is the step of a rule that
    adapts within the task, ``noise`` that of regression; ``looks`` are the outer steps at which
    gradients are compared, on ``pairs`` tasks to fit and to test.
    """

    dim: int = 10
    outputs: int = 3
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    correlation: float = 0.5
    noise: float = 0.5
    hidden: int = 20
    width: int = 10
    alphas: Sequence[float] = (1.0, 0.5, 0.2)
    rule_alpha: float = 0.01
    kinds: Sequence[str] = KINDS
    seeds: int = 20
    tasks: int = 20
    steps: int = 600
    rate: float = 0.04
    query: int = 50
    test_tasks: int = 300
    test_query: int = 50
    looks: Sequence[int] = (0, 50, 200, 600)
    pairs: int = 300


PROFILES = {
    "quick": Config(kinds=("regression",), seeds=5, steps=200, test_tasks=200, looks=(0, 200),
                    pairs=150),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every kind of task, model and rule: after 1 step and 3, the rule adapting or not;
    and alignments."""
    found: list[Point] = []
    for kind in config.kinds:
        for steps in (1, 3) if kind == "regression" else (3,):
            told: dict[str, Any] = {"part": "rules", "kind": kind, "steps": steps,
                                    "adapting": False, "turned": True}
            found += [told | {"model": model, "rule": rule} for model in MODELS for rule in RULES]
        found += [told | {"model": "shallow", "rule": rule, "adapting": True} for rule in OWN]
    aligned = {
        "part": "rules", "kind": "regression", "steps": 1, "adapting": False, "turned": False,
    }
    found += [
        aligned | {"model": "shallow", "rule": rule} for rule in ("learned rate", "Meta-SGD", "KFO")
    ]
    return [*found,
            *({"part": "alignment", "activation": name} for name in ("relu", "tanh", "identity"))]


def fleet(config: Config, kind: str, *, alpha: float | None = None, turned: bool = True,
          device: str = "cpu") -> Fleet:
    """A run at every seed, at an inner rate; by default the first of the config."""
    setting = {"scales": shallow.scales(
                   shallow.Config(dim=config.dim, least=config.least, most=config.most), "spread"
               ),
               "alpha": alpha or config.alphas[0],
               "outputs": config.outputs,
               "correlation": config.correlation,
               "turned": turned,
               "noise": config.noise if kind == "regression" else 0.0,
               "hidden": config.hidden if kind == "mlp" else 0}
    kind = "boundaries" if kind == "boundaries" else "regression"
    return synthetic.fleet(kind, [setting], range(config.seeds), support=config.support,
                           device=device)


def model(config: Config, point: Point) -> Model:
    """The network of a point and its rule. The deep model has one linear layer more."""
    mlp = point["kind"] == "mlp"
    added = [config.width * (2 if mlp else 1)] if point["model"] == "deep" else []
    body = (config.dim, config.hidden) if mlp else (config.dim,)
    net = nets.mlp((*body, *added, config.outputs), "tanh", bias=mlp, linear_layers=len(added))
    return Model(net, point["rule"], point["steps"],
                 config.rule_alpha if point["adapting"] else None)


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """The rows of one point."""
    return {"rules": _rules, "alignment": _alignment}[point["part"]](config, point, device)


def _rules(config: Config, point: Point, device: str) -> list[Row]:
    own, kind, turned = model(config, point), point["kind"], point["turned"]
    numbers = counted(synthetic.start(fleet(config, kind), own))

    def rows_at(alpha: float) -> list[Row]:
        of = fleet(config, kind, alpha=alpha, turned=turned, device=device)
        params = synthetic.train(of, own, synthetic.sizes(config))
        found = synthetic.scores(of, own, params, synthetic.sizes(config), (0, own.steps))
        columns = {"before": found.risk[:, 0], "after": found.risk[:, 1]}
        if kind == "boundaries":
            columns["accuracy"] = found.accuracy[:, 1]
        return synthetic.as_rows({**point, **numbers}, of, [alpha], columns)

    for alpha in config.alphas:
        with suppress(Diverged):
            return rows_at(alpha)
    lost = {**point, **numbers, "alpha": 0.0, "before": synthetic.CAP, "after": synthetic.CAP}
    return [{**lost, "seed": seed} for seed in range(config.seeds)]


def theory(config: Config) -> dict[str, float]:
    """The least risks after one step on regression: with one rate, one Kronecker product, a full
    preconditioner."""
    one = fleet(config, "regression", turned=False).families
    s, c = (part.numpy()
            for part in (one.covariance[0], Shallow(*(leaf[0] for leaf in one)).task_covariance))
    of = (s, c, float(config.support), config.noise)
    left, right = depth.best_kronecker(*of)
    return {"one rate": depth.shallow_risk(s, c, depth.best_shallow_step(*of), *of[2:]),
            "one Kronecker product": depth.preconditioned_risk(np.kron(left, right.T), *of),
            "any preconditioner": depth.preconditioned_risk(depth.best_preconditioner(*of), *of)}


def alignment_net(config: Config, activation: str) -> nets.Net:
    """Five layers without biases, the hidden ones as wide as the inputs, so that all bottom layers
    have one shape."""
    return nets.mlp((*[config.dim] * 5, config.outputs), activation, bias=False)


def bottom_gradients(
    of: Fleet, config: Config, activation: str, params: Params, purpose: str
) -> tuple[dict[int, Array], dict[int, Array]]:
    """Gradients of the bottom layers on drawn supports, layer -> [run, task, dim, dim]: with and
    without upper layers.

    First those of the whole network. Then those that the smaller network, the bottom layers with
    the head upon them, gets for the same errors at the outputs.
    """
    whole = alignment_net(config, activation)
    small = nets.mlp((*[config.dim] * 3, config.outputs), activation, bias=False)
    loss, head = of.loss(whole.apply), f"{len(BOTTOM) + len(UPPER)}.weight"

    def both(params: Params, normal: dict[str, torch.Tensor], family: Any) -> tuple[Params, Params]:
        x, y = of.task(normal, family).support
        full = grad(loss)(params, (x, y))
        errors = (whole.apply(params, x) - y) / len(y)
        bottom = {f"{i}.weight": params[f"{i}.weight"] for i in BOTTOM}
        back = vjp(
            lambda own: small.apply(own | {f"{len(BOTTOM)}.weight": params[head]}, x), bottom
        )[1]
        return {name: full[name] for name in bottom}, back(errors)[0]

    normal = of.normals(purpose, config.pairs, 0)(0)
    found = vmap(vmap(both, in_dims=(None, 0, None)))(params, normal, of.families)
    first, second = ({i: side[f"{i}.weight"].cpu().numpy() for i in BOTTOM} for side in found)
    return first, second


def fit_kronecker(inputs: Array, targets: Array) -> tuple[Array, Array]:
    """The factors (left, right) of least sum over tasks of ``|left G right - target|^2``: [task, n,
    m] each.

    An external optimizer, fitted by least squares for one factor after the other. Gradients share
    their scale.
    """
    left = np.eye(inputs.shape[1])
    right = np.eye(inputs.shape[2])
    for _ in range(_ROUNDS):
        moved = left @ inputs
        right = np.linalg.pinv(np.einsum("tai,taj->ij", moved, moved)) @ np.einsum(
            "tai,taj->ij", moved, targets
        )
        moved = inputs @ right
        left = np.einsum("tai,tbi->ab", targets, moved) @ np.linalg.pinv(
            np.einsum("tai,tbi->ab", moved, moved)
        )
    return left, right


def cosine(a: Array, b: Array) -> float:
    """The mean over tasks of the cosine between two gradients, [task, n, m]."""
    sizes = np.sqrt(np.square(a).sum((1, 2)) * np.square(b).sum((1, 2)))
    return float((np.einsum("tij,tij->t", a, b) / np.where(sizes > 0, sizes, 1)).mean())


def _alignment(config: Config, point: Point, device: str) -> list[Row]:
    of = fleet(config, "mlp", device=device)
    own = Model(alignment_net(config, point["activation"]))
    kept: dict[int, Params] = {}

    def watch(step: int, params: Params, values: torch.Tensor) -> None:
        if step in config.looks:
            kept[step] = {name: value.double() for name, value in params.items()}

    final = synthetic.train(of, own, synthetic.sizes(config), watch=watch)
    kept |= {look: final for look in config.looks if look == config.steps}
    return [row
            for look, params in sorted(kept.items())
            for row in _aligned(of, config, point, look, params)]


def _aligned(of: Fleet, config: Config, point: Point, look: int, params: Params) -> list[Row]:
    fit, test = (bottom_gradients(of, config, point["activation"], params, f"align/{side}")
                 for side in ("fit", "test"))
    rows = []
    for run, seed in enumerate(of.seeds):
        rules = {layer: fit_kronecker(fit[1][layer][run], fit[0][layer][run]) for layer in BOTTOM}
        for layer in BOTTOM:
            target, small = test[0][layer][run], test[1][layer][run]
            (left, right), (other_left, other_right) = (rules[layer],
                                                        rules[BOTTOM[1 - BOTTOM.index(layer)]])
            columns = {"aligned": cosine(left @ small @ right, target),
                       "raw": cosine(small, target),
                       "shuffled": cosine(other_left @ small @ other_right, target)}
            rows.append(
                {**point, "look": look, "layer": layer, "seed": seed} | synthetic.rounded(columns)
            )
    return rows


def rule_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every fleet of ``rules``: mean risk after its steps, and that of the shallow model with one
    learned rate over it.

    Where a run diverged at every inner rate the risk is CAP.
    """
    rules, rows = table[table["part"] == "rules"], []
    keys = ["kind", "steps", "adapting", "turned", "model", "rule"]
    by: dict[tuple[Any, ...], pd.DataFrame] = dict(iter(rules.groupby(keys, sort=False)))
    for key, runs in by.items():
        plain = by[(*key[:2], False, key[3], "shallow", "learned rate")]
        gain = synthetic.risk_ratio(
            *(np.asarray(side.sort_values("seed")["after"]) for side in (plain, runs))
        )
        told = dict(zip(keys, key, strict=True)) | {
            name: int(runs[name].iloc[0]) for name in NUMBERS
        }
        told["alpha"] = runs["alpha"].iloc[0]
        rows.append(told | {"after": runs["after"].mean()} | interval_columns({"gain": gain}))
    return pd.DataFrame(rows)


def settle_d3(record: Record) -> Finding:
    """D3: the shallow model with KFO has a smaller risk than with one learned rate, in every
    setting."""
    found = rule_table(record.table)
    kfo = found[(found["rule"] == "KFO")
                & (found["model"] == "shallow")
                & ~found["adapting"]
                & found["turned"]]
    least = kfo.loc[kfo["gain_low"].idxmin()]
    parts = {"synthetic": all_or_some(kfo["gain_low"] > 1)}
    what = f"risk of one learned rate / KFO, least ({least['kind']}, {least['steps']:.0f} steps)"
    return Finding(parts, float(least["gain"]),
                   (float(least["gain_low"]), float(least["gain_high"])), what)


def alignments(table: pd.DataFrame) -> pd.DataFrame:
    """Every network, look and layer: the three cosines, and how far the fitted rule is above the
    shuffled one."""
    rows = []
    keys = ["activation", "look", "layer"]
    for key, runs in table[table["part"] == "alignment"].groupby(keys, sort=False):
        columns = {name: synthetic.mean_interval(runs[name].to_numpy())
                   for name in ("aligned", "raw", "shuffled")}
        columns["above"] = synthetic.mean_interval((runs["aligned"] - runs["shuffled"]).to_numpy())
        rows.append(dict(zip(keys, key, strict=True)) | interval_columns(columns))
    return pd.DataFrame(rows)


def settle_d4(record: Record) -> Finding:
    """D4: (i) the identity for linear layers, proved again; (ii) nonlinear nets above the control,
    at every look."""
    proved = all(
        part.is_zero_matrix
        for part in (*depth.update_residuals((2, 3, 2)), *depth.update_residuals((2,) * 4))
    )
    found = alignments(record.table)
    nonlinear = found[found["activation"] != "identity"]
    parts = {"(i) linear upper layers": "derived" if proved else "fails",
             "(ii) nonlinear above shuffled": all_or_some(nonlinear["above_low"] > 0)}
    least = nonlinear.loc[nonlinear["above_low"].idxmin()]
    what = (
        f"cosine above the shuffled rule's, least ({least['activation']}, step {least['look']:.0f})"
    )
    return Finding(parts, float(least["above"]),
                   (float(least["above_low"]), float(least["above_high"])), what)


EXPERIMENT = Experiment(
    "meta_optimizers",
    "meta-optimizers on shallow and deep models; upper layers as an external optimizer", PROFILES,
    points, compute, ("cuda", "cpu"),
)
