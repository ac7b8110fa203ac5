"""python -m vptsp_core tune: search table 9's space for the best configuration, as an Optuna study in a database.

The first trial is the configuration that the search starts from, so the best trial is never worse on the classes
that judge it. Every trial is an ordinary run and is found again by its hash. The same call resumes the study. Calls
with the same database share its trials, on one machine or several. If a worker dies, its trial is repeated.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import optuna
import sqlalchemy
import torch
from optuna.exceptions import TrialPruned
from optuna.storages import RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.data import data_folder, load_benchmark, refuse_unread
from vptsp_core.data.holdout import hold_out
from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS, parse_change, preset_or_demo
from vptsp_core.paper.search_space import Space, fitting_space
from vptsp_core.paper.search_study import STATES, choose, counts, open_study, quiet, tried
from vptsp_core.runs.folder import Run, whole_path
from vptsp_core.runs.run import run
from vptsp_core.runs.selection import HELD_OUT
from vptsp_core.runs.workers import check_workers, run_in_workers
from vptsp_core.system.bars import bar, is_log
from vptsp_core.system.files import writable_folder, write_json
from vptsp_core.system.locks import locked
from vptsp_core.system.places import results_folder

LOCK = ".search.lock"  # in the results folder
POLL = 1.0  # seconds between two looks at the trials of other workers

MACHINES = """\
The same command resumes a search that was interrupted. While a search runs, the same command adds a worker: here, or
with the same --storage on other machines (SQLite serves one machine only):
  python -m vptsp_core tune --preset cub200-vits16 --trials 200 --storage postgresql+psycopg://USER@HOST/DATABASE
To train the best configuration on all training classes:
  python -m vptsp_core train --preset results/presets/STUDY.json --set selection=released
"""


@quiet()
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
    tell: Callable[[str], None] | None = None,
    **options: Any,
) -> optuna.Study:
    """Search table 9's space, starting from `base`, for the config with the highest R@1. Return the finished study.

    Args:
        base: the first trial; the other trials change it. If its selection holds classes out, trials are judged by
            held-out training classes, otherwise by the test classes, as in the paper. Its seed is also the search's.
        trials: the number of trials of the whole study, including those of other workers and earlier calls. The latest
            call decides. If None, the number stays as it was, or is 50 for a new study.
        storage: SQLAlchemy URL (default: the file search.db in the results folder). SQLite serves one machine only.
        name: of the study (default: `study_name`).
        results, data: as for `runs.run.run`, which also gets ``options``.
        workers: None trains in this process, a number in that many processes here, ``"gpus"`` in one process per GPU.
        keep: keys of the space that stay as they are in `base`.
        tell: called with one line when a trial ends; not with ``workers``.

    Raises:
        VptspError: the database cannot be used, its study has another base or space, or a run failed.
    """
    if trials is not None and trials < 1:
        raise ConfigError(f"trials = {trials} must be at least 1")
    if str(workers).startswith("tcp://"):
        raise ConfigError(f"workers = {workers!r} must be a number or 'gpus'; call `tune` on each machine instead")
    if workers is not None and tell is not None:
        raise ConfigError("tell is for a search in this process; leave it out, or workers")
    workers = check_workers(workers)
    base = base.replace(weights=whole_path(base.weights))
    folder = writable_folder(results_folder(results))
    if storage is None:  # a path may hold any character
        file = sqlalchemy.URL.create("sqlite", database=str(folder.resolve() / "search.db"))
        storage = file.render_as_string()
    name = name or study_name(base)
    data = data_folder(base.dataset, data)
    benchmark = load_benchmark(base.dataset, data, options.get("allow_partial", False))
    classes = (hold_out(benchmark)[0] if base.holds_out else benchmark).train.num_classes
    space = {key: values for key, values in fitting_space(base, classes).items() if key not in keep}
    if not space:
        raise ConfigError(f"keep leaves no key of table 9 for method = {base.method!r}; keep fewer keys")
    options = {"progress": False, **options, "results": folder, "data": data}
    with locked(folder / LOCK):
        study = open_study(storage, name, base, space, trials)
    if workers is None:
        show = bool(options["progress"]) and is_log()  # in a terminal, the lines of ``tell`` are enough
        _work(study, lambda trial: _train(trial, base, space, classes, options), folder / LOCK, tell, show)
        return study
    count = torch.cuda.device_count() if workers == "gpus" else int(workers)
    again = dict(base=base, storage=storage, name=name, keep=keep, **options)
    items = {folder / f"worker {number}": again for number in range(count)}
    ended = run_in_workers(_tune, items, workers, progress=False)
    errors = [each for each in ended.values() if isinstance(each, VptspError)]
    if errors and counts(study)[0] < study.user_attrs["trials"]:
        raise errors[0]
    return study


def study_name(base: RunConfig, changes: Mapping[str, Any] | None = None) -> str:
    """Return the data set, backbone and method, followed by a hash of ``changes`` if there are any.

    >>> study_name(RunConfig())
    'cub200-vit_small_patch16_224-vptsp'
    """
    name = f"{base.dataset}-{base.backbone.split('.')[0]}-{base.method}"
    if not changes:
        return name
    return f"{name}-{hashlib.sha256(json.dumps(changes, sort_keys=True, default=str).encode()).hexdigest()[:6]}"


def best_config(study: optuna.Study) -> RunConfig:
    """Return the config of the best trial. Raises VptspError if no trial of the study was trained."""
    try:
        chosen = tried(study.best_trial)
    except ValueError:
        raise VptspError(f"study {study.study_name} has no trained trial yet; make more trials") from None
    return RunConfig().replace(**study.user_attrs["base"], **chosen)


def write_preset(study: optuna.Study, path: Path) -> Path:
    """Write `best_config` as a JSON file for `method.presets.preset`, without the keys that its run does not read."""
    best = best_config(study)
    write_json(path, {key: value for key, value in best.to_dict().items() if key not in best.unread()})
    return path


def judged(done: Run) -> float:
    """Return the R@1 by which a trial is judged.

    If the selection holds classes out, this is the best R@1 of any epoch on the held-out classes. Otherwise it is the
    R@1 that the run reports on the test classes.
    """
    if done.config.holds_out:
        return float(done.history[f"{HELD_OUT}R@1"].max())
    return done.metrics["R@1"]


def trial_line(trial: FrozenTrial) -> str:
    """Return one line with the trial's number, its result and the values that it tried."""
    result = f"R@1 {100 * trial.values[0]:.2f} %" if trial.state == TrialState.COMPLETE else STATES[trial.state]
    choice = " ".join(f"{key}={value}" for key, value in tried(trial).items())
    ending = trial.user_attrs.get("reason") or f"run {trial.user_attrs.get('run')}"
    return f"trial {trial.number}: {result}  {choice}  ({ending})"


