"""Figures in one house style. Each function takes numbers and returns a figure; `save_figure` saves and shows it.

Colours: Okabe & Ito (2008), distinct with any colour vision; marker shapes differ, too. The paper's series are lighter
than ours. pyplot's open figures and the global style stay as they are.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from vptsp_core.figures.fonts import show_letters
from vptsp_core.figures.umap import short_name
from vptsp_core.paper.methods import CLOSED, FULL, LORA, METHODS
from vptsp_core.system.files import write_bytes

if TYPE_CHECKING:
    from IPython.display import Image

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, GREY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#808080", "#000000",
)  # fmt: skip
CLASS_COLOURS = (
    BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY, BLACK, "#E3D200", "#7B3294", "#8C510A", "#004D40", "#FF7F9F",
)  # fmt: skip
FAMILIES = {  # of the methods in table 1: colour and marker; hollow without BitFit
    CLOSED: (GREY, "P"), FULL: (BLACK, "s"), "Linear probing": (SKY, "o"), "BitFit": (SKY, "o"),
    "Adapter": (GREEN, "D"), LORA: (PURPLE, "P"), "VPT": (BLUE, "^"), "VPTSP-M": (ORANGE, "v"),
    "VPTSP-G": (VERMILION, "*"),
}  # fmt: skip
FORM_COLOURS = {  # of a training step in table 10
    "compiled": BLUE, "eager": SKY, "textbook": GREEN, "released": VERMILION, "released, no checkpointing": ORANGE,
}  # fmt: skip
PROXIES = {"O": ("v", "original proxy O"), "P": ("s", "semantic proxy P"), "Q": ("*", "composed proxy Q")}
LIGHT = 0.5  # opacity of the paper's series
RANGE: Any = {"estimator": "median", "errorbar": ("pi", 100)}  # for seaborn: of `ranged`
RING: Any = {
    "linestyle": "", "marker": "o", "markersize": 19, "zorder": 3,
    "markerfacecolor": "none", "markeredgecolor": BLACK, "markeredgewidth": 1.2,
}  # fmt: skip
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 12, "legend.fontsize": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
    "axes.axisbelow": True, "lines.linewidth": 1.8, "lines.markersize": 8, "pdf.fonttype": 42,
}  # fmt: skip


def house_style() -> AbstractContextManager[None]:
    """In it every figure is drawn and saved: matplotlib's defaults and the house style, whatever the user's style."""
    return context(["default", STYLE])


def _house(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Draw inside the house style, ticks included (matplotlib makes them late)."""

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with house_style():
            fig = draw(*args, **kwargs)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Glyph .* missing")
                fig.draw_without_rendering()
            if show_letters(fig):
                fig.draw_without_rendering()
        return fig

    return styled


def file_of(fig: Figure, kind: str = "png", *, dpi: int = 200, metadata: Mapping[str, Any] | None = None) -> io.BytesIO:
    """The figure as a file of that kind, on white."""
    buffer = io.BytesIO()
    with house_style():
        fig.savefig(buffer, format=kind, dpi=dpi, facecolor="white", metadata=metadata)
    return buffer


def save_figure(fig: Figure, results: Path, name: str, alt: str = "") -> Image:
    """Write ``results/figures/<name>.png`` (200 dpi, 256 colours) and ``.pdf``; returns the picture to show."""
    from IPython.display import Image

    # No date: the same numbers give the same file.
    pdf = file_of(fig, "pdf", metadata={"CreationDate": None})
    png = with_palette(file_of(fig), alt or name)
    write_bytes(results / "figures" / f"{name}.pdf", pdf.getvalue())
    write_bytes(results / "figures" / f"{name}.png", png)
    return Image(data=png, width=int(100 * fig.get_figwidth()), alt=alt or name)


