"""python -m vptsp_core index: index a folder of images, or update its index with the new and changed files."""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vptsp_core.data.folder import IMAGE_SUFFIXES, count_unread, read_image, refuse_inside_images
from vptsp_core.deploy.index import FILE, ImageIndex, read_index, same_model
from vptsp_core.errors import DataError, VptspError, printable, refuse_empty
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.embedder import Embedder, load
from vptsp_core.runs.share import is_shared
from vptsp_core.system.bars import bar
from vptsp_core.system.files import writable_folder
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import cores

PLACE = "vptsp-index"
LISTED = 20  # unreadable files that a warning names


class Counts(NamedTuple):
    """How many images an update embedded, kept and removed."""

    embedded: int
    kept: int
    removed: int


def images_in(folder: Path) -> dict[str, tuple[int, int]]:
    """Return the image files under a folder, at any depth, in order: {path under it: (bytes, ns of modification)}.

    Hidden files and folders are left out, and links to folders are not followed. Raises DataError if the folder is
    missing or holds no images, and OSError if a folder in it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give one that holds images")

    def refuse(error: OSError) -> None:
        raise error

    images: dict[str, tuple[int, int]] = {}
    others: list[str] = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(here, name) for name in files if not name.startswith(".")):
            if path.name.lower().endswith(IMAGE_SUFFIXES) and path.is_file():
                stat = path.stat()
                images[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
            else:
                others.append(path.name)
    if left_out := count_unread(others):
        warnings.warn(f"{folder}: {left_out}", stacklevel=3)
    if not images:
        raise DataError(f"{folder} holds no images ({', '.join(IMAGE_SUFFIXES)}); name another folder")
    return dict(sorted(images.items()))


@torch_defaults()
def update(
    directory: str | Path,
    to: str | Path,
    embedder: Embedder,
    *,
    model: str | Path,
    weights: str | Path | None = None,
    progress: bool = False,
) -> tuple[ImageIndex, Counts]:
    """Make the index of the images in ``directory``, in the folder ``to``, or update it.

    A file has changed if its size or its time of modification differs. Files that cannot be read are left out, and the
    next call tries them again. A call that is stopped stores what it has embedded, and the next one embeds the rest.

    Args:
        model: the path that ``embedder`` was loaded from, stored for `search`.
        weights: the file of the backbone's weights, if ``embedder`` was loaded with one.

    Raises:
        DataError: ``directory`` is missing or has no readable image, or the index at ``to`` is damaged.
        VptspError: ``to`` is among the images, or its index is of another model or of another folder that exists.
    """
    directory, place = Path(directory).expanduser().resolve(), Path(to).expanduser().absolute()
    refuse_inside_images(place, directory, "--to")
    stats = images_in(directory)
    checksum = embedder.checksum()
    made_by = {
        "path": str(model) if is_shared(model) else str(Path(model).expanduser().resolve()),
        "weights": None if weights is None else str(Path(weights).expanduser().resolve()),
        "checksum": checksum,
    }
    with locked(writable_folder(place) / ".lock", f"{place}: waiting for another process that updates it"):
        old = read_index(place) if (place / FILE).exists() else None
        rows: dict[str, np.ndarray] = {}
        if old is not None:
            same_model(old, checksum)
            if old.root != str(directory) and Path(old.root).is_dir():
                raise VptspError(f"index {place} is that of {old.root}; give another place with --to")
            known = zip(old.names, old.stats.tolist(), old.embeddings, strict=True)
            rows = {name: row for name, stat, row in known if stats.get(name) == tuple(stat)}
        kept = len(rows)
        try:
            embed_files(embedder, directory, [name for name in stats if name not in rows], rows, progress)
        finally:
            if rows:
                names = [name for name in stats if name in rows]
                own_stats = np.array([stats[name] for name in names], np.int64)
                embeddings = np.stack([rows[name] for name in names])
                index = ImageIndex(str(directory), names, own_stats, embeddings, made_by).write(place)
        removed = 0 if old is None else len(set(old.names) - stats.keys())
        return index, Counts(len(rows) - kept, kept, removed)


def embed_files(
    embedder: Embedder, root: Path, names: Sequence[str], rows: dict[str, np.ndarray], progress: bool = False
) -> None:
    """Add the embeddings (d,) of files under ``root`` to ``rows``, by name. Warn of the files that cannot be read.

    Raises DataError if ``rows`` is still empty then.
    """
    transform, batch = embedder.transform, embedder.config.batch
    unreadable: list[str] = []

    def read(name: str) -> Tensor | str:
        try:
            return transform(read_image(root / name, as_shown=True))
        except DataError as error:
            return str(error)

    with (
        ThreadPoolExecutor(cores()) as pool,
        bar(title="embedding", total=len(names), unit="images", show=progress) as done,
    ):
        parts = [names[start : start + batch] for start in range(0, len(names), batch)]
        ahead = [pool.submit(read, name) for name in parts[0]] if parts else []
        for part, following in zip(parts, [*parts[1:], []], strict=False):  # without parts, none follows
            # the next batch is decoded while this one is embedded
            now, ahead = ahead, [pool.submit(read, name) for name in following]
            items = {name: reading.result() for name, reading in zip(part, now, strict=True)}
            images = {name: item for name, item in items.items() if isinstance(item, Tensor)}
            unreadable += [item for item in items.values() if isinstance(item, str)]
            if images:
                rows.update(zip(images, embedder.embed(torch.stack(list(images.values()))), strict=True))
            done.update(len(part))
    if not rows:
        raise DataError(f"none of the {len(names)} images can be read; the first: {unreadable[0]}")
    if unreadable:
        more = f"; and {len(unreadable) - LISTED} more" if len(unreadable) > LISTED else ""
        warnings.warn(f"{len(unreadable)} left out: {'; '.join(unreadable[:LISTED])}{more}", stacklevel=3)


def model_path(index: ImageIndex) -> str:
    """Return where the model of an index is. Raises VptspError if it no longer exists there."""
    path = str(index.model["path"])
    if not is_shared(path) and not Path(path).exists():
        raise VptspError(f"index {index.place}: its model is no longer at {path}; give its new place with --model")
    return path


def main(argv: Sequence[str]) -> int:
    """Index a folder, and print what was done. Return the exit status: 0 even if some files cannot be read."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core index",
        description="embed a folder of images, at any depth, for `search`; later calls embed new and changed files",
    )
    parser.add_argument("directory", metavar="DIR", help="the images")
    parser.add_argument("--model", metavar="RUN", help="folder of a finished run, a saved embedder, or hf://ORG/NAME "
                        "(default: the model of an existing index)")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, if they have moved since")
    parser.add_argument("--to", metavar="INDEX", default=PLACE, help=f"folder of the index (default: {PLACE})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    args = parser.parse_args(argv)
    refuse_empty({name: value for name, value in vars(args).items() if name != "directory"})
    model, weights = args.model, args.weights
    if model is None:
        kept = read_index(args.to)
        model, weights = model_path(kept), weights or kept.model["weights"]
    embedder = load(model, args.device, weights=weights)
    index, counts = update(args.directory, args.to, embedder, model=model, weights=weights, progress=True)
    print(
        f"{printable(str(index.place))}: {len(index.names):,} images, {counts.embedded:,} embedded now, "
        f"{counts.kept:,} kept, {counts.removed:,} removed"
    )
    return 0
