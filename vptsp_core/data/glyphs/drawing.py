"""Draw images of letters: each is one glyph of a font, with pose, warp, stroke, colour, clutter, light and noise.

A letter of a style is rasterised once, as a blurred stencil. Every image samples stencils through its own affine map
and warp, all images of a chunk together. After the font rasteriser, every step is plain IEEE arithmetic: no sin, exp or
matrix product, whose last bits differ by machine. So the bytes depend only on the fonts and on Pillow.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageFilter, ImageFont

from vptsp_core.errors import DataError

STYLES = tuple(
    f"DejaVu{face}.ttf"
    for face in (
        *("Sans", "Sans-Bold", "Sans-Oblique", "Sans-BoldOblique"),
        *("SansMono", "SansMono-Bold", "SansMono-Oblique", "SansMono-BoldOblique"),
        *("Serif", "Serif-Bold", "Serif-Italic", "Serif-BoldItalic"),
    )
)
CELL = 64  # side of a letter's stencil in pixels; the letter's longer side takes LETTER of them
LETTER = 48


@dataclass(frozen=True)
class Variation:
    """How strongly images of one class differ. Lengths are in half image sides, intensities in [0, 1]."""

    turn: float  # tan of half the largest rotation
    shear: float
    scale: tuple[float, float]  # half the letter's longer side
    stretch: float  # largest relative change of the aspect ratio, both ways
    shift: float
    bend: float  # amplitude of the smooth warp
    weight: float  # thinning or thickening of the strokes
    edge: tuple[float, float]  # steepness of the stroke's edge: small is blurred
    contrast: tuple[float, float]  # letter against ground, as a share of the possible contrast
    inverse: float  # share of light letters on dark ground
    chroma: float
    shade: float  # uneven light
    texture: float
    clutter: float  # chance of each of the two neighbouring letters
    scratch: float  # chance of a line across the image
    noise: float


MILD = Variation(
    turn=0.06, shear=0.10, scale=(0.60, 0.80), stretch=0.08, shift=0.10, bend=0.02,
    weight=0.08, edge=(3.0, 7.0), contrast=(0.70, 1.0), inverse=0.40, chroma=0.30, shade=0.15,
    texture=0.03, clutter=0.20, scratch=0.08, noise=0.04,
)  # fmt: skip
WILD = Variation(
    turn=0.07, shear=0.12, scale=(0.58, 0.82), stretch=0.08, shift=0.10, bend=0.03,
    weight=0.09, edge=(2.5, 7.0), contrast=(0.65, 1.0), inverse=0.50, chroma=0.32, shade=0.25,
    texture=0.04, clutter=0.35, scratch=0.12, noise=0.045,
)  # fmt: skip


def font_path(style: str) -> Path:
    """Return the path of a font of matplotlib. Raises DataError: matplotlib has no font of that name."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / style
    if not path.is_file():
        raise DataError(f"glyphs: matplotlib has no font {style}; reinstall matplotlib from PyPI")
    return path


@lru_cache(maxsize=len(STYLES))
def _load_font(style: str) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_path(style), 64, layout_engine=ImageFont.Layout.BASIC)


