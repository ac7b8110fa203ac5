"""Image files, decoded one at a time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vptsp_core.data.base import ImageSet
from vptsp_core.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


class FileSet(ImageSet):
    """Images that are files.

    Args:
        paths: N files, in the order of the labels.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], labels: np.ndarray, class_names: Sequence[str], shared: bool = False
    ) -> None:
        super().__init__(name, labels, class_names, shared)
        self.paths = list(paths)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB; grayscale, palette, CMYK and alpha are converted, of several frames the first."""
        return read_image(self.paths[index])

    def describe(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    def relative_names(self) -> list[str]:
        """The paths from the folder that is common to all of them, so that they are the same on another machine."""
        common = os.path.commonpath([path.parent for path in self.paths])
        return [os.path.relpath(path, common) for path in self.paths]

    def fingerprint(self) -> str:
        """Over labels, paths and file sizes: quick, and blind to nothing but edits of equal length."""
        digest = hashlib.sha256()
        for path, name, label in zip(self.paths, self.relative_names(), self.labels, strict=True):
            try:
                size = path.stat().st_size
            except OSError as error:
                raise DataError(f"image {path}: {error.strerror}; get the data set again") from error
            digest.update(f"{label} ".encode() + os.fsencode(name) + f" {size}\n".encode())
        return digest.hexdigest()[:16]


def read_image(path: Path) -> Image.Image:
    """Decode one file to RGB.

    Raises:
        DataError: missing, truncated, not an image, or too large to be one; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return to_rgb(image, f"image {path}")
    except FileNotFoundError as error:
        raise DataError(f"image {path}: no such file; get the data set again") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {path}: unreadable ({reason}); replace the file") from error


def to_rgb(image: Image.Image, name: str = "image") -> Image.Image:
    """Pillow's conversion, which cuts numbers beyond 255 off: 16 bits are brought to 8 first.

    Raises:
        DataError: pixels whose range is not known, under the image's ``name``.
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min(initial=0) < 0 or values.max(initial=0) > 0xFFFF:
            raise DataError(f"{name}: its values do not fit into 16 bits; convert it to 8 bits a channel")
        image = Image.fromarray((values >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise DataError(f"{name}: floating-point pixels have no known range; convert it to 8 bits a channel")
    return image.convert("RGB")


def class_folders(folder: Path, name: str) -> tuple[dict[str, list[str]], list[str]]:
    """Names of the image files of each sub-folder, both in name order, and the paths of what is ignored.

    Hidden files and folders, and a file system's ``lost+found``, are left out of both. Ignored are files without a
    suffix of `IMAGE_SUFFIXES`, folders in class folders, and files in the folder itself.

    Raises:
        DataError: a folder is missing or unreadable, or there are no sub-folders with images.
    """
    if not folder.is_dir():
        raise DataError(f"{name}: no folder {folder}; unpack the data set there, or name its parent with --data")
    labels, loose = _entries(folder, lambda entry: entry.is_dir() and entry.name != "lost+found")
    classes, ignored = {}, [file for file in loose if file != "lost+found"]
    for label in labels:
        classes[label], others = _entries(folder / label, _is_image)
        ignored += [f"{label}/{other}" for other in others]
    if not any(classes.values()):
        if count := sum(file.lower().endswith(IMAGE_SUFFIXES) for file in ignored if "/" not in file):
            raise DataError(
                f"{name}: {count} image(s) lie in {folder} itself, and no class folders with images; make a sub-folder "
                "for each class, or write split.csv"
            )
        raise DataError(f"{name}: no class folders with images in {folder}; it must hold <class>/<image>.jpg")
    return classes, ignored


def _is_image(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()


def _entries(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> tuple[list[str], list[str]]:
    """Names that are wanted and that are not, both in order; hidden ones are in neither."""
    names: tuple[list[str], list[str]] = ([], [])
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith("."):
                    names[not wanted(entry)].append(entry.name)
    except OSError as error:
        place = error.filename or folder
        raise DataError(f"cannot read {place} ({error.strerror or error}); mend or remove it") from error
    return sorted(names[0]), sorted(names[1])
