"""The head in closed form: discriminant analysis of a model's features, without a step of an optimiser.

Discriminant analysis (Fisher 1936; Rao 1948; "within-class covariance normalisation" in Hatch et al., Interspeech 2006)
centres the features and divides them by their variation WITHIN classes. The head then keeps the d directions in which
they vary most. This is beyond the paper. A run can start from this head (`runs.start_from_data`), or end with it: with
``final_head=closed_form`` a run trains its head as usual, but is evaluated and saved with the closed form of the
features that it has learned. With 100 training classes that head was better for new classes than the trained one. With
16 or fewer it was not (docs/beyond.md).
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.data.batches import eval_batches
from vptsp_core.data.holdout import first_of_each
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import Head
from vptsp_core.runs.evaluate import embed_batch
from vptsp_core.system.distributed import from_first

PER_CLASS = 32  # images per class, at most: more are not needed, and iNaturalist has up to 659
SHRINK = 0.3  # the diagonal of the covariance within classes gets this share of its mean added (after Friedman 1989)


@contextlib.contextmanager
def closed_form_head(model: MetricModel, images: ImageSet) -> Iterator[None]:
    """Within this context the model's sample head is in closed form. Afterwards it is the trained one again.

    ``images`` is the training set; the first `PER_CLASS` of each class are used. All processes of a group get the first
    one's numbers.
    """
    head = model.vit.sample_head
    assert head is not None
    trained = copy.deepcopy(head.state_dict())
    some = first_of_each(images, PER_CLASS)
    features = pooled_tokens(model, some)
    normed = F.layer_norm(features, features.shape[-1:])
    set_head(head, *discriminant(normed, torch.from_numpy(some.labels), model.config.embed_dim))
    try:
        yield
    finally:
        head.load_state_dict(trained)


@torch.no_grad()
def pooled_tokens(model: MetricModel, images: ImageSet, *, prompted: bool = True) -> Tensor:
    """Return the pooled tokens of the sample tower, (N, tokens, D) float32 on the CPU, with or without its prompts."""
    vit, device = model.vit.eval(), next(model.parameters()).device
    none: list[Tensor | None] = [None] * len(vit.backbone.blocks)
    pooled = []
    for pixels in eval_batches(images, model.config, normalisation(vit.backbone), embed_batch(model), device):
        with torch.autocast(device.type, dtype=vit.autocast, enabled=vit.autocast is not None):
            prompts = vit.prompt_kvs(vit.prompts, vit.prompt_counts) if prompted else none
            pooled.append(from_first(vit.pooled(pixels, [prompts]).float()).cpu())
    return torch.cat(pooled)


@torch.no_grad()
def set_head(head: Head, weight: Tensor, bias: Tensor) -> None:
    """Copy weight (d, D) and bias (d,) into a head, for each of its tokens. Its LayerNorms get weight 1 and bias 0."""
    parts = [(head.norm, head.fc), (head.dist_norm, head.dist_fc)] if head.tokens == 2 else [(head.norm, head.fc)]
    for norm, linear in parts:
        norm.weight.fill_(1)
        norm.bias.fill_(0)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def class_means(rows: Tensor, labels: Tensor) -> Tensor:
    """Return the mean row of each class: rows (N, D), labels (N,) int64 from 0 to C - 1 -> (C, D)."""
    count = torch.bincount(labels).to(rows.dtype)
    return torch.zeros(len(count), rows.shape[1], dtype=rows.dtype).index_add_(0, labels, rows) / count[:, None]


def discriminant(features: Tensor, labels: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the head's linear map (see the module): weight (d, D) and bias (d,), float32, computed in float64.

    The weight's root mean square is that of Xavier's initialisation, sqrt(2 / (D + d)), so that learning rates keep
    their meaning.

    Args:
        features: (N, tokens, D) on the CPU. Each token counts as a feature of its image's class.
        labels: (N,) int64, contiguous from 0.
        width: d, at most D.
    """
    rows = features.flatten(0, 1).double()
    of_rows = labels.repeat_interleave(features.shape[1])
    mean, size = rows.mean(0), rows.shape[1]
    within = rows - class_means(rows, of_rows)[of_rows]
    within = within.T @ within / len(rows)
    within += SHRINK * within.diagonal().mean().clamp(min=1e-12) * torch.eye(size, dtype=within.dtype)
    values, vectors = torch.linalg.eigh(within)
    whiten = vectors * values**-0.5 @ vectors.T
    centred = (rows - mean) @ whiten
    _, directions = torch.linalg.eigh(centred.T @ centred)
    weight = directions[:, -width:].T @ whiten
    weight *= math.sqrt(2 / (size + width)) / weight.square().mean().sqrt()
    return weight.float(), (-weight @ mean).float()
