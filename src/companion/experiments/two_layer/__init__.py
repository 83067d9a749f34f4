"""The experiment `two_layer`: do the insights of linear regression carry over to two-layer
networks? (paper L)"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from companion.checks import Array
from companion.claims import Finding, all_or_some
from companion.evaluation import Interval, bootstrap
from companion.experiments import Experiment
from companion.experiments.two_layer import local, measure
from companion.records import Record, Row
from companion.sweeps import Point

ACTIVATIONS = ("erf", "relu", "softplus")


@dataclass(frozen=True)
class Config:
    """The sweeps and their sizes.

    Every sweep varies one entry of ``base``, but two: "support" is the number of samples to adapt
    on, elsewhere the full batch (or ``softplus_support``, for softplus has no closed form);
    "hidden" varies the hidden units at equal input variances, the angle between the centres' rows
    fixed.
    """

    dim: int = 10
    hidden: int = 3
    base: Mapping[str, float] = field(
        default_factory=lambda: {"rho_easy": 1.0, "rho_hard": 0.1, "distance": 2.0, "var_easy": 0.1,
                                 "var_hard": 0.01, "alpha": 0.9}
    )
    sweeps: Mapping[str, Sequence[float]] = field(
        default_factory=lambda: {"distance": (0.0, 0.5, 1.0, 1.5, 2.0, 2.4),
                                 "var_hard": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0),
                                 "rho_hard": (0.05, 0.1, 0.2, 0.4, 0.7, 1.0),
                                 "alpha": (0.1, 0.3, 0.6, 0.9, 1.2, 1.6),
                                 "support": (20, 40, 80, 160, 400), "hidden": (1, 2, 3, 5)}
    )
    softplus_support: int = 200
    seeds: int = 20
    tasks: int = 20
    steps: int = 1500
    rate: float = 0.05
    query: int = 50
    test_tasks: int = 500
    test_query: int = 400


PROFILES = {
    "quick": Config(
        sweeps={"distance": (0.0, 1.0, 2.0), "var_hard": (0.01, 1.0), "rho_hard": (0.1, 0.2, 1.0)},
        seeds=5, steps=400, test_tasks=150, test_query=100,
    ),
    "full": Config(),
}


def points(config: Config) -> list[Point]:
    """A fleet for every activation and sweep. Support sizes and numbers of hidden units are fleets
    of their own."""
    found: list[Point] = []
    for activation in ACTIVATIONS:
        usual = {"hidden": config.hidden,
                 "support": config.softplus_support if activation == "softplus" else None}
        for sweep, values in config.sweeps.items():
            alone = sweep in usual
            for xs in [[x] for x in values] if alone else [list(values)]:
                shape = usual | ({sweep: xs[0]} if alone else {})
                found.append({"activation": activation, "sweep": sweep, "x": xs, **shape})
    return found


def setting(config: Config, sweep: str, x: float) -> dict[str, float]:
    """The family and inner step of one value of a sweep."""
    base = dict(config.base)
    if sweep == "hidden":
        return base | {"rho_hard": base["rho_easy"],
                       "distance": base["distance"] * math.sqrt(x / config.hidden)}
    return base | ({} if sweep == "support" else {sweep: x})


def fleet(config: Config, point: Point, device: str = "cpu") -> measure.Fleet:
    """The fleet of a point: every value of its sweep, at every seed."""
    settings = [setting(config, point["sweep"], x) for x in point["x"]]
    return measure.fleet(point["activation"], settings, range(config.seeds), dim=config.dim,
                         hidden=point["hidden"], support=point["support"], device=device)


def compute(config: Config, point: Point, device: str) -> list[Row]:
    """One row for every value and seed: risks by method and group, gradient norms, and the linear
    theory's risks."""
    of = fleet(config, point, device)
    sizes = measure.Sizes(config.tasks, config.steps, config.rate, config.query, config.test_tasks)
    columns: dict[str, Any] = {}
    for method in measure.METHODS:
        params = measure.train(of, method, sizes)
        found = measure.scores(of, params, sizes._replace(query=config.test_query))
        columns[method] = found.after.mean(1)
        for name in ("before", "after", "gradient"):
            means = measure.group_means(getattr(found, name), found.group)
            columns |= {f"{method}_{group}_{name}": mean
                        for group, mean in zip(("easy", "hard"), means, strict=True)}
    predictions = [
        local.predict(point["activation"], measure.run(of, i), float(of.alpha[i]), point["support"],
                      seed)
        for i, seed in enumerate(of.seeds)
    ]
    columns |= {f"predicted_{method}": [getattr(p, f"risk_{method}") for p in predictions]
                for method in measure.METHODS}
    columns |= {"alpha": of.alpha, "distance": [p.distance for p in predictions]}
    xs = [x for x in point["x"] for _ in range(config.seeds)]
    told = {"activation": point["activation"], "sweep": point["sweep"]}
    return [{**told, "x": x, "seed": seed}
            | {name: float(f"{float(values[i]):.6g}") for name, values in columns.items()}
            for i, (x, seed) in enumerate(zip(xs, of.seeds, strict=True))]


