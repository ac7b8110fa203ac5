"""Print the measurements of `tests.bench.gpu` as tables: python -m tests.bench.table gpu.json"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Found = Mapping[str, Any]

FORMS = {"eager": "ours, as written", "compiled": "ours, compiled"}  # other forms keep their names
STEP_HEAD = ("preset", "form", "ms per step", "quartiles", "images/s", "times eager", "peak MB", "of product's rate")


def markdown(document: Found) -> str:
    """Return tables of all measurements, and of those that are missing."""
    machine, parts = document["machine"], document["parts"]
    versions = machine["versions"]
    what = "A rehearsal with small sizes on" if machine["device"].startswith("cpu") else "Measured on"
    lines = [f"{what} {machine['device']}, torch {versions['torch']}, Python {versions['python']}, with "
             "`python -m tests.bench.gpu`.", ""]  # fmt: skip
    steps = {name.removeprefix("step "): found for name, found in parts.items() if name.startswith("step ")}
    if steps:
        lines += table(STEP_HEAD, [row for name, found in steps.items() for row in step_rows(name, found)]) + [""]
    rest = {"epoch": epoch, "train": train, "evaluation": evaluation, "deterministic": deterministic}
    rows = [words(parts[name]) for name, words in rest.items() if name in parts]
    rows += [(name, f"not measured: {reason}") for name, reason in document["missing"].items()]
    return "\n".join(lines + (table(("what", "measured"), rows) if rows else []))


def number(value: float) -> str:
    """Format with three digits, a large number with all its digits."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return the lines of a markdown table."""
    return ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)]


def step_rows(name: str, found: Found) -> list[tuple[str, ...]]:
    """Return one row per form of a preset's step."""
    rows = []
    for form, cost in found["forms"].items():
        memory = "-" if cost["memory_MB"] is None else f"{cost['memory_MB']:,.0f}"
        rows.append((
            name, FORMS.get(form, form), number(cost["ms"]), f"{number(cost['ms 25 %'])} to {number(cost['ms 75 %'])}",
            number(cost["images/s"]), f"{cost['ratio']:.2f}", memory,
            f"{100 * found['GFLOP'] / cost['ms'] / found['product TFLOP/s']:.0f} %",
        ))  # fmt: skip
    return rows


def epoch(found: Found) -> tuple[str, str]:
    """Describe an epoch and its steps."""
    training = found["epoch s"] - found["evaluation s"]
    once = f"; compiling once: {found['compile s']:.0f} s" if "compile s" in found else ""
    said = (f"training {training:.1f} s, {training / found['steps s']:.2f} times its {found['steps']} steps "
            f"({found['images/s']:,.0f} images/s); evaluation {found['evaluation s']:.1f} s{once}")  # fmt: skip
    return f"an epoch from cached images ({found['dataset']})", said


def train(found: Found) -> tuple[str, str]:
    """Describe a whole run."""
    metrics, memory = found["metrics"], found["memory_MB"]
    peak = f", peak {memory:,.0f} MB" if memory else ""
    said = f"R@1 {100 * metrics['R@1']:.1f}, MAP@R {100 * metrics['MAP@R']:.1f} in {found['run s']:.0f} s{peak}"
    epochs = "1 epoch" if found["epochs"] == 1 else f"{found['epochs']} epochs"
    return f"{epochs} of {found['dataset']}, {found['backbone']}", said


def evaluation(found: Found) -> tuple[str, str]:
    """Describe the cost of retrieval metrics."""
    said = (f"ours {number(found['metrics_s'])} s and {found['metrics_mib']:,.0f} MiB, {found['ratio']:.2f} times "
            f"a bare search ({number(found['bare_s'])} s)")  # fmt: skip
    if "released_s" in found:
        said += f"; released {number(found['released_s'])} s, {found['released_ratio']:.1f} times ours"
    return f"metrics of {found['items']:,} x {found['dim']}, k = {found['k']:,}", said


def deterministic(found: Found) -> tuple[str, str]:
    """Describe the cost of deterministic algorithms."""
    said = []
    for form, plain in found["forms"].items():
        if fixed := found["forms"].get(f"{form}, deterministic"):
            memory = f", {fixed['memory_MB']:,.0f} for {plain['memory_MB']:,.0f} MB" if form == "eager" else ""
            said.append(f"{FORMS[form]}: {fixed['ms'] / plain['ms']:.2f} times the step ({number(fixed['ms'])} for "
                        f"{number(plain['ms'])} ms{memory})")  # fmt: skip
    return "`deterministic`, cub200-vits16", "; ".join(said)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m tests.bench.table FILE.json")
    print(markdown(json.loads(Path(sys.argv[1]).read_text())))
