"""Chooses the epoch that is reported for each metric, and keeps that epoch's per-query values.

- released: each metric at its own best epoch ON THE TEST SET, as the released code does for R@1 and MAP
- last: the last epoch
- validation: the epoch with the best R@1 on held-out training classes; only that epoch is evaluated on the test set
- validation_map: the same with the best MAP@R
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from vptsp_core.method.loop import Row
from vptsp_core.method.metrics import Scores

HELD_OUT = "validation "  # prefix of the metrics on held-out training classes in a run's history
# The metric that chooses the epoch. With other selections it is R@1.
SCORES = {"validation": f"{HELD_OUT}R@1", "validation_map": f"{HELD_OUT}MAP@R"}
NOT_METRICS = ("epoch", "loss", "lr", "lr_proxy", "seconds")


def score(row: Row, selection: str) -> float:
    """Return the metric by which an epoch is chosen, or minus infinity if the epoch was not evaluated."""
    return row.get(SCORES.get(selection, "R@1"), -math.inf)


def keep_queries(
    kept: dict[str, np.ndarray], metrics: Mapping[str, float], history: Sequence[Row], selection: str
) -> None:
    """Update ``kept``, {metric: (N,) float32}, with the per-query values of each metric that is higher in
    this epoch than in all epochs before.

    With selection "last" the values of all metrics are kept.

    Args:
        metrics: this epoch's evaluation. Only `Scores` have per-query values.
        history: the epochs before it.
    """
    for name, values in metrics.queries.items() if isinstance(metrics, Scores) else ():
        before = max((row[name] for row in history if name in row), default=-math.inf)
        if selection == "last" or metrics[name] > before:
            kept[name] = values


def reported(history: pd.DataFrame, selection: str) -> dict[str, float]:
    """Return the metrics that a run reports, fractions in [0, 1], and the ``epoch`` whose R@1 it reports."""
    evaluated = history.dropna(subset=["R@1"])
    metrics = evaluated.drop(columns=[c for c in NOT_METRICS if c in evaluated])
    place = int(evaluated["R@1"].to_numpy().argmax()) if selection == "released" else len(evaluated) - 1
    chosen = metrics.max() if selection == "released" else metrics.iloc[-1]
    return {**{str(k): float(v) for k, v in chosen.items()}, "epoch": int(evaluated["epoch"].iloc[place])}
