"""CSV files as HTML tables, with "paper | ours | difference" below each column's name and rounded numbers."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from vptsp_core.errors import VptspError
from vptsp_core.paper.claims import CORRECTED
from vptsp_core.paper.report import CHANCE, DIFFERENCE, ORDER, OURS, PAPER
from vptsp_core.publish.html import TEMPLATES

WIDE = 12  # columns; a wider table is cut into several
LONG_NAME, LONG_CELL = 30, 40  # characters; the text of a longer name of a row, or cell, wraps
_SIDED = re.compile(rf"(.+?), ({PAPER}|{OURS}|{DIFFERENCE}|±|vs .+|{ORDER}|{CORRECTED})")
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
    cells: Sequence[str]
    first: bool = False

    @property
    def numeric(self) -> bool:
        """Whether every cell that is not empty is a finite number."""
        return all(math.isfinite(_number(cell)) for cell in self.cells if cell)

    def classes(self, cell: str | None = None) -> str:
        """Return the CSS classes of a cell; without a cell, those of the head."""
        words = {
            "start": self.first,
            "paper": self.side == PAPER,
            "words": not self.numeric and not self.side,
            "versus": cell is None and self.side.startswith("vs "),
            "long": len(cell or "") > LONG_CELL,
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
    return TEMPLATES.get_template("table.html").render(
        name="" if columns[0].group in ("", "label", "row", "fact") else columns[0].group,
        labels=[_trimmed(label) for label in columns[0].cells] if columns[0].numeric else columns[0].cells,
        parts=[[(group, _formatted(group)) for group in part] for part in parts],
        label=label,
        long_name=LONG_NAME,
    )


def _formatted(group: Sequence[Column]) -> list[list[str]]:
    """Return the cells of each column of a group as text.

    Percent has the paper's decimals (one or two), quantities have three significant digits, differences have a sign.
    """
    compared = [column for column in group if column.side in (PAPER, OURS) and column.numeric]
    printed = [_trimmed(cell) for column in compared if column.side == PAPER for cell in column.cells]
    decimals: int | None = min(2, max([1, *(len(text.partition(".")[2]) for text in printed)]))
    if not _METRIC.search(group[0].group) and (_UNIT.search(group[0].group) or not compared):
        decimals = None
    return [[_shown(cell, column, decimals) if column.numeric else cell for cell in column.cells] for column in group]


def _shown(cell: str, column: Column, decimals: int | None) -> str:
    """Return a number as text. Whole quantities and short quantities of the paper stay as they are."""
    value, sign = _number(cell), "+" if column.side == DIFFERENCE else ""
    if not cell:
        return ""
    if decimals is not None:
        text = f"{value:{sign}z.{decimals}f}"
    elif abs(value) < 1e-9:
        return "0"
    elif column.side == PAPER and len(_trimmed(cell)) < 6 or all(_number(c).is_integer() for c in column.cells if c):
        return _trimmed(cell)
    else:
        text = f"{value:{sign}.0f}" if abs(value) >= 100 else f"{value:{sign}#.3g}"
    return text.replace("-", "\N{MINUS SIGN}")


def _number(cell: str) -> float:
    """Return the number in a cell, or NaN."""
    try:
        return float(cell)
    except ValueError:
        return math.nan


def _trimmed(cell: str) -> str:
    """Return a number without the file's trailing zeros (100.0), and a large one with separators."""
    return "" if not cell else f"{float(cell):.6g}" if abs(float(cell)) < 1e3 else f"{float(cell):,.0f}"
