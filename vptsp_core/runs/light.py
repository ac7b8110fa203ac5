"""Light runs: finished runs without their weights. On CUB each takes some 60 KB. Tables and figures need no more."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.errors import VptspError
from vptsp_core.runs.folder import CONFIG, HISTORY, METRICS, QUERIES, RECORD, finished_run
from vptsp_core.system.files import write_bytes

FILES = (CONFIG, HISTORY, QUERIES, RECORD, METRICS)  # metrics last: a run with them is finished


def copy_light(source: Path, target: Path) -> list[Path]:
    """Copy the finished runs in ``source``/runs to ``target``/runs, without their weights. Return the new folders.

    Runs that ``target`` already has are skipped.
    Raises VptspError: ``source`` has no finished run, or one of them is damaged.
    """
    if source.resolve() == target.resolve():
        raise VptspError(f"{source}: FROM and TO are the same folder; give another one")
    finished = [path.parent for path in sorted(source.glob(f"runs/*/{METRICS}"))]
    if not finished:
        raise VptspError(f"{source} has no finished run; give the folder that has runs/ in it")
    new = []
    for folder in finished:
        copy = target / "runs" / folder.name
        if (copy / METRICS).exists():
            continue
        finished_run(folder)  # raises an error if a file is damaged
        for name in FILES:
            write_bytes(copy / name, (folder / name).read_bytes())
        new.append(copy)
    return new


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command `python -m vptsp_core light`."""
    parser = argparse.ArgumentParser("python -m vptsp_core light", description="Copy finished runs without weights.")
    parser.add_argument("source", metavar="FROM", type=Path, help="results folder that has runs/ in it")
    parser.add_argument("target", metavar="TO", type=Path, help="results folder to copy them to, e.g. results/tiny")
    options = parser.parse_args(argv)
    source, target = options.source.expanduser().absolute(), options.target.expanduser().absolute()
    new = copy_light(source, target)
    size = sum(file.stat().st_size for folder in new for file in folder.iterdir())
    print(f"{len(new)} new runs, {size / 1e3:.0f} KB: {target / 'runs'}")
    return 0
