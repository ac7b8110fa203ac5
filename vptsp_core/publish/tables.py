"""CSV files as HTML tables, with "paper | ours | difference" below each column's name and rounded numbers."""

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
from vptsp_core.paper.report import CHANCE, DIFFERENCE, ORDER, OURS, PAPER
from vptsp_core.publish.html import TEMPLATES

WIDE = 12  # columns; a wider table is cut into several
_SIDED = re.compile(rf"(.+?), ({PAPER}|{OURS}|{DIFFERENCE}|±|vs .+|{ORDER})")
_METRIC = re.compile(r"R@|MAP@R|R-precision|Recall|NMI|F1")
_UNIT = re.compile(r"(^|[, (])(M|GB|MB|ms|s|%)($|[, )])")


@dataclass(frozen=True)
class Column:
    """One column of a CSV file.

    Attributes:
        group, side: "R@1" and "paper" for the column "R@1, paper". Other columns have no side.
        first: whether it is the first column of its group; the table then has a line before it.
    """

    group: str
    side: str
    cells: list[str]
    first: bool = False

    @property
    def numeric(self) -> bool:
        """Whether every cell that is not empty is a number."""
        return all(_number(cell) is not None for cell in self.cells if cell)

    def classes(self, cell: str | None = None) -> str:
        """Return the CSS classes of a cell; without a cell, those of the head."""
        words = {
            "start": self.first,
            "paper": self.side == PAPER,
            "words": not self.numeric and not self.side,
            "versus": cell is None and self.side.startswith("vs "),
            "long": len(cell or "") > 40,
            "unclear": (cell or "").startswith(CHANCE),
        }
        return " ".join(word for word, applies in words.items() if applies)


def read_table(path: Path) -> list[Column]:
    """Read the columns of a CSV file, with the cells as text. Raises VptspError if the file holds no valid table."""
    try:
        rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8")), strict=True)
        cells_of = list(zip(*rows, strict=True))
        if not cells_of:
            raise ValueError("it is empty")
    except (OSError, ValueError, csv.Error) as error:
        raise VptspError(f"{path.name} is an invalid table ({error}); run its notebook again") from None
    columns, before = [], ""
    for name, *cells in cells_of:
        sided = _SIDED.fullmatch(name)
        group, side = (sided[1], sided[2]) if sided else (name, "")
        columns.append(Column(group, side, cells, first=group != before))
        before = group
    return columns


def table_html(columns: Sequence[Column], label: str) -> str:
    """Return the table as HTML. The first column holds the names of the rows.

    A table of more than `WIDE` columns is cut into several. Columns of one group stay together. Groups whose names
    begin with the same word, such as one data set's metrics, also stay together unless they are too wide.
    """
    groups = [list(members) for _, members in groupby(columns[1:], key=lambda column: column.group)]
    parts: list[list[list[Column]]] = [[]]
    for _, alike in groupby(groups, key=lambda group: group[0].group.split(" ")[0]):
        together = list(alike)
        for piece in [together] if sum(map(len, together)) <= WIDE else [[group] for group in together]:
            if parts[-1] and sum(map(len, parts[-1] + piece)) > WIDE:
                parts.append([])
            parts[-1] += piece
    shown = [_part(columns[0], part) for part in parts]
    return TEMPLATES.get_template("table.html").render(parts=shown, label=label)


def _part(index: Column, groups: list[list[Column]]) -> dict[str, Any]:
    """Return what the template needs of some columns. ``two``: whether the head has two lines."""
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
    """Yield the cells of each column of a group as text.

    Percent has the paper's decimals (one or two), quantities have three significant digits, differences have a sign.
    """
    compared = [column for column in group if column.side in (PAPER, OURS) and column.numeric]
    printed = [_trimmed(cell) for column in compared if column.side == PAPER for cell in column.cells]
    decimals: int | None = min(2, max([1, *(len(text.partition(".")[2]) for text in printed)]))
    if not _METRIC.search(group[0].group) and (_UNIT.search(group[0].group) or not compared):
        decimals = None
    for column in group:
        whole = all(float(cell) == round(float(cell)) for cell in column.cells if cell) if column.numeric else False
        yield [_shown(cell, column, decimals, whole) if column.numeric else cell for cell in column.cells]


def _shown(cell: str, column: Column, decimals: int | None, whole: bool) -> str:
    """Return a number as text. Whole quantities and short quantities of the paper stay as they are."""
    value = _number(cell)
    if value is None:
        return cell
    if decimals is None and abs(value) < 1e-9:
        return "0"
    if decimals is None and (whole or column.side == PAPER and len(_trimmed(cell)) < 6):
        return _trimmed(cell)
    sign = "+" if column.side == DIFFERENCE else ""
    if decimals is not None:
        text = f"{value:{sign}z.{decimals}f}"
    else:
        text = f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}#.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _trimmed(cell: str) -> str:
    """Return a number without the file's trailing zeros (100.0), and a large one with separators. Text is unchanged."""
    value = _number(cell)
    if value is None:
        return cell
    return f"{value:.6g}" if abs(value) < 1e3 else f"{value:,.0f}"
