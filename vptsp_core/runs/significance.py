"""Could the difference between two methods be chance? A paired bootstrap over the queries they share.

Each query gives one difference. Queries are drawn with replacement, as many as there are, 10,000 times. The interval is
the middle 95 % of the 10,000 mean differences (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13). It shows how much the choice of queries matters. Seeds are averaged first, query by query. The ± of
`report.averaged` shows how much the seeds matter.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from vptsp_core.errors import ConfigError, DataError
from vptsp_core.runs.folder import Run

RESAMPLES, LEVEL = 10_000, 0.95
COLUMNS = ("difference", "low", "high", "chance")
_CHUNK = 2**22  # counts in memory at a time: 32 MB


def compare_paired(
    runs: Sequence[Run], labels: Sequence[str], reference: str, metrics: Sequence[str] = ("R@1", "MAP@R")
) -> pd.DataFrame:
    """Return how far each method is from the reference, in percentage points, with the 95 % interval over queries.

    Args:
        runs: of one test set.
        labels: the method of each run. Runs with the same label are seeds, and are averaged query by query.
        reference: one of the labels.
        metrics: names of per-query values (see `Run.queries`).

    Returns:
        A row per label, in order of appearance, with columns (metric, "difference" | "low" | "high" | "chance"): the
        mean of label - reference, its interval, and whether the interval contains 0. The reference itself has NaN, and
        so has a label if it or the reference has no per-query values. The same runs give the same numbers.

    Raises:
        ConfigError: the reference is not one of the labels.
        DataError: two runs were tested on different queries; the message names both.
    """
    order = list(dict.fromkeys(labels))
    if runs and reference not in order:
        raise ConfigError(f"reference {reference!r} is not one of the rows: {', '.join(map(str, order))}")
    _same_queries(runs, labels)
    columns = pd.MultiIndex.from_product([metrics, COLUMNS])
    out = pd.DataFrame(np.nan, index=pd.Index(order, name="label"), columns=columns)
    for metric in metrics:
        out[metric, "chance"] = out[metric, "chance"].astype(object)
        values = {label: _mean(runs, labels, label, metric) for label in order}
        base = values.pop(reference, None)
        others = {label: each for label, each in values.items() if each is not None}
        if base is None or not others:
            continue
        differences = 100 * (np.stack(list(others.values()), 1) - base[:, None])
        differences = differences[~np.isnan(differences).any(1)]  # NaN: the gallery has no image of the query's class
        if not len(differences):
            continue
        low, high = bootstrap(differences)
        chance = ((low <= 0) & (high >= 0)).astype(object)
        for column, values_of_column in zip(COLUMNS, (differences.mean(0), low, high, chance)):
            out.loc[list(others), (metric, column)] = values_of_column
    return out


def unclear(comparison: pd.DataFrame) -> dict[str, list[str]]:
    """Return {metric: labels whose difference could be chance} of a table from `compare_paired`."""
    return {
        metric: [label for label, chance in comparison[metric]["chance"].items() if chance is True]
        for metric in comparison.columns.unique(0)
    }


def bootstrap(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile interval of the mean of each column of ``differences`` (N, K): low and high, (K,) each.

    All columns share the resamples. A resample is stored as the number of times that each row was drawn.
    """
    rng, count = np.random.default_rng(0), len(differences)
    means, step = [], max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=size * count).reshape(size, count)
        means.append(times.astype(np.float64) @ differences / count)
    low, high = np.quantile(np.concatenate(means), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _mean(runs: Sequence[Run], labels: Sequence[str], label: str, metric: str) -> np.ndarray | None:
    """Return the mean over a label's runs, query by query, (N,) float64. None if one of them has no such values."""
    queries = [run.queries or {} for run, each in zip(runs, labels, strict=True) if each == label]
    if not all(metric in each for each in queries):
        return None
    return np.stack([each[metric] for each in queries]).mean(axis=0, dtype=np.float64)


def _same_queries(runs: Sequence[Run], labels: Sequence[str]) -> None:
    """Raise DataError if two runs were tested on different queries."""
    tested: dict[object, str] = {}
    counted: dict[int, str] = {}
    for run, label in zip(runs, labels, strict=True):
        name, data = f"{label} ({run.path})", run.record["data"]
        tested.setdefault((data["name"], data["test"], data.get("gallery")), name)
        for values in (run.queries or {}).values():
            counted.setdefault(len(values), name)
    for fault, names in (("different queries", tested), ("different numbers of queries", counted)):
        if len(names) > 1:
            one, other, *_ = names.values()
            raise DataError(f"{one} and {other} were tested on {fault}; compare runs of one test set")


against = compare_paired  # its name in earlier notebooks
