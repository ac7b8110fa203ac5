"""Executes the notebooks: this interpreter as their kernel, executed copies and HTML among the results.

One kernel executes all of them, one after the other (`publish.kernel`). A notebook that fails ends neither the series
nor the work of the others, and a copy that is half done never looks like one that finished.
"""

import argparse
import contextlib
import logging
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vptsp_core.errors import VptspError
from vptsp_core.method.config import whole_path
from vptsp_core.method.presets import parse_change
from vptsp_core.paper.methods import base_config, configured, integration_rows, method_rows, proxy_source_rows
from vptsp_core.publish.html import notebook_html
from vptsp_core.publish.kernel import OneKernel, own_kernel
from vptsp_core.publish.manifest import Manifest, is_finished, made_from
from vptsp_core.publish.page import PROFILES, build
from vptsp_core.publish.parameters import FOLDER, discover, panels_of, read, taken_parameters
from vptsp_core.publish.plan import show
from vptsp_core.runs.progress import every, under_way
from vptsp_core.runs.workers import Workers, check_cluster, check_workers
from vptsp_core.system.bars import EVERY, is_log, say
from vptsp_core.system.files import writable_folder, write_bytes
from vptsp_core.system.locks import locked
from vptsp_core.system.places import CHECKOUT
from vptsp_core.system.portable import cores, replace

_MOST = 8  # processes that train the demo side by side: each takes some 700 MB
_WHAT = """Execute the notebooks, and build the page of the results. One that was finished with the same source,
parameters and package, and whose results are there, is left as it is; to execute it again, delete its executed copy."""


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
    """Execute notebooks one after the other, in the repository's root. Returns 0, or 1 when any failed.

    Writes results/<profile>/notebooks/<name>.ipynb and .html; a failing one stays as <name>.failed.ipynb. One that is
    finished (`manifest.is_finished`) is not executed again. Two calls at once wait for each other at every notebook.

    Args:
        data, seeds, workers, changes: for the notebooks that have such parameters (`runs.run.many`; changes are keys of
            RunConfig for every run). None leaves the notebooks' own defaults, but the demo trains on a CPU in one
            process a core.
        dry: execute nothing; print the runs that are there and those that are missing (`plan.show`).

    Raises:
        VptspError: an option, a notebook's parameters or a folder that cannot be used; nothing has run then.
    """
    if profile not in PROFILES:
        raise VptspError(f"unknown profile {profile!r}; one of: {', '.join(PROFILES)}")
    configured(profile, {}, changes or {})  # an unknown key or a wrong type is an error now
    if seeds is not None and len(set(seeds)) < len(seeds):
        raise VptspError(f"seeds = {list(seeds)} name one twice: its run would count twice; give each once")
    check_cluster(check_workers(workers))
    if data is not None and not Path(data).is_dir():
        raise VptspError(f"--data: there is no folder {data}")
    changes = dict(changes or {})
    if isinstance(weights := changes.get("weights"), str):
        changes["weights"] = whole_path(weights)  # kernels have another working directory
    options = {
        "data": None if data is None else _from_root(data), "seeds": None if seeds is None else list(seeds),
        "workers": workers, "changes": changes or None,
    }  # fmt: skip
    values: dict[str, Any] = {"profile": profile, "results": _from_root(results)}
    values |= {name: value for name, value in options.items() if value is not None}
    only, panels = panels_of(only)
    work = [(path, taken_parameters(path, values)) for path in discover(only, folder, profile)]
    _check_use(work, values, profile)
    # The demo computes with one thread a process: its small model is no faster with two, and sums are rounded alike on
    # machines of few and of many cores.
    alone = profile == "demo" and not torch.cuda.is_available()
    more: dict[str, Any] = {"panels": panels} if panels else {}
    if workers is None and alone:
        more["workers"] = min(cores(), _MOST)
    work = [(path, given | taken_parameters(path, more)) for path, given in work]
    if dry:
        show(work, data, Path(results).resolve() / profile)
        return 0
    out = writable_folder(Path(results).resolve() / profile / "notebooks")
    table, failures = [], 0
    with own_kernel(1 if alone else None), contextlib.closing(OneKernel()) as kernel:
        for number, (path, given) in enumerate(work, start=1):
            print(f"[{number}/{len(work)}] {path.stem}", flush=True)
            start = time.perf_counter()
            with locked(out / f".{path.stem}.lock", f"{path.stem}: another call executes it; waiting"):
                made = made_from(path, given)
                written, problem, there = out / path.name, "", is_finished(out.parent, path.stem, made)
                if not there:
                    with _shown(path.stem, out.parent / "runs"):
                        written, problem = _execute(path, out, given, made, kernel)
                if not problem:
                    print(f"    {written.with_suffix('.html')}", flush=True)
            seconds = time.perf_counter() - start
            state = "there" if there else "failed" if problem else "ok"
            table.append(f"{path.stem:<28} {state:<7} {seconds:7.1f} s  {written}")
            if problem:
                failures += 1
                table.append(f"    {problem}")
    print("", *table, sep="\n")
    print(f"{len(work) - failures} of {len(work)} notebooks are there; results: {out.parent}", flush=True)
    return int(failures > 0)


