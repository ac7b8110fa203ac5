"""Print the measurements of `tests.bench.gpu` as tables: python -m tests.bench.table gpu.json"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]

STEP_HEAD = ("preset", "form", "ms per step", "quartiles", "images/s", "times eager", "peak MB", "of product's rate")


def markdown(document: Found) -> str:
    """Return tables of all measurements, and of those that are missing."""
    machine, parts = document["machine"], document["parts"]
    versions = machine["versions"]
    what = "A rehearsal with small sizes on" if machine["device"].endswith(("thread", "threads")) else "Measured on"
    lines = [f"{what} {machine['device']}, torch {versions['torch']}, Python {versions['python']}, with "
             "`python -m tests.bench.gpu`.", ""]  # fmt: skip
    steps, others = [], []
    for name, found in parts.items():
        if "forms" in found:
            steps += step_rows(name.removeprefix("step "), found)
        else:
            facts = {**found, **found.get("metrics", {})}
            single = {key: value for key, value in facts.items() if isinstance(value, str | int | float)}
            others.append((name, ", ".join(f"{key}: {shown(value)}" for key, value in single.items())))
    others += [(name, f"not measured: {reason}") for name, reason in document["missing"].items()]
    return "\n".join([*lines, *table(STEP_HEAD, steps), "", *table(("what", "measured"), others)])


def shown(value: Any) -> str:
    """Format a number with three digits, a large one with all its digits."""
    if isinstance(value, str | bool):
        return str(value)
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


def step_rows(name: str, found: Found) -> list[tuple[str, ...]]:
    """Return one row per form of a preset's step."""
    rows = []
    for form, cost in found["forms"].items():
        memory = "-" if cost["memory_MB"] is None else f"{cost['memory_MB']:,.0f}"
        rate = found["GFLOP"] / cost["ms"] / found["product TFLOP/s"] if "GFLOP" in found else None
        rows.append((
            name, form, shown(cost["ms"]), f"{shown(cost['ms 25 %'])} to {shown(cost['ms 75 %'])}",
            shown(cost["images/s"]), f"{cost['ratio']:.2f}", memory, "-" if rate is None else f"{100 * rate:.0f} %",
        ))  # fmt: skip
    return rows


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.bench.table FILE.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
