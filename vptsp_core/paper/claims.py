"""The orders of methods that the paper's tables claim, one line each, and what the finished runs say about them.

The rows of table 4 on CUB are rows of table 1. The maxima of figure 3 are in `figure3_results.maxima`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from vptsp_core.method.config import RunConfig
from vptsp_core.paper import report, tables
from vptsp_core.paper.methods import BEST, FULL, LORA, all_rows, configured, paper_labels, search_name, seeds_by_row
from vptsp_core.runs.folder import METRICS, Run, read_run, run_folder
from vptsp_core.runs.significance import LEVEL, compare_paired

METRIC_NAMES = ("R@1", "MAP@R released")
NOT_RUN, CORRECTED = "not run", "corrected"


class Claim(NamedTuple):
    """A table of the paper gives row ``above`` a higher R@1 than row ``below``. Both are names in `rows`."""

    table: int
    above: str
    below: str

    def __str__(self) -> str:
        return f"{self.above} > {self.below}"


def _claims(table: int, above: str, *below: str) -> list[Claim]:
    return [Claim(table, above, row) for row in below]


# Each claim is an order of two rows in the paper. Tables 1, 5 and 7: the best row above every other row. Table 1 also:
# a row and the same row without one part (BitFit, adapters, prompts, P or the GRU), whichever the paper has higher;
# and each row and full fine-tuning. Rows that are equal in the paper are left out.
CLAIMS = [
    *_claims(1, BEST, FULL, "Linear probing", "BitFit", "Adapter", "Adapter + BitFit", "VPT", "VPT + BitFit", "VPTSP-M",
             "VPTSP-M + BitFit", "VPTSP-G"),
    *_claims(1, "BitFit", "Linear probing", FULL),
    *_claims(1, "Linear probing", "Adapter"),
    *_claims(1, "Adapter + BitFit", "Adapter", "BitFit", FULL),
    *_claims(1, "VPT", "Linear probing"),
    *_claims(1, "VPT + BitFit", "VPT", FULL),
    *_claims(1, "VPTSP-M", "VPT"),
    *_claims(1, "VPTSP-M + BitFit", "VPTSP-M", "VPT + BitFit", FULL),
    *_claims(1, "VPTSP-G", "VPTSP-M", FULL),
    *_claims(1, FULL, "Linear probing", "Adapter", "VPT", "VPTSP-M"),
    *_claims(5, BEST, *(search_name(5, row) for row in ("Encoder", "Sample", "Fixed Encoder"))),
    *_claims(7, "VPTSP-G", *(
        search_name(7, row) for row in ("GRU with tanh", "LSTM", "RNN unit", "Cross attention (within the mini-batch)")
    )),
]  # fmt: skip


def rows(profile: str, changes: Mapping[str, Any]) -> dict[str, RunConfig]:
    """Return the runs of `all_rows` by name, without LoRA, of which the paper says nothing."""
    return {name: configured(profile, row, changes) for name, row in all_rows(profile).items() if name != LORA}


def printed() -> pd.DataFrame:
    """Return the paper's `METRIC_NAMES` in percent on CUB-200, one row per name in `rows`."""
    table = paper_labels(report.paper_table("table1_peft_methods_cub200")).set_index("label")
    parts = [table[["R@1", "MAP@R"]]]
    for number in (5, 7):
        more = tables.paper_rows(number).iloc[:-1]
        names = [search_name(number, row) for row in more["row"]]
        parts.append(more[["CUB R@1", "CUB MAP@R"]].set_axis(["R@1", "MAP@R"], axis=1).set_axis(names))
    return pd.concat(parts).set_axis(list(METRIC_NAMES), axis=1)


def read_finished(configs: Mapping[RunConfig, str], results: Path) -> list[tuple[Run, str]]:
    """Return those of the runs that are finished among the results, each with its name. Nothing is trained."""
    folders = {run_folder(config, results): name for config, name in configs.items()}
    return [(read_run(path), name) for path, name in folders.items() if (path / METRICS).exists()]


def asked(profile: str, seeds: Sequence[int], changes: Mapping[str, Any]) -> dict[RunConfig, str]:
    """Return the runs of `rows` with these seeds, each with its name."""
    configs = rows(profile, changes)
    of = seeds_by_row(profile, configs, seeds, changes)
    return {config.replace(seed=seed): name for name, config in configs.items() for seed in of[name]}


