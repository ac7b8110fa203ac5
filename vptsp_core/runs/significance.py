"""Could the difference between two methods be chance? Intervals of the difference on the queries that they share.

Each query gives one difference. Queries of one class share their right neighbours, so they vary together. Therefore
classes, not queries, are what was drawn by chance, and the interval is Student's t with the variance over classes
(Miller, "Adding Error Bars to Evals", 2024). If a method has several seeds, the variance of its seeds is added. So the
interval covers other classes, and other seeds of each method that has several.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from vptsp_core.errors import ConfigError, DataError
from vptsp_core.runs.folder import CLASS, Run

LEVEL = 0.95
COLUMNS = ("difference", "low", "high", "p", "chance")


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
        A row per label, in order of appearance, with columns (metric, one of `COLUMNS`): the mean of label - reference,
        its interval from "low" to "high", its p-value (`estimate`), and whether the interval contains 0. The reference
        itself has NaN, and so has a label if it or the reference has no values, or if all queries are of one class.

    Raises:
        ConfigError: the reference is not one of the labels.
        DataError: two runs were tested on different queries; the message names both.
    """
    order = list(dict.fromkeys(labels))
    if runs and reference not in order:
        raise ConfigError(f"reference {reference!r} is not one of the rows: {', '.join(map(str, order))}")
    classes = _classes(runs, labels)
    columns = pd.MultiIndex.from_product([metrics, COLUMNS])
    out = pd.DataFrame(np.nan, index=pd.Index(order, name="label"), columns=columns)
    for metric in metrics:
        out[metric, "chance"] = out[metric, "chance"].astype(object)
        values = {label: _by_query(runs, labels, label, metric) for label in order}
        base = values.pop(reference, None)
        others = {label: each for label, each in values.items() if each is not None}
        if base is None:
            continue
        defined = ~np.isnan(np.hstack([base, *others.values()])).any(1)  # NaN: the gallery has no image of its class
        for label, each in others.items():
            found = estimate(each[defined], base[defined], classes[defined])
            low, high = found.interval()
            if not np.isnan(low):
                out.loc[label, metric] = [found.difference, low, high, found.p_value(), low <= 0 <= high]
    return out


def unclear(comparison: pd.DataFrame) -> dict[str, list[str]]:
    """Return {metric: labels whose difference could be chance} of a table from `compare_paired`."""
    return {
        metric: [label for label, chance in comparison[metric]["chance"].items() if chance is True]
        for metric in comparison.columns.unique(0)
    }


