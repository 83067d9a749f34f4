"""What a table of two-layer fleets says: ratios of risks beside the linear theory and its ceiling,
their order, each method's own best step, and which gradients balance (paper L)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

from companion import tables
from companion.checks import Array
from companion.evaluation import Interval, bootstrap
from companion.records import Record
from companion.theory.landscape import ceiling

SETTING = ("activation", "sweep", "x")


def ratios(table: pd.DataFrame, keys: Sequence[str] = SETTING) -> pd.DataFrame:
    """The measured ratio of risks NAL / MAML of every setting, which ``keys`` tell apart; the
    predicted; and the hardness spread h, its geometric mean over seeds."""
    groups = table.assign(h=np.log(table["h"])).groupby(list(keys), sort=False)
    said = groups[["predicted_nal", "predicted_maml", "h"]].mean()
    beside = pd.DataFrame({"predicted": said["predicted_nal"] / said["predicted_maml"],
                           "h": np.exp(said["h"])})
    return tables.contrast(table, keys, "nal", "maml").join(beside, on=list(keys))


def slack(table: pd.DataFrame, keys: Sequence[str] = SETTING) -> pd.DataFrame:
    """How far the measured ratio of every setting stays below the ceiling at the measured h: the
    mean over seeds of log(ceiling / ratio)."""
    logs = table.assign(ratio=np.log(table["nal"] / table["maml"]),
                        ceiling=np.log(ceiling(table["h"].to_numpy())))
    return tables.contrast(logs, keys, "ceiling", "ratio", tables.difference)


def order(table: pd.DataFrame) -> Interval:
    """Spearman's correlation over settings of predicted and measured ratio NAL / MAML, each of
    means over seeds; its bootstrap interval over seeds."""
    risks = table.set_index(["sweep", "x", "seed"])[
        ["nal", "maml", "predicted_nal", "predicted_maml"]]

    def statistic(drawn: Array) -> Array:
        means = drawn.mean(axis=-2).reshape(*drawn.shape[:-2], 4, -1)
        ranks = [stats.rankdata(means[..., i, :] / means[..., i + 1, :], axis=-1) for i in (0, 2)]
        a, b = (rank - rank.mean(axis=-1, keepdims=True) for rank in ranks)
        return np.asarray((a * b).sum(-1) / np.sqrt((a * a).sum(-1) * (b * b).sum(-1)))

    return bootstrap(statistic, risks.unstack(["sweep", "x"]).to_numpy())  # [seed, 4 * setting]


def correlations(record: Record) -> pd.DataFrame:
    """Spearman's correlation of predicted and measured log ratio over the settings of every
    activation: within each sweep, and over all of them, a setting that sweeps share once."""
    table = record.table
    again = table["x"] == table["sweep"].map(record.provenance["config"]["base"])
    once = table[~again | (table["sweep"] == "distance")]
    parts = {("all", activation): runs for activation, runs in once.groupby("activation")}
    parts |= dict(iter(table.groupby(["sweep", "activation"], sort=False)))
    return pd.DataFrame([{"sweep": sweep, "activation": activation}
                         | tables.columns(order(runs))
                         for (sweep, activation), runs in parts.items()])


def own_steps(table: pd.DataFrame) -> pd.DataFrame:
    """The ratio of risks with each method at the inner step of the sweep that is best for it,
    chosen anew in every resample, and the two steps."""

    def ratio(drawn: Array) -> Array:
        nal, maml = np.split(drawn.mean(axis=-2), 2, axis=-1)
        return np.asarray(nal.min(axis=-1) / maml.min(axis=-1))

    found = []
    for activation, runs in tables.where(table, sweep="alpha").groupby("activation", sort=False):
        risks = runs.pivot(index="seed", columns="x", values=["nal", "maml"])
        best = risks.mean().unstack().idxmin(axis=1)
        found.append({"activation": activation, "step NAL": best["nal"], "step MAML": best["maml"]}
                     | tables.columns(bootstrap(ratio, risks.to_numpy())))
    return pd.DataFrame(found)


def balances(record: Record) -> pd.DataFrame:
    """At the base setting: the imbalance of the groups' gradients that a method does not train on,
    less that of those that it does; after the step those of MAML, before it those of NAL."""
    base = tables.where(record.table, sweep="distance",
                        x=record.provenance["config"]["base"]["distance"])
    pairs = {"nal": ("after", "before"), "maml": ("before", "after")}
    return pd.concat([tables.contrast(base, ["activation"], f"{method}_imbalance_{other}",
                                      f"{method}_imbalance_{own}", tables.difference)
                      .assign(at=method.upper()) for method, (other, own) in pairs.items()],
                     ignore_index=True)
