"""The notebook runner, on notebooks of a few cells."""

import ast
import contextlib
import errno
import io
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.publish import executed, runner
from vptsp_core.publish.executed import is_finished, made_from, mark
from vptsp_core.publish.parameters import (
    check_given,
    check_parameters,
    check_sources,
    declared_parameters,
    discover,
    read,
)  # fmt: skip
from vptsp_core.runs.progress import write_progress

PARAMETERS = 'profile = "demo"\ndata = None\nresults = "results"\nseeds = [0]'


def write(folder: Path, name: str, *cells: str, parameters: str | None = PARAMETERS) -> Path:
    tagged = [] if parameters is None else [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    path = folder / f"{name}.ipynb"
    nbformat.write(new_notebook(cells=[new_markdown_cell("# A"), *tagged, *map(new_code_cell, cells)]), path)
    return path


def test_runs_all_goes_on_after_a_failure_and_reports_it(tmp_path, capfd):
    sources, out = tmp_path / "sources", tmp_path / "results {here}" / "smoke" / "notebooks"
    sources.mkdir()
    write(sources, "a_fails", "import math\nmath.sqrt(-1)", "print('never')")
    write(
        sources,
        "b_runs",
        "import os, sys, vptsp_core\n(profile, data, seeds, os.getcwd(), sys.executable)",
        "open(results + '/seen', 'w').write(str(seeds))",
    )
    write(sources, "c_plain", "profile", parameters='profile = "demo"\nresults = "results"')
    before = dict(os.environ)
    status = runner.run_notebooks("smoke", None, tmp_path / "results {here}", (), [3, 4], sources)
    printed = capfd.readouterr().out

    assert status == 1
    assert os.environ == before
    names = {"a_fails.failed.ipynb", "b_runs.ipynb", "b_runs.html", "c_plain.ipynb", "c_plain.html"}
    assert {path.name for path in out.iterdir()} == names
    assert "In [3], line 2: math.sqrt(-1) -> ValueError" in printed
    assert "2 of 3 notebooks are there" in printed
    ran = nbformat.read(out / "b_runs.ipynb", as_version=4)
    shown = ran.cells[3].outputs[0]["data"]["text/plain"]
    assert all(repr(part) in shown for part in ("smoke", [3, 4], str(runner.CHECKOUT), sys.executable))
    assert (tmp_path / "results {here}" / "seen").read_text() == "[3, 4]"
    assert {ran.metadata.papermill[key] for key in ("input_path", "output_path")} == {"b_runs.ipynb"}
    assert runner._from_root(runner.CHECKOUT / "results") == "results"
    page = (out / "b_runs.html").read_text()
    assert "<details>" in page and "executable" in page  # collapsed, and there

    write(sources, "a_fails", "1 + 1")
    assert runner.run_notebooks("smoke", None, tmp_path / "results {here}", ["a_"], None, sources) == 0
    assert (out / "a_fails.ipynb").exists() and not (out / "a_fails.failed.ipynb").exists()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('profil = "demo"\nresults = "r"', r"a.ipynb: .*no 'profile'; it has: profil, results"),
        ('profile = "demo"\nresults = None', "'results' must default to a str, not None"),
        ('profile = "demo"\nresults = "r"\nseeds = [0.5]', "'seeds' must default to a list of int"),
        ('profile = "demo"\nresults = "r"\nseeds = list(range(3))', "name = literal"),
        ('profile = "demo"\nresults = "r"\nworkers = True', "'workers' must default to an int, a str or None"),
        ('profile = "demo"\nresults = "r"\nchanges = None', "'changes' must default to a dict"),
        ('profile = "demo"\nresults = "r"\nchanges = {1: 2}', "'changes' must default to a dict"),
        ('import os\nprofile = "demo"', "name = literal.*import os"),
        ("profile = ", "name = literal"),
        (None, "0 cells are tagged"),
    ],
)
def test_parameters_that_do_not_fit_are_refused_before_anything_runs(tmp_path, parameters, message):
    write(tmp_path, "a", "open('x')", parameters=parameters)
    with pytest.raises(VptspError, match=message):
        runner.run_notebooks("demo", None, tmp_path / "results", (), [0], tmp_path, workers=2, changes={"epochs": 2})
    assert not (tmp_path / "results").exists()


