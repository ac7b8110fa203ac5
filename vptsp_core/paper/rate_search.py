"""Search the learning rate of each row in the profile tiny, in the same way for every row (docs/tiny.md).

Neighbouring rates differ by a factor of 4. A trial is a run of three epochs with every fifth training class held out.
It is judged by the validation MAP@R of its last epoch. R@1 decides only between equal ones, because good rates hardly
differ in it. While the best rate is the lowest or highest that was tried, the next rate is tried too. Test classes
decide nothing. A best rate that passes the check of docs/tiny.md is entered in `methods.RATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vptsp_core.errors import check_choice
from vptsp_core.method.config import RunConfig
from vptsp_core.paper import methods
from vptsp_core.paper.methods import RATES, base_config
from vptsp_core.paper.report import percent
from vptsp_core.runs.folder import Run, finished_run, run_folder
from vptsp_core.runs.run import many
from vptsp_core.system.places import from_root

RATES_TO_TRY = tuple(0.00125 * 4.0**power for power in range(-2, 6))
GRID = RATES_TO_TRY[2:6]  # always tried; the others only next to the best rate
JUDGED = ("validation MAP@R", "validation R@1")


def rows() -> dict[str, dict[str, Any]]:
    """Return the rows to search, {name in `RATES`: changes to `base_config` without rates}.

    These are the rows of table 1 that train, and the rows of tables 5 and 7 except the last ones, which are in table 1.
    """
    return {
        name: {key: row[key] for key in row if key not in ("lr", "lr_proxy")}
        for name, row in methods.all_rows("tiny").items()
        if name not in methods.UNTRAINED
    }


def trial(row: Mapping[str, Any], lr: float) -> RunConfig:
    """Return the run that tries the rate ``lr`` for a row of `rows`."""
    short = {"epochs": 3, "eval_start": 2, "selection": "validation"}
    return base_config("tiny", **{**row, "lr": lr, **short})


def search(name: str, *, results: str | Path, **options: Any) -> float:
    """Run the missing trials of a row of `rows` and return the best rate. Raises ConfigError for an unknown row.

    ``options`` are those of `runs.run.many`, such as ``data``.
    """
    check_choice("row", name, tuple(rows()))
    row = rows()[name]
    while missing := _still_to_try(trials := _trials(row, Path(results))):
        many([trial(row, lr) for lr in missing], results=results, **options)
    return best_rate(trials)


def table(results: Path) -> pd.DataFrame:
    """Return all finished trials in ``results``, the best of each row first, with metrics in percent.

    ``best`` is "yes" for the best rate of a row whose search is complete. The row may use another rate (`summary`).
    """
    trial_rows = []
    for name, row in rows().items():
        trials = _trials(row, results)
        best = None if _still_to_try(trials) else best_rate(trials)
        for lr in sorted(trials, key=lambda lr: _score(trials[lr]), reverse=True):
            judged = dict(zip(JUDGED, _score(trials[lr]), strict=True))
            trial_rows.append({"row": name, "lr": lr, **judged, "best": "yes" if lr == best else ""})
    return percent(pd.DataFrame(trial_rows, columns=["row", "lr", *JUDGED, "best"]), JUDGED).set_index("row")


def summary(results: Path) -> str:
    """Return a few lines: how many searches are complete, and which best rates the rows do not use."""
    trials, rates = table(results), _rates()
    best = trials[trials["best"] == "yes"]["lr"]
    lines = [f"{len(trials)} trials; the search is complete for {len(best)} of {len(rates)} rows."]
    if missing := [name for name in rates if name not in best]:
        lines.append("To search: from vptsp_core.paper import rate_search; "
                     f"rate_search.search({missing[0]!r}, data=DIR, results={from_root(results)!r})")  # fmt: skip
    unused = {str(name): lr for name, lr in best.items() if rates[str(name)] != lr}
    tried = [name for name, lr in unused.items() if finished_run(run_folder(whole_run(rows()[name], lr), results))]
    failed = [name for name in tried if name in RATES["tiny"]]
    if waiting := "; ".join(f"{name} {lr:g}" for name, lr in unused.items() if name not in failed):
        lines.append(f"Best rates that are not checked, or not in vptsp_core/paper/methods.py yet: {waiting}.")
    if failed:
        listed = "; ".join(f"{name} {unused[name]:g}" for name in failed)
        lines.append(f"Best rates that failed the check of docs/tiny.md in the run of all epochs: {listed}.")
    return "\n".join(lines)


def incomplete(results: Path) -> str:
    """Return one line with the rows whose search is not complete, and the rates that they use now, or ""."""
    trials, rates = table(results), _rates()
    best = set(trials.index[trials["best"] == "yes"])
    listed = "; ".join(f"{name} ({rate:g})" for name, rate in rates.items() if name not in best)
    return f"The search is not complete for these rows (rate used now): {listed}" if listed else ""


def whole_run(row: Mapping[str, Any], lr: float) -> RunConfig:
    """Return the run of all epochs of a row of `rows` with the rate ``lr``."""
    return base_config("tiny", **{**row, "lr": lr})


def _rates() -> dict[str, float]:
    """Return the rate that each row uses."""
    return {name: RATES["tiny"].get(name, {}).get("lr", base_config("tiny").lr) for name in rows()}


def best_rate(trials: Mapping[float, Run]) -> float:
    """Return the rate whose trial has the best `JUDGED` metrics in its last epoch."""
    return max(trials, key=lambda lr: _score(trials[lr]))


def _trials(row: Mapping[str, Any], results: Path) -> dict[float, Run]:
    """Return the finished trials of a row, by rate."""
    finished = {}
    for lr in RATES_TO_TRY:
        if run := finished_run(run_folder(trial(row, lr), results)):
            finished[lr] = run
    return finished


def _still_to_try(trials: Mapping[float, Run]) -> list[float]:
    """Return the missing rates of `GRID`. If there are none, return the missing neighbours of the best rate."""
    if missing := [lr for lr in GRID if lr not in trials]:
        return missing
    best = RATES_TO_TRY.index(best_rate(trials))
    return [lr for lr in RATES_TO_TRY[max(best - 1, 0) : best + 2] if lr not in trials]


def _score(run: Run) -> tuple[float, float]:
    last = run.history.iloc[-1]
    return float(last[JUDGED[0]]), float(last[JUDGED[1]])
