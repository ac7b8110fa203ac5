"""Decoded images at their full stored size: one flat uint8 array, on disk (memory-mapped), in memory or on a GPU.

What lies on a disk for months is not believed: every image has its checksum, which is looked at when a process first
uses the image.
"""

from __future__ import annotations

import copy
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vptsp_core.data.threads import Threads
from vptsp_core.errors import DataError
from vptsp_core.system.portable import cores

RESIDENT_SHARE = 0.25  # of a GPU's free memory that a store may take; the step needs the rest


class PixelStore:
    """N RGB images of unlike sizes, one after another.

    Args:
        pixels: (total,) uint8; image i is rows of (H, W, 3) from byte ``starts[i]`` on.
        sizes: (N, 2) int64, height and width of each image.
        side: pixels of every image's shorter side.
        interpolation: ``"bilinear"`` or ``"bicubic"``, what the images were resized with.
        place: the folder that they are read from, None for images in memory.
        sums: (N,) uint32, what `image_checksum` gave when each was written to ``place``.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        sizes: np.ndarray,
        side: int,
        interpolation: str,
        place: Path | None = None,
        sums: np.ndarray | None = None,
    ) -> None:
        self.pixels, self.sizes, self.side, self.interpolation = pixels, sizes, side, interpolation
        self.place, self.sums = place, sums
        self._checked = np.full(len(sizes), sums is None)
        self.starts = image_starts(sizes)[:-1]
        self._resident: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def part(self, rows: np.ndarray) -> PixelStore:
        """The images ``rows`` (n,) of this store; no pixel is copied, on no device."""
        some = copy.copy(self)
        some.sizes, some.starts, some._checked = self.sizes[rows], self.starts[rows], self._checked[rows]
        some.sums = None if self.sums is None else self.sums[rows]
        return some

    def check(self, rows: np.ndarray) -> None:
        """Hold the images ``rows`` (n,) against their checksums, each once.

        Raises:
            DataError: one is not what was written.
        """
        for index in rows[~self._checked[rows]]:
            if self.sums is not None and image_checksum(self._view(index)) != self.sums[index]:
                raise DataError(
                    f"cache {self.place}: damaged (an image does not fit its checksum); delete the folder, it will be "
                    "made again"
                )
            self._checked[index] = True

    def image(self, index: int) -> np.ndarray:
        """Image ``index``, (H, W, 3) uint8, a view.

        Raises:
            DataError: as `check`.
        """
        if not self._checked[index]:
            self.check(np.array([index]))
        return self._view(index)

    def _view(self, index: int) -> np.ndarray:
        (height, width), start = self.sizes[index], self.starts[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    def resident(self, device: torch.device) -> Tensor | None:
        """The flat pixels, (bytes,) uint8, where the device can reach them: as they are for the CPU, a copy on a GPU
        with room for them (`RESIDENT_SHARE`), kept for the life of the store; None where there is too little room.

        The copy is checked first; for the CPU, `check` is left to those who read.
        """
        if device.type == "cpu":
            return torch.from_numpy(self.pixels)
        if device not in self._resident:
            if device.type == "cuda" and self.pixels.nbytes > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
                return None
            threads = Threads(cores(), progress=False)
            threads.run(lambda rows: self.check(np.arange(rows.start, rows.stop)), len(self), "checking")
            self._resident[device] = torch.from_numpy(self.pixels).to(device)
        return self._resident[device]


def image_checksum(image: np.ndarray) -> int:
    """CRC-32 of an image (H, W, 3) uint8 and of its height and width; never 0, which stands for none."""
    pixels = memoryview(np.ascontiguousarray(image))  # type: ignore[arg-type]  # a buffer
    return zlib.crc32(pixels, zlib.crc32(repr(image.shape[:2]).encode())) or 1


def image_starts(sizes: np.ndarray) -> np.ndarray:
    """First byte of each of N images of sizes (N, 2), and the end of the last: (N + 1,) int64."""
    return np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(1) * 3)])


def resized(sizes: np.ndarray, side: int) -> np.ndarray:
    """Heights and widths (N, 2) once the shorter side is ``side``: torchvision's rule, the longer side cut to whole
    pixels."""
    short, long = sizes.min(1, keepdims=True), sizes.max(1, keepdims=True)
    return np.where(sizes == short, side, side * long // short).astype(np.int64)
