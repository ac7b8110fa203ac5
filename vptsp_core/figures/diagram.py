"""The method as a diagram: the two towers, the places of the prompts, and how a proxy is made."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

from vptsp_core.figures.style import BLACK, BLUE, GREEN, GREY, VERMILION, in_house_style

FROZEN = "#E2E2E2"


@in_house_style
def method(pictures: Sequence[np.ndarray]) -> Figure:
    """Draw VPTSP. Grey is frozen and shared by both towers, colours are trained.

    Args:
        pictures: three images of a batch, (S, S, 3) uint8 each.
    """
    fig = Figure(figsize=(11, 4.3), layout="constrained")
    ax, attention = fig.subplots(1, 2, width_ratios=(3.2, 1))
    for at, picture in enumerate(pictures):
        ax.imshow(picture, extent=(0, 0.9, at + 1.9, at + 2.8), interpolation="nearest")
    ax.text(0.45, 1.65, "one batch", ha="center", va="top")
    _tower(ax, 4.9, BLUE, "sample tower", "prompts, the same for all images")
    _tower(ax, 1.2, VERMILION, "proxy tower", "prompts of the image's own class")
    _box(ax, 7.9, 5.25, 1.9, 0.7, "embedding x", "white")
    _box(ax, 7.9, 1.55, 1.9, 0.7, "accumulator", VERMILION, "white")
    _box(ax, 10.3, 1.55, 1.5, 0.7, "P, one\nper class", "white")
    _box(ax, 12.3, 1.55, 1.7, 0.7, "O, one\nper class", GREEN, "white")
    _box(ax, 11.3, 3.3, 1.7, 0.7, "Q, mixed", "white")
    _box(ax, 11.05, 5.25, 2.2, 0.7, "Proxy-Anchor\nloss", BLACK, "white")
    for start, end in (
        ((1.05, 3.9), (1.75, 5.0)), ((1.05, 2.8), (1.75, 1.8)),  # images to the towers
        ((7.15, 5.25), (7.85, 5.25)), ((9.85, 5.25), (11.0, 5.25)),  # sample tower, embedding, loss
        ((7.15, 1.55), (7.85, 1.55)), ((9.8, 1.55), (10.25, 1.55)),  # proxy tower, accumulator, P
        ((11.05, 1.95), (11.85, 2.9)), ((13.15, 1.95), (12.45, 2.9)), ((12.15, 3.7), (12.15, 4.85)),  # P, O, Q, loss
    ):  # fmt: skip
        _arrow(ax, start, end)
    ax.text(11.05, 1.05, "kept from batch to batch", ha="center", va="top", fontsize=9)
    ax.text(8.85, 5.75, "only this is used later", ha="center", va="bottom", fontsize=9)
    ax.set(xlim=(-0.1, 14.1), ylim=(0.4, 7.1), aspect="equal")
    ax.axis("off")
    _attention(attention)
    return fig


def _tower(ax: Axes, y: float, colour: str, name: str, prompts: str) -> None:
    for block, title in enumerate(("block 1", "block 2", "…")):
        x = 1.8 + 1.35 * block
        _box(ax, x, y + 0.35, 1.15, 0.9, title, FROZEN)
        for mark in range(3):
            ax.add_patch(Rectangle((x + 0.22 + 0.26 * mark, y + 1.15), 0.2, 0.2, facecolor=colour, linewidth=0))
        _arrow(ax, (x + 0.575, y + 1.12), (x + 0.575, y + 0.83))
        _arrow(ax, (x + 1.17, y + 0.35), (x + 1.33, y + 0.35))
    _box(ax, 5.85, y + 0.35, 1.25, 0.7, "head", colour, "white")
    ax.text(1.8, y - 0.2, name, ha="left", va="top", weight="bold", color=colour)
    ax.text(1.8, y + 1.5, prompts, ha="left", va="bottom", fontsize=9, color=colour)


def _attention(ax: Axes) -> None:
    """Draw the attention inside a block: a row per query, a column per key. Prompts are columns only."""
    prompts, tokens = 3, 6
    for row in range(tokens):
        for column in range(prompts + tokens):
            colour = BLUE if column < prompts else FROZEN
            ax.add_patch(Rectangle((column + 0.06, row + 0.06), 0.88, 0.88, facecolor=colour, linewidth=0))
    ax.text(prompts / 2, -0.25, "prompts", ha="center", va="bottom", color=BLUE, fontsize=9)
    ax.text(prompts + tokens / 2, -0.25, "image tokens", ha="center", va="bottom", fontsize=9)
    ax.text((prompts + tokens) / 2, tokens + 0.2, "keys and values", ha="center", va="top", fontsize=9)
    ax.text(-0.3, tokens / 2, "queries: image tokens only", ha="right", va="center", rotation=90, fontsize=9)
    ax.set(xlim=(-1, prompts + tokens), ylim=(tokens + 1, -1), aspect="equal", title="inside a block")
    ax.axis("off")


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str, face: str, ink: str = BLACK) -> None:
    """Draw a rounded box with its left edge at ``x`` and its middle at ``y``."""
    edge, style = GREY if face in ("white", FROZEN) else face, "round,pad=0,rounding_size=0.12"
    box = FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, facecolor=face, edgecolor=edge)
    ax.add_patch(box)
    ax.text(x + width / 2, y, text, ha="center", va="center", color=ink, fontsize=10)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    ax.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color="#505050", shrinkA=0, shrinkB=0))
