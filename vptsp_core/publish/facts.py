"""What a results folder holds of each notebook, and what the runs behind it were made with."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vptsp_core.errors import VptspError
from vptsp_core.publish.parameters import discover, read
from vptsp_core.publish.tables import read_table

RECORD = "_record"
RUNS, HASHES, SECONDS, DEVICE, SELECTION = (
    "runs", "run", "seconds of training and evaluation, all runs", "device", "epoch reported",
)  # fmt: skip
# Printed by notebooks: paper.report.absent_data, paper.compare.carry_out, paper.figure3.left_out.
_ABSENT = re.compile(r"^(?:<pre>)?((?:No runs:|Not run:|Panel \w+ without) [^<\n]+)", re.MULTILINE)
_COMPARED = "**What can be compared.**"  # how that paragraph begins
_COMMA = re.compile(r", (?!\d+ threads)")  # between values; the device "cpu, 2 threads" is one


@dataclass(frozen=True)
class Chapter:
    """A notebook and what it left in the results.

    Attributes:
        name: of the notebook, and the beginning of all its results' names.
        only: the shortest ``--only`` that picks it.
        title, claim, more: its first heading, the paragraph after it (with its list), and the rest of the first cell;
            the latter two are Markdown.
        compared: the paragraph "What can be compared", Markdown, in whichever cell it stands; "" where there is none.
        tables, figures: files in tables/ (without the record) and figures/.
        record: {fact: value} of tables/<name>_record.csv; empty where there is none.
        page: its executed copy as HTML, if there.
        seconds: of the whole notebook; None where unknown.
        failure: the error that ended its last execution; "" where that went well.
        absent: what the notebook says was not run, and why: data that were not there, with the commands that get
            them, or backbones that cannot be had.
        broken: files that cannot be read, in a line each.
    """

    name: str
    only: str
    title: str
    claim: str
    compared: str
    more: str
    tables: tuple[Path, ...]
    figures: tuple[Path, ...]
    record: dict[str, str]
    page: Path | None
    seconds: float | None
    failure: str
    absent: tuple[str, ...]
    broken: tuple[str, ...]

    @property
    def there(self) -> bool:
        """Whether anything of it can be shown."""
        return bool(self.tables or self.figures or self.record or self.page)

    @property
    def empty(self) -> bool:
        """Whether it was executed, but could make no run at all: what it shows is the paper's alone."""
        return self.there and bool(self.absent) and not self.values(HASHES)

    def values(self, fact: str) -> list[str]:
        """A fact of the record, value for value."""
        text = self.record.get(fact, "")
        return _COMMA.split(text) if text else []


def chapters(folder: Path, notebooks: Path, profile: str = "demo") -> list[Chapter]:
    """One for each source in ``notebooks`` that the profile has: tables, then figures, by number, then the rest.
    ``folder`` is that profile's and may lack anything."""
    sources = sorted(discover((), notebooks, profile), key=lambda path: _order(path.stem))
    names = [path.stem for path in sources]
    return [chapter(folder, path, _shortest(path.stem, names)) for path in sources]


def _order(name: str) -> tuple[int, int, str]:
    kind = re.match(r"(table|fig)(\d+)", name)
    return (2, 0, name) if kind is None else (("table", "fig").index(kind[1]), int(kind[2]), name)


def _shortest(name: str, names: Sequence[str]) -> str:
    first = name.split("_")[0]
    alike = [other for other in names if re.match(re.escape(first) + r"(?!\d)", other)]
    return first if alike == [name] else name


