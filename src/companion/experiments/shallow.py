"""The experiment `shallow`: why a shallow model cannot adapt, and what depth learns instead (paper
D)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from companion import nets
from companion.checks import Array
from companion.claims import Finding
from companion.evaluation import Interval, estimate
from companion.experiments import Experiment, synthetic
from companion.experiments.synthetic import Fleet, Model, Sizes
from companion.meta_optimizers import Params
from companion.records import Record, Row
from companion.streams import torch_stream
from companion.sweeps import Point
from companion.theory import depth

STEPS = (0, 1, 2, 3, 5, 7, 10)
SETTINGS = (  # (support, dim, rho) of the learned step, fixed before any run
    (1, 1, 1.0),
    (1, 8, 1.0),
    (1, 3, 0.5),
    (5, 3, 1.0),
    (5, 8, 2.0),
    (10, 5, 1.0),
    (10, 1, 0.5),
    (20, 8, 0.5),
    (40, 5, 2.0),
)
BROKEN = {"a step of 1": {"alpha": 1.0, "scale": 0.01}, "a large b": {"alpha": 0.1, "scale": 1.0}}


@dataclass(frozen=True)
class Config:
    """Sizes. ``alphas`` are relative to the largest curvature; ``start`` is the standard deviation
    of b, and of A around a multiple of I, where the learned step is measured."""

    dim: int = 10
    support: int = 20
    least: float = 0.1
    most: float = 3.0
    alphas: Sequence[float] = (0.03, 0.1, 0.3, 1.0, 3.0)
    train_steps: Sequence[int] = (1, 5)
    seeds: int = 20
    tasks: int = 20
    steps: int = 1500
    rate: float = 0.02
    query: int = 50
    test_tasks: int = 500
    test_query: int = 200
    settings: Sequence[Sequence[float]] = SETTINGS
    supports: Sequence[int] = (5, 20, 100)
    step_tasks: int = 100
    step_steps: int = 1500
    start: float = 0.01


PROFILES = {"quick": Config(alphas=(0.1, 1.0), train_steps=(1,), seeds=6, steps=300, test_tasks=200,
                            settings=(SETTINGS[3], SETTINGS[5]), supports=(20,), step_tasks=50,
                            step_steps=500),
            "full": Config()}


def scales(config: Config, inputs: str) -> tuple[float, ...]:
    """Standard deviations of the inputs: all 1 ("isotropic"), or from ``least`` to ``most``,
    geometric ("spread")."""
    return ((1.0,) * config.dim
            if inputs == "isotropic"
            else tuple(np.geomspace(config.least, config.most, config.dim).tolist()))


def models(config: Config, train_steps: int = 1) -> dict[str, Model]:
    """The models that are compared: all compute y = w.x; the deep one as b.(A.T x), A square."""
    shallow, deep = nets.linear(config.dim), nets.deep_linear((config.dim, config.dim, 1))
    return {"shallow": Model(shallow, steps=train_steps),
            "shallow, learned rate": Model(shallow, "learned rate", steps=train_steps),
            "deep": Model(deep, steps=train_steps)}


def points(config: Config) -> list[Point]:
    """A fleet for each model and kind of task; one for each setting of the learned step; one for
    each spectrum."""
    curves = [
        {"part": "curves", "kind": kind, "inputs": inputs, "model": model, "train_steps": steps}
        for steps in config.train_steps
        for kind in ("regression", "boundaries")
        for inputs in (("isotropic", "spread") if steps == 1 else ("spread",))
        for model in models(config)
    ]
    learned = [{"part": "step", "support": m, "dim": d, "rho": rho, "how": "as told"}
               for m, d, rho in config.settings]
    broken = [{"part": "step", "support": 10, "dim": 5, "rho": 1.0, "how": how} for how in BROKEN]
    spectra = [{"part": "spectrum", "support": support} for support in config.supports]
    return [*curves, *learned, *broken, *spectra]


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """The rows of one point."""
    return {"curves": _curves, "step": _step, "spectrum": _spectrum}[point["part"]](
        config, point, device
    )


def alphas(config: Config, train_steps: int) -> list[float]:
    """The inner steps of ``curves``; several of the largest ones in a row can diverge before
    anything is learned."""
    return [alpha for alpha in config.alphas if train_steps == 1 or alpha <= 0.3]


def curves_fleet(
    config: Config, point: Point, tried: Sequence[float], device: str = "cpu"
) -> Fleet:
    """The fleet of a point of ``curves``: every inner step of ``tried``, at every seed."""
    settings = [{"scales": scales(config, point["inputs"]), "alpha": alpha} for alpha in tried]
    return synthetic.fleet(point["kind"], settings, range(config.seeds), support=config.support,
                           device=device)


def _curves(config: Config, point: Point, device: str) -> list[Row]:
    size, model = synthetic.sizes(config), models(config, point["train_steps"])[point["model"]]

    def rows_of(tried: Sequence[float]) -> list[Row]:
        of = curves_fleet(config, point, tried, device)
        params = synthetic.train(of, model, size)
        columns = {
            "valid": synthetic.scores(of, model, params, size, [model.steps], "validate").risk[:, 0]
        }
        found = synthetic.scores(of, model, params, size, STEPS)
        columns |= {f"risk_{k}": found.risk[:, j] for j, k in enumerate(STEPS)}
        if point["kind"] == "boundaries":
            columns |= {f"accuracy_{k}": found.accuracy[:, j] for j, k in enumerate(STEPS)}
        return synthetic.as_rows(point, of, tried, columns)

    lost = {**point, "valid": synthetic.CAP} | {f"risk_{k}": synthetic.CAP for k in STEPS}
    return synthetic.by_alpha(rows_of, alphas(config, point["train_steps"]), lost, config.seeds)


def near_identity(of: Fleet, width: int, level: float, std: float, b_std: float) -> Params:
    """A deep linear start, [run, ...]: A.T = level (I + std z), [width, dim], and b = b_std z."""
    found: dict[int, Params] = {}
    for seed in set(of.seeds):
        rng, dim = torch_stream(seed, "shallow/start"), of.families.root.shape[-1]
        a, b = (torch.randn(*shape, generator=rng, dtype=torch.float64)
                for shape in ((width, dim), (1, width)))
        found[seed] = {"0.weight": level * (torch.eye(width, dim, dtype=a.dtype) + std * a),
                       "1.weight": b_std * b}
    return {name: torch.stack([found[seed][name] for seed in of.seeds]).to(of.alpha.device)
            for name in ("0.weight", "1.weight")}


def preconditioners(of: Fleet, params: Params) -> Array:
    """What depth has learned: ``alpha (A A.T + |b|^2 I)`` of every run, [run, dim, dim]."""
    steps = of.alpha.cpu().numpy()
    layers = [params[name].cpu().numpy() for name in ("0.weight", "1.weight")]
    pairs = zip(*layers, strict=True)
    return np.stack([step * depth.effective_preconditioner(pair)
                     for step, pair in zip(steps, pairs, strict=True)])


def _learned(config: Config, of: Fleet, eta: float, scale: float) -> tuple[Array, Params]:
    """Train b.(A.T x) from half the best step; what it learned, and its parameters."""
    model = Model(nets.deep_linear((of.families.root.shape[-1],) * 2 + (1,)))
    size = Sizes(config.step_tasks, config.step_steps, 0.01, 0, 0, 0)
    level = math.sqrt(eta / (2 * float(of.alpha[0])))
    begin = near_identity(of, of.families.root.shape[-1], level, config.start, scale)
    params = synthetic.train(of, model, size, begin=begin)
    return preconditioners(of, params), params


def _step(config: Config, point: Point, device: str) -> list[Row]:
    m, d, rho = point["support"], int(point["dim"]), point["rho"]
    how = BROKEN.get(point["how"], {"alpha": 0.1, "scale": config.start})
    settings = [
        {"scales": (math.sqrt(rho),) * d, "alpha": how["alpha"] * rho}
    ]  # so that the step itself is alpha
    of = synthetic.fleet("regression", settings, range(config.seeds), support=m, device=device)
    eta = float(depth.optimal_step(rho, d, m))
    found, params = _learned(config, of, eta, how["scale"])
    values = np.linalg.eigvalsh(found) / eta
    lengths = params["1.weight"].norm(dim=(1, 2)).tolist()
    columns = [{"mean": own.mean(), "smallest": own.min(), "largest": own.max(), "length_b": length}
               for own, length in zip(values, lengths, strict=True)]
    return [{**point, "seed": seed} | synthetic.rounded(own)
            for seed, own in zip(of.seeds, columns, strict=True)]


def _spectrum(config: Config, point: Point, device: str) -> list[Row]:
    m, axes = point["support"], scales(config, "spread")
    settings = [{"scales": axes, "alpha": 0.1}]
    of = synthetic.fleet("regression", settings, range(config.seeds), support=m, device=device)
    variances = np.square(axes)
    best = np.diag(
        depth.best_preconditioner(np.diag(variances), np.eye(config.dim) / config.dim, m)
    )
    found, _ = _learned(config, of, float(np.exp(np.log(best).mean())), config.start)
    directions = (of.families.root / of.families.root.norm(dim=1, keepdim=True)).cpu().numpy()
    along = np.einsum("rij,rjk,rki->ri", directions.swapaxes(1, 2), found, directions)
    return [{**point, "seed": seed, "variance": float(variances[i])}
            | synthetic.rounded({"learned": along[run, i], "best": best[i]})
            for run, seed in enumerate(of.seeds)
            for i in range(config.dim)]


def at_own_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of ``curves`` at the inner step that is best on validation tasks, of every model in
    every setting."""
    return synthetic.at_best(table[table["part"] == "curves"],
                             ["kind", "inputs", "model", "train_steps"])


