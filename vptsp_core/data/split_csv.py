"""``split.csv``: which image is of which class, and for what; as people and spreadsheets write it."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from vptsp_core.errors import DataError

COLUMNS = ("path", "class", "split")  # the last may be left out where classes are split by their order


def csv_rows(table: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Line number and the columns, stripped, of each row that is not empty; ``path`` without a ``./`` before it.

    Raises:
        DataError: unreadable, a column is missing in the header, there twice or not known (a mis-spelt ``split`` would
            be passed over), or a path is written with backslashes.
    """
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:  # a quoted name may hold line ends
            delimiter, before = _begin(file)
            reader = csv.DictReader(file, strict=True, delimiter=delimiter)
            header = [_plain(key) for key in reader.fieldnames or ()]
            reader.fieldnames = header
            if not set(columns) <= set(header):
                optional = "" if "split" in columns else "; a third column, split, is optional"
                raise DataError(f"{name}: {table} must begin with the header {','.join(columns)}{optional}")
            if unknown := [key for key in header if key and key not in COLUMNS]:
                raise DataError(f"{name}: {table} has an unknown column {unknown[0]!r}; it holds {', '.join(COLUMNS)}")
            if twice := [key for key in COLUMNS if header.count(key) > 1]:
                raise DataError(f"{name}: {table} has the column {twice[0]!r} twice; keep one")
            for row in reader:
                values = {key: str(row[key] or "").strip() for key in columns}
                if not any(values.values()):  # a spreadsheet's empty row
                    continue
                path, number = values["path"], before + reader.line_num
                if "\\" in path and not (table.parent / path).is_file():
                    raise DataError(f"{name}: {table}, line {number}: write {path} with / instead of \\")
                yield number, *(values | {"path": path.removeprefix("./")}).values()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {table} is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{name}: {table} is unreadable ({error}); look for a quote that is not closed") from error


def csv_header(table: Path) -> list[str]:
    """The columns' names; none where the table cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error), open(table, encoding="utf-8-sig") as file:
        delimiter, _ = _begin(file)
        return [_plain(key) for key in next(csv.reader(file, delimiter=delimiter), [])]
    return []


def _plain(key: str) -> str:
    return key.strip().lower()


def _begin(file: TextIO) -> tuple[str, int]:
    """What stands between columns, and how many lines before the header, where the file is left.

    A semicolon where the header has no comma: so Excel writes where numbers are written with commas. A first line such
    as ``sep=;`` is for Excel alone.
    """
    first = file.readline()
    if told := re.fullmatch(r'"?sep=([;,])"?[;,]*\s*', first, re.IGNORECASE):
        return told[1], 1
    file.seek(0)
    return (";" if ";" in first and "," not in first else ","), 0
