"""The rooms of vptsp_core: a room imports only from the rooms below it."""

import ast
import subprocess
import sys

from vptsp_core.system.places import PACKAGE

FLOORS = ("errors", "method system", "data", "runs", "paper", "figures", "publish", "deploy", "__main__")
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms.split()}


def test_a_room_imports_only_from_rooms_below_it():
    """Outside of the rooms is only `__init__`, which names what is public."""
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


def test_the_old_name_of_significance_stays_and_costs_nothing():
    code = "import sys, vptsp_core.chance as old; print(hasattr(old, '__file__'), 'pandas' in sys.modules); "
    code += "from vptsp_core.chance import against; print(against is old.compare_paired, against.__module__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True", "vptsp_core.runs.significance"]
