"""Controls for a user who watches the notebook in JupyterLab. Under papermill and in scripts, no controls are shown."""

from __future__ import annotations

import base64
import io
import tempfile
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
from vptsp_core.data.folder import read_image
from vptsp_core.errors import VptspError
from vptsp_core.figures.explore import Opened, finished_runs
from vptsp_core.figures.explore.retrieval import neighbours
from vptsp_core.figures.gallery import RIGHT, WRONG, thumbnail
from vptsp_core.figures.style import BLACK, GREY
from vptsp_core.figures.umap import short_name
from vptsp_core.paper.report import place as of_checkout
from vptsp_core.paper.report import watched

SHOWN = 40  # thumbnails of a class, at most


def live() -> bool:
    """Return whether to show controls: whether the notebook is watched and ipywidgets is installed.

    If only ipywidgets is missing, print how to install it.
    """
    if not watched():
        return False
    if find_spec("ipywidgets") is None:
        print("Still pictures only: controls need ipywidgets (pip install ipywidgets, then restart the kernel)")
        return False
    return True


class Choice:
    """A run and a data set, with controls to choose others.

    Args:
        results: folders whose finished runs can be chosen.
        path: the folder of the first run.
        dataset: the first data set. If None, the run's own.
    """

    def __init__(self, results: Sequence[Path], path: Path, dataset: str | None = None) -> None:
        self.path, self.dataset = path, dataset
        if live():
            import ipywidgets

            runs = {str(path): path, **finished_runs(*results)}
            own = {"the run's own": "", **{name: name for name in DATASETS}}  # ipywidgets takes None for no choice
            run = ipywidgets.Dropdown(options=runs, value=path, layout=ipywidgets.Layout(width="min(46em, 95%)"))
            data = ipywidgets.Dropdown(options=own, value=dataset or "", description="data set")
            ipywidgets.interact(self._chosen, run=run, dataset=data)

    def _chosen(self, run: Path, dataset: str) -> None:
        self.path, self.dataset = run, dataset or None
        print("Another choice: click into the next cell, then Run > Run Selected Cell and All Below.")


def choose(label: str, options: Mapping[str, Any], draw: Callable[[Any], Any]) -> None:
    """Display the picture of the first option, with a list above it to choose another.

    Args:
        label: the description of the list.
        options: {name: argument for ``draw``}.
        draw: called with the option's value, returns the picture to display.
    """
    from IPython.display import display

    if live():
        import ipywidgets

        control = ipywidgets.Dropdown(options=list(options), description=label)
        control.add_class("vptsp-choose")
        ipywidgets.interact(lambda chosen: display(draw(options[chosen])), chosen=control)
    else:
        display(draw(next(iter(options.values()))))


