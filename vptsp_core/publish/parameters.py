"""The notebook sources and their parameters."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.system.places import CHECKOUT

FOLDER = CHECKOUT / "notebooks"
# The notebooks of the profile tiny and of its page.
TINY = (
    "table1_peft_methods", "table4_components", "table5_proxy_source", "table7_integration", "fig3_ablations",
    "fig4_embedding_space",
)  # fmt: skip
# In the profile tiny these show photographs of CUB-200, which must not be passed on. They run only if --only names
# them.
WITH_PHOTOGRAPHS = ("tour", "explore")


def discover(only: Sequence[str] = (), folder: Path = FOLDER, profile: str = "demo") -> list[Path]:
    """Return the notebooks in the order of their names, the tour first, because it shows a picture soonest.

    An entry of ``only`` selects the notebooks whose names begin with it: "fig3" selects fig3_ablations, and "table1"
    does not select table10. Raises VptspError if an entry selects none, or the folder has none.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise VptspError(f"no notebooks in {folder}; run from a checkout of the project")
    if profile == "tiny":
        named = (*TINY, *WITH_PHOTOGRAPHS) if only else TINY
        notebooks = [path for path in notebooks if path.stem in named]
    selected = set() if only else set(notebooks)
    for entry in only:
        pattern = re.escape(entry) + (r"(?!\d)" if entry[-1:].isdigit() else "")
        matching = [path for path in notebooks if entry and re.match(pattern, path.stem)]
        if not matching:
            known = ", ".join(path.stem for path in notebooks)
            of = " of the profile tiny" if profile == "tiny" else ""
            raise VptspError(f"--only: no notebook{of} begins with {entry!r}; known: {known}")
        selected.update(matching)
    return sorted(selected, key=lambda path: (path.stem != "tour", path))


def panels_of(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the entries of ``only`` for `discover`, and the panels of figure 3 that they name, such as "d" in "fig3d".

    No panels mean all of them.
    """
    named = {entry: entry.removeprefix("fig3") for entry in only if entry.startswith("fig3")}
    panels = {entry: panel for entry, panel in named.items() if panel in SWEEPS}
    entries = ["fig3" if entry in panels else entry for entry in only]
    return entries, list(panels.values()) if named.keys() == panels.keys() else []


def read(path: Path) -> Any:
    """Read a notebook as format 4. Raises VptspError if it is unreadable."""
    import nbformat  # slow to import, and not needed inside a notebook

    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat and the schema checker below it raise many types
        raise VptspError(f"{path}: not a readable notebook ({type(error).__name__})") from None


def with_tag(notebook: Any, tag: str) -> list[Any]:
    """Return the notebook's cells that have this tag."""
    return [cell for cell in notebook.cells if tag in cell.metadata.get("tags", [])]


def taken_parameters(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values whose names are parameters of this notebook.

    Raises VptspError if the notebook has no parameter `profile` or `results`.
    """
    cells = with_tag(read(path), "parameters")
    declared = [name for cell in cells for name in re.findall(r"^(\w+) *=(?!=)", cell.source, re.MULTILINE)]
    for name in ("profile", "results"):
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise VptspError(f"{path.name}: the cell tagged 'parameters' has no {name!r}; its parameters: {known}")
    return {name: value for name, value in values.items() if name in declared}


def from_root(path: str | Path) -> str:
    """Return the path relative to the repository if it is inside (executed copies show it), otherwise absolute."""
    full = Path(path).resolve()
    return str(full.relative_to(CHECKOUT) if full.is_relative_to(CHECKOUT) else full)