def fit(letter: str, style: str, cell: int, longer: int) -> Image.Image:
    """Draw a letter with its longer side scaled to ``longer``, in the middle of a square of ``cell`` pixels."""
    mask = _load_font(style).getmask(letter, mode="L")
    ink = Image.frombytes("L", mask.size, bytes(mask))
    ink = ink.crop(ink.getbbox())
    scale = longer / max(ink.size)
    width, height = (max(1, round(side * scale)) for side in ink.size)
    out = Image.new("L", (cell, cell))
    out.paste(ink.resize((width, height), Image.Resampling.BOX), ((cell - width) // 2, (cell - height) // 2))
    return out


@lru_cache(maxsize=4)
def stencils(letters: str) -> np.ndarray:
    """Return blurred letters, (letters, styles, CELL * CELL) uint8: thresholds give thin and thick strokes."""
    blur = ImageFilter.GaussianBlur(1.2)
    drawn = [[fit(c, s, CELL, LETTER).filter(blur) for s in STYLES] for c in letters]
    return np.array([[np.asarray(cell).ravel() for cell in row] for row in drawn])


def _wave(t: np.ndarray) -> np.ndarray:
    """Return a smooth wave in [-1, 1] of period 1, computed by arithmetic only."""
    f = t - np.floor(t)
    half = f * 2 - np.floor(f * 2)
    return np.where(f < 0.5, 1, -1).astype(np.float32) * (4 * half * (1 - half))


def _sample(cells: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Sample cells (n, CELL * CELL), which span [-1, 1], bilinearly at x, y (n, pixels). Return ink in [0, 1]."""
    px = np.clip((x + 1) * (CELL / 2) - 0.5, 0, CELL - 1.001)
    py = np.clip((y + 1) * (CELL / 2) - 0.5, 0, CELL - 1.001)
    left, top = px.astype(np.int32), py.astype(np.int32)
    fx, fy = px - left, py - top
    at = top * CELL + left + (np.arange(len(cells), dtype=np.int32) * (CELL * CELL))[:, None]
    ink = cells.ravel()
    above = ink[at] * (1 - fx) + ink[at + 1] * fx
    below = ink[at + CELL] * (1 - fx) + ink[at + CELL + 1] * fx
    return (above * (1 - fy) + below * fy) * np.float32(1 / 255)


def compose(
    shapes: np.ndarray,
    near: np.ndarray,
    labels: np.ndarray,
    rngs: list[np.random.Generator],
    size: int,
    how: Variation,
) -> np.ndarray:
    """Draw images (n, size, size, 3) uint8: ground, two neighbours, the letter, a scratch, uneven light, noise.

    ``shapes`` and ``near`` are the stencils of the classes and of the neighbours. Image i shows class labels[i] (n,)
    and takes all its random numbers from rngs[i].
    """
    n = len(labels)
    draws = iter(np.stack([rng.random(96, dtype=np.float32) for rng in rngs]).T[:, :, None])

    def between(low: float, high: float) -> np.ndarray:
        return np.float32(low) + np.float32(high - low) * next(draws)

    def around(width: float) -> np.ndarray:
        return between(-width, width)

    def pick(count: int) -> np.ndarray:
        return np.minimum(next(draws)[:, 0] * count, count - 1).astype(np.int64)

    def colour(light: np.ndarray, chroma: float) -> np.ndarray:
        tint = np.stack([around(chroma) for _ in range(3)], -1)
        return np.clip(light[..., None] + tint - tint.mean(-1, keepdims=True), 0, 1)  # (n, 1, 3)

    def placed(cells: np.ndarray, sx: np.ndarray, sy: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        t, k = around(how.turn), around(how.shear)
        cos, sin = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)  # an angle without trigonometry
        px, py = x + bend_x - dx, y + bend_y - dy
        rx, ry = cos * px + sin * py, cos * py - sin * px
        blurred = _sample(cells, (rx + k * ry) / sx, ry / sy)
        ink = (blurred - 0.42 + around(how.weight)) * between(*how.edge) + 0.5
        return np.clip(ink, 0, 1)[..., None]

    line = (np.arange(size, dtype=np.float32) + 0.5) * np.float32(2 / size) - 1
    x, y = np.tile(line, size)[None], np.repeat(line, size)[None]
    bend_x = around(how.bend) * _wave(around(0.4) * x + between(0.2, 0.6) * y + next(draws))
    bend_y = around(how.bend) * _wave(between(0.2, 0.6) * x + around(0.4) * y + next(draws))

    # Light of ground and letter: the letter is `contrast` of the way from the ground to black or to white.
    inverse = next(draws) < how.inverse
    ground_light = np.where(inverse, between(0.0, 0.4), between(0.6, 1.0))
    contrast = between(*how.contrast)
    lighter, darker = ground_light + contrast * (1 - ground_light), ground_light * (1 - contrast)
    letter_light = np.where(inverse, lighter, darker)
    canvas = np.repeat(colour(ground_light, how.chroma), size * size, 1)
    canvas += (around(how.texture) * _wave(around(2.5) * x + around(2.5) * y + next(draws)))[..., None]

    unit = np.float32(CELL / LETTER)  # a stencil is that much wider than its letter
    for _ in range(2):
        cells = near[pick(len(near)), pick(len(STYLES))]
        dx, dy, far = around(1), around(1), between(0.85, 1.15)
        reach = far / np.maximum(np.maximum(np.abs(dx), np.abs(dy)), 0.01)  # onto a square around the letter
        side = between(*how.scale) * unit
        there = (next(draws) < how.clutter) * between(0.4, 1.0)
        ink = placed(cells, side, side, dx * reach, dy * reach) * there[..., None]
        canvas += ink * (colour(letter_light, how.chroma) - canvas)

    side, aspect = between(*how.scale) * unit, 1 + around(how.stretch)
    cells = shapes[labels, pick(len(STYLES))]
    ink = placed(cells, side * aspect, side / aspect, around(how.shift), around(how.shift))
    canvas += ink * (colour(letter_light, how.chroma) - canvas)

    a, b = around(1), around(1)
    norm = np.sqrt(a * a + b * b) + np.float32(1e-3)
    away = np.abs((a * x + b * y) / norm + around(0.8))
    ink = np.clip((between(0.02, 0.07) - away) * (size / 2) + 0.5, 0, 1) * (next(draws) < how.scratch)
    canvas += ink[..., None] * (colour(between(0.2, 0.8), how.chroma) - canvas)

    canvas *= (1 + around(how.shade) * x + around(how.shade) * y)[..., None]
    grain = np.stack([rng.integers(0, 256, size * size * 3, dtype=np.uint8) for rng in rngs])
    canvas += (grain.reshape(n, -1, 3) * np.float32(2 / 255) - 1) * np.float32(how.noise)
    return (np.clip(canvas, 0, 1) * 255 + np.float32(0.5)).astype(np.uint8).reshape(n, size, size, 3)
