"""Nothing executes the content of a file or a name: the source is searched for such calls, and pages escape text."""

import ast
import os
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from vptsp_core.data.folder import read_image
from vptsp_core.errors import DataError
from vptsp_core.paper import report
from vptsp_core.publish import page
from vptsp_core.publish.html import notebook_html
from vptsp_core.publish.manifest import MadeRun, Manifest, Missing
from vptsp_core.publish.parameters import FOLDER, read

ROOT = Path(__file__).resolve().parents[1]
EVIL = "<script>alert('x')</script>"
# Modules that can execute a file they load, calls by their last name, and built-in functions.
MODULES = {
    "pickle", "cPickle", "_pickle", "dill", "cloudpickle", "shelve", "marshal", "jsonpickle", "yaml", "runpy", "code",
}  # fmt: skip
CALLS = {
    "read_pickle", "to_pickle", "extractall", "system", "popen", "unsafe_load", "full_load", "load_module",
    "exec_module", "run_cell", "run_path", "run_module", "execute_notebook", "import_module", "Parallel", "Client",
}  # fmt: skip
BUILTINS = {"eval", "exec", "compile", "__import__", "input"}
AUDITED = {
    ("vptsp_core/publish/kernel.py", "execute_notebook"): "our own notebooks, whose sources are in the checkout",
    ("vptsp_core/publish/plan.py", "exec"): "cells of our own notebooks, for a dry run",
    ("vptsp_core/__main__.py", "import_module"): "of a fixed list of commands",
    ("vptsp_core/__init__.py", "import_module"): "of a fixed list of our own names",
    ("vptsp_core/method/faiss_index.py", "import_module"): "of one fixed name",
    ("vptsp_core/paper/released.py", "import_module"): "the released code in a clone that the user names, to be timed",
    ("vptsp_core/runs/cluster.py", "Client"): "a Dask cluster that the user names and has to trust; no file is read so",
}


def refused(tree: ast.AST) -> set[str]:
    """Return the names that need an audit to be in the source."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.add(node.module)
        elif isinstance(node, ast.Call):
            given = {keyword.arg: getattr(keyword.value, "value", keyword.value) for keyword in node.keywords}
            if given.get("shell", False) is not False:
                found.add("shell=True")
            if given.get("allow_pickle", False) is not False:
                found.add("allow_pickle=True")
            if isinstance(node.func, ast.Name) and node.func.id in BUILTINS:
                found.add(node.func.id)
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of = node.func.value.id if isinstance(getattr(node.func, "value", None), ast.Name) else ""
            if name in CALLS and not (name == "system" and of == "platform"):
                found.add(name)
            if name == "load" and of in ("torch", "joblib", "hub") and given.get("weights_only") is not True:
                found.add(f"{of}.load")
            if name == "extract" and "filter" not in given and of in ("tar", "archive", "tarfile", "zip"):
                found.add("extract")
    return found


def test_nothing_in_the_source_executes_data():
    found = {}
    for path in (ROOT / "vptsp_core").rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        found |= {(name, what): 1 for what in refused(ast.parse(path.read_text(encoding="utf-8")))}
    for path in FOLDER.glob("*.ipynb"):
        code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
        found |= {(path.name, what): 1 for what in refused(ast.parse(code))}
    assert found.keys() == AUDITED.keys()


# ---- pages ---------------------------------------------------------------------------------------


def test_tables_of_a_notebook_escape_names(tmp_path):
    """Class names, file names and configuration values come from users' folders and files."""
    table = pd.DataFrame({EVIL: [1.0], "words": [f"weights={EVIL}.pth"]}, index=[EVIL])
    for shown in (report.styled(table).to_html(), table._repr_html_()):
        assert "<script" not in shown and shown.count("&lt;script&gt;") == 3
    output = nbformat.v4.new_output("stream", text=f"No runs: {EVIL} is not here\n")
    table_output = nbformat.v4.new_output("display_data", data={"text/html": report.styled(table).to_html()})
    error = nbformat.v4.new_output("error", ename="DataError", evalue=EVIL, traceback=[EVIL])
    cell = nbformat.v4.new_code_cell(f"# {EVIL}", outputs=[output, table_output, error])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "n.ipynb")
    shown = notebook_html(tmp_path / "n.ipynb", f"n{EVIL}")
    assert "<script" not in shown and shown.count("alert(") >= 6


def test_the_results_page_escapes_the_names_of_runs_and_folders(tmp_path):
    (tmp_path / "sources").mkdir()
    parameters = nbformat.v4.new_code_cell('profile = "demo"\nresults = "r"', metadata={"tags": ["parameters"]})
    source = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# Table 1"), parameters])
    nbformat.write(source, tmp_path / "sources" / "table1_x.ipynb")
    demo = tmp_path / "demo"
    report.save_table(pd.DataFrame({EVIL: [EVIL]}, index=[EVIL]), demo, "table1_x")
    (demo / "tables" / "table1_x_<script>.csv").write_text(f"a,b\n{EVIL},1\n")
    Manifest(
        tables=["table1_x.csv", "table1_x_<script>.csv"], figures=["table1_x_<script>.png"],
        record=dict.fromkeys(("device", "backbone", "commit", "epoch reported"), [EVIL]),
        missing=[Missing(EVIL), Missing(EVIL, EVIL, EVIL)], runs=[MadeRun(EVIL, EVIL, 1.0)], failure=EVIL,
    ).write(demo, "table1_x")  # fmt: skip
    shown = page.build(tmp_path, "demo", tmp_path / "sources").read_text(encoding="utf-8")
    assert "<script" not in shown and shown.count("&lt;script&gt;") > 6


def test_a_program_is_not_read_as_an_image(tmp_path, monkeypatch):
    """Pillow passes EPS files to Ghostscript, whatever their suffix."""
    program, ran = tmp_path / "bin" / "gs", tmp_path / "ran"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    picture = tmp_path / "a.jpg"
    picture.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 50 50\n%%EndComments\nshowpage\n%%EOF\n")
    with pytest.raises(DataError, match=r"image .*a.jpg: unreadable \(not an image of a known kind\); replace"):
        read_image(picture)
    assert not ran.exists()


@pytest.mark.posix("needs a named pipe")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"image .*a.jpg: not a regular file; replace it"):
        read_image(tmp_path / "a.jpg")
