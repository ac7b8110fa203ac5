"""From image sets to batches on the device: decode, augment, normalise (the classic path, on the CPU)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import InterpolationMode

from vptsp_core.data.base import ImageSet
from vptsp_core.errors import DataError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.system.devices import to_device
from vptsp_core.system.distributed import local_size
from vptsp_core.system.portable import cores
from vptsp_core.system.processes import CONTEXT, end_with_parent, starting

Transform = Callable[[Image.Image], Tensor]
# RandomResizedCrop's scale and ratio: the library's own, and crops that cut no accent off a letter.
CROPS = {"base": ((0.08, 1.0), (3 / 4, 4 / 3)), "gentle": ((0.85, 1.0), (0.85, 1 / 0.85))}


def train_transform(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """The paper's augmentation (``base``), the demo's (``gentle``), or the other three of the released code."""
    scale, ratio = CROPS.get(config.augmentation, CROPS["base"])
    crop = transforms.RandomResizedCrop(config.image_size, scale, ratio, InterpolationMode(interpolation_name(config)))
    flip, grey = transforms.RandomHorizontalFlip(), transforms.RandomGrayscale(0.2)
    jitter = transforms.ColorJitter(0.2, 0.2, 0.2, 0.2)
    steps: list[Any] = {
        "base": [crop, flip],
        "gentle": [crop],  # a mirrored letter is another letter
        "adv": [crop, grey, jitter, flip],
        "v2": [crop, transforms.RandomPerspective(0.5, 0.5), grey, jitter, flip],
        "auto": [transforms.AutoAugment(), crop, flip],
    }[config.augmentation]
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


def eval_transform(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """Resize the shorter side, crop the centre."""
    return transforms.Compose([
        transforms.Resize(config.resize, InterpolationMode(interpolation_name(config))),
        transforms.CenterCrop(config.image_size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])  # fmt: skip


def interpolation_name(config: RunConfig) -> str:
    """The paper says bicubic; the released code leaves the transform's default, bilinear."""
    return "bilinear" if config.semantics == "released" else "bicubic"


class _Read(Dataset):
    """Items are (seed or None, what reads an image, transform): one set of workers serves all sets of images."""

    def __getitem__(self, item: tuple[int | None, Callable[[], Image.Image], Transform]) -> Tensor:
        seed, read, transform = item
        image = read()
        if seed is None:
            return transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed visits every backend, 2 ms an image
            return transform(image)


def train_batches(
    images: ImageSet,
    sampler: ClassBalancedSampler,
    transform: Transform,
    epoch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """`batches.train_batches` by the classic path: ((b, 3, H, W) float32, (B,) int64). The random numbers of an image's
    augmentation belong to its place in the whole batch.
    """
    batches = list(sampler.epoch(epoch))
    seeds = np.random.SeedSequence([sampler.seed, epoch, 1]).generate_state(sum(map(len, batches)), np.uint64)
    items, start = [], 0
    for batch in batches:
        items.append([(int(seed) >> 1, int(i)) for seed, i in zip(seeds[start:], batch, strict=False)][part])
        start += len(batch)
    labels = torch.from_numpy(images.labels)
    for batch, pixels in zip(batches, _load(images, transform, items, device), strict=True):
        yield pixels, to_device(labels[torch.from_numpy(batch)], device)


def eval_batches(
    images: ImageSet, transform: Transform, batch: int, device: torch.device, part: slice = slice(None)
) -> Iterator[Tensor]:
    """`batches.eval_batches` by the classic path: (<= batch, 3, H, W) float32 at a time."""
    places = range(len(images))[part]
    items = [[(None, i) for i in places[s : s + batch]] for s in range(0, len(places), batch)]
    yield from _load(images, transform, items, device)


def _load(images: ImageSet, transform: Transform, items: list[Any], device: torch.device) -> Iterator[Tensor]:
    torch.empty((), dtype=torch.int64).random_()  # a number that DataLoader drew here before it kept its workers
    key = _workers(images, sum(map(len, items))), device.type == "cuda"
    loader, batches = _idle.pop(key) if key in _idle else _loader(*key)
    batches.left = ([(seed, images.reader(i), transform) for seed, i in batch] for batch in items)
    try:
        with deaths_named():
            with starting():
                loaded = iter(loader)
            for pixels in loaded:
                yield pixels.to(device, non_blocking=device.type == "cuda")
    except DataError as error:  # from a worker it comes back with its traceback in the message
        raise DataError(
            str(error).strip().splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")
        ) from None
    _idle[key] = loader, batches


class _Batches:
    """What a loader is to read next: another iterator for each epoch and evaluation."""

    left: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        return self.left


def _loader(workers: int, pinned: bool) -> tuple[DataLoader, _Batches]:
    batches = _Batches()
    loader: DataLoader = DataLoader(
        _Read(),
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        multiprocessing_context=CONTEXT if workers else None,
        pin_memory=pinned,
        worker_init_fn=end_with_parent,
        generator=torch.Generator(),
    )
    return loader, batches


_MANY = 100  # files: to decode fewer takes less time than to start a process
# Loaders that are not in use, by number of workers and pinned memory: it takes seconds to start a worker.
_idle: dict[tuple[int, bool], tuple[DataLoader, _Batches]] = {}


def end_workers() -> None:
    """End the data workers that wait for the next epoch or evaluation."""
    _idle.clear()


@contextlib.contextmanager
def deaths_named() -> Iterator[None]:
    """Inside, a data worker that dies (torch notices it at once, wherever the main thread is) raises one line.
    Raises DataError: a worker died.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise DataError(
            f"{' '.join(str(error).split())} (short of memory, or of room in /dev/shm?); the same command resumes from "
            "the last epoch; with pipeline=cached no worker is needed"
        ) from error


def _workers(images: ImageSet, count: int) -> int:
    return 0 if images.in_memory else decoders(count)


def decoders(count: int) -> int:
    """Processes that decode so many files: one a core of this process's, up to eight; none for a few files."""
    if count < _MANY:
        return 0
    return max(1, min(8, cores() // local_size()))
