"""The batches of a run, by the pipeline that its config names: `cached` (decoded once) or `loading` (classic)."""

from __future__ import annotations

import copy
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vptsp_core.data import OWN, cached, loading
from vptsp_core.data.base import Benchmark, ImageSet
from vptsp_core.data.cache import open_stores
from vptsp_core.data.cached import Statistics
from vptsp_core.data.folder import refuse_inside_images
from vptsp_core.errors import DataError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.system.places import results_folder


def cache_folder(
    dataset: str, data: str | Path | None, cache: str | Path | None = None, results: str | Path | None = None
) -> Path:
    """Return the folder for decoded images: ``cache``, or else the environment's VPTSP_CACHE.

    Without either, it is ``.vptsp-cache`` beside the data sets. For your own images, it is in `results_folder`.
    Raises DataError: the place is in the folder of your own images.
    """
    own = dataset in OWN
    beside = results_folder(results) if own else (data or ".")
    place = Path(cache or os.environ.get("VPTSP_CACHE") or Path(beside) / ".vptsp-cache").expanduser().absolute()
    return refuse_inside_images(place, data, "--cache or VPTSP_CACHE") if own and data else place


def decoded(benchmark: Benchmark, config: RunConfig, folder: Path, *, progress: bool = True) -> Benchmark:
    """Return a copy of the benchmark with decoded images (`cache.open_stores`) for the cached pipeline. The classic one
    needs none: return the benchmark itself. Raises DataError like `cache.open_stores`.
    """
    if config.pipeline == "classic":
        return benchmark
    splits = {"test": benchmark.test}
    if config.method != "frozen":
        splits["train"] = benchmark.train
    if benchmark.gallery is not None:
        splits["gallery"] = benchmark.gallery
    interpolation = loading.interpolation_name(config)
    sets = list(splits.values())
    stores = open_stores(sets, folder, side=config.resize, interpolation=interpolation, progress=progress)
    changed: dict[str, Any] = {name: copy.copy(images) for name, images in splits.items()}
    for images, store in zip(changed.values(), stores, strict=True):
        images.store = store
    return dataclasses.replace(benchmark, **changed)


def train_batches(
    images: ImageSet,
    config: RunConfig,
    statistics: Statistics,
    sampler: ClassBalancedSampler,
    epoch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch: ((b, 3, S, S) float32, (B,) int64), on the device; S is ``config.image_size``.

    Args:
        images: the training set, from `decoded` for the cached pipeline.
        statistics: mean and standard deviation of the backbone's input.
        part: the images of each batch that this process embeds (b of B).

    Raises:
        DataError: an image, which is named, cannot be read; or the cached pipeline got images that are not decoded.
    """
    if config.pipeline == "classic":
        transform = loading.train_transform(config, *statistics)
        return loading.train_batches(images, sampler, transform, epoch, device, part)
    if images.store is None:
        raise DataError(f"{images.name}: pipeline = 'cached' needs decoded images; call decoded(benchmark, ...) first")
    return cached.train_batches(images.store, images.labels, config, statistics, sampler, epoch, device, part)


def eval_batches(
    images: ImageSet,
    config: RunConfig,
    statistics: Statistics,
    batch: int,
    device: torch.device,
    part: slice = slice(None),
) -> Iterator[Tensor]:
    """Yield all images, or a ``part``, in order: (<= batch, 3, S, S) float32 on the device; S is ``config.image_size``.

    Both pipelines give the same bits, so images that are not decoded for this config are read the classic way.
    Raises DataError: an image cannot be read.
    """
    store = images.store
    wanted = (config.resize, loading.interpolation_name(config))
    if config.pipeline == "cached" and store is not None and (store.side, store.interpolation) == wanted:
        return cached.eval_batches(store, config, statistics, batch, device, part)
    return loading.eval_batches(images, loading.eval_transform(config, *statistics), batch, device, part)
