"""Executes the notebooks and writes executed copies and HTML to the results.

One kernel of this interpreter executes all of them, one after another (`publish.kernel`). If a notebook fails, the
others still run. A half-executed copy has another name, so nobody mistakes it for a finished one.
"""

import argparse
import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from vptsp_core.errors import VptspError
from vptsp_core.method.presets import parse_change
from vptsp_core.paper.methods import SEEDED, all_rows, base_config, configured
from vptsp_core.publish.html import notebook_html
from vptsp_core.publish.kernel import OneKernel
from vptsp_core.publish.manifest import Manifest, is_finished, made_from
from vptsp_core.publish.page import PROFILES, build
from vptsp_core.publish.parameters import FOLDER, TINY, discover, panels_of, taken_parameters
from vptsp_core.publish.plan import show
from vptsp_core.runs.folder import whole_path
from vptsp_core.runs.progress import every, training_line
from vptsp_core.runs.workers import Workers, check_cluster, check_workers
from vptsp_core.system.bars import EVERY, duration, is_log, say
from vptsp_core.system.files import writable_folder, write_bytes
from vptsp_core.system.locks import locked
from vptsp_core.system.places import CHECKOUT, from_root
from vptsp_core.system.portable import cores, replace

_MOST = 8  # processes that train the demo side by side; each needs about 700 MB
_DESCRIPTION = """Execute the notebooks and build the results page. A notebook that was finished with the same source,
parameters and package, and whose results are there, is not executed again. To execute it again, delete its executed
copy."""


def run_notebooks(
    profile: str = "demo",
    data: str | Path | None = None,
    results: str | Path = CHECKOUT / "results",
    only: Sequence[str] = (),
    seeds: Sequence[int] | None = None,
    folder: Path = FOLDER,
    *,
    workers: Workers = None,
    changes: Mapping[str, Any] | None = None,
    dry: bool = False,
) -> int:
    """Execute notebooks one after another, in the repository's root. Return 0, or 1 if any failed.

    Writes results/<profile>/notebooks/<name>.ipynb and .html; the copy of a notebook that fails is <name>.failed.ipynb.
    A finished notebook (`manifest.is_finished`) is not executed again. Two calls never execute the same notebook at
    once: the second call waits for the first.

    Args:
        data, seeds, workers, changes: for the notebooks that have such a parameter. If None, the notebooks' defaults
            apply. There are two exceptions: the profile tiny has the seeds of its protocol (`SEEDED`), and the demo
            without a GPU uses one process per core, at most 8.
        dry: execute nothing; print the finished and the missing runs (`plan.show`).

    Raises:
        VptspError: an option, a notebook's parameters or a folder cannot be used. No notebook has run then.
    """
    configured(profile, {}, changes or {})  # refuses an unknown profile or key, or a wrong type
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise VptspError(f"seeds = {list(seeds)} contain a seed twice; give each seed once")
    check_cluster(check_workers(workers))
    results = Path(results).expanduser().resolve()
    data = None if data is None else Path(data).expanduser().resolve()
    if data is not None and not data.is_dir():
        raise VptspError(f"--data: there is no folder {data}")
    changes = dict(changes or {})
    if isinstance(weights := changes.get("weights"), str):
        changes["weights"] = whole_path(weights)  # kernels have another working directory
    values: dict[str, Any] = {"profile": profile, "results": from_root(results)}
    options = {
        "data": data and from_root(data),
        "seeds": seeds and list(seeds),
        "workers": workers,
        "changes": changes,
    }
    values |= {name: value for name, value in options.items() if value}
    only, panels = panels_of(only)
    more: dict[str, Any] = {"panels": panels} if panels else {}
    # On a CPU, each process of the demo has one thread: two are no faster with its small model, and one gives the same
    # rounding on machines with few and with many cores.
    one_thread = profile == "demo" and not torch.cuda.is_available()
    if workers is None and one_thread:
        more["workers"] = min(cores(), _MOST)
    protocol = {"seeds": [*range(max(SEEDED.values()))]} if profile == "tiny" else {}
    work = [
        (path, taken_parameters(path, (protocol if path.stem in TINY else {}) | values | more))
        for path in discover(only, folder, profile)
    ]
    check_use(work, values, profile)
    if dry:
        show(work, data, results / profile)
        return 0
    out = writable_folder(results / profile / "notebooks")
    table, failures = [], 0
    with contextlib.closing(OneKernel(1 if one_thread else None)) as kernel:
        for number, (path, given) in enumerate(work, start=1):
            print(f"[{number}/{len(work)}] {path.stem}", flush=True)
            start = time.perf_counter()
            with locked(out / f".{path.stem}.lock", f"{path.stem}: another call executes it; waiting"):
                made = made_from(path, given)
                written, problem, unchanged = out / path.name, "", is_finished(out.parent, path.stem, made)
                if not unchanged:
                    with _progress(path.stem, out.parent / "runs"):
                        written, problem = _execute(path, out, given, made, kernel)
                if not problem:
                    print(f"    {written.with_suffix('.html')}", flush=True)
            seconds = time.perf_counter() - start
            state = "unchanged" if unchanged else "failed" if problem else "ok"
            table.append(f"{path.stem:<28} {state:<9} {seconds:7.1f} s  {written}")
            if problem:
                failures += 1
                table.append(f"    {problem}")
    print("", *table, sep="\n")
    print(f"{len(work) - failures} of {len(work)} notebooks are finished; results: {out.parent}", flush=True)
    return int(failures > 0)


