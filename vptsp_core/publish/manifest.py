"""The manifest of a notebook: what it left in the results folder, what is missing, and how it ended.

A notebook writes it at its end (`publish.session`). The runner adds what the notebook was made from, how long it took
and the checksums of all files, so that a second call does only what is missing. The results page reads it.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.system.files import write_json
from vptsp_core.system.places import PACKAGE
from vptsp_core.system.seals import digest

RECORD = "_record"  # ends the name of the table that holds the record
_UNREAD = ("results", "workers")  # parameters that do not change what a notebook shows


@dataclass(frozen=True)
class Missing:
    """What a notebook could not make: a line that says so; where only a data set is missing, its name and the command
    that gets it.
    """

    text: str
    dataset: str = ""
    command: str = ""


@dataclass(frozen=True)
class MadeRun:
    """A run that a notebook shows: its hash, its folder in the profile's results, its training and evaluation in s."""

    hash: str
    folder: str
    seconds: float


@dataclass
class Manifest:
    """What is known of one execution of a notebook.

    Attributes:
        tables, figures: names of its files in tables/ (without the record) and in figures/, in the order of the
            notebook.
        record: {fact: all its values}: commit, versions, device, seeds, data and weights checksums, hashes of runs.
        seconds: of the whole notebook; None where it was not executed by the runner.
        failure: the error that ended the last execution; the rest is of an earlier one then.
        made_from, files: `made_from` the notebook was executed, and the checksum of every file that it left.
    """

    tables: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    runs: list[MadeRun] = field(default_factory=list)
    record: dict[str, list[str]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    seconds: float | None = None
    failure: str = ""
    made_from: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, notebook: str) -> Manifest:
        """The manifest in ``folder``, the results of a profile; an empty one where the notebook has not run. Raises
        VptspError where it cannot be read.
        """
        path = folder / "manifests" / f"{notebook}.json"
        if not path.is_file():
            return cls()
        try:
            made = cls(**json.loads(path.read_text(encoding="utf-8")))
            made.runs = [MadeRun(**each) for each in made.runs]  # type: ignore[arg-type]
            made.missing = [Missing(**each) for each in made.missing]  # type: ignore[arg-type]
        except (OSError, ValueError, TypeError) as error:
            raise VptspError(f"{path} cannot be read ({error}); run its notebook again") from None
        return made

    def write(self, folder: Path, notebook: str) -> None:
        """Write the manifest where `read` finds it."""
        write_json(folder / "manifests" / f"{notebook}.json", asdict(self))

    def close(self, folder: Path, notebook: str, made: str, seconds: float) -> None:
        """Complete and write the manifest of a notebook whose executed copy and page are written."""
        names = [f"notebooks/{notebook}.ipynb", f"notebooks/{notebook}.html"]
        tables = [*self.tables, f"{notebook}{RECORD}.csv"] if self.record else self.tables
        names += [f"tables/{name}" for name in tables]
        names += [f"figures/{Path(name).with_suffix(kind)}" for name in self.figures for kind in (".png", ".pdf")]
        names += [f"{run.folder}/metrics.json" for run in self.runs]
        self.seconds, self.made_from = round(seconds, 1), made
        self.files = {name: digest(folder / name) for name in names}
        self.write(folder, notebook)


def is_finished(folder: Path, notebook: str, made: str) -> bool:
    """Whether ``folder`` holds what an execution with this `made_from` left, all of it and unchanged, and nothing is
    missing: what was, data say, may be there now.
    """
    try:
        manifest = Manifest.read(folder, notebook)
        if manifest.made_from != made or manifest.failure or manifest.missing:
            return False
        return all(digest(folder / name) == kept for name, kept in manifest.files.items())
    except (VptspError, OSError):
        return False


def made_from(source: Path, values: Mapping[str, Any]) -> str:
    """A hash of all that an execution depends on here: source, parameters, and every file of this package."""
    given = {name: value for name, value in values.items() if name not in _UNREAD}
    text = json.dumps([digest(source), given, _package()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _package() -> str:
    """Of every file of the package: a commit does not say what is not committed."""
    files = (path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    lines = [f"{path.relative_to(PACKAGE).as_posix()} {digest(path)}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
