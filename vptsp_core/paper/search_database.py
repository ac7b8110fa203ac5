"""A search's study as it lies in a database: opened, held against what it was begun with, shared by workers."""

from __future__ import annotations

import contextlib
import re
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.trial import FrozenTrial, TrialState

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.config import RunConfig, whole_path
from vptsp_core.paper.search_space import Space
from vptsp_core.system.locks import locked

BEAT, GRACE = 20, 90  # seconds between a worker's signs of life, and without one until its trial is taken from it
RETRIES = 3  # of one trial whose workers died: it may be what kills them
TRIALS = 50  # of a study that nobody said a number for
DATABASE_ERRORS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError)
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_study(storage: str, name: str, base: RunConfig, space: Space, trials: int | None = None) -> optuna.Study:
    """The study in the database, made if it is not there.

    Raises:
        VptspError: the database cannot be used, or holds under this name the study of another base or space.
    """
    if not re.fullmatch(r"[\w.-]+", name):  # its preset's file is called so
        raise ConfigError(f"study {name!r}: a name holds letters, digits, '.', '-' and '_' only")
    fixed = {key: value for key, value in base.to_dict().items() if key not in space}
    with database(storage):
        for wait in (0.5, 1, 2, 4, None):  # workers that begin at the same moment write the same rows: one is refused
            try:
                return _opened(storage, name, base, fixed, space, trials)
            except (sqlalchemy.exc.IntegrityError, StorageInternalError) as error:
                cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                if wait is None or not isinstance(cause, sqlalchemy.exc.IntegrityError):
                    raise
                time.sleep(wait)
    raise AssertionError("the last turn returns or raises")


def _opened(
    storage: str, name: str, base: RunConfig, fixed: dict[str, Any], space: Space, trials: int | None
) -> optuna.Study:
    study = optuna.create_study(
        storage=_storage(storage), study_name=name, direction="maximize", load_if_exists=True, sampler=_ByNumber(base)
    )
    known = study.user_attrs
    if "space" not in known:
        study.set_user_attr("base", fixed)
        study.set_user_attr("space", space)
    elif differing := _differing(known, fixed, space):
        raise ConfigError(
            f"study {name} in {_shown(storage)} has {differing}; give this one another name, or go on with that"
        )
    if trials is not None or "trials" not in known:
        study.set_user_attr("trials", trials or TRIALS)
    return study


def counts(study: optuna.Study) -> tuple[int, int]:
    """Trials of a study that are finished, and those that a worker is at."""
    states = Counter(trial.state for trial in study.get_trials(deepcopy=False))
    return sum(states[state] for state in FINISHED), states[TrialState.RUNNING]


def waited_for(study: optuna.Study, before: set[int]) -> list[int]:
    """Numbers of the trials that other workers are at, without those that were waited for before; adds them there.

    Each gets a sign of life: its worker may have died before it gave the first one, and Optuna takes a trial without
    any for one that is alive, for ever.
    """
    storage: Any = study._storage
    running = study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    new = [trial for trial in running if trial.number not in before]
    for trial in new:
        storage.record_heartbeat(trial._trial_id)
    before.update(trial.number for trial in new)
    return [trial.number for trial in new]


def choose(trial: optuna.Trial, base: RunConfig, space: Space) -> dict[str, Any]:
    """A value for each key of the space. The first trial is `base` itself: where its values lie outside the space the
    sampler does not learn of them, and the trial's attribute ``outside`` holds them."""
    first = _origin(trial.study.get_trials(deepcopy=False)[trial.number]) == 0
    own = {key: getattr(base, key) for key in space if first and getattr(base, key) not in space[key]}
    if own:
        trial.set_user_attr("outside", own)
    return {key: own[key] if key in own else trial.suggest_categorical(key, space[key]) for key in space}


def tried(trial: FrozenTrial) -> dict[str, Any]:
    """What `choose` gave a trial."""
    return {**trial.params, **trial.user_attrs.get("outside", {})}


def _origin(trial: FrozenTrial) -> int:
    """A trial's number, or that of the one which it makes again."""
    again = optuna.storages.RetryHeartbeatStaleTrialCallback.retried_trial_number(trial)
    return trial.number if again is None else again


