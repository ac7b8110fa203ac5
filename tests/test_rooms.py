"""Check that a room of vptsp_core imports only from the rooms below it, and that no modules import each other."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

from vptsp_core.system.places import PACKAGE

FLOORS = ("errors", "method system", "data", "runs", "paper", "figures", "publish", "deploy", "__main__")
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}
# `__init__` is left out: it imports the public names.
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
           for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"}  # fmt: skip


def imported(module: str) -> Iterator[str]:
    """Yield the modules of vptsp_core that a module imports, also inside functions and for types only."""
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            if node.module == "vptsp_core" and module != "vptsp_core.__main__":  # other names are in its `__init__`
                assert set(names) <= set(MODULES), f"{module}: the package's `__init__` is above all rooms"
            names = [name if name in MODULES else node.module or "" for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            if module != "vptsp_core.__main__":
                assert "vptsp_core" not in names, f"{module}: the package's `__init__` is above all rooms"
        else:
            continue
        yield from (name for name in names if name in MODULES)


def test_a_room_imports_only_from_rooms_below_it():
    upward = set()
    for module in MODULES:
        own = module.split(".")[1]
        for name in imported(module):
            room = name.split(".")[1]
            if room != own and FLOOR[room] >= FLOOR[own]:
                upward.add((module, name))
    assert not upward


def test_no_modules_import_each_other():
    graph = {module: set(imported(module)) for module in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)  # raises CycleError for a circle
