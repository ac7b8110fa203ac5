"""The manifest of a notebook: the files that it wrote, what is missing, and how it ended.

A notebook writes its manifest at its end (`publish.session`). The runner then adds its duration, its inputs and the
checksums of its files, so that a second call executes only what is not finished. The results page is built from the
manifests.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.method.lora import has_peft
from vptsp_core.system.files import write_json
from vptsp_core.system.places import PACKAGE
from vptsp_core.system.seals import digest

RECORD = "_record"  # the end of the name of the table that holds the record


@dataclass(frozen=True)
class Missing:
    """A result that a notebook could not make.

    Attributes:
        text: what is missing and why, in one line.
        dataset: the data set that is missing, if that is the reason.
        command: gets this data set.
    """

    text: str
    dataset: str = ""
    command: str = ""


@dataclass(frozen=True)
class MadeRun:
    """A run that a notebook shows: hash, folder in the profile's results, seconds of training and evaluation."""

    hash: str
    folder: str
    seconds: float


@dataclass
class Manifest:
    """What is known of one execution of a notebook.

    Attributes:
        tables, figures: names of its files in tables/ (without the record) and in figures/, in the notebook's order.
        seeds: its parameter ``seeds``: also those whose runs are missing.
        record: {fact: all its values}: commit, versions, device, seeds, checksums of data and weights, hashes of runs.
        seconds: the notebook's duration; None unless the runner executed it.
        failure: the error that ended the last execution. The other attributes then belong to an earlier execution.
        made_from: the hash that the function `made_from` returned when the notebook was executed.
        files: {file: its checksum}, for every file that the notebook wrote.
    """

    tables: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    runs: list[MadeRun] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    record: dict[str, list[str]] = field(default_factory=dict)
    missing: list[Missing] = field(default_factory=list)
    seconds: float | None = None
    failure: str = ""
    made_from: str = ""
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, notebook: str) -> Manifest:
        """Read the manifest in ``folder``, a profile's results. It is empty if the notebook has not run.

        Raises VptspError if the file cannot be read.
        """
        path = folder / "manifests" / f"{notebook}.json"
        if not path.is_file():
            return cls()
        try:
            manifest = cls(**json.loads(path.read_text(encoding="utf-8")))
            manifest.runs = [MadeRun(**each) for each in manifest.runs]  # type: ignore[arg-type]
            manifest.missing = [Missing(**each) for each in manifest.missing]  # type: ignore[arg-type]
        except (OSError, ValueError, TypeError) as error:
            raise VptspError(f"{path} cannot be read ({error}); delete it and run its notebook again") from None
        return manifest

    def write(self, folder: Path, notebook: str) -> None:
        """Write the manifest where `read` finds it."""
        write_json(folder / "manifests" / f"{notebook}.json", asdict(self))

    def close(self, folder: Path, notebook: str, made: str, seconds: float) -> None:
        """Complete and write the manifest. Call it after the executed copy and its page are written."""
        names = [f"notebooks/{notebook}.ipynb", f"notebooks/{notebook}.html"]
        tables = [*self.tables, f"{notebook}{RECORD}.csv"] if self.record else self.tables
        names += [f"tables/{name}" for name in tables]
        names += [f"figures/{Path(name).with_suffix(kind)}" for name in self.figures for kind in (".png", ".pdf")]
        names += [f"{run.folder}/metrics.json" for run in self.runs]
        self.seconds, self.made_from, self.failure = round(seconds, 1), made, ""
        self.files = {name: digest(folder / name) for name in names}
        self.write(folder, notebook)


def is_finished(folder: Path, notebook: str, made: str) -> bool:
    """Return whether ``folder`` holds all files of an execution with this `made_from`, and nothing was missing then.

    A notebook with something missing is executed again, because its data may have arrived since.
    """
    try:
        manifest = Manifest.read(folder, notebook)
        if manifest.made_from != made or manifest.failure or manifest.missing:
            return False
        return all(digest(folder / name) == checksum for name, checksum in manifest.files.items())
    except (VptspError, OSError):
        return False


def made_from(source: Path, values: Mapping[str, Any]) -> str:
    """Return a hash of the notebook's source, its parameters, every file of this package, and if peft is installed."""
    unread = ("results", "workers")  # parameters that do not change what a notebook shows
    given = {name: value for name, value in values.items() if name not in unread}
    return digest(json.dumps([digest(source), given, _package(), has_peft()], sort_keys=True).encode())[:16]


@functools.cache
def _package() -> str:
    """Return a hash of every file of the package. A commit would not show changes that are not committed."""
    files = (path for path in sorted(PACKAGE.rglob("*")) if path.is_file() and "__pycache__" not in path.parts)
    return digest("\n".join(f"{path.relative_to(PACKAGE).as_posix()} {digest(path)}" for path in files).encode())
