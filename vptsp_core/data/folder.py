"""Image files, decoded one at a time."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import stat
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

_AVIF = features.check("avif")  # not in every build of Pillow
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".png", ".webp", ".apng", ".bmp", ".ppm", ".pgm", ".pbm",
    ".pnm", ".tif", ".tiff", ".gif", *([".avif"] if _AVIF else []),
)  # fmt: skip
# Other formats of photographs: a warning counts such files.
OTHER_SUFFIXES = (
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".svg", ".ico", ".tga", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pdf", ".eps",
)  # fmt: skip
DARK = 4096  # if all pixels of a 16-bit image are below this, they hold 12-bit or 8-bit values
# No other format of Pillow is read, whatever a file's name: an EPS file, for example, is a program for Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if _AVIF else []))
LONGEST = 256  # largest ratio of the sides; resized to a shorter side of 256 pixels, such an image takes 50 MB
_REPLACE, _CONVERT = "replace the file", "convert it to JPEG or PNG"
# The first bytes of files that have the name of an image and another content.
_CONTENTS = (
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC", _CONVERT),
    (rb"....ftypavi[fs]", "AVIF", _CONVERT),
    (rb"\xff\x0a|....JXL ", "JPEG XL", _CONVERT),
    (rb"\s*<(!doctype html|html)", "a web page, a failed download?", _REPLACE),
    (rb"version https://git-lfs", "a pointer of Git LFS, which git lfs pull follows", _REPLACE),
)


class FileSet(ImageSet):
    """N image files with labels (N,). ``as_shown`` says how to read them, see `read_image`."""

    def __init__(
        self,
        name: str,
        paths: Sequence[Path],
        labels: np.ndarray,
        class_names: Sequence[str],
        *,
        as_shown: bool = False,
    ) -> None:
        super().__init__(name, labels, class_names)
        self.paths, self.as_shown = list(paths), as_shown

    def reader(self, index: int) -> Callable[[], Image.Image]:
        return functools.partial(_read_of_set, self.name, self.paths[index], self.as_shown)

    def image(self, index: int) -> Image.Image:
        return self.reader(index)()

    def describe(self, index: int) -> str:
        return str(self.paths[index])

    def relative_names(self) -> list[str]:
        """Return the paths from their common folder on: they are the same on another machine."""
        if not self.paths:
            return []
        common = os.path.commonpath([path.parent for path in self.paths])
        return [os.path.relpath(path, common).replace(os.sep, "/") for path in self.paths]

    def fingerprint(self) -> str:
        """Hash labels, paths and file sizes: that is quick, but does not see an edit of equal length. Your own images
        (``as_shown``) may be edited, so the contents of their files are hashed.
        Raises DataError: a file is missing, or it cannot be read.
        """
        checksum = hashlib.sha256(b"as shown\n" if self.as_shown else b"")
        with ThreadPoolExecutor(cores()) as pool:
            sizes = (read_stamps(path)[0] for path in self.paths)
            contents = pool.map(hash_content, self.paths) if self.as_shown else sizes
            for name, label, each in zip(self.relative_names(), self.labels, contents, strict=True):
                checksum.update(f"{label} ".encode() + os.fsencode(name) + f" {each}\n".encode())
        return checksum.hexdigest()[:16]


def read_stamps(path: Path) -> tuple[int, ...]:
    """Return size, inode, and times of modification and of change: if they differ, the file was changed.
    Raises DataError: the file is missing, or it cannot be looked at.
    """
    try:
        now = path.stat()
    except OSError as error:
        raise DataError(f"image {path}: {error.strerror}; check the path") from error
    return now.st_size, now.st_ino, now.st_mtime_ns, now.st_ctime_ns


def hash_content(path: Path) -> str:
    """Return the SHA-256 of a file. A process reads the file once, unless it changes.
    Raises DataError: the file is missing, or it cannot be read.
    """
    stamps = read_stamps(path)
    try:
        return _hash_content(path, stamps)
    except OSError as error:
        raise DataError(f"image {path}: unreadable ({error.strerror}); make it readable, or leave it out") from error


@functools.cache
def _hash_content(path: Path, stamps: tuple[int, ...]) -> str:
    return digest(path)


def _read_of_set(name: str, path: Path, as_shown: bool) -> Image.Image:
    """Read an image of the set ``name``; if that fails, name the command that lists all such files."""
    try:
        return read_image(path, as_shown)
    except DataError as error:
        dataset = name.partition(" ")[0]
        raise DataError(
            f"{error}; all such files: python -m vptsp_core data check {dataset} --data DIR --decode"
        ) from error


def read_image(path: Path, as_shown: bool = False) -> Image.Image:
    """Decode one file, or its first frame, to RGB.

    Your own photographs are read ``as_shown`` by a viewer (see `to_rgb`). The images of benchmarks are read as the
    paper's loaders read them, without regard to orientation and transparency.
    Raises DataError: the file, which is named, is missing, truncated, not an image, too large, or refused by `to_rgb`.
    """
    name = f"image {path}"
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # to open a pipe would block
            raise DataError(f"{name}: not a regular file; replace it")
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, name, as_shown)
    except FileNotFoundError as error:
        cure = "check the path" if as_shown else "get the data set again"
        raise DataError(f"{name}: no such file; {cure}") from error
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise errors of many types: OSError, SyntaxError, struct.error, ...
        reason, cure = _explain(error, path)
        raise DataError(f"{name}: unreadable ({reason}); {cure}") from error


def _explain(error: Exception, path: Path) -> tuple[str, str]:
    """Return why Pillow failed, and the cure."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, "make it readable" if isinstance(error, PermissionError) else _REPLACE
    if not isinstance(error, UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__, _REPLACE
    with open(path, "rb") as file:
        begin = file.read(64)
    if not begin:
        return "the file is empty", _REPLACE
    for pattern, kind, cure in _CONTENTS:
        if re.match(pattern, begin, re.DOTALL | re.IGNORECASE):
            return f"its content is {kind}", cure
    return "not an image of a known kind", _REPLACE


def count_unread(names: Iterable[str]) -> str:
    """Count the ignored files that are images of other formats, for a message; empty if there are none.

    >>> count_unread(["a/1.heic", "a/2.HEIC", "notes.txt"])
    '2 .heic are not read; convert them to JPEG or PNG'
    """
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in names)
    kinds = [f"{suffixes[each]:,} {each}" for each in OTHER_SUFFIXES if suffixes[each] and each not in IMAGE_SUFFIXES]
    return f"{' and '.join(kinds)} are not read; convert them to JPEG or PNG" if kinds else ""


