"""Figures made of the images themselves: contact sheets, retrieval grids, maps of thumbnails."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vptsp_core.data import ImageSet
from vptsp_core.figures.style import BLACK, BLUE, GREY, VERMILION, in_house_style
from vptsp_core.figures.umap import short_name

SIDE = 48  # pixels of a thumbnail: as many as are visible at the size at which it is drawn
RIGHT, WRONG = ("✓", BLUE), ("✗", VERMILION)  # a sign as well as a colour


def thumbnail(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """Return the whole image, its shape kept, in a white square: (side, side, 3) uint8."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    sheet = Image.new("RGB", (side, side), "white")
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(small, ((side - width) // 2, (side - height) // 2))
    return np.asarray(sheet)


@in_house_style
def contact_sheet(sets: Mapping[str, ImageSet], classes: Mapping[str, Sequence[int]], each: int = 6) -> Figure:
    """Draw some images of some classes: one block per set, one row per class.

    Args:
        sets: {title: images}.
        classes: {title: labels of the classes to show}, with the same titles.
        each: images per class, at even distances among the images of the class.
    """
    rows = max(len(shown) for shown in classes.values())
    room = _room(sets[title].class_names[label] for title, shown in classes.items() for label in shown)
    fig = Figure(figsize=(0.5 * (room + each + 0.6) * len(sets), 0.5 * rows + 0.4), layout="constrained")
    for ax, (title, images) in zip(fig.subplots(1, len(sets), squeeze=False)[0], sets.items()):
        for row, label in enumerate(classes[title]):
            places = np.flatnonzero(images.labels == label)
            for column, at in enumerate(np.linspace(0, len(places) - 1, min(each, len(places))).astype(int)):
                _put(ax, images, int(places[at]), column, row)
            _name(ax, images, label, row)
        _sheet(ax, -room, each, rows)
        ax.set_title(title, x=room / (room + each), ha="left")
    return fig


@in_house_style
def retrieval_grid(
    queries: ImageSet, gallery: ImageSet, asked: Mapping[str, Sequence[int]], found: Mapping[str, np.ndarray],
    *, cosines: Mapping[str, np.ndarray] | None = None, marked: bool = True, asking: str = "query",
) -> Figure:  # fmt: skip
    """Draw queries and their neighbours: one row per query, one block of neighbours per model, best first.

    Args:
        asked: {heading: indices of queries}. Each heading stands above its rows.
        found: {model: (N, k) int}: for each of the N queries, the indices of its neighbours in the gallery.
        cosines: {model: (N, k)} to write below the neighbours.
        marked: mark neighbours of the query's class with a tick on blue and others with a cross on vermilion. Pass
            False if the class of the queries is unknown.
        asking: the heading above the queries.
    """
    k = min(places.shape[1] for places in found.values())
    room = _room(queries.class_names[queries.labels[query]] for places in asked.values() for query in places)
    starts = [1.4 + block * (k + 0.5) for block in range(len(found))]
    width, rows = starts[-1] + k, sum(1.28 * len(places) + 0.7 for places in asked.values()) + 0.3
    fig = Figure(figsize=(0.5 * (width + room), 0.5 * rows), layout="constrained")
    ax = fig.subplots()
    ax.text(0.5, 0.1, asking, ha="center", va="bottom", fontsize=11)
    for start, title in zip(starts, found):
        ax.text(start, 0.1, title, ha="left", va="bottom", fontsize=11)
    y = 0.3
    for heading, places in asked.items():
        ax.text(-room, y + 0.35, heading, ha="left", va="center", fontsize=10, color="#404040", style="italic")
        y += 0.7
        for query in places:
            label = queries.labels[query]
            _put(ax, queries, query, 0, y, BLACK)
            _name(ax, queries, label, y)
            for start, (model, neighbours) in zip(starts, found.items()):
                for rank, place in enumerate(neighbours[query, :k]):
                    sign, colour = RIGHT if gallery.labels[place] == label else WRONG
                    if not marked:
                        sign, colour = "", GREY
                    _put(ax, gallery, int(place), start + rank, y, colour)
                    text = sign if cosines is None else f"{sign} {cosines[model][query, rank]:.2f}".strip()
                    size = 10 if cosines is None else 8
                    ax.text(start + rank + 0.5, y + 1.0, text, color=colour, ha="center", va="top", fontsize=size)
            y += 1.28
    _sheet(ax, -room, width, y)
    return fig


@in_house_style
def thumbnail_map(points: np.ndarray, images: ImageSet, places: Sequence[int], *, limit: int = 250) -> Figure:
    """Draw a map of images with thumbnails at their points, as many as do not overlap, and grey dots for the others.

    Args:
        points: (N, 2), the points of N images.
        images: the set that contains these images.
        places: (N,), the index of each image in ``images``.
        limit: the largest number of thumbnails.
    """
    unit, side = in_unit_square(points), 0.022
    fig = Figure(figsize=(8.6, 8.6), layout="constrained")
    ax = fig.subplots()
    ax.scatter(unit[:, 0], unit[:, 1], s=6, color="#BBBBBB", linewidth=0)
    for at in apart(unit, side, limit):
        x, y = unit[at] - side / 2
        picture = thumbnail(images.image(places[at]))
        ax.imshow(picture, extent=(x, x + side, y, y + side), interpolation="nearest", zorder=2)
        ax.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GREY, linewidth=0.4, zorder=2))
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[], aspect="equal")
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    ax.grid(False)
    return fig


