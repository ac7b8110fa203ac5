"""Data sets from the command line: python -m vptsp_core data get|check|cache|info."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vptsp_core.data import DATASETS, OWN, Benchmark, find_folder, load_benchmark
from vptsp_core.data.base import ImageSet
from vptsp_core.data.catalog import CATALOG, DataSet
from vptsp_core.data.fetch import get, list_steps
from vptsp_core.data.folder import IMAGE_SUFFIXES, FileSet, read_image
from vptsp_core.errors import DataError, refuse_empty
from vptsp_core.system.bars import amount, bar
from vptsp_core.system.portable import cores

ALLOW_PARTIAL = "continue, with a warning, if it is not the whole published data set"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return 0.
    Raises DataError: the data set is missing or must be fixed, or the command does not read the given ``--data``.
    Raises ConfigError: an option is empty.
    """
    args = _parser().parse_args(argv)
    refuse_empty({key: value for key, value in vars(args).items() if key in ("data", "cache")})
    unread = {_check: ("glyphs",), _info: ("glyphs", *OWN)}.get(args.call, ())
    if args.data and args.name in unread:
        raise DataError(f"--data {args.data}: it is not read for {args.name}; leave it out")
    if args.name not in (None, *DATASETS):
        raise DataError(f"no data set {args.name!r}; there are {', '.join(DATASETS)}")
    args.data = args.data or os.environ.get("VPTSP_DATA")
    args.call(args)
    return 0


def _parser() -> argparse.ArgumentParser:
    text = "get, check, describe or cache a data set"
    parser = argparse.ArgumentParser("python -m vptsp_core data", description=text)
    commands = parser.add_subparsers(required=True, metavar="get|check|cache|info")

    def command(name: str, call: object, text: str, optional: bool = False) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        names = ", ".join(DATASETS)
        added.add_argument("name", metavar="NAME", nargs="?" if optional else None, help=f"one of {names}")
        added.add_argument("--data", metavar="DIR",
                           help="folder that holds the data sets (default: the environment's VPTSP_DATA)")  # fmt: skip
        added.set_defaults(call=call)
        return added

    command("get", _get, "download, verify and unpack a data set, or print how to get it")
    check = command("check", _check, "compare a data set with its published counts")
    check.add_argument("--decode", action="store_true", help="also open every image")
    check.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    command("info", _info, "describe a data set, its source and its layout; without a name, list all", True)
    cache = command("cache", _cache, "decode and resize a data set's images, for the cached pipeline")
    cache.add_argument("--side", type=int, default=256,
                       help="shorter side in pixels, as the run's `resize` (default: 256)")  # fmt: skip
    cache.add_argument("--interpolation", choices=("bilinear", "bicubic"), default="bilinear",
                       help="bilinear for semantics=released (default), bicubic for paper")  # fmt: skip
    cache.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    cache.add_argument("--cache", metavar="DIR",
                       help="default: the environment's VPTSP_CACHE, or else .vptsp-cache in the data folder; for your "
                       "own images in the results folder")  # fmt: skip
    return parser


def _get(args: argparse.Namespace) -> None:
    get(_find_known(args.name), _data_folder(args))


def _check(args: argparse.Namespace) -> None:
    data = None if args.name == "glyphs" else _data_folder(args)
    benchmark = load_benchmark(args.name, data, args.allow_partial)
    _print_counts(benchmark)
    if args.decode and (broken := _find_unreadable(benchmark)):
        print("\n".join(broken))
        raise DataError(f"{args.name}: {len(broken)} image(s) cannot be read, as listed above; replace the files")


def _print_counts(benchmark: Benchmark) -> None:
    known = CATALOG.get(benchmark.name)
    print(f"{'split':8} {'classes':>8} {'images':>8}   {'published':>17}")
    for split, images in _list_splits(benchmark).items():
        counted, text = (len(set(images.labels.tolist())), len(images)), ""
        if known:
            published = known.counts[split]
            text = f"{published[0]:8} {published[1]:8}   {'ok' if published == counted else 'NOT OK'}"
        print(f"{split:8} {counted[0]:8} {counted[1]:8}   {text}".rstrip(), flush=True)


