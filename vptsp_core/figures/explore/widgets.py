"""Views that answer clicks, for somebody who watches in JupyterLab; under papermill and in scripts nothing of it shows.

A picture to choose from a list stays an ordinary output, which a control above it replaces: so it is saved with the
notebook, and the HTML shows it. Only the query explorer is made of widgets throughout.
"""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from vptsp_core.data import DATASETS
from vptsp_core.data.folder import FORMATS, read_image, to_rgb
from vptsp_core.errors import VptspError
from vptsp_core.figures.explore import Opened, finished_runs
from vptsp_core.figures.explore.retrieval import Found, neighbours
from vptsp_core.figures.gallery import RIGHT, WRONG, thumbnail
from vptsp_core.figures.style import BLACK, GREY
from vptsp_core.figures.umap import short_name
from vptsp_core.paper.report import place as from_root
from vptsp_core.paper.report import watched

SHOWN = 40  # thumbnails of a class, at most


def live() -> bool:
    """Whether controls are shown: somebody watches, and ipywidgets is there (else one line says how to get it)."""
    if not watched():
        return False
    if find_spec("ipywidgets") is None:
        print("Still pictures only: controls need ipywidgets (pip install ipywidgets, then restart the kernel)")
        return False
    return True


class Choice:
    """A run and a data set; with controls to choose others where somebody watches.

    Args:
        results: folders whose finished runs can be chosen.
        path: of the run to begin with.
        dataset: to begin with; None for the run's own.
    """

    def __init__(self, results: Sequence[Path], path: Path, dataset: str | None = None) -> None:
        self.path, self.dataset = path, dataset
        if live():
            self._show(results)

    def _show(self, results: Sequence[Path]) -> None:
        import ipywidgets
        from IPython.display import display

        runs = finished_runs(*results)
        if self.path not in runs.values():
            runs = {str(self.path): self.path, **runs}
        wide = ipywidgets.Layout(width="min(46em, 95%)")
        style = {"description_width": "5em"}
        run = ipywidgets.Dropdown(options=runs, value=self.path, description="run", layout=wide, style=style)
        own = {"the run's own": ""} | {name: name for name in DATASETS}  # None would be no choice at all
        data = ipywidgets.Dropdown(options=own, value=self.dataset or "", description="data set", style=style)
        note = ipywidgets.HTML()

        def changed(_: Any) -> None:
            self.path, self.dataset = run.value, data.value or None
            note.value = "Chosen. Now click into the next cell, then <i>Run → Run Selected Cell and All Below</i>."

        run.observe(changed, "value")
        data.observe(changed, "value")
        display(ipywidgets.VBox([run, data, note]))


def choose(label: str, options: Mapping[str, Any], draw: Callable[[Any], Any]) -> None:
    """Show the picture of the first option; where somebody watches, a list above it shows those of the others.

    Args:
        options: {what to call it: what ``draw`` takes}.
        draw: gives something to display.
    """
    from IPython.display import display, update_display

    shown = uuid.uuid4().hex
    if live():
        import ipywidgets

        control = ipywidgets.Dropdown(options=list(options), description=label)
        control.add_class("vptsp-choose")
        display(control)
        control.observe(lambda change: update_display(draw(options[change["new"]]), display_id=shown), "value")
    display(draw(next(iter(options.values()))), display_id=shown)


