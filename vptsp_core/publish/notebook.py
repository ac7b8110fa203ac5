"""An executed notebook as one HTML file in the style of the results page: no script, no network, code folded away."""

from __future__ import annotations

import base64
import re
from html import escape
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.publish.html import document, small_png
from vptsp_core.publish.parameters import read

WIDTH = 1800  # pixels of the widest picture, about twice what it is shown at

# nbconvert's bare template, without what needs a script (widgets, JavaScript).
_TEMPLATE = """{%- extends 'index.html.j2' -%}
{%- block input_group -%}
<details><summary>code</summary>{{ super() }}</details>
{%- endblock input_group -%}
{%- block data_javascript -%}{%- endblock -%}
{%- block data_widget_view -%}{%- endblock -%}
{%- block footer -%}{%- endblock -%}"""


def notebook_html(path: Path, name: str) -> str:
    """The whole page of an executed notebook; ``name`` is the notebook's, and ../index.html the results page.

    Pictures are palettised. The seconds that the notebook took, as papermill noted them, stand in a meta element,
    where the results page finds them.
    """
    from nbconvert import HTMLExporter

    notebook = read(path)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            _shrink(output)
    exporter = HTMLExporter(
        template_name="basic", raw_template=_TEMPLATE, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body = exporter.from_notebook_node(notebook, resources={"metadata": {"name": name}})[0]
    seconds = notebook.metadata.get("papermill", {}).get("duration")
    meta = f'<meta name="seconds" content="{seconds:.1f}">\n' if isinstance(seconds, int | float) else ""
    heading = re.search(r"<h1[^>]*>(.*?)(?:<a |</h1>)", body, re.DOTALL)
    title = re.sub(r"<[^>]+>", "", heading[1]).strip() if heading else name
    back = f'<p class="links"><a href="../index.html#{escape(name)}">All results</a></p>'
    return document(title, f"{back}\n{body}\n{back}", meta)


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
