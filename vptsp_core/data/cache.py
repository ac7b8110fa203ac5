"""The decoded cache: decode and resize every image file once, in parallel, into one memory-mapped file.

A store is the folder ``<cache>/<set>-<side>-<interpolation>-<key>/``. The key is a hash of path, size, inode, and times
of modification and of change of each file, so an outdated store is never read. While a store is made, its folder has
the name ``*.partial``. Images are appended in order, and an interrupted build resumes after the last whole image. A
store is whole if its folder has its final name, and its pixel file has the length that the images' sizes add up to.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resize

from vptsp_core.data.base import ImageSet
from vptsp_core.data.folder import FileSet, read_stamps
from vptsp_core.data.store import PixelStore, image_starts
from vptsp_core.errors import DataError
from vptsp_core.system.bars import amount, bar
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import cores, replace

FORMAT = 3  # version of the files and the key; stores of another version are not found
PIXELS, SIZES = "pixels.u8", "sizes.npy"
DONE = "sizes.i64"  # the sizes of the images that are appended so far
CHUNK = 256  # images that are decoded at a time: bounds the memory
CURE = "give another folder with --cache or VPTSP_CACHE, or set pipeline=classic to work without a cache"


def open_stores(
    sets: Sequence[ImageSet],
    folder: Path,
    *,
    side: int = 256,
    interpolation: str = "bilinear",
    progress: bool = True,
) -> list[PixelStore]:
    """Return the decoded images of each set, after making the stores that are missing.

    Images in memory are resized in memory. If several processes call this, one builds and the others wait for it.

    Args:
        sets: the data sets; the result has the same order.
        folder: the cache, which holds all stores.
        side: the shorter side of every image, in pixels; smaller images are enlarged, as in the classic pipeline.
        interpolation: of the resizing, ``"bilinear"`` or ``"bicubic"``.
        progress: print the least disk space that is needed to stderr, and show bars, or lines in a log.

    Raises:
        DataError: an image cannot be read, a store is damaged, the cache cannot be written, or the disk has too little
            room. The next call resumes a build that the disk or the user stopped.
    """
    filesets = [images for images in sets if isinstance(images, FileSet)]
    places = {images: folder / _name_store(images, side, interpolation) for images in filesets}
    if not all(place.exists() for place in places.values()):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with locked(folder / ".lock", f"cache: another process is decoding images into {folder}; waiting"):
                missing = {images: place for images, place in places.items() if not place.exists()}
                if missing:
                    _check_room(missing, folder, side, progress)
                for images, place in missing.items():
                    partial = place.with_name(f"{place.name}.partial")
                    try:
                        _fill(images, partial, side, interpolation, progress)
                    except DataError:  # with the image replaced, the store has another key
                        shutil.rmtree(partial)
                        raise
                    replace(partial, place)
        except OSError as error:
            raise DataError(f"cache {folder}: {error.strerror or error}; {CURE}") from error
    return [
        _open_store(places[images], len(images), side, interpolation)
        if isinstance(images, FileSet)
        else _resize_in_memory(images, side, interpolation)
        for images in sets
    ]


def _check_room(missing: dict[FileSet, Path], folder: Path, side: int, progress: bool) -> None:
    """Print the least room that the missing stores take, as if all images were squares.

    It also names the other stores of these data sets: of earlier states, or of other folders of your own images.
    Raises DataError: the disk has less room.
    """
    least, free = 3 * side**2 * sum(map(len, missing)), shutil.disk_usage(folder).free
    begun = [folder / f"{place.name}.partial" / PIXELS for place in missing.values()]
    written = sum(pixels.stat().st_size for pixels in begun if pixels.exists())
    if progress:
        names = ", ".join(f"{images.name} {len(images):,} images" for images in missing)
        left = amount(max(least - written, 0))
        print(f"cache: {names}; at least {left} to write in {folder} ({amount(free)} free)", file=sys.stderr)
        for place in missing.values():
            for path in sorted(folder.glob(f"{place.name.rpartition('-')[0]}-*")):
                if path.name.removesuffix(".partial") != place.name:
                    print(f"cache: {path} has other images of that name; delete it if nothing uses it", file=sys.stderr)
    if least > free + written:
        raise DataError(f"cache {folder}: needs at least {amount(least - written)}, {amount(free)} are free; {CURE}")


def _fill(images: FileSet, folder: Path, side: int, interpolation: str, progress: bool) -> None:
    """Append the images that are not yet in ``folder``; the first error stops all threads."""
    folder.mkdir(exist_ok=True)
    with open(folder / PIXELS, "ab") as pixels, open(folder / DONE, "ab") as done:
        sizes = np.fromfile(folder / DONE, np.int64)
        sizes = sizes[: len(sizes) // 2 * 2].reshape(-1, 2)
        starts = image_starts(sizes)
        count = int(np.searchsorted(starts, pixels.tell(), "right")) - 1  # whole images
        pixels.truncate(starts[count])
        done.truncate(sizes[:count].nbytes)

        def decode(i: int) -> np.ndarray:
            return _decode(images.image(i), side, interpolation)

        title, numbers = f"{images.name}: decoding", range(count, len(images))
        shown = bar(None, title, len(images), show=progress, initial=count, unit="images")
        with ThreadPoolExecutor(cores()) as pool, shown:  # Pillow decodes several images at a time
            ahead = pool.map(decode, numbers[:CHUNK])
            for start in range(CHUNK, len(numbers) + CHUNK, CHUNK):
                arrays, ahead = list(ahead), pool.map(decode, numbers[start : start + CHUNK])
                for array in arrays:
                    pixels.write(array.tobytes())
                pixels.flush()
                done.write(np.array([array.shape[:2] for array in arrays], np.int64).tobytes())
                done.flush()
                shown.update(len(arrays))
        os.fsync(pixels.fileno())
    np.save(folder / SIZES, np.fromfile(folder / DONE, np.int64).reshape(-1, 2))
    (folder / DONE).unlink()


def _open_store(place: Path, count: int, side: int, interpolation: str) -> PixelStore:
    try:
        sizes = np.load(place / SIZES)
        pixels = np.memmap(place / PIXELS, np.uint8, mode="c")  # "c", copy on write: torch warns of "r"
        whole = sizes.shape == (count, 2) and len(pixels) == image_starts(sizes)[-1]
    except (OSError, ValueError, EOFError):
        whole = False
    if not whole:
        raise DataError(f"cache {place}: incomplete; delete the folder, and it is made again")
    return PixelStore(pixels, sizes, side, interpolation)


def _resize_in_memory(images: ImageSet, side: int, interpolation: str) -> PixelStore:
    arrays = [_decode(images.image(i), side, interpolation) for i in range(len(images))]
    sizes = np.array([array.shape[:2] for array in arrays], np.int64)
    return PixelStore(np.concatenate([array.reshape(-1) for array in arrays]), sizes, side, interpolation)


def _decode(image: Image.Image, side: int, interpolation: str) -> np.ndarray:
    """Resize an image to (H, W, 3) uint8, by the function of the classic pipeline."""
    return np.asarray(resize(image, [side], InterpolationMode(interpolation)))


def _name_store(images: FileSet, side: int, interpolation: str) -> str:
    """Return the name of a set's store, which ends with the key."""
    digest = hashlib.sha256(f"{FORMAT}{' as shown' if images.as_shown else ''}\n".encode())
    for path, name in zip(images.paths, images.relative_names(), strict=True):
        digest.update(os.fsencode(name) + f" {read_stamps(path)}\n".encode())
    return f"{images.name.replace(' ', '-')}-{side}-{interpolation}-{digest.hexdigest()[:12]}"
