"""Products and quotients of risks, paired over seeds, beside what theory says of them."""

import numpy as np
import pandas as pd

from companion import tables

Arm = tuple[str, str]  # method, arm
Quotient = tuple[list[Arm], list[Arm]]  # arms on top, arms below


def quotients(table: pd.DataFrame, asked: Quotient, like: Quotient) -> pd.DataFrame:
    """The product of some arms' risks over that of others, for every ``mixture`` that has them all:
    geometric mean over seeds with its interval, ``value``, ``low``, ``high``. ``theory`` is the
    same of the ``predicted`` risks of the arms of ``like``."""
    rows = []
    for name, part in table.groupby("mixture", sort=False):
        risk, least = (part.pivot(index="seed", columns=["method", "arm"], values=column)
                       for column in ("risk", "predicted"))
        if all(arm in risk for side in asked for arm in side):
            logs, theory = (np.log(values[top]).sum(axis=1) - np.log(values[below]).sum(axis=1)
                            for values, (top, below) in ((risk, asked), (least, like)))
            found = tables.columns(tables.mean(logs.to_numpy()))
            rows.append({"mixture": name, "theory": np.exp(theory.mean())}
                        | {end: np.exp(number) for end, number in found.items()})
    return pd.DataFrame(rows)


def towards_theory(rows: pd.DataFrame, least: float) -> pd.DataFrame:
    """Of the quotients that theory puts further than ``least`` from 1, in logarithms, those above 1
    as they are and the inverse of those below: all are above 1 where theory is right."""
    rows = rows[np.abs(np.log(rows["theory"])) > least]
    turned = rows.assign(value=1 / rows["value"], low=1 / rows["high"], high=1 / rows["low"])
    return rows.where(rows["theory"] > 1, turned).reset_index(drop=True)
