"""The search of table 9: its space, resumed studies, several workers, workers that die, and the preset it writes."""

import itertools
import json
import multiprocessing
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
import sqlalchemy
from optuna.trial import TrialState

import vptsp_core.paper.search as tune_module
from vptsp_core import preset
from vptsp_core.__main__ import main
from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.figures import tune as plots_tune
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.report import paper_table
from vptsp_core.paper.search import best_config, study_name, tune, write_preset
from vptsp_core.paper.search_space import KEYS, fitting_space, paper_space
from vptsp_core.paper.search_study import importance, runs_of, trials_frame
from vptsp_core.runs.run import run

BASE = preset("smoke", steps_per_epoch=1, selection="last")
FEW = ["batch", "samples_per_class", "prompt_layers", "prompts", "prompt_step", "class_layers"]  # not searched: faster
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk():
    def hurry(connection, record):
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", hurry)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", hurry)


def fake(monkeypatch, score=lambda config: config.alpha) -> list[RunConfig]:
    """Replace `run` by one that trains nothing and scores ``score(config)``. Return the list of configs it gets."""
    made = []

    def run(config, **options):
        made.append(config)
        metrics = {"R@1": score(config)}
        history = pd.DataFrame([{**metrics, "validation R@1": metrics["R@1"]}])
        path = Path("runs", config.hash())
        return SimpleNamespace(config=config, path=path, metrics=metrics, record={"seconds": 1.0}, history=history)

    monkeypatch.setattr(tune_module, "run", run)
    return made


@pytest.mark.parametrize("progress", [True, False])
def test_a_log_says_how_many_trials_are_left(tmp_path, monkeypatch, capfd, progress):
    fake(monkeypatch)
    monkeypatch.setattr("vptsp_core.system.bars.EVERY", 0.0)
    tune(BASE, 2, name="first", results=tmp_path, progress=progress)
    lines = [line for line in capfd.readouterr().err.splitlines() if " trials, " in line]
    assert [line[:17] for line in lines if "1/2" in line] == ["first: 1/2 trials"] * progress
    assert all(line.endswith(" left") for line in lines if "1/2" in line)


def tried(study) -> list[dict]:
    return [trial.params for trial in study.trials]


# ---- the space -----------------------------------------------------------------------------------


def test_space_is_table_9_as_printed():
    """The expected values are typed from the paper's table, not from our file. The dots of mid_dim are our reading."""
    common = {
        "optimizer": ["sgd", "adam", "adamw"], "batch": [32, 64], "samples_per_class": [1, 2],
        "lr": [5e-2, 1e-2, 5e-3, 1e-3, 5e-4, 1e-4], "lr_proxy": [0.5, 0.1, 0.05, 0.01, 0.005, 0.001],
    }  # fmt: skip
    twelve = list(range(1, 13))
    vpt = {"prompt_layers": twelve, "prompts": [1, 5, 10, 30, 50, 70, 90], "prompt_step": [0, 2, 5, 10]}
    adapter = {
        "adapter_layers": twelve, "adapter_dim": [1, 4, 8, 16, 32, 64, 128, 256, 512],
        "adapter_position": ["sequential", "parallel"], "adapter_init": ["bert", "lora"],
        "adapter_norm": ["before", "after"],
    }  # fmt: skip
    proxies = {
        "class_layers": [2, 4, 6, 8, 10, 12], "class_prompts": [1, 3, 5, 10, 40, 80],
        "alpha": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9],
    }  # fmt: skip
    assert paper_space("full") == paper_space("linear") == common
    assert paper_space("adapter") == common | adapter
    assert paper_space("vpt") == common | vpt
    assert paper_space("vptsp") == common | vpt | proxies
    with pytest.raises(ConfigError, match="frozen"):
        paper_space("frozen")
    rows = {(row.group, row.attribute) for row in paper_table("table9_search_space").itertuples()}
    assert rows == {(group, attribute) for group, keys in KEYS.items() for attribute in keys}


