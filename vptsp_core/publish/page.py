"""The results page: one file with every table and figure beside the paper's numbers, and what is missing."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

from vptsp_core.errors import VptspError
from vptsp_core.publish.facts import DEVICE, RECORD, RUNS, SELECTION, Chapter, chapters, gathered, run_seconds
from vptsp_core.publish.html import document, figure_html, markdown
from vptsp_core.publish.parameters import FOLDER
from vptsp_core.publish.tables import OURS, PAPER, Column, read_table, table_html
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import CHECKOUT

PROFILES = {
    "demo": "embedded data, a small backbone, minutes on a CPU",
    "smoke": "the demo with a handful of steps a run: shows that everything works, and nothing else",
    "tiny": "CUB-200 and a ViT-Ti/16, the paper's protocol made for a CPU",
    "paper": "the paper's benchmarks and backbones",
}
_ABSENT = re.compile(r"No runs: (\S+) is not here (\(.*?\))\. To get it: (.+?), and then: ")  # report.absent_data
_COMMAND = re.compile(r"(python -m vptsp_core [^,]+|\./run_all\.sh .+)")
_NONE = "ran without"  # states of notebooks that made no run begin so
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


def build(results: str | Path = CHECKOUT / "results", profile: str = "demo", notebooks: Path = FOLDER) -> Path:
    """Write ``results/<profile>/index.html`` from what the notebooks left there; anything may be missing.

    Raises:
        VptspError: an unknown profile, or a place that cannot be written.
    """
    if profile not in PROFILES:
        raise VptspError(f"unknown profile {profile!r}; one of: {', '.join(PROFILES)}")
    folder = Path(results).expanduser().resolve() / profile
    parts = chapters(folder, notebooks, profile)
    command = "./run_all.sh" + _options(folder.parent, profile)
    seeds = gathered(parts).get("seed", [])
    command += f" --seeds {','.join(seeds)}" if seeds not in ([], ["0"]) else ""
    title = f"VPTSP: the paper's tables and figures, profile {profile}"
    body = [f"<h1>{escape(title)}</h1>", _overview(folder, parts, profile, command), _missing(parts, command)]
    body += [_reading(profile), *(_section(part, command) for part in parts)]
    path = folder / "index.html"
    write_bytes(path, document(title, "\n".join(filter(None, body))).encode())
    return path


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m vptsp_core report`."""
    parser = argparse.ArgumentParser("python -m vptsp_core report", description="Build the results page.")
    parser.add_argument("--results", metavar="DIR", default=CHECKOUT / "results", help="default: results")
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="default: demo")
    options = parser.parse_args(argv)
    print(build(options.results, options.profile))
    return 0


def _options(results: Path, profile: str) -> str:
    """What `run_all.sh` needs to write to the same place."""
    text = "" if profile == "demo" else f" --profile {profile}"
    text += " --data DIR" if profile in ("tiny", "paper") else ""
    where = results.relative_to(CHECKOUT) if results.is_relative_to(CHECKOUT) else results
    return text if str(where) == "results" else f"{text} --results {shlex.quote(str(where))}"


def _state(part: Chapter) -> str:
    if part.failure:
        return "failed last time; shown is an earlier one" if part.page else "failed"
    if not part.there:
        return "not run"
    if part.empty:
        return f"{_NONE} data" if any(map(_ABSENT.match, part.absent)) else f"{_NONE} runs"
    return "run in part" if part.absent else "run"


def _overview(folder: Path, parts: Sequence[Chapter], profile: str, command: str) -> str:
    there = [part for part in parts if part.there]
    out = [f'<p class="quiet">Ren, Chen, Wang, Hua: <i>Learning Semantic Proxies from Visual Prompts for '
           f'Parameter-Efficient Fine-Tuning in Deep Metric Learning</i>, ICLR 2024. Profile {profile}: '
           f'{PROFILES[profile]}.</p>']  # fmt: skip
    if not there:
        out.append(f"<p class='warn'>Nothing has run yet. To run everything: <code>{escape(command)}</code></p>")
    else:
        runs, seconds, once = run_seconds(folder, there)
        whole = [part.seconds for part in there if part.seconds is not None]
        took = f" The notebooks themselves took {_duration(sum(whole))}." if len(whole) == len(there) else ""
        counted = "" if once else ", runs that several notebooks share counted in each"
        devices = "; ".join(gathered(there).get(DEVICE, []))
        empty = Counter(state for part in there if (state := _state(part)).startswith(_NONE))
        without = "".join(f" {state.capitalize()}: {count}." for state, count in empty.items())
        out.append(
            f"<p>{len(there) - empty.total()} of {len(parts)} notebooks ran, with {runs} different training runs: "
            f"{_duration(seconds)} of training and evaluation{counted}{devices and ', on '}{escape(devices)}."
            f"{without}{took}</p>"
        )
    out.append(_contents(parts))
    if there:
        facts = gathered(there)
        columns = [Column("fact", "", list(facts)), Column("all notebooks", "", [", ".join(v) for v in facts.values()])]
        out.append(
            "<details><summary>commit (+: with changes of its own), versions, data and checksums</summary>"
            f"{table_html(columns, 'What ran')}</details>"
        )
    return "\n".join(out)


