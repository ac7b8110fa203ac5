"""Which notebooks are finished, so that a second call does only what is missing.

An executed copy says in its metadata what it was made from, and what it left behind, each file with its checksum: what
another execution, which was stopped, has overwritten, or somebody edited, is made again. Nothing else is asked: without
the copy the notebook is executed again.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from vptsp_core.errors import VptspError
from vptsp_core.publish.facts import HASHES, chapter
from vptsp_core.publish.parameters import read
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import PACKAGE
from vptsp_core.system.seals import digest

_KEY = "vptsp"
_NO_MATTER = ("results", "workers")  # where it all lies, and how quickly it came


def made_from(source: Path, values: Mapping[str, Any]) -> str:
    """A hash of all that an executed copy depends on here: source, parameters, and every file of this package."""
    given = {name: value for name, value in values.items() if name not in _NO_MATTER}
    text = json.dumps([hashlib.sha256(source.read_bytes()).hexdigest(), given, _package()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def mark(copy: Path, folder: Path, source: Path, made: str) -> None:
    """Write into an executed copy what it was made from, and which files of ``folder`` (one profile's) are its results:
    tables, figures, runs and its page. The name under which papermill wrote is kept out of what is shown."""
    notebook = read(copy)
    notebook.metadata.setdefault("papermill", {}).update(input_path=source.name, output_path=source.name)
    results = {str(path.relative_to(folder)): digest(path) for path in sorted(_results(folder, source))}
    notebook.metadata[_KEY] = {"made_from": made, "results": results}
    write_bytes(copy, nbformat.writes(notebook).encode())


def is_finished(folder: Path, source: Path, made: str) -> bool:
    """Whether ``folder`` holds the executed copy made from this, its page and its results as they were; nothing failed
    after it, and it says of no run that it could not be made: data may be there now."""
    done = folder / "notebooks" / source.name
    try:
        told = read(done).metadata[_KEY] if done.is_file() else None
        left = chapter(folder, source)
        if told is None or told["made_from"] != made or left.failure or left.absent or left.page is None:
            return False
        results = {folder / name: kept for name, kept in told["results"].items()}
        return left.page in results and all(path.is_file() and digest(path) == kept for path, kept in results.items())
    except (VptspError, KeyError, TypeError, AttributeError):  # no mark, or one of an older version
        return False


def _results(folder: Path, source: Path) -> list[Path]:
    left = chapter(folder, source)
    record = [folder / "tables" / f"{source.stem}_record.csv"] if left.record else []
    vectors = [path for path in (each.with_suffix(".pdf") for each in left.figures) if path.is_file()]
    files = [*left.tables, *left.figures, *vectors, *record]
    runs = [path for each in left.values(HASHES) for path in folder.glob(f"runs/*-{each}*/metrics.json")]
    return [*files, *runs, *([left.page] if left.page else [])]


@functools.cache
def _package() -> str:
    """Of every file of the package as this process found it: a commit does not tell of what is not committed."""
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(PACKAGE)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
