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
    return next(source for source in cells if source.startswith("try:")).split("\n\n")[0]


def test_every_notebook_finds_the_package_in_the_same_way():
    assert len({opening(path.name) for path in FOLDER.glob("*.ipynb")}) == 1


@pytest.mark.parametrize("folder", ["notebooks", "results/demo/notebooks", "kept/of/last year/notebooks", "."])
def test_the_package_is_found_above_where_they_are(folder, tmp_path):
    """By a Python that has neither the package nor other libraries."""
    (tmp_path / "vptsp_core").mkdir()
    (tmp_path / "vptsp_core" / "__init__.py").write_text("")
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / folder / "vptsp_core").mkdir(exist_ok=True)  # a folder of that name is not the package
    code = opening("tour.ipynb").replace("    import vptsp_core", "    raise ModuleNotFoundError", 1)
    command = [sys.executable, "-I", "-S", "-c", f"{code}\nimport vptsp_core\nprint(vptsp_core.__file__)"]
    done = subprocess.run(command, cwd=tmp_path / folder, capture_output=True, text=True)
    assert done.stdout.strip() == str(tmp_path / "vptsp_core" / "__init__.py"), done.stderr


def test_where_it_is_not_above_the_cure_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", opening("tour.ipynb")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1].startswith(f"ModuleNotFoundError: vptsp_core is not above {tmp_path}; install")


def test_paths_are_of_the_checkout_wherever_in_it_they_are_opened(monkeypatch, tmp_path):
    for folder in (CHECKOUT, FOLDER, CHECKOUT / "tests" / "publish"):
        monkeypatch.chdir(folder)
        assert report.place("results") == CHECKOUT / "results" and report.place("/other") == report.Path("/other")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert report.place("results") == tmp_path / "results", "where the package is installed"