def finished(
    profile: str, seeds: Sequence[int], changes: Mapping[str, Any], results: Path
) -> tuple[list[Run], list[str]]:
    """Return those of the runs in `asked` that are finished, and the name of each."""
    found = read_finished(asked(profile, seeds, changes), results)
    return [run for run, _ in found], [name for _, name in found]


def verdicts(runs: Sequence[Run], names: Sequence[str]) -> pd.DataFrame:
    """Compare each claim of `CLAIMS` with the runs (see `compare_paired`).

    Returns:
        A row per claim. ``table``; ``seeds``, as "3, 1", of the row above and the row below; and for each metric in
        percentage points the ``paper``'s difference, our ``difference`` with its interval from ``low`` to ``high`` and
        its p-value ``p``; the ``verdict``: "holds", "does not hold", "undecided" (the interval contains 0), or "not
        run" (a row has no runs, or none with values per query); and the verdict ``corrected`` for the number of claims
        that have runs (`holm`).
    """
    paper = printed()
    paired = {
        below: compare_paired(runs, names, below, METRIC_NAMES)
        for below in dict.fromkeys(claim.below for claim in CLAIMS if claim.below in names)
    }
    found = []
    for claim in CLAIMS:
        count = {name: names.count(name) for name in (claim.above, claim.below)}
        row: dict[tuple[str, str], Any] = {("table", ""): claim.table, ("seeds", ""): "{}, {}".format(*count.values())}
        for metric in METRIC_NAMES:
            theirs = round(float(paper[metric][claim.above] - paper[metric][claim.below]), 2)  # as printed
            row[metric, report.PAPER] = theirs
            ours = paired[claim.below][metric].loc[claim.above] if all(count.values()) else None
            for side in ("difference", "low", "high", "p"):
                row[metric, side] = np.nan if ours is None else ours[side]
            row[metric, "verdict"] = (ours is not None and report.verdict(theirs, ours)) or NOT_RUN
        found.append(row)
    columns = pd.MultiIndex.from_tuples(found[0])
    table = pd.DataFrame([[*row.values()] for row in found], pd.Index(map(str, CLAIMS), name="claim"), columns)
    for metric in METRIC_NAMES:
        doubtful = holm(table[metric, "p"]) > 1 - LEVEL
        table[metric, CORRECTED] = table[metric, "verdict"].mask(doubtful, "undecided")
    return table


def holm(p: pd.Series) -> pd.Series:
    """Return p-values corrected for their number (Holm, "A simple sequentially rejective multiple test
    procedure", 1979).

    If those below 0.05 are called clear, the probability of calling any difference clear that is really zero is at most
    0.05, if the p-values are right. NaN is left out.
    """
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def shown(compared: pd.DataFrame) -> pd.DataFrame:
    """Return `verdicts` with our difference and its interval as one text, for people. The columns say "difference"."""
    out = {column: compared[column] for column in (("table", ""), ("seeds", ""))}
    for metric in METRIC_NAMES:
        part = compared[metric].assign(chance=compared[metric]["verdict"].eq("undecided"))
        title = f"difference of {metric}"
        out[title, report.PAPER] = part[report.PAPER]
        out[title, report.OURS] = pd.Series(map(report.distance, part.itertuples()), part.index, dtype=object)
        out[title, report.ORDER] = part["verdict"]
        out[title, CORRECTED] = part[CORRECTED]
    return pd.DataFrame(out)


def costs(runs: Sequence[Run], names: Sequence[str]) -> pd.DataFrame:
    """Return the time of each run that trained: a row per run, in minutes, and seconds for its fastest epoch."""
    columns = ["run", "seed", "epochs", "fastest epoch, s", "run, minutes", "device", "precision", "commit"]
    found = []
    for name, run in zip(names, runs, strict=True):
        if "seconds" in run.history:
            precision, record = run.record["precision"], run.record
            trunk = f"{precision['trunk']}: {precision['why'].partition(';')[0]}"  # names the processor's bf16 units
            times = run.history["seconds"].min(), record["seconds"] / 60
            found.append([name, run.config.seed, run.config.epochs, *times, record["device"], trunk, record["commit"]])
    return pd.DataFrame(found, columns=columns).set_index("run")