def _contents(parts: Sequence[Chapter]) -> str:
    """What is on the page, a line a notebook: state, runs, time, seeds, model selection."""
    rows = []
    for part in parts:
        took = "" if part.seconds is None else _duration(part.seconds)
        cells = [part.record.get(RUNS, ""), took, part.record.get("seed", ""), part.record.get(SELECTION, "")]
        link = f'<th scope="row"><a href="#{escape(part.name)}">{escape(part.title)}</a></th>'
        state = f'<td class="words{"" if _state(part) == "run" else " warned"}">{escape(_state(part))}</td>'
        rows.append(f"<tr>{link}{state}{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>")
    names = ("state", "runs", "notebook took", "seeds", "epoch reported")
    head = "".join(f'<th scope="col"{" class=words" if name == "state" else ""}>{name}</th>' for name in ("", *names))
    box = '<nav class="scroll" tabindex="0" aria-label="Contents">'
    return f"{box}<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></nav>"


def _missing(parts: Sequence[Chapter], command: str) -> str:
    """What is not there, and the command that makes it."""
    lines = []
    data: dict[tuple[str, ...], list[str]] = {}  # of each data set that is not here, the notebooks that need it
    for part in parts:
        again = f"<code>{escape(command)} --only {escape(part.only)}</code>"
        name = f"<b>{escape(part.name)}</b>"
        if part.failure:
            copy = f"notebooks/{part.name}.failed.ipynb"
            lines.append(f"{name} failed ({escape(part.failure)}); see {escape(copy)}. Again: {again}")
        elif not part.there:
            lines.append(f"{name} has not run: {again}")
        for line in part.absent:
            if told := _ABSENT.match(line):
                data.setdefault(told.groups(), []).append(part.only)
            else:
                lines.append(f"{name}: {escape(line)}")
        lines += [f"{name}: {escape(line)} ({again})" for line in part.broken]
    rest = command if "--data" in command else f"{command} --data DIR"
    lines += [
        f"<b>{escape(dataset)}</b> is not here {escape(why)}. To get it: <code>{escape(get)}</code>, and then: "
        f"<code>{escape(rest)} --only {escape(','.join(names))}</code>"
        for (dataset, why, get), names in data.items()
    ]
    if not lines:
        return ""
    return f"<section><h2>What is missing</h2><ul>{''.join(f'<li>{line}</li>' for line in lines)}</ul></section>"


def _reading(profile: str) -> str:
    text = {"demo": [_STAND_INS], "smoke": [_STAND_INS, _SMOKE], "tiny": [_TINY], "paper": [_REAL]}[profile]
    return f"<section><h2>How to read this</h2>{markdown(chr(10).join([*text, _READING]))}</section>"


def _section(part: Chapter, command: str) -> str:
    out = [f'<section id="{escape(part.name)}"><h2>{escape(part.title)}</h2>', markdown(part.claim)]
    if part.compared:
        out.append(markdown(part.compared))
    if part.more:
        out.append(f"<details><summary>more about it</summary>{markdown(part.more)}</details>")
    if not part.there:
        why = f"It failed: {escape(part.failure)}." if part.failure else "It has not run."
        out.append(f"<p class='warn'>{why} <code>{escape(command)} --only {escape(part.only)}</code></p></section>")
        return "\n".join(out)
    for line in part.absent:
        told = _COMMAND.sub(r"<code>\1</code>", escape(line))
        out.append(f"<p class='warn'>{told}</p>")
    if part.record.get(SELECTION):
        out.append(f'<p class="quiet">Model selection: {escape(part.record[SELECTION])}.</p>')
    for path in part.figures:
        out.append(_shown(path, lambda path: figure_html(path, _words(path, part) or part.title)))
    for path in part.tables:
        out.append(_shown(path, lambda path: _table(path, part)))
    if part.record:
        rows = [Column("fact", "", list(part.record)), Column("value", "", list(part.record.values()))]
        record = table_html(rows, f"record of {part.name}")
        out.append(f"<details><summary>what these numbers come from</summary>{record}</details>")
    links = [f'<a href="notebooks/{escape(part.page.name)}">executed notebook</a>'] if part.page else []
    files = [path.name for path in part.tables] + [f"{part.name}{RECORD}.csv"] * bool(part.record)
    links += [f'<a href="tables/{escape(name)}">{escape(name)}</a>' for name in files]
    return "\n".join([*out, f'<p class="links">{" ".join(links)}</p></section>'])


def _table(path: Path, part: Chapter) -> str:
    columns = read_table(path)
    compared = {PAPER, OURS} <= {column.side for column in columns}
    title = "Paper | ours | difference" if compared else "Numbers"
    title += f": {words}" if (words := _words(path, part)) else ""
    return f"<h3>{escape(title)}</h3>{table_html(columns, title)}"


def _shown(path: Path, show: Callable[[Path], str]) -> str:
    """HTML of a file; of a broken one, what is wrong with it."""
    try:
        return show(path)
    except VptspError as error:
        return f"<p class='warn'>{escape(str(error))}</p>"


def _words(path: Path, part: Chapter) -> str:
    """What tells a file apart from the notebook's others: its name's end."""
    return path.stem.removeprefix(part.name).strip("_").replace("_", " ")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
