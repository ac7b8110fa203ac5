"""Names in every script: a font for the letters that the figures' own font lacks."""

from __future__ import annotations

import functools
import warnings

from matplotlib import font_manager
from matplotlib.figure import Figure
from matplotlib.text import Text


def show_letters(fig: Figure) -> bool:
    """Give texts with letters that their font lacks another font beside it; what no font has is written as \\u4e2d.
    Returns whether a text was changed.
    """
    changed, nowhere = False, ""
    for text in fig.findobj(Text):
        own = _letters(font_manager.findfont(text.get_fontproperties()))
        missing = [each for each in dict.fromkeys(text.get_text()) if ord(each) not in own and not each.isspace()]
        if not missing:
            continue
        changed = True
        fonts = {each: _font_with(each) for each in missing}
        text.set_fontfamily([*text.get_fontfamily(), *dict.fromkeys(name for name in fonts.values() if name)])
        for each in [letter for letter, name in fonts.items() if not name]:
            text.set_text(text.get_text().replace(each, each.encode("ascii", "backslashreplace").decode()))
            nowhere += each * (each not in nowhere)
    if nowhere:
        warnings.warn(f"no font here has the letters {nowhere[:20]}: figures show their codes; install one that has "
                      "them, such as Noto Sans of that script", stacklevel=3)  # fmt: skip
    return changed


@functools.cache
def _letters(path: str) -> frozenset[int]:
    return frozenset(font_manager.get_font(path).get_charmap())


@functools.cache
def _font_with(letter: str) -> str | None:
    fonts = [font for font in font_manager.fontManager.ttflist if not font.name.startswith("Last Resort")]  # boxes
    fonts.sort(key=lambda font: (font.style != "normal", font.name, font.fname))
    return next((font.name for font in fonts if ord(letter) in _letters(font.fname)), None)
