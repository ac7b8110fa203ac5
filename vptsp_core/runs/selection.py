"""Chooses the epoch that is reported for each metric, and keeps that epoch's per-query values.

- released: each metric at its own best epoch ON THE TEST SET, as the published numbers
- last: the last epoch
- validation: the epoch with the best R@1 on held-out training classes; the test set is looked at once, for that epoch
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vptsp_core.method.metrics import Scores

HELD_OUT = "validation "  # begins the names of metrics on held-out training classes, in a run's history
NOT_METRICS = ("epoch", "loss", "lr", "lr_proxy", "seconds")
Row = dict[str, float]


def score(row: Row, selection: str) -> float:
    """What an epoch is chosen by; minus infinity where it was not evaluated."""
    return row.get(f"{HELD_OUT}R@1" if selection == "validation" else "R@1", -math.inf)


def on_held_out(found: Mapping[str, float]) -> Row:
    """Metrics of the held-out classes under the names that they have in a run's history."""
    return {HELD_OUT + name: value for name, value in found.items()}


def keep_queries(
    kept: dict[str, np.ndarray], found: Mapping[str, float], history: Sequence[Row], selection: str
) -> None:
    """Take over into ``kept``, {metric: (N,) float32}, the per-query values of the metrics that will be reported of an
    epoch, as far as is known by now: ``found`` is its evaluation, ``history`` the epochs before it.
    """
    for name, values in found.queries.items() if isinstance(found, Scores) else ():
        before = max((row[name] for row in history if name in row), default=-math.inf)
        if selection == "last" or found[name] > before:
            kept[name] = values


def reported(history: pd.DataFrame, selection: str) -> dict[str, float]:
    """The metrics that a run reports, fractions in [0, 1], and the ``epoch`` that R@1 is of."""
    evaluated = history.dropna(subset=["R@1"])
    metrics = evaluated.drop(columns=[c for c in NOT_METRICS if c in evaluated])
    place = int(evaluated["R@1"].to_numpy().argmax()) if selection == "released" else len(evaluated) - 1
    chosen = metrics.max() if selection == "released" else metrics.iloc[-1]
    return {**{str(k): float(v) for k, v in chosen.items()}, "epoch": int(evaluated["epoch"].iloc[place])}