def test_declared_parameters_and_what_is_passed_on(tmp_path):
    path = write(tmp_path, "a", parameters='# why\nprofile: str = "demo"\nresults = "r"\nwidth = -2  # more')
    assert declared_parameters(path) == {"profile": "demo", "results": "r", "width": -2}
    given = {"profile": "smoke", "results": "s", "seeds": [1], "data": "d"}
    assert check_parameters(path, given) == {"profile": "smoke", "results": "s"}
    cells = [new_code_cell("a = 1", metadata={"tags": ["parameters"]}) for _ in range(2)]
    nbformat.write(new_notebook(cells=cells), tmp_path / "b.ipynb")
    with pytest.raises(VptspError, match="b.ipynb: 2 cells are tagged"):
        declared_parameters(tmp_path / "b.ipynb")


def test_workers_and_changes_reach_the_notebooks_that_declare_them(tmp_path):
    both = 'profile = "demo"\nresults = "r"\nworkers = None\nchanges = {}'
    write(tmp_path, "a", "open(results + '/seen', 'w').write(repr((workers, changes)))", parameters=both)
    write(tmp_path, "b", "profile", parameters='profile = "demo"\nresults = "r"')
    given = dict(workers=3, changes={"augmentation": "base", "alpha": 0.2, "steps_per_epoch": None})
    assert runner.run_notebooks("smoke", None, tmp_path / "out", folder=tmp_path, **given) == 0
    assert ast.literal_eval((tmp_path / "out" / "seen").read_text()) == tuple(given.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], (None, {})),
        (["--workers", "3"], (3, {})),
        (["--workers=gpus", "--set", "epochs=2"], ("gpus", {"epochs": 2})),
        (
            ["--cluster", "tcp://h:1", "--set", "alpha=0.2", "--set", "accumulator=ema"],
            ("tcp://h:1", {"alpha": 0.2, "accumulator": "ema"}),
        ),
    ],
)
def test_options_for_many_runs(options, expected, monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(runner, "run_notebooks", lambda *args, **more: given.update(more) or 1)
    monkeypatch.setattr(runner, "build", page)
    assert runner.main(options) == 1  # a notebook failed: the page shows the others
    assert (given["workers"], given["changes"]) == expected
    assert "the page was not made: the disk is full" in capsys.readouterr().err


def page(results, profile):
    raise VptspError("the disk is full")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "0"], "--workers: expected a number from 1 or gpus, not '0'"),
        (["--workers", "tcp://h:1"], "--workers: expected a number"),
        (["--cluster", "h:1"], "--cluster: expected tcp://HOST:PORT, not 'h:1'"),
        (["--cluster", "tcp://h"], "workers = 'tcp://h' must be"),
        (["--set", "epochs"], "--set epochs: write KEY=VALUE"),
        (["--set", "epoch=2"], "epoch"),
        (["--cluster", "tcp://127.0.0.1:9"], "no Dask scheduler answers at tcp://127.0.0.1:9"),
        (["--seeds", "0,1,0"], r"seeds = \[0, 1, 0\] name one twice"),
        (["--set", "epochs=two"], "epochs = 'two' must be of type int"),
        (["--set", "accumulator=ema"], r"changes \(--set\) hold accumulator, by which tables tell their rows apart"),
    ],
)
def test_wrong_options_for_many_runs_are_told_before_anything_starts(tmp_path, options, message):
    with pytest.raises(VptspError, match=message):
        runner.main(["--results", str(tmp_path / "out"), *options])
    assert not (tmp_path / "out").exists()


