"""Finished runs as a data frame, and means over their seeds."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import pandas as pd

from vptsp_core.runs.folder import Run


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """Return a table with a row per run: the keys of its config, its metrics, tunable parameters, seconds and path."""
    rows = []
    for each in runs:
        of_run = {"seconds": each.record["seconds"], "path": str(each.path)}
        rows.append({**each.config.to_dict(), **each.metrics, **each.record["parameters"], **of_run})
    return pd.DataFrame(rows)


def over_seeds(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Group the rows by the columns ``by``, and average ``columns`` over each group.

    Returns a row per group, in order of appearance: each column's mean, ``<column> ±``, which is half the 95 % interval
    (Student's t; NaN for one seed), and the number of ``seeds``. If a value of a group is NaN, so are its mean and ±.
    """
    from scipy.stats import t

    groups = table.groupby(list(by), sort=False)
    out = groups[list(columns)].agg(functools.partial(pd.Series.mean, skipna=False))
    for column in columns:
        count = groups[column].count()
        half = groups[column].sem() * t.ppf(0.975, (count - 1).clip(lower=1)).reshape(-1)
        out[f"{column} ±"] = half.where(out[column].notna())
    out["seeds"] = groups.size()
    return out.reset_index()