def _list_splits(benchmark: Benchmark) -> dict[str, ImageSet]:
    if benchmark.gallery is None:
        return {"train": benchmark.train, "test": benchmark.test}
    return {"train": benchmark.train, "query": benchmark.test, "gallery": benchmark.gallery}


def _find_unreadable(benchmark: Benchmark) -> list[str]:
    """Return a message for each image that cannot be decoded."""
    sets = [images for images in _list_splits(benchmark).values() if isinstance(images, FileSet)]
    files = [(path, images.as_shown) for images in sets for path in images.paths]

    def find_fault(file: tuple[Path, bool]) -> str:
        try:
            read_image(*file)
        except DataError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(cores()) as pool:  # Pillow decodes several images at a time
        faults = bar(pool.map(find_fault, files), "decoding", len(files), show=True, unit="images")
        return [each for each in faults if each]


def _info(args: argparse.Namespace) -> None:
    if args.name is None:
        for known in CATALOG.values():
            state = ""
            if args.data:
                state = "folder exists" if find_folder(_data_folder(args), known).is_dir() else "no folder"
            images = sum(images for _, images in known.counts.values())
            print(f"{known.name:12} {known.title:40} {images:8,} images  {state}".rstrip())
        print("glyphs       embedded, drawn when needed; folder, own: your own images, see data info folder")
    elif args.name in OWN:
        print("Your own images: DIR/<class>/<image>. In the data set folder, the first half of the classes in name "
              "order is for training; in own, four of five.\n"
              f"An image's name ends with one of {' '.join(IMAGE_SUFFIXES)}; a warning counts other files.\n"
              "Or DIR/split.csv with the header path,class,split (train, and test or query and gallery).")  # fmt: skip
    elif args.name == "glyphs":
        print("Letters of five scripts, drawn from the fonts that matplotlib ships; nothing to get.")
    else:
        _describe(_find_known(args.name), args)


def _describe(known: DataSet, args: argparse.Namespace) -> None:
    print(f"{known.title}\n  home page: {known.home}\n  terms: {known.terms}\n  cite: {known.citation}")
    print(f"  layout under DIR: {known.tree}")
    for split, (classes, images) in known.counts.items():
        print(f"  {split}: {images:,} images of {classes:,} classes")
    for part in known.parts:
        by_hand = "" if part.sources else "by hand"
        print("  file:", ", ".join(each for each in (part.file, part.checksum, by_hand) if each))
        for source in part.sources:
            print(f"    from {source}")
    if args.data:
        try:
            load_benchmark(known.name, _data_folder(args))
            print(f"  in {_data_folder(args)}: complete")
        except DataError as error:
            print(f"  in {_data_folder(args)}: {error}")
    if known.steps:
        print("\n".join(list_steps(known, _data_folder(args) if args.data else Path("DIR"))[3:]))


def _cache(args: argparse.Namespace) -> None:
    from vptsp_core.data.batches import cache_folder  # torchvision takes two seconds
    from vptsp_core.data.cache import open_stores

    if args.name == "glyphs":
        raise DataError("glyphs: they are in memory, so there is nothing to cache; leave this command out")
    if args.side < 1:
        raise DataError(f"--side {args.side} must be at least 1")
    data = _data_folder(args)
    benchmark = load_benchmark(args.name, data, args.allow_partial)
    folder = cache_folder(args.name, data, args.cache)
    splits = {split: images for split, images in _list_splits(benchmark).items() if len(images)}
    stores = open_stores(list(splits.values()), folder, side=args.side, interpolation=args.interpolation)
    for split, store in zip(splits, stores, strict=True):
        print(f"{split:8} {len(store):8} images {amount(store.pixels.nbytes):>10} in {folder}")


def _find_known(name: str) -> DataSet:
    if name in CATALOG:
        return CATALOG[name]
    raise DataError(f"{name}: there is nothing to get; see python -m vptsp_core data info {name}")


def _data_folder(args: argparse.Namespace) -> Path:
    if not args.data:
        raise DataError(f"{args.name}: no folder is given; give --data DIR, or set VPTSP_DATA")
    return Path(args.data).expanduser().absolute()
