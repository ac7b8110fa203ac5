"""Figures of one run: R@1 of its classes, and the attention of its class token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from seaborn import barplot, heatmap, histplot

from vptsp_core.figures.explore.attention import Looked
from vptsp_core.figures.style import BLUE, GREY, SKY, VERMILION, in_house_style
from vptsp_core.figures.umap import short_name

PARTS = {"prompts": VERMILION, "class token": BLUE, "other tokens": GREY, "patches": SKY}


@in_house_style
def classes(table: pd.DataFrame, count: int = 15) -> Figure:
    """Draw the distribution of R@1 over the classes, and the ``count`` classes with the lowest R@1.

    Args:
        table: from `figures.explore.retrieval.by_class`.
    """
    lowest = table.head(count)
    fig = Figure(figsize=(9.6, max(3.2, 0.24 * len(lowest) + 1.2)), layout="constrained")
    spread, bars = fig.subplots(1, 2, width_ratios=(1, 1.25))
    histplot(table, x="R@1", binwidth=5, binrange=(0, 100), color=BLUE, alpha=1, linewidth=0, ax=spread)
    mean = float(np.average(table["R@1"], weights=table["queries"]))
    spread.axvline(mean, color=VERMILION, linestyle="--", label=f"all queries: {mean:.1f} %")
    spread.set(xlabel="R@1 of a class, %", ylabel="classes", xlim=(0, 100))
    spread.yaxis.set_major_locator(MaxNLocator(integer=True))
    spread.legend(loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.2)
    places = np.arange(len(lowest))
    barplot(x=lowest["R@1"].to_numpy(), y=places, orient="h", color=BLUE, saturation=1, ax=bars)
    for y, (recall, other, times) in enumerate(zip(lowest["R@1"], lowest["most taken for"], lowest["times"])):
        if times:  # beside the bar, or inside if the bar is long
            x, side, colour = (recall - 1, "right", "white") if recall > 55 else (recall + 1, "left", "#404040")
            text = f"{times} x {short_name(other)}"
            bars.text(x, y, text, ha=side, va="center", fontsize=9, color=colour)
    bars.set_yticks(places, [short_name(name) for name in lowest["name"]], fontsize=9)
    bars.set(xlabel="R@1, %", xlim=(0, 100), title=f"lowest {len(lowest)}, and what each is most taken for")
    bars.grid(axis="y", visible=False)
    return fig


@in_house_style
def attention_shares(to_prompts: np.ndarray, shares: pd.DataFrame) -> Figure:
    """Draw the attention of the class token block by block: to each prompt, and to each kind of key.

    Args:
        to_prompts: (L, n) from `figures.explore.attention.to_prompts`. If n is 0, its panel is missing.
        shares: from `figures.explore.attention.shares`.
    """
    blocks, count = to_prompts.shape
    wide = min(0.45 * count + 2.2, 7.0) if count else 0.0
    fig = Figure(figsize=(wide + 5.6, max(3.2, 0.3 * blocks + 1.5)), layout="constrained")
    if count:
        heat, bars = fig.subplots(1, 2, width_ratios=(wide, 5.6))
        percent = pd.DataFrame(100 * to_prompts, index=range(1, blocks + 1), columns=range(1, count + 1))
        heatmap(
            percent, vmin=0, cmap="viridis", annot=count <= 12, fmt=".1f", annot_kws={"fontsize": 9},
            yticklabels=True, cbar_kws={"label": "share of the attention, %", "pad": 0.03}, ax=heat,
        )  # fmt: skip
        heat.set(xlabel="prompt", ylabel="block", title="each prompt")
        heat.tick_params(axis="y", rotation=0)
        heat.grid(False)
    else:
        bars = fig.subplots()
    left = np.zeros(blocks)
    for part, colour in PARTS.items():
        if part in shares:
            bars.barh(shares.index, shares[part], left=left, color=colour, label=part)
            left += shares[part].to_numpy()
    if count:
        label = "prompts, if every key got the same share"
        tick = {"color": "black", "markersize": 11, "markeredgewidth": 2, "label": label}
        bars.plot(shares["prompts if even"], shares.index, "|", **tick)
    bars.set(xlabel="share of the attention, %", xlim=(0, 100), ylim=(blocks + 0.5, 0.5), yticks=range(1, blocks + 1))
    bars.set_ylabel("" if count else "block")
    bars.grid(False)
    bars.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderaxespad=0.2)
    return fig


@in_house_style
def attention_maps(
    images: Sequence[np.ndarray], titles: Sequence[str], looked: Looked, blocks: Sequence[int]
) -> Figure:
    """Draw where the class token looks in images. Brighter means more, and each picture has its own scale.

    Args:
        images: RGB pictures as the model sees them, (H, W, 3) uint8.
        titles: the label of each image.
        looked: the attention in these images.
        blocks: the blocks to show, counted from 0.
    """
    rows, columns = len(images), len(blocks) + 1
    fig = Figure(figsize=(1.35 * columns + 1.4, 1.45 * rows + 0.5), layout="constrained")
    grid = fig.subplots(rows, columns, squeeze=False)
    for row, (axes, image, title) in enumerate(zip(grid, images, titles, strict=True)):
        height, width = image.shape[:2]
        for ax in axes:
            ax.imshow(image)
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            ax.spines[:].set_visible(False)
        axes[0].set_ylabel(title, rotation=0, ha="right", va="center", fontsize=9)
        for ax, block in zip(axes[1:], blocks):
            weights, prompts = looked.patches(block)[row], looked.prompts[block]
            veil = np.zeros((*weights.shape, 4))
            veil[..., 3] = 0.85 * (1 - weights / weights.max())
            ax.imshow(veil, extent=(0, width, height, 0), interpolation="nearest")
            share = 100 * looked.weights[block][row, :prompts].sum()
            ax.set_xlabel(f"prompts {share:.0f} %" if prompts else "no prompts", fontsize=8, labelpad=2)
            ax.set_title(f"block {block + 1}" if row == 0 else "", fontsize=10)
    return fig
