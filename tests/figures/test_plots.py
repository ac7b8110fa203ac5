"""Figures show every row that they get, and cut nothing off."""

import numpy as np
import pandas as pd
import pytest
from IPython.core.formatters import DisplayFormatter

from tests.figures.drawn import inside
from vptsp_core.figures import claims, first_steps, style
from vptsp_core.paper.methods import METHODS, paper_labels
from vptsp_core.paper.report import paper_table

PAPER = paper_labels(paper_table("table1_peft_methods_cub200")).rename(columns={"tunable_params_M": "M"})


@pytest.fixture
def ours() -> pd.DataFrame:
    labels = [label for label, row in METHODS.items() if row is not None]
    scores = np.linspace(20, 60, len(labels))
    return pd.DataFrame({
        "label": labels, "M": [0, *np.geomspace(0.7, 0.01, len(labels) - 1)],
        "R@1": scores, "R@1 ±": 1.0, "MAP@R": scores / 2,
    })  # fmt: skip


def rings(ax) -> list[list[float]]:
    return [point for line in ax.lines if line.get_markersize() == 19 for point in line.get_xydata().tolist()]


def test_every_method_is_drawn_and_named_and_unclear_differences_are_ringed(ours):
    unclear = {"R@1": ["VPT", "Frozen backbone"], "MAP@R": {"VPTSP-G"}}
    fig = style.methods(ours, PAPER, x="M", ys=["R@1", "MAP@R"], unclear=unclear, reference="VPTSP-G + BitFit")
    ring = "ringed: difference to\nVPTSP-G + BitFit\ncould be chance (95 %)"
    recall, paper_recall, precision, paper_precision = fig.axes
    for ax, rows in zip(fig.axes, [ours, PAPER, ours, PAPER], strict=True):
        labels = ax.get_legend_handles_labels()[1]
        assert sorted(labels) == sorted([*rows["label"], *([ring] if rows is ours else [])])
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert set(texts) == {*METHODS, ring} and texts[-1] == ring  # with the methods that only the paper has
    at = ours.set_index("label")
    linear = next(c for c in recall.containers if c.get_label() == "Linear probing")
    assert linear.lines[0].get_xdata()[0] == at.loc["Linear probing", "M"]
    assert linear.has_yerr and not precision.containers[0].has_yerr
    assert rings(recall) == [at.loc["VPT", ["M", "R@1"]].tolist()]  # the frozen backbone is a line
    assert rings(precision) == [at.loc["VPTSP-G", ["M", "MAP@R"]].tolist()]
    assert not rings(paper_recall) and not rings(paper_precision)
    assert inside(fig)


def test_maps_draw_every_image_once_and_the_proxies_of_shown_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 5)
    names, shown = [f"{i:03d}.Bird_{i}" for i in range(20)], [0, 9, 19]
    points, proxies = rng.normal(size=(100, 2)), {name: rng.normal(size=(20, 2)) for name in "OPQ"}
    moved = {name: where + 1 for name, where in proxies.items()}
    fig = style.maps({"one": points, "two": points}, labels, names, shown, {"one": proxies, "two": moved})
    assert DisplayFormatter().format(fig)[0]["image/png"].startswith(b"\x89PNG")  # JupyterLab shows it
    for ax, marks in zip(fig.axes, [proxies, moved], strict=True):
        sizes = [len(c.get_offsets()) for c in ax.collections]
        assert sum(sizes) == 100 + 3 * len(shown) and sizes[0] == 85
        np.testing.assert_allclose(ax.collections[4].get_offsets()[0], marks["Q"][0])
    texts = [text.get_text() for text in fig.legends[0].get_texts()]
    assert texts[:4] == ["other classes", "Bird 0", "Bird 9", "Bird 19"] and len(texts) == 1 + 3 + 3
    assert inside(fig)


def test_claims_are_drawn_by_verdict_and_those_without_runs_are_left_out():
    parts = pd.DataFrame(
        {"paper": [1.0, 2.0, 0.5], "difference": [2.0, -3.0, np.nan], "low": [1.0, -4.5, np.nan],
         "high": [3.0, -1.0, np.nan], "verdict": ["holds", "does not hold", "not run"]},
        index=["A > B", "A > C", "B > C"],
    )  # fmt: skip
    compared = pd.concat({"R@1": parts}, axis=1)
    compared["seeds", ""] = ["3, 2", "1, 3", "0, 1"]
    fig = claims.claims(compared)
    (ax,) = fig.axes
    assert [text.get_text() for text in ax.get_yticklabels()] == ["A > B", "A > C"]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "paper", "ours: holds", "ours: does not hold (one seed)",
    ]  # fmt: skip
    faces = [each.lines[0].get_markerfacecolor() for each in ax.containers]
    assert faces == [claims.COLOURS["holds"][0], "white"]
    lower = ax.containers[1]
    assert lower.lines[0].get_xdata() == [-3.0] and lower.lines[2][0].get_segments()[0][:, 0].tolist() == [-4.5, -1.0]
    assert inside(fig)
    assert inside(claims.claims(compared.iloc[2:]))  # no runs at all
    six = pd.concat([compared.iloc[:1]] * 6).set_axis([*"abcdef"])
    six["R@1", "verdict"], six["seeds", ""] = [*claims.COLOURS] * 2, ["1, 1"] * 3 + ["2, 2"] * 3
    fig = claims.claims(six)
    assert len(fig.legends[0].get_texts()) == 7 and inside(fig)


def test_the_first_steps_of_every_run_are_drawn():
    steps = {
        f"{'ab'[at // 2]}, seed {at % 2}": pd.DataFrame(
            {"step": [1, 2, 3], "other classes": [0.1, 0.5, 0.9], "loss": [9.0, 5.0, 4.0 + at]}
        )
        for at in range(4)
    }
    fig = first_steps.first_steps(steps)
    for ax, column in zip(fig.axes, ["other classes", "loss"], strict=True):
        assert [list(line.get_ydata()) for line in ax.lines] == [list(each[column]) for each in steps.values()]
        one, again, other, _ = [(line.get_color(), line.get_linestyle()) for line in ax.lines]
        assert one[0] == again[0] != other[0] and one[1] == other[1] != again[1]
    assert [text.get_text() for text in fig.legends[0].get_texts()] == list(steps)
    assert inside(fig)
