"""The house style of all figures, how they are saved, and two figures: methods against parameters, and UMAP maps.

Colours are those of Okabe & Ito (2008), distinct with any colour vision. Marker shapes differ too. The paper's series
are lighter than ours. pyplot's open figures and the user's global style are not changed.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial, wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import PIL.Image
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.font_manager import get_font_names
from matplotlib.legend import Legend
from matplotlib.style import context
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from PIL.PngImagePlugin import PngInfo

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
FAMILIES = {  # of the methods in table 1: colour and marker
    FULL: (BLACK, "s"), "Linear probing": (SKY, "o"), "BitFit": (SKY, "o"),
    "Adapter": (GREEN, "D"), LORA: (PURPLE, "P"), "VPT": (BLUE, "^"), "VPTSP-M": (ORANGE, "v"),
    "VPTSP-G": (VERMILION, "*"),
}  # fmt: skip
FORM_COLOURS = {  # of the forms of a training step in table 10
    "compiled": BLUE, "eager": SKY, "textbook": GREEN, "released": VERMILION, "released, no checkpointing": ORANGE,
}  # fmt: skip
PROXIES = {"O": ("v", "ordinary proxy O"), "P": ("s", "semantic proxy P"), "Q": ("*", "mixed proxy Q")}
# Fonts of Linux, Windows and macOS for class names in scripts that DejaVu Sans lacks. The installed ones are used.
OTHER_FONTS = ("Noto Sans CJK JP", "Noto Sans Devanagari", "Microsoft YaHei", "Malgun Gothic", "Arial Unicode MS")
LIGHT = 0.5  # opacity of the paper's series
# For tables with three rows per point (low, middle, high): seaborn draws the middle, and a range from low to high.
RANGE: Any = {"estimator": "median", "errorbar": ("pi", 100)}
RING: Any = {
    "linestyle": "", "marker": "o", "markersize": 19, "zorder": 3,
    "markerfacecolor": "none", "markeredgecolor": BLACK, "markeredgewidth": 1.2,
}  # fmt: skip
STYLE: Any = {
    "font.family": ["DejaVu Sans", *sorted({*OTHER_FONTS} & {*get_font_names()})], "font.size": 11,
    "axes.titlesize": 12, "legend.fontsize": 10, "legend.frameon": False,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "#E6E6E6",
    "axes.axisbelow": True, "lines.linewidth": 1.8, "lines.markersize": 8, "pdf.fonttype": 42,
}  # fmt: skip


def house_style() -> AbstractContextManager[None]:
    """Return a context with matplotlib's defaults and the house style, in which figures are drawn and saved."""
    return context(["default", STYLE])


