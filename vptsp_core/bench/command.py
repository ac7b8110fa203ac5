"""What things cost, measured: python -m vptsp_core bench step|table|data|eval."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.bench import compare_forms
from vptsp_core.bench.data import compare_pipelines, epoch_over_steps
from vptsp_core.bench.metrics import SIZES, benchmark_metrics
from vptsp_core.bench.table import compare_tables
from vptsp_core.data import load_benchmark
from vptsp_core.data.batches import cache_folder
from vptsp_core.errors import VptspError
from vptsp_core.faiss_index import BACKENDS
from vptsp_core.files import write_json
from vptsp_core.presets import parse_change, preset


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints a table and, with ``--json``, writes it too."""
    parser = argparse.ArgumentParser("python -m vptsp_core bench", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    step = kinds.add_parser("step", help="our step against the textbook form, by turns")
    step.add_argument("--preset", default="cub200-vits16")
    table = kinds.add_parser("table", help="class prompts in host memory against the device's, by turns")
    table.add_argument("--preset", default="inshop-vits16")
    table.add_argument("--classes", type=int, help="default: the training set's; on the CPU at most 256")
    data = kinds.add_parser("data", help="the cached pipeline against the classic one, by turns")
    data.add_argument("--preset", default="cub200-vits16")
    data.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
    data.add_argument("--cache", metavar="DIR", help="of decoded images (default: .vptsp-cache in the data folder)")
    data.add_argument("--allow-partial", action="store_true", help="measure on a set that is not whole, too")
    data.add_argument("--train", action="store_true", help="instead: an epoch against its steps without loading")
    for each in (step, table, data):
        each.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes", help="e.g. batch=16")
        each.add_argument("--steps", type=int, default=10, help="timed turns; batches a turn for data (default: 10)")
    evaluation = kinds.add_parser("eval", help="retrieval metrics against a bare exact search, by turns")
    evaluation.add_argument("--size", choices=SIZES, default="sop", help="of which test set (default: sop)")
    evaluation.add_argument("--backend", choices=BACKENDS, default="torch", help="what searches for the metrics")
    evaluation.add_argument("--repeats", type=int, default=3, help="timed turns (default: 3)")
    for each in (step, table, data, evaluation):
        each.add_argument("--device", default=None, help="default: a GPU where there is one")
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    turns = "repeats" if args.kind == "eval" else "steps"
    if getattr(args, turns) < 1:
        raise VptspError(f"--{turns} {getattr(args, turns)} must be at least 1")
    if args.kind != "eval":
        config = preset(args.preset, **dict(parse_change(change) for change in args.changes))
        if args.kind == "step":
            found = compare_forms(config, device=args.device, steps=args.steps)
        elif args.kind == "data":
            measure = epoch_over_steps if args.train else compare_pipelines
            benchmark = load_benchmark(config.dataset, args.data, args.allow_partial)
            found = measure(
                config, benchmark, cache_folder(args.data, args.cache), device=args.device, steps=args.steps
            )
        else:
            found = compare_tables(config, args.classes, device=args.device, steps=args.steps)
    else:
        found = benchmark_metrics(SIZES[args.size], args.device, args.backend, args.repeats)
    print(json.dumps(found, indent=2))
    if args.json:
        write_json(args.json, found)
    return 0
