"""Could the difference between two methods be chance? A paired bootstrap over the queries they share.

Queries are drawn with replacement, as many as there are, 10,000 times; all methods get the same ones. The interval is
the middle 95 % of the 10,000 mean differences (Efron & Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
13). If a method has S > 1 seeds, S - 1 of them are drawn with replacement each time, independently of the reference.
For fixed queries, the drawn means then vary like a mean over S seeds (Rao & Wu, "Resampling inference with complex
survey data", 1988). With two or three seeds the interval can be too narrow or too wide (docs/statistics.md). With one
seed, it covers queries only.
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
    """Return how far each method is from the reference, in percentage points, with the 95 % interval.

    Args:
        runs: of one test set.
        labels: the method of each run. Runs with the same label are its seeds.
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
        values = {label: _by_query(runs, labels, label, metric) for label in order}
        base = values.pop(reference, None)
        others = {label: each for label, each in values.items() if each is not None}
        if base is None or not others:
            continue
        compared = [base, *others.values()]
        table = np.hstack([each - base.mean(1, keepdims=True) for each in compared])  # equal methods: exactly 0
        table = table[~np.isnan(table).any(1)]  # NaN: the gallery has no image of the query's class
        if not len(table):
            continue
        ends = np.cumsum([each.shape[1] for each in compared])[:-1]
        base_means, *means = np.split(_resampled_means(table), ends, axis=1)
        base_mean = _drawn_seeds(base_means, seed=0)
        for label, drawn, values_of_label in zip(others, means, np.split(table, ends, axis=1)[1:], strict=True):
            low, high = _interval(_drawn_seeds(drawn, seed=1) - base_mean)
            out.loc[label, metric] = [values_of_label.mean(), low, high, bool(low <= 0 <= high)]
    return out


def unclear(comparison: pd.DataFrame) -> dict[str, list[str]]:
    """Return {metric: labels whose difference could be chance} of a table from `compare_paired`."""
    return {
        metric: [label for label, chance in comparison[metric]["chance"].items() if chance is True]
        for metric in comparison.columns.unique(0)
    }


def bootstrap(differences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % interval of the mean of each column of ``differences`` (N, K): low and high, (K,) each.

    All columns share the resamples.
    """
    return _interval(_resampled_means(differences))


def _interval(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return low, high


def _resampled_means(values: np.ndarray) -> np.ndarray:
    """Return the mean of each column of ``values`` (N, K) in each resample of its rows: (RESAMPLES, K).

    A resample is stored as the number of times that each row was drawn.
    """
    rng, count = np.random.default_rng(0), len(values)
    means, step = [], max(1, _CHUNK // count)
    for start in range(0, RESAMPLES, step):
        size = min(step, RESAMPLES - start)
        drawn = rng.integers(0, count, (size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(drawn.reshape(-1), minlength=size * count).reshape(size, count)
        means.append(times.astype(np.float64) @ values / count)
    return np.concatenate(means)


def _drawn_seeds(means: np.ndarray, seed: int) -> np.ndarray:
    """Return the mean over drawn seeds, (RESAMPLES,), of one method's ``means`` (RESAMPLES, S).

    Args:
        seed: of the draws. The reference has another one than the rest, so that its draws do not depend on theirs.
    """
    count = means.shape[1]
    if count == 1:
        return means[:, 0]
    drawn = np.random.default_rng(seed).integers(0, count, (len(means), count - 1))
    return np.take_along_axis(means, drawn, 1).mean(1)


def _by_query(runs: Sequence[Run], labels: Sequence[str], label: str, metric: str) -> np.ndarray | None:
    """Return a label's values in percent, a row per query and a column per run. None if a run has no such values."""
    queries = [run.queries or {} for run, each in zip(runs, labels, strict=True) if each == label]
    if not all(metric in each for each in queries):
        return None
    return 100 * np.stack([each[metric] for each in queries], 1).astype(np.float64)


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
