"""Parts of static pages: the templates in assets/, Markdown, pictures as data URIs, executed notebooks. No script, no
network."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vptsp_core.errors import VptspError
from vptsp_core.publish.parameters import read
from vptsp_core.system.places import ASSETS

DPI = 110  # of the figures in the results page; those in figures/ have 200
WIDTH = 1800  # pixels of the widest picture in an executed notebook, about twice what it is shown at
TEMPLATES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)

# nbconvert's basic template, without what needs a script (widgets, JavaScript).
_NOTEBOOK = """{%- extends 'index.html.j2' -%}
{%- block input_group -%}
<details><summary>code</summary>{{ super() }}</details>
{%- endblock input_group -%}
{%- block data_javascript -%}{%- endblock -%}
{%- block data_widget_view -%}{%- endblock -%}
{%- block footer -%}{%- endblock -%}"""


def markdown(text: str) -> str:
    """HTML of Markdown; HTML inside it shows as text."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    rendered: str = MarkdownWithMath(renderer=IPythonRenderer(escape=True)).render(text)
    return rendered


def notebook_html(path: Path, name: str) -> str:
    """The page of an executed notebook called ``name``: code folded away, pictures palettised."""
    from nbconvert import HTMLExporter

    notebook = read(path)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _shrink(output)
    exporter = HTMLExporter(
        template_name="basic", raw_template=_NOTEBOOK, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})[0]
    heading = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE) if notebook.cells else None
    title = heading[1].replace("*", "") if heading else name
    return TEMPLATES.get_template("notebook.html").render(title=title, name=name, body=body)


def figure(path: Path, caption: str) -> dict[str, Any]:
    """A figure for the page: ``src`` (a data URI), ``width`` and ``height``, and ``words``, its own description or else
    ``caption``.

    Raises:
        VptspError: the file is no picture.
    """
    try:
        content, texts = small_png(path.read_bytes(), dpi=DPI)
    except (OSError, VptspError) as error:
        raise VptspError(f"{path.name}: {error}") from None
    with Image.open(io.BytesIO(content)) as image:
        width, height = (round(size * 100 / DPI) for size in image.size)
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return {"src": source, "width": width, "height": height, "words": texts.get("Description", caption)}


def small_png(content: bytes, *, dpi: float | None = None, width: int | None = None) -> tuple[bytes, dict[str, str]]:
    """A PNG in at most 256 colours and the texts that it holds; ``dpi`` or a largest ``width`` (pixels) shrinks it.

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


def _shrink(output: Any) -> None:
    """Palettise a picture among a cell's outputs; one that is no PNG stays."""
    content = output.get("data", {}).get("image/png")
    if not content:
        return
    try:
        smaller = small_png(base64.b64decode(content), width=WIDTH)[0]
    except (ValueError, VptspError):
        return
    output["data"]["image/png"] = base64.b64encode(smaller).decode()
