"""The pixels of decoded images as one flat uint8 array: on disk (memory-mapped), in memory or on a GPU."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from vptsp_core.system.devices import free_gpu_memory

RESIDENT_SHARE = 0.25  # largest share of a GPU's free memory for a store; the step needs the rest


class PixelStore:
    """N RGB images of different sizes, one after another.

    Args:
        pixels: (total,) uint8; image i is rows of (H, W, 3) from byte ``starts[i]`` on.
        sizes: (N, 2) int64, height and width of each image.
        side: the shorter side of every image, in pixels.
        interpolation: ``"bilinear"`` or ``"bicubic"``, by which the images were resized.
    """

    def __init__(self, pixels: np.ndarray, sizes: np.ndarray, side: int, interpolation: str) -> None:
        self.pixels, self.sizes, self.side, self.interpolation = pixels, sizes, side, interpolation
        self.starts = image_starts(sizes)[:-1]
        self._resident: dict[torch.device, Tensor] = {}

    def __len__(self) -> int:
        return len(self.sizes)

    def part(self, rows: np.ndarray) -> PixelStore:
        """Return the images ``rows`` (n,) of this store, without copying pixels."""
        some = copy.copy(self)
        some.sizes, some.starts = self.sizes[rows], self.starts[rows]
        return some

    def image(self, index: int) -> np.ndarray:
        """Return a view of image ``index``, (H, W, 3) uint8."""
        (height, width), start = self.sizes[index], self.starts[index]
        return self.pixels[start : start + height * width * 3].reshape(height, width, 3)

    def resident(self, device: torch.device) -> Tensor | None:
        """Return the flat pixels, (bytes,) uint8, in the device's memory. For the CPU these are the pixels themselves,
        for an NVIDIA GPU with enough room (`RESIDENT_SHARE`) a copy that the store keeps, otherwise None.
        """
        if device.type == "cpu":
            return torch.from_numpy(self.pixels)
        if device not in self._resident:
            if device.type != "cuda" or self.pixels.nbytes > RESIDENT_SHARE * free_gpu_memory(device):
                return None
            self._resident[device] = torch.from_numpy(self.pixels).to(device)
        return self._resident[device]


def image_starts(sizes: np.ndarray) -> np.ndarray:
    """Return the first byte of each of N images of sizes (N, 2), and the end of the last one: (N + 1,) int64."""
    return np.concatenate([[0], np.cumsum(sizes.astype(np.int64).prod(1) * 3)])
