"""The cached pipeline: batches from a `PixelStore`, augmented on the device (`crops`).

The pixels of a step depend on (seed, epoch, step) and on each image's place in the whole batch. They do not depend on
the kind of device, on threads or on the number of processes, except for rounding.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.data.crops import random_boxes, resize_one, resize_together
from vptsp_core.data.loading import CROPS, interpolation_name
from vptsp_core.data.store import PixelStore
from vptsp_core.method.config import RunConfig
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.system.devices import to_device

AHEAD = 2  # batches that are copied to the device before they are needed
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and standard deviation of the input, per channel


def train_batches(
    store: PixelStore,
    labels: np.ndarray,
    config: RunConfig,
    statistics: Statistics,
    sampler: ClassBalancedSampler,
    epoch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Do what `batches.train_batches` does, from a store with ``labels`` (N,): yield ((b, 3, S, S), (B,))."""
    drawn = _draw(store, config, sampler, epoch, part)
    every = torch.from_numpy(labels)
    everything = store.resident(device)
    if everything is not None:
        for chosen, boxes, flips, batch in drawn:
            starts, widths = store.starts[chosen], store.sizes[chosen, 1]
            images = _augment(everything, starts, widths, boxes, flips, config, statistics)
            yield images, to_device(every[batch], device)
        return

    def host() -> Iterator[tuple[Any, ...]]:
        """Yield the pixels of each step's boxes, one box after another, and the labels of its batch."""
        for chosen, boxes, flips, batch in drawn:
            cut = [
                store.image(i)[top : top + height, left : left + width].reshape(-1)
                for i, (top, left, height, width) in zip(chosen, boxes, strict=True)
            ]
            yield torch.from_numpy(np.concatenate(cut)), every[batch], boxes, flips

    for pixels, batch_labels, boxes, flips in on_device(host(), device):
        starts = np.concatenate([[0], np.cumsum(boxes[:-1, 2] * boxes[:-1, 3] * 3)])
        whole = boxes * [0, 0, 1, 1]  # `host` has cut the boxes out
        yield _augment(pixels, starts, boxes[:, 3], whole, flips, config, statistics), batch_labels


def eval_batches(
    store: PixelStore,
    config: RunConfig,
    statistics: Statistics,
    batch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[Tensor]:
    """Do what `batches.eval_batches` does, from a store: yield (<= batch, 3, S, S) float32.

    The store was resized as in the classic pipeline. So only the centre is cut out, and the pixels are the same bits.
    """
    places = range(len(store))[part]
    size = config.image_size

    def host() -> Iterator[tuple[Tensor]]:
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            pixels = np.empty((len(some), size, size, 3), np.uint8)
            for row, index in zip(pixels, some, strict=True):
                image = store.image(index)
                top, left = (round((length - size) / 2) for length in image.shape[:2])  # torchvision's rounding
                row[:] = image[top : top + size, left : left + size]
            yield (torch.from_numpy(pixels),)

    for (pixels,) in on_device(host(), device):
        yield normalise(pixels.permute(0, 3, 1, 2), statistics)


@functools.cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the device's one stream for copies: torch keeps freed memory for each stream separately."""
    return torch.cuda.Stream(device)


def on_device(batches: Iterator[tuple[Any, ...]], device: torch.device) -> Iterator[tuple[Any, ...]]:
    """Yield the same tuples in order, with their tensors on the device.

    For a GPU, a thread draws at most `AHEAD` batches, pins them and copies them on its own stream. Only the current
    stream waits for a copy. On a CPU there is no thread: it would take a core from the step.
    """
    if device.type != "cuda":
        for batch in batches:
            yield tuple(each.to(device) if isinstance(each, Tensor) else each for each in batch)
        return
    stream = _copy_stream(device)

    def load() -> tuple[list[Any], torch.cuda.Event] | None:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            if (batch := next(batches, None)) is None:
                return None
            copies = [each.pin_memory().to(device, non_blocking=True) if isinstance(each, Tensor) else each
                      for each in batch]  # fmt: skip
            return copies, stream.record_event()

    with ThreadPoolExecutor(1, "prefetch") as pool:
        waiting = deque(pool.submit(load) for _ in range(AHEAD))
        while (loaded := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(load))
            copies, copied = loaded
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for each in copies:
                if isinstance(each, Tensor):
                    each.record_stream(current)
            yield tuple(copies)


def normalise(pixels: Tensor, statistics: Statistics) -> Tensor:
    """Bring uint8 (B, 3, S, S) to the backbone's input range, float32, exactly as ToTensor and Normalize do."""
    mean, std = _as_tensors(statistics, pixels.device)
    return _allocate(pixels.shape, pixels.device).copy_(pixels).div_(255).sub_(mean).div_(std)


def _as_tensors(statistics: Statistics, device: torch.device) -> Iterator[Tensor]:
    return (to_device(torch.tensor(values)[:, None, None], device) for values in statistics)


def _allocate(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Return an uninitialised float32 tensor, on a CPU from NumPy: its huge pages make the first access faster."""
    return torch.from_numpy(np.empty(shape, np.float32)) if device.type == "cpu" else torch.empty(shape, device=device)


def _draw(
    store: PixelStore, config: RunConfig, sampler: ClassBalancedSampler, epoch: int, part: slice
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield for each step the images (b,) of this process, their boxes (b, 4) and flips (b,), and the batch (B,)."""
    scale, ratio = CROPS[config.augmentation]
    for step, batch in enumerate(sampler.epoch(epoch)):
        rng = np.random.default_rng([sampler.seed, epoch, 3, step])
        boxes = random_boxes(store.sizes[batch], scale, ratio, rng)
        flips = (rng.random(len(batch)) < 0.5) & (config.augmentation == "base")  # a mirrored letter is another letter
        yield batch[part], boxes[part], flips[part], batch


def _augment(
    pixels: Tensor,
    starts: np.ndarray,
    widths: np.ndarray,
    boxes: np.ndarray,
    flips: np.ndarray,
    config: RunConfig,
    statistics: Statistics,
) -> Tensor:
    """Return (b, 3, S, S) float32. A GPU resizes all boxes together, a CPU finishes one image after another."""
    size, mode = config.image_size, interpolation_name(config)
    if pixels.device.type != "cpu":
        return normalise(resize_together(pixels, starts, widths, boxes, flips, size, mode), statistics)
    out = _allocate((len(boxes), 3, size, size), pixels.device)
    mean, std = _as_tensors(statistics, pixels.device)
    images = list(zip(starts.tolist(), widths.tolist(), boxes.tolist(), flips.tolist(), strict=True))

    def work(part: range) -> None:
        for i in part:
            out[i].copy_(resize_one(pixels, *images[i], size, mode)).div_(255).sub_(mean).div_(std)

    before, threads = torch.get_num_threads(), _threads()
    list(_pool(threads).map(work, (range(i, len(boxes), threads) for i in range(threads))))
    torch.set_num_threads(before)  # a thread of the pool also sets the number for later threads
    return out


def _threads() -> int:
    """Return the number of threads that augment, which is torch's own. It changes no pixel (tests change it)."""
    return torch.get_num_threads()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Return threads that each resize one image at a time: one resize is too small to be split by torch."""
    return ThreadPoolExecutor(threads, "augment", initializer=torch.set_num_threads, initargs=(1,))
