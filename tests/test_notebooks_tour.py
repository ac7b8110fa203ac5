"""The guided tour runs from end to end under the smoke profile, shows its pictures once and keeps them small."""

import nbformat
import pandas as pd
import pytest

from vptsp_core.notebooks import run_notebooks
from vptsp_core.rows import BEST, FROZEN

FIGURES = ("tour_images", "tour_method", "tour_training", "tour_retrieval", "tour_map")


@pytest.fixture(scope="module")
def tour(tmp_path_factory):
    """The results folder of the smoke profile."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = run_notebooks("smoke", None, results, ["tour"], [0])
    assert status == 0, [path.name for path in (results / "smoke" / "notebooks").glob("*.failed.ipynb")]
    return results / "smoke"


def table(tour, name: str) -> pd.DataFrame:
    return pd.read_csv(tour / "tables" / f"{name}.csv", index_col=0)


def test_every_picture_is_shown_once_and_nothing_else_is_said(tour):
    notebook = nbformat.read(tour / "notebooks" / "tour.ipynb", as_version=4)
    shown = [[o for o in cell.get("outputs", []) if "image/png" in o.get("data", {})] for cell in notebook.cells]
    assert [len(pictures) for pictures in shown if pictures] == [1] * len(FIGURES)  # the live one too, at its end
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]


def test_pictures_are_kept_and_small(tour):
    for name in FIGURES:
        assert 5_000 < (tour / "figures" / f"{name}.png").stat().st_size <= 300_000, name
        assert (tour / "figures" / f"{name}.pdf").read_bytes()[:5] == b"%PDF-"


def test_parameters_add_up_and_only_the_sample_tower_is_kept(tour):
    sizes = table(tour, "tour_parameters")
    assert sizes["tunable parameters"].sum() == 207_072  # as the run's record has it
    kept = sizes[sizes["kept"] == "yes"]
    assert all("sample tower" in part or "backbone" in part for part in kept.index) and len(kept) == 3
    assert sizes.loc["prompts of all classes", "tunable parameters"] == 100 * 6 * 2 * 96


def test_selection_has_all_three_ways_and_validation_trained_on_fewer_classes(tour):
    found = table(tour, "tour_selection")
    assert list(found.index) == ["released (best on the test set)", "last", "validation"]
    assert found["R@1"].notna().all() and found.loc["last", "R@1"] <= found["R@1"].iloc[0]
    facts = table(tour, "tour_record")["value"]
    assert facts["runs"] == "3" and facts["epoch reported"] == "released, validation"
    assert facts["training classes held out"] == "0, 20"


def test_the_paper_stands_beside_the_best_row(tour):
    found = table(tour, "tour")
    assert list(found.index) == [FROZEN, BEST] and found["R@1, ours"].notna().all()
    assert found.loc[BEST, "R@1, paper"] == 86.6 and pd.isna(found.loc[FROZEN, "R@1, paper"])
    assert found.loc[BEST, "R@1, ours"] == table(tour, "tour_selection")["R@1"].iloc[0]