def compare(
    best: pd.DataFrame, kind: str, inputs: str, steps: int, model: str, other: str
) -> Interval:
    """Mean risk of one model over that of another, each at its own best step, after the steps it
    was trained for."""
    rows = best[
        (best["kind"] == kind) & (best["inputs"] == inputs) & (best["train_steps"] == steps)
    ]
    runs = [rows[rows["model"] == name].sort_values("seed")[f"risk_{steps}"].to_numpy()
            for name in (model, other)]
    return synthetic.risk_ratio(*runs)


def settle_d1(record: Record) -> Finding:
    """D1: with spread inputs the shallow model with a learned rate has the larger risk, in every
    setting tried."""
    best, parts, found = at_own_best(record.table), {}, []
    for steps in record.provenance["config"]["train_steps"]:
        for kind in ("regression", "boundaries"):
            ratio = compare(best, kind, "spread", steps, "shallow, learned rate", "deep")
            found.append(ratio)
            parts[f"{kind}, {steps} step{'s' * (steps > 1)}"] = (
                "holds" if ratio.low > 1 else "fails"
            )
    least = min(found, key=lambda ratio: ratio.low)
    return Finding(parts, least.value, (least.low, least.high), "risk of shallow / deep, least")


def learned_steps(table: pd.DataFrame) -> pd.DataFrame:
    """Every setting of the learned step: the mean eigenvalue over eta* with its interval over
    seeds, and extremes."""
    rows = []
    steps = table[table["part"] == "step"]
    for key, runs in steps.groupby(["support", "dim", "rho", "how"], sort=False):
        found = estimate(runs["mean"].to_numpy())
        low, high = found.interval()
        rows.append(
            dict(zip(("support", "dim", "rho", "how"), key, strict=True))
            | {"mean": found.value, "low": low, "high": high, "smallest": runs["smallest"].min(),
               "largest": runs["largest"].max(), "length_b": runs["length_b"].mean(),
               "seeds": len(runs)}
        )
    return pd.DataFrame(rows)


def spectra(table: pd.DataFrame) -> pd.DataFrame:
    """Of every support and input variance: the learned preconditioner along that axis, its
    interval, and P*."""
    rows: list[dict[str, Any]] = []
    of = table[table["part"] == "spectrum"]
    for (support, variance), runs in of.groupby(["support", "variance"], sort=False):
        found = synthetic.mean_interval(runs["learned"].to_numpy())
        rows.append(
            {"support": support, "variance": variance, "learned": found.value, "low": found.low,
             "high": found.high, "best": runs["best"].iloc[0]}
        )
    return pd.DataFrame(rows)


EXPERIMENT = Experiment(
    "shallow",
    "shallow and deep linear models on regression and boundaries; the step that depth learns",
    PROFILES, points, compute, ("cuda", "cpu"),
)
