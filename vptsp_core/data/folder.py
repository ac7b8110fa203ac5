"""Image files, decoded one at a time."""

from __future__ import annotations

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
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features

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
OTHER_SUFFIXES = (
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".psd", ".svg", ".ico", ".tga", ".exr", ".hdr",
    ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".pdf", ".eps",
)  # fmt: skip
DARK = 4096  # of 16 bits: 12-bit data, or 8-bit data in wider numbers
# The content decides what a file is, and some kinds that Pillow knows are programs (EPS, for Ghostscript).
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF", *(["AVIF"] if _AVIF else []))
LONGEST = 256  # times as long as wide, which takes 50 MB with a shorter side of 256 pixels
# How files begin that have the name of an image and are something else.
_CONTENTS = (
    (rb"....ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "HEIC"),
    (rb"....ftypavi[fs]", "AVIF"),
    (rb"\xff\x0a|....JXL ", "JPEG XL"),
    (rb"....jP  |\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF", "a PDF"),
    (rb"\s*<(!doctype html|html)", "a web page, a failed download?"),
    (rb"\s*<(\?xml|svg)", "SVG or other XML"),
    (rb"version https://git-lfs", "a pointer of Git LFS, which git lfs pull follows"),
    (rb"II\*\0.{4}CR|FUJIFILM", "a raw file"),
    (rb"PK\x03\x04", "a ZIP archive"),
)
_PICTURES = ("HEIC", "AVIF", "JPEG XL", "JPEG 2000", "a Photoshop file", "a PDF", "SVG or other XML", "a raw file")


class FileSet(ImageSet):
    """N images that are files, in the order of the labels (N,), read ``as_shown`` or not (see `read_image`)."""

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

    def reader(self, index: int) -> Callable[[], Image.Image]:
        one = FileSet(self.name, [self.paths[index]], np.zeros(1, np.int64), [""], as_shown=self.as_shown)
        return functools.partial(one.image, 0)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB, see `read_image`.
        Raises DataError: it cannot be read; the message names the command that finds all such files.
        """
        try:
            return read_image(self.paths[index], self.as_shown)
        except DataError as error:
            name = self.name.partition(" ")[0]
            raise DataError(
                f"{error}; all such files: python -m vptsp_core data check {name} --data DIR --decode"
            ) from error

    def size(self, index: int) -> tuple[int, int]:
        """Width and height of image ``index`` by its header. Raises what `image` raises."""
        try:
            with Image.open(self.paths[index], formats=FORMATS) as image:
                check_shape(*image.size)
                return image.size
        except Exception:  # Pillow raises what it meets
            return self.image(index).size  # raises, and says why

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
        Raises DataError: naming a file that is gone or cannot be read.
        """
        found = hashlib.sha256(b"as shown\n" if self.as_shown else b"")
        with ThreadPoolExecutor(cores()) as pool:
            contents = pool.map(content_of, self.paths) if self.as_shown else map(size_of, self.paths)
            for name, label, each in zip(self.relative_names(), self.labels, contents, strict=True):
                found.update(f"{label} ".encode() + os.fsencode(name) + f" {each}\n".encode())
        return found.hexdigest()[:16]


def size_of(path: Path) -> int:
    """Bytes of a file."""
    return stamps(path)[0]


def stamps(path: Path) -> tuple[int, ...]:
    """Size, inode, times of modification and of change: a file that has others was changed.
    Raises DataError: it is gone.
    """
    try:
        now = path.stat()
    except OSError as error:
        raise DataError(f"image {path}: {error.strerror}; get the data set again") from error
    return now.st_size, now.st_ino, now.st_mtime_ns, now.st_ctime_ns


def content_of(path: Path) -> str:
    """SHA-256 of a file, which is read once in a process unless it changes."""
    return _content_of(path, stamps(path))


@functools.cache
def _content_of(path: Path, stamps: tuple[int, ...]) -> str:
    try:
        return digest(path)
    except OSError as error:
        raise DataError(f"image {path}: {error.strerror}; make it readable, or remove it") from error


def read_image(path: Path, as_shown: bool = False) -> Image.Image:
    """Decode one file to RGB; of several frames the first.

    Your own photographs are read ``as_shown`` by a viewer (`to_rgb`), the benchmarks' images as the paper's loaders
    read them, without regard to orientation and transparency.
    Raises DataError: missing, truncated, not an image, or too large to be one; the message names the file.
    """
    name = f"image {path}"
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():  # a pipe would be waited for
            raise DataError(f"{name}: no regular file; replace it")
        with Image.open(path, formats=FORMATS) as image:
            return to_rgb(image, name, as_shown)
    except FileNotFoundError as error:
        cure = "check the path" if as_shown else "get the data set again"
        raise DataError(f"{name}: no such file; {cure}") from error
    except DataError:
        raise
    except Exception as error:  # Pillow's plugins raise what they meet: OSError, SyntaxError, struct.error, ...
        reason, cure = _reason(error, path)
        raise DataError(f"{name}: unreadable ({reason}); {cure}") from error


def _reason(error: Exception, path: Path) -> tuple[str, str]:
    """Why Pillow gave up, and what to do."""
    cure = "replace the file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror, cure
    if not isinstance(error, UnidentifiedImageError):
        return " ".join(str(error).split()) or type(error).__name__, cure
    with open(path, "rb") as file:
        begin = file.read(64)
    if not begin:
        return "the file is empty", cure
    for pattern, what in _CONTENTS:
        if re.match(pattern, begin, re.DOTALL | re.IGNORECASE):
            return f"its content is {what}", "convert it to JPEG or PNG" if what in _PICTURES else cure
    return "not an image of a known kind", cure


def not_read(names: Iterable[str]) -> str:
    """How many of the files that are left out are images of which kind, and what to do; empty for none.

    >>> not_read(["a/1.heic", "a/2.HEIC", "notes.txt"])
    '2 .heic are not read; convert them to JPEG or PNG'
    """
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in names)
    kinds = [f"{suffixes[each]:,} {each}" for each in OTHER_SUFFIXES if suffixes[each] and each not in IMAGE_SUFFIXES]
    return f"{' and '.join(kinds)} are not read; convert them to JPEG or PNG" if kinds else ""


