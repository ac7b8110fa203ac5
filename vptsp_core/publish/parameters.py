"""The notebook sources and their parameters.

papermill only warns of a parameter that a notebook does not have, and runs the notebook with its defaults. So names and
types are checked here: by the runner before anything runs, and by each notebook itself.
"""

import ast
import contextlib
import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.system.places import CHECKOUT

FOLDER = CHECKOUT / "notebooks"
# The notebooks of the profile tiny and of its page.
TINY = (
    "table1_peft_methods", "table4_components", "table5_proxy_source", "table7_integration", "fig3_ablations",
    "fig4_embedding_space", "what_holds", "why_behind",
)  # fmt: skip
# In the profile tiny these notebooks show photographs of CUB-200, which must not be passed on. So these notebooks run
# only if --only names them.
WITH_PHOTOGRAPHS = ("tour", "explore")

# The types of the parameters that the runner sets.
KINDS: dict[str, Any] = {
    "profile": str, "results": str, "data": str | None, "seeds": list, "workers": int | str | None, "changes": dict,
    "panels": list,
}  # fmt: skip


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


def declared(path: Path) -> dict[str, Any]:
    """Return the parameters of a notebook with their defaults; a default that is not a literal is None."""
    cells = with_tag(read(path), "parameters")
    return {name: value for cell in cells for name, value in _assigned(cell.source).items()}


def taken_parameters(path: Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values whose names are parameters of this notebook.

    Raises VptspError if the notebook has no parameter `profile` or `results`.
    """
    parameters = declared(path)
    for name in ("profile", "results"):
        if name not in parameters:
            known = ", ".join(parameters) or "none"
            raise VptspError(f"{path.name}: the cell tagged 'parameters' has no {name!r}; its parameters: {known}")
    return {name: value for name, value in values.items() if name in parameters}


def check_given() -> None:
    """In a notebook, check the parameters that papermill gave.

    Raises ConfigError if the notebook does not have such a parameter, or has it with another type.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    cells: list[str] = [] if shell is None else shell.user_ns["In"]
    injected = [at for at, cell in enumerate(cells) if "# Parameters" in cell.splitlines()]  # papermill's first line
    if shell is None or not injected:
        return
    own: dict[str, Any] = {}
    for cell in cells[: injected[0]]:
        own |= _assigned(cell)
    if not own:
        raise ConfigError("no cell above the one with the given parameters has a line NAME = VALUE; declare them there")
    for name in _assigned(cells[injected[-1]]):
        if name not in own:
            near = difflib.get_close_matches(name, own, n=3) or own
            raise ConfigError(f"unknown parameter {name!r}; did you mean {', '.join(near)}?")
        kind = KINDS.get(name, object if own[name] is None else type(own[name]))
        value = shell.user_ns[name]
        if not isinstance(value, kind):
            raise ConfigError(f"parameter {name!r} must be of type {getattr(kind, '__name__', kind)}, not {value!r}")


def check_profile(notebook: str, profile: str) -> None:
    """Raise ConfigError if the notebook has no rows for the profile tiny, which has only CUB-200 and one backbone."""
    if profile == "tiny" and notebook not in (*TINY, *WITH_PHOTOGRAPHS):
        raise ConfigError(f"{notebook} does not have the profile tiny; choose demo, smoke or paper")


def of_notebook(name: str) -> Any:
    """Return the parameter ``name`` of the notebook that runs here, or None if there is none."""
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    return None if shell is None else shell.user_ns.get(name)


def again(only: str, seeds: Sequence[int] | None = None) -> str:
    """Return what follows ``--only`` in the command that repeats the notebook that runs here, with its changes."""
    panels = of_notebook("panels") or list(SWEEPS)
    if set(panels) != set(SWEEPS):
        only = ",".join(f"{only}{panel}" for panel in panels)
    words = [] if seeds in (None, [0]) else ["--seeds", ",".join(map(str, seeds))]
    for key, value in (of_notebook("changes") or {}).items():
        words += ["--set", f"{key}={value}"]
    return shlex.join([only, *words])


def _assigned(cell: str) -> dict[str, Any]:
    """Return {name: value} of a cell's lines NAME = VALUE. A value that is not a literal is returned as None."""
    assigned: dict[str, Any] = {}
    with contextlib.suppress(SyntaxError):  # a cell of magics assigns nothing
        for statement in ast.parse(cell).body:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    assigned[name] = None
                    with contextlib.suppress(ValueError):
                        assigned[name] = ast.literal_eval(value)
    return assigned
