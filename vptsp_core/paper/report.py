"""Tools that all notebooks share: read the paper's numbers, compare, style and store tables, and record the machine.

Runs report fractions, and the paper prints percent. `percent` converts fractions, so all tables are in percent.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.runs.folder import Run
from vptsp_core.runs.frames import frame, over_seeds
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import CHECKOUT, PACKAGE

PAPER, OURS, DIFFERENCE, ORDER = "paper", "ours", "difference", "the paper's order"
CHANCE = "≈"  # marks a difference that could be chance
DATA_PARTS = ("train", "test", "gallery")  # only In-Shop has a gallery of its own
_CELL = "padding: 0.25em 0.7em; text-align: right; font-variant-numeric: tabular-nums"
# {columns: font size and padding} of a table with more columns, to fit into JupyterLab beside its file browser.
_SMALLER = {14: ("0.66em", "0.25em 0.2em"), 7: ("0.75em", "0.25em 0.3em")}
_STYLE: list[Any] = [
    {"selector": "th", "props": _CELL},
    {"selector": "td", "props": _CELL},
    {"selector": "caption", "props": "caption-side: bottom; text-align: left; padding: 0.5em 0.7em; max-width: 60em"},
    {"selector": "th.row_heading", "props": "text-align: left; font-weight: normal; white-space: nowrap"},
    {"selector": "th.col_heading.level0", "props": "text-align: center; border-bottom: 1px solid #999"},
]


def place(path: str | Path) -> Path:
    """Resolve a notebook's path parameter, which is relative to the repository.

    `run_all.sh` starts notebooks in the repository, but JupyterLab starts them in their own folder.
    """
    here = Path.cwd()
    if here.is_relative_to(CHECKOUT):
        base = CHECKOUT
    else:
        base = here.parent if here.name == "notebooks" else here
    return base / Path(path).expanduser()


def watched() -> bool:
    """Return whether a person watches this notebook. It is False under papermill and in scripts."""
    from IPython.core.getipython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)  # only a front end with a person allows questions on stdin
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def paper_table(name: str) -> pd.DataFrame:
    """Return the numbers of one of the paper's tables or plots, as printed (vptsp_core/paper/``name``.csv).

    Raises ConfigError for an unknown name.
    """
    files = {path.stem: path for path in sorted((PACKAGE / "paper").glob("*.csv"))}
    check_choice("table", name, tuple(files))
    return pd.read_csv(files[name], encoding="utf-8")


def percent(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return ``table`` with ``columns`` and their intervals ``<column> ±`` converted from fractions to percent."""
    shown = [c for column in columns for c in (column, f"{column} ±") if c in table]
    return table.assign(**{column: 100 * table[column] for column in shown})


def averaged(runs: Sequence[Run], by: Mapping[str, Sequence[Any]], metrics: Sequence[str]) -> pd.DataFrame:
    """Return metrics in percent, averaged over the runs (seeds) with the same values in ``by``.

    Args:
        by: {column: its value for each run}, such as {"row": labels}.

    Returns:
        The columns of ``by``, ``seeds`` (their number), then each metric and ``<metric> ±``, half the 95 % interval
        (`runs.frames.over_seeds`).
    """
    if not runs:
        return pd.DataFrame({column: pd.Series(dtype=float) for column in [*by, *metrics]})
    return percent(over_seeds(frame(runs).assign(**by), list(by), metrics), metrics)


def compare(
    paper: pd.DataFrame, ours: pd.DataFrame, *, on: str, columns: Sequence[str], only_ours: Sequence[str] = ()
) -> pd.DataFrame:
    """Return paper | ours | difference of each column, for every row of either side.

    Args:
        paper, ours: tables with one row per value of ``on``. A column that one side lacks is empty there.
        columns: the columns of both sides, in the units to show.
        only_ours: more columns of ours.

    Returns:
        A table with the index ``on`` and columns (column, "paper" | "ours" | "±" | "difference"). "±" is our interval
        if it exists. The difference is ours - paper, empty if one of them is missing. Rows that only the paper has are
        the last.

    Raises:
        ConfigError: a value of ``on`` occurs twice on one side.
    """
    sides = {PAPER: paper.set_index(on), OURS: ours.set_index(on)}
    for side, table in sides.items():
        if not table.index.is_unique:
            twice = table.index[table.index.duplicated()][0]
            raise ConfigError(f"{on} = {twice!r} occurs twice in {side}; average over seeds first (`averaged`)")
    index = sides[OURS].index.union(sides[PAPER].index, sort=False)
    out: dict[tuple[str, str], pd.Series] = {}
    for column in [*columns, *only_ours]:
        for side, table in sides.items() if column in columns else [(OURS, sides[OURS])]:
            values = table[column] if column in table else pd.Series(np.nan, index=table.index)
            out[column, side] = values.reindex(index).astype(float)
        if f"{column} ±" in ours and ours[f"{column} ±"].notna().any():
            out[column, "±"] = sides[OURS][f"{column} ±"].reindex(index)
        if column in columns:
            out[column, DIFFERENCE] = out[column, OURS] - out[column, PAPER]
    return pd.DataFrame(out, index=pd.Index(index, name=on))


