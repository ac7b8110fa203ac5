"""What things cost, measured: python -m vptsp_core bench step|epoch|eval|data|table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vptsp_core.data import data_folder, load_benchmark, refuse_unread
from vptsp_core.data.batches import cache_folder
from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.config import check_choice
from vptsp_core.method.faiss_index import BACKENDS
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.paper.bench import FORMS
from vptsp_core.paper.bench.data import compare_pipelines, epoch_over_steps
from vptsp_core.paper.bench.epoch import measure_epoch
from vptsp_core.paper.bench.forms import compare_forms, table
from vptsp_core.paper.bench.metrics import SIZES, benchmark_metrics
from vptsp_core.paper.bench.table import compare_tables
from vptsp_core.paper.bench.terminal import listing, searches
from vptsp_core.system.files import write_json


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; prints a table and, with ``--json``, writes it too.

    Raises:
        VptspError: no turns or steps at all, or what the measurement itself raises.
    """
    parser = argparse.ArgumentParser("python -m vptsp_core bench", description=__doc__)
    kinds = parser.add_subparsers(dest="kind", required=True)
    step = kinds.add_parser("step", help="our step as written, compiled, textbook and as released, by turns")
    step.add_argument("--preset", default="cub200-vits16")
    step.add_argument("--steps", type=int, default=100, help="timed steps of each (default: 100)")
    step.add_argument(
        "--forms",
        default=",".join(FORMS),
        metavar="F,...",
        help="of ours, eager first (default: %(default)s; compiling takes minutes on a CPU)",
    )
    memory = kinds.add_parser("table", help="class prompts in host memory against the device's, by turns")
    memory.add_argument("--preset", default="inshop-vits16")
    memory.add_argument("--classes", type=int, help="default: the training set's; on the CPU at most 256")
    memory.add_argument("--steps", type=int, default=10, help="timed turns (default: 10)")
    data = kinds.add_parser("data", help="the cached pipeline against the classic one, by turns")
    data.add_argument("--preset", default="cub200-vits16")
    data.add_argument("--train", action="store_true", help="instead: an epoch against its steps without loading")
    data.add_argument("--steps", type=int, default=10, help="batches a turn (default: 10)")
    epoch = kinds.add_parser("epoch", help="an epoch and its evaluation: steps, loading, embedding, compiling")
    epoch.add_argument("--preset", default="demo")
    for each in (data, epoch):
        each.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
        each.add_argument("--cache", metavar="DIR", help="of decoded images (default: .vptsp-cache in the data folder)")
        each.add_argument("--allow-partial", action="store_true", help="measure on a set that is not whole, too")
    for each in (step, memory, data, epoch):
        each.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes",
                          help="e.g. batch=16")  # fmt: skip
    evaluation = kinds.add_parser("eval", help="retrieval metrics against a bare exact search, by turns")
    evaluation.add_argument("--size", choices=SIZES, default="sop", help="of which test set (default: sop)")
    evaluation.add_argument("--backend", choices=BACKENDS, default="torch", help="what searches for the metrics")
    evaluation.add_argument("--repeats", type=int, default=3, help="timed turns (default: 3)")
    for each in (step, evaluation):
        each.add_argument("--reference", metavar="DIR", help="your clone of the released implementation, as one more")
    for each in (step, memory, data, epoch, evaluation):
        each.add_argument("--device", default=None, help="default: a GPU where there is one")
        each.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    args = parser.parse_args(argv)
    for turns in ("repeats", "steps"):
        if getattr(args, turns, 1) < 1:
            raise VptspError(f"--{turns} {getattr(args, turns)} must be at least 1")
    found = _measured(args)
    print({"step": table, "eval": searches}.get(args.kind, listing)(found))
    if args.json:
        write_json(args.json, found)
    return 0


def _measured(args: argparse.Namespace) -> dict[str, Any]:
    if args.kind == "eval":
        return benchmark_metrics(SIZES[args.size], args.device, args.backend, args.repeats, args.reference)
    config = preset(args.preset, **dict(parse_change(change) for change in args.changes))
    if args.kind == "step":
        forms = args.forms.split(",")
        for form in forms:
            check_choice("--forms", form, FORMS)
        if forms[0] != "eager":
            raise ConfigError(f"--forms {args.forms} must begin with eager, which the others are compared with")
        return compare_forms(
            config, device=args.device, steps=args.steps, forms=forms, reference=args.reference, progress=True,
        )  # fmt: skip
    if args.kind == "table":
        return compare_tables(config, args.classes, device=args.device, steps=args.steps)
    refuse_unread(config.dataset, args.data)
    benchmark = load_benchmark(config.dataset, args.data, args.allow_partial)
    cache = cache_folder(config.dataset, data_folder(config.dataset, args.data), args.cache)
    if args.kind == "epoch":
        return measure_epoch(config, benchmark, cache, device=args.device)
    measure = epoch_over_steps if args.train else compare_pipelines
    return measure(config, benchmark, cache, device=args.device, steps=args.steps)
