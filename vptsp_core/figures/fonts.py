"""Fonts for letters that the figures' own font lacks, so that class names in every script are legible."""

from __future__ import annotations

import functools
import warnings

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text


def show_letters(fig: Figure) -> bool:
    """Add fonts to texts with letters that their own font lacks. Return whether a text was changed.

    If no installed font has a letter, its code is written instead (\\u4e2d), with a warning.
    """
    changed, without_font = False, ""
    for text in fig.findobj(Text):
        own = _letters(font_manager.findfont(text.get_fontproperties()))
        missing = [each for each in dict.fromkeys(text.get_text()) if ord(each) not in own and not each.isspace()]
        if not missing:
            continue
        changed = True
        fonts = {each: _font_with(each) for each in missing}
        text.set_fontfamily([*text.get_fontfamily(), *dict.fromkeys(filter(None, fonts.values()))])
        for each in [letter for letter, name in fonts.items() if not name]:
            text.set_text(text.get_text().replace(each, each.encode("ascii", "backslashreplace").decode()))
            without_font += each
    if without_font:
        letters = "".join(dict.fromkeys(without_font))[:20]
        warnings.warn(f"no font here has the letters {letters}: figures show their codes; install one that has them, "
                      "such as Noto Sans of that script", stacklevel=3)  # fmt: skip
    return changed


@functools.cache
def _letters(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())


@functools.cache
def _font_with(letter: str) -> str | None:
    """Return the name of an installed font with this letter, upright if possible. None if no font has it."""
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]  # boxes
    fonts.sort(key=lambda font: (font.style != "normal", font.name, font.fname))
    return next((font.name for font in fonts if ord(letter) in _letters(font.fname)), None)
