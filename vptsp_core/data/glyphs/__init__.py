"""The embedded data set: letters of five scripts, drawn from the DejaVu fonts of matplotlib.

Nothing is downloaded, but the task is like a real one. It has three disjoint sets of classes: `base` (the demo ViT was
pretrained on them), `train` (100 classes) and `test` (100 unseen classes). They are full of accented families, whose
members differ by a dot as bird species differ by an eye ring. `base` is drawn with MILD variation, `train` and `test`
with WILD variation (pose, colour, clutter, blur). So the frozen model meets a new domain, and tuning can teach it
something that also holds for new classes.

An image depends only on (seed, letter, image number), and is the same to the bit for the same fonts and Pillow.
"""

from __future__ import annotations

import json
import unicodedata
from functools import cache, lru_cache
from hashlib import blake2b

import numpy as np
from PIL import Image

from vptsp_core.data.base import Benchmark, ImageSet
from vptsp_core.data.glyphs.drawing import MILD, WILD, compose, stencils
from vptsp_core.system.places import ASSETS

SPLITS = ("base", "train", "test")
CHUNK = 256  # images composed at a time: bounds the memory


@cache
def classes() -> dict[str, str]:
    """Return the letters of each split, in the order of their labels (chosen by tests/bench/glyph_classes.py)."""
    return json.loads((ASSETS / "glyph_classes.json").read_text("utf-8"))


def class_names(split: str) -> tuple[str, ...]:
    """Return a name like 'U+00E5 LATIN SMALL LETTER A WITH RING ABOVE' for each class of the split."""
    return tuple(f"U+{ord(c):04X} {unicodedata.name(c)}" for c in classes()[split])


@lru_cache(maxsize=8)
def render(
    split: str, images_per_class: int = 20, size: int = 40, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Draw a split: images uint8 (N, size, size, 3), labels int64 (N,) and class names.

    N = classes x images_per_class, in the order of the classes. The arrays are cached and read-only.
    Raises DataError: a font is missing.
    """
    letters = classes()[split]
    images = np.empty((len(letters) * images_per_class, size, size, 3), np.uint8)
    labels = np.repeat(np.arange(len(letters), dtype=np.int64), images_per_class)
    shapes, how = stencils(letters), MILD if split == "base" else WILD
    near = stencils(classes()["base"][::12])  # clutter shows only base letters, never a test class
    for start in range(0, len(images), CHUNK):
        rows = range(start, min(start + CHUNK, len(images)))
        keys = ((seed, ord(letters[row // images_per_class]), row % images_per_class) for row in rows)
        rngs = [np.random.default_rng(key) for key in keys]
        images[start : rows.stop] = compose(shapes, near, labels[start : rows.stop], rngs, size, how)
    images.setflags(write=False)
    labels.setflags(write=False)
    return images, labels, class_names(split)


class GlyphSet(ImageSet):
    """One split of the glyphs as an image set; ``images`` is uint8 (N, size, size, 3)."""

    def __init__(self, split: str, images_per_class: int = 20, size: int = 40, seed: int = 0) -> None:
        self.images, labels, names = render(split, images_per_class, size, seed)
        super().__init__(f"glyphs {split}", labels, names)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        return blake2b(self.images.tobytes(), digest_size=8).hexdigest()


def load_glyphs(images_per_class: int = 20, size: int = 40, seed: int = 0) -> Benchmark:
    """Return the benchmark: 100 classes to tune on, and 100 unseen classes to search among."""
    train, test = (GlyphSet(split, images_per_class, size, seed) for split in ("train", "test"))
    return Benchmark(name="glyphs", train=train, test=test, gallery=None)
