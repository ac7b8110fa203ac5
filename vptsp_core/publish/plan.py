"""What a call of the runner would do: which runs each notebook asks for, which are there, and how long the rest takes.

No notebook is executed. Of its code only those statements run that the arguments of its `CALLS` depend on, and in place
of a call its arguments are noted.
"""

from __future__ import annotations

import ast
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vptsp_core.method.config import RunConfig
from vptsp_core.paper.report import absent_data
from vptsp_core.publish.manifest import is_finished, made_from
from vptsp_core.publish.parameters import read
from vptsp_core.runs.folder import METRICS, read_run, run_folder
from vptsp_core.runs.record import made_with
from vptsp_core.system.devices import pick_device

CALLS = ("carry_out", "run", "many", "tune")  # of a session, and of the package


def asked_runs(path: Path, given: Mapping[str, Any], folder: Path) -> tuple[dict[RunConfig, bool], int]:
    """The runs that a notebook asks for with these parameters, each with whether a light one will do, and how many
    trials of a search.

    Args:
        folder: the results of the profile.
    """
    runs: dict[RunConfig, bool] = {}
    trials: list[int] = []

    def note(call: str, first: Any, second: Any = None, light: bool = True) -> None:
        if call == "tune":
            trials.append(second)
            return
        asked = [first] if call == "run" else first
        if call == "carry_out":
            seeds = second if isinstance(second, Mapping) else dict.fromkeys(first, second)
            asked = [config.replace(seed=seed) for cell, config in first.items() for seed in seeds[cell]]
        runs.update((config, light and runs.get(config, True)) for config in asked)

    session = SimpleNamespace(folder=folder, data=given.get("data"), absent=lambda config: "")
    names: dict[str, Any] = {"session": session, "note": note}
    statements: list[ast.stmt] = []
    for cell in (cell for cell in read(path).cells if cell.cell_type == "code"):
        tree = ast.parse(cell.source)
        if "parameters" in cell.metadata.get("tags", []):
            exec(compile(tree, path.name, "exec"), names)
            names |= given
        else:
            statements += tree.body
    needed: set[str] = set()
    while True:
        kept = _kept(statements, needed)
        while kept and "note" not in _names(kept[-1:]):  # what comes after the last call is of what it returned
            kept.pop()
        if not (more := _names(kept) - needed - {"session"}):
            break
        needed |= more
    exec(compile(ast.fix_missing_locations(ast.Module(kept, [])), path.name, "exec"), names)
    return runs, sum(trials)


def _kept(statements: Sequence[ast.stmt], needed: set[str]) -> list[ast.stmt]:
    """The statements that give ``needed`` names a value, and for each of the `CALLS` one that notes its arguments."""
    kept: list[ast.stmt] = []
    for statement in statements:
        if isinstance(statement, ast.If):
            then, otherwise = _kept(statement.body, needed), _kept(statement.orelse, needed)
            if then or otherwise:
                kept.append(ast.If(statement.test, then or [ast.Pass()], otherwise))
        elif calls := [each for each in ast.walk(statement) if isinstance(each, ast.Call) and _name(each) in CALLS]:
            for call in calls:
                arguments = [ast.Constant(_name(call)), *call.args[:2]]
                light = [each for each in call.keywords if each.arg == "light"]
                kept.append(ast.Expr(ast.Call(ast.Name("note", ast.Load()), arguments, light)))
        elif _given(statement) & needed:
            kept.append(statement)
    return kept


def _names(statements: Sequence[ast.stmt]) -> set[str]:
    return {each.id for part in statements for each in ast.walk(part) if isinstance(each, ast.Name)}


def _name(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", None) or getattr(call.func, "id", ""))


def _given(statement: ast.stmt) -> set[str]:
    """The names that an assignment, an import or a function gives a value."""
    match statement:
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {alias.asname or alias.name.split(".")[0] for alias in names}
        case ast.FunctionDef(name=name):
            return {name}
        case ast.Assign() | ast.AnnAssign():
            stored = (each for each in ast.walk(statement) if isinstance(each, ast.Name))
            return {each.id for each in stored if isinstance(each.ctx, ast.Store)}
    return set()


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
        runs, trials = asked_runs(path, given, folder)
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
