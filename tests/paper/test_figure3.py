"""Figure 3's sweeps: points beside the paper's, table 1's own among them; their tables and figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from tests.figures.drawn import inside
from vptsp_core.errors import ConfigError
from vptsp_core.figures import sweeps
from vptsp_core.paper import figure3, figure3_results
from vptsp_core.paper.methods import base_config, method_rows
from vptsp_core.paper.report import paper_table
from vptsp_core.runs.folder import CLASS, Run
from vptsp_core.runs.run import build_model

PROFILES = ("demo", "smoke", "tiny", "paper")
PAPER = paper_table("fig3_curves_R1")


def made_panel(name: str, profile: str = "paper", chance: tuple[str, ...] = ()) -> figure3_results.Panel:
    """Make a panel with R@1 = 50, 51, ... Points in ``chance`` could differ from the last point by chance."""
    points = figure3.points(name, profile)
    labels = [point.label for point in points]
    ours = pd.DataFrame({"label": labels, "x": [point.x for point in points]})
    for metric in figure3_results.METRICS:
        ours[metric], ours[f"{metric} ±"] = 50.0 + np.arange(len(ours)), np.nan
    theirs = figure3_results.outcome(name, points, [], []).paper
    against = pd.DataFrame(
        {("R@1", "difference"): -1.0, ("R@1", "low"): -2.0, ("R@1", "high"): 0.5,
         ("R@1", "chance"): [label in chance for label in labels]}, index=labels,
    ).astype({("R@1", "chance"): object})  # fmt: skip
    return figure3_results.Panel(name, figure3.SWEEPS[name], ours, theirs, labels[-1], against)


@pytest.mark.parametrize("panel", figure3.SWEEPS)
def test_each_panel_varies_one_key_and_shares_the_run_of_table_1(panel):
    sweep = figure3.SWEEPS[panel]
    for profile in PROFILES:
        base = base_config(profile, **method_rows(profile)[sweep.row])
        points = [p for p in figure3.points(panel, profile) if p.config.method == "vptsp"]
        assert base.hash() in [point.config.hash() for point in points]
        for point in points:
            value = getattr(point.config, sweep.key)
            assert base.replace(**{sweep.key: value}) == point.config and value in sweep.points_of(profile)
            assert panel == "a" or point.x == value
        assert [point.x for point in points] == sorted({point.x for point in points})


def test_the_paper_profile_has_every_x_of_the_paper():
    for panel, rows in PAPER.groupby("panel"):
        assert set(rows["x"]) <= set(figure3.SWEEPS[panel].values["paper"].values())
    assert set(PAPER["panel"]) == set(figure3.SWEEPS) - {"lambda"}  # which the paper has no curve of


def test_profile_tiny_can_test_the_paper_s_maxima_but_that_of_a_wider_model():
    for panel, rows in PAPER.groupby("panel"):
        there = set(figure3.SWEEPS[panel].points_of("tiny").values())
        highest = set(rows["x"][rows["CUB"] == rows["CUB"].max()])
        assert bool(highest & there) == (panel != "c") and len(there - {None}) > 1


def test_panel_a_counts_the_class_prompts_of_all_classes():
    points = figure3.points("a", "paper")
    np.testing.assert_allclose([p.x for p in points], [m * 12 * 384 * 100 / 1e3 for m in range(7)])
    assert points[0].config.method == "vpt" and points[0].config.bitfit and points[3].config.class_prompts == 3
    assert all(abs(p.x - p.paper_x) < 0.08 * max(p.paper_x, 1) for p in points)  # near the paper's own places
    model = build_model(figure3.points("a", "smoke")[1].config, 100, torch.device("cpu"))
    assert 1e3 * figure3.points("a", "smoke")[1].x == model.class_prompts.table.numel() == 2 * 6 * 96 * 100
    stepped = figure3.points("a", "paper", class_step=5)  # 6 prompts in the first block, and one in the second
    assert [p.x for p in stepped] == [*(m * 384 / 10 for m in range(6)), 2 * 6 * 384 / 10]


def test_a_batch_of_more_classes_than_the_data_have_is_left_out_and_named():
    assert [point.config.batch for point in figure3.points("b", "paper")] == [24, 50, 64, 100, 150]
    assert figure3.left_out("b", "paper").startswith(
        "Panel b without 250: 2 images per class make batches that are multiples of 2 and at most 200"
    )
    assert figure3.left_out("b", "demo") == figure3.left_out("c", "paper") == ""
    too_large = figure3.points("d", "demo", batch=400)  # each run then fails with the sampler's message
    assert len(too_large) == len(figure3.points("d", "demo"))


def test_a_batch_of_incomplete_classes_is_left_out_and_named():
    assert [point.config.batch for point in figure3.points("b", "paper", samples_per_class=4)] == [24, 64, 100]
    assert "without 50, 150, 250: 4 images per class" in figure3.left_out("b", "paper", samples_per_class=4)


def test_changes_come_last_and_unknown_panels_are_refused():
    assert {point.config.epochs for point in figure3.points("d", "demo", epochs=1)} == {1}
    assert figure3.check_panels(["f", "a", "f"]) == ["f", "a"]
    with pytest.raises(ConfigError, match="panel = .g. must be one of a, b"):
        figure3.check_panels(["g"])
    with pytest.raises(ConfigError, match="leaves nothing"):
        figure3.check_panels([])


@pytest.mark.parametrize("panel", figure3.SWEEPS)
def test_a_panel_whose_own_key_is_changed_is_left_out_and_named(panel):
    key = figure3.SWEEPS[panel].key
    change = {key: getattr(base_config("demo"), key)}
    assert figure3.points(panel, "demo", **change) == []
    line = figure3.left_out(panel, "demo", **change)
    assert line.startswith(f"No runs: changes (--set) contain {key}, ") and f"panel {panel} " in line
    for other in figure3.SWEEPS.keys() - {panel}:
        assert len(figure3.points(other, "demo", **change)) > 1
        assert not figure3.left_out(other, "demo", **change).startswith("No runs")


def test_the_table_has_every_point_of_both_sides_once_in_order():
    found = figure3_results.table(made_panel("b"))
    assert list(found.index) == ["24 (paper: 25)", "50", "64", "100", "150", "paper: 250"]
    assert list(found["R@1", "paper"].dropna()) == [85.7, 86.1, 86.0, 85.9, 85.3]
    assert found.loc["50", ("R@1", "difference")] == pytest.approx(51 - 86.1)
    assert found["R@1", "ours"].isna().sum() == 1 and found.loc["paper: 250", ("R@1 on Cars196", "paper")] == 87.4
    assert found.loc["64", ("R@1", "vs 150")] == "-1.0 [-2.0, +0.5]"
    layers = list(figure3_results.table(made_panel("e", "demo")).index)
    assert layers == ["1 (paper: 2)", "2 (paper: 4)", "paper: 6", "4 (paper: 8)", "paper: 10", "6 (paper: 12)"]


def test_without_runs_a_panel_has_only_the_papers_side():
    panel = figure3_results.outcome("c", figure3.points("c", "paper"), [], [])
    assert panel.ours.empty and panel.unclear == [] and panel.best is None
    assert figure3_results.table(panel)["R@1", "paper"].notna().sum() == 6
    assert figure3_results.maxima([panel]).loc["c: embedding dimension", "paper, Cars"] == "384 (87.5)"


def test_maxima_name_the_x_of_the_highest_point_and_the_points_not_clearly_below():
    found = figure3_results.maxima([made_panel("d", chance=("0.8",)), made_panel("lambda")])
    row = found.loc["d: weight of the ordinary proxy"]
    assert row.to_dict() == {
        "paper, CUB": "0.6 (86.75)", "paper, Cars": "0.8 (87.25)", "ours": "1 (56)", "not clearly below": "0.8",
        "the paper's maximum": "", "highest other point": "",
    }  # fmt: skip
    assert found.iloc[1]["paper, CUB"] == "" and found.iloc[1]["ours"] == "0.99 (55)"
    assert found.iloc[1]["the paper's maximum"] == ""
    assert figure3_results.maxima([tried("d", "paper", {"0.6": 0.6})])["ours"].item() == "", "one point is no curve"


QUERIES = 4_000
RECORD = {"data": {"name": "x", "test": "y"}, "seconds": 1.0, "parameters": {}}


def tried(panel: str, profile: str, recalls: dict[str, float]) -> figure3_results.Panel:
    """Return the outcome of a panel whose points have these shares of right queries."""
    points = {point.label: point for point in figure3.points(panel, profile)}
    runs = []
    for at, (label, recall) in enumerate(recalls.items()):
        right = np.random.default_rng(at).permutation(QUERIES) < recall * QUERIES
        metrics = dict.fromkeys(figure3_results.METRICS, float(right.mean()))
        runs.append(Run(points[label].config, Path("r"), metrics, pd.DataFrame(), RECORD))
        runs[-1].__dict__["queries"] = {"R@1": right.astype(float), "class": np.arange(QUERIES)}
    return figure3_results.outcome(panel, list(points.values()), runs, list(recalls))


def test_the_verdict_on_the_papers_maximum():
    flat = {"0": 0.5, "0.2": 0.5, "0.4": 0.5, "0.6": 0.5, "0.8": 0.5, "1": 0.5}  # the paper's highest is 0.6
    assert tried("d", "paper", flat | {"0.6": 0.6}).maximum == "holds"
    found = tried("d", "paper", flat | {"0.2": 0.6})
    assert found.maximum == "does not hold" and found.rival.startswith("0.2: +10.0 [")
    found = tried("d", "paper", flat | {"0.6": 0.505, "0.2": 0.51})
    assert found.maximum == "undecided" and found.rival.startswith("0.2: ≈ +0.5 [")
    assert tried("d", "paper", flat | {"0.6": 0.505}).maximum == "undecided", "higher, but not clearly"
    own = flat | {"0.6": 0.6, "0.5": 0.7}  # 0.5 is table 1's point, which the paper's curve does not have
    assert tried("d", "paper", own).maximum == "holds" and tried("d", "paper", own).best == "0.5"
    del flat["1"]
    assert tried("d", "paper", flat).maximum == "not run" and tried("d", "paper", {}).maximum == "not run"


def test_runs_whose_queries_are_of_one_class_have_no_verdict():
    flat = dict.fromkeys(("0", "0.2", "0.4", "0.6", "0.8", "1"), 0.5)
    points = {point.label: point for point in figure3.points("d", "paper")}
    metrics = dict.fromkeys(figure3_results.METRICS, 0.5)
    runs = [Run(points[label].config, Path("r"), metrics, pd.DataFrame(), RECORD) for label in flat]
    for each in runs:
        each.__dict__["queries"] = {"R@1": np.float32([0, 1]), CLASS: np.int64([7, 7])}
    assert figure3_results.outcome("d", list(points.values()), runs, list(flat)).maximum == "not run"


def test_a_maximum_that_is_tied_or_that_ours_cannot_have():
    wide = dict.fromkeys(("32", "128", "256", "384", "512", "1024"), 0.5)  # the paper has 86.5 at 384 and at 1,024
    assert tried("c", "paper", wide | {"1024": 0.7, "384": 0.6, "512": 0.65}).maximum == "holds"
    assert tried("c", "paper", wide | {"1024": 0.7, "384": 0.7}).maximum == "holds"
    assert tried("c", "paper", wide | {"512": 0.7}).maximum == "does not hold"
    assert tried("c", "tiny", {"32": 0.5, "128": 0.6, "192": 0.7}).maximum == "no such point"  # wider than the ViT
    assert tried("lambda", "demo", {}).maximum == ""
    assert list(figure3_results.maxima([tried("c", "tiny", {})])["the paper's maximum"]) == ["no such point"]


def test_the_grid_draws_every_point_and_cuts_nothing_off():
    panels = [made_panel(name, chance=("0.2", "0.8")) for name in figure3.SWEEPS]
    fig = sweeps.grid(panels)
    axes = fig.get_axes()
    assert len(axes) == 2 * 6 + 1
    assert list(axes[0].lines[0].get_xdata()) == list(panels[0].ours["x"])
    assert axes[0].get_xlabel() == "ours: class-prompt parameters, K"  # our reading of panel a
    assert axes[1].get_xlabel() == "paper: tunable parameters, K" and not axes[2].get_xlabel()
    assert list(axes[1].lines[0].get_ydata()) == list(PAPER.query("panel == 'a'")["CUB"])
    rings = [line for line in axes[6].lines if line.get_markersize() == 19]
    assert sorted(rings[0].get_xdata()) == [0.2, 0.8]
    assert inside(fig)


def test_a_single_panel_has_the_band_of_the_seeds_and_explains_the_ring():
    panel = made_panel("d", "demo", chance=("0.5",))
    recall, precision, paper = sweeps.single(panel).axes
    assert {tick % 1 for tick in sweeps.single(made_panel("e", "smoke")).axes[0].get_xticks()} == {0}, "whole layers"
    assert not recall.collections and len(paper.lines) == 2  # one seed: no band
    panel.ours["R@1 ±"] = 0.5
    fig = sweeps.single(panel)
    band = fig.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (49.5, 54.5) and not fig.axes[1].collections
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert "our highest" in texts[1] and [texts[0], *texts[2:]] == [
        "ours, R@1", "ours, MAP@R", "paper, CUB", "paper, Cars"
    ]  # fmt: skip
    without_cars = sweeps.single(made_panel("a", "smoke"))
    labels = [ax.get_xlabel().split()[0] for ax in without_cars.axes]
    assert labels == ["class-prompt", "class-prompt", "tunable"]
    assert len(without_cars.legends[0].get_texts()) == 3
