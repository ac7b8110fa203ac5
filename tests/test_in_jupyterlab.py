"""Two notebooks run in a real JupyterLab in Chromium. To run all: python tests/in_jupyterlab.py."""

import os

import in_jupyterlab
import pytest


@pytest.mark.skipif("VPTSP_BROWSER" not in os.environ, reason="takes minutes: set VPTSP_BROWSER=1")
@pytest.mark.skipif(bool(in_jupyterlab.missing()), reason=in_jupyterlab.missing())
def test_notebooks_run_in_jupyterlab_and_the_explorer_answers_clicks(tmp_path):
    assert in_jupyterlab.check(["explore", "table3"], results=tmp_path) == []
