"""Choose the classes of the embedded glyphs: the rule behind `vptsp_core.data.glyphs.classes`."""

from __future__ import annotations

import unicodedata
from hashlib import blake2b

import numpy as np
from fontTools.ttLib import TTFont

from vptsp_core.data.glyphs import SPLITS
from vptsp_core.data.glyphs.drawing import STYLES, fit, font_path


def choose_classes(alike: float = 0.1, group: int = 8, each: int = 100) -> dict[str, str]:
    """Return the letters of each split.

    1. Take the letters that all twelve styles have, by code point.
    2. Leave out a letter that looks like an earlier one of any size (Greek Alpha is Latin A): in Sans, Serif or Mono,
       the squared distance of their tight bitmaps is below `alike` times the ink of the lighter one. Only upright
       styles decide. Four pairs of classes, such as u and a cursive Cyrillic i, look the same in italics.
    3. Join letters of one script with the same base letter into a family. Cut it into groups of at most `group`.
    4. Sort the groups by a hash of their first letter. They fill test, then train, with `each` letters; the rest is
       base.
    """
    common = set.intersection(*(_characters(style) for style in STYLES))
    letters = sorted(c for c in map(chr, common) if unicodedata.category(c) in ("Lu", "Ll", "Lo", "Lt"))
    distance = np.full((len(letters), len(letters)), np.inf)
    for style in ("DejaVuSans.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf"):
        flat = np.stack([np.asarray(fit(c, style, 24, 24), np.float64).ravel() / 255 for c in letters])
        ink = (flat**2).sum(1)
        apart = (ink[:, None] + ink - 2 * flat @ flat.T) / np.minimum(ink[:, None], ink)
        distance = np.minimum(distance, apart)
    families: dict[tuple[str, str], list[str]] = {}
    kept: list[int] = []
    for i, c in enumerate(letters):
        if not kept or distance[i, kept].min() >= alike:
            kept.append(i)
            base = unicodedata.normalize("NFD", c)[0].casefold()
            families.setdefault((unicodedata.name(c).split()[0], base), []).append(c)
    groups = [f[i : i + group] for f in families.values() for i in range(0, len(f), group)]
    groups.sort(key=lambda g: blake2b(g[0].encode(), digest_size=8).digest())
    order = "".join(c for g in groups for c in g)
    chosen = {"test": order[:each], "train": order[each : 2 * each], "base": order[2 * each :]}
    return {split: "".join(sorted(chosen[split])) for split in SPLITS}


def _characters(style: str) -> set[int]:
    return set(TTFont(font_path(style)).getBestCmap())
