"""CSV files as HTML tables: the columns below "paper | ours | difference", the numbers with sensible decimals."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.paper.report import DIFFERENCE, ORDER, OURS, PAPER
from vptsp_core.publish.html import TEMPLATES

WIDE = 12  # columns; a wider table is cut into several
_SIDED = re.compile(rf"(.+?), ({PAPER}|{OURS}|{DIFFERENCE}|±|vs .+|{ORDER})")
_METRIC = re.compile(r"R@|MAP@R|R-precision|Recall|NMI|F1")
_UNIT = re.compile(r"(^|[, (])(M|GB|MB|ms|s|%)($|[, )])")


@dataclass(frozen=True)
class Column:
    """One column of a CSV file: ``group`` and ``side`` of "R@1, paper" are "R@1" and "paper"; others have no side."""

    group: str
    side: str
    cells: list[str]
    first: bool = False  # of its group: it has a line before it

    @property
    def numeric(self) -> bool:
        """Whether every cell that is not empty is a number."""
        return all(_number(cell) is not None for cell in self.cells if cell)

    def classes(self, cell: str | None = None) -> str:
        """The style of a cell, or of the head."""
        words = {
            "start": self.first,
            "paper": self.side == PAPER,
            "words": not self.numeric and not self.side,
            "versus": cell is None and self.side.startswith("vs "),
            "long": len(cell or "") > 40,
            "unclear": (cell or "").startswith("≈"),
        }
        return " ".join(word for word, applies in words.items() if applies)


def read_table(path: Path) -> list[Column]:
    """The columns of a CSV file, cells as they are written there. Raises VptspError where it is no table."""
    try:
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise VptspError(f"{path.name} cannot be read ({error}); run its notebook again") from None
    if not rows or not rows[0] or any(len(row) != len(rows[0]) for row in rows):
        raise VptspError(f"{path.name} is no table: its rows differ in length, or it has none; run its notebook again")
    columns, before = [], ""
    for name, *cells in zip(*rows):
        sided = _SIDED.fullmatch(name)
        group, side = (sided[1], sided[2]) if sided else (name, "")
        columns.append(Column(group, side, list(cells), first=group != before))
        before = group
    return columns


def table_html(columns: Sequence[Column], label: str) -> str:
    """The table, the columns' sides below their name; the first column names the rows. One of more than `WIDE` columns
    comes in parts, cut between groups, rather where the first word changes.
    """
    groups = [list(members) for _, members in groupby(columns[1:], key=lambda column: column.group)]
    parts: list[list[list[Column]]] = [[]]
    for _, alike in groupby(groups, key=lambda group: group[0].group.split(" ")[0]):  # such as one data set's metrics
        together = list(alike)
        for piece in [together] if sum(map(len, together)) <= WIDE else [[group] for group in together]:
            if parts[-1] and sum(map(len, parts[-1] + piece)) > WIDE:
                parts.append([])
            parts[-1] += piece
    shown = [_part(columns[0], part) for part in parts]
    return TEMPLATES.get_template("table.html").render(parts=shown, label=label)


def _part(index: Column, groups: list[list[Column]]) -> dict[str, Any]:
    """What the template needs of columns beside each other; ``two``: whether there are two lines of heads."""
    texts = [pair for group in groups for pair in zip(group, _formatted(group), strict=True)]
    labels = [_trimmed(label) if index.numeric else label for label in index.cells]
    return {
        "name": "" if index.group in ("", "label", "row", "fact") else index.group,
        "groups": groups,
        "two": any(column.side for group in groups for column in group),
        "rows": [
            (label, [(shown[at], column.classes(column.cells[at])) for column, shown in texts])
            for at, label in enumerate(labels)
        ],
    }


def _formatted(group: Sequence[Column]) -> Iterator[list[str]]:
    """The cells of a column and its sides as text: percent with the paper's decimals (one or two), quantities with
    three significant digits, differences signed. Other text is unchanged.
    """
    compared = [column for column in group if column.side in (PAPER, OURS) and column.numeric]
    printed = [_trimmed(cell) for column in compared if column.side == PAPER for cell in column.cells]
    decimals: int | None = min(2, max([1, *(len(text.partition(".")[2]) for text in printed)]))
    if not _METRIC.search(group[0].group) and (_UNIT.search(group[0].group) or not compared):
        decimals = None
    for column in group:
        values = [_number(cell) if column.numeric else None for cell in column.cells]
        whole = all(value is None or value == round(value) for value in values)
        yield [_shown(cell, value, column, decimals, whole) for cell, value in zip(column.cells, values, strict=True)]


def _shown(cell: str, value: float | None, column: Column, decimals: int | None, whole: bool) -> str:
    if value is None:
        return cell
    if decimals is None and (whole or column.side == PAPER and len(_trimmed(cell)) < 6):
        return _trimmed(cell)
    return _rounded(value, decimals, sign=column.side == DIFFERENCE)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _trimmed(cell: str) -> str:
    """A number without the zeros that a file gives it (100.0), large ones with separators; other text as it is."""
    value = _number(cell)
    if value is None:
        return cell
    return f"{value:.6g}" if abs(value) < 1e3 else f"{value:,.0f}"


def _rounded(value: float, decimals: int | None, sign: bool) -> str:
    """``decimals`` None: three significant digits."""
    if decimals is None:
        value = 0.0 if abs(value) < 1e-9 else value
        decimals = 0 if value == 0 or abs(value) >= 100 else 2 - math.floor(math.log10(abs(value)))
    text = f"{value:+.{decimals}f}" if sign else f"{value:.{decimals}f}"
    if not text.strip("+-0."):  # it is rounded to zero, which has no sign
        text = text.lstrip("+-")
    return text.replace("-", "\N{MINUS SIGN}")
