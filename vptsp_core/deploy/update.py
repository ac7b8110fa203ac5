"""python -m vptsp_core index: make the index of a folder of images, or bring it up to date: only new or changed files
are embedded.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vptsp_core.data.folder import IMAGE_SUFFIXES, not_read, outside_images, read_image
from vptsp_core.data.loading import Transform, decoders
from vptsp_core.deploy.index import FILE, ImageIndex, read_index, same_model
from vptsp_core.errors import DataError, VptspError, printable
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.embedder import Embedder, load
from vptsp_core.runs.share import is_shared
from vptsp_core.system.bars import bar
from vptsp_core.system.files import writable_folder
from vptsp_core.system.locks import locked
from vptsp_core.system.processes import CONTEXT, end_with_parent, starting

PLACE = "vptsp-index"
STORED_EVERY = 600  # seconds; what is embedded by then is stored, and so it is when the work is stopped
LISTED = 20  # unreadable files that a warning names

Stat = tuple[int, int]


@dataclass
class Counts:
    """What an update did: images of the index by where they come from, and the files that it could not read."""

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # name: why


def images_in(folder: Path) -> dict[str, Stat]:
    """Image files under a folder, at any depth, in order: {path under it, with ``/``: bytes, ns of modification}.

    Hidden files and folders are left out, and links to folders are not followed. Raises DataError where there is no
    such folder, or one in it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give one that holds images")

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename} ({error.strerror}); fix or remove it") from error

    found: dict[str, Stat] = {}
    others: list[str] = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (name for name in files if not name.startswith(".")):
            path = Path(here, name)
            if name.lower().endswith(IMAGE_SUFFIXES) and path.is_file():
                stat = path.stat()
                found[path.relative_to(folder).as_posix()] = (stat.st_size, stat.st_mtime_ns)
            else:
                others.append(name)
    if left_out := not_read(others):
        warnings.warn(f"{folder}: {left_out}", stacklevel=3)
    return dict(sorted(found.items()))


@in_torch_defaults
def update(
    directory: str | Path,
    to: str | Path,
    embedder: Embedder,
    *,
    model: str | Path,
    weights: str | Path | None = None,
    progress: bool = False,
) -> tuple[ImageIndex, Counts]:
    """Make the index of a folder at ``to``, or bring it up to date.

    A file has changed where its size or its time of modification is another. Files that cannot be read are left out and
    tried again the next time. A call that is stopped stores what it has embedded, and the next one embeds the rest.

    Args:
        model: the path that `embedder` was loaded from, kept for those who search; ``weights``: those of its backbone.

    Raises:
        DataError: no folder, none of its files is a readable image, or the index at ``to`` is damaged.
        VptspError: the index is another model's, that of another folder that still exists, or among the images.
    """
    directory, place = Path(directory).expanduser().resolve(), Path(to).expanduser().absolute()
    outside_images(place, directory, "--to")
    there = images_in(directory)
    if not there:
        raise DataError(f"{directory} holds no images ({', '.join(IMAGE_SUFFIXES)}); name another folder")
    made_by = {
        "path": str(model) if is_shared(model) else str(Path(model).expanduser().resolve()),
        "weights": None if weights is None else str(Path(weights).expanduser().resolve()),
        "checksum": embedder.checksum(),
    }
    with locked(writable_folder(place) / ".lock", f"{place}: waiting for another process that updates it"):
        old = read_index(place) if (place / FILE).exists() else None
        rows: dict[str, np.ndarray] = {}
        counts = Counts()
        if old is not None:
            same_model(old, made_by["checksum"] or "")
            if old.root != str(directory) and Path(old.root).is_dir():
                raise VptspError(f"index {place} is that of {old.root}; give another place with --to")
            known = zip(old.names, old.stats.tolist(), old.embeddings, strict=True)
            rows = {name: row for name, stat, row in known if there.get(name) == tuple(stat)}
            counts = Counts(kept=len(rows), removed=len(set(old.names) - there.keys()))

        def index() -> ImageIndex:
            names = [name for name in there if name in rows]
            stats = np.array([there[name] for name in names], np.int64)
            return ImageIndex(str(directory), names, stats, np.stack([rows[name] for name in names]), made_by)

        new, stored = [name for name in there if name not in rows], time.monotonic()
        shown = bar(title="embedding", total=len(new), unit="images", show=progress)
        try:
            with shown:
                for names, embeddings, unreadable in embed_files(embedder, directory, new):
                    rows |= dict(zip(names, embeddings, strict=True))
                    counts.embedded += len(names)
                    counts.unreadable |= unreadable
                    shown.update(len(names) + len(unreadable))
                    if time.monotonic() - stored > STORED_EVERY:
                        index().write(place, graph=False)
                        stored = time.monotonic()
        except (KeyboardInterrupt, Exception):
            if counts.embedded:
                index().write(place, graph=False)
            raise
        refuse_none(len(rows), counts.unreadable, directory)
        made = index()
        if old is not None and not counts.embedded and old.graph_is_whole():
            if (old.root, old.names, old.model) == (made.root, made.names, made.model):
                return old, counts
        return made.write(place), counts


