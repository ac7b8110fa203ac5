"""The distance of proxies to their own class and to the nearest other class, over the course of training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from vptsp_core.figures.style import BLUE, PROXIES, VERMILION, in_house_style, legend


@in_house_style
def gap(table: pd.DataFrame, epochs: Sequence[int]) -> Figure:
    """Draw the mean cosine of proxies to their own class's centroid and to the nearest other centroid.

    There is one panel per kind of proxy. The margin between the two lines is shaded where the own class is nearer.

    Args:
        table: one row per moment, columns (proxy, "own centroid" | "nearest other") from `umap.proxy_cosines`.
        epochs: the number of epochs trained until each moment.
    """
    kinds = list(dict.fromkeys(table.columns.get_level_values(0)))
    fig = Figure(figsize=(3.3 * len(kinds) + 0.4, 3.9), layout="constrained")
    axes = fig.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, kinds):
        own, other = (table[kind, name].to_numpy() for name in ("own centroid", "nearest other"))
        ax.plot(epochs, own, "o-", color=BLUE, label="own class's centroid")
        ax.plot(epochs, other, "s--", color=VERMILION, label="nearest other centroid")
        band = {"color": BLUE, "alpha": 0.12, "linewidth": 0, "label": "margin: own class nearer"}
        ax.fill_between(epochs, own, other, where=own > other, interpolate=True, **band)
        ax.set(title=PROXIES[kind][1], xlabel="epochs of training", xticks=list(epochs))
        ax.margins(x=0.08)
    axes[0].set_ylabel("mean cosine of a proxy")
    legend(fig)
    return fig
