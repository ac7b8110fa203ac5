"""A map of images to zoom into: one HTML document with all that it needs in it, no network and no kernel."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from html import escape
from string import Template

import numpy as np
from PIL import Image

from vptsp_core.data import ImageSet
from vptsp_core.figures.gallery import in_unit_square, thumbnail
from vptsp_core.figures.umap import short_name
from vptsp_core.system.places import ASSETS

SIDE = 56  # pixels of a thumbnail


def document(points: np.ndarray, images: ImageSet, places: Sequence[int]) -> str:
    """The map of points (N, 2) of the images ``places`` (N) as a page: thumbnails where there is room, more of them the
    closer you zoom; the image under the pointer is large, with its class and place, and all images of its class are
    ringed.
    """
    unit = in_unit_square(points)
    order = np.random.default_rng(0).permutation(len(points))
    columns = math.ceil(math.sqrt(len(order)))
    atlas = Image.new("RGB", (columns * SIDE, math.ceil(len(order) / columns) * SIDE), "white")
    for slot, at in enumerate(order):
        small = Image.fromarray(thumbnail(images.image(int(places[at])), SIDE))
        atlas.paste(small, (slot % columns * SIDE, slot // columns * SIDE))
    packed = io.BytesIO()
    atlas.save(packed, "JPEG", quality=80)
    chosen = np.asarray(places)[order]
    data = {
        "x": unit[order, 0].round(5).tolist(),
        "y": unit[order, 1].round(5).tolist(),
        "label": images.labels[chosen].tolist(),
        "place": chosen.tolist(),
        "names": [short_name(name) for name in images.class_names],
        "side": SIDE,
        "columns": columns,
        "atlas": "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode(),
    }
    page = (ASSETS / "map.html").read_text(encoding="utf-8")
    return Template(page).substitute(data=json.dumps(data).replace("<", "\\u003c"))  # no name ends the script


def frame(page: str) -> str:
    """``page`` inside a frame of its own, for a notebook's output: its script sees nothing of the notebook."""
    style = "width: 100%; height: 610px; border: 0"
    attributes = f'sandbox="allow-scripts" title="map of images" style="{style}" srcdoc="{escape(page)}"'
    return f"<div><iframe {attributes}></iframe></div>"