def test_values_that_do_not_fit_are_left_out():
    space, whole = fitting_space(BASE, classes=24), paper_space("vptsp")  # demo ViT: 6 blocks, 25 patches + CLS
    cut = {
        "prompt_layers": [1, 2, 3, 4, 5, 6], "class_layers": [2, 4, 6], "prompts": [1, 5, 10],
        "class_prompts": [1, 3, 5, 10], "batch": [32],
    }  # fmt: skip
    assert space == whole | cut
    with pytest.raises(ConfigError, match="batch: no value of table 9 is 30 or less"):
        fitting_space(BASE, classes=15)


# ---- one worker ----------------------------------------------------------------------------------


def test_a_search_that_is_interrupted_and_resumed_makes_the_same_trials(tmp_path, monkeypatch):
    """TPE draws the first ten trials at random. The later ones depend on the trials before."""

    def score(config):
        if len(made) in stops:
            raise KeyboardInterrupt
        return config.alpha / 2 + 0.01 * (config.optimizer == "adam")

    stops, lines = [], []
    made = fake(monkeypatch, score)
    whole = tune(BASE, 12, results=tmp_path / "a", keep=FEW)
    assert len(made) == 12 and len({json.dumps(params) for params in tried(whole)[:10]}) == 10

    stops, made = [2, 13], fake(monkeypatch, score)
    with pytest.raises(KeyboardInterrupt):
        tune(BASE, 5, results=tmp_path / "b", keep=FEW)
    tune(BASE, 5, results=tmp_path / "b", keep=FEW, tell=lines.append)
    with pytest.raises(KeyboardInterrupt):
        tune(BASE, 12, results=tmp_path / "b", keep=FEW)
    study = tune(BASE, 12, results=tmp_path / "b", keep=FEW)
    finished = [trial for trial in study.trials if trial.state == TrialState.COMPLETE]
    assert [trial.params for trial in finished] == tried(whole)
    assert made[1] == made[2] and made[12] == made[13] and len(made) == len(study.trials) == 14
    assert lines[0].startswith(f"trial 2: R@1 {100 * finished[1].value:.2f} %  optimizer={made[1].optimizer} lr=")
    tune(BASE, results=tmp_path / "b", keep=FEW)
    tune(BASE, 3, results=tmp_path / "b", keep=FEW)
    assert len(made) == 14  # all trials are finished already
    assert best_config(study) == max(made, key=lambda config: (config.alpha, config.optimizer == "adam"))
    other = tune(BASE.replace(seed=1), 2, results=tmp_path / "b", keep=FEW, name="another")
    assert tried(other) != tried(whole)[:2]


def test_the_first_trial_is_the_start(tmp_path, monkeypatch):
    """Also if its values are outside the space. It can be the best trial."""
    base = BASE.replace(batch=16, samples_per_class=2, prompts=5, class_prompts=3, lr=0.008)
    made = fake(monkeypatch, lambda config: 0.9 if config == base else 0.3 + config.alpha / 10)
    study = tune(base, 4, results=tmp_path)
    assert made[0] == base and base not in made[1:]
    assert best_config(study) == base
    assert preset(str(write_preset(study, tmp_path / "best.json"))) == base
    frame = trials_frame(study)
    assert list(frame["outside"]) == ["batch, lr", "", "", ""]
    assert {key: frame.loc[0, key] for key in study.user_attrs["space"]} == {
        key: getattr(base, key) for key in study.user_attrs["space"]
    }
    assert "lr=0.008" in tune_module.trial_line(study.trials[0])
    assert set(importance(study).index) == study.user_attrs["space"].keys()  # of the three in the space


def test_kept_keys_are_not_searched(tmp_path, monkeypatch):
    made = fake(monkeypatch)
    study = tune(BASE.replace(lr=0.3), 3, results=tmp_path, keep=["lr", "batch"])
    assert {(config.lr, config.batch) for config in made} == {(0.3, BASE.batch)}
    assert not {"lr", "batch"} & study.user_attrs["space"].keys()
    with pytest.raises(ConfigError, match="keep fewer keys"):
        tune(preset("smoke", method="linear"), 1, results=tmp_path, keep=list(paper_space("linear")))