def main(argv: Sequence[str]) -> int:
    """Search, print a line per trial, and write the best configuration as a preset. Return the exit status.

    Raises ConfigError and other VptspErrors, as `tune` does.
    """
    parser = argparse.ArgumentParser(
        "python -m vptsp_core tune",
        description="search the space of the paper's table 9",
        epilog=MACHINES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset",
        help=f"the first trial: one of {', '.join(PRESETS)}, or a .json file (default: demo)",
    )  # fmt: skip
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="for every trial, e.g. epochs=30; these keys are not searched. Trials are judged by held-out training "
        "classes; selection=released judges them by the test classes, as the paper did",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, help="of the whole study (default: 50, or the study's number so far)")
    parser.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: search.db in the results folder)")
    parser.add_argument("--study", metavar="NAME", help="default: data set, backbone and method")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets (default: VPTSP_DATA)")
    parser.add_argument("--results", metavar="DIR", help="default: VPTSP_RESULTS, or else ./results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument(
        "--best", metavar="FILE.json", help="the preset to write (default: presets/STUDY.json in the results folder)"
    )
    args = parser.parse_args(argv)
    changes = {"selection": "validation"} | dict(parse_change(change) for change in args.changes)
    if changes.get("method") == "full":  # it learns the biases anyway
        changes.setdefault("bitfit", False)
    base = preset_or_demo(args.preset, changes)
    refuse_unread(base.dataset, args.data)
    study = tune(
        base, args.trials, storage=args.storage, name=args.study, results=args.results,
        data=args.data, device=args.device, keep=changes, tell=lambda line: print(line, flush=True),
        progress=is_log(),  # a log also gets a line per epoch
    )  # fmt: skip
    file = Path(args.best or results_folder(args.results) / "presets" / f"{study.study_name}.json")
    path = write_preset(study, file.expanduser().absolute())
    print(f"best: {trial_line(study.best_trial)}\n{path}")
    return 0


# ---- a worker ------------------------------------------------------------------------------------


def _tune(arguments: dict[str, Any]) -> None:
    tune(**arguments)


def _work(
    study: optuna.Study, train: Callable[[optuna.Trial], float], lock: Path, tell: Callable[[str], None] | None,
    show: bool,
) -> None:  # fmt: skip
    """Make trials until the study has all its trials and none is running. Before that, the best trial is not known.

    A worker holds the lock from counting the trials until its own trial has begun. Machines that share the database
    but not the results folder may begin a few trials too many, which count like the others.
    """
    turn = contextlib.ExitStack()

    def objective(trial: optuna.Trial) -> float:
        turn.close()
        try:
            return train(trial)
        except (KeyboardInterrupt, VptspError):  # the trial is not the cause, so it is repeated
            RetryHeartbeatStaleTrialCallback()(study, study.trials[trial.number])
            raise

    callbacks = [lambda _, trial: tell(trial_line(trial))] if tell is not None else []
    begun, total = counts(study)[0], study.user_attrs["trials"]
    with bar(title=study.study_name, initial=begun, total=total, unit="trials", show=show) as progress:
        while True:
            optuna.storages.fail_stale_trials(study)
            with turn:
                turn.enter_context(locked(lock))
                (finished, running), wanted = counts(study), study.user_attrs["trials"]
                progress.update(finished - progress.n)  # includes the trials of other workers
                if finished >= wanted and not running:
                    return
                if finished + running < wanted:
                    study.optimize(objective, n_trials=1, callbacks=callbacks)
                    continue
            time.sleep(POLL)


def _train(trial: optuna.Trial, base: RunConfig, space: Space, classes: int, options: dict[str, Any]) -> float:
    """Train the sampler's choice and return its score. A choice that is invalid or cannot be trained is left out."""
    try:
        config = base.replace(**choose(trial, space))
        drawn = config.batch // config.samples_per_class
        if drawn > classes:
            raise ConfigError(f"a batch draws {drawn} classes, but the training set has {classes}")
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
