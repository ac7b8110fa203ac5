"""A trained model that embeds images, searches a gallery, and is saved as one file with only the learned tensors."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.data.folder import read_image, to_rgb
from vptsp_core.data.loading import Transform, end_workers, eval_transform
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.embedder_file import TrainedModel, exact_names, preprocessing, read_saved, rebuild, write_embedder
from vptsp_core.runs.evaluate import embed, embed_batch
from vptsp_core.runs.record import checksum
from vptsp_core.runs.share import is_shared, push, read_shared
from vptsp_core.system.devices import autocast_dtype, pick_device

Images = ImageSet | Tensor | Sequence[Image.Image | str | Path] | Image.Image | str | Path


class Embedder(TrainedModel):
    """A trained model that embeds and searches images. Its attributes are those of `TrainedModel`.

    >>> embedder = load("results/demo/runs/...")                            # doctest: +SKIP
    >>> scores, places = embedder.index(paths).search(query, k=5)            # doctest: +SKIP
    >>> embedder.save("bird.safetensors")                                    # doctest: +SKIP
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
        super().__init__(model.eval(), config or model.config, run, dict(metrics or {}), data, path)
        self._gallery: Tensor | None = None

    @property
    def transform(self) -> Transform:
        """The function from a PIL image in RGB to a tensor (3, H, W): resized, cropped at the centre, normalised."""
        return eval_transform(self.model.config, *normalisation(self.model.vit.backbone))

    @torch_defaults()
    def checksum(self) -> str:
        """Return 16 hex digits that change if the weights, the pooling or the preparation of images change."""
        made = [checksum(self.model, exact_names(self.model)), self.model.vit.pool, preprocessing(self.model)]
        return hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]

    @torch_defaults()
    def embed(self, images: Images) -> np.ndarray:
        """Return the embeddings of N images, (N, d) float32, L2-normalised.

        Args:
            images: a data set; a path or a PIL image, or several of them, read as a viewer shows them (`to_rgb`); or a
                normalised tensor (N, 3, H, W).

        Raises:
            DataError: a file cannot be read, or a value is not an image; the message names it.
            VptspError: there are no images. (For an empty data set, the result is (0, d).)
        """
        if isinstance(images, ImageSet):
            try:
                return embed(self.model, images).cpu().numpy()
            finally:
                end_workers()
        device = next(self.model.parameters()).device
        if isinstance(images, Tensor):
            side = self.model.config.image_size
            if images.dim() != 4 or images.shape[1:] != (3, side, side) or not images.is_floating_point():
                kind = f"{images.dtype}".removeprefix("torch.")
                raise DataError(
                    f"images of shape {tuple(images.shape)} and type {kind}; the model takes (N, 3, {side}, {side}) "
                    "floating point, normalised"
                )
            parts: Iterable[Tensor] = images.split(embed_batch(self.model)) if len(images) else []
        else:
            several: Any = images if isinstance(images, Iterable) and not isinstance(images, str) else [images]
            parts = self._batches(list(several))
        with torch.inference_mode():
            embeddings = [self.model(part.to(device, torch.float32)).cpu() for part in parts]
        if not embeddings:
            raise VptspError("no images to embed; give at least one")
        return torch.cat(embeddings).numpy()

    def index(self, images: Images) -> Embedder:
        """Embed a gallery for `search`, and return this embedder. For an index on the disk, see `deploy.update`."""
        self._gallery = torch.from_numpy(self.embed(images))
        return self

    @torch_defaults()
    def search(self, images: Images, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest images of the gallery: cosines (N, k) float32 and places (N, k) int64, best first.

        If the gallery has fewer images than k, the last places are -1 and their cosines -inf.
        Raises VptspError: `index` was not called yet.
        """
        if self._gallery is None:
            raise VptspError("there is no gallery; call index(images) first")
        scores, places = nearest_neighbours(torch.from_numpy(self.embed(images)), self._gallery, k)
        return scores.numpy(), places.numpy()

    @torch_defaults()
    def save(self, path: str | Path) -> Path:
        """Write a safetensors file that `load` reads, and return its path.

        The file has the learned tensors, without those that only training uses, and a JSON header. The header has the
        timm name and the checksum of the backbone's frozen weights, and their path if they came from ``weights=FILE``.
        Raises VptspError: the suffix is not .safetensors, or the file cannot be written.
        """
        path = Path(path).expanduser()
        write_embedder(path, self, self.config)
        return path

    def push_to_hub(self, repo: str, revision: str | None = None, private: bool | None = None) -> str:
        """Upload the embedder to the Hugging Face Hub: the file of `save`, and a model card from the run's record.

        Args:
            repo: ``"org/name"`` or ``"org/name@branch"``. A missing repository is created.
            revision: the branch; default: the main branch. A missing branch is created.
            private: whether a new repository is private; default: the setting on the Hub.

        Returns:
            ``"hf://org/name@<commit>"``, for `load`.

        Raises:
            VptspError: there is no token, the Hub cannot be reached, or it refuses; the message says what to do.
        """
        return push(self, repo, revision, private)

    def _batches(self, images: Sequence[Image.Image | str | Path]) -> Iterable[Tensor]:
        transform, count = self.transform, embed_batch(self.model)
        for start in range(0, len(images), count):
            yield torch.stack([transform(_as_image(image)) for image in images[start : start + count]])


def _as_image(image: Image.Image | str | Path) -> Image.Image:
    if isinstance(image, Image.Image):
        return to_rgb(image, as_shown=True)
    if not isinstance(image, str | Path):
        raise DataError(f"a {type(image).__name__} is not an image; give paths, PIL images, or one (N, 3, H, W) tensor")
    return read_image(Path(image), as_shown=True)


@torch_defaults()
def load(path: str | Path, device: str | torch.device | None = None, *, weights: str | Path | None = None) -> Embedder:
    """Load the model of a finished run.

    Args:
        path: the run's folder, a file from `Embedder.save`, or ``"hf://org/name[@revision]"`` on the Hub.
        device: default: a GPU if there is one.
        weights: the file of the backbone's weights, if it was moved. Its content must be the same.

    Raises:
        WeightsError: there is neither a finished run nor a saved embedder, its files are damaged, or the backbone's
            weights are missing or are not those of the training.
    """
    saved = read_shared(str(path)) if is_shared(path) else read_saved(Path(path).expanduser().absolute())
    model, target = rebuild(saved, weights), pick_device(device)
    precision = saved.config.precision
    if precision == "fp16" and target.type != "cuda":
        warnings.warn(f"{path}: trained with fp16, computes in float32 on {target.type}", stacklevel=2)
        precision = "fp32"
    model.vit.autocast = autocast_dtype(precision, target, model.vit.backbone.embed_dim)
    config = saved.config
    if config.method != "full":  # for "full", the file has the whole backbone
        config = config.replace(weights=model.config.weights)  # the path where they were found
    return Embedder(model.to(target), config, run=saved.run, metrics=saved.metrics, data=saved.data, path=saved.path)
