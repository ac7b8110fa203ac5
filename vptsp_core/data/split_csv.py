"""``split.csv``: which image is of which class, and for what; as people and spreadsheets write it."""

from __future__ import annotations

import codecs
import contextlib
import csv
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from vptsp_core.errors import DataError

COLUMNS = ("path", "class", "split")  # the last may be left out where classes are split by their order
DELIMITERS = ",;\t|"


def csv_rows(table: Path, name: str, columns: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """Line number and the columns, stripped, of each row that is not empty; ``path`` from the table's folder on.

    Columns are separated by one of `DELIMITERS`, whichever splits the header. A first column without a name is passed
    over: pandas writes its row numbers there.

    Raises:
        DataError: unreadable, a column is missing in the header, there twice or not known (a mis-spelt ``split`` would
            be passed over), a row has values beyond the header's columns, or a path is written with backslashes.
    """
    try:
        with open(table, encoding=_encoding(table), newline="") as file:  # a quoted name may hold line ends
            delimiter, before = _begin(file)
            reader = csv.reader(file, strict=True, delimiter=delimiter, skipinitialspace=True)
            header = [_plain(key) for key in next(reader, [])]
            if not set(columns) <= set(header):
                optional = "" if "split" in columns else "; a third column, split, is optional"
                raise DataError(f"{name}: {table} must begin with the header {','.join(columns)}{optional}")
            if unknown := [key for key in header if key and key not in COLUMNS]:
                raise DataError(f"{name}: {table} has an unknown column {unknown[0]!r}; it holds {', '.join(COLUMNS)}")
            if twice := [key for key in COLUMNS if header.count(key) > 1]:
                raise DataError(f"{name}: {table} has the column {twice[0]!r} twice; keep one")
            named = {0, *(at for at, key in enumerate(header) if key)}
            for row in reader:
                fields, number = [field.strip() for field in row], before + reader.line_num
                if surplus := [field for at, field in enumerate(fields) if field and at not in named]:
                    raise DataError(
                        f"{name}: {table}, line {number}: the header has no column for {surplus[0]!r}; put a name that "
                        f"holds {delimiter!r} in double quotes"
                    )
                values = {key: "".join(fields[header.index(key) :][:1]) for key in columns}
                if not any(values.values()):  # a spreadsheet's empty row
                    continue
                path = values["path"]
                if "\\" in path and not (table.parent / path).is_file():
                    raise DataError(f"{name}: {table}, line {number}: write {path} with / instead of \\")
                label = unicodedata.normalize("NFC", values["class"])  # one class, however its accents are stored
                yield number, *(values | {"path": _from_folder(table.parent, path), "class": label}).values()
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: {table} is not in UTF-8 ({error.reason}); save it as UTF-8") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{name}: {table} is unreadable ({error}); look for a quote that is not closed") from error


def csv_header(table: Path) -> list[str]:
    """The columns' names; none where the table cannot be read."""
    with contextlib.suppress(OSError, UnicodeDecodeError, csv.Error), open(table, encoding=_encoding(table)) as file:
        delimiter, _ = _begin(file)
        return [_plain(key) for key in next(csv.reader(file, delimiter=delimiter), [])]
    return []


def _plain(key: str) -> str:
    return key.strip().lower()


def _encoding(table: Path) -> str:
    """UTF-8, or the UTF-16 that Excel calls Unicode text."""
    with open(table, "rb") as file:
        begin = file.read(2)
    return "utf-16" if begin in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def _begin(file: TextIO) -> tuple[str, int]:
    """What stands between columns, and how many lines are before the header, where the file is left.

    Empty lines may come first, and a line such as ``sep=;``, which is for Excel alone.
    """
    before, start, first = 0, 0, file.readline()
    while first and (told := re.fullmatch(rf'("?sep=([{DELIMITERS}])"?)?[{DELIMITERS}\s]*', first, re.IGNORECASE)):
        before, start = before + 1, file.tell()
        if told[2]:
            return told[2], before
        first = file.readline()
    file.seek(start)
    known = {each: sum(_plain(key.strip('"')) in COLUMNS for key in first.split(each)) for each in DELIMITERS}
    return max(known, key=lambda each: known[each]), before


def _from_folder(folder: Path, path: str) -> str:
    """``path`` relative to the folder: it may be absolute, or begin with ``..`` or the folder's own name, where it then
    names a file inside.
    """
    path = path.removeprefix("./")
    top = folder.absolute()
    first = path.split("/")[0]
    if first not in ("", "..", top.name) or "\0" in path or (first == top.name and (folder / path).is_file()):
        return path
    for base in (top, top.parent):
        for whole in (os.path.normpath, os.path.realpath):
            place, file = os.path.split(base / path)
            inside = os.path.relpath(os.path.join(whole(place), file), whole(top))
            if not inside.startswith("..") and (top / inside).is_file():
                return Path(inside).as_posix()
    return path
