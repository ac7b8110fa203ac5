"""The explorer runs from end to end under the smoke profile, and shows the still form of every view."""

import re

import pytest

from vptsp_core.paper.methods import BEST

NOTEBOOKS = ("explore",)
FIGURES = ("attention", "attention_images", "classes", "confusions", "map", "proxies", "retrieval")


def test_every_view_is_a_picture_that_is_kept_and_small(smoke):
    assert smoke.figures("explore") == [f"explore_{name}" for name in FIGURES]
    for name in FIGURES:
        assert (smoke.folder / "figures" / f"explore_{name}.png").stat().st_size <= 350_000, name


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
