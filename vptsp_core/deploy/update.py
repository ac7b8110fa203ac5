"""Bring the index of a folder up to date: only what is new or changed is embedded."""

from __future__ import annotations

import contextlib
import os
import secrets
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from vptsp_core.data.folder import IMAGE_SUFFIXES, not_read, outside_images, read_image
from vptsp_core.data.loading import Transform, decoders
from vptsp_core.deploy.index import FILE, ImageIndex, read_rows, same_model, write_rows
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.embedder import Embedder
from vptsp_core.system.bars import bar
from vptsp_core.system.files import writable_folder
from vptsp_core.system.locks import locked
from vptsp_core.system.processes import CONTEXT, end_with_parent, starting

PART = 2048  # images between two writings of what is embedded: what a call that is stopped loses at most

Stat = tuple[int, int, int, int]


@dataclass
class Counts:
    """What an update did: images of the index by where they come from, and the files that it could not read."""

    embedded: int = 0
    kept: int = 0
    removed: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)  # name: why


def images_in(folder: Path) -> dict[str, Stat]:
    """Image files under a folder, at any depth, in order: {path under it, with ``/``: bytes, inode, and in ns the times
    of modification and of change}, so that files that took one another's place are told from those that stayed.

    Hidden files and folders are left out, and links to folders are not followed.

    Raises:
        DataError: no such folder, or one in it that cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give one that holds images")

    def refuse(error: OSError) -> None:
        raise DataError(f"cannot read {error.filename} ({error.strerror}); mend or remove it") from error

    found: dict[str, Stat] = {}
    others: list[str] = []
    for here, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(here, name)
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES) and path.is_file():
                told = path.stat()
                found[path.relative_to(folder).as_posix()] = (
                    told.st_size, told.st_ino, told.st_mtime_ns, told.st_ctime_ns,
                )  # fmt: skip
            elif not name.startswith("."):
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
    part: int = PART,
) -> tuple[ImageIndex, Counts]:
    """Make the index of a folder at ``to``, or bring it up to date.

    A file counts as changed where its size, inode or a time is another: a copy of the folder is embedded anew. Files
    that cannot be read are left out and tried again the next time; copies of one image stay, each under its name.

    Args:
        model: the path that `embedder` was loaded from, kept for those who search; ``weights``: those of its backbone.
        part: images between two writings of what is done.

    Raises:
        DataError: no folder, or none of its files is a readable image.
        VptspError: the index is another model's, that of another folder that still exists, or among the images.
    """
    directory, place = Path(directory).expanduser().resolve(), Path(to).expanduser()
    outside_images(place, directory, "--to")
    there = images_in(directory)
    if not there:
        raise DataError(f"{directory} holds no images ({', '.join(IMAGE_SUFFIXES)}); name another folder")
    made_by = {
        "path": str(Path(model).expanduser().resolve()),
        "weights": None if weights is None else str(Path(weights).expanduser().resolve()),
        "checksum": embedder.checksum(),
    }
    with locked(writable_folder(place) / ".lock", f"{place}: another process updates it; waiting"):
        old = read_rows(place / FILE) if (place / FILE).exists() else None
        if old is not None:
            same_model(old, made_by["checksum"] or "", place)
            if old.root != str(directory) and Path(old.root).is_dir():
                raise VptspError(f"index {place} is that of {old.root}; give another place with --to")
        parts = sorted(place.glob("part-*.safetensors"))
        known = [
            rows for rows in ([old] if old else []) + _readable(parts) if rows.model["checksum"] == made_by["checksum"]
        ]
        rows = {name: (at, i) for at, each in enumerate(known) for i, name in enumerate(each.names)
                if there.get(name) == tuple(each.stats[i])}  # fmt: skip
        counts = Counts(kept=len(rows))
        counts.removed = 0 if old is None else len(set(old.names) - there.keys())
        new = [name for name in there if name not in rows]
        for done in _embedded(
            embedder, directory, {name: there[name] for name in new}, made_by, counts, part, progress
        ):
            write_rows(place / f"part-{len(known):05}-{os.getpid()}-{secrets.token_hex(4)}.safetensors", done)
            rows |= {name: (len(known), i) for i, name in enumerate(done.names)}
            known.append(done)
        names = [name for name in there if name in rows]
        if not names:
            raise DataError(f"{directory}: none of its {len(there)} images can be read; {_first(counts)}")
        embeddings = np.stack([known[at].embeddings[i] for at, i in map(rows.__getitem__, names)])
        stats = np.array([there[name] for name in names], np.int64)
        index = ImageIndex(str(directory), names, stats, embeddings, made_by)
        index = old if old is not None and _same(old, index) else index.write(place, old)
        for each in place.glob("part-*.safetensors"):
            with contextlib.suppress(OSError):
                each.unlink()
    return index, counts


def _same(old: ImageIndex, new: ImageIndex) -> bool:
    told = (old.root, old.model, list(old.names)) == (new.root, new.model, list(new.names))
    return (
        told
        and old.graph_is_whole()
        and np.array_equal(old.stats, new.stats)
        and np.array_equal(old.embeddings, new.embeddings)
    )


def _first(counts: Counts) -> str:
    name, reason = next(iter(counts.unreadable.items()))
    return f"the first: {reason or name}"


def _readable(parts: list[Path]) -> list[ImageIndex]:
    """What a stopped call has left; a part that is damaged is embedded again."""
    found = []
    for path in parts:
        with contextlib.suppress(DataError):
            found.append(read_rows(path))
    return found


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


def _embedded(
    embedder: Embedder,
    root: Path,
    new: dict[str, Stat],
    model: dict[str, Any],
    counts: Counts,
    part: int,
    progress: bool,
) -> Iterator[ImageIndex]:
    """The new images, ``part`` at a time, those that are done also when the work is stopped."""
    batch, names = embedder.config.batch, list(new)
    workers = decoders(-(-len(names) // batch))
    loader: Callable[..., DataLoader] = DataLoader
    files = loader(
        _Files([root / name for name in names], embedder.transform), batch_size=batch, collate_fn=list,
        num_workers=workers, worker_init_fn=end_with_parent, multiprocessing_context=CONTEXT if workers else None,
    )  # fmt: skip
    with starting():
        batches: Iterator[list[Tensor | str]] = iter(files) if names else iter(())
    done: list[str] = []
    vectors: list[np.ndarray] = []

    def rows() -> ImageIndex:
        stats = np.array([new[name] for name in done], np.int64)
        return ImageIndex(str(root), list(done), stats, np.concatenate(vectors), model)

    start = 0
    shown = bar(title="embedding", total=len(names), unit="images", show=progress)
    try:
        for items in batches:
            some, start = names[start : start + batch], start + batch
            good = [(name, item) for name, item in zip(some, items, strict=True) if isinstance(item, Tensor)]
            counts.unreadable |= {name: item for name, item in zip(some, items, strict=True) if isinstance(item, str)}
            if good:
                vectors.append(embedder.embed(torch.stack([item for _, item in good])))
                done += [name for name, _ in good]
                counts.embedded += len(good)
            shown.update(len(some))
            if len(done) >= part:
                yield rows()
                done, vectors = [], []
    except BaseException as error:
        if done and isinstance(error, KeyboardInterrupt | Exception):
            yield rows()
        raise
    finally:
        shown.close()
    if done:
        yield rows()
