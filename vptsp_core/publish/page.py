"""The results page: one file with every table and figure beside the paper's numbers, and what is missing."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.publish.html import TEMPLATES, figure, opening
from vptsp_core.publish.manifest import RECORD, Manifest
from vptsp_core.publish.parameters import FOLDER, discover, read
from vptsp_core.publish.tables import OURS, PAPER, Column, read_table, table_html
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import CHECKOUT

PROFILES = {
    "demo": "embedded data and a small backbone; takes minutes on a CPU",
    "smoke": "the demo with a few steps per run; it shows that everything works, and nothing else",
    "tiny": "CUB-200 and a ViT-Ti/16, with the paper's protocol adapted to a CPU",
    "paper": "the paper's benchmarks and backbones",
}


class State(StrEnum):
    """How the last execution of a notebook ended, in the words of the page."""

    RUN = "run"
    RUN_IN_PART = "run in part"
    WITHOUT_DATA = "ran without data"
    WITHOUT_RUNS = "ran without runs"
    NOT_RUN = "not run"
    FAILED = "failed"
    FAILED_LATER = "failed; the results shown are from an earlier execution"


@dataclass
class Chapter:
    """A notebook and its results.

    Attributes:
        name: the notebook's name, with which the names of its results begin.
        only: selects the notebook with ``--only``.
        title, claim, compared, more: its `opening`.
        page: the file name of its executed copy as HTML, or "".
        made: its manifest, which is empty if the notebook has not run.
        shown: its figures and tables; for a broken file, what is wrong with it.
        broken: everything that is wrong with its files.
    """

    name: str
    only: str
    title: str
    claim: str
    compared: str
    more: str
    page: str
    made: Manifest = field(default_factory=Manifest)
    shown: list[dict[str, Any]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def there(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.made.tables or self.made.figures or self.made.record or self.page)

    @property
    def state(self) -> State:
        """How its last execution ended."""
        if self.made.failure:
            return State.FAILED_LATER if self.there else State.FAILED
        if not self.there:
            return State.NOT_RUN
        if self.made.missing and not self.made.runs:
            return State.WITHOUT_DATA if any(each.dataset for each in self.made.missing) else State.WITHOUT_RUNS
        return State.RUN_IN_PART if self.made.missing else State.RUN

    def values(self, fact: str) -> str:
        """Return a fact of its record, with all its values."""
        return ", ".join(self.made.record.get(fact, []))


def build(results: str | Path = CHECKOUT / "results", profile: str = "demo", notebooks: Path = FOLDER) -> Path:
    """Write ``results/<profile>/index.html`` from the notebooks' results, any of which may be missing. Return its path.

    Raises VptspError for an unknown profile.
    """
    if profile not in PROFILES:
        raise VptspError(f"unknown profile {profile!r}; one of: {', '.join(PROFILES)}")
    folder = Path(results).expanduser().resolve() / profile
    chapters = [_chapter(folder, source) for source in sorted(discover((), notebooks, profile), key=_order)]
    facts: dict[str, list[str]] = {}
    absent: dict[tuple[str, str], list[str]] = {}  # {(data set, command to get it): the notebooks that need it}
    for chapter in chapters:
        for fact, values in chapter.made.record.items():
            facts.setdefault(fact, []).extend(value for value in values if value not in facts[fact])
        for each in chapter.made.missing:
            if each.dataset:
                absent.setdefault((each.dataset, each.command), []).append(chapter.only)
    command = "./run_all.sh" + _options(folder.parent, profile)
    if facts.get("seed", ["0"]) != ["0"]:
        command += f" --seeds {','.join(facts['seed'])}"
    page = TEMPLATES.get_template("results.html").render(
        title=f"VPTSP: the paper's tables and figures, profile {profile}",
        profile=profile,
        reading=TEMPLATES.get_template("reading.md").render(profile=profile),
        what=PROFILES[profile],
        chapters=chapters,
        command=command,
        with_data=command if "--data" in command else f"{command} --data DIR",
        there=[chapter for chapter in chapters if chapter.there],
        runs={run.hash: run.seconds for chapter in chapters for run in chapter.made.runs},
        absent=absent,
        devices="; ".join(facts.get("device", [])),
        facts=_facts({fact: values for fact, values in facts.items() if fact != "run"}, "all notebooks"),
        record=lambda chapter: _facts(chapter.made.record, f"record of {chapter.name}"),
        RECORD=RECORD,
        State=State,
    )
    path = folder / "index.html"
    write_bytes(path, page.encode())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m vptsp_core report`. Raises VptspError if the results folder does not exist."""
    parser = argparse.ArgumentParser("python -m vptsp_core report", description="Build the results page.")
    parser.add_argument("--results", metavar="DIR", default=CHECKOUT / "results", help="default: results")
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="default: demo")
    options = parser.parse_args(argv)
    if not Path(options.results).expanduser().is_dir():
        raise VptspError(f"--results: there is no folder {options.results}; name the one that run_all.sh wrote to")
    print(build(options.results, options.profile))
    return 0


def _chapter(folder: Path, source: Path) -> Chapter:
    """Return the chapter of one notebook. ``folder`` holds the profile's results."""
    name = source.stem
    page = f"{name}.html" if (folder / "notebooks" / f"{name}.html").is_file() else ""
    chapter = Chapter(name, name.split("_")[0], *opening(read(source), name), page=page)
    try:
        chapter.made = Manifest.read(folder, name)
    except VptspError as error:
        chapter.broken.append(str(error))
    for kind, files, shown in (
        ("figures", chapter.made.figures, lambda path: figure(path, _ending(path, name) or chapter.title)),
        ("tables", chapter.made.tables, lambda path: _table(path, name)),
    ):
        for file in files:
            try:
                chapter.shown.append({"file": file, **shown(folder / kind / file)})
            except VptspError as error:
                chapter.shown.append({"wrong": str(error)})
                chapter.broken.append(str(error))
    return chapter


def _table(path: Path, name: str) -> dict[str, str]:
    """Return the title and the HTML of a notebook's table."""
    columns = read_table(path)
    title = "Paper | ours | difference" if {PAPER, OURS} <= {column.side for column in columns} else "Numbers"
    if ending := _ending(path, name):
        title += f": {ending}"
    return {"title": title, "html": table_html(columns, title)}


def _ending(path: Path, name: str) -> str:
    """Return the part of a file's name that follows the notebook's name, in words."""
    return path.stem.removeprefix(name).strip("_").replace("_", " ")


def _order(source: Path) -> tuple[int, int, str]:
    """Return a key that sorts tables, then figures, both by number, then other notebooks."""
    kind = re.match(r"(table|fig)(\d+)", source.stem)
    return (2, 0, source.stem) if kind is None else (("table", "fig").index(kind[1]), int(kind[2]), source.stem)


def _facts(facts: dict[str, list[str]], label: str) -> str:
    """Return facts and their values as an HTML table."""
    names = Column("fact", "", list(facts))
    return table_html([names, Column(label, "", [", ".join(values) for values in facts.values()], True)], label)


def _options(results: Path, profile: str) -> str:
    """Return the options with which `run_all.sh` writes to the same place."""
    text = "" if profile == "demo" else f" --profile {profile}"
    text += " --data DIR" if profile in ("tiny", "paper") else ""
    where = results.relative_to(CHECKOUT) if results.is_relative_to(CHECKOUT) else results
    return text if str(where) == "results" else f"{text} --results {shlex.quote(str(where))}"
