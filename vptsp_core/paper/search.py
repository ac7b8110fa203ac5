"""python -m vptsp_core tune: search for a configuration, table 9's space as an Optuna study in a database.

The first trial is the configuration that the search starts from, so the best is never below it. Every trial is a run
like any other and is found again by its hash. `tune` called again resumes the study; calls with the same database,
on one machine or several, share its trials. A trial whose worker dies is repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import optuna
import torch
from optuna.exceptions import TrialPruned
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.data import data_folder, load_benchmark, refuse_unread
from vptsp_core.data.holdout import hold_out
from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS, parse_change, preset
from vptsp_core.paper.search_space import Space, fitting_space
from vptsp_core.paper.search_study import STATES, choose, counts, file_url, open_study, quiet, tried
from vptsp_core.runs.folder import Run
from vptsp_core.runs.run import run
from vptsp_core.runs.selection import HELD_OUT
from vptsp_core.runs.workers import check_workers, share_out
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.files import writable_folder, write_json
from vptsp_core.system.locks import locked

LOCK = ".search.lock"  # in the results folder
POLL = 1.0  # seconds between looks at what the other workers are doing

MACHINES = """\
The same command resumes a search that was stopped, and starts one more worker of a search that runs: here, or with the
same --storage on other machines (SQLite serves one machine only):
  python -m vptsp_core tune --preset cub200-vits16 --trials 200 --storage postgresql+psycopg://USER@HOST/DATABASE
To train the best configuration on all training classes:
  python -m vptsp_core train --preset results/presets/STUDY.json --set selection=released
"""

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
    """Search table 9's space for the highest R@1 of `base`; returns the study once all its trials are finished.

    Args:
        base: the first trial, and what every other trial changes. With ``selection="validation"`` trials are judged by
            held-out training classes; with any other value by the test classes, as the paper's were. Its seed is also
            the search's.
        trials: of the whole study, with those of all workers and of earlier calls; the latest call decides.
            None: as many as before, or 50.
        storage: SQLAlchemy URL; default: the file search.db in the results folder. SQLite serves one machine.
        name: of the study; default `study_name`.
        results, data: as for `runs.run.run`, which also gets ``options``.
        workers: None: this process alone; a number: that many processes here; ``"gpus"``: one a GPU of this machine.
        keep: keys of the space that stay as they are in `base`.
        tell: gets a line for each trial that ends.

    Raises:
        VptspError: the database cannot be used, has the study of another base or space, or a run failed.
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"trials = {trials} must be at least 1")
    if str(workers).startswith("tcp://"):
        raise ConfigError(f"workers = {workers!r} must be a number or 'gpus'; call `tune` on each machine instead")
    several = check_workers(workers)
    base = base.with_whole_path()
    folder = writable_folder(results_folder(results))
    url = storage or file_url(folder.resolve() / "search.db")
    name = name or study_name(base)
    data = data_folder(base.dataset, data)
    benchmark = load_benchmark(base.dataset, data, options.get("allow_partial", False))
    classes = (hold_out(benchmark)[0] if base.selection == "validation" else benchmark).train.num_classes
    space = {key: values for key, values in fitting_space(base, classes).items() if key not in keep}
    if not space:
        raise ConfigError(f"keep holds all that table 9 varies for method = {base.method!r}; leave some to search for")
    options = {"progress": False, **options, "results": folder, "data": data}
    with locked(folder / LOCK), quiet():
        study = open_study(url, name, base, space, trials)
    if several is None:
        shown = bar(
            title=name, initial=counts(study)[0], total=study.user_attrs["trials"], unit="trials",
            show=bool(options["progress"]) and is_log(),  # in a terminal ``tell`` is enough
        )  # fmt: skip
        with quiet(), shown:
            _work(study, lambda trial: _trained(trial, base, space, classes, options), folder / LOCK, tell, shown)
        return study
    count = torch.cuda.device_count() if several == "gpus" else int(several)
    again = dict(base=base, storage=url, name=name, keep=keep, tell=tell, **options)
    came = share_out(_tuned, {folder / f"worker {at}": again for at in range(count)}, several, progress=False)
    errors = [each for each in came.values() if isinstance(each, VptspError)]
    if errors and counts(study)[0] < study.user_attrs["trials"]:
        raise errors[0]
    return study


def study_name(base: RunConfig, changes: Mapping[str, Any] | None = None) -> str:
    """Data set, backbone and method; then a hash of ``changes``, if there are any.

    >>> study_name(RunConfig())
    'cub200-vit_small_patch16_224-vptsp'
    """
    name = f"{base.dataset}-{base.backbone.split('.')[0]}-{base.method}"
    if not changes:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(changes, sort_keys=True, default=str).encode()).hexdigest()[:6]}"


def results_folder(results: str | Path | None) -> Path:
    """The folder of the results, as `runs.run.run` finds it."""
    return Path(results or os.environ.get("VPTSP_RESULTS") or "results").expanduser().absolute()


def best_config(study: optuna.Study) -> RunConfig:
    """The run description of the best trial. Raises VptspError where no trial of the study was trained."""
    try:
        chosen = tried(study.best_trial)
    except ValueError:
        raise VptspError(f"study {study.study_name} has no trained trial yet; make more of them") from None
    return RunConfig().replace(**study.user_attrs["base"], **chosen)


