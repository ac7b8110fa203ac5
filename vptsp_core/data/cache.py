"""The decoded cache: every image file decoded and resized once, in parallel, into one memory-mapped file.

A store lies in ``<cache>/<set>-<side>-<interpolation>-<key>/``. The key is over the list of files: path, size, inode,
times of modification and of change, so an edited, added, moved or swapped image makes a new store and no stale one is
read (and so does, in vain, a copy of the files or a change of their owner). While it is made, the folder is called
``*.partial``: the file has its full size from the start, every finished image is marked by its checksum, and a build
that was cut short goes on where it was (unless a file was mended since: that is another list).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from vptsp_core.data.base import ImageSet
from vptsp_core.data.folder import FORMATS, TURNED, FileSet, check_shape, orientation, read_image
from vptsp_core.data.partfile import amount
from vptsp_core.data.store import PixelStore, image_checksum, image_starts, resized
from vptsp_core.data.threads import Threads
from vptsp_core.errors import DataError
from vptsp_core.system.files import remove_temporaries, write_bytes
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import allocate, cores, disk_space, replace

FORMAT = 3  # of the files and the key; a change makes old stores unknown
LARGEST = 2**28  # bytes of one stored image: a strip of 1 x 60,000 pixels would take 12 GB
PIXELS, SIZES, SUMS = "pixels.u8", "sizes.npy", "sums.u32"


def open_stores(
    sets: Sequence[ImageSet],
    folder: Path,
    *,
    side: int = 256,
    interpolation: str = "bilinear",
    workers: int | None = None,
    progress: bool = True,
) -> list[PixelStore]:
    """The decoded images of each set, made first if need be. Images that lie in memory are resized in memory.

    What all sets together will take is compared with the disk before the first image is decoded. Several processes may
    ask at once: one builds, the others wait for it.

    Args:
        folder: of all stores.
        side: of every image's shorter side, in pixels; smaller images are enlarged, as the classic path does.
        workers: threads that decode, None for one a core (Pillow decodes and resizes outside of Python's lock).
        progress: on stderr a line with the disk that will be used and, on a terminal or in a notebook, bars.

    Raises:
        DataError: an image cannot be read, or the disk has too little room; what was done is kept for the next try.
    """
    threads = Threads(workers or cores(), progress)
    files = [images for images in sets if isinstance(images, FileSet)]
    places = {images: folder / _name(images, side, interpolation) for images in files}
    if missing := {place: images for images, place in places.items() if not place.exists()}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as locks:
                for place in sorted(missing):
                    lock = place.with_name(f".{place.name}.lock")
                    locks.enter_context(locked(lock, f"cache: another process is making {place}; waiting"))
                # another process may have been quicker
                _build({p: images for p, images in missing.items() if not p.exists()}, side, interpolation, threads)
        except OSError as error:
            raise DataError(
                f"cache {folder}: {error.strerror or error}; give another folder with --cache or VPTSP_CACHE, or set "
                "pipeline=classic to go without"
            ) from error
    return [
        _open(places[images], len(images), side, interpolation)
        if isinstance(images, FileSet)
        else _in_memory(images, side, interpolation)
        for images in sets
    ]


def _open(place: Path, count: int, side: int, interpolation: str) -> PixelStore:
    try:
        sizes = np.load(place / SIZES)
        pixels = np.memmap(place / PIXELS, np.uint8, mode="c")  # "c": torch warns of read-only memory; none is written
        sums = np.fromfile(place / SUMS, np.uint32)
        whole = sizes.shape == (count, 2) and len(pixels) == image_starts(sizes)[-1] and len(sums) == count
    except (OSError, ValueError, EOFError):
        whole = False
    if not whole:
        raise DataError(f"cache {place}: not whole; delete the folder, it will be made again")
    return PixelStore(pixels, sizes, side, interpolation, place, sums)


def _build(jobs: dict[Path, FileSet], side: int, interpolation: str, threads: Threads) -> None:
    """Measure all sets, then fill their stores; with the locks held."""
    if not jobs:
        return
    folder = next(iter(jobs)).parent
    total = sum(_measured(images, _partial(place), side, threads) for place, images in jobs.items())
    free = shutil.disk_usage(folder).free
    if threads.progress:
        names = ", ".join(f"{images.name} {len(images):,} images" for images in jobs.values())
        print(f"cache: {names}; {amount(total)} to write in {folder} ({amount(free)} free)", file=sys.stderr)
        for old in sorted(path for path in folder.iterdir() if any(_same_set(path, place) for place in jobs)):
            print(
                f"cache: {old} holds other files of a set of that name; delete it if nothing uses it", file=sys.stderr
            )
    if total > free:
        raise DataError(
            f"cache {folder}: needs {amount(total)}, {amount(free)} are free; give another folder with --cache or "
            "VPTSP_CACHE, or set pipeline=classic to go without"
        )
    for place, images in jobs.items():
        _fill(images, _partial(place), side, interpolation, threads)
        replace(_partial(place), place)


def _measured(images: FileSet, folder: Path, side: int, threads: Threads) -> int:
    """Have the sizes of all images in ``folder``; the bytes that its file still has to grow by."""
    folder.mkdir(exist_ok=True)
    remove_temporaries(folder)
    sizes = _sizes(folder, len(images))
    if sizes is None:
        raw = np.empty((len(images), 2), np.int64)

        def measure(chunk: range) -> None:
            for i in chunk:
                with images.all_told():
                    raw[i] = _header(images.paths[i], images.as_shown)

        threads.run(measure, len(images), f"{images.name}: reading sizes")
        sizes = resized(raw, side)
        taken = sizes.prod(1) * 3
        if taken.max() > LARGEST:
            largest = int(taken.argmax())
            height, width = raw[largest]
            raise DataError(
                f"image {images.paths[largest]}: {width} x {height} pixels would take {amount(taken.max())} "
                f"with a shorter side of {side}; leave it out, or set pipeline=classic"
            )
        (folder / SUMS).unlink(missing_ok=True)
        buffer = io.BytesIO()
        np.save(buffer, sizes)
        write_bytes(folder / SIZES, buffer.getvalue())
    pixels = folder / PIXELS
    return max(0, int(image_starts(sizes)[-1]) - (disk_space(pixels) if pixels.exists() else 0))


def _sizes(folder: Path, count: int) -> np.ndarray | None:
    try:
        sizes = np.load(folder / SIZES)
    except (OSError, ValueError, EOFError):
        return None
    return sizes if sizes.shape == (count, 2) else None


def _fill(images: FileSet, folder: Path, side: int, interpolation: str, threads: Threads) -> None:
    """Decode what is not yet marked as done."""
    sizes = np.load(folder / SIZES)
    starts = image_starts(sizes)
    pixels, total = folder / PIXELS, int(starts[-1])
    sums = np.zeros(len(images), np.uint32)
    if pixels.exists() and pixels.stat().st_size == total:  # else the marks are of another file
        with contextlib.suppress(OSError):
            marks = np.fromfile(folder / SUMS, np.uint32)
            sums = marks if len(marks) == len(images) else sums
    found = sums.copy()
    pixels.touch()
    todo, writing = np.flatnonzero(sums == 0), threading.Lock()
    with open(pixels, "r+b") as file:
        allocate(file, total)

        def decode(chunk: range) -> None:
            for i in todo[chunk.start : chunk.stop]:
                array = _decode(images.image(int(i)), side, interpolation)
                if array.shape[:2] != tuple(sizes[i]):
                    raise DataError(f"image {images.describe(int(i))}: changed while it was read; start again")
                with writing:
                    file.seek(starts[i])
                    file.write(array.tobytes())
                found[i] = image_checksum(array)

        def mark(chunk: range) -> None:
            file.flush()
            os.fsync(file.fileno())  # pixels first, then the mark that they are there
            rows = todo[chunk.start : chunk.stop]
            sums[rows] = found[rows]
            write_bytes(folder / SUMS, sums.tobytes())

        threads.run(decode, len(todo), f"{images.name}: decoding", mark)


def _in_memory(images: ImageSet, side: int, interpolation: str) -> PixelStore:
    arrays = [_decode(images.image(i), side, interpolation) for i in range(len(images))]
    sizes = np.array([array.shape[:2] for array in arrays], np.int64)
    return PixelStore(np.concatenate([array.reshape(-1) for array in arrays]), sizes, side, interpolation)


def _decode(image: Image.Image, side: int, interpolation: str) -> np.ndarray:
    """(H, W, 3) uint8, resized by the very function of the classic path."""
    return np.asarray(resize(image, [side], InterpolationMode(interpolation)))


def _header(path: Path, as_shown: bool) -> tuple[int, int]:
    """Height and width, of the header alone where that tells."""
    with contextlib.suppress(Exception), Image.open(path, formats=FORMATS) as image:
        check_shape(*image.size)  # `read_image` raises it
        if not as_shown or orientation(image) not in TURNED:
            return image.height, image.width
        if image.format != "TIFF":  # of which Pillow tells the turned size at once, or later
            return image.width, image.height
    whole = read_image(path, as_shown)  # raises, and says why
    return whole.height, whole.width


def _name(images: FileSet, side: int, interpolation: str) -> str:
    digest = hashlib.sha256(f"{FORMAT}{' as shown' if images.as_shown else ''}\n".encode())
    for path, name in zip(images.paths, images.relative_names(), strict=True):
        try:
            found = path.stat()
        except OSError as error:
            raise DataError(f"image {path}: {error.strerror}; get the data set again") from error
        stamps = (found.st_size, found.st_ino, found.st_mtime_ns, found.st_ctime_ns)
        digest.update(os.fsencode(name) + f" {stamps}\n".encode())
    return f"{images.name.replace(' ', '-')}-{side}-{interpolation}-{digest.hexdigest()[:12]}"


def _partial(place: Path) -> Path:
    return place.with_name(f"{place.name}.partial")


def _same_set(path: Path, place: Path) -> bool:
    """Whether ``path`` is a store, finished or not, of an earlier state of the set that ``place`` is to hold."""
    name = path.name.removesuffix(".partial")
    return name != place.name and name.rpartition("-")[0] == place.name.rpartition("-")[0] and path.is_dir()