def in_house_style(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Make ``draw`` draw in the house style, including the ticks, which matplotlib makes only when it renders.

    JupyterLab shows such a figure if it is the last line of a cell.
    """

    @wraps(draw)
    def styled(*args: Any, **kwargs: Any) -> Figure:
        with house_style():
            fig = draw(*args, **kwargs)
            fig.draw_without_rendering()
        fig._repr_png_ = partial(_screen_png, fig)  # type: ignore[attr-defined]  # IPython asks for this method
        return fig

    return styled


def _screen_png(fig: Figure) -> bytes:
    """Return the figure as JupyterLab shows it if ``%matplotlib inline`` was not called."""
    return file_of(fig, dpi=100).getvalue()


def file_of(fig: Figure, kind: str = "png", *, dpi: int = 200, metadata: Mapping[str, Any] | None = None) -> io.BytesIO:
    """Return the figure as a file of the given kind, on a white background."""
    buffer = io.BytesIO()
    with house_style():
        fig.savefig(buffer, format=kind, dpi=dpi, facecolor="white", metadata=metadata)
    return buffer


def save_figure(fig: Figure, results: Path, name: str, alt: str = "") -> Image:
    """Write ``results/figures/<name>.png`` (200 dpi, 256 colours) and ``.pdf``. Return the picture to display."""
    from IPython.display import Image

    pdf = file_of(fig, "pdf", metadata={"CreationDate": None})  # without a date, the same numbers give the same file
    small, texts = io.BytesIO(), PngInfo()
    texts.add_text("Description", alt or name)  # the results page uses it as the caption
    picture = PIL.Image.open(file_of(fig))
    picture.convert("RGB").quantize(256).save(small, "PNG", optimize=True, pnginfo=texts, dpi=picture.info["dpi"])
    write_bytes(results / "figures" / f"{name}.pdf", pdf.getvalue())
    write_bytes(results / "figures" / f"{name}.png", small.getvalue())
    return Image(data=small.getvalue(), width=int(100 * fig.get_figwidth()), alt=alt or name)


def labelled(fig: Figure) -> dict[str, Any]:
    """Return {label: its artist} from all panels of a figure, each label once."""
    artists: dict[str, Any] = {}
    for ax in fig.get_axes():
        for artist, label in zip(*ax.get_legend_handles_labels(), strict=True):
            artists.setdefault(label, artist)
    return artists


def legend(fig: Figure, on: SubFigure | None = None, **options: Any) -> Legend:
    """Draw one legend for all panels, by default as a row below them.

    Args:
        on: the part of the figure that the legend belongs to. If None, the whole figure.
        options: keyword arguments of matplotlib's ``legend``, which replace the row below the panels.
    """
    entries = labelled(fig)
    options = options or {"loc": "outside lower center", "ncols": len(entries)}
    return (on or fig).legend(entries.values(), entries.keys(), **options)


def ringed(reference: str) -> str:
    """Return the legend's text for a `RING`."""
    return f"ringed: difference to\n{reference}\ncould be chance (95 %)"


@in_house_style
def methods(
    ours: pd.DataFrame, paper: pd.DataFrame, *, x: str, ys: Sequence[str],
    unclear: Mapping[str, Collection[str]] | None = None, reference: str = "the reference",
) -> Figure:  # fmt: skip
    """Draw retrieval against tunable parameters, one point per method: our panels left, the paper's right.

    Args:
        ours, paper: columns ``label`` (see `paper.methods.METHODS`), ``x`` in millions, ``ys`` in percent. ``ours`` can
            also have intervals, ``<y> ±``. If ``x`` is NaN or 0 (nothing is trained), or `FAMILIES` has no mark for
            the method, the row becomes a line. If ``ours`` is empty, the left panels are missing.
        unclear: {y: labels} from `runs.significance.unclear`: the difference to the ``reference`` could be chance.
            These points are ringed, and the legend explains the ring.
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


def _method(ax: Axes, row: Mapping[Any, Any], x: str, y: str, opacity: float) -> None:
    """Draw one method of table 1: a point, or a line if nothing is trained or the method has no mark."""
    family = row["label"].removesuffix(" + BitFit")
    if family not in FAMILIES or not row[x] > 0:
        ax.axhline(row[y], color=GREY, linestyle=":" if family == CLOSED else "--", alpha=opacity, label=row["label"])
        return
    colour, marker = FAMILIES[family]
    hollow = not (row["label"].endswith("BitFit") or family.startswith("Full"))
    interval = row.get(f"{y} ±")
    ax.errorbar(
        row[x], row[y], yerr=None if pd.isna(interval) else interval, fmt=marker, color=colour,
        markerfacecolor="white" if hollow else colour, markeredgewidth=1.8, alpha=opacity, capsize=3,
        markersize=13 if marker == "*" else 8, label=row["label"],
    )  # fmt: skip


@in_house_style
def maps(
    panels: Mapping[str, np.ndarray], labels: np.ndarray, names: Sequence[str], shown: Sequence[int],
    proxies: Mapping[str, Mapping[str, np.ndarray]] | None = None,
) -> Figure:  # fmt: skip
    """Draw maps of one set of images, one panel per map: the classes ``shown`` in colour, the others grey.

    Args:
        panels: {title: (N, 2) points of the images}.
        labels: (N,) int, the images' classes.
        names: the names of all classes.
        shown: at most twelve classes.
        proxies: {title: {"O" | "P" | "Q": (C, 2) points of the proxies}}. Only the classes ``shown`` are drawn.
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
                size, over = (190, 3) if name == "Q" else (75, 4)  # small marks on top of large ones
                ax.scatter(*where[label], s=size, marker=PROXIES[name][0], color=colour, edgecolor=BLACK, zorder=over)
        for name in marks:
            marker, text = PROXIES[name]
            ax.scatter([], [], s=75, marker=marker, color="white", edgecolor=BLACK, label=text)
        ax.set(title=title, xlabel="UMAP 1", ylabel="UMAP 2", xticks=[], yticks=[])
        ax.grid(False)
    for handle in filter(None, legend(fig, loc="outside right center").legend_handles):
        handle.set(alpha=1, sizes=[75])
    return fig
