"""Augmentation of stored pixels, a whole batch at a time: draw random boxes on the host, resize them on the device.

The boxes are those of torchvision's RandomResizedCrop. The resizing is Pillow's: the filter is widened to shrink an
image, and a horizontal pass and then a vertical one are each rounded to uint8. (Pillow 13 begins with the vertical pass
if that saves work, which changes some values by one level.) No function here waits for the device.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.system.devices import to_device

TRIES = 10  # random boxes per image; if none fits, the whole image, or its middle if it is too long


def random_boxes(
    sizes: np.ndarray, scale: tuple[float, float], ratio: tuple[float, float], rng: np.random.Generator
) -> np.ndarray:
    """Draw one box per image, as torchvision's ``RandomResizedCrop.get_params`` does.

    Args:
        sizes: (B, 2), heights and widths in pixels.
        scale: bounds of the box's share of the image's area, which is uniform.
        ratio: bounds of width / height, whose logarithm is uniform.

    Returns:
        (B, 4) int64: top, left, height, width.
    """
    height, width = sizes[:, :1].astype(np.int64), sizes[:, 1:].astype(np.int64)
    count = len(sizes)
    area = height * width * rng.uniform(*scale, (count, TRIES))
    shape = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), (count, TRIES)))
    widths, heights = np.rint(np.sqrt(area * shape)).astype(np.int64), np.rint(np.sqrt(area / shape)).astype(np.int64)
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.argmax(1)[:, None]
    w, h = np.take_along_axis(widths, first, 1), np.take_along_axis(heights, first, 1)
    top = rng.integers(0, np.where(fits.any(1, keepdims=True), height - h, 0), endpoint=True)
    left = rng.integers(0, np.where(fits.any(1, keepdims=True), width - w, 0), endpoint=True)
    # If no box fits (a very long image), take the middle, as close to the allowed shapes as possible.
    middle_w = np.where(width / height > ratio[1], np.rint(height * ratio[1]).astype(np.int64), width)
    middle_h = np.where(width / height < ratio[0], np.rint(width / ratio[0]).astype(np.int64), height)
    middle = ((height - middle_h) // 2, (width - middle_w) // 2, middle_h, middle_w)
    drawn = np.concatenate([top, left, h, w], 1)
    return np.where(fits.any(1, keepdims=True), drawn, np.concatenate(middle, 1))


def resize_one(
    pixels: Tensor, start: int, width: int, box: tuple[int, int, int, int], flip: bool, size: int, mode: str
) -> Tensor:
    """Cut a box out of one image, resize it to a square, and mirror it if ``flip``, by torch's uint8 kernel (CPU).

    Args:
        pixels: (total,) uint8, all images. This one starts at byte ``start``, and its rows have ``width`` pixels.
        box: top, left, height, width.
        size: side of the square.
        mode: ``"bilinear"`` or ``"bicubic"``.

    Returns:
        (3, size, size) uint8. Against torchvision's ``resized_crop`` of a PIL image (CUB, torch 2.13, Pillow 13):
        bilinear at most 2 levels of 255 apart, 98 % of the values equal; bicubic: 0.01 % of the values, at
        hard edges, are more than 1 apart. The same holds for `resize_together`.
    """
    top, left, height, columns = box
    cut = pixels.as_strided((1, 3, height, columns), (0, 1, width * 3, 3), start + (top * width + left) * 3)
    square = F.interpolate(cut, (size, size), mode=mode, antialias=True, align_corners=False)[0]
    return square.flip(-1) if flip else square


def resize_together(
    pixels: Tensor, starts: np.ndarray, widths: np.ndarray, boxes: np.ndarray, flips: np.ndarray, size: int, mode: str
) -> Tensor:
    """Do what `resize_one` does for a batch, by two matrix products. ``starts``, ``widths``, ``flips`` (B,) and
    ``boxes`` (B, 4) are on the host. The result (B, 3, size, size) uint8 is on the device of ``pixels``.
    """
    device = pixels.device
    tallest, widest = int(boxes[:, 2].max()), int(boxes[:, 3].max())
    host = np.concatenate([starts[:, None] // 3, widths[:, None], boxes, flips[:, None]], 1).astype(np.int64)
    start, stride, top, left, height, width, flip = to_device(torch.from_numpy(host), device).T[:, :, None]
    rows = (top + torch.arange(tallest, device=device)).clamp(max=top + height - 1)
    columns = (left + torch.arange(widest, device=device)).clamp(max=left + width - 1)
    places = (start + rows * stride)[:, :, None] + columns[:, None, :]
    cut = pixels.view(-1, 3)[places].permute(0, 3, 1, 2).float()
    across, down = _compute_weights(width, widest, size, mode), _compute_weights(height, tallest, size, mode)
    across = torch.where(flip[:, :, None] > 0, across.flip(1), across)
    with torch.autocast(device.type, enabled=False):
        narrow = _round(cut @ across.transpose(1, 2)[:, None])
        return _round(down[:, None] @ narrow).to(torch.uint8)


def _compute_weights(length: Tensor, longest: int, size: int, mode: str) -> Tensor:
    """Return the weights (B, size, longest) of a box's first ``longest`` pixels in each of ``size`` resized pixels.

    A box has ``length`` (B, 1) pixels. Pixels beyond have no weight, because Pillow cuts its filters off there.
    """
    scale = (length / size)[:, :, None]
    centre = (torch.arange(size, device=length.device)[:, None] + 0.5) * scale
    pixel = torch.arange(longest, device=length.device)
    distance = ((pixel + 0.5 - centre) / scale.clamp(min=1)).abs()
    if mode == "bilinear":
        share = (1 - distance).clamp(min=0)
    else:  # Keys' cubic convolution with a = -1/2
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        share = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    share = torch.where(pixel < length[:, :, None], share, 0.0)
    return share / share.sum(-1, keepdim=True)


def _round(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)
