"""Embed a split, and compute its metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vptsp_core.data import Benchmark, ImageSet
from vptsp_core.data.batches import eval_batches
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.faiss_index import check_backend
from vptsp_core.method.metrics import Scores, retrieval_metrics
from vptsp_core.method.model import MetricModel
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.system.bars import bar, say
from vptsp_core.system.distributed import Processes, from_main, own_share, world_size

RECALL_AT = {
    "sop": (1, 10, 100, 1000),
    "inshop": (1, 10, 20, 30, 40, 50),
    "inaturalist": (1, 4, 16, 32),
    "glyphs": (1, 2, 4, 8, 10, 16, 20, 32, 100),  # all that the tables show, so that the demo can fill them
}  # the paper's ranks and the usual further ones; for other data sets 1, 2, 4, 8

LONG_SEARCH = 10**9  # pairs of a query and an image; a search of more takes longer than about ten seconds on a CPU
TOKENS_AT_ONCE = 3200  # on a CPU: few enough for its cache


def embed_batch(model: MetricModel) -> int:
    """Return how many images are embedded at once: a training batch on a GPU, `TOKENS_AT_ONCE` patches on a CPU.

    On a CPU, batches of 16 images of 224 px are 1.2 times as fast as batches of 64 (in float32).
    """
    if next(model.parameters()).device.type != "cpu":
        return model.config.batch
    return max(TOKENS_AT_ONCE // model.vit.backbone.patch_embed.num_patches, 1)


def embedding_width(model: MetricModel) -> int:
    """Return d, the length of the model's embeddings. Without a head, it is the backbone's width."""
    return model.vit.backbone.embed_dim if model.vit.sample_head is None else model.config.embed_dim


@torch_defaults()
@torch.inference_mode()
def embed(model: MetricModel, images: ImageSet, *, progress: bool = False) -> Tensor:
    """Embed a whole set in its order: (N, d) float32, L2-normalised, on the model's device.

    With several processes, each one embeds a share of the images, and all of them return all embeddings. Raises
    DataError: an image cannot be read.
    """
    device = next(model.parameters()).device
    statistics = normalisation(model.vit.backbone)
    batch = embed_batch(model)
    model.eval()
    # Short shares are filled with zeros. They are the last ones, so after `gather` the zeros come after row N.
    own, start = torch.zeros(-(-len(images) // world_size()), embedding_width(model), device=device), 0
    with bar(title="embedding", total=len(own), show=progress, unit="images", leave=False) as shown:
        for pixels in eval_batches(images, model.config, statistics, batch, device, own_share(len(images))):
            part = model(pixels)
            own[start : start + len(part)] = part
            start += len(part)
            shown.update(len(part))
    return Processes().gather(own)[: len(images)]


@torch_defaults()
def evaluate(model: MetricModel, benchmark: Benchmark, backend: str = "torch", *, progress: bool = False) -> Scores:
    """Return the retrieval metrics of the test split, in total and per query. Queries search the gallery, if any.

    With several processes, all embed, and the first one computes the metrics. ``backend`` finds the neighbours.
    Raises VptspError: the backend is unknown or not installed. Raises DataError: an image cannot be read.
    """
    check_backend(backend)  # before the embedding, which may take hours
    queries, labels = embed(model, benchmark.test, progress=progress), torch.from_numpy(benchmark.test.labels)
    options: dict[str, Any] = dict(ks=RECALL_AT.get(benchmark.name, (1, 2, 4, 8)), backend=backend)
    if benchmark.gallery is not None:
        gallery_labels = torch.from_numpy(benchmark.gallery.labels)
        options |= dict(gallery=embed(model, benchmark.gallery, progress=progress), gallery_labels=gallery_labels)
    if progress and len(queries) * len(options.get("gallery", queries)) >= LONG_SEARCH:
        say(f"finding the nearest images of {len(queries):,} queries")
    return from_main(lambda: retrieval_metrics(queries, labels, **options))
