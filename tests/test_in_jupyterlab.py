"""Two notebooks in a real JupyterLab, clicked through in Chromium; all of them: python tests/in_jupyterlab.py."""

import os

import in_jupyterlab
import nbformat
import papermill
import pytest

from vptsp_core.publish.parameters import discover


@pytest.mark.skipif("VPTSP_BROWSER" not in os.environ, reason="takes minutes: set VPTSP_BROWSER=1")
@pytest.mark.skipif(bool(in_jupyterlab.missing()), reason=in_jupyterlab.missing())
def test_notebooks_run_as_for_a_person_and_the_explorer_answers_clicks(smoke_results):
    assert in_jupyterlab.check(["explore", "table3"], results=smoke_results) == []


def test_what_is_missing_is_said_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(in_jupyterlab.shutil, "which", lambda name: None)
    assert in_jupyterlab.main([]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: not installed: Chromium (Debian: chromium), its driver (") and told.count("\n") == 1


def test_copies_differ_from_the_sources_in_their_parameters_alone(tmp_path):
    (source,) = paths = discover(["explore"])
    in_jupyterlab.copies(paths, tmp_path, {"profile": "smoke", "results": r"C:\a\1"})
    copy = tmp_path / "notebooks" / "explore.ipynb"
    before, after = ({name: each["default"] for name, each in papermill.inspect_notebook(path).items()}
                     for path in (source, copy))  # fmt: skip
    assert after == before | {"profile": "'smoke'", "results": repr(r"C:\a\1")}
    ours, theirs = (nbformat.read(path, as_version=4).cells for path in (source, copy))
    assert [a.source == b.source for a, b in zip(ours, theirs, strict=True)].count(False) == 1
