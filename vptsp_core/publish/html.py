"""Parts of static pages: the templates in assets/, Markdown, figures, executed notebooks. No script, no network."""

from __future__ import annotations

import base64
import functools
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from vptsp_core.errors import VptspError
from vptsp_core.publish.parameters import read, with_tag
from vptsp_core.system.bars import duration
from vptsp_core.system.places import ASSETS

TEMPLATES = Environment(
    loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)

# nbconvert's basic template, without outputs that are widgets or JavaScript, because the pages run no scripts.
_NOTEBOOK = """{%- extends 'index.html.j2' -%}
{%- block input_group -%}
<details><summary>code</summary>{{ super() }}</details>
{%- endblock input_group -%}
{%- block data_javascript -%}{%- endblock -%}
{%- block data_widget_view -%}{%- endblock -%}
{%- block footer -%}{%- endblock -%}"""


def markdown(text: str) -> str:
    """Return Markdown as HTML. HTML in the Markdown is shown as text."""
    from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

    rendered: str = MarkdownWithMath(renderer=IPythonRenderer(escape=True)).render(text)
    return rendered


TEMPLATES.filters.update(markdown=markdown, duration=duration)


@functools.cache
def _exporter() -> Any:
    """Return nbconvert's exporter. It compiles its templates once for all notebooks."""
    from nbconvert import HTMLExporter

    return HTMLExporter(
        template_name="basic", raw_template=_NOTEBOOK, exclude_input_prompt=True, exclude_output_prompt=True
    )


def notebook_html(path: Path, name: str) -> str:
    """Return the page of the executed notebook ``name``, with folded code."""
    notebook = read(path)
    notebook.metadata.pop("widgets", None)
    body = _exporter().from_notebook_node(notebook, resources={"metadata": {"name": name}})[0]
    return TEMPLATES.get_template("notebook.html").render(title=opening(notebook, name)[0], name=name, body=body)


def opening(notebook: Any, name: str) -> tuple[str, str, str, str]:
    """Return the title, the claim, what can be compared, and the rest of the Markdown before a notebook's code.

    The first cell is the title and the claim. The cell tagged "compared" says what can be compared.
    """
    code = [cell.cell_type == "code" for cell in notebook.cells]
    cells = notebook.cells[: code.index(True)] if True in code else notebook.cells
    title, _, claim = cells[0].source.partition("\n") if cells else ("", "", "")
    compared = with_tag(notebook, "compared")
    more = [cell.source for cell in cells[1:] if cell not in compared]
    return title.lstrip("# ") or name, claim, "\n\n".join(cell.source for cell in compared), "\n\n".join(more)


def figure(path: Path, caption: str) -> dict[str, Any]:
    """Return a figure for the page: ``src`` (its file as a data URI), ``width``, ``height`` (CSS pixels) and ``words``.

    ``words`` is the description in the file, or ``caption``. Raises VptspError if the file is not a readable picture.
    """
    try:
        small = io.BytesIO()
        with Image.open(path) as image:
            image.save(small, "WEBP", lossless=True)  # the same pixels in three quarters of the bytes
            words = image.info.get("Description", caption)
            width, height = (round(size * 100 / image.info.get("dpi", (200, 200))[0]) for size in image.size)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's errors for such a file
        raise VptspError(f"{path.name} is not a readable picture ({error}); run its notebook again") from None
    source = f"data:image/webp;base64,{base64.b64encode(small.getvalue()).decode()}"
    return {"src": source, "width": width, "height": height, "words": words}
