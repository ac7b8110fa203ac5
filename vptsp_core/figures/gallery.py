"""Pictures made of the images themselves: contact sheets, retrieval grids, maps of thumbnails. A sign as well as a
colour marks right and wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from vptsp_core.data import ImageSet
from vptsp_core.figures.style import BLACK, BLUE, GREY, VERMILION, _house
from vptsp_core.figures.umap import short_name

SIDE = 48  # pixels of a thumbnail: about what is seen at the size it is drawn
RIGHT, WRONG = ("✓", BLUE), ("✗", VERMILION)


def thumbnail(image: Image.Image, side: int = SIDE) -> np.ndarray:
    """A picture in a square of ``side`` pixels, (side, side, 3) uint8: whole, its shape kept, white beside it."""
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    sheet = Image.new("RGB", (side, side), "white")
    small = image if image.size == (width, height) else image.resize((width, height), Image.Resampling.LANCZOS)
    sheet.paste(small, ((side - width) // 2, (side - height) // 2))
    return np.asarray(sheet)


@_house
def contact_sheet(sets: Mapping[str, ImageSet], classes: Mapping[str, Sequence[int]], each: int = 6) -> Figure:
    """Some images of some classes: a block a set, a row a class with its name.

    Args:
        sets: {title: images}.
        classes: {title: labels of the classes to show}; the same titles.
        each: images a class, at even distances among those it has.
    """
    rows = max(len(shown) for shown in classes.values())
    room = _room(sets[title].class_names[label] for title, shown in classes.items() for label in shown)
    fig = Figure(figsize=(0.5 * (room + each + 0.6) * len(sets), 0.5 * rows + 0.4), layout="constrained")
    for ax, (title, images) in zip(fig.subplots(1, len(sets), squeeze=False)[0], sets.items()):
        for row, label in enumerate(classes[title]):
            places = np.flatnonzero(images.labels == label)
            for column, at in enumerate(np.linspace(0, len(places) - 1, min(each, len(places))).astype(int)):
                _put(ax, images, int(places[at]), column, row)
            ax.text(-0.15, row + 0.5, short_name(images.class_names[label]), ha="right", va="center", fontsize=9)
        _sheet(ax, -room, each, rows)
        ax.set_title(title, x=room / (room + each), ha="left")
    return fig


@_house
def retrieval_grid(
    queries: ImageSet, gallery: ImageSet, asked: Mapping[str, Sequence[int]], found: Mapping[str, np.ndarray],
    *, cosines: Mapping[str, np.ndarray] | None = None, marked: bool = True, asking: str = "query",
) -> Figure:  # fmt: skip
    """Queries and what was found for them: a row a query, a block of neighbours for each model, best first.

    Args:
        asked: {heading: places of queries}, the headings written above their rows.
        found: {model: (N, k) int}, the k places in the gallery found for each of the N queries, in one order for all.
        cosines: {model: (N, k)}, written under the neighbours.
        asking: what stands above the queries.
        marked: whether those of the query's class have a tick on blue and others a cross on vermilion; False for
            queries of unknown class.
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
            ax.text(-0.15, y + 0.5, short_name(queries.class_names[label]), ha="right", va="center", fontsize=9)
            for start, (model, neighbours) in zip(starts, found.items()):
                for rank, place in enumerate(neighbours[query, :k]):
                    sign, colour = RIGHT if gallery.labels[place] == label else WRONG
                    sign, colour = (sign, colour) if marked else ("", GREY)
                    _put(ax, gallery, int(place), start + rank, y, colour)
                    text = sign if cosines is None else f"{sign} {cosines[model][query, rank]:.2f}".strip()
                    ax.text(start + rank + 0.5, y + 1.0, text, color=colour, ha="center", va="top",
                            fontsize=10 if cosines is None else 8)  # fmt: skip
            y += 1.28
    _sheet(ax, -room, width, y)
    return fig


