"""Check that a room of vptsp_core imports only from the rooms below it."""

import ast

from vptsp_core.system.places import PACKAGE

FLOORS = ("errors", "method system", "data", "runs", "paper", "figures", "publish", "deploy", "__main__")
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def test_a_room_imports_only_from_rooms_below_it():
    """Check all modules except `__init__`, which imports the public names."""
    upward = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for node in ast.walk(ast.parse(path.read_text("utf-8"))) if module != "__init__" else ():
            assert not isinstance(node, ast.ImportFrom) or node.level == 0, f"{module}: a relative import"
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            if names == ["vptsp_core"]:
                names = [f"vptsp_core.{alias.name}" for alias in node.names]
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in [each.removeprefix("vptsp_core.") for each in names if each.startswith("vptsp_core.")]:
                room, own = name.split(".")[0], module.split(".")[0]
                if room != own and FLOOR[room] >= FLOOR[own]:
                    upward.add((module, name))
    assert not upward
