"""Image files, decoded one at a time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features

from vptsp_core.data.base import ImageSet
from vptsp_core.errors import DataError
from vptsp_core.system.portable import cores
from vptsp_core.system.seals import digest

_AVIF = features.check("avif")  # Pillow has it from 11.3 on
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".png", ".webp", ".apng", ".bmp", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tif", ".tiff", ".gif", *([".avif"] if _AVIF else []),
)  # fmt: skip
# Other formats of photographs: files of these are counted in a warning.
OTHER_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2", ".psd", ".svg", ".dng", ".cr2", ".cr3", ".nef", ".arw")
DARK = 4096  # of 16 bits: images of smaller values only are refused
# The content decides what a file is, and some kinds that Pillow knows are programs (EPS, for Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if _AVIF else []))
LONGEST = 256  # times as long as wide, which takes 50 MB with a shorter side of 256 pixels


class FileSet(ImageSet):
    """Images that are files.

    Args:
        paths: N files, in the order of the labels.
        labels: (N,) whole numbers, class of every image.
        as_shown: read them as a viewer shows them (see `read_image`).
    """

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        labels: np.ndarray,
        class_names: Sequence[str],
        shared: bool = False,
        *,
        as_shown: bool = False,
    ) -> None:
        super().__init__(name, labels, class_names, shared)
        self.paths, self.as_shown = list(paths), as_shown

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB (see `read_image`)."""
        return read_image(self.paths[index], self.as_shown)

    def reader(self, index: int) -> Callable[[], Image.Image]:
        """What reads image ``index``, small enough to be sent to another process."""
        return functools.partial(read_image, self.paths[index], self.as_shown)

    def describe(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    def relative_names(self) -> list[str]:
        """The paths from the folder that is common to all of them, so that they are the same on another machine."""
        if not self.paths:
            return []
        common = os.path.commonpath([path.parent for path in self.paths])
        return [os.path.relpath(path, common).replace(os.sep, "/") for path in self.paths]

    def fingerprint(self) -> str:
        """Over labels, paths and file sizes, which is quick and does not see edits of equal length. Your own images
        (``as_shown``) may be edited, so theirs is over the files' contents, each read once in a process.
        """
        found = hashlib.sha256(b"as shown\n" if self.as_shown else b"")
        with ThreadPoolExecutor(cores()) as pool:
            of_files = list(pool.map(stamps, self.paths))
            contents = pool.map(_content_of, self.paths, of_files) if self.as_shown else (each[0] for each in of_files)
            for name, label, each in zip(self.relative_names(), self.labels, contents, strict=True):
                found.update(f"{label} ".encode() + os.fsencode(name) + f" {each}\n".encode())
        return found.hexdigest()[:16]


def stamps(path: Path) -> tuple[int, ...]:
    """Size, inode, times of modification and of change: a file that has others was changed."""
    now = path.stat()
    return now.st_size, now.st_ino, now.st_mtime_ns, now.st_ctime_ns


@functools.cache
def _content_of(path: Path, stamps: tuple[int, ...]) -> str:
    """SHA-256 of a file, which is read once in a process unless its ``stamps`` change."""
    return digest(path)


def read_image(path: Path, as_shown: bool = False) -> Image.Image:
    """Decode one file to RGB; of several frames the first.

    Args:
        as_shown: as a viewer shows it (`to_rgb`), for your own photographs. The benchmarks' images are read as the
            paper's loaders read them, without regard to orientation and transparency.

    Raises:
        DataError: missing, truncated, not an image, or too large to be one; the message names the file.
    """
    name = f"image {path}"
    try:
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, name, as_shown)
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(f"{name}: no such file; check the path, or get the data set again") from error
    except Exception as error:  # Pillow's plugins raise what they meet: OSError, SyntaxError, struct.error, ...
        raise DataError(f"{name}: unreadable ({_reason(error, path)}); replace the file") from error


def _reason(error: Exception, path: Path) -> str:
    """Why Pillow gave up."""
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
    with open(path, "rb") as file:
        begin = file.read(16)
    return f"not an image of a known kind, it begins with {begin!r}" if begin else "the file is empty"


def not_read(names: Iterable[str]) -> str:
    """How many of the files that are left out are images of which kind, as the end of a message; empty for none.

    >>> not_read(["a/1.heic", "a/2.HEIC", "notes.txt"])
    '; 2 .heic are not read: convert them to JPEG or PNG'
    """
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in names)
    kinds = [f"{suffixes[each]:,} {each}" for each in OTHER_SUFFIXES if suffixes[each] and each not in IMAGE_SUFFIXES]
    return f"; {' and '.join(kinds)} are not read: convert them to JPEG or PNG" if kinds else ""


def outside_images(place: Path, images: str | Path, option: str) -> Path:
    """``place``, which is to be written, unless it is in the folder of your own ``images``: there it would be a class,
    or an image, for whatever reads the folder next.

    Raises:
        DataError: it is; the message names the ``option`` that gives another place.
    """
    folder = Path(images).expanduser().resolve()
    if place.expanduser().resolve().is_relative_to(folder):
        raise DataError(
            f"{place} is in {folder}, the folder of your images, where nothing is written; name a place outside of it "
            f"with {option}"
        )
    return place


def to_rgb(image: Image.Image, name: str = "image", as_shown: bool = False) -> Image.Image:
    """Pillow's conversion; it would cut values beyond 255 off, so 16 bits are reduced to 8 first.

    Args:
        as_shown: turned as its EXIF orientation says, and what is transparent over white. Otherwise the pixels as they
            are stored, with the colours that full transparency hides.

    Raises:
        DataError: the range of the pixels' values is not known; the message begins with ``name``.
    """
    width, height = image.size
    if max(width, height) > LONGEST * min(width, height):  # a crop of such a strip shows hardly anything
        raise DataError(f"{name}: {width} x {height} pixels, more than {LONGEST} times as long as wide; leave it out")
    if as_shown:
        image.load()  # turns a TIFF by itself
        with contextlib.suppress(Exception):  # viewers show images with broken EXIF all the same
            image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        low, high = values.min(initial=0), values.max(initial=0)
        # 12-bit data, or 8-bit data in wider numbers, would be all but black
        if image.mode == "F" or low < 0 or high > 0xFFFF or 0 < high < DARK:
            fault = f"its values from {low:g} to {high:g} have no known range"
            raise DataError(f"{name}: {fault}; convert it to 8 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif as_shown and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    found = image.convert("RGB")
    found.info.clear()  # no orientation: it is turned already
    return found
