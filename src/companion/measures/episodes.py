"""What tables of trained episode networks say: arms against each other, packed against spread hard
tasks, the share of hard ones, and a record against the same points run again."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from companion import tables
from companion.checks import Array

ARM = ["source", "blocks", "method", "model"]
PACKING = ["source", "arm", "k"]
ENVIRONMENTS = ("packed", "spread")


def at_best(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of every model at the training rate of highest mean accuracy on validation classes,
    after the steps trained for."""
    return tables.best(tables.where(table, k=table["k"].iloc[0]), ARM, most=True)


def over(table: pd.DataFrame, against: Mapping[str, object], **arm: object) -> pd.DataFrame:
    """The accuracy of the arms that ``arm`` names minus that of the same with the entries of
    ``against`` in place of their own, each at its best, after the steps trained for."""
    rows = tables.contrast(at_best(table), ARM, "accuracy", against, tables.difference)
    return tables.where(rows, **arm)


def gains(table: pd.DataFrame, arm: str, fraction: float, source: str, k: int, environment: str,
          episodes: str = "hard") -> Array:
    """Accuracy of an arm minus that of NAL-global on episodes of an environment, by seed."""
    own, nal = (tables.by_seed(table, "accuracy", arm=name, fraction=fraction, source=source, k=k,
                               environment=environment, episodes=episodes)
                for name in (arm, "NAL-global"))
    return own - nal


def differences(table: pd.DataFrame, base: float, episodes: str = "hard") -> pd.DataFrame:
    """The :func:`gains` packed minus spread, of every source, arm that adapts, and k."""
    rows = tables.where(table[table["arm"].str.startswith("MAML")], fraction=base)
    return pd.DataFrame([
        dict(zip(PACKING, (source, arm, k), strict=True)) | tables.columns(tables.difference(
            *(gains(table, arm, base, source, k, environment, episodes)
              for environment in ENVIRONMENTS)))
        for source, arm, k in rows.groupby(PACKING, sort=False).groups])


def slopes(table: pd.DataFrame, arm: str = "MAML") -> pd.DataFrame:
    """The least-squares slope of accuracy on hard episodes against the fraction, over seeds."""
    keys, rows = ["source", "environment", "k"], []
    for key, some in tables.where(table, arm=arm, episodes="hard").groupby(keys, sort=False):
        rows.append(dict(zip(keys, key, strict=True))
                    | tables.columns(tables.slope(some, "fraction", "accuracy")))
    return pd.DataFrame(rows)


def scatter(table: pd.DataFrame, again: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """For every group of ``keys`` that was run twice: how far the accuracy of a seed is from that
    of the same seed ``again``, as a root mean square, beside the deviation over the seeds."""
    both = table.merge(again, on=[*keys, "seed"], suffixes=("", "_again"), validate="1:1")
    off = (both["accuracy"] - both["accuracy_again"]) ** 2
    groups = both.assign(off=off).groupby(list(keys), sort=False)
    return pd.DataFrame({"seeds": groups.size(), "accuracy": groups["accuracy"].mean(),
                         "again": groups["accuracy_again"].mean(),
                         "apart": np.sqrt(groups["off"].mean()),
                         "over_seeds": groups["accuracy"].std(ddof=1)}).reset_index()
