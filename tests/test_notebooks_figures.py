"""The notebooks of figures 3 and 4 and of table 10 run under the smoke profile, and leave what they promise."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from vptsp_core.notebooks import run_notebooks
from vptsp_core.sweeps import SWEEPS

NOTEBOOKS = ("fig3_ablations", "fig4_embedding_space", "table10_latency")
PANELS = tuple(f"fig3_ablations_{panel}" for panel in SWEEPS)
FIGURES = (
    "fig3_ablations", *PANELS, "fig4_embedding_space", "fig4_embedding_space_gap", "fig4_embedding_space_test",
    "table10_latency",
)  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The results folder of one run of all three."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = run_notebooks("smoke", None, results, NOTEBOOKS, [0])
    assert status == 0, [path.name for path in (results / "smoke" / "notebooks").glob("*.failed.ipynb")]
    return results / "smoke"


def table(smoke, name: str) -> pd.DataFrame:
    return pd.read_csv(smoke / "tables" / f"{name}.csv", index_col=0)


def test_executed_copies_show_their_figures_and_are_quiet(smoke):
    shown = 0
    for name in NOTEBOOKS:
        assert (smoke / "notebooks" / f"{name}.html").stat().st_size > 10_000
        notebook = nbformat.read(smoke / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        shown += sum("image/png" in output.get("data", {}) for output in outputs)
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
        assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
        assert {"commit", "device", "torch version"} <= set(table(smoke, f"{name}_record").index)
    assert shown == len(FIGURES)
    assert sorted(path.stem for path in (smoke / "figures").glob("*.png")) == sorted(FIGURES)
    for name in FIGURES:
        assert (smoke / "figures" / f"{name}.pdf").stat().st_size > 5_000


def test_figure_3_has_both_points_of_every_panel_beside_the_papers(smoke):
    for panel, name in zip(SWEEPS, PANELS, strict=True):
        found = table(smoke, name)
        both = found[["R@1, ours", "MAP@R, ours", "MAP@R released, ours"]].notna().all(axis=1)
        assert both.sum() == 2
        assert found["R@1, paper"].notna().any() == (panel != "lambda")
        np.testing.assert_allclose(found["R@1, difference"], found["R@1, ours"] - found["R@1, paper"])
        assert sum(column.startswith("R@1, vs ") for column in found) == 1
    assert table(smoke, "fig3_ablations")["ours"].notna().sum() == len(SWEEPS)
    runs = {path.name for path in (smoke / "runs").glob("glyphs-vpt*")}
    assert len(runs) >= 9  # a base and a change a panel, the running average's two; figure 4 adds its own


def test_figure_4_measures_all_three_proxies_at_three_moments(smoke):
    found = table(smoke, "fig4_embedding_space_gap")
    assert list(found.index) == ["start, epoch 0", "midway, epoch 1", "end, epoch 2"]
    for kind in "OPQ":
        margin = found[f"{kind}, own centroid"] - found[f"{kind}, nearest other"]
        np.testing.assert_allclose(found[f"{kind}, margin"], margin, atol=1e-6)
    assert abs(found.loc["start, epoch 0", "P, own centroid"]) < 0.1  # random: unrelated to any class
    scores = table(smoke, "fig4_embedding_space")
    assert list(scores.index) == ["Frozen backbone", "VPTSP-G + BitFit, midway", "VPTSP-G + BitFit, end"]
    assert scores["R@1, ours"].notna().all() and scores["R@1, paper"].notna().sum() == 1


def test_table_10_times_every_cell(smoke):
    found = table(smoke, "table10_latency")
    assert len(found) == 12 and (found["steps, ours"] == 2).all()
    assert found[["step, ms, paper", "step, ms, ours", "memory, MB, ours"]].notna().all(axis=None)
    np.testing.assert_allclose(found["step, %, difference"], found["step, %, ours"] - found["step, %, paper"])
    assert (found["step, ms 25 %, ours"] <= found["step, ms, ours"]).all()
    assert (found["step, ms, ours"] <= found["step, ms 75 %, ours"]).all()
