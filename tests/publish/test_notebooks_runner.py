"""The notebook runner and the session of a notebook, on notebooks of a few cells."""

import ast
import contextlib
import io
import os
import re
import sys
import types
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.lora import has_peft
from vptsp_core.publish import manifest, runner
from vptsp_core.publish.kernel import OneKernel
from vptsp_core.publish.manifest import MadeRun, Manifest, Missing, is_finished, made_from
from vptsp_core.publish.parameters import check_given, discover, panels_of, read, taken_parameters
from vptsp_core.publish.session import Session
from vptsp_core.runs.progress import write_progress

PARAMETERS = 'profile = "demo"\ndata = None\nresults = "results"\nseeds = [0]'


def write(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    path = folder / f"{name}.ipynb"
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A"), tagged, *map(new_code_cell, cells)]), path)
    return path


def test_one_kernel_runs_all_and_the_others_run_after_a_failure(tmp_path, monkeypatch, capfd):
    sources, out = tmp_path / "sources", tmp_path / "results {here}" / "smoke" / "notebooks"
    sources.mkdir()
    seen = "open(results + '/seen', 'a').write('%s %s %s;' % (os.getpid(), seeds, 'kept' in globals()))"
    write(sources, "a_runs", "import os, sys\n(profile, data, os.getcwd(), sys.executable)", seen, "kept = 1")
    write(sources, "b_runs", "import os", seen)
    write(sources, "c_fails", "import math\nmath.sqrt(-1)", "print('never')")
    write(sources, "cc_dies", "import os\nos._exit(3)")
    write(sources, "d_plain", "profile", parameters='profile = "demo"\nresults = "results"')
    before = dict(os.environ)
    damaged = out.parent / "manifests" / "c_fails.json"
    damaged.parent.mkdir(parents=True)
    damaged.write_text("<<<<<<< HEAD")  # it must not end the call
    status = runner.run_notebooks("smoke", None, tmp_path / "results {here}", (), [3, 4], sources)
    printed = capfd.readouterr().out

    assert status == 1 and os.environ == before
    names = {f"{name}.{kind}" for name in ("a_runs", "b_runs", "d_plain") for kind in ("ipynb", "html")}
    names |= {"c_fails.failed.ipynb", "cc_dies.failed.ipynb"}
    assert {path.name for path in out.iterdir()} == names
    assert "In [3] -> ValueError: math domain error" in printed and "3 of 5 notebooks are finished" in printed
    assert "DeadKernelError: Kernel died" in printed
    ran = nbformat.read(out / "a_runs.ipynb", as_version=4)
    assert ran.cells[3].execution_count == 3
    shown = ran.cells[3].outputs[0]["data"]["text/plain"]
    assert all(repr(part) in shown for part in ("smoke", str(runner.CHECKOUT), sys.executable))
    first, second, _ = (tmp_path / "results {here}" / "seen").read_text().split(";")
    assert first == second and first.endswith("[3, 4] False"), "one kernel, without the names of the first notebook"
    assert nbformat.read(out / "b_runs.ipynb", as_version=4).cells[3].execution_count == 3
    assert "<details>" in (out / "a_runs.html").read_text()  # folded code
    assert Manifest.read(out.parent, "c_fails").failure == "In [3] -> ValueError: math domain error"
    assert Manifest.read(out.parent, "a_runs").seconds > 0

    write(sources, "c_fails", "1 + 1")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runner.run_notebooks("smoke", None, "~/results {here}", ["c_"], None, sources) == 0
    assert (out / "c_fails.ipynb").exists() and not (out / "c_fails.failed.ipynb").exists()
    assert Manifest.read(out.parent, "c_fails").failure == ""


def test_a_notebook_without_the_necessary_parameters_is_refused_before_anything_runs(tmp_path):
    write(tmp_path, "a", "open('x')", parameters='profil = "demo"\nresults = "r"')
    with pytest.raises(VptspError, match=r"a.ipynb: .*no 'profile'; its parameters: profil, results"):
        runner.run_notebooks("demo", None, tmp_path / "results", (), [0], tmp_path)
    assert not (tmp_path / "results").exists()


def test_parameters_that_a_notebook_has_reach_it(tmp_path):
    declared = '# why\nprofile = "demo"\nresults = "r"\nseeds = list(range(2))  # more'
    path = write(tmp_path, "a", "open(results + '/seen', 'w').write(repr(seeds))", parameters=declared)
    given = {"profile": "smoke", "results": "s", "seeds": [1], "data": "d"}
    assert taken_parameters(path, given) == {"profile": "smoke", "results": "s", "seeds": [1]}
    both = 'profile = "demo"\nresults = "r"\nworkers = None\nchanges = {}'
    write(tmp_path, "b", "open(results + '/seen b', 'w').write(repr((workers, changes)))", parameters=both)
    given = dict(workers=3, changes={"augmentation": "base", "alpha": 0.2, "steps_per_epoch": None})
    assert runner.run_notebooks("smoke", None, tmp_path / "out", seeds=[5], folder=tmp_path, **given) == 0
    assert (tmp_path / "out" / "seen").read_text() == "[5]"
    assert ast.literal_eval((tmp_path / "out" / "seen b").read_text()) == tuple(given.values())


@pytest.mark.parametrize(
    ("name", "profile", "given", "seen"),
    [
        ("table5_proxy_source", "tiny", None, "[0, 1, 2, 3, 4]"),
        ("table5_proxy_source", "tiny", [0], "[0]"),
        ("table5_proxy_source", "smoke", None, "[7]"),
        ("tour", "tiny", None, "[7]"),  # not of the protocol
    ],
)
def test_the_profile_tiny_has_the_seeds_of_its_protocol(tmp_path, name, profile, given, seen):
    declared = 'profile = "demo"\nresults = "r"\nseeds = [7]'
    write(tmp_path, name, "open(results + '/seen', 'w').write(repr(seeds))", parameters=declared)
    assert runner.run_notebooks(profile, None, tmp_path / "out", [name], given, tmp_path) == 0
    assert (tmp_path / "out" / "seen").read_text() == seen


def test_the_options_reach_the_notebooks(monkeypatch):
    given = []
    monkeypatch.setattr(runner, "run_notebooks", lambda *args, **more: given.append((args, more)) or 1)
    monkeypatch.setattr(runner, "build", lambda *args: "index.html")
    changes = ["--set", "alpha=0.2", "epochs=2", "--set", "accumulator=ema"]
    several = ["--only", "tour", "--only", "fig3d", "--seeds", "0", "--seeds", "2"]
    assert runner.main(["--profile", "smoke", "--only", "tour,fig3d", "--seeds", "0,2", "--workers", "3"]) == 1
    assert runner.main(["--profile", "smoke", *several, "--workers", "3"]) == 1
    assert runner.main(["--results", "r", "--cluster", "tcp://h:1", *changes, "--dry-run"]) == 1
    rest = {"changes": {}, "dry": False}
    assert given == [
        *2 * [(("smoke", None, runner.CHECKOUT / "results", ["tour", "fig3d"], [0, 2]), {"workers": 3, **rest})],
        (("demo", None, "r", (), None),
         {"workers": "tcp://h:1", "changes": {"alpha": 0.2, "epochs": 2, "accumulator": "ema"}, "dry": True}),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "workers = 0 must be a number from 1"),
        (["--cluster", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--set", "epochs"], "--set epochs: write KEY=VALUE"),
        (["--set", "epoch=2"], "epoch"),
        (["--set", "accumulator=ema"], r"changes \(--set\) contain accumulator, by which the rows of tables differ"),
        (["--seeds", "0,1,0"], r"seeds = \[0, 1, 0\] contain a seed twice"),
        (["--data", "/absent"], "--data: there is no folder /absent$"),
        (["--data="], "--data is empty; give a value"),
        (["--only="], "no notebook begins with ''"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(tmp_path, options, message):
    with pytest.raises(VptspError, match=message):
        runner.main(["--results", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prof", "demo"], "unrecognized arguments: --prof demo"),
        (["--seeds=1,,2"], "--seeds: takes numbers such as 0,1,2, not '1,,2'"),
    ],
)
def test_malformed_options_are_named(options, message, capsys):
    with pytest.raises(SystemExit) as stop:
        runner.main(options)
    assert stop.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_progress_is_one_line_on_a_terminal_and_one_line_per_change_in_a_log(tmp_path, monkeypatch, terminal):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(runner, "every", lambda seconds, tell: contextlib.nullcontext(calls.append(tell)))
    calls, runs = [], tmp_path / "runs"
    with runner._progress("table1", runs):
        write_progress(runs / "glyphs-vptsp-1a2b3c", 1, 4)
        calls[0]()
        calls[0]()
        write_progress(runs / "glyphs-vptsp-1a2b3c", 2, 4)
        calls[0]()
    if terminal:
        assert "\n" not in shown.getvalue() and "\rtable1 00:00, vptsp-1a2b epoch 2/4" in shown.getvalue()
    else:
        assert shown.getvalue() == "table1 0 s, vptsp-1a2b epoch 2/4\ntable1 0 s, vptsp-1a2b epoch 3/4\n"


def test_a_panel_of_figure_3_is_named_by_its_letter():
    assert panels_of(["table1", "fig3d", "fig3lambda"]) == (["table1", "fig3", "fig3"], ["d", "lambda"])
    assert panels_of(["fig3", "fig3d"]) == (["fig3", "fig3"], [])  # all of them
    assert panels_of(["fig3_ablations", "fig3x"]) == (["fig3_ablations", "fig3x"], [])


def test_only_picks_by_the_beginning_of_the_name(tmp_path):
    for name in ("fig3a_k", "fig3d_m", "table1_peft", "table10_latency", "tour"):
        write(tmp_path, name)

    def picked(*only: str) -> list[str]:
        return [path.stem for path in discover(only, tmp_path)]

    assert picked() == ["tour", "fig3a_k", "fig3d_m", "table10_latency", "table1_peft"]
    assert picked("table1") == ["table1_peft"]
    assert picked("table10", "tour") == ["tour", "table10_latency"]
    assert picked("fig3", "fig3d") == ["fig3a_k", "fig3d_m"]
    assert picked("table") == ["table10_latency", "table1_peft"]
    for wrong in ("tab1", "able1", ""):
        with pytest.raises(VptspError, match="known: fig3a_k, fig3d_m"):
            picked(wrong)
    with pytest.raises(VptspError, match="no notebooks in"):
        discover((), tmp_path / "absent")


def test_what_cannot_run_is_one_error_line(tmp_path):
    write(tmp_path, "a", "1")
    (tmp_path / "file").write_text("")
    with pytest.raises(VptspError, match="cannot write .*; choose another folder"):  # also as root
        runner.run_notebooks(results=tmp_path / "file" / "results", folder=tmp_path)
    with pytest.raises(VptspError, match="profile = 'big' must be one of"):
        runner.run_notebooks("big", results=tmp_path / "results", folder=tmp_path)
    (tmp_path / "a.ipynb").write_text("{")
    with pytest.raises(VptspError, match="not a readable notebook"):
        runner.run_notebooks(results=tmp_path / "results", folder=tmp_path)


def test_a_notebook_is_finished_if_its_inputs_and_results_are_unchanged(tmp_path, monkeypatch):
    """Inputs are source, parameters and package. The last execution must not have failed or missed anything."""
    source, folder = write(tmp_path, "a", "1"), tmp_path / "results"
    given = {"profile": "smoke", "results": "r", "seeds": [0], "workers": 2}
    made = made_from(source, given)
    assert made == made_from(source, given | {"results": "elsewhere", "workers": None})
    assert made != made_from(source, given | {"seeds": [1]})
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "has_peft", lambda: not has_peft())
        assert made != made_from(source, given), "LoRA's rows come and go with peft"
    assert not is_finished(folder, "a", made)
    left = ["notebooks/a.ipynb", "notebooks/a.html", "tables/a.csv", "tables/a_record.csv", "figures/a_1.png"]
    left += ["figures/a_1.pdf", "runs/glyphs-vpt-0123abcd/metrics.json"]
    for name in left:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    noted = Manifest(
        tables=["a.csv"], figures=["a_1.png"], runs=[MadeRun("0123abcd", "runs/glyphs-vpt-0123abcd", 1.5)],
        record={"seed": ["0"]},
    )  # fmt: skip
    noted.write(folder, "a")
    assert not is_finished(folder, "a", made), "the notebook wrote its manifest, but the runner did not close it"
    noted.close(folder, "a", made, 1.0)
    assert Manifest.read(folder, "a") == noted and sorted(noted.files) == sorted(left)
    assert is_finished(folder, "a", made) and not is_finished(folder, "a", made[::-1])
    for name in left:
        (folder / name).write_text("edited, or from another execution")
        assert not is_finished(folder, "a", made), name
        (folder / name).write_text(name)
    (folder / left[0]).unlink()
    assert not is_finished(folder, "a", made)
    (folder / left[0]).write_text(left[0])
    assert is_finished(folder, "a", made)
    for changes in ({"missing": [Missing("cub200 is not here")]}, {"failure": "ValueError"}):
        Manifest(**{**vars(noted), **changes}).write(folder, "a")
        assert not is_finished(folder, "a", made), changes
    (folder / "manifests" / "a.json").write_text("{")
    assert not is_finished(folder, "a", made)
    write(tmp_path, "a", "2")
    assert made_from(source, given) != made


def test_a_notebook_is_made_from_every_file_of_the_package(tmp_path, monkeypatch):
    source, package = write(tmp_path, "a", "1"), tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    for name in ("a.py", "deep/c.csv"):
        (package / name).write_text("1\n")
    monkeypatch.setattr(manifest, "PACKAGE", package)
    hashes = []
    for name in (None, "a.py", "deep/c.csv"):
        if name:
            (package / name).write_text("2\n")
        manifest._package.cache_clear()
        hashes.append(made_from(source, {}))
    manifest._package.cache_clear()
    assert len(set(hashes)) == 3


def test_a_notebook_refuses_a_parameter_that_papermill_only_warns_of(tmp_path):
    from papermill.exceptions import PapermillExecutionError

    source = write(tmp_path, "a", "from vptsp_core.publish.parameters import check_given\n\ncheck_given()")
    kernel = OneKernel()
    try:
        with pytest.raises(PapermillExecutionError) as caught:
            kernel.execute(source, tmp_path / "out.ipynb", {"sedes": [1]})
    finally:
        kernel.close()
    assert caught.value.ename == "ConfigError"
    assert caught.value.evalue == "unknown parameter 'sedes'; did you mean seeds?"


def test_our_notebooks_keep_the_rules():
    """No outputs, no classes, at most 15 code cells, the tagged cells, and the same opening and end for all."""
    paths = discover()
    assert len({path.stem.split("_")[0] for path in paths}) == len(paths), "--only uses the first word of a name"
    openings = set()
    for path in paths:
        cells = read(path).cells
        code = [cell for cell in cells if cell.cell_type == "code"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in code), path.name
        assert len(code) <= 15 and not any(re.search(r"^\s*class\s", cell.source, re.M) for cell in code), path.name
        words = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\begin", words), "a page without a script shows LaTeX as source"
        tags = [cell.metadata.get("tags") for cell in cells]
        assert tags.count(["parameters"]) == tags.count(["compared"]) == 1, path.name
        assert "**The paper's claim**" in cells[0].source, path.name
        openings.add("\n\n".join(code[1].source.split("\n\n")[:2]))
        assert f'\nsession = Session("{path.stem}", profile, results' in code[1].source, path.name
        assert code[-1].source.startswith("session.finish("), path.name
        taken = taken_parameters(path, dict.fromkeys(("data", "seeds", "workers", "changes")))
        if any("carry_out(" in cell.source or " many(" in cell.source for cell in code):
            assert {"data", "workers", "changes"} <= set(taken), path.name
    assert len(openings) == 1


def test_a_notebook_without_rows_for_the_profile_tiny_refuses_it(tmp_path):
    Session("table1_peft_methods", "tiny", str(tmp_path))
    with pytest.raises(ConfigError, match="^table8_pretraining does not have the profile tiny; choose demo, smoke or"):
        Session("table8_pretraining", "tiny", str(tmp_path))


INJECTED = '# Parameters\nseeds = list(range(2))\nchanges = {"lr": float("nan")}'
DECLARED = PARAMETERS + "\nchanges = {}"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([DECLARED, INJECTED], None),
        (["%load_ext autoreload", "import os", DECLARED, INJECTED], None),
        (["print(1)", "# Parameters\na = 1"], "no cell above the one with the given parameters has a line"),
        ([DECLARED, "# Parameters\nchanges = [\n    0,\n]"], r"'changes' must be of type dict, not \[0\]"),
        (
            [DECLARED + "\nurl = None  # a=b", "x = (", "# Parameters\nurl = 'x?a=b'\ndata = 1"],
            r"'data' must be of type str \| None, not 1",
        ),
        ([DECLARED, "# Parameters\nseeds = [1]", "# Parameters\nseeds = range(2)"], r"'seeds' must be .*range\(0, 2\)"),
        ([DECLARED, "seeds = list(range(3))"], None),
    ],
)
def test_values_of_given_parameters_are_checked_in_the_kernel(monkeypatch, cells, message):
    """Histories of JupyterLab: a cell above, a cell edited and executed again, what papermill writes for NaN."""
    values = {}
    for cell in cells:
        with contextlib.suppress(SyntaxError):
            exec("\n".join(line for line in cell.splitlines() if not line.startswith(("%", "!"))), values)
    shell = types.SimpleNamespace(user_ns={**values, "In": ["", *cells, "check_given()"]})
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        check_given()


def test_notebooks_do_not_see_the_folders_of_other_commands(tmp_path, monkeypatch):
    for name in ("VPTSP_DATA", "VPTSP_RESULTS", "VPTSP_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    cell = "import os\nopen(results + '/seen', 'w').write(' '.join(sorted(k for k in os.environ if 'VPTSP_' in k)))"
    write(tmp_path, "a", cell, parameters='profile = "demo"\nresults = "r"')
    assert runner.run_notebooks("demo", None, tmp_path / "out", folder=tmp_path) == 0
    assert (tmp_path / "out" / "seen").read_text() == "VPTSP_CACHE"


def test_the_demo_computes_with_one_thread_per_process(tmp_path, monkeypatch):
    """So that rounding is the same on machines with few and with many cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    cell = "import os\nopen(results + '/seen', 'w').write(os.environ['OMP_NUM_THREADS'])"
    write(tmp_path, "a", cell, parameters='profile = "demo"\nresults = "r"')
    assert runner.run_notebooks("demo", None, tmp_path / "out", folder=tmp_path) == 0
    assert (tmp_path / "out" / "seen").read_text() == "1"
