"""The notebook sources: which there are, what parameters they take, and the rules of the house they keep.

papermill only warns of a parameter that a notebook does not have, and runs it with its defaults; so names and
types are checked here, before anything runs.
"""

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.system.places import CHECKOUT

FOLDER = CHECKOUT / "notebooks"
MAX_CODE_CELLS = 15
# The profile tiny has these notebooks; its page has no others. Those that show photographs of CUB-200, which may not be
# passed on, are executed only where --only names them.
TINY = (
    "table1_peft_methods", "table4_components", "table5_proxy_source", "table7_integration", "fig3_ablations",
    "fig4_embedding_space",
)  # fmt: skip
WITH_PHOTOGRAPHS = ("tour", "explore")

# What a run sets: what the notebook's own default has to be, and whether the notebook must have it.
_PARAMETERS: dict[str, tuple[str, Callable[[Any], bool], bool]] = {
    "profile": ("a str", lambda value: isinstance(value, str), True),
    "results": ("a str", lambda value: isinstance(value, str), True),
    "data": ("a str or None", lambda value: isinstance(value, str | None), False),
    "seeds": ("a list of int or None", lambda value: value is None or _all_int(value), False),
    "workers": ("an int, a str or None", lambda value: value is None or type(value) in (int, str), False),
    "changes": ("a dict of keys to values", lambda value: isinstance(value, dict) and _all_str(value), False),
}
_INJECTED = r"^# Parameters$"  # the line by which papermill begins the cell that it puts after the parameters
_OF_TRAINING = ("workers", "changes")  # what a notebook that trains must have besides