def _check_use(work: Sequence[tuple[Path, Mapping[str, Any]]], values: Mapping[str, Any], profile: str) -> None:
    """Refuse what somebody gave and no notebook reads; print a line about what only some of them read."""
    for name in values.keys() - {"profile", "results"}:
        option = "--set" if name == "changes" else f"--{name}"
        without = [path.stem for path, given in work if name not in given]
        if len(without) == len(work):
            raise VptspError(f"{option}: no use for {', '.join(without)}; leave it out, or name others with --only")
        if without:
            print(f"{option}: no use for {', '.join(without)}; the others get it", file=sys.stderr)
    if "data" in values and base_config(profile).dataset == "glyphs":
        print(f"--data: profile {profile!r} trains the embedded glyphs; try --profile paper", file=sys.stderr)
    if changes := values.get("changes"):
        tables = (method_rows(profile), proxy_source_rows(profile), integration_rows(profile))
        unread = [configured(profile, row, changes).unread() for table in tables for row in table.values()]
        if never := [key for key in changes if all(key in each for each in unread)]:
            raise VptspError(f"--set: no run of profile {profile!r} reads {', '.join(never)}; leave it out")


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m vptsp_core notebooks`: the exit status of `run_notebooks`, and what it raises. Raises VptspError too
    for seeds that are no numbers.
    """
    parser = argparse.ArgumentParser("python -m vptsp_core notebooks", description=_WHAT)
    parser.add_argument("--profile", choices=PROFILES, default="demo", help="default: demo")
    parser.add_argument("--data", metavar="DIR", help="folder with the real data sets")
    parser.add_argument("--results", metavar="DIR", default=CHECKOUT / "results", help="default: results")
    parser.add_argument("--only", metavar="A,B", help="beginnings of notebook names; fig3d: panel d of figure 3")
    parser.add_argument("--seeds", metavar="N,N", help="such as 0,1,2; default: each notebook's own")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--workers", metavar="N|gpus",
                       help="side by side: N processes, or one a GPU; the demo on a CPU: one a core")  # fmt: skip
    where.add_argument("--cluster", metavar="tcp://HOST:PORT", help="runs side by side on this Dask cluster")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes",
                        help="for every run, such as epochs=2; as often as need be")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the runs, what is there and what is missing; "
                        "nothing is executed")  # fmt: skip
    options = parser.parse_args(argv)
    if options.seeds is not None and not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", options.seeds):
        raise VptspError(f"--seeds: expected numbers such as 0,1,2, not {options.seeds!r}")
    seeds = None if options.seeds is None else [int(seed) for seed in options.seeds.split(",")]
    only = [] if options.only is None else options.only.split(",")
    changes = dict(parse_change(change) for change in options.changes)
    workers = _workers(options.workers, options.cluster)
    status = run_notebooks(
        options.profile, options.data, options.results, only, seeds, workers=workers, changes=changes,
        dry=options.dry_run,
    )  # fmt: skip
    if options.dry_run:
        return status
    try:
        print(build(options.results, options.profile))
    except VptspError as error:  # the notebooks' own results are there all the same
        print(f"the page was not made: {error}", file=sys.stderr)
    return status


def _workers(workers: str | None, cluster: str | None) -> Workers:
    """The two options as one parameter."""
    if cluster is not None and not cluster.startswith("tcp://"):
        raise VptspError(f"--cluster: expected tcp://HOST:PORT, not {cluster!r}")
    if workers is not None and workers != "gpus" and not re.fullmatch(r"[1-9][0-9]*", workers):
        raise VptspError(f"--workers: expected a number from 1 or gpus, not {workers!r}")
    return int(workers) if workers is not None and workers != "gpus" else workers or cluster


@contextlib.contextmanager
def _shown(name: str, runs: Path) -> Iterator[None]:
    """Inside, the notebook, its time and what is training are shown: on a terminal in one line that is overwritten, in
    a log in a new line whenever something else is training or an epoch is done.
    """
    start, log, said = time.perf_counter(), is_log(), ""

    def tell() -> None:
        nonlocal said
        training = under_way(runs.glob("*"))
        minutes, seconds = divmod(int(time.perf_counter() - start), 60)
        line = f"{name} {minutes}:{seconds:02d}  {training}".rstrip()
        if not log:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]:<{width}}", end="", file=sys.stderr, flush=True)
        elif training not in ("", said):
            said = training
            say(line)

    try:
        with every(EVERY if log else 1, tell):
            yield
    finally:
        if not log:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _execute(path: Path, out: Path, values: dict[str, Any], made: str, kernel: OneKernel) -> tuple[Path, str]:
    """Run one notebook: (the copy that was written, "" or what went wrong in a line). While it runs, its copy has
    another name, so that <name>.ipynb is always one that finished.
    """
    start, name = time.perf_counter(), path.stem
    begun, failed = out / f".{name}.partial.ipynb", out / f"{name}.failed.ipynb"
    try:
        kernel.execute(path, begun, values)
        write_bytes(out / f"{name}.html", notebook_html(begun, name).encode())
        replace(begun, out / path.name)
        manifest = Manifest.read(out.parent, name)
        manifest.failure = ""
        manifest.close(out.parent, name, made, time.perf_counter() - start)
        failed.unlink(missing_ok=True)
        return out / path.name, ""
    except Exception as error:  # whatever a notebook raises is its own failure and not the end of the series
        with contextlib.suppress(Exception):  # the first error is the one that counts
            kernel.close()
        return _keep_failed(begun, failed, _describe(error)), _describe(error)
    except KeyboardInterrupt:
        logging.getLogger("asyncio").disabled = True  # nobody asks for the outcome of the cell that was stopped
        raise
    finally:
        with contextlib.suppress(OSError):
            begun.unlink(missing_ok=True)


def _keep_failed(begun: Path, failed: Path, problem: str) -> Path:
    """Keep the copy of a notebook that failed, if it is readable, note the failure, and return where the copy is.

    Nothing is raised, on a full disk for example: the error that made the notebook fail is the one that counts.
    """
    folder, name = failed.parents[1], failed.name.removesuffix(".failed.ipynb")
    with contextlib.suppress(VptspError, OSError):
        failed.unlink(missing_ok=True)  # an earlier one is of another failure
        manifest = Manifest.read(folder, name)
        manifest.failure = problem
        manifest.write(folder, name)
    with contextlib.suppress(VptspError, OSError):
        read(begun)
        replace(begun, failed)
    return failed if failed.exists() else failed.parent


def _describe(error: Exception) -> str:
    """One line; for a failing cell with the line that failed, as far as IPython's traceback marks it."""
    from papermill.exceptions import PapermillExecutionError

    if not isinstance(error, PapermillExecutionError):
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
    marked = re.search(r"^-+> *(\d+) +(.*)$", plain, re.MULTILINE)
    where = f", line {marked[1]}: {marked[2].strip()}" if marked else ""
    return f"In [{error.exec_count}]{where} -> {error.ename}: {' '.join(error.evalue.split())}"[:300]


def _from_root(path: str | Path) -> str:
    """Relative to the repository where inside it (the executed copies show it), absolute elsewhere."""
    full = Path(path).resolve()
    return str(full.relative_to(CHECKOUT) if full.is_relative_to(CHECKOUT) else full)
