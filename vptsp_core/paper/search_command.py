"""python -m vptsp_core tune: the space of table 9 from the command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.data import refuse_unread
from vptsp_core.method.presets import PRESETS, parse_change, preset
from vptsp_core.paper.search import best_config, results_folder, told, tune, write_preset
from vptsp_core.system.bars import is_log

MACHINES = """\
The same command resumes a search that was stopped, and starts one more worker of a search that runs: here, or with the
same --storage on other machines (SQLite serves one machine only):
  python -m vptsp_core tune --preset cub200-vits16 --trials 200 --storage postgresql+psycopg://USER@HOST/DATABASE
To train the best configuration on all training classes:
  python -m vptsp_core train --preset results/presets/STUDY.json --set selection=released
"""


def main(argv: Sequence[str]) -> int:
    """Search, a line a trial, and write the best configuration as a preset. Returns the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core tune",
        description="search the space of the paper's table 9",
        epilog=MACHINES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--preset", default="demo", help=f"to start from: one of {', '.join(PRESETS)}, or a .json file (default: demo)"
    )
    parser.add_argument("--method", help="full, linear, adapter, vpt or vptsp (default: the preset's)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
        help="e.g. epochs=30; what is set is not searched. Trials are judged by held-out training classes; "
        "selection=released judges them by the test classes, as the paper did",
    )  # fmt: skip
    parser.add_argument("--trials", type=int, help="of the whole study (default: 50, or as many as it was begun with)")
    parser.add_argument("--storage", metavar="URL", help="SQLAlchemy URL (default: search.db in the results folder)")
    parser.add_argument("--study", metavar="NAME", help="default: data set, backbone and method")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--results", metavar="DIR", help="default: ./results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)")
    parser.add_argument("--best", metavar="FILE.json", help="the preset to write (default: presets/STUDY.json there)")
    args = parser.parse_args(argv)
    changes = {"selection": "validation"} | dict(parse_change(change) for change in args.changes)
    if args.method is not None:
        changes["method"] = args.method
    if changes.get("method") == "full":  # learns all of the backbone anyhow
        changes.setdefault("bitfit", False)
    base = preset(args.preset, **changes)
    refuse_unread(base.dataset, args.data)
    study = tune(
        base, args.trials, storage=args.storage, name=args.study, results=args.results,
        data=args.data, device=args.device, keep=changes, tell=lambda line: print(line, flush=True),
        progress=is_log(),  # a line an epoch; in a terminal a line a trial is enough
    )  # fmt: skip
    best_config(study)  # says so where there is none
    file = Path(args.best or results_folder(args.results) / "presets" / f"{study.study_name}.json")
    print(f"best: {told(study.best_trial)}\n{write_preset(study, file.expanduser().absolute())}")
    return 0
