"""The notebooks that draw maps and curves run under the smoke profile, and leave what they promise.

Tour, figure 4 and explore are here together: one kernel executes them, and compiles UMAP once.
"""

import re

import numpy as np
import pandas as pd
import pytest

from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.paper.methods import BEST, CLOSED, FROZEN

PANELS = tuple(f"fig3_ablations_{panel}" for panel in SWEEPS)
FIGURES = {
    "tour": ["tour_images", "tour_map", "tour_method", "tour_retrieval", "tour_training"],
    "explore": [
        f"explore_{name}"
        for name in ("attention", "attention_images", "classes", "confusions", "map", "proxies", "retrieval")
    ],
    "fig3_ablations": sorted(["fig3_ablations", *PANELS]),
    "fig4_embedding_space": ["fig4_embedding_space", "fig4_embedding_space_gap", "fig4_embedding_space_test"],
    "table10_latency": ["table10_latency", "table10_latency_forms"],
}
NOTEBOOKS = tuple(FIGURES)
LARGEST = {"tour": 300_000, "explore": 350_000}  # bytes of a picture: they are committed


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_executed_copies_show_every_figure_once_and_are_quiet(smoke, name):
    assert smoke.figures(name) == FIGURES[name]
    for figure in FIGURES[name]:
        size = (smoke.folder / "figures" / f"{figure}.png").stat().st_size
        assert size <= LARGEST.get(name, size), figure
    assert {"commit", "device", "torch version"} <= set(smoke.table(f"{name}_record").index)


def test_figure_3_has_both_points_of_every_panel_beside_the_papers(smoke):
    for panel, name in zip(SWEEPS, PANELS, strict=True):
        found = smoke.table(name)
        both = found[["R@1, ours", "MAP@R, ours", "MAP@R released, ours"]].notna().all(axis=1)
        assert both.sum() == 2
        assert found["R@1, paper"].notna().any() == (panel != "lambda")
        np.testing.assert_allclose(found["R@1, difference"], found["R@1, ours"] - found["R@1, paper"])
        assert sum(column.startswith("R@1, vs ") for column in found) == 1
    assert smoke.table("fig3_ablations")["ours"].notna().sum() == len(SWEEPS)


def test_figure_4_measures_all_three_proxies_at_three_moments(smoke):
    found = smoke.table("fig4_embedding_space_gap")
    assert list(found.index) == ["start, epoch 0", "midway, epoch 1", "end, epoch 2"]
    for kind in "OPQ":
        margin = found[f"{kind}, own centroid"] - found[f"{kind}, nearest other"]
        np.testing.assert_allclose(found[f"{kind}, margin"], margin, atol=1e-6)
    assert abs(found.loc["start, epoch 0", "P, own centroid"]) < 0.1  # random: unrelated to any class
    scores = smoke.table("fig4_embedding_space")
    untrained = ["Frozen backbone", "Closed form (whitened head, no training)"]
    assert list(scores.index) == [*untrained, "VPTSP-G + BitFit, midway", "VPTSP-G + BitFit, end"]
    assert scores["R@1, ours"].notna().all() and scores["R@1, paper"].notna().sum() == 1


def test_table_10_times_every_cell(smoke):
    found = smoke.table("table10_latency")
    assert len(found) == 12 and (found["steps, ours"] == 2).all()
    assert found[["step, ms, paper", "step, ms, ours", "memory, MB, ours"]].notna().all(axis=None)
    np.testing.assert_allclose(found["step, %, difference"], found["step, %, ours"] - found["step, %, paper"])
    assert (found["step, ms 25 %, ours"] <= found["step, ms, ours"]).all()
    assert (found["step, ms, ours"] <= found["step, ms 75 %, ours"]).all()
    by_form = smoke.table("table10_latency_forms")
    assert list(by_form.index) == list(smoke.table("table10_latency").index) and set(by_form) == {"eager", "textbook"}
    np.testing.assert_allclose(by_form["eager"], found["step, ms, ours"])


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


def test_nothing_of_the_controls_is_in_the_executed_copy(smoke):
    kinds = {kind for output in smoke.outputs("explore") for kind in output.get("data", {})}
    assert kinds == {"image/png", "text/html", "text/plain"}
    shown = (smoke.folder / "notebooks" / "explore.html").read_text()
    assert not re.search(r"<(script|iframe)\b", shown) and "widget-view" not in shown


def test_classes_and_confusions_add_up_to_the_recorded_recall(smoke):
    recall = smoke.table("explore")["R@1, ours"]
    assert list(recall.index) == [BEST]
    classes, pairs = smoke.table("explore_classes"), smoke.table("explore_confusions")
    assert len(classes) == 100 and classes["queries"].sum() == 2000
    mean = (classes["R@1"] * classes["queries"]).sum() / classes["queries"].sum()
    assert mean == pytest.approx(recall[BEST], abs=0.2)
    assert (pairs["wrong"] == pairs["there"] + pairs["back"]).all() and pairs["wrong"].is_monotonic_decreasing
    printed = "".join(output.get("text", "") for output in smoke.outputs("explore"))
    assert f"R@1 {mean:.1f} %; its record says {recall[BEST]:.1f} %." in printed


def test_proxies_and_attention_are_told_in_numbers(smoke):
    whole, shares = smoke.table("explore_proxies"), smoke.table("explore_attention")
    assert list(whole.index) == ["O", "P", "Q"] and whole.notna().all(axis=None)
    assert len(shares) == 6 and (shares["prompts"] > 0).all()
    assert shares[["prompts", "class token", "patches"]].sum(axis=1).to_numpy() == pytest.approx(100, abs=1e-3)
    assert smoke.table("explore_record")["value"]["runs"] == "1"
