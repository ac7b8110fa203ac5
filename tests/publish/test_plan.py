"""`run_all.sh --dry-run` lists each notebook's finished and missing runs and executes nothing."""

import nbformat

from tests.publish.test_notebooks_runner import write
from tests.runs.test_share import finished
from vptsp_core.method.presets import preset
from vptsp_core.publish import runner
from vptsp_core.publish.parameters import discover
from vptsp_core.publish.plan import asked_runs
from vptsp_core.runs.folder import run_folder

SETUP = "from vptsp_core import preset\nfrom vptsp_core.publish.session import Session\n"
SETUP += 'session = Session("a_runs", profile, results, data)'


def asking(folder, name, *lines):
    """Write a notebook that asks for runs in tagged cells and has another cell, which would fail."""
    path = write(folder, name, SETUP, *lines, "1 / 0")
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells[2:-1]:
        cell.metadata["tags"] = ["runs"]
    nbformat.write(notebook, path)
    return path


def test_only_tagged_cells_are_executed_and_silent(tmp_path, capsys):
    table = "session.plan({('row', 'CUB'): preset('smoke')}, seeds)\nprint(seeds)"
    path = asking(tmp_path, "a_runs", table, "session.asks(preset('smoke', seed=2), light=False, trials=8)")
    runs, trials = asked_runs(path, {"seeds": [1, 2]})
    assert runs == {preset("smoke", seed=1): True, preset("smoke", seed=2): False} and trials == 8
    assert capsys.readouterr().out == ""


def test_every_notebook_can_be_asked():
    asked = {path.stem: asked_runs(path, {"profile": "demo", "seeds": [0, 1]}) for path in discover()}
    assert {name for name, (runs, _) in asked.items() if not runs} == {"table10_latency", "what_holds"}
    assert asked["table9_search"][1] == 8 and len(asked["tour"][0]) == 6  # frozen, closed, 2 selections x 2 seeds


def test_finished_and_missing_runs_are_listed_with_their_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vptsp_core.publish.plan.made_with", lambda device: {"device": "cpu, 2 threads"})
    asking(tmp_path, "a_runs", "session.asks(*(preset('smoke', seed=seed) for seed in (0, 1)))")
    asking(tmp_path, "b_runs", "session.asks(preset('smoke', seed=1), preset('smoke', seed=2, epochs=2))")
    asking(tmp_path, "c_runs", "session.asks(preset('smoke', seed=0), light=False)")
    out = tmp_path / "results" / "smoke"
    light = finished(out).path
    damaged = out / "runs" / "smoke-full-0123456789ab" / "metrics.json"
    damaged.parent.mkdir()
    damaged.write_text("{}")
    (light / "model.safetensors").unlink()
    assert runner.run_notebooks("smoke", None, tmp_path / "results", folder=tmp_path, dry=True) == 0
    second, third = (run_folder(preset("smoke", **each), out).name for each in (dict(seed=1), dict(seed=2, epochs=2)))
    assert capsys.readouterr().out.splitlines() == [
        "a_runs: 2 runs, 1 finished, 1 missing",
        f"    {second}, seed 1: about 90 s",
        "b_runs: 2 runs, 0 finished, 2 missing",
        f"    {second}, seed 1: about 90 s",
        f"    {third}, seed 2: no run of this kind on cpu yet",
        "c_runs: 1 runs, 0 finished, 1 missing",
        f"    {light.name}, seed 0: about 90 s",
        "3 runs, 0 finished, 3 missing",
        "One after another on cpu, 2 of the missing runs take about 3 minutes",
        "The time of 1 of them is not known, because no such run has finished on cpu",
        "Pictures, searches and timings are not included",
    ]
    assert [path.name for path in out.iterdir()] == ["runs"]
