"""Evaluate a trained model with other heads and without its prompts (docs/measured.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.data import Benchmark
from vptsp_core.data.holdout import first_of_each
from vptsp_core.errors import ConfigError
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.method.model import MetricModel
from vptsp_core.runs.closed_form import PER_CLASS, discriminant, pooled_tokens
from vptsp_core.runs.significance import estimate


@torch.no_grad()
def compare_heads(model: MetricModel, benchmark: Benchmark, per_class: int = PER_CLASS) -> dict[str, dict[str, Any]]:
    """Compare the retrieval of a trained model with three heads, with and without its prompts.

    Args:
        model: has a trained head and one pooled token.
        per_class: training images per class that the head in closed form is computed from.

    Returns:
        One row each for "trained head", "no head" (the pooled tokens) and "head in closed form". If the model has
        prompts, each row again with ", without prompts". A row has R@1 and MAP@R in percent. "R@1 difference" and
        "MAP@R difference" are [difference to the first row, low and high end of its 95 % interval over classes].
    """
    train, labels = first_of_each(benchmark.train, per_class), torch.from_numpy(benchmark.test.labels)
    embeddings: dict[str, Tensor] = {}
    device = next(model.parameters()).device
    for prompted in (True, False) if model.vit.prompts is not None else (True,):
        tokens, of_train = (pooled_tokens(model, images, prompted=prompted) for images in (benchmark.test, train))
        normed, normed_train = (F.layer_norm(each, each.shape[-1:]) for each in (tokens, of_train))
        weight, bias = discriminant(normed_train, torch.from_numpy(train.labels), model.config.embed_dim)
        if model.vit.sample_head is None or model.config.final_head != "trained":
            raise ConfigError("this run has no trained head to compare with; train one with final_head=trained")
        heads = {
            "trained head": model.vit.sample_head(tokens.to(device)).cpu(),
            "no head": tokens.mean(1),
            "head in closed form": (normed @ weight.T + bias).mean(1),
        }
        embeddings |= {name if prompted else f"{name}, without prompts": each for name, each in heads.items()}
    scores = {name: retrieval_metrics(each, labels, ks=(1,)) for name, each in embeddings.items()}
    first = scores["trained head"].queries
    rows: dict[str, dict[str, Any]] = {name: {} for name in scores}
    for name, found in scores.items():
        for metric in ("R@1", "MAP@R"):
            defined = ~np.isnan(first[metric])
            ours, theirs = (100 * each[metric][defined, None].astype(float) for each in (found.queries, first))
            rows[name][metric] = 100 * found[metric]
            between = estimate(ours, theirs, benchmark.test.labels[defined])
            rows[name][f"{metric} difference"] = [between.difference, *between.interval()]
    return rows
