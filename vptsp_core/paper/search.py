"""Search for a configuration: table 9's space as an Optuna study, which lies in a database.

The first trial is the configuration that the search starts from, so that the best is never below it. Every trial is a
run as any other, found again by its hash, so that what was trained once costs nothing again. The
database says what was tried and what is being tried: `tune` called again goes on, and called on several machines
(or several times on one) with the same database it shares the work. A worker that dies costs its current trial,
which another one makes again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, NoReturn

import optuna
import torch
from optuna.exceptions import TrialPruned, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.data import data_folder, load_benchmark
from vptsp_core.data.holdout import hold_out
from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.search_database import (
    DATABASE_ERRORS,
    STOPPED,
    choose,
    counts,
    database,
    deciding,
    file_url,
    open_study,
    quiet,
    surplus,
    tried,
    waited_for,
)  # fmt: skip
from vptsp_core.paper.search_processes import devices_of, side_by_side
from vptsp_core.paper.search_space import Space, check, fitting_space
from vptsp_core.runs.folder import Run
from vptsp_core.runs.run import run
from vptsp_core.runs.selection import HELD_OUT
from vptsp_core.system.files import writable_folder, write_json

POLL = 1.0  # seconds between looks at what the other workers still do

Tell = Callable[[str], None]


def tune(
    base: RunConfig,
    trials: int | None = None,
    *,
    storage: str | None = None,
    name: str | None = None,
    results: str | Path | None = None,
    data: str | Path | None = None,
    workers: int | str | None = None,
    keep: Collection[str] = (),
    tell: Tell | None = None,
    **options: Any,
) -> optuna.Study:
    """Look for the highest R@1 of `base` over table 9's space; returns the study once all its trials are made.

    Args:
        base: the first trial, and what every other changes. With ``selection="validation"`` trials are judged by
            held-out training classes; with any other one by the test classes, as the paper's were. Its seed is the
            search's, too.
        trials: of the whole study, those of all workers and of earlier calls counted; the latest call's word holds.
            None: as many as it was told before, else 50.
        storage: SQLAlchemy URL; default the file search.db in the results folder. SQLite serves the processes of one
            machine; several machines need a database server.
        name: of the study; default `study_name`.
        results, data: as for `runs.run.run`, which also gets ``options``.
        workers: None: this process alone; a number: that many processes here; ``"gpus"``: one a GPU of this machine.
            For several machines, call this on each.
        keep: keys of the space that stay as they are in `base`.
        tell: gets a line for each trial that ends.

    Raises:
        VptspError: the database cannot be used, holds the study of another base or space, or a run cannot be made.
    """
    name, folder = name or study_name(base), results_folder(results)
    if trials is not None and trials < 1:
        raise ConfigError(f"trials = {trials} must be at least 1")
    if storage is None:
        storage = file_url(writable_folder(folder).resolve() / "search.db")
    base = base.with_whole_path()
    data = data_folder(base.dataset, data)
    benchmark = load_benchmark(base.dataset, data, options.get("allow_partial", False))
    classes = (hold_out(benchmark)[0] if base.selection == "validation" else benchmark).train.num_classes
    space = {key: values for key, values in fitting_space(base, classes).items() if key not in keep}
    if not space:
        raise ConfigError(f"keep holds all that table 9 varies for method = {base.method!r}; leave some to search for")
    with database(storage), deciding(storage, folder):
        study = open_study(storage, name, base, space, trials)
    options = {"progress": False, **options, "results": folder, "data": data}
    if workers is None:
        with database(storage):
            _work(study, storage, base, space, classes, tell, options)
    else:
        devices = devices_of(workers, options.get("device"))
        side_by_side(_process, devices, storage, name, base, space, classes, tell, options)
        if counts(study)[0] < study.user_attrs["trials"]:
            raise VptspError(f"study {name}: its workers ended before its trials were made; the same call goes on")
    return study


def study_name(base: RunConfig, changes: Mapping[str, Any] | None = None) -> str:
    """Data set, backbone and method; after them a hash that tells ``changes``, if there are any, from others.

    >>> study_name(RunConfig())
    'cub200-vit_small_patch16_224-vptsp'
    """
    name = f"{base.dataset}-{base.backbone.split('.')[0]}-{base.method}"
    if not changes:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(changes, sort_keys=True, default=str).encode()).hexdigest()[:6]}"


def results_folder(results: str | Path | None) -> Path:
    """Where `runs.run.run` writes, too."""
    return Path(results or os.environ.get("VPTSP_RESULTS") or "results").expanduser().absolute()


def best_config(study: optuna.Study) -> RunConfig:
    """The run description of the best trial.

    Raises:
        VptspError: no trial of the study was trained.
    """
    try:
        chosen = tried(study.best_trial)
    except ValueError:
        raise VptspError(f"study {study.study_name} has no trained trial yet; make more of them") from None
    return RunConfig().replace(**study.user_attrs["base"], **chosen)


def write_preset(study: optuna.Study, path: Path) -> Path:
    """Write `best_config` as JSON, for `method.presets.preset`."""
    write_json(path, best_config(study).to_dict())
    return path


def _work(
    study: optuna.Study, storage: str, base: RunConfig, space: Space, classes: int, tell: Tell | None,
    options: dict[str, Any],
) -> None:  # fmt: skip
    """Make trials until all of the study's are finished, by whomever, and none is running: the best is then the best of
    all. A trial that another worker died of is made again."""
    lost = False
    turn = contextlib.ExitStack()  # holds the lock from the look at what is missing until the trial has begun

    def objective(trial: optuna.Trial) -> float:
        nonlocal lost
        turn.close()
        if surplus(study, trial.number):
            trial.set_user_attr("surplus", True)
            raise _Surplus
        try:
            done = _trained(trial, base, space, classes, options)
            trial.set_user_attr("run", done.config.hash())
            trial.set_user_attr("folder", done.path.name)
            trial.set_user_attr("seconds", done.record["seconds"])
            trial.set_user_attr("test", done.metrics["R@1"])
            return judged(done)
        except UpdateFinishedTrialError:
            lost = True  # this process stood still for so long that another took the trial; it finds the run done
            raise
        except (KeyboardInterrupt, VptspError):  # nothing that the choice is to blame for
            with contextlib.suppress(*DATABASE_ERRORS):  # it may be what failed; the first error is the one that counts
                STOPPED(study, study.get_trials(deepcopy=False)[trial.number])
            raise

    def ended(_: optuna.Study, trial: FrozenTrial) -> None:
        if tell is not None and "surplus" not in trial.user_attrs:
            tell(told(trial))

    callbacks = [ended]
    awaited: set[int] = set()
    while True:
        with quiet():
            optuna.storages.fail_stale_trials(study)
            finished, running = counts(study)
            wanted = study.user_attrs["trials"]
            if finished >= wanted and not running:
                return
            if finished + running >= wanted:
                for number in waited_for(study, awaited):
                    if tell is not None:
                        tell(f"waiting for trial {number}, which another worker is at or was")
                time.sleep(POLL)  # the others may yet die
                continue
            lost = False
            try:
                with turn:
                    turn.enter_context(deciding(storage, options["results"]))
                    if sum(counts(study)) < study.user_attrs["trials"]:
                        study.optimize(objective, n_trials=1, callbacks=callbacks, catch=_Surplus)
            except ValueError:
                if not lost:
                    raise


class _Surplus(Exception):
    """Workers that do not see each other's locks took more trials than the study wants."""


