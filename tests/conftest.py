"""Shared by all tests: one thread, so that small tensors are quick and results do not depend on the machine."""

import os

import pandas as pd
import pytest
import torch

import vptsp_core  # noqa: F401  (before any test imports timm: it lets timm import torchvision)

torch.set_num_threads(1)

# The longest, up to two minutes each: first, so that neither of two processes is left with one of them in the end.
LONG = (
    "test_notebooks_pictures", "test_notebooks_tables", "test_run_all", "test_train_step", "test_workers",
    "test_kill_resume", "test_tune", "test_beyond", "test_distributed", "test_notebooks_runner", "test_soak",
    "test_gallery",
)  # fmt: skip


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


class Executed:
    """The results folder of notebooks that were executed under the smoke profile."""

    def __init__(self, folder):
        self.folder = folder

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "tables" / f"{name}.csv", index_col=0)

    def outputs(self, name: str) -> list:
        """Of a notebook's cells; nothing but results is among them: no error, no widget, nothing on stderr but that it
        waited for a run, which another of pytest's processes trained for its own notebook."""
        import nbformat

        notebook = nbformat.read(self.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        said = "".join(output["text"] for output in found if output.get("name") == "stderr")
        assert all(": another process trains it; waiting for process " in line for line in said.splitlines()), said
        assert not [output for output in found if output.output_type == "error"]
        found = [output for output in found if output.get("name") != "stderr"]
        assert not [o for o in found if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
        assert (self.folder / "notebooks" / f"{name}.html").stat().st_size > 10_000
        return found

    def figures(self, name: str) -> list[str]:
        """Names of a notebook's figures, each there as PNG and as PDF, and shown once."""
        shown = sum("image/png" in output.get("data", {}) for output in self.outputs(name))
        found = sorted(path.stem for path in (self.folder / "figures").glob(f"{name}*.png"))
        assert shown == len(found)
        for each in found:
            assert (self.folder / "figures" / f"{each}.png").stat().st_size > 5_000
            assert (self.folder / "figures" / f"{each}.pdf").read_bytes()[:5] == b"%PDF-"
        return found


@pytest.fixture(scope="session")
def smoke_results(tmp_path_factory):
    """One for all of pytest's processes: two calls at once on one folder share the work."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "smoke-results"


@pytest.fixture(scope="module")
def smoke(request, smoke_results):
    """A module's NOTEBOOKS, executed; all modules share one folder, and with it the runs, as a user's notebooks do."""
    from vptsp_core.publish.runner import run_notebooks

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = run_notebooks("smoke", None, smoke_results, request.module.NOTEBOOKS, [0])
    folder = smoke_results / "smoke"
    assert status == 0, [path.name for path in (folder / "notebooks").glob("*.failed.ipynb")]
    return Executed(folder)