def test_choices_that_cannot_be_trained_are_left_out_with_the_reason(tmp_path, monkeypatch):
    def score(config):
        if config.optimizer == "sgd":
            raise TrainingError("the loss is not finite\nfrom step 3 on")
        return config.alpha

    fake(monkeypatch, score)
    frame = trials_frame(tune(BASE, 8, results=tmp_path, keep=FEW))
    of_sgd = frame["optimizer"] == "sgd"
    assert 0 < of_sgd.sum() < 8
    assert (frame.loc[of_sgd, "state"] == "left out").all() and (frame.loc[~of_sgd, "state"] == "trained").all()
    assert (frame.loc[of_sgd, "reason"] == "the loss is not finite from step 3 on").all()
    np.testing.assert_array_equal(frame["R@1"], np.where(of_sgd, np.nan, 100 * frame["alpha"]))
    np.testing.assert_array_equal(frame["test R@1"], frame["R@1"])
    assert (frame.loc[~of_sgd, "run"].str.len() == 12).all() and (frame.loc[~of_sgd, "seconds"] == 1).all()
    best = list(itertools.accumulate(frame["R@1"], np.fmax))
    np.testing.assert_array_equal(frame["best so far"], best)
    assert frame["best so far"].is_monotonic_increasing or np.isnan(best[0])
    fig = plots_tune.history(frame, "test classes", 50.0)
    points, ticks = fig.axes[0].collections
    assert list(points.get_offsets()[:, 0].compressed()) == list(frame["trial"][~of_sgd])
    assert [segment[0, 0] for segment in ticks.get_segments()] == list(frame["trial"][of_sgd])
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts == ["trial", "best so far", "start", "left out"]


def test_an_interrupted_trial_is_repeated_any_number_of_times(tmp_path, monkeypatch):
    """Also more often than `RETRIES`, which is for trials whose worker died."""
    stops = [KeyboardInterrupt(), *3 * [VptspError("the disk is full")]]

    def score(config):
        if stops:
            raise stops.pop()
        return 0.5

    made = fake(monkeypatch, score)
    while stops:
        with pytest.raises(type(stops[-1])):
            tune(BASE, 2, results=tmp_path)
    study = tune(BASE, 2, results=tmp_path)
    assert made[:5] == 5 * [BASE] and made[5] != BASE
    assert list(trials_frame(study)["state"]) == ["failed"] * 4 + ["trained"] * 2


def test_the_command_writes_the_best_as_a_preset(tmp_path, monkeypatch, capsys):
    made = fake(monkeypatch)
    assert main(["tune", "--preset", "smoke", "--set", "method=full", "--trials", "2", "--results", str(tmp_path)]) == 0
    assert made[0].method == "full" and not made[0].bitfit
    *trials, best, file = capsys.readouterr().out.splitlines()
    assert best == f"best: {trials[0]}" and preset(file).hash() == made[0].hash()  # both score the same


def test_validation_leaves_fewer_classes_to_draw_from(tmp_path, monkeypatch):
    fake(monkeypatch)
    monkeypatch.setattr(tune_module, "judged", lambda done: 0.5)
    monkeypatch.setattr(tune_module, "fitting_space", lambda base, classes: {"lr": [0.1 if classes == 80 else 1.0]})
    study = tune(BASE.replace(selection="validation"), 2, results=tmp_path)
    assert tried(study) == [{}, {"lr": 0.1}]  # 20 of 100 are held out; the start has another lr


# ---- several workers -----------------------------------------------------------------------------


