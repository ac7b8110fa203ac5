"""python -m vptsp_core index: index a folder of images, or update its index with the new and changed files."""

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

from vptsp_core.data.folder import IMAGE_SUFFIXES, count_unread, read_image, refuse_inside_images
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
STORED_EVERY = 600  # seconds; the embeddings so far are also stored when the work is stopped
LISTED = 20  # unreadable files that a warning names

Stat = tuple[int, int]


@dataclass
class Counts:
    """What an update did: images embedded, kept and removed, and the files that it could not read."""

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # the reason by name


def images_in(folder: Path) -> dict[str, Stat]:
    """Return the image files under a folder, at any depth, in order: {path under it: (bytes, ns of modification)}.

    Hidden files and folders are left out, and links to folders are not followed. Raises DataError if the folder is
    missing, or a folder in it cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give one that holds images")

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename} ({error.strerror}); fix or remove it") from error

    images: dict[str, Stat] = {}
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
    return dict(sorted(images.items()))


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
    """Make the index of a folder at ``to``, or update it.

    A file has changed if its size or its time of modification differs. Files that cannot be read are left out, and the
    next call tries them again. A call that is stopped stores what it has embedded, and the next one embeds the rest.

    Args:
        model: the path that ``embedder`` was loaded from, stored for `search`.
        weights: the file of the backbone's weights, if ``embedder`` was loaded with one.

    Raises:
        DataError: the folder is missing, has no readable image, or the index at ``to`` is damaged.
        VptspError: ``to`` is among the images, or its index is of another model or of another folder that exists.
    """
    directory, place = Path(directory).expanduser().resolve(), Path(to).expanduser().absolute()
    refuse_inside_images(place, directory, "--to")
    stats = images_in(directory)
    if not stats:
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
            same_model(old, embedder.checksum())
            if old.root != str(directory) and Path(old.root).is_dir():
                raise VptspError(f"index {place} is that of {old.root}; give another place with --to")
            known = zip(old.names, old.stats.tolist(), old.embeddings, strict=True)
            rows = {name: row for name, stat, row in known if stats.get(name) == tuple(stat)}
            counts = Counts(kept=len(rows), removed=len(set(old.names) - stats.keys()))

        def index() -> ImageIndex:
            names = [name for name in stats if name in rows]
            own_stats = np.array([stats[name] for name in names], np.int64)
            return ImageIndex(str(directory), names, own_stats, np.stack([rows[name] for name in names]), made_by)

        new, stored = [name for name in stats if name not in rows], time.monotonic()
        try:
            with bar(title="embedding", total=len(new), unit="images", show=progress) as done:
                for name, row in embed_files(embedder, directory, new):
                    if isinstance(row, str):
                        counts.unreadable[name] = row
                    else:
                        rows[name] = row
                        counts.embedded += 1
                    done.update()
                    if counts.embedded and time.monotonic() - stored > STORED_EVERY:
                        index().write(place, graph=False)
                        stored = time.monotonic()
        except (KeyboardInterrupt, Exception):
            if counts.embedded:
                index().write(place, graph=False)
            raise
        refuse_none(len(rows), counts.unreadable, directory)
        made = index()
        unchanged = old is not None and (old.root, old.names, old.model) == (made.root, made.names, made.model)
        if old is not None and unchanged and not counts.embedded and old.graph_is_whole():
            return old, counts
        return made.write(place), counts


def embed_files(embedder: Embedder, root: Path, names: Sequence[str]) -> Iterator[tuple[str, np.ndarray | str]]:
    """Yield each name of a file under ``root`` with its embedding (d,), or with the reason why it cannot be read."""
    if not names:
        return
    batch, workers = embedder.config.batch, decoders(len(names))
    loader: Callable[..., DataLoader] = DataLoader
    files = loader(
        _Files([root / name for name in names], embedder.transform), batch_size=batch, collate_fn=list,
        num_workers=workers, worker_init_fn=end_with_parent, multiprocessing_context=CONTEXT if workers else None,
    )  # fmt: skip
    with starting():
        batches: Iterator[list[Tensor | str]] = iter(files)
    for start, items in zip(range(0, len(names), batch), batches):
        images = [item for item in items if isinstance(item, Tensor)]
        rows = iter(embedder.embed(torch.stack(images)) if images else ())
        for name, item in zip(names[start : start + batch], items, strict=True):
            yield name, item if isinstance(item, str) else next(rows)


class _Files(Dataset):
    """Each file as the model's input, or as the reason why it cannot be read."""

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
    """Raise DataError, with the first reason, if no file is readable."""
    if not readable:
        first = next(iter(unreadable.values()))
        raise DataError(f"{where}: none of its {len(unreadable)} images can be read; the first: {first}")


def warn_of_unreadable(unreadable: dict[str, str]) -> None:
    """Warn of files that are left out because they cannot be read, if there are any."""
    if unreadable:
        reasons, more = list(unreadable.values()), len(unreadable) - LISTED
        listed = "; ".join(reasons[:LISTED]) + (f"; and {more} more" if more > 0 else "")
        warnings.warn(f"{len(reasons)} left out: {listed}", stacklevel=3)


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
    model, weights = args.model, args.weights
    if model is None:
        kept = read_index(args.to)
        model, weights = model_path(kept), weights or kept.model["weights"]
    embedder = load(model, args.device, weights=weights)
    index, counts = update(args.directory, args.to, embedder, model=model, weights=weights, progress=True)
    warn_of_unreadable(counts.unreadable)
    place = printable(str(Path(args.to).expanduser().absolute()))
    print(
        f"{place}: {len(index.names):,} images, {counts.embedded:,} embedded now, {counts.kept:,} kept, "
        f"{counts.removed:,} removed"
    )
    if index.graph:
        print(f"searched by graph: recall@10 {index.graph['recall']:.4f} of exact search (ef {index.graph['ef']})")
    return 0