def embed_files(
    embedder: Embedder, root: Path, names: Sequence[str]
) -> Iterator[tuple[list[str], np.ndarray, dict[str, str]]]:
    """A batch at a time: those of the files under ``root`` that can be read, their embeddings (N, d), and why the
    others cannot.
    """
    batch = embedder.config.batch
    workers = decoders(len(names))
    loader: Callable[..., DataLoader] = DataLoader
    files = loader(
        _Files([root / name for name in names], embedder.transform), batch_size=batch, collate_fn=list,
        num_workers=workers, worker_init_fn=end_with_parent, multiprocessing_context=CONTEXT if workers else None,
    )  # fmt: skip
    with starting():
        batches: Iterator[list[Tensor | str]] = iter(files) if names else iter(())
    for start, items in zip(range(0, len(names), batch), batches):
        told = list(zip(names[start : start + batch], items, strict=True))
        good = {name: item for name, item in told if isinstance(item, Tensor)}
        embeddings = embedder.embed(torch.stack(list(good.values()))) if good else np.empty((0, 0), np.float32)
        yield list(good), embeddings, {name: item for name, item in told if isinstance(item, str)}


class _Files(Dataset):
    """Files as the model's input, or as the reason why one cannot be read."""

    def __init__(self, paths: list[Path], transform: Transform) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Tensor | str:
        try:
            return self.transform(read_image(self.paths[at], as_shown=True))
        except DataError as error:
            return " ".join(str(error).split())


def refuse_none(readable: int, unreadable: dict[str, str], where: Path | str) -> None:
    """Raises DataError, with the first of the files, where none of them can be read."""
    if not readable:
        first = next(iter(unreadable.values()))
        raise DataError(f"{where}: none of its {len(unreadable)} images can be read; the first: {first}")


def left_out(reasons: Sequence[str]) -> str:
    """A warning of files that cannot be read, the first of them named."""
    more = len(reasons) - LISTED
    return f"{len(reasons)} left out: {'; '.join(reasons[:LISTED])}{f'; and {more} more' if more > 0 else ''}"


def model_path(index: ImageIndex) -> str:
    """Where the model of an index is. Raises VptspError where it is there no more."""
    path = str(index.model["path"])
    if not is_shared(path) and not Path(path).exists():
        raise VptspError(f"index {index.place}: its model is not at {path} any more; name its new place with --model")
    return path


def main(argv: Sequence[str]) -> int:
    """Index, and say what was done. Returns the exit status; files that cannot be read do not change it."""
    parser = argparse.ArgumentParser(
        "python -m vptsp_core index",
        description="embed a folder of images, at any depth, for `search`; called again, only what is new or changed",
    )
    parser.add_argument("directory", metavar="DIR", help="the images")
    parser.add_argument("--model", metavar="RUN", help="folder of a finished run, a saved embedder, or hf://ORG/NAME "
                        "(default: that of the index, where there is one)")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the backbone's, where they have moved")
    parser.add_argument("--to", metavar="INDEX", default=PLACE, help=f"folder of the index (default: {PLACE})")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    model, weights = args.model, args.weights
    if model is None:
        kept = read_index(args.to)
        model, weights = model_path(kept), weights or kept.model["weights"]
    embedder = load(model, args.device, weights=weights)
    index, counts = update(args.directory, args.to, embedder, model=model, weights=weights, progress=True)
    if counts.unreadable:
        warnings.warn(left_out(list(counts.unreadable.values())), stacklevel=2)
    place = printable(str(Path(args.to).expanduser().absolute()))
    print(
        f"{place}: {len(index.names):,} images, {counts.embedded:,} embedded now, {counts.kept:,} kept, "
        f"{counts.removed:,} removed"
    )
    if index.graph:
        print(f"searched by graph: recall@10 {index.graph['recall']:.4f} of exact search (ef {index.graph['ef']})")
    return 0
