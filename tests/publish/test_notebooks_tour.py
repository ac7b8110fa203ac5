"""The guided tour runs from end to end under the smoke profile, shows its pictures once and keeps them small."""

import pandas as pd

from vptsp_core.paper.methods import BEST, CLOSED, FROZEN

NOTEBOOKS = ("tour",)
FIGURES = ("tour_images", "tour_method", "tour_training", "tour_retrieval", "tour_map")


def test_every_picture_is_shown_once_kept_and_small(smoke):
    assert smoke.figures("tour") == sorted(FIGURES)  # the live one too, at its end
    for name in FIGURES:
        assert (smoke.folder / "figures" / f"{name}.png").stat().st_size <= 300_000, name


def test_parameters_add_up_and_only_the_sample_tower_is_kept(smoke):
    sizes = smoke.table("tour_parameters")
    assert sizes["tunable parameters"].sum() == 207_072  # as the run's record has it
    kept = sizes[sizes["kept"] == "yes"]
    assert all("sample tower" in part or "backbone" in part for part in kept.index) and len(kept) == 3
    assert sizes.loc["prompts of all classes", "tunable parameters"] == 100 * 6 * 2 * 96


def test_selection_has_all_three_ways_and_validation_trained_on_fewer_classes(smoke):
    found = smoke.table("tour_selection")
    assert list(found.index) == ["released (best on the test set)", "last", "validation"]
    assert found["R@1"].notna().all() and found.loc["last", "R@1"] <= found["R@1"].iloc[0]
    facts = smoke.table("tour_record")["value"]
    assert facts["runs"] == "4" and facts["epoch reported"] == "released, validation"
    assert facts["training classes held out"] == "0, 20"


def test_the_paper_stands_beside_the_best_row(smoke):
    found = smoke.table("tour")
    assert list(found.index) == [FROZEN, CLOSED, BEST] and found["R@1, ours"].notna().all()
    assert found.loc[BEST, "R@1, paper"] == 86.6 and pd.isna(found.loc[FROZEN, "R@1, paper"])
    assert found.loc[BEST, "R@1, ours"] == smoke.table("tour_selection")["R@1"].iloc[0]