@pytest.mark.posix("needs forks")
def test_workers_that_start_together_make_the_right_number_of_trials_and_agree_on_the_best(tmp_path, monkeypatch):
    """The first trial is the slowest and the best, so no worker may return before it has ended."""
    tune_module.load_benchmark("glyphs")
    made = fake(monkeypatch, lambda config: 0.9 if config.alpha == BASE.alpha else 0.1)
    at_once = tune_module.run

    def slow(config, **options):
        time.sleep(2 if config == BASE else 0.1)
        return at_once(config, **options)

    monkeypatch.setattr(tune_module, "run", slow)
    context = multiprocessing.get_context("fork")
    ends = context.SimpleQueue()
    started = context.Barrier(3)

    def work():
        started.wait()
        study = tune(BASE, 2, results=tmp_path)
        ends.put((len(study.trials), study.best_trial.number, len(made)))

    processes = [context.Process(target=work) for _ in range(3)]
    for each in processes:
        each.start()
    for each in processes:
        each.join(120)
    assert [each.exitcode for each in processes] == [0] * 3
    ended = [ends.get() for _ in processes]
    assert [(trials, best) for trials, best, _ in ended] == [(2, 0)] * 3 and sum(count for *_, count in ended) == 2


def test_a_results_folder_of_any_name_has_its_own_database(tmp_path, monkeypatch):
    fake(monkeypatch)
    name = "what? {x} %41#b:c@d"
    study = tune(BASE, 2, results=tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == [name] and len(study.trials) == 2
    assert [path.name for path in (tmp_path / name).iterdir()] == ["search.db"]
    assert len(tune(BASE, 1, results=tmp_path / f"{name}other").trials) == 1, "another folder, another study"


@pytest.mark.posix("needs forks")
def test_the_trial_of_a_killed_worker_is_repeated(tmp_path, monkeypatch):
    context = multiprocessing.get_context("fork")
    begun = context.Event()

    def hang(config):
        begun.set()
        time.sleep(600)

    fake(monkeypatch, hang)
    worker = context.Process(target=tune, args=(BASE, 2), kwargs={"results": tmp_path})
    worker.start()
    assert begun.wait(60)
    worker.kill()
    worker.join()
    made, lines = fake(monkeypatch), []
    database = f"file:{tmp_path}/search.db"

    def an_hour_passes(seconds):
        with closing(sqlite3.connect(database, timeout=60, uri=True)) as connection, connection:
            connection.execute("UPDATE trial_heartbeats SET heartbeat = datetime('now', '-1 hour')")

    monkeypatch.setattr(tune_module.time, "sleep", an_hour_passes)
    study = tune(BASE, 1, results=tmp_path, tell=lines.append)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.COMPLETE]
    assert made == [BASE] and tried(study)[1] == tried(study)[0] and len(lines) == 1