def write_preset(study: optuna.Study, path: Path) -> Path:
    """Write what its run reads of `best_config` as JSON, for `method.presets.preset`."""
    best = best_config(study)
    write_json(path, {key: value for key, value in best.to_dict().items() if key not in best.unread()})
    return path


def judged(done: Run) -> float:
    """The R@1 by which a trial is judged: with ``selection="validation"`` the best epoch's on held-out training
    classes, else the R@1 on the test classes that its run reports.
    """
    if done.config.selection == "validation":
        return float(done.history[f"{HELD_OUT}R@1"].max())
    return done.metrics["R@1"]


def told(trial: FrozenTrial) -> str:
    """One line: the trial's number, its result, what was tried."""
    result = f"R@1 {100 * trial.values[0]:.2f} %" if trial.state == TrialState.COMPLETE else STATES[trial.state]
    choice = " ".join(f"{key}={value}" for key, value in tried(trial).items())
    ending = trial.user_attrs.get("reason") or f"run {trial.user_attrs.get('run')}"
    return f"trial {trial.number}: {result}  {choice}  ({ending})"


def main(argv: Sequence[str]) -> int:
    """Search, a line a trial, and write the best configuration as a preset. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core tune",
        description="search the space of the paper's table 9",
        epilog=MACHINES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", default="demo", help=f"to start from: one of {', '.join(PRESETS)}, or a .json file (default: demo)"
    )
    parser.add_argument("--method", help="full, linear, adapter, vpt or vptsp (default: the preset's)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="e.g. epochs=30; what is set is not searched. Trials are judged by held-out training classes; "
        "selection=released judges them by the test classes, as the paper did",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, help="of the whole study (default: 50, or as many as it was begun with)")
    parser.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: search.db in the results folder)")
    parser.add_argument("--study", metavar="NAME", help="default: data set, backbone and method")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--results", metavar="DIR", help="default: ./results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)")
    parser.add_argument("--best", metavar="FILE.json", help="the preset to write (default: presets/STUDY.json there)")
    args = parser.parse_args(argv)
    changes = {"selection": "validation"} | dict(parse_change(change) for change in args.changes)
    if args.method is not None:
        changes["method"] = args.method
    if changes.get("method") == "full":  # learns all of the backbone anyhow
        changes.setdefault("bitfit", False)
    base = preset(args.preset, **changes)
    refuse_unread(base.dataset, args.data)
    study = tune(
        base, args.trials, storage=args.storage, name=args.study, results=args.results,
        data=args.data, device=args.device, keep=changes, tell=lambda line: print(line, flush=True),
        progress=is_log(),  # a line an epoch; in a terminal a line a trial is enough
    )  # fmt: skip
    best_config(study)  # says so where there is none
    file = Path(args.best or results_folder(args.results) / "presets" / f"{study.study_name}.json")
    print(f"best: {told(study.best_trial)}\n{write_preset(study, file.expanduser().absolute())}")
    return 0


# ---- a worker ------------------------------------------------------------------------------------


def _tuned(arguments: dict[str, Any]) -> None:
    tune(**arguments)


def _work(
    study: optuna.Study, trained: Callable[[optuna.Trial], float], lock: Path, tell: Tell | None, progress: Any
) -> None:
    """Make trials until all of the study's are finished and none is running: only then is the best known.

    The lock is held from the look at what is missing until a trial has begun. Machines that share the database and not
    the results folder may begin a few trials too many, which count like the others.
    """
    turn = contextlib.ExitStack()

    def objective(trial: optuna.Trial) -> float:
        turn.close()
        try:
            return trained(trial)
        except (KeyboardInterrupt, VptspError):  # not the trial's fault: it is repeated
            optuna.storages.RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
            raise

    def ended(_: optuna.Study, trial: FrozenTrial) -> None:
        if tell is not None:
            tell(told(trial))

    while True:
        optuna.storages.fail_stale_trials(study)
        with turn:
            turn.enter_context(locked(lock))
            finished, running = counts(study)
            progress.update(finished - progress.n)  # with the trials of others
            if finished >= study.user_attrs["trials"] and not running:
                return
            if finished + running < study.user_attrs["trials"]:
                study.optimize(objective, n_trials=1, callbacks=[ended])
                continue
        time.sleep(POLL)


def _trained(trial: optuna.Trial, base: RunConfig, space: Space, classes: int, options: dict[str, Any]) -> float:
    """Train what the sampler chooses; a choice that cannot be run or trained is left out."""
    try:
        config = base.replace(**choose(trial, space))
        drawn = config.batch // config.samples_per_class
        if drawn > classes:
            raise ConfigError(f"a batch draws {drawn} classes, the training set has {classes}")
    except ConfigError as error:
        _leave_out(trial, error)
    try:
        done = run(config, **options)
    except TrainingError as error:
        _leave_out(trial, error)
    trial.set_user_attr("run", done.config.hash())
    trial.set_user_attr("folder", done.path.name)
    trial.set_user_attr("seconds", done.record["seconds"])
    trial.set_user_attr("test", done.metrics["R@1"])
    return judged(done)


def _leave_out(trial: optuna.Trial, error: VptspError) -> NoReturn:
    trial.set_user_attr("reason", " ".join(str(error).split()))
    raise TrialPruned from None
