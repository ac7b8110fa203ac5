"""What a search found, as data frames: its trials, and which keys mattered."""

from __future__ import annotations

from pathlib import Path

import optuna
import pandas as pd
from optuna.trial import TrialState

from vptsp_core.paper.search_database import quiet, tried
from vptsp_core.runs.folder import METRICS, Run, read_run

STATES = {
    TrialState.COMPLETE: "trained", TrialState.PRUNED: "left out", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip


def trials_frame(study: optuna.Study) -> pd.DataFrame:
    """One row a trial, in order.

    Returns:
        ``trial`` (its number), ``state`` (see `STATES`), in percent ``R@1``, which it is chosen by (`search.judged`),
        ``best so far`` and ``test R@1``, which its run reports (all NaN where nothing was trained), ``run`` (the hash
        of its run), ``seconds`` that the run took, ``reason`` why it was left out, ``outside``, the keys whose value
        is not in the space (the start's may be), and a column for each key of the space.
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
        if "surplus" not in trial.user_attrs
    ]  # fmt: skip
    columns = ["trial", "state", "R@1", "test R@1", "run", "seconds", "reason", "outside", *study.user_attrs["space"]]
    table = pd.DataFrame(rows, columns=columns)
    table.insert(3, "best so far", table["R@1"].cummax().ffill())
    return table


def runs_of(study: optuna.Study, results: Path) -> list[Run]:
    """The runs of a study's trained trials that lie in this results folder, each once, in order."""
    names = dict.fromkeys(trial.user_attrs.get("folder") for trial in study.get_trials(deepcopy=False))
    paths = [results / "runs" / name for name in names if name is not None]
    return [read_run(path) for path in paths if (path / METRICS).exists()]


def importance(study: optuna.Study, seed: int = 0) -> pd.Series:
    """Share of the variance of R@1 over the space that each key explains alone or with others, the largest first.

    By fANOVA (Hutter, Hoos, Leyton-Brown, ICML 2014): of a random forest fitted to the trained trials, 64 trees, as
    Optuna has it, shares made to sum to 1. With few trials the forest knows little, and so do the shares. A start that
    lies outside the space is not among them.

    Returns:
        Indexed by key; no rows where fewer than two trials were trained, or where all scored the same.
    """
    trained = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len({trial.value for trial in trained if "outside" not in trial.user_attrs}) < 2:
        return pd.Series(dtype=float, name="importance")
    evaluator, keys = optuna.importance.FanovaImportanceEvaluator(seed=seed), list(study.user_attrs["space"])
    with quiet():
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, params=keys)
    return pd.Series(shares, name="importance").rename_axis("key").sort_values(ascending=False, kind="stable")
