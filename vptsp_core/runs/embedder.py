"""A trained model for use: images in, embeddings out; saved as one file with only what was learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.data.folder import read_image, to_rgb
from vptsp_core.data.loading import Transform, eval_transform
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.backbone import checksum, normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.embedder_file import exact_names, preprocessing, read_saved, rebuild, write_embedder
from vptsp_core.runs.evaluate import embed, embed_batch
from vptsp_core.runs.share import is_shared, push, read_shared
from vptsp_core.system.devices import autocast_dtype, pick_device

Images = ImageSet | Tensor | Sequence[Image.Image | str | Path] | Image.Image | str | Path


class Embedder:
    """A trained model for use.

    >>> embedder = load("results/demo/runs/...")                            # doctest: +SKIP
    >>> scores, places = embedder.index(folder_of_paths).search(query, k=5)  # doctest: +SKIP
    >>> embedder.save("bird.safetensors")                                    # doctest: +SKIP

    Attributes:
        model: in eval mode; one that was loaded has no proxy tower, and a method that says so.
        config: the description of the run that made it (default: the model's own).
        run: that run's hash; None for a model that no run has made.
        metrics: what that run reports, fractions in [0, 1].
        data: what that run's record says of its images (`Benchmark.record`).
        path: the run's folder or the file that it was loaded from, if any.
    """

    def __init__(
        self,
        model: MetricModel,
        config: RunConfig | None = None,
        *,
        run: str | None = None,
        metrics: Mapping[str, float] | None = None,
        data: Mapping[str, Any] | None = None,
        path: Path | None = None,
    ) -> None:
        self.model, self.config = model.eval(), config or model.config
        self.run, self.metrics, self.data, self.path = run, dict(metrics or {}), data, path
        self._gallery: Tensor | None = None

    @property
    def transform(self) -> Transform:
        """From a PIL image in RGB to (3, H, W) normalised: shorter side, centre crop, mean and deviation."""
        return eval_transform(self.model.config, *normalisation(self.model.vit.backbone))

    @in_torch_defaults
    def checksum(self) -> str:
        """Sixteen hex digits that are the same for embedders that give the same embeddings, wherever they are kept."""
        made = [checksum(self.model, exact_names(self.model)), self.model.vit.pool, preprocessing(self.model)]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]

    @in_torch_defaults
    def embed(self, images: Images) -> np.ndarray:
        """(N, d) float32, L2-normalised, of a data set; of N images as paths or PIL images (one alone will do), which
        are taken as a viewer shows them (`read_image`); or of a tensor (N, 3, H, W), normalised.
        Raises DataError: naming the file that cannot be read, or what is no image.
        """
        if isinstance(images, ImageSet):
            return embed(self.model, images).cpu().numpy()
        device = next(self.model.parameters()).device
        if isinstance(images, Tensor):
            side = self.model.config.image_size
            if images.dim() != 4 or images.shape[1:] != (3, side, side) or not images.is_floating_point():
                kind = f"{images.dtype}".removeprefix("torch.")
                raise DataError(
                    f"images of shape {tuple(images.shape)} and type {kind}; the model takes (N, 3, {side}, {side}) "
                    "floating point, normalised"
                )
            parts: Iterable[Tensor] = images.to(device).split(embed_batch(self.model))
        else:
            several: Any = images if isinstance(images, Iterable) and not isinstance(images, str) else [images]
            parts = self._batches(list(several))
        with torch.inference_mode():
            found = [self.model(part.to(device)).cpu() for part in parts]
        if not found:
            raise VptspError("no images to embed; give at least one")
        return torch.cat(found).numpy()

    def index(self, images: Images) -> Embedder:
        """Embed a gallery and keep it for `search`; returns itself. For a folder on the disk: `deploy.update`."""
        self._gallery = torch.from_numpy(self.embed(images))
        return self

    @in_torch_defaults
    def search(self, images: Images, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of the gallery for each image: cosines (N, k) float32 and places (N, k) int64, best first;
        where the gallery has fewer images than k, the last places are -1 and their cosines -inf.
        Raises VptspError: nothing was indexed yet.
        """
        if self._gallery is None:
            raise VptspError("nothing to search in; call index(images) first")
        scores, places = nearest_neighbours(torch.from_numpy(self.embed(images)), self._gallery, k)
        return scores.numpy(), places.numpy()

    @in_torch_defaults
    def save(self, path: str | Path) -> Path:
        """Write one safetensors file that `load` reads: what was learned, and a JSON header that names the rest.

        What only training uses is left out, and so is the backbone's frozen part, of which the header has timm name and
        checksum (with ``method="full"`` all of the backbone was learned). A backbone that came from ``weights=FILE``
        keeps that path in the header.
        Raises VptspError: another suffix, or the place cannot be written.
        """
        write_embedder(Path(path), self, self.config)
        return Path(path)

    def push_to_hub(self, repo: str, revision: str | None = None, private: bool | None = None) -> str:
        """Share it on the Hugging Face Hub: the file that `save` writes, and a model card from the run's record.

        Args:
            repo: ``"org/name"``, or ``"org/name@branch"``; a repository that is not there is made.
            revision: the branch to write to, made where it is not there; default the main one.
            private: whether a new repository is private; default: what is set there.

        Returns:
            ``"hf://org/name@<commit>"``, for `load`.

        Raises:
            VptspError: the hub is out of reach or refuses, or no token was given to it; the message says what to do.
        """
        return push(self, repo, revision, private)

    def _batches(self, images: Sequence[Image.Image | str | Path]) -> Iterable[Tensor]:
        transform, count = self.transform, embed_batch(self.model)
        for start in range(0, len(images), count):
            yield torch.stack([transform(_decoded(image)) for image in images[start : start + count]])


def _decoded(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, as_shown=True)
    if not isinstance(image, str | Path):
        raise DataError(f"{image!r} is no image; give paths, PIL images, or one (N, 3, H, W) tensor")
    return read_image(Path(image), as_shown=True)


@in_torch_defaults
def load(path: str | Path, device: str | torch.device | None = None, *, weights: str | Path | None = None) -> Embedder:
    """The model of a finished run.

    Args:
        path: the run's folder, what `Embedder.save` has written, or ``"hf://org/name[@revision]"`` on the Hub.
        device: None for a GPU where there is one.
        weights: the file of the backbone's weights, where it has moved. It has to be the same by content.

    Raises:
        WeightsError: no finished run and no saved embedder there, its parts do not fit together, or the backbone's
            weights cannot be had or are not those that it was trained on.
    """
    saved = read_shared(str(path)) if is_shared(path) else read_saved(Path(path).absolute())
    model, target = rebuild(saved, weights), pick_device(device)
    model.vit.autocast = autocast_dtype(saved.config.precision, target, model.vit.backbone.embed_dim)
    config = saved.config
    if config.method != "full":  # whose backbone is in the file
        config = config.replace(weights=model.config.weights)  # where they were found
    return Embedder(model.to(target), config, run=saved.run, metrics=saved.metrics, data=saved.data, path=saved.path)