def test_workers_and_cluster_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        runner.main(["--workers", "2", "--cluster", "tcp://h:1"])
    assert stopped.value.code == 2 and "not allowed with argument --workers" in capsys.readouterr().err


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "log"])
def test_a_terminal_shows_what_is_at_work_in_one_line_and_a_log_in_a_line_a_change(tmp_path, monkeypatch, terminal):
    shown = io.StringIO()
    shown.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(runner, "every", lambda seconds, tell: contextlib.nullcontext(told.append(tell)))
    told, runs = [], tmp_path / "runs"
    with runner._told("table1", runs):
        write_progress(runs / "glyphs-vptsp-1a2b3c", 1, 4)
        told[0]()
        told[0]()
        write_progress(runs / "glyphs-vptsp-1a2b3c", 2, 4)
        told[0]()
    if terminal:
        assert "\n" not in shown.getvalue() and "\rtable1 0:00  vptsp-1a2b epoch 2/4 " in shown.getvalue()
    else:
        assert shown.getvalue() == "table1 0:00  vptsp-1a2b epoch 2/4\ntable1 0:00  vptsp-1a2b epoch 3/4\n"


def test_only_picks_by_the_beginning_of_the_name(tmp_path):
    for name in ("00_tour", "fig3a_k", "fig3d_m", "table1_peft", "table10_latency"):
        write(tmp_path, name)

    def picked(*only: str) -> list[str]:
        return [path.stem for path in discover(only, tmp_path)]

    assert picked() == ["00_tour", "fig3a_k", "fig3d_m", "table10_latency", "table1_peft"]
    assert picked("table1") == ["table1_peft"]
    assert picked("table10", "tour") == ["00_tour", "table10_latency"]
    assert picked("fig3", "fig3d") == ["fig3a_k", "fig3d_m"]
    assert picked("table") == ["table10_latency", "table1_peft"]
    for wrong in ("tab1", "able1", ""):
        with pytest.raises(VptspError, match="known: 00_tour, fig3a_k"):
            picked(wrong)
    with pytest.raises(VptspError, match="no notebooks in"):
        discover((), tmp_path / "absent")


def test_what_cannot_work_is_one_error_line(tmp_path):
    write(tmp_path, "a", "1")
    (tmp_path / "file").write_text("")
    with pytest.raises(VptspError, match="--results: cannot write to"):  # also as root
        runner.run_notebooks(results=tmp_path / "file" / "results", folder=tmp_path)
    with pytest.raises(VptspError, match="--data: there is no folder"):
        runner.run_notebooks(data=tmp_path / "absent", results=tmp_path / "results", folder=tmp_path)
    with pytest.raises(VptspError, match="unknown profile 'big'"):
        runner.run_notebooks("big", results=tmp_path / "results", folder=tmp_path)
    with pytest.raises(VptspError, match="--seeds"):
        runner.main(["--seeds", "1,two"])
    (tmp_path / "a.ipynb").write_text("{")
    with pytest.raises(VptspError, match="not a readable notebook"):
        runner.run_notebooks(results=tmp_path / "results", folder=tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_and_sigterm_stop_promptly_and_the_kernel_lets_go_of_what_it_holds(tmp_path, number, status):
    sleeps = "try:\n    time.sleep(600)\nfinally:\n    open(results + '/let_go', 'w').close()"
    write(tmp_path, "a", f"import time\nopen(results + '/started', 'w').close()\n{sleeps}")
    write(tmp_path, "b", "1")
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where a shell runs us with &
        "from pathlib import Path\n"
        "from vptsp_core import __main__\nfrom vptsp_core.publish import runner as notebooks\n"
        "folder = Path(sys.argv[1])\n"
        "notebooks.run_notebooks.__defaults__ = (*notebooks.run_notebooks.__defaults__[:-1], folder)\n"
        "sys.exit(__main__.main(['notebooks', '--results', str(folder / 'results')]))\n"
    )
    (tmp_path / "results").mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=runner.CHECKOUT, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not (tmp_path / "results" / "started").exists() and time.monotonic() < until:
        time.sleep(0.1)
    process.send_signal(number)
    _, printed = process.communicate(timeout=120)  # it would sleep for 600
    assert process.returncode == status
    assert printed.splitlines() == ["stopped; the same command goes on where it was"]
    assert (tmp_path / "results" / "let_go").exists()
    assert list((tmp_path / "results" / "demo" / "notebooks").iterdir()) == []