def test_workers_here_are_processes(tmp_path):
    study = tune(BASE.replace(method="linear", batch=16), 2, results=tmp_path, workers=2, keep=["batch"])
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 2
    assert len({json.dumps(params) for params in tried(study)}) == 2
    found = {done.config.hash(): done for done in runs_of(study, tmp_path)}
    for row in trials_frame(study).to_dict("records"):
        assert row["R@1"] == row["test R@1"] == 100 * found.pop(row["run"]).metrics["R@1"]
    assert not found
    # The preset of the best trial describes its finished run.
    config = preset(str(write_preset(study, tmp_path / "best.json")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vptsp_core.runs.run.build_model", lambda *args: pytest.fail("trains it again"))
        assert run(config, results=tmp_path, progress=False).metrics["R@1"] == study.best_value


def test_a_cluster_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="must be a number or 'gpus'"):
        tune(BASE, 2, results=tmp_path, workers="tcp://host:1")
    with pytest.raises(ConfigError, match="tell is for a search in this process"):
        tune(BASE, 2, results=tmp_path, workers=2, tell=print)


# ---- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--storage", "search.db"], "storage: Could not parse SQLAlchemy URL"),
        (["--storage", "mssql+pymssql://me:secret@host/db"], "storage: No module named 'pymssql'"),
        (["--storage", "sqlite:////no/such/folder/search.db"], "unable to open database file"),
        (["--storage", "sqlite:///{here}/text.db"], "file is not a database"),
        (["--study", "a/b"], "study 'a/b': use only letters"),
        (["--set", "epochs=2"], "was begun with other epochs;"),
        (["--trials", "0"], "trials = 0 must be at least 1"),
        (["--preset", "{here}/none.json"], "none.json: unreadable"),
        (["--preset", "{here}/unknown.json"], "unknown key 'alhpa'; did you mean alpha"),
        (["--preset", "{here}/list.json"], "list.json: holds no keys and values"),
    ],
)
def test_errors_are_one_line(begun, tmp_path, capsys, arguments, message):
    (tmp_path / "text.db").write_text("not a database, but a text that is longer than its header" * 20)
    (tmp_path / "unknown.json").write_text('{"alhpa": 0.2}')
    (tmp_path / "list.json").write_text("[1]")
    arguments = [part.format(here=tmp_path) for part in arguments]
    assert main(["tune", "--preset", "smoke", "--trials", "1", "--results", str(begun), *arguments]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ") and message in errors and errors.count("\n") == 1 and "secret" not in errors


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A results folder with the study that the command makes from the preset smoke."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        fake(patch)
        tune(preset("smoke", selection="validation"), 1, results=folder)
    return folder


def test_a_study_without_a_trained_trial_has_no_best_configuration(tmp_path, monkeypatch):
    def score(config):
        raise TrainingError("it does not fit")

    fake(monkeypatch, score)
    study = tune(BASE, 2, results=tmp_path)
    with pytest.raises(VptspError, match="no trained trial"):
        best_config(study)
    assert len(importance(study)) == 0
    assert plots_tune.importance(importance(study), 0).axes[0].texts


# ---- its notebook --------------------------------------------------------------------------------


def searched(monkeypatch, results: Path, **parameters) -> dict:
    """Run the notebook up to its search, with runs that train nothing. Return the notebook's variables."""
    fake(monkeypatch, lambda config: config.alpha)
    monkeypatch.setattr("vptsp_core.runs.run.many", lambda configs, **options: configs)
    cells = {cell["id"]: cell["source"] for cell in nbformat.read(ROOT / "notebooks/table9_search.ipynb", 4).cells}
    names: dict = {}
    exec(cells["t9-01"], names)
    names.update(profile="smoke", results=str(results), **parameters)
    exec(cells["t9-02"], names)
    exec(cells["t9-06"], names)
    return names


def test_notebook_says_that_a_cluster_is_not_used(tmp_path, monkeypatch, capsys):
    names = searched(monkeypatch, tmp_path, workers="tcp://127.0.0.1:8786")
    first, last = capsys.readouterr().out.splitlines()
    assert "does not use a Dask cluster" in first and "database" in first and last.startswith("3 trials of study")
    assert names["study"].best_value >= names["study"].trials[0].value == names["starts"][0].alpha


def test_notebook_says_what_judges_its_trials_and_has_a_study_per_changes_and_selection(tmp_path, monkeypatch):
    ways = [
        ({}, "held-out training classes"), ({"changes": {"lr": 0.1}}, "held-out training classes"),
        ({"changes": {"selection": "released"}}, "test classes"), ({"selection": "released"}, "test classes"),
    ]  # fmt: skip
    found = [(searched(monkeypatch, tmp_path, trials=1, **parameters), judge) for parameters, judge in ways]
    assert all(names["judge"] == judge for names, judge in found)
    studies = [names["study"].study_name for names, _ in found]
    assert studies[0] == study_name(found[0][0]["base"]) and studies[2] == studies[3]
    assert len(set(studies)) == len(ways) - 1


# ---- its results ---------------------------------------------------------------------------------


def test_importance_names_the_key_that_matters(tmp_path, monkeypatch):
    fake(monkeypatch, lambda config: config.alpha / 2 + 0.01 * (config.optimizer == "adam"))
    study = tune(BASE, 16, results=tmp_path, keep=FEW)
    shares = importance(study)
    assert shares.index[0] == "alpha" and shares.iloc[0] > 0.7
    assert set(shares.index) == study.user_attrs["space"].keys() and shares.sum() == pytest.approx(1)
    pd.testing.assert_series_equal(shares, importance(study))
    ax = plots_tune.importance(shares, 16).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == list(shares.index)
    assert [bar.get_width() for bar in ax.patches] == list(shares) and ax.yaxis_inverted()
