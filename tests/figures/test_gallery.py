"""Thumbnails are in their places, signs agree with hand-made labels, and no image finds itself."""

import io
import types

import matplotlib.colors as colours
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from tests.figures.drawn import Flat, inside
from vptsp_core.errors import VptspError
from vptsp_core.figures import diagram, gallery, live, style, umap


@pytest.fixture
def birds():
    """Six images of three classes."""
    return Flat("birds", np.array([0, 0, 1, 1, 2, 2]), ["001.Red_bird", "002.Blue_bird", "003.Grey_bird"])


def drawn(ax) -> dict[tuple[float, float], int]:
    """Return {(left, top) of each thumbnail: the brightness of its middle}."""
    middles = {}
    for image in ax.images:
        left, _, _, top = image.get_extent()
        pixels = image.get_array()
        middles[round(left, 2), round(top, 2)] = int(pixels[len(pixels) // 2, len(pixels) // 2, 0])
    return middles


def test_a_thumbnail_keeps_the_shape_and_is_padded():
    wide = gallery.thumbnail(Image.new("RGB", (30, 20), "black"), 12)
    assert wide.shape == (12, 12, 3) and wide.dtype == np.uint8
    assert (wide[:2] == 255).all() and (wide[2:10] == 0).all() and (wide[10:] == 255).all()
    assert (gallery.thumbnail(Image.new("RGB", (5, 500), "black"), 12)[:, 5:6] == 0).all()  # at least one pixel wide
    assert (gallery.thumbnail(Image.new("RGB", (3, 3), "black"), 12) == 0).all()  # small images are enlarged


def test_a_contact_sheet_has_one_row_per_class(birds):
    fig = gallery.contact_sheet({"all": birds, "some": birds}, {"all": [0, 1, 2], "some": [2]}, each=2)
    whole, part = (drawn(ax) for ax in fig.axes)
    gap = 0.05
    assert whole == {(x + gap, y + gap): 10 * (2 * y + x) for x in (0, 1) for y in (0, 1, 2)}
    assert part == {(gap, gap): 40, (1 + gap, gap): 50}
    assert [t.get_text() for t in fig.axes[0].texts] == ["Red bird", "Blue bird", "Grey bird"]
    assert [ax.get_title() or ax.get_title("left") for ax in fig.axes] == ["all", "some"]
    assert inside(fig)


def test_the_grid_marks_right_and_wrong_by_sign_and_colour(birds):
    found = np.zeros((6, 3), dtype=int)
    found[0], found[5] = [1, 2, 4], [3, 4, 0]  # classes 0, 1, 2 for class 0, and 1, 2, 0 for class 2
    fig = gallery.retrieval_grid(birds, birds, {"first": [0], "second": [5]}, {"model": found})
    (ax,) = fig.axes
    signs = [(t.get_text(), colours.to_hex(t.get_color()).upper()) for t in ax.texts if t.get_text() in "✓✗"]
    right, wrong = ("✓", style.BLUE.upper()), ("✗", style.VERMILION.upper())
    assert signs == [right, wrong, wrong, wrong, right, wrong]
    frames = [colours.to_hex(p.get_edgecolor()).upper() for p in ax.patches if isinstance(p, Rectangle)]
    assert frames == [style.BLACK, *[c for _, c in signs[:3]], style.BLACK, *[c for _, c in signs[3:]]]
    order = [int(image.get_array()[24, 24, 0]) for image in ax.images]
    assert order == [0, 10, 20, 40, 50, 30, 40, 0]  # each query, then its neighbours, best first
    lefts = [image.get_extent()[0] for image in ax.images]
    assert lefts[:4] == sorted(lefts[:4]) and len(set(lefts[1:4])) == 3
    assert {"query", "model", "first", "second", "Red bird", "Grey bird"} <= {t.get_text() for t in ax.texts}
    assert inside(fig)


def test_the_rank_of_the_first_right_agrees_with_a_full_sort_and_the_worst_are_of_different_classes():
    rng = np.random.default_rng(0)
    rows, labels = rng.normal(size=(700, 8)).astype(np.float32), rng.integers(0, 60, 700)  # more than one chunk
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = rows @ rows.T
    for at, rank in enumerate(gallery.first_right(rows, labels)):
        others = [i for i in np.argsort(-cosines[at], kind="stable") if i != at]
        assert labels[others[rank - 1]] == labels[at] and not (labels[others[: rank - 1]] == labels[at]).any()
    assert gallery.worst(np.array([3, 90, 80, 90, 7]), np.array([0, 1, 1, 2, 0]), 9) == [1, 3, 4]


def test_thumbnails_on_a_map_are_at_their_points_and_do_not_overlap(birds):
    rng = np.random.default_rng(0)
    points, places = rng.normal(size=(400, 2)), rng.integers(0, 6, 400)
    fig = gallery.thumbnail_map(points, birds, places, limit=50)
    (ax,) = fig.axes
    assert len(ax.images) == 50 and len(ax.collections[0].get_offsets()) == 400
    boxes = np.array([image.get_extent() for image in ax.images])
    middles = np.stack([boxes[:, :2].mean(1), boxes[:, 2:].mean(1)], 1)
    unit = (points - points.min(0)) / np.ptp(points, axis=0)
    for middle, image in zip(middles, ax.images, strict=True):
        at = np.abs(unit - middle).sum(1).argmin()
        np.testing.assert_allclose(unit[at], middle, atol=1e-9)
        assert image.get_array()[24, 24, 0] == 10 * places[at]
    distance = np.abs(middles[:, None] - middles).max(2) + np.eye(50)
    assert distance.min() >= boxes[0, 1] - boxes[0, 0] - 1e-9
    assert inside(fig)


def test_a_saved_figure_is_small_and_keeps_its_colours(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    pictures = Flat("noise", np.array([0]), ["a"])
    pictures.image = lambda index: Image.fromarray(noise)
    fig = gallery.contact_sheet({"noise": pictures}, {"noise": [0]})
    shown = style.save_figure(fig, tmp_path, "small", "a picture of noise")
    full = io.BytesIO()
    fig.savefig(full, format="png", dpi=200, facecolor="white")
    pdf, small = sorted((tmp_path / "figures").iterdir())
    assert (pdf.name, small.name) == ("small.pdf", "small.png") and pdf.read_bytes()[:5] == b"%PDF-"
    assert shown.data == small.read_bytes() and shown.alt == "a picture of noise"
    assert small.stat().st_size < 0.6 * len(full.getvalue())
    with Image.open(full) as one, Image.open(small) as other:
        assert other.info["Description"] == "a picture of noise"  # the results page's caption
        assert one.size == other.size
        difference = np.abs(np.asarray(one.convert("RGB"), int) - np.asarray(other.convert("RGB"), int))
        assert difference.mean() < 6


def test_the_diagram_names_everything_that_is_trained(birds):
    fig = diagram.method([gallery.thumbnail(birds.image(i)) for i in range(3)])
    texts = {t.get_text().replace("\n", " ") for ax in fig.axes for t in ax.texts}
    assert {"sample tower", "proxy tower", "accumulator", "P, one per class", "O, one per class", "Q, mixed"} <= texts
    assert inside(fig)


HISTORY = pd.DataFrame({"epoch": [1, 2, 3], "loss": [3.0, 2, 1], "R@1": [np.nan, 0.5, 0.6]})


def test_training_curves_keep_their_axes_and_leave_out_epochs_without_evaluation():
    loss, recall = live.training(HISTORY, epochs=15, frozen=0.4).axes
    assert list(loss.lines[0].get_ydata()) == [3, 2, 1] and loss.get_xlim() == recall.get_xlim() == (0.5, 15.5)
    frozen, ours = recall.lines
    assert list(frozen.get_ydata()) == [40, 40]
    assert list(ours.get_xdata()) == [2, 3] and list(ours.get_ydata()) == [50, 60]
    first = live.training(HISTORY[["epoch", "loss"]][:1], epochs=1)  # not evaluated yet
    assert not first.axes[1].lines and inside(first)


@pytest.mark.parametrize("someone_watches", [True, False])
def test_a_watched_figure_is_redrawn_in_place_and_an_unwatched_one_is_shown_once(monkeypatch, someone_watches):
    shown, seen = [], []
    handle = types.SimpleNamespace(update=lambda picture: shown.append(("updated", picture)))

    def display(picture, display_id):
        shown.append(("displayed", picture))
        return handle

    def draw(history):
        seen.append(len(history))
        return live.training(history, epochs=3)

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(live, "watched", lambda: someone_watches)
    redrawn = live.Redrawn(draw)
    for epochs in (1, 2):
        redrawn(HISTORY[:epochs].to_dict("records"))
    redrawn.finish("final")
    assert [how for how, _ in shown] == (["displayed", "updated", "updated"] if someone_watches else ["displayed"])
    assert shown[-1][1] == "final" and seen == ([1, 2] if someone_watches else [])
    assert not someone_watches or shown[0][1].data[:4] == b"\x89PNG"


def test_a_map_of_three_images_is_a_line_and_zero_images_are_refused():
    plane = umap.umap_plane(np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32))
    assert plane.shape == (3, 2) and len(np.unique(plane[:, 0])) == 3
    assert umap.pick_points(np.arange(5), [], 1).shape == (1,)
    with pytest.raises(VptspError, match="images on a map: 0 is not a whole number of at least 1"):
        umap.pick_points(np.arange(5), [], 0)