def test_what_a_finished_notebook_is(tmp_path):
    """The same source, parameters and package; its page, its results, its runs; nothing failed or absent since."""
    source, folder = write(tmp_path, "a", "1"), tmp_path / "results"
    given = {"profile": "smoke", "results": "r", "seeds": [0], "workers": 2}
    made = made_from(source, given)
    assert made == made_from(source, given | {"results": "elsewhere", "workers": None})
    assert made != made_from(source, given | {"seeds": [1]})
    copy, page = folder / "notebooks" / "a.ipynb", folder / "notebooks" / "a.html"
    kept = ["tables/a.csv", "tables/a_record.csv", "figures/a_1.png", "figures/a_1.pdf"]
    kept.append("runs/glyphs-vpt-0123abcd/metrics.json")
    for name in kept:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("fact,value\nrun,0123abcd\n")
    copy.parent.mkdir()
    shutil.copy(source, copy)
    assert not is_finished(folder, source, made)  # executed before copies said what they were made from
    mark(copy, folder, source, made)
    assert not is_finished(folder, source, made), "no page"
    page.write_text("<p>fine")
    assert not is_finished(folder, source, made), "not this copy's page"
    mark(copy, folder, source, made)
    assert is_finished(folder, source, made) and not is_finished(folder, source, made[::-1])
    assert sorted(read(copy).metadata["vptsp"]["results"]) == sorted(["notebooks/a.html", *kept])
    for path in [copy, page, *(folder / name for name in kept)]:
        content = path.read_bytes()
        path.unlink()
        assert not is_finished(folder, source, made), path
        path.write_bytes(b"{}" if path == copy else content[:-2] + b"7\n")  # edited, or of another execution
        assert not is_finished(folder, source, made), path
        path.write_bytes(content)
    assert is_finished(folder, source, made)
    page.write_text("<pre>No runs: cub200 is not here (no folder). To get it: ask, and then: again\n")
    mark(copy, folder, source, made)
    assert not is_finished(folder, source, made), "the data may be there now"
    page.write_text("<p>fine")
    mark(copy, folder, source, made)
    assert is_finished(folder, source, made)
    shutil.copy(source, copy.with_name("a.failed.ipynb"))
    assert not is_finished(folder, source, made)
    copy.with_name("a.failed.ipynb").unlink()
    assert is_finished(folder, source, made)
    read_copy = read(copy)
    read_copy.metadata["vptsp"]["results"] = kept  # as older versions wrote it, without checksums
    nbformat.write(read_copy, copy)
    assert not is_finished(folder, source, made)
    write(tmp_path, "a", "2")
    assert made_from(source, given) != made


def test_a_notebook_is_made_from_every_file_of_the_package(tmp_path, monkeypatch):
    source, package = write(tmp_path, "a", "1"), tmp_path / "package"
    (package / "deep").mkdir(parents=True)
    for name in ("executed.py", "deep/b.py", "deep/c.csv"):
        (package / name).write_text("1\n")
    monkeypatch.setattr("vptsp_core.publish.executed.PACKAGE", package)
    found = []
    for name in (None, "executed.py", "deep/b.py", "deep/c.csv"):
        if name:
            (package / name).write_text("2\n")
        executed._package.cache_clear()
        found.append(made_from(source, {}))
    executed._package.cache_clear()
    assert len(set(found)) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"sedes": [1]}, "unknown parameter 'sedes'; did you mean seeds?"),
        ({"seeds": [1, 2], "data": "d"}, None),
    ],
)
def test_papermill_itself_is_refused_what_no_notebook_takes(tmp_path, given, message):
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = write(tmp_path, "a", "from vptsp_core.publish.parameters import check_given\n\ncheck_given()")
    with runner._own_kernel(), contextlib.ExitStack() as stack:
        caught = stack.enter_context(pytest.raises(PapermillExecutionError)) if message else None
        papermill.execute_notebook(
            str(source),
            str(tmp_path / "out.ipynb"),
            given,
            kernel_name="python3",
            language="python",
            progress_bar=False,
        )
    assert caught is None or (caught.value.ename, caught.value.evalue) == ("ConfigError", message)