def in_unit_square(points: np.ndarray) -> np.ndarray:
    """Stretch points (N, 2) to fill the unit square."""
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-12)


def apart(points: np.ndarray, distance: float, limit: int) -> list[int]:
    """Choose at most ``limit`` of the points (N, 2), so that squares of side ``distance`` around them do not overlap.

    The order is random, and the same in each call.
    """
    kept: list[int] = []
    for at in np.random.default_rng(0).permutation(len(points)):
        if len(kept) == limit:
            break
        if not kept or np.abs(points[kept] - points[at]).max(1).min() >= distance:
            kept.append(int(at))
    return kept


def first_right(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the rank at which each image finds the first other image of its class, 1 for the nearest: (N,) int64.

    The rank is 0 if the class has no other image. embeddings (N, d) are L2-normalised, labels (N,).
    """
    ranks = np.zeros(len(embeddings), dtype=np.int64)
    for start in range(0, len(embeddings), 512):
        cosines = embeddings[start : start + 512] @ embeddings.T
        np.fill_diagonal(cosines[:, start:], -np.inf)  # no image finds itself
        own = np.where(labels[start : start + 512, None] == labels, cosines, -np.inf).max(1)
        ranks[start : start + 512] = np.where(np.isinf(own), 0, 1 + (cosines > own[:, None]).sum(1))
    return ranks


def worst(ranks: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """Return the ``count`` queries with the largest ranks, one per class, equal ranks in order.

    ranks (N,) are from `first_right`, labels (N,) are the queries' classes.
    """
    order = np.argsort(-ranks, kind="stable")
    firsts = np.unique(labels[order], return_index=True)[1]
    return order[np.sort(firsts)[:count]].tolist()


def _put(ax: Axes, images: ImageSet, place: int, x: float, y: float, colour: str | None = None) -> None:
    """Draw a thumbnail in the unit square whose upper left corner is (x, y), with a frame if a colour is given."""
    gap = 0.05 if colour is None else 0.08
    extent = (x + gap, x + 1 - gap, y + 1 - gap, y + gap)
    ax.imshow(thumbnail(images.image(place)), extent=extent, interpolation="nearest")
    if colour is not None:
        side = 1 - 2 * gap
        ax.add_patch(Rectangle((x + gap, y + gap), side, side, fill=False, edgecolor=colour, linewidth=2))


def _name(ax: Axes, images: ImageSet, label: int, y: float) -> None:
    """Write the name of a class to the left of its row."""
    ax.text(-0.15, y + 0.5, short_name(images.class_names[label]), ha="right", va="center", fontsize=9)


def _room(names: Iterable[str]) -> float:
    """Return the width of the longest class name, in thumbnails."""
    return 0.4 + 0.15 * max(len(short_name(name)) for name in names)


def _sheet(ax: Axes, left: float, right: float, height: float) -> None:
    """Set limits for thumbnails of one unit, from the upper left corner down, and hide the axes."""
    ax.set(xlim=(left, right), ylim=(height, 0), aspect="equal")
    ax.axis("off")