class QueryExplorer:
    """Thumbnails to click. An image of a class, a neighbour, or an image of your own becomes the query.

    Args:
        opened: the run and the images.
        classes: from `retrieval.by_class`, the list of classes in its order.
        k: the number of neighbours to show.
    """

    def __init__(self, opened: Opened, classes: pd.DataFrame, k: int = 10) -> None:
        import ipywidgets

        self.opened, self.k = opened, k
        images, wide = opened.searched, ipywidgets.Layout(width="min(34em, 95%)")
        searched = classes[classes["class"].isin(images.labels)]
        options = [(f"{short_name(name)}: R@1 {recall:.0f} %", label)
                   for name, recall, label in zip(searched["name"], searched["R@1"], searched["class"])]  # fmt: skip
        self.of_class = ipywidgets.Dropdown(options=options, description="class", layout=wide)
        self.image = "image" if opened.same_gallery else "gallery image"
        self.number = ipywidgets.BoundedIntText(max=len(images) - 1, description=self.image, continuous_update=False)
        self.upload = ipywidgets.FileUpload(accept="image/*", description="own image")
        self.file = ipywidgets.Text(placeholder="or its path, then Enter", continuous_update=False)
        self.said = ipywidgets.HTML()
        self.said.add_class("vptsp-said")
        wrapped = ipywidgets.Layout(flex_flow="row wrap", align_items="center", width="100%")
        self.of_class_shown, self.found_shown = ipywidgets.Box(layout=wrapped), ipywidgets.Box(layout=wrapped)
        self.of_class.observe(lambda change: self._show_class(change["new"]), "value")
        self.number.observe(lambda change: self.ask(change["new"]), "value")
        self.upload.observe(lambda change: self._uploaded(change["new"]), "value")
        self.file.observe(lambda change: self._named(change["new"].strip()), "value")
        controls = ipywidgets.Box([self.of_class, self.number, self.upload, self.file], layout=wrapped)
        self.view = ipywidgets.VBox([controls, self.of_class_shown, self.said, self.found_shown])
        self._show_class(self.of_class.value)

    def _named(self, path: str) -> None:
        if path:
            self.ask(of_checkout(path))

    def ask(self, query: int | Path) -> None:
        """Show the neighbours of ``query`` (see `retrieval.neighbours`), or the message of an error."""
        images = self.opened.searched
        try:
            nearest = neighbours(self.opened, query, self.k)
            if isinstance(query, int):
                picture, name = images.image(query), f"{self.image} {query}, {self._class_of(query)}"
            else:
                picture, name = read_image(query, as_shown=True), f"your image {query.name}, of no known class"
        except VptspError as error:
            self.said.value = f"<b>{escape(str(error))}</b>"
            return
        marks = "" if nearest.right is None else ": ✓ on blue is of its class, ✗ on vermilion is not"
        self.said.value = f"<b>Query (black frame): {escape(name)}.</b> Neighbours, best first, with cosines{marks}."
        cards = [self._card("found", picture, 96, BLACK, "query")]
        for rank, (place, cosine) in enumerate(zip(nearest.places.tolist(), nearest.cosines, strict=True)):
            sign, colour = ("", GREY) if nearest.right is None else RIGHT if nearest.right[rank] else WRONG
            cards.append(self._card("found", images.image(place), 72, colour, f"{sign} {cosine:.3f}", place))
        self.found_shown.children = cards

    def _clicked(self, place: int) -> None:
        if self.number.value == place:  # then its observer is not called
            self.ask(place)
        self.number.value = place

    def _class_of(self, place: int) -> str:
        images = self.opened.searched
        return short_name(images.class_names[images.labels[place]])

    def _uploaded(self, files: Sequence[Mapping[str, Any]]) -> None:
        for file in files[-1:]:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder, Path(file["name"]).name)
                path.write_bytes(file["content"])
                self.ask(path)

    def _show_class(self, label: int) -> None:
        images = self.opened.searched
        places = np.flatnonzero(images.labels == label)[:SHOWN].tolist()
        self.of_class_shown.children = [self._card("class", images.image(at), 48, GREY, place=at) for at in places]
        self._clicked(places[0])

    def _card(
        self, part: str, picture: Image.Image, side: int, colour: str, text: str = "", place: int | None = None
    ) -> Any:
        """Return a thumbnail with ``text`` below it. A click makes image ``place`` the query.

        A button shows a picture only through a style sheet, which is part of the text.
        """
        import ipywidgets

        buffer, name = io.BytesIO(), f"vptsp-{uuid.uuid4().hex[:12]}"
        Image.fromarray(thumbnail(picture, side)).save(buffer, "PNG")
        source = base64.b64encode(buffer.getvalue()).decode()
        look = f"background: url(data:image/png;base64,{source}) center / contain no-repeat !important"
        border = f"border: {1 if colour == GREY else 3}px solid {colour} !important"
        button = ipywidgets.Button(layout=ipywidgets.Layout(width=f"{side + 6}px", height=f"{side + 6}px"))
        button.tooltip = "the query"
        button.add_class(name)
        button.add_class(f"vptsp-{part}")
        if place is not None:
            button.tooltip = f"{self.image} {place}, {self._class_of(place)}: ask for it"
            button.on_click(lambda _: self._clicked(place))
        style = f"<style>.{name} {{ {look}; {border}; padding: 0; }}</style>"
        return ipywidgets.VBox([button, ipywidgets.HTML(f'{style}<span style="color: {colour}">{text}</span>')])


def explore_queries(opened: Opened, classes: pd.DataFrame, k: int = 10) -> None:
    """Display a `QueryExplorer` if controls are shown. Otherwise display nothing."""
    if live():
        from IPython.display import display

        display(QueryExplorer(opened, classes, k).view)