@_house
def thumbnail_map(points: np.ndarray, images: ImageSet, places: Sequence[int], *, limit: int = 250) -> Figure:
    """A map of images that shows the images: as many thumbnails as fit in their places, grey dots for the rest.

    Args:
        points: (N, 2), the points of the images ``places`` (N) of the set.
        limit: of thumbnails (`apart`).
    """
    unit, side = in_unit_square(points), 0.022  # of the map's
    fig = Figure(figsize=(8.6, 8.6), layout="constrained")
    ax = fig.subplots()
    ax.scatter(unit[:, 0], unit[:, 1], s=6, color="#BBBBBB", linewidth=0)
    for at in apart(unit, side, limit):
        x, y = unit[at] - side / 2
        ax.imshow(thumbnail(images.image(places[at])), extent=(x, x + side, y, y + side), interpolation="nearest",
                  zorder=2)  # fmt: skip
        ax.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor=GREY, linewidth=0.4, zorder=2))
    ax.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03), xticks=[], yticks=[], aspect="equal")
    ax.set(xlabel="UMAP 1", ylabel="UMAP 2")
    ax.grid(False)
    return fig


def in_unit_square(points: np.ndarray) -> np.ndarray:
    """Points (N, 2) stretched to fill the unit square, (N, 2)."""
    low, high = points.min(0), points.max(0)
    return (points - low) / np.maximum(high - low, 1e-12)


def apart(points: np.ndarray, distance: float, limit: int) -> list[int]:
    """At most ``limit`` places of points (N, 2), in random order, of which no two are nearer than ``distance`` in both
    directions: squares of that side, centred on them, do not overlap.
    """
    kept: list[int] = []
    for at in np.random.default_rng(0).permutation(len(points)):
        if len(kept) == limit:
            break
        if not kept or np.abs(points[kept] - points[at]).max(1).min() >= distance:
            kept.append(int(at))
    return kept


def first_right(embeddings: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The rank at which each image finds the first other one of its class: (N,) int64, 1 the best; 0 where there is
    none. embeddings (N, d) are L2-normalised, labels (N,).
    """
    ranks = np.zeros(len(embeddings), dtype=np.int64)
    for start in range(0, len(embeddings), 512):
        cosines = embeddings[start : start + 512] @ embeddings.T
        np.fill_diagonal(cosines[:, start:], -np.inf)  # none finds itself
        own = np.where(labels[start : start + 512, None] == labels, cosines, -np.inf).max(1)
        ranks[start : start + 512] = np.where(np.isinf(own), 0, 1 + (cosines > own[:, None]).sum(1))
    return ranks


def worst(ranks: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
    """The ``count`` queries whose first right neighbour comes last, one a class, equal ranks in their order.

    ranks and labels (N,): of `first_right`, and the queries' classes.
    """
    order = np.argsort(-ranks, kind="stable")
    firsts = np.unique(labels[order], return_index=True)[1]
    return order[np.sort(firsts)[:count]].tolist()


def _put(ax: Axes, images: ImageSet, place: int, x: float, y: float, colour: str | None = None) -> None:
    """A thumbnail in the unit square right of and below (x, y), a little smaller than it, in a frame of ``colour``."""
    gap = 0.05 if colour is None else 0.08
    ax.imshow(thumbnail(images.image(place)), extent=(x + gap, x + 1 - gap, y + 1 - gap, y + gap),
              interpolation="nearest")  # fmt: skip
    if colour is not None:
        ax.add_patch(Rectangle((x + gap, y + gap), 1 - 2 * gap, 1 - 2 * gap, fill=False, edgecolor=colour, linewidth=2))


def _room(names: Iterable[str]) -> float:
    """What class names take to the left of their row, in thumbnails."""
    return 0.4 + 0.15 * max(len(short_name(name)) for name in names)


def _sheet(ax: Axes, left: float, right: float, height: float) -> None:
    """Room for thumbnails, one unit each, from the upper left corner down, and no axes."""
    ax.set(xlim=(left, right), ylim=(height, 0), aspect="equal")
    ax.axis("off")
