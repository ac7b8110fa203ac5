"""Parts of a static page: the shell with its style, Markdown, figures as data URIs. No script, no network."""

from __future__ import annotations

import base64
import io
from html import escape
from pathlib import Path
from string import Template

from PIL import Image

from vptsp_core.errors import VptspError
from vptsp_core.system.places import ASSETS

DPI = 110  # of the pictures in the page; those in figures/ have 200


def document(title: str, body: str, meta: str = "") -> str:
    """A whole page around ``body``, which is HTML; ``title`` is text, ``meta`` what else the head holds."""
    shell, css = ((ASSETS / name).read_text(encoding="utf-8") for name in ("page.html", "page.css"))
    return Template(shell).substitute(title=escape(title), body=body, css=css, meta=meta)


def markdown(text: str) -> str:
    """HTML of Markdown; HTML inside it shows as text."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    rendered: str = MarkdownWithMath(renderer=IPythonRenderer(escape=True)).render(text)
    return rendered


def small_png(content: bytes, *, dpi: float | None = None, width: int | None = None) -> tuple[bytes, dict[str, str]]:
    """A PNG in at most 256 colours and what is written in it; ``dpi`` or a largest ``width`` (pixels) shrinks it.

    Raises:
        VptspError: it is no picture.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            texts = {str(key): value for key, value in opened.info.items() if isinstance(value, str)}
            factor = dpi / opened.info.get("dpi", (200, 200))[0] if dpi else (width or opened.width) / opened.width
            image = opened.convert("RGBA")
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's ways to say so
        raise VptspError(f"not a readable picture ({error}); run its notebook again") from None
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    if factor < 1:
        size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue(), texts


def figure_html(path: Path, caption: str) -> str:
    """A figure inside the page (a data URI), linked to its file; the caption is the picture's own description, else
    ``caption``.

    Raises:
        VptspError: the file is no picture.
    """
    try:
        content, texts = small_png(path.read_bytes(), dpi=DPI)
    except (OSError, VptspError) as error:
        raise VptspError(f"{path.name}: {error}") from None
    said = escape(texts.get("Description", caption))
    with Image.open(io.BytesIO(content)) as image:
        size = f'width="{round(image.width * 100 / DPI)}" height="{round(image.height * 100 / DPI)}"'
    source = base64.b64encode(content).decode()
    return (
        f'<figure><a href="figures/{escape(path.name)}"><img src="data:image/png;base64,{source}" alt="{said}" {size}>'
        f"</a><figcaption>{said}</figcaption></figure>\n"
    )