@contextlib.contextmanager
def database(url: str) -> Iterator[None]:
    """What the database does not do is said in one line, without its password; Optuna is quiet.

    Raises:
        VptspError: in place of the database's own errors.
    """
    try:
        with quiet():
            yield
    except DATABASE_ERRORS as error:
        reason = error.__cause__ or error if isinstance(error, StorageInternalError) else error
        first = str(getattr(reason, "orig", None) or reason).splitlines()[0]
        raise VptspError(
            f"storage {_shown(url)}: {first}; mend it, or give another SQLAlchemy URL such as sqlite:///search.db"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Optuna logs every trial with a traceback where it failed, and warns that its heartbeat may change."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)


with quiet():
    AGAIN = optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
    STOPPED = optuna.storages.RetryHeartbeatStaleTrialCallback()  # by hand: as often as one likes


class _ByNumber(optuna.samplers.TPESampler):
    """TPE that begins with the search's base, and draws the n-th trial from (seed, n), those that make one again not
    counted: workers do not repeat each other, and a search by one worker makes the same trials whether it was stopped
    in between, or within a run, or not."""

    def __init__(self, base: RunConfig) -> None:
        super().__init__(seed=base.seed)
        self._start = base

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        earlier = study.get_trials(deepcopy=False)[: _origin(trial)]
        at = sum(_origin(each) == each.number and "surplus" not in each.user_attrs for each in earlier)
        super().__init__(seed=int(np.random.SeedSequence([self._start.seed, at]).generate_state(1)[0]))
        super().before_trial(study, trial)

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, name: str, distribution: Any) -> Any:
        if _origin(trial) == 0:
            return getattr(self._start, name)
        return super().sample_independent(study, trial, name, distribution)


def file_url(path: Path) -> str:
    """The URL of an SQLite database at ``path``, whatever characters are in the path.

    Raises:
        VptspError: the SQLAlchemy that is installed would read another path from it (before 2.1 with ``?`` in it).
    """
    url = sqlalchemy.engine.URL.create("sqlite", database=str(path)).render_as_string(hide_password=False)
    if sqlalchemy.engine.make_url(url).database != str(path):
        raise VptspError(f"{path}: this SQLAlchemy cannot name it; choose another results folder, or upgrade to 2.1")
    return url


def deciding(url: str, folder: Path) -> contextlib.AbstractContextManager[None]:
    """Inside, this process alone among those of this machine reads what a search lacks and takes a trial of it.

    The lock is beside an SQLite file, else in ``folder``. Workers of several machines need not see either: `surplus`
    finds what they began too much.
    """
    parsed = sqlalchemy.engine.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return locked(folder / ".search.lock")
    name = parsed.database or ""
    alone = name in ("", ":memory:") or name.startswith("file:")  # in this process's memory, or with options of its own
    if alone or not Path(name).parent.is_dir():  # to open the database says what is wrong
        return contextlib.nullcontext()
    return locked(Path(f"{name}.lock"))


def surplus(study: optuna.Study, number: int) -> bool:
    """Whether the trials before this one that are finished or running are all that the study wants."""
    counted = (*FINISHED, TrialState.RUNNING)
    earlier = study.get_trials(deepcopy=False, states=counted)
    return sum(trial.number < number for trial in earlier) >= study.user_attrs["trials"]


def _storage(url: str) -> optuna.storages.RDBStorage:
    """Signs of life included. Two processes that make its tables at once get in each other's way: one tries again."""
    patient: dict[str, Any] = {"connect_args": {"timeout": 120}}  # SQLite has one writer at a time
    engine = patient if url.startswith("sqlite") else {"pool_pre_ping": True}
    alive: Any = dict(heartbeat_interval=BEAT, grace_period=GRACE, heartbeat_stale_trial_callback=AGAIN)
    for left in range(5, -1, -1):
        try:
            return optuna.storages.RDBStorage(_as_it_is(url), engine, **alive)
        except sqlalchemy.exc.OperationalError as error:
            if not left or "already exists" not in str(error):
                raise
            time.sleep(0.5)
        except ImportError as error:
            raise VptspError(f"storage {_shown(url)}: no driver ({error.__cause__}); install it with pip") from error
    raise AssertionError("not reached")


def _as_it_is(url: str) -> str:
    """Optuna formats the URL, for the sake of one name: other braces are part of a path or a password."""
    name = "{SCHEMA_VERSION}"
    return url.replace("{", "{{").replace("}", "}}").replace(f"{{{name}}}", name)


def _shown(url: str) -> str:
    try:
        return sqlalchemy.engine.make_url(url).render_as_string(hide_password=True)
    except sqlalchemy.exc.ArgumentError:
        return repr(url)


def _differing(known: dict[str, Any], fixed: dict[str, Any], space: Space) -> str:
    """In what a study in the database is another one; keys that it is too old to know count by their defaults."""
    begun = {key: value for key, value in RunConfig().to_dict().items() if key not in space} | known["base"]
    begun["weights"] = whole_path(begun["weights"])  # older versions wrote it as it was given
    keys = [key for key in begun if key not in space and begun[key] != fixed.get(key)]
    spaces = [key for key in known["space"].keys() | space.keys() if known["space"].get(key) != space.get(key)]
    if spaces:
        return f"another space ({', '.join(sorted(spaces))})"
    if keys:
        return "another base (" + ", ".join(f"{key} = {begun[key]!r}, not {fixed.get(key)!r}" for key in keys) + ")"
    return ""