def _all_int(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _all_str(values: Iterable[Any]) -> bool:
    return all(isinstance(item, str) for item in values)


def discover(only: Sequence[str] = (), folder: Path = FOLDER, profile: str = "demo") -> list[Path]:
    """Notebooks in name order. An entry of `only` picks those that begin with it ("fig3": fig3_ablations; "table1":
    not table10; a leading "01_" may be left out).

    Raises:
        VptspError: no notebooks, or an entry that picks none that the profile has, with the known ones.
    """
    notebooks = sorted(folder.glob("*.ipynb"))
    if not notebooks:
        raise VptspError(f"no notebooks in {folder}; run from a checkout of the project")
    if profile == "tiny":
        named = (*TINY, *WITH_PHOTOGRAPHS) if only else TINY
        notebooks = [path for path in notebooks if path.stem in named]
    picked = set() if only else set(notebooks)
    for entry in only:
        pattern = r"(\d+[_-])?" + re.escape(entry) + (r"(?!\d)" if entry[-1:].isdigit() else "")
        found = [path for path in notebooks if entry and re.match(pattern, path.stem)]
        if not found:
            known = ", ".join(path.stem for path in notebooks)
            of = " of the profile tiny" if profile == "tiny" else ""
            raise VptspError(f"--only: no notebook{of} begins with {entry!r}; known: {known}")
        picked.update(found)
    return sorted(picked)


def declared_parameters(path: Path) -> dict[str, Any]:
    """Names and defaults in the one cell tagged `parameters`, which holds assignments of literals only.

    Raises:
        VptspError: no such cell, several, or another thing in it.
    """
    cells = [cell for cell in read(path).cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise VptspError(f"{path.name}: {len(cells)} cells are tagged 'parameters'; exactly one must be")
    try:
        return _assigned(cells[0].source)
    except (SyntaxError, ValueError) as error:
        why = " ".join(str(error).split())
        raise VptspError(f"{path.name}: write its parameters as name = literal, one a line: {why}") from None


def _assigned(source: str) -> dict[str, Any]:
    assigned = {}
    for statement in ast.parse(source).body:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                assigned[name] = ast.literal_eval(value)
            case _:
                raise ValueError(ast.unparse(statement))
    return assigned


def check_parameters(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """The part of `values` that this notebook takes. `profile` and `results` must be declared, the others may be.

    Raises:
        VptspError: one that it must have is missing, or one has another type.
    """
    declared = declared_parameters(path)
    known = ", ".join(declared) or "none"
    for name in values:
        kind, fits, required = _PARAMETERS[name]
        if name not in declared and required:
            raise VptspError(f"{path.name}: its parameters cell has no {name!r}; it has: {known}")
        if name in declared and not fits(declared[name]):
            default = repr(declared[name])
            raise VptspError(f"{path.name}: parameter {name!r} must default to {kind}, not {default}")
    return {name: value for name, value in values.items() if name in declared}


def used_parameters(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """`check_parameters`, without those that the notebook declares and its code never reads."""
    used = _names_read(path) | {name for name, (_, _, required) in _PARAMETERS.items() if required}
    return {name: value for name, value in check_parameters(path, values).items() if name in used}


def _names_read(path: Path) -> set[str]:
    """The names that a notebook's code reads: a parameter may be declared and have no use."""
    code = [cell.source for cell in read(path).cells if cell.cell_type == "code"]
    names: set[str] = set()
    for source in code:
        try:
            found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
            names |= {node.id for node in found if isinstance(node.ctx, ast.Load)}
        except SyntaxError:  # a cell with a magic: whatever is written there counts
            names |= set(re.findall(r"\w+", source))
    return names


def check_given() -> None:
    """For a notebook's first cell after its parameters: refuse what papermill put in their place, where the notebook
    has no parameter of that name, or one of another type. Without papermill there is nothing to refuse.

    Raises:
        ConfigError: naming the parameter.
    """
    from IPython.core.getipython import get_ipython

    shell = get_ipython()
    if shell is None:
        return
    cells: list[str] = shell.user_ns["In"][1:]
    at = max((i for i, cell in enumerate(cells) if re.search(_INJECTED, cell, re.MULTILINE)), default=None)
    if at is None:
        return
    given = _in_kernel(cells[at], shell.user_ns)
    before = [names for cell in cells[:at] if (names := _in_kernel(cell, {}))]  # the kernel has what replaced these
    if before:
        refuse_unfit(given, before[-1])


def _in_kernel(source: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The names that a cell assigns: a literal as it is written, anything else as ``values``, the kernel's, have it, or
    None. Magics and other statements beside them are left aside.

    Raises:
        ConfigError: the cell cannot be read.
    """
    from IPython.core.inputtransformer2 import TransformerManager

    try:
        statements = ast.parse(TransformerManager().transform_cell(source)).body
    except SyntaxError as error:
        raise ConfigError(f"the cell of parameters cannot be read ({error.msg}); write name = value") from None
    assigned: dict[str, Any] = {}
    for statement in statements:
        match statement:
            case (
                ast.Assign(targets=[ast.Name(id=name)], value=value)
                | ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value)
            ):
                try:
                    assigned[name] = ast.literal_eval(value)
                except (ValueError, TypeError):
                    assigned[name] = values.get(name)
    return assigned


def refuse_unfit(given: dict[str, Any], declared: dict[str, Any]) -> None:
    """Raises ConfigError where a parameter is given that is not declared, or is of another type than its default.

    >>> refuse_unfit({"seeds": [0, 1], "steps": 3}, {"seeds": [0], "steps": 5, "data": None})
    """
    for name, value in given.items():
        if name not in declared:
            near = difflib.get_close_matches(name, declared, n=3) or declared
            raise ConfigError(f"unknown parameter {name!r}; did you mean {', '.join(near)}?")
        default = declared[name]
        if name in _PARAMETERS:
            kind, fits, _ = _PARAMETERS[name]
            fit = fits(value)
        else:
            kind, fit = f"of type {type(default).__name__}", default is None or type(value) is type(default)
        if not fit:
            raise ConfigError(f"parameter {name!r} must be {kind}, not {value!r}")


def check_sources(folder: Path = FOLDER) -> list[str]:
    """What is wrong with the notebook sources, a line each. Empty when they keep the rules: no outputs, no
    execution counts, no class definitions, `check_given` called, not too many code cells, parameters that a run can
    fill, and where it trains, those that say how and what is trained.
    """
    wrong = []
    for path in sorted(folder.glob("*.ipynb")):
        code = [cell for cell in read(path).cells if cell.cell_type == "code"]
        if any(cell.get("outputs") or cell.get("execution_count") for cell in code):
            wrong.append(f"{path.name}: holds outputs or execution counts")
        if len(code) > MAX_CODE_CELLS:
            wrong.append(f"{path.name}: {len(code)} code cells, more than {MAX_CODE_CELLS}")
        if any(re.search(r"^\s*class\s+\w", cell.source, re.MULTILINE) for cell in code):
            wrong.append(f"{path.name}: defines a class")
        if not any(re.search(r"^check_given\(\)$", cell.source, re.MULTILINE) for cell in code[:2]):
            wrong.append(f"{path.name}: does not call check_given() after its parameters")
        try:
            taken = check_parameters(path, dict.fromkeys(_PARAMETERS))
            trains = any(re.search(r"\b(many|carry_out)\(", cell.source) for cell in code)
            missing = [name for name in _OF_TRAINING if trains and name not in taken]
            wrong += [f"{path.name}: trains, and its parameters cell has no {name!r}" for name in missing]
        except VptspError as error:
            wrong.append(str(error))
    return wrong


def read(path: Path) -> Any:
    """A notebook in format 4.

    Raises:
        VptspError: unreadable.
    """
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # nbformat, and the checker of schemas below it, raise what they meet
        raise VptspError(f"{path}: not a readable notebook ({type(error).__name__})") from None
