"""The results page: one file with every table and figure beside the paper's numbers, and what is missing."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError, check_choice
from vptsp_core.paper.report import CHANGED
from vptsp_core.publish.html import TEMPLATES, figure, opening
from vptsp_core.publish.manifest import RECORD, Manifest
from vptsp_core.publish.parameters import FOLDER, declared, discover, read
from vptsp_core.publish.tables import OURS, PAPER, Column, read_table, table_html
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import CHECKOUT, from_root

PROFILES = {
    "demo": "embedded data and a small backbone; takes minutes on a CPU",
    "smoke": "the demo with a few steps per run; it shows that everything works, and nothing else",
    "tiny": "CUB-200 and a ViT-Ti/16, with the paper's protocol adapted to a CPU",
    "paper": "the paper's benchmarks and backbones",
}
ANSWERS = ("what_holds", "why_behind")


@dataclass
class Chapter:
    """A notebook and its results.

    Attributes:
        name: the notebook's name, with which the names of its results begin.
        title, claim, compared, more: its `opening`.
        command: executes all notebooks, with the options that this one reads.
        page: the file name of its executed copy as HTML, or "".
        made: its manifest, which is empty if the notebook has not run.
        shown: its figures and tables; for a broken file, what is wrong with it.
    """

    name: str
    title: str
    claim: str
    compared: str
    more: str
    command: str
    page: str
    made: Manifest
    shown: list[dict[str, Any]]

    @property
    def only(self) -> str:
        """The word that selects the notebook with ``--only``."""
        return self.name.split("_")[0]

    @property
    def again(self) -> str:
        """The command that executes the notebook again."""
        return f"{self.command} --only {self.only}"

    @property
    def there(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.made.tables or self.made.figures or self.made.record or self.page)

    @property
    def state(self) -> str:
        """How its last execution ended, in words."""
        if self.made.failure:
            return "failed; the results shown are from an earlier execution" if self.there else "failed"
        if not self.there:
            return "not run"
        if self.made.missing and not self.made.runs:
            return "ran without data" if any(each.dataset for each in self.made.missing) else "ran without runs"
        return "run in part" if self.made.missing else "run"

    def values(self, fact: str) -> str:
        """Return a fact of its record, with all its values."""
        return ", ".join(self.made.record.get(fact, []))


def build(results: str | Path = CHECKOUT / "results", profile: str = "demo", notebooks: Path = FOLDER) -> Path:
    """Write ``results/<profile>/index.html`` from the notebooks' results, any of which may be missing. Return its path.

    Raises VptspError: an unknown profile, or a manifest that cannot be read.
    """
    check_choice("profile", profile, tuple(PROFILES))
    folder = Path(results).expanduser().resolve() / profile
    made = {source: Manifest.read(folder, source.stem) for source in discover((), notebooks, profile)}
    shown = {seed for each in made.values() for seed in each.record.get("seed", [])}
    seeds = sorted(shown | {str(seed) for each in made.values() for seed in each.seeds}, key=int)
    chapters = [_chapter(folder, source, made[source], seeds) for source in sorted(made, key=partial(_order, profile))]
    facts: dict[str, list[str]] = {}
    absent: dict[tuple[str, str], dict[str, None]] = {}  # {(data set, command to get it): the notebooks that need it}
    for chapter in chapters:
        for fact, values in chapter.made.record.items():
            facts.setdefault(fact, []).extend(value for value in values if value not in facts[fact])
        for each in chapter.made.missing:
            if each.dataset:
                absent.setdefault((each.dataset, each.command), {})[chapter.only] = None
    command = _command(folder, ("data", "seeds"), seeds)
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
        facts=_facts({fact: values for fact, values in facts.items() if fact not in ("run", CHANGED)}, "all notebooks"),
        record=lambda chapter: _facts(chapter.made.record, f"record of {chapter.name}"),
        RECORD=RECORD,
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
    if options.results == "" or not Path(options.results).expanduser().is_dir():  # "": an unset shell variable
        raise VptspError(f"--results: there is no folder {options.results}; name the one that run_all.sh wrote to")
    print(build(options.results, options.profile))
    return 0


def _chapter(folder: Path, source: Path, made: Manifest, seeds: list[str]) -> Chapter:
    """Return the chapter of one notebook. ``folder`` holds the profile's results, for which ``seeds`` were given."""
    name = source.stem
    page = f"{name}.html" if (folder / "notebooks" / f"{name}.html").is_file() else ""
    opened = opening(read(source), name)
    shown: list[dict[str, Any]] = []
    for path in [
        *(folder / "figures" / file for file in made.figures),
        *(folder / "tables" / file for file in made.tables),
    ]:
        words = path.stem.removeprefix(name).strip("_").replace("_", " ")
        try:
            result = _table(path, words) if path.parent.name == "tables" else figure(path, words or opened[0])
            shown.append({"file": path.name, **result})
        except VptspError as error:
            shown.append({"wrong": str(error)})
    command = _command(folder, declared(source), seeds)
    command += "".join(f" --set {shlex.quote(change)}" for change in made.record.get(CHANGED, ()))
    return Chapter(name, *opened, command, page, made, shown)


def _table(path: Path, words: str) -> dict[str, str]:
    """Return the HTML of a notebook's table, and its title, which ends with ``words``."""
    columns = read_table(path)
    title = "Paper | ours | difference" if {PAPER, OURS} <= {column.side for column in columns} else "Numbers"
    title += f": {words}" if words else ""
    return {"title": title, "html": table_html(columns, title)}


def _order(profile: str, source: Path) -> tuple[int, int, str]:
    """Return a key that sorts tables, then figures, both by number, then other notebooks.

    With the paper's data, the answers (`ANSWERS`) come first.
    """
    if source.stem in ANSWERS and profile in ("tiny", "paper"):
        return -1, 0, source.stem
    kind = re.match(r"(table|fig)(\d+)", source.stem)
    return (2, 0, source.stem) if kind is None else (("table", "fig").index(kind[1]), int(kind[2]), source.stem)


def _facts(facts: dict[str, list[str]], label: str) -> str:
    """Return facts and their values as an HTML table."""
    names = Column("fact", "", list(facts))
    return table_html([names, Column(label, "", [", ".join(values) for values in facts.values()], True)], label)


def _command(folder: Path, reads: Collection[str], seeds: list[str]) -> str:
    """Return the call of `run_all.sh` that writes to ``folder`` again, for notebooks that read these parameters."""
    results, profile = from_root(folder.parent), folder.name
    command = "./run_all.sh" if profile == "demo" else f"./run_all.sh --profile {profile}"
    command += " --data DIR" if profile in ("tiny", "paper") and "data" in reads else ""
    command += f" --results {shlex.quote(results)}" if results != "results" else ""
    return f"{command} --seeds {','.join(seeds)}" if "seeds" in reads and seeds not in ([], ["0"]) else command
