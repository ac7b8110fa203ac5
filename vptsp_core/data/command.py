"""Data sets from the command line: python -m vptsp_core data get|check|cache|info."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vptsp_core.data import DATASETS, OWN, Benchmark, load_benchmark
from vptsp_core.data.assemble import CONTINUING
from vptsp_core.data.base import ImageSet
from vptsp_core.data.catalog import CATALOG, DataSet
from vptsp_core.data.fetch import get, steps
from vptsp_core.data.folder import IMAGE_SUFFIXES, FileSet, read_image
from vptsp_core.errors import DataError
from vptsp_core.system.bars import amount, bar
from vptsp_core.system.portable import cores

ALLOW_PARTIAL = "continue, with a warning, if it is not the whole published data set"


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch; 0 if the data set is there and whole.

    Raises:
        DataError: what is there has to be fixed, or nothing reads the given ``--data``.
    """
    args = _parser().parse_args(argv)
    unread = {_check: ("glyphs",), _info: ("glyphs", *OWN)}.get(args.call, ())
    if args.data and args.name in unread:
        raise DataError(f"--data {args.data}: nothing reads it for {args.name}; leave it out")
    args.data = args.data or os.environ.get("VPTSP_DATA")
    args.call(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m vptsp_core data", description="get, check, describe or cache a data set"
    )
    commands = parser.add_subparsers(required=True, metavar="get|check|cache|info")
    for name, call, text in (
        ("get", _get, "download, verify and unpack a data set, or say how to get it"),
        ("check", _check, "compare a data set with its published counts"),
        ("info", _info, "what a data set is, where it comes from, its layout; all of them without a name"),
        ("cache", _cache, "keep a data set's images decoded and resized: what the cached pipeline trains from"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(call=call)
        command.add_argument(
            "name", metavar="NAME", nargs="?" if name == "info" else None, help=f"one of {', '.join(DATASETS)}"
        )
        command.add_argument(
            "--data", metavar="DIR", help="folder that holds the data sets (default: the environment's VPTSP_DATA)"
        )
        if name in ("check", "cache"):
            command.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    commands.choices["check"].add_argument("--decode", action="store_true", help="open every image, too")
    cache = commands.choices["cache"]
    cache.add_argument("--side", type=int, default=256,
                       help="shorter side in pixels: the run's `resize` (default: 256)")  # fmt: skip
    cache.add_argument("--interpolation", choices=("bilinear", "bicubic"), default="bilinear",
                       help="bilinear for semantics=released (default), bicubic for paper")  # fmt: skip
    cache.add_argument("--workers", type=int, metavar="N", help="threads that decode (default: one a core)")
    cache.add_argument(
        "--cache", metavar="DIR", help="default: the environment's VPTSP_CACHE, else .vptsp-cache in the data folder, "
        "of your own images in ./results"
    )  # fmt: skip
    return parser


def _get(args: argparse.Namespace) -> None:
    get(_known(args.name), _folder(args))


def _check(args: argparse.Namespace) -> None:
    data = None if args.name == "glyphs" else _folder(args)
    with warnings.catch_warnings():
        if not args.allow_partial:  # what is missing is an error, after the counts
            warnings.filterwarnings("ignore", message=f".*{CONTINUING}")
        benchmark = load_benchmark(args.name, data, allow_partial=True)
    _print_counts(benchmark)
    if benchmark.differences and not args.allow_partial:
        load_benchmark(args.name, data)  # says so
    if args.decode and (broken := _unreadable(benchmark)):
        print("\n".join(broken))
        raise DataError(f"{args.name}: {len(broken)} image(s) cannot be read, as listed above; replace the files")


def _print_counts(benchmark: Benchmark) -> None:
    known = CATALOG.get(benchmark.name)
    print(f"{'split':8} {'classes':>8} {'images':>8}   {'published':>17}")
    for split, images in _splits(benchmark).items():
        found, text = (len(set(images.labels.tolist())), len(images)), ""
        if known:
            published = known.counts[split]
            text = f"{published[0]:8} {published[1]:8}   {'ok' if published == found else 'NOT OK'}"
        print(f"{split:8} {found[0]:8} {found[1]:8}   {text}".rstrip(), flush=True)


def _splits(benchmark: Benchmark) -> dict[str, ImageSet]:
    if benchmark.gallery is None:
        return {"train": benchmark.train, "test": benchmark.test}
    return {"train": benchmark.train, "query": benchmark.test, "gallery": benchmark.gallery}


def _unreadable(benchmark: Benchmark) -> list[str]:
    """What is wrong with each image that cannot be decoded, in order."""
    sets = [images for images in _splits(benchmark).values() if isinstance(images, FileSet)]

    def fault(image: tuple[Path, bool]) -> str:
        try:
            read_image(*image)
        except DataError as error:
            return str(error)
        return ""

    every = [(path, images.as_shown) for images in sets for path in images.paths]
    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes beside other threads
        found = bar(pool.map(fault, every), "decoding", len(every), show=True, unit="images")
        return [reason for reason in found if reason]


def _info(args: argparse.Namespace) -> None:
    if args.name is None:
        for known in CATALOG.values():
            images = sum(images for _, images in known.counts.values())
            print(f"{known.name:12} {known.title:40} {images:8,} images")
        print("glyphs       embedded, drawn when needed; folder, own: your own images, see data info folder")
    elif args.name in OWN:
        print("Your own images: DIR/<class>/<image>. The first half of the classes in name order is for training; "
              "data set own: four fifths.\n"
              f"An image's name ends with one of {' '.join(IMAGE_SUFFIXES)}; other files are ignored, with a warning.\n"
              "Or DIR/split.csv with the header path,class,split (train, and test or query and gallery).")  # fmt: skip
    elif args.name == "glyphs":
        print("Letters of five scripts, drawn from the fonts that matplotlib ships; nothing to get.")
    else:
        _describe(_known(args.name), _folder(args) if args.data else None)


def _describe(known: DataSet, data: Path | None) -> None:
    print(f"{known.title}\n  home page: {known.home}\n  terms: {known.terms}\n  cite: {known.citation}")
    print(f"  layout under DIR: {known.tree}")
    for part in known.parts:
        size = f"{part.size:,} bytes" if part.size else ""
        by_hand = "" if part.sources else "by hand"
        print("  file:", ", ".join(each for each in (part.file, size, part.checksum, by_hand) if each))
        for source in part.sources:
            print(f"    from {source}")
    print("\n".join(steps(known, data or Path("DIR"))))
    if data:
        try:
            load_benchmark(known.name, data)
            print(f"  in {data}: there and whole")
        except DataError as error:
            print(f"  in {data}: {error}")


def _cache(args: argparse.Namespace) -> None:
    from vptsp_core.data.batches import cache_folder  # torch takes a while
    from vptsp_core.data.cache import open_stores

    if args.name == "glyphs":
        raise DataError("glyphs: they are in memory, there is nothing to cache")
    data = _folder(args)
    benchmark = load_benchmark(args.name, data, args.allow_partial)
    folder = cache_folder(args.name, data, args.cache)
    splits = {split: images for split, images in _splits(benchmark).items() if len(images)}
    stores = open_stores(
        list(splits.values()), folder, side=args.side, interpolation=args.interpolation, workers=args.workers
    )
    for split, store in zip(splits, stores, strict=True):
        print(f"{split:8} {len(store):8} images {amount(store.pixels.nbytes):>10} in {folder}")


def _known(name: str) -> DataSet:
    if name in CATALOG:
        return CATALOG[name]
    if name in DATASETS:
        raise DataError(f"{name}: there is nothing to get; see python -m vptsp_core data info {name}")
    raise DataError(f"no data set {name!r}; there are {', '.join(DATASETS)}")


def _folder(args: argparse.Namespace) -> Path:
    if not args.data:
        raise DataError(f"{args.name}: which folder? give --data DIR, or set VPTSP_DATA")
    return Path(args.data).expanduser().absolute()
