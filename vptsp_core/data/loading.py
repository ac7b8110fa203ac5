"""The classic pipeline: decode, augment and normalise on the CPU, in worker processes, and copy to the device."""

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
# Scale and ratio of RandomResizedCrop: the library's defaults, and crops that cut no accent off a letter.
CROPS = {"base": ((0.08, 1.0), (3 / 4, 4 / 3)), "gentle": ((0.85, 1.0), (0.85, 1 / 0.85))}


def train_transform(config: RunConfig, mean: tuple[float, ...], std: tuple[float, ...]) -> Transform:
    """Return the augmentation: the paper's (``base``), the demo's (``gentle``) or one of the released code's others."""
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
    """Return the transform of evaluation: resize the shorter side, and crop the centre."""
    return transforms.Compose([
        transforms.Resize(config.resize, InterpolationMode(interpolation_name(config))),
        transforms.CenterCrop(config.image_size),
        transforms.ToTensor(),
        transforms.Normalize(mean, std),
    ])  # fmt: skip


def interpolation_name(config: RunConfig) -> str:
    """Return "bicubic", as the paper says, or "bilinear", the transform's default that the released code keeps."""
    return "bilinear" if config.semantics == "released" else "bicubic"


class _Read(Dataset):
    """Images. An item is (seed or None, reader, transform), so the same workers serve every set of images."""

    def __getitem__(self, item: tuple[int | None, Callable[[], Image.Image], Transform]) -> Tensor:
        seed, read, transform = item
        image = read()
        if seed is None:
            return transform(image)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed seeds every backend: 2 ms per image
            return transform(image)


def train_batches(
    images: ImageSet,
    sampler: ClassBalancedSampler,
    transform: Transform,
    epoch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Do what `batches.train_batches` does, in the classic pipeline: yield ((b, 3, H, W) float32, (B,) int64).

    The random numbers of an image's augmentation depend on its place in the whole batch.
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
    """Do what `batches.eval_batches` does, in the classic pipeline: yield (<= batch, 3, H, W) float32."""
    places = range(len(images))[part]
    items = [[(None, i) for i in places[s : s + batch]] for s in range(0, len(places), batch)]
    yield from _load(images, transform, items, device)


def _load(images: ImageSet, transform: Transform, items: list[Any], device: torch.device) -> Iterator[Tensor]:
    torch.empty((), dtype=torch.int64).random_()  # drawn as by a new DataLoader: earlier runs keep their numbers
    key = workers, pinned = _workers(images, sum(map(len, items))), device.type == "cuda"
    if key not in _idle:
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
        _idle[key] = loader, batches
    loader, batches = _idle.pop(key)
    batches.left = ([(seed, images.reader(i), transform) for seed, i in batch] for batch in items)
    try:
        with worker_errors():
            with starting():
                loaded = iter(loader)
            for pixels in loaded:
                yield pixels.to(device, non_blocking=device.type == "cuda")
    except DataError as error:  # a worker's error has its traceback in the message
        raise DataError(
            str(error).strip().splitlines()[-1].removeprefix(f"{DataError.__module__}.DataError: ")
        ) from None
    _idle[key] = loader, batches


class _Batches:
    """The batch sampler of a loader; `_load` gives it new batches for each epoch and evaluation."""

    left: Iterator[Any]

    def __iter__(self) -> Iterator[Any]:
        return self.left


_MANY = 100  # to decode fewer files takes less time than to start a process
# Loaders that are not in use, by number of workers and pinned memory. They are kept: to start a worker takes seconds.
_idle: dict[tuple[int, bool], tuple[DataLoader, _Batches]] = {}


def end_workers() -> None:
    """End the data workers that wait for the next epoch or evaluation."""
    _idle.clear()


@contextlib.contextmanager
def worker_errors() -> Iterator[None]:
    """Within the context, replace torch's error for a dead data worker by one line. Raises DataError: a worker died."""
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
    """Return how many workers decode ``count`` files: one per core of this process's share, at most 8; none for few."""
    if count < _MANY:
        return 0
    return max(1, min(8, cores() // local_size()))
