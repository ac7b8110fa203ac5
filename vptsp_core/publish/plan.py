"""`run_all.sh --dry-run`: the runs of each notebook, which of them are finished, and how long the others take.

No notebook is executed as a whole: only its cell with the parameters and the cells tagged ``runs``, which say what it
trains.
"""

from __future__ import annotations

import contextlib
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.absent import AbsentData, absent_data
from vptsp_core.publish.manifest import is_finished, made_from
from vptsp_core.publish.parameters import read
from vptsp_core.runs.folder import METRICS, read_run, run_folder
from vptsp_core.runs.record import made_with
from vptsp_core.system.devices import pick_device


def asked_runs(path: Path, given: Mapping[str, Any]) -> tuple[dict[RunConfig, bool], int]:
    """Return what a notebook with these parameters passes to `Session.asks`: its runs, and its number of trials.

    The value of a run is True if a light run, without weights, is enough.
    """
    names: dict[str, Any] = {}
    for cell in read(path).cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags or "runs" in tags:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, names)
            names |= given if "parameters" in tags else {}
    session = names.get("session")
    return (session.asked, session.trials) if session else ({}, 0)


def show(work: Sequence[tuple[Path, Mapping[str, Any]]], data: str | Path | None, folder: Path) -> None:
    """Print one line per notebook, one line per missing run, and the totals.

    A run's time is the median time of finished runs of the same kind: the same data set, backbone, method, epochs,
    steps per epoch and device.

    Args:
        work: notebooks with their parameters.
        data: the folder of the data sets.
        folder: the profile's results.
    """
    here = _device(made_with(pick_device(None)))
    measured: dict[tuple[Any, ...], list[float]] = {}
    for path in folder.glob(f"runs/*/{METRICS}"):
        with contextlib.suppress(VptspError):  # a damaged run says nothing about times
            run = read_run(path.parent)
            if _device(run.record) == here:
                measured.setdefault(_kind(run.config), []).append(run.record["seconds"])
    missing: dict[Path, float | None] = {}  # {run folder: expected seconds}
    finished: set[Path] = set()
    absent: dict[str, AbsentData | None] = {}
    for path, given in work:
        runs, trials = asked_runs(path, given)
        folders = {run_folder(config, folder): config for config in runs}
        done = {place for place, config in folders.items() if (place / METRICS).exists()
                and (runs[config] or not read_run(place).light)}  # fmt: skip
        line = f"{path.stem}: {len(folders)} runs, {len(done)} finished, {len(folders) - len(done)} missing"
        if trials:
            line += f"; a search of {trials} trials, finished ones included"
        if is_finished(folder, path.stem, made_from(path, given)):
            line += "; the notebook is finished"
        print(line)
        for place, config in folders.items():
            if place in done:
                continue
            seconds = measured.get(_kind(config))
            missing[place] = statistics.median(seconds) if seconds else None
            time = f"about {missing[place]:.0f} s" if seconds else f"no run of this kind on {here} yet"
            print(f"    {place.name}, seed {config.seed}: {time}")
            absent[config.dataset] = absent_data(config, data, path.stem.split("_")[0], folder)
        finished |= done
    for each in filter(None, absent.values()):
        print(f"{each.fault}. To get it: {each.get}")
    known = [seconds for seconds in missing.values() if seconds is not None]
    finished -= missing.keys()  # a light run is finished for one notebook and missing for one that needs its weights
    print(f"{len(finished) + len(missing)} runs, {len(finished)} finished, {len(missing)} missing")
    if known:
        print(f"One after another on {here}, {len(known)} of the missing runs take about {sum(known) / 60:.0f} minutes")
    if unknown := len(missing) - len(known):
        print(f"The time of {unknown} of them is not known, because no such run has finished on {here}")
    print("Pictures, searches and timings are not included")


def _device(made: Mapping[str, Any]) -> str:
    return re.sub(r", \d+ threads?$", "", str(made["device"]))


def _kind(config: RunConfig) -> tuple[Any, ...]:
    return config.dataset, config.backbone, config.method, config.epochs, config.steps_per_epoch
