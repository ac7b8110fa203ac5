"""How near proxies are to their own class and to the nearest other one, over the course of training."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from vptsp_core.figures.style import BLUE, PROXIES, VERMILION, _house, legend


@_house
def gap(table: pd.DataFrame, epochs: Sequence[int]) -> Figure:
    """A panel a kind of proxy: mean cosine to the own centroid and to the nearest other; the band is the margin.

    ``table`` has a row a moment, after so many ``epochs``, and columns (proxy, "own centroid" | "nearest other"), as
    `umap.proxy_cosines` measures them.
    """
    kinds = list(dict.fromkeys(table.columns.get_level_values(0)))
    fig = Figure(figsize=(3.3 * len(kinds) + 0.4, 3.9), layout="constrained")
    axes = fig.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    for ax, kind in zip(axes, kinds):
        own, other = (table[kind, name].to_numpy() for name in ("own centroid", "nearest other"))
        ax.plot(epochs, own, "o-", color=BLUE, label="own class's centroid")
        ax.plot(epochs, other, "s--", color=VERMILION, label="nearest other centroid")
        ax.fill_between(
            epochs, own, other, where=own > other, color=BLUE, alpha=0.12, linewidth=0, interpolate=True,
            label="margin: own class nearer",
        )  # fmt: skip
        ax.set(title=PROXIES[kind][1], xlabel="epochs of training", xticks=list(epochs))
        ax.margins(x=0.08)
    axes[0].set_ylabel("mean cosine of a proxy")
    legend(fig)
    return fig
