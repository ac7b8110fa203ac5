"""What was measured, as tables to be read in a terminal; ``--json`` has the same figures unrounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

SEARCHES = {"bare": "bare exact search", "metrics": "our metrics", "released": "released metrics"}
OF_EACH = {"s": "seconds", "mib": "MiB more", "peak_mib": "MiB in all"}


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table whose first column stands to the left and the others to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return [
        "  ".join(cell.rjust(width) if at else cell.ljust(width) for at, (cell, width) in enumerate(zip(row, widths)))
        for row in rows
    ]


def listing(found: Mapping[str, Any]) -> str:
    """A figure a line, what lies in a table of its own below its name."""
    rows = [(name, number(value)) for name, value in _flat(found)]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in rows)


def searches(found: Mapping[str, Any]) -> str:
    """What `benchmark_metrics` found: a row for each search, and below it what they ran on."""
    there = [key for key in SEARCHES if f"{key}_s" in found]
    ratio = {"bare": 1 / found["ratio"], "metrics": 1.0, "released": found.get("released_ratio")}
    rows = [["", *OF_EACH.values(), "times ours"]]
    for key in there:
        rows.append([SEARCHES[key], *(number(found[f"{key}_{of}"]) for of in OF_EACH), number(ratio[key])])
    shown = {f"{key}_{of}" for key in SEARCHES for of in OF_EACH} | {"released_ratio", "ratio", "cpu_ratio"}
    rest = {key: value for key, value in found.items() if key not in shown}
    ratios = f"our metrics take {found['ratio']:.2f} times the bare search, {found['cpu_ratio']:.2f} by processor time"
    return "\n".join([*columns(rows), ratios, listing(rest)])


def number(value: Any) -> str:
    """Three digits and more of a number, a list's extremes, anything else as it is."""
    if isinstance(value, bool) or not isinstance(value, float | int | list):
        return str(value)
    if isinstance(value, list):
        return f"{number(min(value))} to {number(max(value))}" if value else "-"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def _flat(found: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in found.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}, ")
        else:
            yield f"{above}{name}", value
