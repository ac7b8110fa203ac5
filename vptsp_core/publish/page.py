"""The results page: one file with every table and figure beside the paper's numbers, and what is missing."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.publish.html import TEMPLATES, figure, markdown
from vptsp_core.publish.manifest import RECORD, Manifest
from vptsp_core.publish.parameters import FOLDER, discover, read
from vptsp_core.publish.tables import OURS, PAPER, Column, read_table, table_html
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import CHECKOUT

PROFILES = {
    "demo": "embedded data, a small backbone, minutes on a CPU",
    "smoke": "the demo with a handful of steps a run: shows that everything works, and nothing else",
    "tiny": "CUB-200 and a ViT-Ti/16, the paper's protocol made for a CPU",
    "paper": "the paper's benchmarks and backbones",
}
DEVICE, SEED, SELECTION = "device", "seed", "epoch reported"  # facts of a record
_COMPARED = "**What can be compared.**"  # how that paragraph of a notebook begins
_STAND_INS = """\
- The data here are **glyphs**: drawn letters, made by the package, in place of photographs, and the backbone is a ViT
  of 0.7 M parameters. They stand beside the paper's CUB-200 column because something must; the *difference* then says
  nothing about the method. Only **orderings** could be compared (which method is ahead, where a curve has its maximum).
- The paper's other data sets have no stand-in: *ours* is empty there, or the glyphs have a row of their own."""
_TINY = """\
- Both sides are CUB-200. Ours has a ViT-Ti/16 where the paper has a ViT-S/16, by a protocol that was written down first
  (docs/tiny.md). So **orderings** can be compared, and where a curve has its maximum; the *difference* is also the
  backbone's.
- *Closed form* and *frozen* are rows of ours alone: what there is without a step of training.
- **No photograph is shown**: those of CUB-200 may not be passed on. The notebooks tour and explore, which show them,
  are left out. To have them in results/tiny/notebooks: `./run_all.sh --profile tiny --data DIR --only tour,explore`."""
_REAL = """\
- Both sides are the same benchmarks, so the **difference** is meant to be read. The paper prints one number a row,
  without intervals."""
_SMOKE = "- In this profile a run has a handful of steps: not even orderings mean anything."
_READING = """\
- Tables show **paper | ours | difference** (ours − paper); the paper's numbers are lighter. An empty cell: that side
  has no number. Retrieval is in percent. **±** is half the 95 % interval over seeds, there only with two seeds or more.
- **MAP@R released** counts one rank too many, as the paper's published code does, and is what the paper's MAP@R
  compares with; **MAP@R** is the metric as defined by Musgrave et al. (2020).
- A column **vs** *a method* is the paired difference on the same queries with its 95 % bootstrap interval; **≈** marks
  one that could be chance. The interval is over queries alone: another seed may turn a difference that has no mark.
- **Model selection** *released*: each metric from its best epoch on the test set, as the published numbers, so
  optimistic for both sides; *last*: the last epoch; *validation*: chosen on held-out training classes.
- Times and memory belong to the machine named; the paper's to one RTX 3090."""




@dataclass
class Chapter:
    """A notebook and what it left in the results.

    Attributes:
        name: of the notebook, and the beginning of all its results' names.
        only: what picks it with ``--only``.
        title, claim, compared, more: its opening, see `opening`.
        manifest: None where the notebook has not run.
        page: the name of its executed copy as HTML; "" where there is none.
        figures, tables: what is shown of them; of a broken file, what is wrong with it.
    """

    name: str
    only: str
    title: str
    claim: str
    compared: str
    more: str
    manifest: Manifest | None
    page: str
    figures: list[Any] = field(default_factory=list)
    tables: list[Any] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)

    @property
    def made(self) -> Manifest:
        return self.manifest or Manifest()

    @property
    def there(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.made.tables or self.made.figures or self.made.record or self.page)

    @property
    def state(self) -> str:
        if self.made.failure:
            return "failed last time; shown is an earlier one" if self.there else "failed"
        if not self.there:
            return "not run"
        if self.made.missing and not self.made.runs:
            return "ran without data" if any(each.dataset for each in self.made.missing) else "ran without runs"
        return "run in part" if self.made.missing else "run"

    def values(self, fact: str) -> str:
        return ", ".join(self.made.record.get(fact, []))


