"""The decoded cache: every image file decoded and resized once, in parallel, into one memory-mapped file.

A store lies in ``<cache>/<set>-<side>-<interpolation>-<key>/``. The key is over the list of files (name, size, time of
change), so an edited, added or replaced image makes a new store and no stale one is read. While it is made, the folder
is called ``*.partial``: the file has its full size from the start (no disk runs full midway), every finished image is
marked, and a build that was cut short goes on where it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize
from tqdm.auto import tqdm

from vptsp_core.data.base import ImageSet
from vptsp_core.data.folder import FileSet, read_image
from vptsp_core.data.store import PixelStore, image_starts, resized
from vptsp_core.errors import DataError
from vptsp_core.files import write_bytes

FORMAT = 1  # of the files; a change makes old stores unknown
CHUNK = 128  # images decoded between two marks of progress
PIXELS, SIZES, DONE = "pixels.u8", "sizes.npy", "done.u8"


def open_store(
    images: ImageSet,
    folder: Path,
    *,
    side: int = 256,
    interpolation: str = "bilinear",
    workers: int | None = None,
    progress: bool = True,
) -> PixelStore:
    """The decoded images of a set, made first if need be. Images that lie in memory are resized in memory.

    Several processes may ask at once: one builds, the others wait for it.

    Args:
        folder: of all stores.
        side: of every image's shorter side, in pixels; smaller images are enlarged, as the classic path does.
        workers: threads that decode, None for one a core (Pillow decodes and resizes outside of Python's lock).
        progress: on stderr a line with the disk that will be used and, on a terminal or in a notebook, bars.

    Raises:
        DataError: an image cannot be read, or the disk has too little room; what was done is kept for the next try.
    """
    if not isinstance(images, FileSet):
        return _in_memory(images, side, interpolation)
    name = f"{images.name.replace(' ', '-')}-{side}-{interpolation}-{_key(images)}"
    store = folder / name
    if not (store / PIXELS).exists():
        partial = folder / f"{name}.partial"
        try:
            partial.mkdir(parents=True, exist_ok=True)
            with _lock(partial):
                if not (store / PIXELS).exists():
                    _build(images, partial, side, interpolation, workers or len(os.sched_getaffinity(0)), progress)
                    os.replace(partial, store)
                else:  # another process was quicker
                    shutil.rmtree(partial, ignore_errors=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise DataError(f"cache {partial}: {reason}; give another folder with VPTSP_CACHE, "
                            "or set pipeline=classic to go without") from error  # fmt: skip
    sizes = np.load(store / SIZES)
    pixels = np.memmap(store / PIXELS, np.uint8, mode="c")  # "c": torch warns of read-only memory; nothing is written
    if len(sizes) != len(images) or len(pixels) != image_starts(sizes)[-1]:
        raise DataError(f"cache {store}: not whole; delete the folder, it will be made again")
    return PixelStore(pixels, sizes, side, interpolation)


def stored_bytes(sizes: np.ndarray) -> int:
    """Disk that images of sizes (N, 2) take."""
    return int(image_starts(sizes)[-1])


def _build(images: FileSet, folder: Path, side: int, interpolation: str, workers: int, progress: bool) -> None:
    """Fill ``folder`` with the files of a store; goes on with what an earlier call left there."""
    if not (folder / SIZES).exists():
        sizes = np.empty((len(images), 2), np.int64)

        def measure(chunk: range) -> None:
            for i in chunk:
                sizes[i] = _header(images.paths[i])

        _in_threads(measure, len(images), workers, f"{images.name}: reading sizes", progress)
        (folder / DONE).unlink(missing_ok=True)
        buffer = folder / f"{SIZES}.tmp.npy"
        np.save(buffer, resized(sizes, side))
        os.replace(buffer, folder / SIZES)
    sizes = np.load(folder / SIZES)
    starts, total = image_starts(sizes), stored_bytes(sizes)
    done = np.zeros(len(images), np.uint8)
    if (folder / DONE).exists() and (folder / DONE).stat().st_size == len(images):
        done = np.fromfile(folder / DONE, np.uint8)
    _allocate(folder, total, f"{images.name}: {len(images):,} images, {total / 1e9:.2f} GB" if progress else "")
    todo = np.flatnonzero(done == 0)
    file = os.open(folder / PIXELS, os.O_RDWR)
    try:

        def decode(chunk: range) -> None:
            for i in todo[chunk.start : chunk.stop]:
                pixels = _decode(images.image(int(i)), side, interpolation)
                if pixels.shape[:2] != tuple(sizes[i]):
                    raise DataError(f"image {images.describe(int(i))}: changed while it was read; start again")
                _write(file, pixels.tobytes(), int(starts[i]))

        def mark(chunk: range) -> None:
            os.fdatasync(file)  # pixels first, then the mark that they are there
            done[todo[chunk.start : chunk.stop]] = 1
            write_bytes(folder / DONE, done.tobytes())

        _in_threads(decode, len(todo), workers, f"{images.name}: decoding", progress, mark)
    finally:
        os.close(file)
    (folder / DONE).unlink(missing_ok=True)


def _in_memory(images: ImageSet, side: int, interpolation: str) -> PixelStore:
    arrays = [_decode(images.image(i), side, interpolation) for i in range(len(images))]
    sizes = np.array([array.shape[:2] for array in arrays], np.int64)
    return PixelStore(np.concatenate([array.reshape(-1) for array in arrays]), sizes, side, interpolation)


def _decode(image: Image.Image, side: int, interpolation: str) -> np.ndarray:
    """(H, W, 3) uint8, resized by the very function of the classic path."""
    return np.asarray(resize(image, [side], InterpolationMode(interpolation)))


def _header(path: Path) -> tuple[int, int]:
    """Height and width, of the header alone where that can be read."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        return image.height, image.width
    whole = read_image(path)  # raises, and says why
    return whole.height, whole.width


def _key(images: FileSet) -> str:
    digest = hashlib.sha256(f"{FORMAT}\n".encode())
    for path in images.paths:
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"image {path}: no such file; get the data set again") from error
        digest.update(f"{path.parent.name}/{path.name} {found.st_size} {int(found.st_mtime)}\n".encode())
    return digest.hexdigest()[:12]


