"""The study of a search in its database: opened, compared with what it was begun with, and read as data frames."""

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
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.search_space import Space
from vptsp_core.runs.folder import METRICS, Run, read_run

BEAT, GRACE = 20, 90  # seconds between a worker's heartbeats, and without one until its trial is repeated
RETRIES = 3  # of a trial whose workers died: the trial itself may be what kills them
TRIALS = 50  # of a study, unless a number is given
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
STATES = {
    TrialState.COMPLETE: "trained", TrialState.PRUNED: "left out", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


def open_study(url: str, name: str, base: RunConfig, space: Space, trials: int | None = None) -> optuna.Study:
    """The study in the database; a new one is created, with `base` queued as its first trial.

    Raises:
        VptspError: the database cannot be used, or has a study of this name with another base or space.
    """
    if not re.fullmatch(r"[\w.-]+", name):  # the preset's file has this name
        raise ConfigError(f"study {name!r}: a name holds letters, digits, '.', '-' and '_' only")
    fixed = {key: value for key, value in base.to_dict().items() if key not in space}
    try:
        study = optuna.create_study(
            storage=_storage(url), sampler=_Seeded(base.seed), study_name=name, direction="maximize",
            load_if_exists=True,
        )  # fmt: skip
    except (ImportError, sqlalchemy.exc.SQLAlchemyError, StorageInternalError) as error:
        reason = str(getattr(error.__cause__, "orig", None) or error.__cause__ or error).splitlines()[0]
        raise VptspError(f"storage: {reason}; give an SQLAlchemy URL such as sqlite:///search.db") from error
    known = study.user_attrs
    if "space" not in known:
        study.set_user_attr("base", fixed)
        study.set_user_attr("space", space)
    else:
        begun = RunConfig().to_dict() | known["base"]  # keys that are newer than the study count by their defaults
        other = {key for key in fixed if begun[key] != fixed[key]}
        other |= {key for key in known["space"] | space if known["space"].get(key) != space.get(key)}
        if other:
            raise ConfigError(
                f"study {name} was begun with other {', '.join(sorted(other))}; give this one another name, or the "
                "same values"
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
    """How many trials of a study are finished, and how many are running."""
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    return sum(states[state] for state in FINISHED), states[TrialState.RUNNING]


def choose(trial: optuna.Trial, space: Space) -> dict[str, Any]:
    """A value for each key of the space; the start's values outside the space are in the attribute ``outside``."""
    outside = trial.user_attrs.get("outside", {})
    return {key: outside[key] if key in outside else trial.suggest_categorical(key, space[key]) for key in space}


def tried(trial: FrozenTrial) -> dict[str, Any]:
    """What `choose` gave a trial."""
    return {**trial.params, **trial.user_attrs.get("outside", {})}


class _Seeded(optuna.samplers.TPESampler):
    """TPE that draws the n-th trial from (seed, n), where trials made again do not count: workers do not repeat each
    other, and one worker makes the same trials whether it was stopped in between or not.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._of = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        at = sum("failed_trial" not in each.system_attrs for each in earlier)
        super().__init__(seed=int(np.random.SeedSequence([self._of, at]).generate_state(1)[0]))
        super().before_trial(study, trial)


def file_url(path: Path) -> str:
    """The URL of an SQLite database at ``path``, whatever characters are in the path."""
    return sqlalchemy.engine.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)


def _storage(url: str) -> optuna.storages.RDBStorage:
    engine = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    return optuna.storages.RDBStorage(
        url.replace("{", "{{").replace("}", "}}"),  # Optuna formats the URL
        engine, heartbeat_interval=BEAT, grace_period=GRACE,
        heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
    )  # fmt: skip


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No log line of Optuna for each trial, and no warning that its heartbeat is experimental."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


# ---- data frames ---------------------------------------------------------------------------------


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row a trial, in order.

    Returns:
        ``trial`` (its number), ``state`` (see `STATES`), in percent ``R@1``, by which it is judged (`search.judged`),
        ``best so far`` and ``test R@1``, which its run reports (all NaN where nothing was trained), ``run`` (the hash
        of its run), ``seconds`` that the run took, ``reason`` why it was left out, ``outside``, the keys whose value
        is not in the space (only the start has such), and a column for each key of the space.
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
    """The runs of a study's trained trials that are in this results folder, each once, in order."""
    names = dict.fromkeys(trial.user_attrs.get("folder") for trial in study.get_trials(deepcopy=False))
    paths = [results / "runs" / name for name in names if name is not None]
    return [read_run(path) for path in paths if (path / METRICS).exists()]


def importance(study: optuna.Study, seed: int = 0) -> pd.Series:
    """Share of the variance of R@1 over the space that each key explains alone or with others, the largest first.

    By fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014) of a random forest fitted to the trained trials in the space, as
    Optuna computes it; the shares sum to 1. With few trials they are mostly noise.

    Returns:
        Indexed by key; no rows where fewer than two trials were trained, or where all have the same R@1.
    """
    trained = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in trained if "outside" not in trial.user_attrs}) < 2:
        return pd.Series(dtype=float, name="importance")
    evaluator, keys = optuna.importance.FanovaImportanceEvaluator(seed=seed), list(study.user_attrs["space"])
    with quiet():
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
    return pd.Series(shares, name="importance").rename_axis("key").sort_values(ascending=False, kind="stable")
