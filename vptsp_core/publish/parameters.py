"""The notebook sources and their parameters.

papermill only warns of a parameter that a notebook does not have, and runs it with its defaults. So the names and the
types of what is given are checked here: by the runner before anything runs, and by each notebook itself.
"""

import ast
import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.system.places import CHECKOUT

FOLDER = CHECKOUT / "notebooks"
# The profile tiny has these notebooks; its page has no others. Those that show photographs of CUB-200, which may not be
# passed on, are executed only where --only names them.
TINY = (
    "table1_peft_methods", "table4_components", "table5_proxy_source", "table7_integration", "fig3_ablations",
    "fig4_embedding_space",
)  # fmt: skip
WITH_PHOTOGRAPHS = ("tour", "explore")

# The parameters that the runner gives: the type of each.
KINDS: dict[str, Any] = {
    "profile": str, "results": str, "data": str | None, "seeds": list, "workers": int | str | None, "changes": dict,
    "panels": list,
}  # fmt: skip


def discover(only: Sequence[str] = (), folder: Path = FOLDER, profile: str = "demo") -> list[Path]:
    """Notebooks in name order, the tour first: it shows a picture soonest. An entry of `only` picks those that begin
    with it ("fig3": fig3_ablations; "table1": not table10). Raises VptspError where there are none to pick.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise VptspError(f"no notebooks in {folder}; run from a checkout of the project")
    if profile == "tiny":
        named = (*TINY, *WITH_PHOTOGRAPHS) if only else TINY
        notebooks = [path for path in notebooks if path.stem in named]
    picked = set() if only else set(notebooks)
    for entry in only:
        pattern = re.escape(entry) + (r"(?!\d)" if entry[-1:].isdigit() else "")
        chosen = [path for path in notebooks if entry and re.match(pattern, path.stem)]
        if not chosen:
            known = ", ".join(path.stem for path in notebooks)
            of = " of the profile tiny" if profile == "tiny" else ""
            raise VptspError(f"--only: no notebook{of} begins with {entry!r}; known: {known}")
        picked.update(chosen)
    return sorted(picked, key=lambda path: (path.stem != "tour", path))


def panels_of(only: Sequence[str]) -> tuple[list[str], list[str]]:
    """Entries of `only` for `discover`, and the panels of figure 3 that they name ("fig3d", "fig3lambda"); no panels
    mean all of them.
    """
    named = {entry: entry.removeprefix("fig3") for entry in only if entry.startswith("fig3")}
    panels = {entry: panel for entry, panel in named.items() if panel in SWEEPS}
    entries = ["fig3" if entry in panels else entry for entry in only]
    return entries, list(panels.values()) if named.keys() == panels.keys() else []


def read(path: Path) -> Any:
    """A notebook in format 4. Raises VptspError where it is unreadable."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat, and the checker of schemas below it, raise many types
        raise VptspError(f"{path}: not a readable notebook ({type(error).__name__})") from None


def taken_parameters(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `values` that this notebook has as parameters. Raises VptspError where it has no `profile` or no
    `results`.
    """
    tagged = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    declared = _assigned(tagged[0].source) if tagged else {}
    for name in ("profile", "results"):
        if name not in declared:
            known = ", ".join(declared) or "none"
            raise VptspError(f"{path.name}: the cell tagged 'parameters' has no {name!r}; its parameters: {known}")
    return {name: value for name, value in values.items() if name in declared}


def check_given() -> None:
    """In a notebook, after its parameters: raises ConfigError for one that papermill gave and the notebook does not
    have, or has with another type.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    cells: list[str] = [] if shell is None else shell.user_ns["In"]
    injected = [at for at, cell in enumerate(cells) if "# Parameters" in cell.splitlines()]  # papermill's first line
    if shell is None or not injected:
        return
    declared: dict[str, Any] = {}
    for cell in cells[: injected[0]]:
        declared |= _assigned(cell)
    if not declared:
        raise ConfigError("no cell above that of the given parameters says NAME = VALUE; declare them so")
    for name in _assigned(cells[injected[-1]]):
        check_parameter(name, shell.user_ns[name], declared)


def _assigned(cell: str) -> dict[str, Any]:
    """What the lines NAME = VALUE of a cell assign: the value where it is a literal, else None."""
    assigned: dict[str, Any] = {}
    with contextlib.suppress(SyntaxError):  # a cell of magics assigns nothing
        for statement in ast.parse(cell).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    assigned[name] = None
                    with contextlib.suppress(ValueError):
                        assigned[name] = ast.literal_eval(value)
    return assigned


def check_parameter(name: str, value: Any, declared: Mapping[str, Any]) -> None:
    """Raises ConfigError for a parameter that is not declared, or whose type is not that of its default.

    >>> check_parameter("seeds", [0, 1], {"seeds": [0], "data": None})
    """
    if name not in declared:
        near = difflib.get_close_matches(name, declared, n=3) or declared
        raise ConfigError(f"unknown parameter {name!r}; did you mean {', '.join(near)}?")
    kind = KINDS.get(name, object if declared[name] is None else type(declared[name]))
    if not isinstance(value, kind):
        raise ConfigError(f"parameter {name!r} must be of type {getattr(kind, '__name__', kind)}, not {value!r}")