def _trained(trial: optuna.Trial, base: RunConfig, space: Space, classes: int, options: dict[str, Any]) -> Run:
    """The run of the choice that the sampler makes; a choice that cannot be run or trained is left out."""
    try:
        config = base.replace(**choose(trial, base, space))
        check(config, classes)
    except ConfigError as error:
        _leave_out(trial, error)
    try:
        return run(config, **options)
    except TrainingError as error:
        _leave_out(trial, error)


def _leave_out(trial: optuna.Trial, error: VptspError) -> NoReturn:
    trial.set_user_attr("reason", " ".join(str(error).split()))
    raise TrialPruned from None


def judged(done: Run) -> float:
    """The R@1 that a trial is chosen by: with ``selection="validation"`` the best epoch's on held-out training classes,
    else that which its run reports, on the test classes."""
    if done.config.selection == "validation":
        return float(done.history[f"{HELD_OUT}R@1"].max())
    return done.metrics["R@1"]


def told(trial: FrozenTrial) -> str:
    """One line: the trial's number, what came of it, what was tried."""
    seen = {TrialState.COMPLETE: lambda: f"R@1 {100 * trial.values[0]:.2f} %", TrialState.PRUNED: lambda: "left out"}
    choice = " ".join(f"{key}={value}" for key, value in tried(trial).items())
    ending = trial.user_attrs.get("reason") or f"run {trial.user_attrs.get('run')}"
    return f"trial {trial.number}: {seen.get(trial.state, lambda: 'failed')()}  {choice}  ({ending})"


def _process(
    device: str | None, of: int, storage: str, name: str, base: RunConfig, space: Space, classes: int,
    tell: Tell | None, options: dict[str, Any],
) -> None:  # fmt: skip
    torch.set_num_threads(max(1, torch.get_num_threads() // of))
    try:
        study = open_study(storage, name, base, space)
        with database(storage):
            _work(study, storage, base, space, classes, tell, {**options, "device": device})
    except VptspError as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
    except KeyboardInterrupt:
        sys.exit(130)