def _ratio(means: Array) -> Array:
    """Risk of NAL over that of MAML from [..., seed, 2] risks: the ratio of their means over
    seeds."""
    risks = means.mean(axis=-2)
    return np.asarray(risks[..., 0] / risks[..., 1])


def ratios(table: pd.DataFrame) -> pd.DataFrame:
    """The measured ratio NAL / MAML of every value of every sweep, with its interval over seeds,
    and the predicted."""
    rows = []
    for (activation, sweep, x), runs in table.groupby(["activation", "sweep", "x"], sort=False):
        found = bootstrap(_ratio, runs[["nal", "maml"]].to_numpy())
        predicted = float(_ratio(runs[["predicted_nal", "predicted_maml"]].to_numpy()))
        rows.append(
            {"activation": activation, "sweep": sweep, "x": x, "ratio": found.value,
             "low": found.low, "high": found.high, "predicted": predicted, "seeds": len(runs)}
        )
    return pd.DataFrame(rows)


def landscape_rows(table: pd.DataFrame, base: Mapping[str, float]) -> pd.DataFrame:
    """The rows that the correlation is taken over: all sweeps but "hidden", the base setting
    once."""
    again = table["x"] == table["sweep"].map(dict(base)).astype(float)
    return table[(table["sweep"] != "hidden") & ~(again & (table["sweep"] != "distance"))]


def correlation(table: pd.DataFrame, base: Mapping[str, float]) -> Interval:
    """Spearman's correlation of predicted and measured log ratio over the settings of one
    activation."""
    rows = landscape_rows(table, base)
    columns = rows.set_index(["sweep", "x", "seed"])[
        ["nal", "maml", "predicted_nal", "predicted_maml"]
    ]
    by_seed = columns.unstack(["sweep", "x"]).to_numpy()  # [seed, 4 * setting]

    def statistic(samples: Array) -> Array:
        risks = samples.mean(axis=-2).reshape(*samples.shape[:-2], 4, -1)
        ranks = [stats.rankdata(risks[..., i, :] / risks[..., i + 1, :], axis=-1) for i in (0, 2)]
        a, b = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))

    return bootstrap(statistic, by_seed)


def equal_hardness(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`ratios` with equal input variances, which L4 (i) speaks of."""
    return found[(found["sweep"] == "rho_hard") & (found["x"] == 1)]


def packed_and_far(found: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`ratios` with packed, far hard optima and rho_E / rho_H >= 5, which L4 (ii)
    speaks of."""
    return found[(found["sweep"] == "rho_hard") & (found["x"] <= 0.2)]


def settle_l4(record: Record) -> Finding:
    """L4: (i) ratio 1 at equal hardness, (ii) above 1.1 for packed, far, hard, (iii) the order of
    the prediction.

    Each part is asked of every activation; it holds if all agree. The value is the least ratio of
    (ii).
    """
    found = ratios(record.table)
    equal, apart = equal_hardness(found), packed_and_far(found)
    base = record.provenance["config"]["base"]
    order = [correlation(runs, base).low >= 0.8
             for _, runs in record.table.groupby("activation", sort=False)]
    parts = {"(i) equal hardness": all_or_some((equal["low"] >= 0.98) & (equal["high"] <= 1.02)),
             "(ii) packed and far": all_or_some(apart["low"] > 1.1),
             "(iii) order as predicted": all_or_some(order)}
    least = apart.loc[apart["low"].idxmin()]
    what = f"risk NAL / MAML at rho_E/rho_H >= 5, least ({least['activation']})"
    return Finding(parts, float(least["ratio"]), (float(least["low"]), float(least["high"])), what)


def live(profile: str, activation: str, sweep: str) -> pd.DataFrame:
    """The rows of one fleet, computed now in this process."""
    config = EXPERIMENT.config(profile)
    chosen = [point
              for point in points(config)
              if (point["activation"], point["sweep"]) == (activation, sweep)]
    return pd.DataFrame([row for point in chosen for row in compute(config, point, "cpu")])


EXPERIMENT = Experiment(
    "two_layer",
    "risks of NAL and MAML with two-layer networks, beside what the linear theory predicts",
    PROFILES, points, compute, ("cuda", "cpu"),
)