def _allocate(folder: Path, total: int, title: str) -> None:
    """Reserve the disk for all pixels at once.

    Raises:
        DataError: there is too little.
    """
    path = folder / PIXELS
    had = path.stat().st_size if path.exists() else 0
    free = shutil.disk_usage(folder).free
    if title and had < total:
        print(f"cache: {title} in {folder.parent} ({free / 1e9:.0f} GB free)", file=sys.stderr)
    if had < total and total - had > free:
        raise DataError(
            f"cache {folder}: needs {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; give another folder with "
            "VPTSP_CACHE, or set pipeline=classic to go without"
        )
    with open(path, "ab") as file:
        if hasattr(os, "posix_fallocate") and total:
            os.posix_fallocate(file.fileno(), 0, total)
        else:
            file.truncate(total)


def _write(file: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, start)
        view, start = view[written:], start + written


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Only one process at a time; the lock goes with the process that holds it."""
    with open(folder / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _in_threads(
    task: Callable[[range], Any],
    count: int,
    workers: int,
    title: str,
    progress: bool,
    after: Callable[[range], Any] = lambda chunk: None,
) -> None:
    """``task`` for chunks of range(count) in threads, ``after`` each in this one; the first error stops all."""
    chunks: Iterable[range] = (range(s, min(s + CHUNK, count)) for s in range(0, count, CHUNK))
    running: dict[Future[Any], range] = {}
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=count, desc=title, disable=None if progress else True, unit="img") as bar,
    ):
        try:
            for chunk in chunks:
                running[pool.submit(task, chunk)] = chunk
                if len(running) >= 2 * workers:
                    _collect(running, after, bar)
            while running:
                _collect(running, after, bar)
        finally:
            pool.shutdown(cancel_futures=True)


def _collect(running: dict[Future[Any], range], after: Callable[[range], Any], bar: Any) -> None:
    for future in wait(running, return_when=FIRST_COMPLETED).done:
        chunk = running.pop(future)
        future.result()
        after(chunk)
        bar.update(len(chunk))
