"""Notebooks and their executed copies find the package and the results from the folder that they are opened in."""

import subprocess
import sys

import nbformat
import pytest

from vptsp_core.paper import report
from vptsp_core.publish.parameters import FOLDER
from vptsp_core.system.places import CHECKOUT


def opening(name: str) -> str:
    """The lines of a notebook that find the package."""
    cells = [cell.source for cell in nbformat.read(FOLDER / name, as_version=4).cells if cell.cell_type == "code"]
    return "\n\n".join(cells[1].split("\n\n")[:2])


@pytest.mark.parametrize("folder", ["notebooks", "results/demo/notebooks", "kept/of/last year/notebooks"])
def test_the_package_is_found_above_where_they_are(folder, tmp_path):
    """By a Python that has neither the package nor other libraries."""
    (tmp_path / "vptsp_core").mkdir()
    (tmp_path / "vptsp_core" / "__init__.py").write_text("")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "vptsp_core").mkdir(exist_ok=True)  # a folder of that name is not the package
    code = f"{opening('tour.ipynb')}\nimport vptsp_core\nprint(vptsp_core.__file__)"
    command = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(command, cwd=tmp_path / folder, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "vptsp_core" / "__init__.py"), done.stderr


def test_paths_are_of_the_checkout_wherever_in_it_they_are_opened(monkeypatch, tmp_path):
    for folder in (CHECKOUT, FOLDER, CHECKOUT / "tests" / "publish"):
        monkeypatch.chdir(folder)
        assert report.place("results") == CHECKOUT / "results" and report.place("/other") == report.Path("/other")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert report.place("results") == tmp_path / "results", "where the package is installed"
