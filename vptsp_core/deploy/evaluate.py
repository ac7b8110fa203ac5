"""python -m vptsp_core evaluate: compute the metrics of a finished run or of a saved embedder."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping, Sequence

from vptsp_core.data import load_benchmark, refuse_unread
from vptsp_core.errors import refuse_empty
from vptsp_core.method.faiss_index import BACKENDS, installed
from vptsp_core.runs.embedder import load
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.system.devices import pick_device
from vptsp_core.system.distributed import is_main, launched, start


def main(argv: Sequence[str]) -> int:
    """Evaluate the model that the command line names, print its metrics, and return the exit status."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core evaluate", description="compute the metrics of a finished run's saved weights"
    )
    parser.add_argument("run", help="folder of a finished run, a saved embedder, or hf://ORG/NAME")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, if they have moved since")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets (default: VPTSP_DATA)")
    parser.add_argument("--allow-partial", action="store_true", help="accept an incomplete data set, with a warning")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="library that searches (default: torch)")
    args = parser.parse_args(argv)
    refuse_empty({name: value for name, value in vars(args).items() if name != "run"})  # which is no option
    if launched():  # before anything can fail: the group knows which process failed
        start(pick_device(args.device))
    embedder = load(args.run, args.device, weights=args.weights)
    refuse_unread(embedder.model.config.dataset, args.data)
    benchmark = load_benchmark(embedder.model.config.dataset, args.data, args.allow_partial)
    if embedder.data is not None:
        _warn_of_other_images(embedder.data, benchmark.record())
    metrics = evaluate(embedder.model, benchmark, args.backend, progress=is_main())
    print("  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    if args.backend == "faiss":
        print(f"searched by {installed()}")
    return 0


def _warn_of_other_images(of_run: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Warn if these are not the images that the run was tested on: the run may have been trained on their classes."""
    other = [split for split in ("test", "gallery") if of_run.get(split) != now.get(split)]
    if other:
        warnings.warn(
            f"these are not the {' and '.join(other)} images that the run was tested on: the run may have been trained "
            "on some of their classes, and then the numbers are too high",
            stacklevel=2,
        )
