"""Could the difference between two methods be chance? Intervals of the difference on the queries that they share.

With one run per method: a paired bootstrap. Each query gives one difference. Queries are drawn with replacement, as
many as there are, 10,000 times. The interval is the middle 95 % of the 10,000 mean differences (Efron & Tibshirani, "An
Introduction to the Bootstrap", 1993, chapter 13). It covers the choice of queries.

With several seeds of a method: Student's t with the variances of the queries and of the seeds (`_with_seeds`). It
covers the choice of both.

Both treat queries as independent. Those of one class vary together, so the intervals of MAP@R are too narrow
(docs/statistics.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import stats

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
        so has a label if it or the reference has no values of two queries. The same runs give the same numbers.

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
        defined = ~np.isnan(np.hstack([base, *others.values()])).any(1)  # NaN: the gallery has no image of its class
        if defined.sum() < 2:  # one query has no variance, so there is no interval
            continue
        base = base[defined]
        differences = np.stack([each[defined].mean(1) - base.mean(1) for each in others.values()], 1)
        low, high = bootstrap(differences)
        for place, each in enumerate(others.values()):
            if each.shape[1] > 1 or base.shape[1] > 1:
                low[place], high[place] = _with_seeds(each[defined], base)
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


def _with_seeds(values: np.ndarray, reference: np.ndarray) -> tuple[float, float]:
    """Return the interval of the mean of ``values`` (N, S seeds) minus that of ``reference`` (N, R seeds), N queries.

    The variance is that of the differences over queries, plus that of the seeds of each side (Searle, Casella &
    McCulloch, "Variance Components", 1992, chapter 4). The seeds' means also vary because seeds err on different
    queries; that part is in the first term already, so it is subtracted. The degrees of freedom are Satterthwaite's
    (1946).
    """
    count = len(values)
    differences = values.mean(1) - reference.mean(1)
    parts, freedom = [differences.var(ddof=1) / count], [count - 1]
    for side in (values, reference):
        seeds = side.shape[1]
        if seeds > 1:
            rest = side - side.mean(1, keepdims=True) - side.mean(0) + side.mean()
            interaction = np.square(rest).sum() / ((count - 1) * (seeds - 1))
            parts.append(max(side.mean(0).var(ddof=1) - interaction / count, 0.0) / seeds)
            freedom.append(seeds - 1)
    variance = sum(parts)
    if variance == 0:
        return float(differences.mean()), float(differences.mean())
    degrees = variance**2 / sum(part**2 / of for part, of in zip(parts, freedom, strict=True))
    half = stats.t.ppf((1 + LEVEL) / 2, degrees) * variance**0.5
    return float(differences.mean() - half), float(differences.mean() + half)


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