def chapter(folder: Path, source: Path, only: str = "") -> Chapter:
    """One notebook's; ``folder`` is one profile's and may lack anything."""
    name = source.stem
    title, claim, compared, more = _opening(source)
    page = folder / "notebooks" / f"{name}.html"
    text = page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""
    took = re.search(r'<meta name="seconds" content="([0-9.]+)">', text)
    csvs = _of(folder / "tables", source, ".csv")
    broken = []
    record: dict[str, str] = {}
    for path in csvs:
        try:
            columns = read_table(path)
            if path.stem == name + RECORD:
                facts, values = columns
                record = dict(zip(facts.cells, values.cells, strict=True))
        except VptspError as error:
            broken.append(str(error))
        except ValueError:  # not two columns
            broken.append(f"{path.name} is no record; run its notebook again")
    return Chapter(
        name, only, title, claim, compared, more,
        tables=tuple(path for path in csvs if path.stem != name + RECORD),
        figures=tuple(_of(folder / "figures", source, ".png")),
        record=record,
        page=page if text else None,
        seconds=float(took[1]) if took else None,
        failure=_failure(folder / "notebooks" / f"{name}.failed.ipynb"),
        absent=tuple(dict.fromkeys(html.unescape(line) for line in _ABSENT.findall(text))),
        broken=tuple(broken),
    )  # fmt: skip


def _of(folder: Path, source: Path, suffix: str) -> list[Path]:
    """A notebook's files of one kind: the one of its own name, then the others as its code names them."""
    name, code = source.stem, "\n".join(cell.source for cell in read(source).cells if cell.cell_type == "code")
    found = (path for path in folder.glob(f"*{suffix}") if path.stem == name or path.stem.startswith(f"{name}_"))
    place = {path: code.find(f'"{path.stem}"') for path in found}
    return sorted(place, key=lambda path: (path.stem != name, place[path] % (len(code) + 1), path.stem))  # -1: last


def _opening(source: Path) -> tuple[str, str, str, str]:
    """Title and claim of a notebook's first Markdown cell, what can be compared, and the rest of that cell."""
    texts = [str(cell.source) for cell in read(source).cells if cell.cell_type == "markdown"] or [""]
    heading = re.match(r"\s*#+ +(.+)\n?", texts[0])
    texts[0] = texts[0][heading.end() :] if heading else texts[0]
    opening, *others = ([block.strip() for block in re.split(r"\n\s*\n", text.strip())] for text in texts)
    first = 2 if len(opening) > 1 and re.match(r"([-*]|\d+\.) ", opening[1]) else 1
    compared = [block for block in sum(others, opening) if block.startswith(_COMPARED)]
    more = [block for block in opening[first:] if block not in compared]
    title = heading[1].strip() if heading else source.stem
    return title, "\n\n".join(opening[:first]), "\n\n".join(compared), "\n\n".join(more)


def _failure(path: Path) -> str:
    if not path.is_file():
        return ""
    try:
        outputs = [output for cell in read(path).cells for output in cell.get("outputs", [])]
    except VptspError:
        return "its copy cannot be read"
    errors = [output for output in outputs if output.output_type == "error"]
    return f"{errors[-1].ename}: {' '.join(errors[-1].evalue.split())}"[:300] if errors else "it was stopped"


def gathered(parts: Sequence[Chapter], leave_out: Sequence[str] = (RUNS, HASHES, SECONDS)) -> dict[str, list[str]]:
    """{fact: its values in all records, in order of appearance, each once}."""
    facts: dict[str, dict[str, None]] = {}
    for part in parts:
        for fact in part.record:
            if fact not in leave_out:
                facts.setdefault(fact, {}).update(dict.fromkeys(part.values(fact)))
    return {fact: list(values) for fact, values in facts.items()}


def run_seconds(folder: Path, parts: Sequence[Chapter]) -> tuple[int, float, bool]:
    """(different runs, seconds of training and evaluation, whether each run counts once). A run that several notebooks
    share counts once where ``folder`` still holds the runs; else the seconds are the sum over the notebooks."""
    hashes = {each for part in parts for each in part.values(HASHES)}
    kept: dict[str, float] = {}
    for path in folder.glob("runs/*/record.json"):
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            if record["hash"] in hashes:
                kept[record["hash"]] = float(record["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # not finished
    if hashes <= kept.keys():
        return len(hashes), sum(kept.values()), True
    told = [part.record.get(SECONDS, "0") for part in parts]
    shared = sum(len(part.values(HASHES)) for part in parts) > len(hashes)
    return len(hashes), sum(float(text) for text in told if re.fullmatch(r"[0-9.]+", text)), not shared