def with_palette(png: io.BytesIO, description: str) -> bytes:
    """The same picture in 256 colours, a third of the size; the results page takes its captions from descriptions."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    small, texts = io.BytesIO(), PngInfo()
    texts.add_text("Description", description)
    picture = Image.open(png)
    picture.convert("RGB").quantize(256).save(small, "PNG", optimize=True, pnginfo=texts, dpi=picture.info["dpi"])
    return small.getvalue()


def ranged(table: pd.DataFrame, column: str, low: pd.Series, high: pd.Series) -> pd.DataFrame:
    """Each row three times, with ``column`` at its low end, at its value and at its high end: with `RANGE`, seaborn
    draws the value and its range.
    """
    return pd.concat([table.assign(**{column: values}) for values in (low, table[column], high)], ignore_index=True)


@_house
def methods(
    ours: pd.DataFrame, paper: pd.DataFrame, *, x: str, ys: Sequence[str],
    unclear: Mapping[str, Collection[str]] | None = None, reference: str = "the reference",
) -> Figure:  # fmt: skip
    """Retrieval against tunable parameters, a point a method: ours in the left panels, the paper's in the right.

    Args:
        ours, paper: columns ``label`` (see `methods.METHODS`), ``x`` in millions, ``ys`` in percent, for ours also
            ``<y> ±`` where there are intervals. A row without ``x`` or with 0 (nothing learns) becomes a dashed line.
            Without rows of ours there is no left panel.
        unclear: {y: labels whose difference to the ``reference`` could be chance} (`runs.significance.unclear`): their
            points are ringed, and the legend says what that means.
    """
    sides = [side for side in (("ours", ours, 1.0), ("paper, CUB-200", paper, LIGHT)) if len(side[1])]
    fig = Figure(figsize=(4.1 * len(sides) + 2.6, 3.2 * len(ys)), layout="constrained")
    grid = fig.subplots(len(ys), len(sides), squeeze=False, sharex="col")
    for axes, y in zip(grid, ys, strict=True):
        for ax, (title, table, opacity) in zip(axes, sides, strict=True):
            ax.margins(x=0.12, y=0.12)
            for row in table.dropna(subset=[y]).to_dict("records"):
                _method(ax, row, x, y, opacity)
            doubtful = table[table["label"].isin(list((unclear or {}).get(y, ()))) & (table[x] > 0)]
            if opacity == 1 and len(doubtful):
                ax.plot(doubtful[x], doubtful[y], **RING, label=ringed(reference))
            ax.set(title=title if y == ys[0] else "", ylabel=f"{y}, %", xscale="log")
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    fig.supxlabel("tunable parameters, millions, as the paper counts them (logarithmic)", fontsize=11)
    entries = labelled(fig)
    order = sorted(entries, key=[*METHODS, ringed(reference)].index)
    fig.legend([entries[each] for each in order], order, loc="outside right center", title="hollow: no BitFit")
    return fig


def labelled(fig: Figure) -> dict[str, Any]:
    """What the panels of a figure label, each label once, for the figure's legend: {label: what it is drawn by}."""
    found: dict[str, Any] = {}
    for ax in fig.get_axes():
        for drawn, label in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(label, drawn)
    return found


def legend(fig: Figure, on: SubFigure | None = None, **options: Any) -> Legend:
    """One legend for all panels (`labelled`): a row below them, or with matplotlib's ``options``; ``on`` a part of the
    figure.
    """
    entries = labelled(fig)
    options = options or {"loc": "outside lower center", "ncols": len(entries)}
    return (on or fig).legend(entries.values(), entries.keys(), **options)


def ringed(reference: str) -> str:
    """What the legend says of a `RING`."""
    return f"ringed: difference to\n{reference}\ncould be chance (95 %)"


def _method(ax: Axes, row: Mapping[Any, Any], x: str, y: str, opacity: float) -> None:
    """One method of table 1: a point, or a dashed line where nothing learns."""
    family = row["label"].removesuffix(" + BitFit")
    if family not in FAMILIES or not row[x] > 0:
        ax.axhline(row[y], color=GREY, linestyle="--", alpha=opacity, label=row["label"])
        return
    colour, marker = FAMILIES[family]
    hollow = not (row["label"].endswith("BitFit") or family.startswith("Full"))
    interval = row.get(f"{y} ±")
    ax.errorbar(
        row[x], row[y], yerr=None if interval is None or np.isnan(interval) else interval, fmt=marker, color=colour,
        markerfacecolor="white" if hollow else colour, markeredgewidth=1.8, alpha=opacity, capsize=3,
        markersize=13 if marker == "*" else 8, label=row["label"],
    )  # fmt: skip


@_house
def maps(
    panels: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], shown: Sequence[int],
    proxies: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Figure:  # fmt: skip
    """Maps of one set of images, a panel each: the classes ``shown`` in colour, the rest grey.

    Args:
        panels: {title: (N, 2)}.
        labels: (N,) int, the images' classes.
        names: of all classes.
        shown: at most twelve classes.
        proxies: {title: {"O" | "P" | "Q": (C, 2) in that panel's plane}}; those of the classes ``shown`` are drawn.
    """
    fig = Figure(figsize=(4.8 * len(panels) + 2.4, 4.9 if len(panels) > 1 else 5.6), layout="constrained")
    axes = fig.subplots(1, len(panels), squeeze=False)[0]
    for ax, (title, points) in zip(axes, panels.items()):
        marks = (proxies or {}).get(title, {})
        rest = ~np.isin(labels, shown)
        ax.scatter(*points[rest].T, s=7, color="#CFCFCF", linewidth=0, rasterized=True, label="other classes")
        for label, colour in zip(shown, CLASS_COLOURS):
            look: Any = {"color": colour, "label": short_name(names[label])}
            ax.scatter(*points[labels == label].T, s=20, alpha=0.75, linewidth=0, **look)
            for name, where in marks.items():
                size, over = (190, 3) if name == "Q" else (75, 4)  # the smaller ones on top of the larger
                ax.scatter(*where[label], s=size, marker=PROXIES[name][0], color=colour, edgecolor=BLACK, zorder=over)
        for name in marks:
            marker, text = PROXIES[name]
            ax.scatter([], [], s=75, marker=marker, color="white", edgecolor=BLACK, label=text)
        ax.set(title=title, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
        ax.grid(False)
    for handle in filter(None, legend(fig, loc="outside right center").legend_handles):
        handle.set(alpha=1, sizes=[75])
    return fig
