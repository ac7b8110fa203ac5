"""The notebooks of figures 3 and 4 and of table 10 run under the smoke profile, and leave what they promise."""

import numpy as np

from vptsp_core.paper.figure3 import SWEEPS

NOTEBOOKS = ("fig3_ablations", "fig4_embedding_space", "table10_latency")
PANELS = tuple(f"fig3_ablations_{panel}" for panel in SWEEPS)
FIGURES = (
    "fig3_ablations", *PANELS, "fig4_embedding_space", "fig4_embedding_space_gap", "fig4_embedding_space_test",
    "table10_latency", "table10_latency_forms",
)  # fmt: skip


def test_executed_copies_show_their_figures_and_are_quiet(smoke):
    assert [figure for name in NOTEBOOKS for figure in smoke.figures(name)] == sorted(FIGURES)
    for name in NOTEBOOKS:
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
