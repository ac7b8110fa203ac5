"""The Optuna study of a search: open it in its database, choose a trial's values, and read it as data frames."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.search_space import Space
from vptsp_core.runs.folder import METRICS, Run, read_run

HEARTBEAT = 20  # seconds between heartbeats of a worker
GRACE = 90  # seconds after the last heartbeat until the trial is repeated
RETRIES = 3  # of a trial whose workers died: the trial itself may kill them
TRIALS = 50  # of a study, unless the caller gives a number
TRAINED, LEFT_OUT = "trained", "left out"
STATES = {
    TrialState.COMPLETE: TRAINED, TrialState.PRUNED: LEFT_OUT, TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence Optuna's log line per trial and its warning that heartbeats are experimental. Also a decorator."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


def open_study(url: str, name: str, base: RunConfig, space: Space, trials: int | None) -> optuna.Study:
    """Open the study ``name`` in the database, or create it with ``base`` as its first trial.

    Raises:
        VptspError: the database cannot be used, or its study of this name has another base or space.
    """
    if not re.fullmatch(r"[\w.-]+", name):  # the file of its best preset has this name
        raise ConfigError(f"study {name!r}: use only letters, digits, '.', '-' and '_' in its name")
    engine = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        storage = RDBStorage(
            url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the URL
            engine, heartbeat_interval=HEARTBEAT, grace_period=GRACE,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )  # fmt: skip
        study = optuna.create_study(
            storage=storage, sampler=_Seeded(base.seed), study_name=name, direction="maximize", load_if_exists=True
        )
    except (ImportError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error.__cause__, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise VptspError(f"storage: {reason}; give an SQLAlchemy URL such as sqlite:///search.db") from error
    fixed = {key: value for key, value in base.to_dict().items() if key not in space}
    known = study.user_attrs
    if "space" not in known:
        study.set_user_attr("base", fixed)
        study.set_user_attr("space", space)
    else:
        begun = RunConfig().to_dict() | known["base"]  # a key that is newer than the study had its default
        other = {key for key in fixed if begun[key] != fixed[key]}
        other |= {key for key in known["space"] | space if known["space"].get(key) != space.get(key)}
        if other:
            raise ConfigError(
                f"study {name} was begun with other {', '.join(sorted(other))}; choose another name for this one, or "
                "the same values"
            )
    if trials is not None or "trials" not in known:
        study.set_user_attr("trials", trials or TRIALS)
    if not study.get_trials(deepcopy=False):
        start = {key: getattr(base, key) for key in space}
        outside = {key: value for key, value in start.items() if value not in space[key]}
        inside = {key: value for key, value in start.items() if key not in outside}
        study.enqueue_trial(inside, user_attrs={"outside": outside} if outside else None)
    return study


def counts(study: optuna.Study) -> tuple[int, int]:
    """Return the numbers of finished and of running trials."""
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    return states[TrialState.COMPLETE] + states[TrialState.PRUNED], states[TrialState.RUNNING]


def choose(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """Return a value for each key of the space. The first trial has the values of the base, also outside the space."""
    outside = trial.user_attrs.get("outside", {})
    return {key: outside[key] if key in outside else trial.suggest_categorical(key, space[key]) for key in space}


def tried(trial: FrozenTrial) -> dict[str, Any]:
    """Return the values that `choose` gave to a trial."""
    return {**trial.params, **trial.user_attrs.get("outside", {})}


class _Seeded(optuna.samplers.TPESampler):
    """TPE with a new seed per trial, from the search's seed and the number of earlier trials, repeats not counted.

    Several workers therefore do not repeat each other. One worker makes the same trials with or without an
    interruption.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._search_seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        number = sum("failed_trial" not in each.system_attrs for each in earlier)
        super().__init__(seed=int(np.random.SeedSequence([self._search_seed, number]).generate_state(1)[0]))
        super().before_trial(study, trial)


# ---- data frames ---------------------------------------------------------------------------------


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """Return one row per trial, in order.

    The columns are ``trial`` (its number), ``state`` (see `STATES`), ``R@1`` in percent by which it is judged
    (`search.judged`), ``best so far``, ``test R@1`` that its run reports, ``run`` (the hash of its run), ``seconds``
    that the run took, ``reason`` why it was left out, ``outside`` (keys whose value is outside the space, in the first
    trial only), and one column per key of the space. A trial that was not trained has NaN for its numbers.
    """
    rows = [
        {
            "trial": trial.number, "state": STATES[trial.state],
            "R@1": 100 * trial.value if trial.value is not None else float("nan"),
            "test R@1": 100 * trial.user_attrs.get("test", float("nan")),
            "run": trial.user_attrs.get("run", ""), "seconds": trial.user_attrs.get("seconds", float("nan")),
            "reason": trial.user_attrs.get("reason", ""), "outside": ", ".join(trial.user_attrs.get("outside", {})),
            **tried(trial),
        }
        for trial in study.get_trials(deepcopy=False)
    ]  # fmt: skip
    columns = ["trial", "state", "R@1", "test R@1", "run", "seconds", "reason", "outside", *study.user_attrs["space"]]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(3, "best so far", table["R@1"].cummax().ffill())
    return table


def runs_of(study: optuna.Study, results: Path) -> list[Run]:
    """Return the runs of a study's trained trials that are in the folder ``results``, each once, in order."""
    names = dict.fromkeys(trial.user_attrs.get("folder") for trial in study.get_trials(deepcopy=False))
    paths = [results / "runs" / name for name in names if name is not None]
    return [read_run(path) for path in paths if (path / METRICS).exists()]


@quiet()
def importance(study: optuna.Study, seed: int = 0) -> pd.Series:
    """Return how much each key alone explains of R@1, relative to the other keys, the largest first.

    Optuna computes it by fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014), from a random forest that is fitted to the
    trained trials in the space. Joint effects of keys are not counted, and the shares are scaled to sum to 1. With few
    trials they are mostly noise.

    Returns:
        The shares, indexed by key. It is empty if fewer than two trials were trained or all have the same R@1.
    """
    trained = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in trained if "outside" not in trial.user_attrs}) < 2:
        return pd.Series(dtype=float, name="importance")
    evaluator, keys = optuna.importance.FanovaImportanceEvaluator(seed=seed), list(study.user_attrs["space"])
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
    return pd.Series(shares, name="importance").rename_axis("key").sort_values(ascending=False, kind="stable")