def test_check_sources_names_every_breach(tmp_path):
    checked = "from vptsp_core.publish.parameters import check_given\ncheck_given()"
    write(tmp_path, "good", checked)
    assert check_sources(tmp_path) == []
    write(tmp_path, "late", "1", checked)
    write(tmp_path, "many", checked, *["1"] * 14)
    write(tmp_path, "classy", checked, "if True:\n    class A:\n        pass")
    write(tmp_path, "bare", checked, parameters=None)
    write(tmp_path, "trains", checked, "runs = many(configs)", parameters=PARAMETERS + "\nchanges = {}")
    executed = new_code_cell("1", execution_count=1)
    nbformat.write(new_notebook(cells=[executed, new_code_cell(checked)]), tmp_path / "executed.ipynb")
    assert [line.split(": ", 1) for line in check_sources(tmp_path)] == [
        ["bare.ipynb", "0 cells are tagged 'parameters'; exactly one must be"],
        ["classy.ipynb", "defines a class"],
        ["executed.ipynb", "holds outputs or execution counts"],
        ["executed.ipynb", "0 cells are tagged 'parameters'; exactly one must be"],
        ["late.ipynb", "does not call check_given() after its parameters"],
        ["many.ipynb", "16 code cells, more than 15"],
        ["trains.ipynb", "trains, and its parameters cell has no 'workers'"],
    ]


def test_our_notebooks_keep_the_rules():
    assert check_sources() == []


INJECTED = '# Parameters\nseeds = list(range(2))\nchanges = {"lr": float("nan")}'
DECLARED = PARAMETERS + "\nchanges = {}"


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ([DECLARED, INJECTED], None),
        (["%load_ext autoreload", "import os", DECLARED, INJECTED], None),
        ([DECLARED, "%load_ext autoreload\n" + INJECTED + "\nprint(seeds)\n!true"], None),
        (["%load_ext autoreload", DECLARED, "# Parameters\nsedes = list(range(2))"], "unknown parameter 'sedes'"),
        ([DECLARED, "# Parameters\nseeds = [1]", "# Parameters\nseeds = range(2)"], r"'seeds' must be .*range\(0, 2\)"),
        ([DECLARED, "# Parameters\nseeds = ("], "the cell of parameters cannot be read"),
        ([DECLARED.replace("[0]", "list(range(1))"), INJECTED], None),
        ([DECLARED, "seeds = list(range(3))"], None),
    ],
)
def test_parameters_that_are_no_literals_are_taken_from_the_kernel(monkeypatch, cells, message):
    """As JupyterLab leaves them: a cell above, a cell edited and executed again, what papermill writes for ``.nan``."""
    values = {}
    for cell in cells:
        with contextlib.suppress(SyntaxError):
            exec("\n".join(line for line in cell.splitlines() if not line.startswith(("%", "!"))), values)
    shell = types.SimpleNamespace(user_ns={**values, "In": ["", *cells, "check_given()"]})
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    with pytest.raises(ConfigError, match=message) if message else contextlib.nullcontext():
        check_given()


def test_a_full_disk_ends_one_notebook_and_keeps_the_first_error(tmp_path, monkeypatch, capsys):
    """papermill leaves a copy that is cut short; neither that nor a second full disk may hide what was wrong."""
    import papermill

    sources, out = tmp_path / "sources", tmp_path / "results"
    sources.mkdir()
    for name in ("a_full", "b_full", "c_next"):
        write(sources, name, "seeds")
    (out / "smoke" / "notebooks").mkdir(parents=True)
    (out / "smoke" / "notebooks" / "a_full.failed.ipynb").write_text("of an earlier failure")
    whole = nbformat.writes(nbformat.read(sources / "c_next.ipynb", as_version=4))

    def execute(source, target, values, **options):
        name = Path(source).stem
        Path(target).write_text(whole[:40] if name == "a_full" else whole)
        if name != "c_next":
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(path, content):
        raise VptspError(f"cannot write {path} (No space left on device)")

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    real = executed.write_bytes

    def written(path, content):
        (full if "b_full" in path.name else real)(path, content)

    monkeypatch.setattr(executed, "write_bytes", written)
    assert runner.run_notebooks("smoke", results=out, folder=sources) == 1
    printed = capsys.readouterr().out
    assert printed.count("OSError: [Errno 28] No space left on device") == 2
    assert "1 of 3 notebooks are there" in printed
    kept = {"b_full.failed.ipynb", "c_next.ipynb", "c_next.html"}
    assert {path.name for path in (out / "smoke" / "notebooks").iterdir()} == kept