class QueryExplorer:
    """Thumbnails to click: an image of a class, or a neighbour, becomes the query; or an image of your own.

    Args:
        opened: the run and the images.
        classes: of `retrieval.by_class`; its order is that of the list of classes.
        k: neighbours to show.
    """

    def __init__(self, opened: Opened, classes: pd.DataFrame, k: int = 10) -> None:
        import ipywidgets

        self.opened, self.k = opened, k
        self._name = f"vptsp-{uuid.uuid4().hex[:8]}"
        images, box = opened.found_in, ipywidgets.Layout(width="min(34em, 95%)")
        columns = zip(classes["class"], classes["name"], classes["R@1"], strict=True)
        there = set(images.labels.tolist())
        options = [(f"{short_name(name)}: R@1 {recall:.0f} %", c) for c, name, recall in columns if c in there]
        self.of_class = ipywidgets.Dropdown(options=options, description="class", layout=box)
        self.number = ipywidgets.BoundedIntText(max=len(images) - 1, description="image", continuous_update=False)
        self.upload = ipywidgets.FileUpload(accept="image/*", description="own image")
        self.file = ipywidgets.Text(placeholder="or its path, then Enter", continuous_update=False)
        self.said, self._looks = ipywidgets.HTML(), ipywidgets.HTML()
        self.said.add_class("vptsp-said")
        wrapped = ipywidgets.Layout(flex_flow="row wrap", width="100%")
        self._of_class, self._found = ipywidgets.Box(layout=wrapped), ipywidgets.Box(layout=wrapped)
        self.of_class.observe(lambda change: self._show_class(change["new"]), "value")
        self.number.observe(lambda change: self.ask(change["new"]), "value")
        self.upload.observe(lambda change: self._uploaded(change["new"]), "value")
        self.file.observe(lambda change: self._named(change["new"].strip()), "value")
        row = ipywidgets.Layout(flex_flow="row wrap", align_items="center")
        heads = ipywidgets.HBox([self.of_class, self.number], layout=row)
        own = ipywidgets.HBox([self.upload, self.file], layout=row)
        self.view = ipywidgets.VBox([self._looks, heads, own, self._of_class, self.said, self._found])
        self._styles: dict[str, list[str]] = {"class": [], "found": []}
        self._show_class(self.of_class.value)

    def ask(self, query: int | Path | Image.Image) -> None:
        """Show what ``query`` (see `retrieval.neighbours`) finds; what is wrong with it is said in its place."""
        try:
            found = neighbours(self.opened, query, self.k)
            picture = self._picture(query)
        except VptspError as error:
            self.said.value = f"<b>{escape(str(error))}</b>"
            return
        images = self.opened.found_in
        if isinstance(query, int):
            self.number.value = query
            name = f"image {query}, {short_name(images.class_names[images.labels[query]])}"
        else:
            name = f"{query.name}, of no known class" if isinstance(query, Path) else "your image, of no known class"
        marks = "" if found.right is None else ": ✓ on blue is of its class, ✗ on vermilion is not"
        self.said.value = f"<b>Query (black frame): {escape(name)}.</b> Neighbours, best first, with cosines{marks}."
        self._show_found(picture, found)

    def _picture(self, query: int | Path | Image.Image) -> Image.Image:
        if isinstance(query, int):
            return self.opened.found_in.image(query)
        return read_image(query, as_shown=True) if isinstance(query, Path) else to_rgb(query, as_shown=True)

    def _named(self, path: str) -> None:
        if path:
            self.ask(from_root(path))

    def _uploaded(self, files: Any) -> None:
        if not files:
            return
        try:
            picture = Image.open(io.BytesIO(bytes(files[-1]["content"])), formats=FORMATS)
            picture.load()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            self.said.value = f"<b>{escape(files[-1]['name'])} is not a readable image ({escape(str(error))})</b>"
            return
        self.ask(picture)

    def _show_class(self, label: int) -> None:
        places = np.flatnonzero(self.opened.found_in.labels == label)[:SHOWN].tolist()
        self._styles["class"] = []
        buttons = [self._button("class", place, self.opened.found_in.image(place), GREY, 48) for place in places]
        self._of_class.children = buttons
        self.ask(places[0])

    def _show_found(self, picture: Image.Image, found: Found) -> None:
        import ipywidgets

        self._styles["found"] = []
        cards = [ipywidgets.VBox([self._button("found", None, picture, BLACK, 96), ipywidgets.HTML("query")])]
        for rank, (place, cosine) in enumerate(zip(found.places.tolist(), found.cosines, strict=True)):
            sign, colour = ("", GREY) if found.right is None else RIGHT if found.right[rank] else WRONG
            button = self._button("found", place, self.opened.found_in.image(place), colour, 72)
            told = ipywidgets.HTML(f'<span style="color: {colour}">{sign} {cosine:.3f}</span>')
            cards.append(ipywidgets.VBox([button, told]))
        self._found.children = cards
        self._looks.value = f"<style>{''.join(self._styles['class'] + self._styles['found'])}</style>"

    def _button(self, part: str, place: int | None, picture: Image.Image, colour: str, side: int) -> Any:
        """A thumbnail that becomes the query when it is clicked (the query itself, place None, does nothing)."""
        import ipywidgets

        buffer = io.BytesIO()
        Image.fromarray(thumbnail(picture, side)).save(buffer, "PNG")
        name = f"{self._name}-{part}-{len(self._styles[part])}"
        source = base64.b64encode(buffer.getvalue()).decode()
        self._styles[part].append(
            f".{name} {{ background: url(data:image/png;base64,{source}) center / contain no-repeat !important;"
            f" border: {1 if colour == GREY else 3}px solid {colour} !important; padding: 0; }}"
        )
        size = f"{side + 6}px"
        tip = "the query"
        if place is not None:
            images = self.opened.found_in
            tip = f"image {place}, {short_name(images.class_names[images.labels[place]])}: ask for it"
        button = ipywidgets.Button(tooltip=tip, layout=ipywidgets.Layout(width=size, height=size))
        button.add_class(name)
        button.add_class(f"vptsp-{part}")
        if place is not None:
            button.on_click(lambda _: self.ask(place))
        return button


def explore_queries(opened: Opened, classes: pd.DataFrame, k: int = 10) -> None:
    """A `QueryExplorer` where somebody watches; elsewhere nothing (the retrieval grid is its still form)."""
    if live():
        from IPython.display import display

        display(QueryExplorer(opened, classes, k).view)
