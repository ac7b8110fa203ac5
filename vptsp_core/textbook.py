"""The textbook form of deep visual prompts: concatenate, run timm's own block, drop. Slow, plain, and independent.

The tests hold `vptsp_core.vit` against it, and ``python -m vptsp_core bench step`` measures both in one run. It reads
a model's parameters and shares none of its code: each tower runs alone, on timm's ``forward`` methods.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from vptsp_core.losses import proxy_anchor
from vptsp_core.tuning import MetricModel
from vptsp_core.vit import Head


def tower(backbone: VisionTransformer, head: Head | None, images: Tensor, prompts: list[Tensor], pool: str) -> Tensor:
    """One tower on its own.

    Args:
        prompts: for each of the first blocks, (B, n, D) or (1, n, D).
        head: None gives the backbone's own pooled features.

    Returns:
        (B, d), L2-normalised (Jia et al., "Visual Prompt Tuning", ECCV 2022, deep form).
    """
    x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
    tokens = x.shape[1]
    for i, block in enumerate(backbone.blocks):
        if i < len(prompts):
            x = torch.cat([prompts[i].expand(len(x), -1, -1), x], dim=1)
        x = block(x)[:, -tokens:]
    x = backbone.norm(x)
    if pool == "avg":
        pooled = [x[:, backbone.num_prefix_tokens :].mean(1)]
    else:
        pooled = [x[:, 0], x[:, 1]] if hasattr(backbone, "dist_token") else [x[:, 0]]
    pooled = [backbone.fc_norm(token) for token in pooled]
    if head is not None:
        pooled = [f(n(token)) for token, n, f in zip(pooled, _norms(head), _linears(head), strict=True)]
    return F.normalize(torch.stack(pooled).mean(0), dim=-1)


def _norms(head: Head) -> list[torch.nn.Module]:
    return [head.norm, head.dist_norm] if head.tokens == 2 else [head.norm]


def _linears(head: Head) -> list[torch.nn.Module]:
    return [head.fc, head.dist_fc] if head.tokens == 2 else [head.fc]


def loss(model: MetricModel, images: Tensor, labels: Tensor) -> Tensor:
    """`MetricModel.loss` in the textbook form: two separate towers, class prompts repeated for every image."""
    vit = model.vit
    sample = [vit.prompts[i][None, :n] for i, n in enumerate(vit.prompt_counts)] if vit.prompts is not None else []
    embeddings = tower(vit.backbone, vit.sample_head, images, sample, vit.pool)
    assert model.proxies is not None
    p = classes = None
    if model.class_prompts is not None and vit.class_prompt_counts is not None:
        classes = labels[:: model.config.samples_per_class]
        rows = model.class_prompts(classes).repeat_interleave(model.config.samples_per_class, dim=0)
        prompts = [rows[:, i, :n] for i, n in enumerate(vit.class_prompt_counts)]
        p = tower(vit.backbone, vit.proxy_head, images, prompts, vit.pool)
    return proxy_anchor(
        embeddings, model.proxies(p, classes), labels,
        scale=model.config.loss_scale, margin=model.config.loss_margin, semantics=model.config.semantics,
    )  # fmt: skip
