"""CSV files as HTML tables: the columns below "paper | ours | difference", the numbers with sensible decimals.

Whatever comes from a file is escaped.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from pathlib import Path

from vptsp_core.errors import VptspError

PAPER, OURS, DIFFERENCE, INTERVAL = "paper", "ours", "difference", "±"
WIDE = 12  # columns; what is wider is cut into several tables
_SIDED = re.compile(rf"(.+?), ({PAPER}|{OURS}|{DIFFERENCE}|{INTERVAL}|vs .+)")
_METRIC = re.compile(r"R@|MAP@R|R-precision|Recall|NMI|F1")
_UNIT = re.compile(r"(^|[, (])(M|GB|MB|ms|s|%)($|[, )])")


@dataclass(frozen=True)
class Column:
    """One column of a CSV file: ``group`` and ``side`` of "R@1, paper" are "R@1" and "paper"; others have no side."""

    group: str
    side: str
    cells: list[str]

    @property
    def numeric(self) -> bool:
        """Whether every cell that is not empty is a number."""
        return all(_number(cell) is not None for cell in self.cells if cell)


def read_table(path: Path) -> list[Column]:
    """The columns of a CSV file, cells as they are written there.

    Raises:
        VptspError: it is no table.
    """
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise VptspError(f"{path.name} cannot be read ({error}); run its notebook again") from None
    if not rows or not rows[0]:
        raise VptspError(f"{path.name} is no table: it has no columns; run its notebook again")
    if any(len(row) != len(rows[0]) for row in rows):
        raise VptspError(f"{path.name} is no table: its rows differ in length; run its notebook again")
    return [Column(*_split(name), list(cells)) for name, *cells in zip(*rows)]


def _split(name: str) -> tuple[str, str]:
    """Group and side; with no side the whole name is the group."""
    found = _SIDED.fullmatch(name)
    return (found[1], found[2]) if found else (name, "")


def table_html(columns: Sequence[Column], label: str) -> str:
    """A table that scrolls in its own box, paper | ours | difference below each column's name; the first column names
    the rows. One of more than `WIDE` columns becomes several, cut between groups, rather where the first word changes.
    """
    groups = [list(members) for _, members in groupby(columns[1:], key=lambda column: column.group)]
    parts: list[list[list[Column]]] = [[]]
    for _, alike in groupby(groups, key=lambda group: group[0].group.split(" ")[0]):  # such as one data set's metrics
        together = list(alike)
        for piece in [together] if sum(map(len, together)) <= WIDE else [[group] for group in together]:
            if parts[-1] and sum(map(len, parts[-1] + piece)) > WIDE:
                parts.append([])
            parts[-1] += piece
    box = f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">'
    return "".join(f"{box}{_one_table(columns[0], part)}</div>\n" for part in parts)


def _one_table(index: Column, groups: list[list[Column]]) -> str:
    two = any(column.side for group in groups for column in group)
    name = "" if index.group in ("", "label", "row", "fact") else index.group
    tall = ' rowspan="2"' if two else ""
    top, below = [f'<th scope="col"{tall}>{escape(name)}</th>'], []
    for group in groups:
        if two and group[0].side:
            top.append(f'<th class="start" scope="colgroup" colspan="{len(group)}">{escape(group[0].group)}</th>')
        else:
            top += [f'<th{_classes(c, at == 0)} scope="col"{tall}>{escape(c.group)}</th>' for at, c in enumerate(group)]
        below += [
            f'<th{_classes(c, at == 0)} scope="col">{escape(c.side)}</th>' for at, c in enumerate(group) if c.side
        ]
    head = "".join(f"<tr>{''.join(row)}</tr>" for row in (top, below) if row)
    texts = [column for group in groups for column in zip(group, _formatted(group), strict=True)]
    starts = {id(group[0]) for group in groups}
    rows = []
    for at, row in enumerate(index.cells):
        cells = (
            f"<td{_classes(column, id(column) in starts, column.cells[at])}>{escape(shown[at])}</td>"
            for column, shown in texts
        )
        rows.append(f'<tr><th scope="row">{escape(_trimmed(row) if index.numeric else row)}</th>{"".join(cells)}</tr>')
    return f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _classes(column: Column, start: bool, cell: str = "") -> str:
    names = ["start"] if start else []
    if column.side == PAPER:
        names.append("paper")
    if not column.numeric and not column.side:
        names.append("words")
    if column.side.startswith("vs ") and not cell:
        names.append("versus")
    if len(cell) > 40:
        names.append("long")
    if cell.startswith("≈"):
        names.append("unclear")
    return f' class="{" ".join(names)}"' if names else ""


def _formatted(group: Sequence[Column]) -> Iterator[list[str]]:
    """The cells of a column and its sides as text: percent with the paper's decimals (one or two), cosines and other
    fractions with three, quantities with three significant digits, differences signed. What is no number stays."""
    name, compared = group[0].group, [column for column in group if column.side in (PAPER, OURS) and column.numeric]
    numbers = [abs(_number(cell) or 0) for column in compared for cell in column.cells if cell]
    printed = [_trimmed(cell) for column in compared if column.side == PAPER for cell in column.cells]
    decimals = min(2, max([1, *(len(text.partition(".")[2]) for text in printed)]))
    fractions = bool(numbers) and max(numbers) <= 1 and not _METRIC.search(name)
    quantity = not _METRIC.search(name) and (_UNIT.search(name) is not None or not compared)
    for column in group:
        if not column.numeric:
            yield column.cells
            continue
        whole = all((_number(cell) or 0) == round(_number(cell) or 0) for cell in column.cells)
        yield [
            "" if (value := _number(cell)) is None
            else _trimmed(cell) if quantity and (whole or column.side == PAPER and len(_trimmed(cell)) < 6)
            else _signed(value, None if quantity else 3 if fractions else decimals, column.side == DIFFERENCE)
            for cell in column.cells
        ]  # fmt: skip


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _trimmed(cell: str) -> str:
    """A number without the zeros that a file gives it (100.0), large ones with separators; other text as it is."""
    value = _number(cell)
    return cell if value is None else f"{value:.6g}" if abs(value) < 1e3 else f"{value:,.0f}"


def _signed(value: float, decimals: int | None, sign: bool) -> str:
    """``decimals`` None: three significant digits."""
    if decimals is None:
        value = 0.0 if abs(value) < 1e-9 else value
        decimals = 0 if value == 0 or abs(value) >= 100 else 2 - math.floor(math.log10(abs(value)))
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if not text.strip("+-0."):
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