def with_last_epoch(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with each metric of the last epoch added, as "R@1 (last epoch)".

    If held-out classes chose another epoch, the last one was not evaluated on the test set, and its metrics are NaN.
    The per-query values remain those of the reported epoch.
    """
    out = []
    for run in runs:
        last = {f"{name} (last epoch)": float(run.history[name].iloc[-1]) for name in run.metrics}
        out.append(dataclasses.replace(run, metrics={**run.metrics, **last}))
    return out


def marked(table: pd.DataFrame, paired: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Add the distance of each row from the row ``reference``, and whether it could be chance.

    Args:
        table: from `compare`, in percent.
        paired: from `runs.significance.compare_paired`, indexed like ``table``.

    Returns:
        ``table`` with a column (metric, "vs <reference>") after each metric: text such as "-1.2 [-2.0, -0.4]", the
        difference in percentage points and its 95 % interval. `CHANCE` before it marks an interval that contains 0. If
        the paper has numbers, a column (metric, `ORDER`) follows. It says whether the paper's order of the row and the
        reference "holds", "does not hold", or is "undecided" because the interval contains 0.
    """
    out: dict[tuple[str, str], pd.Series] = {}
    for metric in table.columns.unique(0):
        out |= {(metric, side): table[metric, side] for side in table[metric]}
        if metric in paired:
            gaps = paired[metric].reindex(table.index)
            out[metric, f"vs {reference}"] = pd.Series(map(distance, gaps.itertuples()), table.index, dtype=object)
            if (metric, PAPER) in table and reference in table.index:
                theirs = table[metric, PAPER].sub(table[metric, PAPER][reference])
                verdicts = [verdict(*pair) for pair in zip(theirs, gaps.itertuples(), strict=True)]
                if any(verdicts):
                    out[metric, ORDER] = pd.Series(verdicts, table.index, dtype=object)
    return pd.DataFrame(out, index=table.index)


def distance(row: Any) -> str:
    """Return a row of `compare_paired` as text, such as "-1.2 [-2.0, -0.4]", with `CHANCE` if it could be chance."""
    # A bound such as -0.01 becomes -0.0, because +0.0 would say that the interval contains 0.
    text = f"{row.difference:+z.1f} [{row.low:+.1f}, {row.high:+.1f}]"
    return "" if np.isnan(row.difference) else f"{CHANCE} {text}" if row.chance else text


def verdict(theirs: float, ours: Any) -> str:
    """Return whether the sign of ``theirs``, a difference of two rows, is that of ``ours``, a row of `compare_paired`.

    "holds", "does not hold", "undecided" if ours could be chance, or "" if one of them is missing or 0.
    """
    if np.isnan(theirs) or theirs == 0 or np.isnan(ours.difference):
        return ""
    if ours.chance:
        return "undecided"
    return "holds" if (theirs > 0) == (ours.difference > 0) else "does not hold"


SELECTED = {
    "released": "the best epoch of each metric on the test set, as the released code does for R@1 and MAP@R",
    "last": "the last epoch",
    "validation": "the best R@1 on held-out training classes; only this epoch was searched on the test set",
    "validation_map": "the best MAP@R on held-out training classes; only this epoch was searched on the test set",
    "frozen": "none, because nothing is trained",
}


def selection_note(runs: Sequence[Run]) -> str:
    """Return one sentence that says which epoch the runs report. If they differ, it counts the runs of each kind."""
    kinds = ["frozen" if run.config.method == "frozen" else run.config.selection for run in runs]
    used = [kind for kind in SELECTED if kind in kinds]
    used = [kind for kind in used if kind != "frozen"] or used  # "frozen" adds nothing to the others
    counted = [f"{SELECTED[kind]} ({kinds.count(kind)} run(s))" if used[1:] else SELECTED[kind] for kind in used]
    return f"Epoch reported: {'; '.join(counted)}." if used else ""


def styled(table: pd.DataFrame, formats: Mapping[Any, str] | None = None) -> Styler:
    """Style a table for a notebook: one decimal, signed differences, and empty cells for missing numbers.

    Args:
        formats: format strings for columns that are not percent, by column or by its first level.
    """
    chosen: dict[Any, Any] = {}
    for column in table.columns:
        first, last = (column[0], column[-1]) if isinstance(column, tuple) else (column, "")
        form = (formats or {}).get(column, (formats or {}).get(first, "{:.1f}"))
        if pd.api.types.is_numeric_dtype(table[column]):
            chosen[column] = form.replace("{:", "{:+z") if last == DIFFERENCE else form
    shown = table.rename_axis(None).style.format(chosen, na_rep="", escape="html").format_index(escape="html", axis=1)
    shown = shown.format_index(lambda label: label if isinstance(label, str) else f"{label:g}", escape="html")
    styles = [*_STYLE]
    if smaller := [each for many, each in _SMALLER.items() if len(table.columns) > many]:
        font, padding = smaller[0]
        styles.append({"selector": "", "props": f"font-size: {font}"})
        styles += [{"selector": cell, "props": f"padding: {padding}"} for cell in ("th", "td")]
    words = [at for at, kind in enumerate(table.dtypes) if not pd.api.types.is_numeric_dtype(kind)]
    styles += [{"selector": f"td.col{at}", "props": "text-align: left"} for at in words]
    shown = shown.set_table_styles(styles)
    if isinstance(table.columns, pd.MultiIndex):
        light = [column for column in table.columns if column[-1] == PAPER]
        shown = shown.set_properties(subset=pd.IndexSlice[:, light], **{"opacity": "0.65"})
    return shown


CHANGED = "changed (--set)"  # a fact: the keys that the reader changed


def machine_facts(made: Mapping[str, Any]) -> dict[str, str]:
    """Return commit, versions and device from a run's record or from `runs.record.made_with`."""
    versions = {f"{name} version": number for name, number in made["versions"].items()}
    return {"commit": made["commit"], **versions, "device": made["device"]}


def record_facts(runs: Sequence[Run], changes: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return {fact: its values over all runs}, such as commit and seed. A fact that differs has several values.

    ``changes`` are the keys of `RunConfig` that the reader changed in all runs of a notebook.
    """
    facts: list[dict[str, object]] = [{CHANGED: f"{key}={value}"} for key, value in changes.items()]
    for run in runs:
        record = run.record
        facts.append({
            **machine_facts(record),
            "seed": run.config.seed,
            "backbone": f"{run.config.backbone} ({run.config.weights})",
            "weights checksum": record["weights"],
            "data": record["data"]["name"],
            **{f"data checksum, {part}": record["data"][part] for part in DATA_PARTS if part in record["data"]},
            "epochs": run.config.epochs,
            "epoch reported": run.config.selection,
            "training classes held out": record.get("held_out", {}).get("classes", 0),
            "run": record["hash"],
        })  # fmt: skip
    return merged(facts)


def merged(facts: Iterable[Mapping[str, object]]) -> dict[str, list[str]]:
    """Return each fact with its different values as text, in the order in which they occur."""
    found: dict[str, dict[str, None]] = {}  # the inner dicts are sets that keep their order
    for each in facts:
        for fact, value in each.items():
            found.setdefault(fact, {})[str(value)] = None
    return {fact: list(values) for fact, values in found.items()}


def fact_table(facts: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return facts as a table: a row per fact, whose column ``value`` has its values, separated by commas."""
    return pd.DataFrame({"value": map(", ".join, facts.values())}, index=pd.Index(facts, name="fact"))


def record_table(runs: Sequence[Run], changes: Mapping[str, Any]) -> pd.DataFrame:
    """Return `record_facts` as a table, one row per fact, with the number of runs and their total time."""
    runs = list({run.path: run for run in runs}.values())  # several points may share one run
    facts = {"runs": [str(len(runs))], **record_facts(runs, changes)}
    if runs:
        facts["seconds of training and evaluation, all runs"] = [f"{sum(run.record['seconds'] for run in runs):.0f}"]
    return fact_table(facts)


def save_table(table: pd.DataFrame, results: Path, name: str) -> Path:
    """Write ``results/tables/<name>.csv``. Columns with two levels become "<column>, <paper | ours | difference>"."""
    flat = table.copy()
    if isinstance(flat.columns, pd.MultiIndex):
        flat.columns = pd.Index([", ".join(filter(None, column)) for column in flat.columns])
    path = results / "tables" / f"{name}.csv"
    write_bytes(path, flat.to_csv(index=not isinstance(flat.index, pd.RangeIndex)).encode())
    return path
