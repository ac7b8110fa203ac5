"""Embed images, call the metrics, and take a trained model away as an `Embedder`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vptsp_core.backbone import load_backbone, normalisation, read_weights
from vptsp_core.config import RunConfig
from vptsp_core.data import Benchmark, ImageSet
from vptsp_core.data.batches import eval_batches
from vptsp_core.data.folder import read_image, to_rgb
from vptsp_core.data.loading import eval_transform
from vptsp_core.devices import autocast_dtype, pick_device
from vptsp_core.distributed import from_main, gather_rows, own_share, world_size
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.faiss_index import check_backend
from vptsp_core.metrics import Scores, retrieval_metrics
from vptsp_core.neighbours import nearest_neighbours
from vptsp_core.runs import WEIGHTS
from vptsp_core.tuning import MetricModel

RECALL_AT = {
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30, 40, 50),
    "inaturalist": (1, 4, 16, 32),
    "glyphs": (1, 2, 4, 8, 10, 16, 20, 32, 100),  # whatever a table asks for, the demo can fill in
}  # what the paper reports; elsewhere 1, 2, 4, 8


@torch.inference_mode()
def embed(model: MetricModel, images: ImageSet, batch: int | None = None) -> Tensor:
    """Embeddings of a whole set in its order: (N, d) float32, L2-normalised, on the model's device.

    Several processes embed a share each, every image once, and all of them have the whole.
    """
    device = next(model.parameters()).device
    statistics = normalisation(model.vit.backbone)
    batch = batch or model.config.batch
    model.eval()
    width = model.vit.backbone.embed_dim if model.vit.sample_head is None else model.config.embed_dim
    # Only the last shares are short, so that what is missing from them lies behind row N of the gathered whole.
    own, start = torch.zeros(-(-len(images) // world_size()), width, device=device), 0
    for pixels in eval_batches(images, model.config, statistics, batch, device, own_share(len(images))):
        part = model(pixels)
        own[start : start + len(part)] = part
        start += len(part)
    return gather_rows(own)[: len(images)]


def evaluate(model: MetricModel, benchmark: Benchmark, backend: str = "torch") -> Scores:
    """Retrieval metrics on the test split, and each query's own; against the gallery where there is one.

    Of several processes the first computes them, from the embeddings of all (see `retrieval_metrics`).
    """
    check_backend(backend)  # before the hours that embedding may take
    queries, labels = embed(model, benchmark.test), torch.from_numpy(benchmark.test.labels)
    options: dict[str, Any] = dict(ks=RECALL_AT.get(benchmark.name, (1, 2, 4, 8)), backend=backend)
    if benchmark.gallery is not None:
        gallery_labels = torch.from_numpy(benchmark.gallery.labels)
        options |= dict(gallery=embed(model, benchmark.gallery), gallery_labels=gallery_labels)
    return from_main(lambda: retrieval_metrics(queries, labels, **options))


class Embedder:
    """A trained model for use: images in, embeddings out, nearest neighbours found.

    >>> embedder = load("results/demo/runs/...")                            # doctest: +SKIP
    >>> scores, places = embedder.index(folder_of_paths).search(query, k=5)  # doctest: +SKIP
    """

    def __init__(self, model: MetricModel) -> None:
        self.model = model.eval()
        self._gallery: Tensor | None = None

    def embed(self, images: ImageSet | Tensor | Sequence[Image.Image | str | Path]) -> np.ndarray:
        """(N, d) float32, L2-normalised.

        Args:
            images: a data set; or N images as paths or PIL images (one alone will do); or (N, 3, H, W) normalised.

        Raises:
            DataError: naming the file that cannot be read.
        """
        if isinstance(images, ImageSet):
            return embed(self.model, images).cpu().numpy()
        device = next(self.model.parameters()).device
        if isinstance(images, Tensor):
            parts: Iterable[Tensor] = images.to(device).split(self.model.config.batch)
        else:
            one = isinstance(images, Image.Image | str | Path)
            parts = self._batches([images] if one else list(images))  # type: ignore[list-item]
        with torch.inference_mode():
            found = [self.model(part.to(device)).cpu() for part in parts]
        if not found:
            raise VptspError("no images to embed; give at least one")
        return torch.cat(found).numpy()

    def index(self, images: ImageSet | Tensor | Sequence[Image.Image | str | Path]) -> Embedder:
        """Embed a gallery and keep it for `search`; returns itself."""
        self._gallery = torch.from_numpy(self.embed(images))
        return self

    def search(
        self, images: ImageSet | Tensor | Sequence[Image.Image | str | Path], k: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of the gallery for each image: cosines (N, k) float32 and places (N, k) int64.

        Raises:
            VptspError: nothing was indexed yet.
        """
        if self._gallery is None:
            raise VptspError("nothing to search in; call index(images) first")
        scores, places = nearest_neighbours(torch.from_numpy(self.embed(images)), self._gallery, k)
        return scores.numpy(), places.numpy()

    def _batches(self, images: Sequence[Image.Image | str | Path]) -> Iterable[Tensor]:
        transform = eval_transform(self.model.config, *normalisation(self.model.vit.backbone))
        for start in range(0, len(images), self.model.config.batch):
            some = images[start : start + self.model.config.batch]
            decoded = [to_rgb(i) if isinstance(i, Image.Image) else read_image(Path(i)) for i in some]
            yield torch.stack([transform(image) for image in decoded])


def load(path: str | Path, device: str | torch.device | None = None) -> Embedder:
    """The model of a finished run.

    Args:
        path: the run's folder.
        device: None for a GPU where there is one.

    Raises:
        WeightsError: no finished run there, or its files do not fit together.
    """
    path = Path(path)
    for name in ("config.json", WEIGHTS, "metrics.json"):
        if not (path / name).is_file():
            raise WeightsError(f"{path} holds no finished run ({name} is missing); give the folder of one")
    try:
        config = RunConfig.from_dict(dict(json.loads((path / "config.json").read_text())))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{path / 'config.json'}: unreadable; delete the folder and run it again") from error
    learned = read_weights(path / WEIGHTS)
    num_classes = len(learned["proxies.bias"]) if "proxies.bias" in learned else 1
    torch.manual_seed(config.seed)  # for weights = "random", which are drawn from the run's seed
    backbone = load_backbone(config.backbone, config.weights, config.image_size)
    # What only training needs is left out of the file, and is built small: no class prompts, no proxy tower.
    slim = config
    if config.method == "vptsp":
        slim = config.replace(method="vpt" if config.prompts and config.prompt_layers else "linear")
    model = MetricModel(slim, backbone, num_classes)
    wanted = model.learned_state()
    wrong = sorted(wanted.keys() ^ (learned.keys() - {"proxies.state"}))
    wrong += [key for key in wanted.keys() & learned.keys() if wanted[key].shape != learned[key].shape]
    if wrong:
        raise WeightsError(f"{path / WEIGHTS}: {wrong[0]} does not fit the config beside it; run it again")
    model.load_state_dict(learned, strict=False)
    target = pick_device(device)
    model.vit.autocast = autocast_dtype(config.precision, target)
    return Embedder(model.to(target))
