"""python -m vptsp_core index: make the index of a folder of images, or bring it up to date."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

from vptsp_core.deploy.index import ImageIndex, read_index
from vptsp_core.deploy.update import update
from vptsp_core.errors import VptspError, printable
from vptsp_core.runs.embedder import load

PLACE = "vptsp-index"
LISTED = 20


def main(argv: Sequence[str]) -> int:
    """Index, and say what was done. Returns the exit status; files that cannot be read do not change it."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core index",
        description="embed a folder of images, at any depth, for `search`; called again, only what is new or changed",
    )
    parser.add_argument("directory", metavar="DIR", help="the images")
    parser.add_argument("--model", metavar="RUN", help="folder of a finished run, or a saved embedder (default: that "
                        "of the index, where there is one)")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the backbone's, where they lie elsewhere by now")
    parser.add_argument("--to", metavar="INDEX", default=PLACE, help=f"folder of the index (default: {PLACE})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    model, weights = args.model, args.weights
    if model is None:
        kept = read_index(args.to)
        model, weights = model_path(kept, args.to), weights or kept.model["weights"]
    embedder = load(model, args.device, weights=weights)
    index, counts = update(
        args.directory, args.to, embedder, model=model, weights=weights, progress=True
    )  # fmt: skip
    if counts.unreadable:
        warnings.warn(left_out(list(counts.unreadable.values())), stacklevel=2)
    place = printable(str(Path(args.to).expanduser().absolute()))
    print(
        f"{place}: {len(index.names):,} images, {counts.embedded:,} embedded now, {counts.kept:,} kept, "
        f"{counts.removed:,} removed"
    )
    if index.searched:
        print(
            f"searched by graph: recall@10 {index.searched['recall']:.4f} of exact search (ef {index.searched['ef']})"
        )
    return 0


def model_path(index: ImageIndex, place: str) -> str:
    """Where the model of the index at ``place`` lies.

    Raises:
        VptspError: it lies there no more.
    """
    path = str(index.model["path"])
    if not Path(path).exists():
        raise VptspError(f"index {place}: its model is not at {path} any more; name its new place with --model")
    return path


def left_out(reasons: Sequence[str]) -> str:
    """A warning of files that cannot be read, the first of them named."""
    more = len(reasons) - LISTED
    return f"{len(reasons)} left out: {'; '.join(reasons[:LISTED])}{f'; and {more} more' if more > 0 else ''}"
