"""Image files, decoded one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from vptsp_core.data.base import ImageSet
from vptsp_core.errors import DataError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm")


class FileSet(ImageSet):
    """Images that are files.

    Args:
        paths: N files, in the order of the labels.
    """

    def __init__(self, name: str, paths: Sequence[Path], labels: np.ndarray, class_names: Sequence[str]) -> None:
        super().__init__(name, labels, class_names)
        self.paths = list(paths)

    def image(self, index: int) -> Image.Image:
        """Image ``index`` as RGB; grayscale, palette, CMYK and alpha are converted."""
        return read_image(self.paths[index])

    def describe(self, index: int) -> str:
        """The image's path."""
        return str(self.paths[index])

    def fingerprint(self) -> str:
        """Over class and file names and file sizes: quick, and blind to nothing but edits of equal length."""
        digest = hashlib.sha256()
        for path, label in zip(self.paths, self.labels, strict=True):
            digest.update(f"{label} {path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
        return digest.hexdigest()[:16]


def read_image(path: Path) -> Image.Image:
    """Decode one file to RGB.

    Raises:
        DataError: missing, truncated, not an image, or too large to be one; the message names the file.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError as error:
        raise DataError(f"image {path}: no such file; get the data set again") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"image {path}: unreadable ({reason}); replace the file") from error


def class_folders(folder: Path, name: str) -> dict[str, list[Path]]:
    """Image files of each sub-folder, both in name order.

    Raises:
        DataError: the folder is missing or has no sub-folders with images.
    """
    if not folder.is_dir():
        raise DataError(f"{name}: no folder {folder}; unpack the data set there, or name its parent with --data")
    classes = {
        sub.name: sorted(file for file in sub.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file())
        for sub in sorted(folder.iterdir())
        if sub.is_dir()
    }
    if not any(classes.values()):
        raise DataError(f"{name}: no class folders with images in {folder}; it must hold <class>/<image>.jpg")
    return classes


def refuse_singletons(folder: Path, classes: dict[str, list[Path]]) -> None:
    """A class of one image has nothing to be retrieved by: its query can only miss.

    Raises:
        DataError: naming the first class with fewer than two images.
    """
    for name, files in classes.items():
        if len(files) < 2:
            raise DataError(f"class {folder / name} has {len(files)} image(s), at least 2 are needed; add or remove it")
