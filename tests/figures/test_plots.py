"""Figures show every row they are given, cut nothing off and are kept in both formats."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.figures.drawn import inside
from vptsp_core.figures import style
from vptsp_core.paper.methods import METHODS, paper_labels
from vptsp_core.paper.report import paper_table

PAPER = paper_labels(paper_table("table1_peft_methods_cub200")).rename(columns={"tunable_params_M": "M"})


def our_methods() -> pd.DataFrame:
    labels = [label for label, row in METHODS.items() if row is not None]
    scores = np.linspace(20, 60, len(labels))
    return pd.DataFrame({
        "label": labels, "M": [0, *np.geomspace(0.7, 0.01, len(labels) - 1)],
        "R@1": scores, "R@1 ±": 1.0, "MAP@R": scores / 2,
    })  # fmt: skip


def labelled(ax) -> list[str]:
    return ax.get_legend_handles_labels()[1]


def test_methods_draws_every_row_and_names_it():
    ours = our_methods()
    fig = style.methods(ours, PAPER, x="M", ys=["R@1", "MAP@R"])
    assert len(fig.axes) == 4
    for ax, rows in zip(fig.axes, [ours, PAPER, ours, PAPER], strict=True):
        assert sorted(labelled(ax)) == sorted(rows["label"])
    assert {t.get_text() for t in fig.legends[0].get_texts()} == set(METHODS)  # the paper's adapters too
    linear = next(c for c in fig.axes[0].containers if c.get_label() == "Linear probing")
    assert linear.lines[0].get_xdata()[0] == ours.set_index("label").loc["Linear probing", "M"]
    assert linear.has_yerr and not fig.axes[2].containers[0].has_yerr
    assert inside(fig)


def rings(ax) -> list[list[float]]:
    return [point for line in ax.lines if line.get_markersize() == 19 for point in line.get_xydata().tolist()]


def test_what_could_be_chance_is_ringed_and_the_legend_says_so():
    ours = our_methods()
    unclear = {"R@1": ["VPT", "Frozen backbone"], "MAP@R": {"VPTSP-G"}}
    fig = style.methods(ours, PAPER, x="M", ys=["R@1", "MAP@R"], unclear=unclear, reference="VPTSP-G + BitFit")
    at = ours.set_index("label")
    recall, _, precision, _ = (rings(ax) for ax in fig.axes)
    assert recall == [[at.loc["VPT", "M"], at.loc["VPT", "R@1"]]]  # what is a line has no point to ring
    assert precision == [[at.loc["VPTSP-G", "M"], at.loc["VPTSP-G", "MAP@R"]]]
    assert not rings(fig.axes[1]) and not rings(fig.axes[3]), "nothing is known of the paper's queries"
    text = "ringed: difference to\nVPTSP-G + BitFit\ncould be chance (95 %)"
    assert fig.legends[0].get_texts()[-1].get_text() == text and inside(fig)


def test_maps_draw_every_image_once_and_the_proxies_of_shown_classes():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(20), 5)
    names, shown = [f"{i:03d}.Bird_{i}" for i in range(20)], [0, 9, 19]
    points, proxies = rng.normal(size=(100, 2)), {name: rng.normal(size=(20, 2)) for name in "OPQ"}
    moved = {name: where + 1 for name, where in proxies.items()}
    fig = style.maps({"one": points, "two": points}, labels, names, shown, {"one": proxies, "two": moved})
    for ax, marks in zip(fig.axes, [proxies, moved], strict=True):
        sizes = [len(c.get_offsets()) for c in ax.collections]
        assert sum(sizes) == 100 + 3 * len(shown) and sizes[0] == 85
        np.testing.assert_allclose(ax.collections[4].get_offsets()[0], marks["Q"][0])
    texts = [t.get_text() for t in fig.legends[0].get_texts()]
    assert texts[:4] == ["other classes", "Bird 0", "Bird 9", "Bird 19"] and len(texts) == 1 + 3 + 3
    assert inside(fig)


def test_save_figure_keeps_both_formats_the_same_each_time(tmp_path):
    fig = style.methods(our_methods(), PAPER, x="M", ys=["R@1"])
    shown = style.save_figure(fig, tmp_path, "fig", "a description")
    png, pdf = (tmp_path / "figures" / f"fig.{kind}" for kind in ("png", "pdf"))
    with Image.open(png) as picture:
        assert picture.width == pytest.approx(200 * fig.get_figwidth(), abs=1)
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 10  # not an empty sheet
    assert shown.data == png.read_bytes() and shown.alt == "a description" and pdf.read_bytes()[:5] == b"%PDF-"
    before = pdf.read_bytes()
    style.save_figure(style.methods(our_methods(), PAPER, x="M", ys=["R@1"]), tmp_path, "fig")
    assert pdf.read_bytes() == before
    assert sorted(p.name for p in png.parent.iterdir()) == ["fig.pdf", "fig.png"]