def check_use(work: Sequence[tuple[Path, Mapping[str, Any]]], values: Mapping[str, Any], profile: str) -> None:
    """Print a line about an option that only some of the notebooks read.

    Raises VptspError for an option that none of them reads.
    """
    for name in values.keys() - {"profile", "results"}:
        option = "--set" if name == "changes" else f"--{name}"
        without = [path.stem for path, given in work if name not in given]
        if len(without) == len(work):
            named = ", ".join(without)
            raise VptspError(f"{option}: not a parameter of {named}; leave it out, or name others with --only")
        if without:
            print(f"{option}: not a parameter of {', '.join(without)}; the others get it", file=sys.stderr)
    if "data" in values and base_config(profile).dataset == "glyphs":
        print(f"--data: profile {profile!r} trains the embedded glyphs; try --profile paper", file=sys.stderr)
    if changes := values.get("changes"):
        unread = [configured(profile, row, changes).unread() for row in all_rows(profile).values()]
        if never := [key for key in changes if all(key in each for each in unread)]:
            raise VptspError(f"--set: no run of profile {profile!r} reads {', '.join(never)}; leave it out")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m vptsp_core notebooks`. Return the exit status of `run_notebooks`.

    Raises VptspError if an option has an invalid value, and for the reasons of `run_notebooks`.
    """
    parser = argparse.ArgumentParser("python -m vptsp_core notebooks", description=_DESCRIPTION, allow_abbrev=False)
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="default: demo")
    parser.add_argument("--data", metavar="DIR", help="folder with the real data sets")
    parser.add_argument("--results", metavar="DIR", default=CHECKOUT / "results", help="default: results")
    parser.add_argument("--only", metavar="A,B", type=lambda text: text.split(","), action="extend",
                        help="beginnings of notebook names; fig3d is panel d of figure 3")  # fmt: skip
    parser.add_argument("--seeds", metavar="N,N", type=_numbers, action="extend",
                        help="for example 0,1,2; default: 0; in the profile tiny those of docs/tiny.md")  # fmt: skip
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", metavar="N|gpus", type=_number_or_text,
                       help="train runs in parallel in N processes, or one per GPU; default: one run after another, "
                       "but the demo on a CPU uses one process per core (at most 8)")  # fmt: skip
    where.add_argument("--cluster", metavar="tcp://HOST:PORT", dest="workers",
                       help="train runs in parallel on this Dask cluster")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
                        help="change keys of every run, for example epochs=2; may be repeated")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list finished and missing runs; execute nothing")
    options = parser.parse_args(argv)
    for name in ("data", "results"):
        if getattr(options, name) == "":  # for example an unset shell variable
            raise VptspError(f"--{name} is empty; give a value, or leave it out")
    status = run_notebooks(
        options.profile, options.data, options.results, options.only or (), options.seeds, workers=options.workers,
        changes=dict(map(parse_change, options.changes)), dry=options.dry_run,
    )  # fmt: skip
    if not options.dry_run:
        print(build(options.results, options.profile))
    return status


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes numbers such as 0,1,2, not {text!r}") from None


def _number_or_text(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


@contextlib.contextmanager
def _progress(name: str, runs: Path) -> Iterator[None]:
    """Inside, show the notebook, its time and the runs that are training.

    On a terminal this is one line that is overwritten. In a log a new line is written when an epoch
    or a run is finished.
    """
    start, last = time.perf_counter(), ""
    shown = tqdm(desc=name, bar_format="{desc} {elapsed}{postfix}", disable=is_log(), leave=False, dynamic_ncols=True)

    def show_line() -> None:
        nonlocal last
        training = training_line(runs.glob("*"))
        shown.set_postfix_str(training)
        if training not in ("", last):
            last = training
            say(f"{name} {duration(time.perf_counter() - start)}, {training}")

    with shown, every(EVERY if is_log() else 1, show_line):
        yield


def _execute(path: Path, out: Path, values: dict[str, Any], made: str, kernel: OneKernel) -> tuple[Path, str]:
    """Execute one notebook. Return the path of its executed copy, and what went wrong in one line, or "".

    During the execution the copy has another name, so that <name>.ipynb is always a finished one.
    """
    start, name, folder = time.perf_counter(), path.stem, out.parent
    begun, failed = out / f".{name}.partial.ipynb", out / f"{name}.failed.ipynb"
    try:
        kernel.execute(path, begun, values)
        write_bytes(out / f"{name}.html", notebook_html(begun, name).encode())
        replace(begun, out / path.name)
        Manifest.read(folder, name).close(folder, name, made, time.perf_counter() - start)
        failed.unlink(missing_ok=True)
        return out / path.name, ""
    except Exception as error:  # any error of a notebook is its own failure, and the others still run
        kernel.close()
        failed.unlink(missing_ok=True)  # the copy of an earlier failure
        if begun.exists():
            replace(begun, failed)
        manifest = Manifest()
        with contextlib.suppress(VptspError):  # a damaged manifest
            manifest = Manifest.read(folder, name)
        manifest.failure = _describe(error)
        manifest.write(folder, name)
        return failed, manifest.failure
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # it would complain about the cell that was stopped
        raise
    finally:
        begun.unlink(missing_ok=True)


def _describe(error: Exception) -> str:
    """Describe an error in one line. If a cell failed, the line begins with the number of the cell."""
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, PapermillExecutionError):
        return f"In [{error.exec_count}] -> {error.ename}: {' '.join(error.evalue.split())}"[:300]
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