class Estimate(NamedTuple):
    """A difference of two means, its standard error, and the degrees of freedom of Student's t."""

    difference: float
    error: float
    degrees: float

    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of the difference."""
        half = float(stats.t.ppf((1 + LEVEL) / 2, self.degrees)) * self.error
        return self.difference - half, self.difference + half

    def p_value(self) -> float:
        """Return the probability of a difference at least as far from 0 if the true one is 0 (two-sided)."""
        if self.error == 0:
            return float(self.difference == 0)
        return float(2 * stats.t.sf(abs(self.difference) / self.error, self.degrees))


def estimate(values: np.ndarray, reference: np.ndarray, classes: np.ndarray) -> Estimate:
    """Return the mean of ``values`` minus that of ``reference``, on the same N queries, and how certain it is.

    The variance is that of the differences over classes, plus that of the seeds of each side (Searle, Casella &
    McCulloch, "Variance Components", 1992, chapter 4). The seeds' means also vary because seeds err on different
    queries; that part is in the first term already, so it is subtracted. The degrees of freedom are Satterthwaite's
    (1946). With one seed per side and classes of equal size, this is the t-test of the classes' means, unless the
    variance over queries is larger (see the comment below).

    Args:
        values, reference: (N, seeds of this side) float64, without NaN.
        classes: (N,), the class of each query. With fewer than two classes, all is NaN.
    """
    names, places = np.unique(classes, return_inverse=True)
    if len(names) < 2:
        return Estimate(np.nan, np.nan, np.nan)
    differences = (values.mean(1) - reference.mean(1))[:, None]
    mean = float(differences.mean())
    over_classes, degrees = _variance_of_mean(differences - mean, places)
    # Queries of one class vary at least as much together as independent ones do. A smaller estimate is an accident of
    # few classes, so the larger of the two variances is used.
    over_queries = _variance_of_mean(differences - mean, np.arange(len(places)))[0]
    parts, freedom = [max(over_classes, over_queries)], [degrees]
    for side in (values, reference):
        seeds = side.shape[1]
        if seeds > 1:
            rest = side - side.mean(1, keepdims=True) - side.mean(0) + side.mean()
            interaction = _variance_of_mean(rest, places)[0] / (seeds - 1)
            parts.append(max(float(side.mean(0).var(ddof=1)) - interaction, 0.0) / seeds)
            freedom.append(seeds - 1)
    variance = sum(parts)
    if variance == 0:
        return Estimate(mean, 0.0, np.inf)
    degrees = variance**2 / sum(part**2 / of for part, of in zip(parts, freedom, strict=True))
    return Estimate(mean, variance**0.5, degrees)


def _variance_of_mean(centred: np.ndarray, places: np.ndarray) -> tuple[float, float]:
    """Return the variance of the mean over queries of ``centred`` (N, K), summed over K, and its degrees of freedom.

    The queries of a class are added up first, because only classes are independent of each other. ``places`` (N,) are
    the classes, from 0 to C - 1. Variance and degrees of freedom are those of Bell & McCaffrey (2002) for a regression
    on a constant; without them, the interval would be too narrow if few large classes have most of the queries.
    """
    share = np.bincount(places) / len(places)  # w of each class
    sums = np.zeros((len(share), centred.shape[1]))
    np.add.at(sums, places, centred)
    variance = float((np.square(sums).sum(1) / (1 - share)).sum() / len(places) ** 2)
    # The variance is a quadratic form A of the C class means: A = diag(a) - a w' - w a' + sum(a) w w'. If queries vary
    # equally, the means have the variances 1 / w, up to a factor, so the degrees of freedom are
    # trace(A / w)^2 / trace((A / w)^2). These sums give both traces without the (C, C) matrix.
    a = share**2 / (1 - share)
    total, aa = a.sum(), (a**2 / share).sum()
    trace = (a / share - 2 * a + total * share).sum()
    of_square = ((a / share) ** 2 - 4 * a**2 / share + 2 * total * a).sum() + 2 * aa - total**2
    return variance, float(trace**2 / of_square)


def _by_query(runs: Sequence[Run], labels: Sequence[str], label: str, metric: str) -> np.ndarray | None:
    """Return a label's values in percent, a row per query and a column per run. None if a run has no such values."""
    queries = [run.queries for run, each in zip(runs, labels, strict=True) if each == label]
    if not all(metric in each for each in queries):
        return None
    return 100 * np.stack([each[metric] for each in queries], 1).astype(np.float64)


def _classes(runs: Sequence[Run], labels: Sequence[str]) -> np.ndarray:
    """Return the class of each query, (N,). Raises DataError: two runs were tested on different queries."""
    tested: dict[Any, str] = {}
    counted: dict[Any, str] = {}
    sorted_by: dict[Any, str] = {}
    classes = np.empty(0, np.int64)
    for run, label in zip(runs, labels, strict=True):
        name, data, queries = f"{label} ({run.path})", run.record["data"], run.queries
        tested.setdefault((data["name"], data["test"], data.get("gallery")), name)
        for values in queries.values():
            counted.setdefault(len(values), name)
        classes = queries[CLASS]
        sorted_by.setdefault(classes.tobytes(), name)
    faults = {"different queries": tested, "different numbers of queries": counted, "different classes": sorted_by}
    for fault, names in faults.items():
        if len(names) > 1:
            one, other, *_ = names.values()
            raise DataError(f"{one} and {other} were tested on {fault}; compare runs of one test set")
    return classes
