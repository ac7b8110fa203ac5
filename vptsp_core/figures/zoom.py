"""A zoomable map of images: one HTML document with everything in it. It needs no network and no kernel."""

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
    """Return the map as an HTML page.

    Thumbnails fill the free places, and zooming in shows more of them. The image under the pointer is shown large, with
    its class and number, and all images of its class are ringed.

    Args:
        points: (N, 2), the points of N images.
        images: the set that contains these images.
        places: (N,), the index of each image in ``images``.
    """
    order = np.random.default_rng(0).permutation(len(points))
    chosen, unit = np.asarray(places)[order], in_unit_square(points)[order].round(5)
    columns = math.ceil(math.sqrt(len(order)))
    atlas = Image.new("RGB", (columns * SIDE, math.ceil(len(order) / columns) * SIDE), "white")
    for slot, place in enumerate(chosen.tolist()):
        small = Image.fromarray(thumbnail(images.image(place), SIDE))
        atlas.paste(small, (slot % columns * SIDE, slot // columns * SIDE))
    packed = io.BytesIO()
    atlas.save(packed, "JPEG", quality=80)
    data = {
        "x": unit[:, 0].tolist(),
        "y": unit[:, 1].tolist(),
        "label": images.labels[chosen].tolist(),
        "place": chosen.tolist(),
        "names": [short_name(name) for name in images.class_names],
        "side": SIDE,
        "columns": columns,
        "atlas": "data:image/jpeg;base64," + base64.b64encode(packed.getvalue()).decode(),
    }
    page = (ASSETS / "map.html").read_text(encoding="utf-8")
    return Template(page).substitute(data=json.dumps(data).replace("<", "\\u003c"))  # no name can end the script


def frame(page: str) -> str:
    """Return ``page`` in a frame for a notebook's output. The page's script cannot reach the notebook."""
    style = "width: 100%; height: 610px; border: 0"
    attributes = f'sandbox="allow-scripts" title="map of images" style="{style}" srcdoc="{escape(page)}"'
    return f"<div><iframe {attributes}></iframe></div>"