def refuse_inside_images(place: Path, images: str | Path, option: str) -> Path:
    """Return ``place``, which will be written, unless it is in the folder of your own ``images``: the next reader of
    that folder would take it for a class or an image.
    Raises DataError: the place is in that folder; the message names the ``option`` that gives another place.
    """
    folder = Path(images).expanduser().resolve()
    if place.expanduser().resolve().is_relative_to(folder):
        raise DataError(
            f"{place} is in {folder}, the folder of your images, where nothing is written; name a place outside of it "
            f"with {option}"
        )
    return place


def to_rgb(image: Image.Image, name: str = "image", as_shown: bool = False) -> Image.Image:
    """Convert an image to RGB. 16-bit values are divided by 256 first, because Pillow would cut them off at 255.

    ``as_shown`` turns the image by its EXIF orientation and puts transparent pixels over white. Otherwise the pixels
    are as stored.
    Raises DataError: the range of the pixels' values is not known, or the image is more than `LONGEST` times as long as
    wide, which could take gigabytes after resizing by the shorter side. The message begins with ``name``.
    """
    width, height = image.size
    if max(width, height) > LONGEST * min(width, height):
        raise DataError(f"{name}: {width} x {height} pixels, more than {LONGEST} times as long as wide; leave it out")
    if as_shown:
        image.load()  # also turns a TIFF
        with contextlib.suppress(Exception):  # viewers show an image with broken EXIF as it is stored
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError(f"{name}: its values do not fit into 16 bits; convert it to 8 bits a channel")
        if 0 < values.max(initial=0) < DARK:  # in 8 bits it would be almost black
            fault = f"its values end at {values.max():,} of 65,535"
            raise DataError(f"{name}: {fault}; spread them over the range, or convert it to 8 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no known range; convert it to 8 bits a channel")
    elif as_shown and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    rgb = image.convert("RGB")
    rgb.info.clear()  # so that nobody turns it a second time
    return rgb