def build(results: str | Path = CHECKOUT / "results", profile: str = "demo", notebooks: Path = FOLDER) -> Path:
    """Write ``results/<profile>/index.html`` from what the notebooks left there; anything may be missing.

    Raises:
        VptspError: an unknown profile, or a place that cannot be written.
    """
    if profile not in PROFILES:
        raise VptspError(f"unknown profile {profile!r}; one of: {', '.join(PROFILES)}")
    folder = Path(results).expanduser().resolve() / profile
    chapters = [_chapter(folder, source) for source in sorted(discover((), notebooks, profile), key=_order)]
    facts: dict[str, list[str]] = {}
    for chapter in chapters:
        for fact, values in chapter.made.record.items():
            facts.setdefault(fact, []).extend(value for value in values if value not in facts[fact])
    command = "./run_all.sh" + _options(folder.parent, profile)
    if facts.get(SEED, ["0"]) != ["0"]:
        command += f" --seeds {','.join(facts[SEED])}"
    text = {"demo": [_STAND_INS], "smoke": [_STAND_INS, _SMOKE], "tiny": [_TINY], "paper": [_REAL]}[profile]
    page = TEMPLATES.get_template("results.html").render(
        title=f"VPTSP: the paper's tables and figures, profile {profile}",
        profile=f"{profile}: {PROFILES[profile]}",
        chapters=chapters,
        command=command,
        with_data=command if "--data" in command else f"{command} --data DIR",
        there=[chapter for chapter in chapters if chapter.there],
        runs={run.hash: run.seconds for chapter in chapters for run in chapter.made.runs},
        absent=_absent(chapters),
        devices="; ".join(facts.get(DEVICE, [])),
        facts=_facts({fact: values for fact, values in facts.items() if fact not in ("run", "runs")}, "all notebooks"),
        record=lambda chapter: _facts(chapter.made.record, f"record of {chapter.name}"),
        reading="\n".join([*text, _READING]),
        markdown=markdown,
        duration=_duration,
        RECORD=RECORD,
    )
    path = folder / "index.html"
    write_bytes(path, page.encode())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m vptsp_core report`."""
    parser = argparse.ArgumentParser("python -m vptsp_core report", description="Build the results page.")
    parser.add_argument("--results", metavar="DIR", default=CHECKOUT / "results", help="default: results")
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="default: demo")
    options = parser.parse_args(argv)
    print(build(options.results, options.profile))
    return 0


def opening(source: Path) -> tuple[str, str, str, str]:
    """Of a notebook's Markdown before its parameters: the title; the claim, a paragraph with its list; the paragraph
    "What can be compared"; and the rest."""
    text = ""
    for cell in read(source).cells:
        if cell.cell_type != "markdown":
            break
        text += f"{cell.source}\n\n"
    first, *blocks = re.split(r"\n\s*\n", text.strip())
    title, _, claim = first.partition("\n")
    if not claim and blocks:
        claim = blocks.pop(0)
    if blocks and re.match(r"([-*]|\d+\.) ", blocks[0]):
        claim += f"\n\n{blocks.pop(0)}"
    compared = [block for block in blocks if block.startswith(_COMPARED)]
    more = [block for block in blocks if block not in compared]
    return title.lstrip("# ") or source.stem, claim, "\n\n".join(compared), "\n\n".join(more)


def _chapter(folder: Path, source: Path) -> Chapter:
    """One notebook's; ``folder`` is one profile's."""
    name = source.stem
    page = f"{name}.html" if (folder / "notebooks" / f"{name}.html").is_file() else ""
    chapter = Chapter(name, name.split("_")[0], *opening(source), manifest=None, page=page)
    try:
        chapter.manifest = Manifest.read(folder, name)
    except VptspError as error:
        chapter.broken.append(str(error))
    for file in chapter.made.figures:
        try:
            shown = figure(folder / "figures" / file, _words(file, name) or chapter.title)
            chapter.figures.append({"file": file, **shown})
        except VptspError as error:
            chapter.figures.append({"file": file, "wrong": str(error)})
            chapter.broken.append(str(error))
    for file in chapter.made.tables:
        try:
            columns = read_table(folder / "tables" / file)
            compared = {PAPER, OURS} <= {column.side for column in columns}
            title = "Paper | ours | difference" if compared else "Numbers"
            title += f": {_words(file, name)}" if _words(file, name) else ""
            chapter.tables.append({"title": title, "html": table_html(columns, title)})
        except VptspError as error:
            chapter.tables.append({"wrong": str(error)})
            chapter.broken.append(str(error))
    return chapter


def _words(file: str, name: str) -> str:
    """What tells a file apart from the notebook's others: the end of its name."""
    return Path(file).stem.removeprefix(name).strip("_").replace("_", " ")


def _order(source: Path) -> tuple[int, int, str]:
    """Tables, then figures, by number, then the rest."""
    kind = re.match(r"(table|fig)(\d+)", source.stem)
    return (2, 0, source.stem) if kind is None else (("table", "fig").index(kind[1]), int(kind[2]), source.stem)


def _absent(chapters: Sequence[Chapter]) -> dict[tuple[str, str], list[str]]:
    """Of each data set that is not there, (name, the command that gets it): the notebooks that need it."""
    needed: dict[tuple[str, str], list[str]] = {}
    for chapter in chapters:
        for each in chapter.made.missing:
            if each.dataset:
                needed.setdefault((each.dataset, each.command), []).append(chapter.only)
    return needed


def _facts(facts: dict[str, list[str]], label: str) -> str:
    names = Column("fact", "", list(facts))
    return table_html([names, Column(label, "", [", ".join(values) for values in facts.values()], True)], label)


def _options(results: Path, profile: str) -> str:
    """What `run_all.sh` needs to write to the same place."""
    text = "" if profile == "demo" else f" --profile {profile}"
    text += " --data DIR" if profile in ("tiny", "paper") else ""
    where = results.relative_to(CHECKOUT) if results.is_relative_to(CHECKOUT) else results
    return text if str(where) == "results" else f"{text} --results {shlex.quote(str(where))}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
