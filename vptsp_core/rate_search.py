"""The search of the learning rates of the profile tiny: the same for every row (docs/tiny.md).

Rates a factor 4 apart; a trial is a run of three epochs, every fifth training class held out, judged by the validation
MAP@R of its last epoch (R@1 where two are equal; it is too near to 100 % to judge by). While the best rate is at an end
of those tried, the next one is tried as well. No test class decides anything. The winners stand in
`vptsp_core.rows.RATES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vptsp_core.config import RunConfig
from vptsp_core.errors import ConfigError
from vptsp_core.report import percent
from vptsp_core.rows import (
    BEST,
    RATES,
    UNTRAINED,
    base_config,
    integration_rows,
    method_rows,
    proxy_source_rows,
    search_name,
)
from vptsp_core.runs import METRICS, Run, finished_run, run_folder
from vptsp_core.study import many

GRID = (0.00125, 0.005, 0.02, 0.08)
FACTOR = 4  # from one rate to the next
LOWEST, HIGHEST = 1e-4, 1.0  # the search does not go on from below and from above
JUDGED = ("validation MAP@R", "validation R@1")
_ALL = (*(GRID[0] / FACTOR**n for n in (2, 1)), *GRID, *(GRID[-1] * FACTOR**n for n in (1, 2)))  # what may be tried


def rows() -> dict[str, dict[str, Any]]:
    """{name in `RATES`: changes to `base_config`, without rates} of every row that is searched: those of table 1 that
    train, and those of tables 5 and 7 that are not table 1's."""
    methods = method_rows("tiny")
    found = {label: row for label, row in methods.items() if label not in UNTRAINED}
    for number, table, shared in (
        (5, proxy_source_rows("tiny"), methods[BEST]),
        (7, integration_rows("tiny"), methods["VPTSP-G"]),
    ):
        *others, last = table  # the last row is table 1's
        assert base_config("tiny", **table[last]).hash() == base_config("tiny", **shared).hash()
        found |= {search_name(number, label): table[label] for label in others}
    return {name: {key: row[key] for key in row if key not in ("lr", "lr_proxy")} for name, row in found.items()}


def trial(row: Mapping[str, Any], lr: float, **changes: Any) -> RunConfig:
    """The run that tries a rate of a row (of `rows`)."""
    short = {"epochs": 3, "eval_start": 2, "selection": "validation"}
    return base_config("tiny", **{**row, "lr": lr, **short, **changes})


def search(name: str, *, results: str | Path, **options: Any) -> float:
    """Run the trials of a row that are missing, and return the best rate.

    Args:
        name: of `rows`.
        results: folder of the profile's results.
        options: of `study.many`, such as ``data``.

    Raises:
        ConfigError: an unknown row.
        VptspError: a trial failed.
    """
    if name not in rows():
        raise ConfigError(f"row {name!r} must be one of {', '.join(rows())}")
    row = rows()[name]
    wanted: tuple[float, ...] = GRID
    while wanted:
        many([trial(row, lr) for lr in wanted], results=results, **options)
        wanted = _still_to_try(_trials(row, Path(results)))
    return best_rate(_trials(row, Path(results)))


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
    """The best rate of every row whose search is complete in ``results``: what `RATES` has to hold."""
    tried = {name: _trials(row, results) for name, row in rows().items()}
    return {name: best_rate(trials) for name, trials in tried.items() if not _still_to_try(trials)}


def summary(results: Path) -> str:
    """How far the search is, and which rows keep the preset's rate for now, in a few lines."""
    done, known = winners(results), rows()
    lines = [f"{len(table(results))} trials; the search is complete for {len(done)} of {len(known)} rows."]
    if kept := [name for name in known if name not in done]:
        rates = [f"{name} ({RATES['tiny'].get(name, {}).get('lr', base_config('tiny').lr):g})" for name in kept]
        lines.append(f"Not searched to the end, with the rate that they have for now: {'; '.join(rates)}.")
        lines.append("To search: from vptsp_core import rate_search; "
                     f"rate_search.search({kept[0]!r}, data=DIR, results=\"results/tiny\")")  # fmt: skip
    own = {name: RATES["tiny"].get(name, {}).get("lr", base_config("tiny").lr) for name in done}
    if other := [name for name, lr in done.items() if own[name] != lr]:
        lines.append(f"Found here, but not in vptsp_core/rows.py yet: {'; '.join(f'{n} {done[n]:g}' for n in other)}.")
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
