"""Run a table's cells (`tables`, `beyond`), show them beside the paper's rows, and mark differences that may be chance.

A missing data set, an unsupported backbone or missing weights leave out only their own rows, and a line names them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vptsp_core.errors import VptspError
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import count_parameters
from vptsp_core.paper import report
from vptsp_core.paper.absent import AbsentData, absent_data
from vptsp_core.paper.claims import METRIC_NAMES
from vptsp_core.paper.tables import Cells
from vptsp_core.runs import significance
from vptsp_core.runs.folder import METRICS, WEIGHTS, Run, run_folder
from vptsp_core.runs.run import build_model, many


@dataclass(frozen=True)
class Done:
    """The runs of a table, each with its cell (row, set), and what could not be run.

    Attributes:
        missing: for each reason, a line with the rows that could not be run and why, and the data set that is missing,
            if that is the reason.
    """

    runs: list[Run]
    cells: list[tuple[str, str]]
    missing: list[tuple[str, AbsentData | None]]

    @property
    def left_out(self) -> list[str]:
        """The lines of ``missing``, with the commands that make the runs."""
        return [text if absent is None else f"{text}. {absent.cure}" for text, absent in self.missing]

    def summary(self) -> str:
        """Return a line about the runs and the lines about missing runs, for a notebook to print."""
        rows, sets = (list(dict.fromkeys(cell[at] for cell in self.cells)) for at in (0, 1))
        seeds = ", ".join(map(str, sorted({run.config.seed for run in self.runs})))
        on = "the glyphs" if all(run.config.dataset == "glyphs" for run in self.runs) else ", ".join(sets)
        lines = [f"{len(self.runs)} runs: {len(rows)} rows, seeds {seeds}, on {on}."] if self.runs else []
        return "\n".join(lines + self.left_out)


def carry_out(
    configs: Cells, seeds: Sequence[int] | Mapping[tuple[str, str], Sequence[int]], *, data: str | Path | None,
    results: Path, notebook: str, **options: Any,
) -> Done:  # fmt: skip
    """Run every cell of a table with every seed, if data and weights exist here. Finished runs need neither.

    Args:
        seeds: for all cells, or {cell: its seeds} (`paper.methods.seeds_by_row`).
        notebook: for the command that makes missing runs, as in `absent_data`.
        options: of `runs.run.many`, such as ``workers`` and ``progress``.

    Raises:
        VptspError: a data set is damaged, or every run failed.
    """
    light = options.get("light", True)
    of = seeds if isinstance(seeds, Mapping) else dict.fromkeys(configs, seeds)
    absent = {
        dataset: absent_data(config, data, notebook, results)
        for dataset, config in {config.dataset: config for config in configs.values()}.items()
    }
    refusal = functools.cache(_refusal)
    missing: dict[AbsentData | str, list[str]] = {}  # {reason: what could not be run}
    pairs: list[tuple[tuple[str, str], RunConfig]] = []
    for cell, config in configs.items():
        for seed in of[cell]:
            run = config.replace(seed=seed)
            reason: AbsentData | str = ""
            if not _finished(run, results, light):
                reason = absent[config.dataset] or refusal(config.backbone, config.weights, config.image_size)
            if reason:
                missing.setdefault(reason, []).append(cell[0] if list(of[cell]) == [0] else f"{cell[0]} (seed {seed})")
            else:
                pairs.append((cell, run))
    every = sorted({seed for each in of.values() for seed in each})
    asked = f" --seeds {','.join(map(str, every))}" if every != [0] else ""
    datasets = {run.dataset for _, run in pairs}
    not_run: list[tuple[str, AbsentData | None]] = []
    for reason, labels in missing.items():
        rows = f"Not run: {'; '.join(dict.fromkeys(labels))}"
        if isinstance(reason, str):
            not_run.append((f"{rows}: {reason}", None))
            continue
        what = rows if reason.dataset in datasets else "No runs"
        not_run.append((f"{what}: {reason.fault}", dataclasses.replace(reason, run=reason.run + asked)))
    try:
        finished = many([run for _, run in pairs], data=data, results=results, **options) if pairs else []
    except VptspError as error:  # the other runs are finished, and the second call returns them
        lost = dict.fromkeys(cell[0] for cell, run in pairs if not _finished(run, results, light))
        pairs = [(cell, run) for cell, run in pairs if _finished(run, results, light)]
        if not pairs:
            raise
        not_run.append((f"Not run: {'; '.join(lost)}: {error}", None))
        finished = many([run for _, run in pairs], data=data, results=results, **options)
    return Done(finished, [cell for cell, _ in pairs], not_run)


def _finished(config: RunConfig, results: Path, light: bool) -> bool:
    try:
        folder = run_folder(config, results)
        return (folder / METRICS).exists() and (light or (folder / WEIGHTS).exists())
    except VptspError:  # the file of weights is missing, so the run has no hash
        return False


def _refusal(backbone: str, weights: str, image_size: int) -> str:
    """Return why a backbone cannot be used, or ""."""
    try:
        load_backbone(backbone, weights, image_size)
    except VptspError as error:
        return str(error)
    return ""


def listing(configs: Cells, keys: Sequence[str]) -> pd.DataFrame:
    """Return the settings of the cells: one row per cell, one column per key of `RunConfig`.

    For methods other than vptsp, ``accumulator``, ``proxy_source`` and ``class_prompts`` are empty.
    """
    semantic = {"accumulator", "proxy_source", "class_prompts"}
    table = pd.DataFrame({
        f"{row}, {config.dataset}": {
            key: "" if key in semantic and config.method != "vptsp" else value
            for key, value in config.to_dict().items()
            if key in keys
        }
        for (row, _), config in configs.items()
    }).T.reindex(columns=list(keys))  # fmt: skip
    for key in table.columns.intersection(["lr", "lr_proxy", "weight_decay"]):
        table[key] = table[key].map("{:g}".format)
    return table


def scores(done: Done, columns: Sequence[str]) -> pd.DataFrame:
    """Return means over seeds in percent, in the order of the cells.

    The columns are ``row``, and "<set> <metric>" with "<set> <metric> ±" for each of ``columns`` that was measured.
    """
    parts = []
    for name in dict.fromkeys(name for _, name in done.cells):
        runs, rows = _of_set(done, name)
        wanted = [column.removeprefix(f"{name} ") for column in columns if column.startswith(f"{name} ")]
        metrics = [metric for metric in wanted if any(metric in run.metrics for run in runs)]
        mean = report.averaged(runs, {"row": rows}, metrics).set_index("row")
        parts.append(mean[[c for m in metrics for c in (m, f"{m} ±")]].add_prefix(f"{name} "))
    order = pd.Index(list(dict.fromkeys(row for row, _ in done.cells)), name="row", dtype=object)
    return pd.concat(parts, axis=1).reindex(order).reset_index() if parts else pd.DataFrame({"row": order})


def differences(done: Done, reference: str) -> pd.DataFrame:
    """Compare each row with the row ``reference`` on the same queries of a set (`significance.compare_paired`).

    The columns are ("<set> <metric>", ...). A set without the reference has no columns.
    """
    parts = []
    for name in dict.fromkeys(name for _, name in done.cells):
        runs, rows = _of_set(done, name)
        if reference in rows:
            paired = significance.compare_paired(runs, rows, reference, METRIC_NAMES)
            parts.append(paired.rename(columns={metric: f"{name} {metric}" for metric in METRIC_NAMES}, level=0))
    return pd.concat(parts, axis=1) if parts else pd.DataFrame()


def beside(
    paper: pd.DataFrame, done: Done, clear: pd.DataFrame | None = None, reference: str = "",
    extra: pd.DataFrame | None = None,
) -> pd.DataFrame:  # fmt: skip
    """Return paper | ours | difference of every column that the paper prints, in percent, one row per row of the table.

    The paper's rows come first, in its order. The paper's MAP@R comes from the released code, so it is compared with
    our "MAP@R released", which has the same formula. The next columns are our "MAP@R", as defined by
    Musgrave et al. (2020).

    Args:
        paper: from `paper.tables.paper_rows`.
        clear: from `differences` with the row ``reference``; adds the columns of `report.marked`.
        extra: ``row`` and more columns of ours, with names of the paper's columns or new ones.
    """
    released = {column: f"{column} released" for column in map(str, paper) if column.endswith("MAP@R")}
    paper = paper.rename(columns=released)
    columns = [column for column in map(str, paper) if column != "row"]
    defined = {new: old for old, new in released.items()}
    ours = scores(done, [*columns, *defined.values()])
    if extra is not None:
        ours = ours.merge(extra, on="row", how="outer", sort=False)
    added = [] if extra is None else list(map(str, extra))
    new = [column for column in added if column not in ("row", *columns)]
    table = report.compare(paper, ours, on="row", columns=columns, only_ours=[*defined.values(), *new])
    table = table.reindex([*paper["row"], *(row for row in table.index if row not in set(paper["row"]))])
    if clear is not None and len(clear.columns):
        printed = clear[[column for column in clear.columns if column[0] in columns]]
        table = report.marked(table, printed, reference)
    order = [name for column in columns for name in (column, *filter(None, [defined.get(column)]))] + new
    return table[[column for name in order for column in table.columns if column[0] == name]]


def ours(done: Done, columns: Sequence[str], reference: str) -> pd.DataFrame:
    """Return `scores` indexed by row, without the paper, and for tested columns the distance from ``reference``."""
    scored, clear = scores(done, columns).set_index("row"), differences(done, reference)
    sides = {column: "±" if column.endswith(" ±") else report.OURS for column in map(str, scored)}
    table = pd.DataFrame({(column.removesuffix(" ±"), side): scored[column] for column, side in sides.items()})
    return report.marked(table.dropna(axis=1, how="all"), clear, reference) if len(clear.columns) else table


def by_set(table: pd.DataFrame, sets: Sequence[str]) -> Iterator[pd.DataFrame]:
    """Yield the columns of one set after the other, with the rows that have a number there, to fit a page."""
    for name in sets:
        part = table[[column for column in table.columns if column[0].startswith(f"{name} ")]]
        yield part[part.select_dtypes("number").notna().any(axis=1)]


def agreement(table: pd.DataFrame) -> str:
    """Return one line per column that says how well the order of our rows agrees with the paper's.

    The line has Spearman's rank correlation and, if rows are compared with a reference (`report.marked`), the counts of
    the verdicts. A column in which fewer than three rows have both numbers has no line.
    """
    lines = []
    for column in map(str, table.columns.unique(0)):
        if (column, report.DIFFERENCE) in table:
            both = table[[(column, report.PAPER), (column, report.OURS)]].dropna()
            if len(both) > 2 and both.nunique().min() > 1:
                rank = both.iloc[:, 0].corr(both.iloc[:, 1], method="spearman")
                line = f"{column}: rank correlation of paper and ours over {len(both)} rows {rank:.2f}"
                if (column, report.ORDER) in table:
                    counts = table[column, report.ORDER].value_counts()
                    verdicts = ", ".join(f"{word} in {n}" for word, n in counts.items() if word)
                    line += f"; the paper's order of a row and the reference {verdicts}"
                lines.append(line)
    return "\n".join(lines)


def parameters(configs: Mapping[str, RunConfig]) -> pd.DataFrame:
    """Count parameters for 100 classes: "parameters, M" as the paper does, and "learning, M", those that learn."""
    counted = []
    for row, config in configs.items():
        counts = count_parameters(build_model(config.replace(weights="random"), 100, torch.device("cpu")))
        millions = {"parameters, M": counts["tunable released"] / 1e6, "learning, M": counts["tunable"] / 1e6}
        counted.append({"row": row, **millions})
    return pd.DataFrame(counted, columns=["row", "parameters, M", "learning, M"])


def _of_set(done: Done, name: str) -> tuple[list[Run], list[str]]:
    """Return the runs of one set and the row of each."""
    pairs = [(run, row) for run, (row, other) in zip(done.runs, done.cells, strict=True) if other == name]
    return [run for run, _ in pairs], [row for _, row in pairs]
