"""Measure one thing and print it as JSON: python -m tests.bench epoch|data|eval|product|heads"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vptsp_core.data import Benchmark, data_folder, load_benchmark, refuse_unread
from vptsp_core.data.batches import cache_folder, decoded
from vptsp_core.errors import VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.faiss_index import BACKENDS
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.runs.embedder import load

from .data import compare_pipelines
from .epoch import measure_epoch
from .heads import compare_heads
from .metrics import SIZES, benchmark_metrics
from .product import product_rate


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for. Return the exit status, 2 for an error."""
    args = arguments(argv)
    try:
        print(json.dumps(measured(args), indent=2))
    except VptspError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=(__doc__ or "").partition(":")[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    epoch = kinds.add_parser("epoch", help="an epoch and its evaluation: steps, loading, embedding, compiling")
    data = kinds.add_parser("data", help="the cached pipeline against the classic one")
    evaluation = kinds.add_parser("eval", help="retrieval metrics against a bare exact search")
    product = kinds.add_parser("product", help="operations of a step, and the rate of a matrix product of its size")
    for each, name in ((epoch, "demo"), (data, "cub200-vits16"), (product, "cub200-vits16")):
        each.add_argument("--preset", default=name, help=f"default: {name}")
        each.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes")
    heads = kinds.add_parser("heads", help="a trained run with other heads, and without its prompts")
    heads.add_argument("run", metavar="RUN", help="folder of a finished run")
    for each in (epoch, data, heads):
        each.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
        each.add_argument("--cache", metavar="DIR", help="of decoded images (default: .vptsp-cache in the data folder)")
        each.add_argument("--allow-partial", action="store_true", help="measure on an incomplete set too")
    data.add_argument("--steps", type=int, default=10, help="batches per turn (default: 10)")
    evaluation.add_argument("--size", choices=SIZES, default="sop", help="size of this test set (default: sop)")
    evaluation.add_argument("--backend", choices=BACKENDS, default="torch", help="library that searches")
    evaluation.add_argument("--repeats", type=int, default=3, help="timed turns (default: 3)")
    evaluation.add_argument("--reference", metavar="DIR", help="your clone of the released code, to measure it too")
    for each in (epoch, data, evaluation, product, heads):
        each.add_argument("--device", help="default: a GPU if there is one")
    return parser.parse_args(argv)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Measure what the parsed command line asks for."""
    if args.kind == "eval":
        return benchmark_metrics(SIZES[args.size], args.device, args.backend, args.repeats, args.reference)
    if args.kind == "heads":
        model = load(args.run, args.device).model
        benchmark, cache = _benchmark(model.config, args)
        return compare_heads(model, decoded(benchmark, model.config, cache))
    config = preset(args.preset, **dict(parse_change(change) for change in args.changes))
    if args.kind == "product":
        return product_rate(config, args.device)
    benchmark, cache = _benchmark(config, args)
    if args.kind == "epoch":
        return measure_epoch(config, benchmark, cache, device=args.device)
    return compare_pipelines(config, benchmark, cache, device=args.device, steps=args.steps)


def _benchmark(config: RunConfig, args: argparse.Namespace) -> tuple[Benchmark, Path]:
    """Return the data set of a run and the folder of its decoded images."""
    refuse_unread(config.dataset, args.data)
    benchmark = load_benchmark(config.dataset, args.data, args.allow_partial)
    return benchmark, cache_folder(config.dataset, data_folder(config.dataset, args.data), args.cache)


if __name__ == "__main__":
    sys.exit(main())
