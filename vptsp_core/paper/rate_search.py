"""The search for the learning rates of the profile tiny, the same for every row (docs/tiny.md).

The rates are a factor of 4 apart. A trial is a run of three epochs with every fifth training class held out; it is
judged by the validation MAP@R of its last epoch (then by R@1, which is too near 100 % to come first). While the best
rate is the lowest or highest of those tried, the next one is tried, too. No test class decides anything. The rates
found are in `methods.RATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper import methods
from vptsp_core.paper.methods import RATES, base_config
from vptsp_core.paper.report import percent
from vptsp_core.runs.folder import METRICS, Run, finished_run, run_folder
from vptsp_core.runs.run import many

GRID = (0.00125, 0.005, 0.02, 0.08)
FACTOR = 4  # from one rate to the next
LOWEST, HIGHEST = 1e-4, 1.0  # no rate is tried beyond one that is lower or higher than these
JUDGED = ("validation MAP@R", "validation R@1")
_ALL = (GRID[0] / FACTOR**2, GRID[0] / FACTOR, *GRID, GRID[-1] * FACTOR, GRID[-1] * FACTOR**2)  # what may be tried


def rows() -> dict[str, dict[str, Any]]:
    """{name in `RATES`: changes to `base_config`, without rates} of every row that is searched: those of table 1 that
    train, and those of tables 5 and 7 but the last, which are table 1's.
    """
    found = {label: row for label, row in methods.method_rows("tiny").items() if label not in methods.UNTRAINED}
    for number, of_table in ((5, methods.proxy_source_rows("tiny")), (7, methods.integration_rows("tiny"))):
        found |= {methods.search_name(number, label): of_table[label] for label in list(of_table)[:-1]}
    return {name: {key: row[key] for key in row if key not in ("lr", "lr_proxy")} for name, row in found.items()}


def trial(row: Mapping[str, Any], lr: float, **changes: Any) -> RunConfig:
    """The run that tries a rate of a row (of `rows`)."""
    short = {"epochs": 3, "eval_start": 2, "selection": "validation"}
    return base_config("tiny", **{**row, "lr": lr, **short, **changes})


def search(name: str, *, results: str | Path, **options: Any) -> float:
    """Run the trials of a row that are missing, and return the best rate. Raises ConfigError for an unknown row.

    Args:
        name: of `rows`.
        results: folder of the profile's results.
        options: of `runs.run.many`, such as ``data``.
    """
    if name not in rows():
        raise ConfigError(f"row {name!r} must be one of {', '.join(rows())}")
    row = rows()[name]
    while wanted := _still_to_try(trials := _trials(row, Path(results))):
        many([trial(row, lr) for lr in wanted], results=results, **options)
    return best_rate(trials)


def table(results: Path) -> pd.DataFrame:
    """All finished trials in ``results``: a row each, the best of every row first; metrics in percent."""
    found = []
    for name, row in rows().items():
        trials = _trials(row, results)
        best = None if _still_to_try(trials) else best_rate(trials)
        for lr in sorted(trials, key=lambda lr: _score(trials[lr]), reverse=True):
            judged = dict(zip(JUDGED, _score(trials[lr]), strict=True))
            found.append({"row": name, "lr": lr, **judged, "taken": "yes" if lr == best else ""})
    return percent(pd.DataFrame(found, columns=["row", "lr", *JUDGED, "taken"]), JUDGED).set_index("row")


def winners(results: Path) -> dict[str, float]:
    """The best rate of every row whose search is complete in ``results``, for `RATES`."""
    tried = {name: _trials(row, results) for name, row in rows().items()}
    return {name: best_rate(trials) for name, trials in tried.items() if not _still_to_try(trials)}


def summary(results: Path) -> str:
    """How far the search is, and which rows still have the preset's rate, in a few lines."""
    done, usual = winners(results), base_config("tiny").lr
    rates = {name: RATES["tiny"].get(name, {}).get("lr", usual) for name in rows()}
    lines = [f"{len(table(results))} trials; the search is complete for {len(done)} of {len(rates)} rows."]
    if kept := [name for name in rates if name not in done]:
        listed = "; ".join(f"{name} ({rates[name]:g})" for name in kept)
        lines.append(f"Not searched to the end, with the rate that they have now: {listed}.")
        lines.append("To search: from vptsp_core.paper import rate_search; "
                     f"rate_search.search({kept[0]!r}, data=DIR, results=\"results/tiny\")")  # fmt: skip
    if other := "; ".join(f"{name} {lr:g}" for name, lr in done.items() if rates[name] != lr):
        lines.append(f"Found here, but not in vptsp_core/paper/methods.py yet: {other}.")
    return "\n".join(lines)


def best_rate(trials: Mapping[float, Run]) -> float:
    """The rate whose trial has the highest validation MAP@R in its last epoch."""
    return max(trials, key=lambda lr: _score(trials[lr]))


def _trials(row: Mapping[str, Any], results: Path) -> dict[float, Run]:
    """The finished trials of a row, by rate."""
    found = {}
    for lr in _ALL:
        folder = run_folder(trial(row, lr), results)
        if (folder / METRICS).exists() and (run := finished_run(folder)):
            found[lr] = run
    return found


def _still_to_try(trials: Mapping[float, Run]) -> tuple[float, ...]:
    if missing := tuple(lr for lr in GRID if lr not in trials):
        return missing
    best = best_rate(trials)
    if best == max(trials) and best < HIGHEST:
        return (best * FACTOR,)
    return (best / FACTOR,) if best == min(trials) and best > LOWEST else ()


def _score(run: Run) -> tuple[float, float]:
    last = run.history.iloc[-1]
    return float(last[JUDGED[0]]), float(last[JUDGED[1]])
