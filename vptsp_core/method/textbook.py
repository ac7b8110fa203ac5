"""The textbook form of deep visual prompts: concatenate, run timm's block, drop. It is slow, plain and independent.

Tests compare `vptsp_core.method.vit` with it, and ``python -m vptsp_core bench step`` times both. It reads the
parameters of a model, but shares no code with its towers: each tower runs alone, by the ``forward`` methods of timm.
Proxies, accumulator and loss are the model's; other tests check them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from vptsp_core.method.adapters import SCALE, Adapter
from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import Head


def pooled_tokens(
    backbone: VisionTransformer, images: Tensor, prompts: list[Tensor], pool: str, adapters: Sequence[nn.Module] = ()
) -> list[Tensor]:
    """Return the pooled tokens of one tower (Jia et al., "Visual Prompt Tuning", ECCV 2022, the deep form).

    They are one (B, D), or two for a distilled ViT. ``images`` are (B, 3, H, W), normalised. ``prompts`` are those of
    the first blocks, (B, n, D) or (1, n, D) each. ``adapters`` are those of the last blocks.
    """
    x = backbone.norm_pre(backbone._pos_embed(backbone.patch_embed(images)))
    tokens, plain = x.shape[1], len(backbone.blocks) - len(adapters)
    for i, block in enumerate(backbone.blocks):
        if i < len(prompts):
            x = torch.cat([prompts[i].expand(len(x), -1, -1), x], dim=1)
        x = (block(x) if i < plain else _adapted(block, adapters[i - plain], x))[:, -tokens:]
    x = backbone.norm(x)
    if pool == "avg":
        pooled = [x[:, 0 if backbone.pool_include_prefix else backbone.num_prefix_tokens :].mean(1)]
    else:
        pooled = [x[:, 0], x[:, 1]] if hasattr(backbone, "dist_token") else [x[:, 0]]
    return [backbone.fc_norm(token) for token in pooled]


def embedding(head: Head | None, pooled: list[Tensor]) -> Tensor:
    """Return the L2-normalised embeddings (B, d) that ``head`` makes of `pooled_tokens`; without a head, their mean."""
    if head is not None:
        layers = [(head.norm, head.fc), *([(head.dist_norm, head.dist_fc)] if head.tokens == 2 else [])]
        pooled = [linear(norm(token)) for token, (norm, linear) in zip(pooled, layers, strict=True)]
    return F.normalize(torch.stack(pooled).mean(0), dim=-1)


def _adapted(block: Block, adapter: nn.Module, x: Tensor) -> Tensor:
    """Run timm's block with an adapter, step by step (Chen et al., "AdaptFormer", NeurIPS 2022): (B, T, D)."""
    assert isinstance(adapter, Adapter)
    x = x + block.drop_path1(block.ls1(block.attn(block.norm1(x))))
    mlp = block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    steps = [adapter.down, nn.ReLU(), adapter.up]
    steps = [adapter.norm, *steps] if adapter.norm_first else [*steps, adapter.norm]
    return x + mlp + SCALE * nn.Sequential(*steps)(x if adapter.parallel else mlp)


def loss(model: MetricModel, images: Tensor, labels: Tensor) -> Tensor:
    """Return `MetricModel.loss`, a scalar, by two separate towers, with class prompts repeated for every image.

    ``images`` (B, 3, H, W) and ``labels`` (B,) are those of one process. The P of the model is updated.
    """
    vit, config = model.vit, model.config
    sample = [vit.prompts[i][None, :n] for i, n in enumerate(vit.prompt_counts)] if vit.prompts is not None else []
    embeddings = embedding(vit.sample_head, pooled_tokens(vit.backbone, images, sample, vit.pool, list(vit.adapters)))
    p = classes = None
    if config.method == "vptsp":
        classes, prompts, head = labels[:: config.samples_per_class], sample, vit.proxy_head
        if model.class_prompts is not None and vit.class_prompt_counts is not None:
            rows = model.class_prompts(classes).repeat_interleave(config.samples_per_class, dim=0)
            prompts = [rows[:, i, :n] for i, n in enumerate(vit.class_prompt_counts)]
        elif config.proxy_source == "sample":
            head = vit.sample_head
        with torch.no_grad() if config.proxy_source == "fixed_encoder" else contextlib.nullcontext():
            pooled = pooled_tokens(vit.backbone, images, prompts, vit.pool)
        p = embedding(head, pooled)
    return model.loss_of_embeddings(embeddings, p, labels, classes)
