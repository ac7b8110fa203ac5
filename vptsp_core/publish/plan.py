"""What a call of the runner would do: which runs each notebook asks for, which are there, and how long the rest takes.

No notebook is executed: of its cells only that with the parameters and those tagged ``runs``, which say what it runs.
"""

from __future__ import annotations

import contextlib
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vptsp_core.method.config import RunConfig
from vptsp_core.paper.report import absent_data
from vptsp_core.publish.manifest import is_finished, made_from
from vptsp_core.publish.parameters import read
from vptsp_core.runs.folder import METRICS, read_run, run_folder
from vptsp_core.runs.record import made_with
from vptsp_core.system.devices import pick_device

RUNS = "runs"  # the tag of the cells that lead to `Session.plan` and `Session.asks`


def asked_runs(path: Path, given: Mapping[str, Any]) -> tuple[dict[RunConfig, bool], int]:
    """What `Session.asks` noted of a notebook with these parameters: its runs and its trials."""
    names: dict[str, Any] = {}
    for cell in read(path).cells:
        tags = cell.metadata.get("tags", [])
        if "parameters" in tags or RUNS in tags:
            with contextlib.redirect_stdout(io.StringIO()):
                exec(cell.source, names)
            names |= given if "parameters" in tags else {}
    session = names.get("session")
    return (session.asked, session.trials) if session else ({}, 0)


def show(work: Sequence[tuple[Path, Mapping[str, Any]]], data: str | Path | None, folder: Path) -> None:
    """Print what is there and what is missing, a line a notebook and a line a missing run, and the sum.

    A run takes as long as the median of the finished runs of its kind among the results: those of the same data set,
    backbone, method and number of epochs on the device of this machine, a CPU or a GPU of this name.

    Args:
        work: notebooks with their parameters.
        folder: the results of the profile.
    """
    here = _device(made_with(pick_device(None)))
    measured: dict[tuple[Any, ...], list[float]] = {}
    for each in (read_run(path.parent) for path in folder.glob(f"runs/*/{METRICS}")):
        if _device(each.record) == here:
            measured.setdefault(_kind(each.config), []).append(each.record["seconds"])
    listed: dict[Path, float | None] = {}  # missing runs, with their seconds
    found: set[Path] = set()
    absent: dict[str, str] = {}
    for path, given in work:
        runs, trials = asked_runs(path, given)
        places = {run_folder(config, folder): config for config in runs}
        there = {place for place, each in places.items() if (place / METRICS).exists()
                 and (runs[each] or not read_run(place).light)}  # fmt: skip
        new = [place for place in places if place not in there and place not in listed]
        ready = "; its page is there" if is_finished(folder, path.stem, made_from(path, given)) else ""
        above = len(places) - len(there) - len(new)
        print(f"{path.stem}: {len(places)} runs, {len(there)} there, {len(new)} missing"
              + (f", {above} listed above" if above else "")
              + (f"; a search of {trials} trials, finished ones included" if trials else "") + ready)  # fmt: skip
        for place in new:
            seconds = measured.get(_kind(places[place]))
            dataset = places[place].dataset
            absent[dataset] = absent_data(places[place], data, path.stem.split("_")[0], folder)
            listed[place] = statistics.median(seconds) if seconds else None
            told = f"about {listed[place]:.0f} s" if seconds else f"no run of this kind on {here} yet"
            print(f"    {place.name}, seed {places[place].seed}: {told}")
        found |= there
    for line in filter(None, absent.values()):
        print(line.partition(", and then: ")[0])
    known = [seconds for seconds in listed.values() if seconds is not None]
    found -= listed.keys()  # light, where one notebook needs the weights
    print(f"{len(found) + len(listed)} runs, {len(found)} there, {len(listed)} missing")
    print(
        f"One after another on {here}, {len(known)} of those missing take about {sum(known) / 60:.0f} minutes, and of "
        f"{len(listed) - len(known)} no time is known; pictures, searches and timings come on top"
    )


def _device(made: Mapping[str, Any]) -> str:
    return str(made["device"]).partition(",")[0]  # "cpu, 2 threads": runs side by side have one each


def _kind(config: RunConfig) -> tuple[Any, ...]:
    return config.dataset, config.backbone, config.method, config.epochs, config.steps_per_epoch