def check_shape(width: int, height: int, name: str = "image") -> None:
    """Refuse a strip: resized by its shorter side it takes gigabytes, and a crop of it shows hardly anything.
    Raises DataError: it is one; the message begins with ``name``.
    """
    if max(width, height) > LONGEST * min(width, height):
        raise DataError(f"{name}: {width} x {height} pixels, more than {LONGEST} times as long as wide; leave it out")


def outside_images(place: Path, images: str | Path, option: str) -> Path:
    """``place``, which is to be written, unless it is in the folder of your own ``images``: there it would be a class,
    or an image, for whatever reads the folder next.
    Raises DataError: it is in there; the message names the ``option`` that gives another place.
    """
    folder = Path(images).expanduser().resolve()
    if place.expanduser().resolve().is_relative_to(folder):
        raise DataError(
            f"{place} is in {folder}, the folder of your images, where nothing is written; name a place outside of it "
            f"with {option}"
        )
    return place


def to_rgb(image: Image.Image, name: str = "image", as_shown: bool = False) -> Image.Image:
    """Pillow's conversion; it would cut values beyond 255 off, so 16 bits are reduced to 8 first. ``as_shown`` turns
    the image as its EXIF orientation says, and puts what is transparent over white; else the pixels are as stored.
    Raises DataError: the range of the pixels' values is not known; the message begins with ``name``.
    """
    check_shape(*image.size, name)
    if as_shown:
        image.load()  # turns a TIFF by itself
        if orientation(image) != 1:
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError(f"{name}: its values do not fit into 16 bits; convert it to 8 bits a channel")
        if 0 < values.max(initial=0) < DARK:  # as 8 bits it would be all but black
            fault = f"its values end at {values.max():,} of 65,535"
            raise DataError(f"{name}: {fault}; spread them over the range, or convert it to 8 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no known range; convert it to 8 bits a channel")
    elif as_shown and image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    found = image.convert("RGB")
    found.info.clear()  # no orientation: it is turned already
    return found


def orientation(image: Image.Image) -> int:
    """EXIF orientation from 1 to 8; 1, upright, if there is none or it cannot be read."""
    try:
        noted = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # viewers show such images all the same
        return 1
    return noted if 1 <= noted <= 8 else 1
