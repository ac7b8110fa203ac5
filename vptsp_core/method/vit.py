"""The prompted vision transformer: one frozen trunk, two towers, prompts that are only keys and values.

A deep visual prompt joins the input of a block, and its output is dropped. So a prompt's query, output projection
and MLP never matter: in every block it takes part through LayerNorm and the K and V projections alone. Both towers
see the same images through the same weights, so the stem and the first QKV are computed once for both. After they
fork they run as one batch of 2B rows, on a CPU as two batches (`PromptedViT.one_batch`). The result is exact: loss and
gradients equal those of the textbook form (`vptsp_core.method.textbook`), to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vptsp_core.method.adapters import Adapter
from vptsp_core.method.attention import attend, keys_and_values
from vptsp_core.method.backbone import pooling
from vptsp_core.method.lora import project


def prompt_counts(count: int, layers: int, step: int) -> list[int]:
    """Prompts in each of the first blocks that have any: max(count - step * i, 0).

    >>> prompt_counts(4, 3, 2)
    [4, 2]
    """
    counts = [max(count - step * i, 0) for i in range(layers)]
    return [n for n in counts if n > 0]


def in_autocast(x: Tensor) -> Tensor:
    """``x`` (any shape) in autocast's dtype; unchanged if autocast is off."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if on else x


def run_block(
    block: Block, x: Tensor, prompt_kvs: list[Tensor | None],
    *, adapter: nn.Module | None = None, forked: bool = False, rows: int | None = None,
) -> Tensor:  # fmt: skip
    """One transformer block for one or two towers.

    Args:
        x: (B, T, D) tokens, or (2B, T, D) where two towers are ``forked`` already. Two towers that are equal so
            far fork here if either has prompts: LayerNorm and QKV are then computed for B rows, not 2B.
        prompt_kvs: for each tower, the keys and values of its prompts (see `attend`).
        adapter: the block's, where it has one.
        rows: compute only the first ``rows`` tokens of the output (the last block, where the rest is not read).

    Returns:
        (B or 2B, T or rows, D).
    """
    attention, normed = block.attn, in_autocast(block.norm1(x))  # cast once, not for each projection
    # Two projections, not one: the keys and values are copied behind the prompts', and the backward pass would keep a
    # joint output whole, because it also holds the queries.
    kv = keys_and_values(attention, normed)
    if rows is not None:
        x, normed = x[:, :rows], normed[:, :rows]
    q = project(attention.qkv, normed, slice(attention.num_heads * attention.head_dim))
    if all(prompt_kv is None for prompt_kv in prompt_kvs):
        attended = attend(attention, q, kv)
    elif len(prompt_kvs) == 1:
        attended = attend(attention, q, kv, prompt_kvs[0])
    else:
        qs, kvs = (q.chunk(2), kv.chunk(2)) if forked else ((q, q), (kv, kv))
        attended = torch.cat([attend(attention, *half) for half in zip(qs, kvs, prompt_kvs, strict=True)])
        x = x if forked else torch.cat([x, x])
    x = x + block.ls1(attention.proj(attended))
    mlp = block.ls2(block.mlp(block.norm2(x)))
    return x + mlp if adapter is None else x + mlp + adapter(x, mlp)


class Head(nn.Module):
    """LayerNorm, then Linear(D, d); a distilled ViT has two, averaged (as in the released code)."""

    def __init__(self, width: int, embed_dim: int, tokens: int = 1) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        if tokens == 2:
            self.dist_norm, self.dist_fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        self.tokens = tokens

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, tokens, D) -> (B, d), not normalised."""
        out = self.fc(self.norm(pooled[:, 0]))
        return out if self.tokens == 1 else (out + self.dist_fc(self.dist_norm(pooled[:, 1]))) / 2


def _xavier_linear(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class PromptedViT(nn.Module):
    """A frozen backbone with the prompts and heads that learn (arXiv 2402.02340, section 3.2 and figure 2).

    Args:
        backbone: from `vptsp_core.method.backbone.load_backbone`.
        embed_dim: width d of embeddings and proxies; None leaves the head out (the frozen model as it is).
        prompts: prompts of the sample tower in each of the first blocks, from `prompt_counts`.
        class_prompts: the same for the proxy tower; None for a model without one.
        adapters: those of the last blocks, in order.
        proxy_head: give class embeddings a head of their own; needed with class prompts.
        pool: ``"auto"``, ``"cls"`` or ``"avg"`` (see `vptsp_core.method.backbone.pooling`).

    The trunk runs in `autocast` (a dtype, None for float32), heads and all that follows in float32.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        embed_dim: int | None,
        *,
        prompts: list[int],
        class_prompts: list[int] | None = None,
        adapters: Iterable[Adapter] = (),
        proxy_head: bool = False,
        pool: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.autocast: torch.dtype | None = None
        # Both towers as one batch of 2B rows, or as two batches. None: two on a CPU, whose cache holds the MLP of B
        # rows but not of 2B (ViT-S/16, batch 16, 2 cores: 1.1 times quicker), one batch elsewhere.
        self.one_batch: bool | None = None
        # Gradient checkpointing (Chen et al., arXiv 1604.06174): keep the inputs of the blocks alone, and compute each
        # block again in the backward pass. A step takes a third longer; the numbers are the same.
        self.checkpointing = False
        self.pool = pooling(backbone, pool)
        self.pooled_count = 2 if hasattr(backbone, "dist_token") and self.pool == "cls" else 1
        self.prompt_counts, self.class_prompt_counts = prompts, class_prompts
        width = backbone.embed_dim
        self.prompts = None
        if prompts:
            # Every block keeps prompts[0] rows, used or not, as the released checkpoints do.
            self.prompts = nn.Parameter(torch.empty(len(prompts), prompts[0], width))
            nn.init.normal_(self.prompts, std=(2 / ((prompts[0] + 1) * width)) ** 0.5)  # Xavier over (1, N, D)
        self.sample_head = None if embed_dim is None else Head(width, embed_dim, self.pooled_count)
        self.proxy_head = None
        if embed_dim is not None and proxy_head:
            self.proxy_head = Head(width, embed_dim, self.pooled_count)
        self.adapters = nn.ModuleList(adapters)

    def forward(
        self, images: Tensor, class_prompts: Tensor | None = None, *, source: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Sample embeddings, and class embeddings for the proxies if they have a source.

        Args:
            images: (B, 3, H, W), normalised; with ``class_prompts``, images of a class are next to each other.
            class_prompts: (C, L_c, m, D), one entry for each group of B / C adjacent images: a proxy tower.
            source: without class prompts, ``"sample"``, ``"encoder"`` or ``"fixed_encoder"`` (`MetricModel`). They
                need no second tower: the proxy head reads the pooled tokens of the sample tower.

        Returns:
            (B, d) and (B, d) or None, float32, L2-normalised.
        """
        with torch.autocast(images.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            towers = [self.prompt_kvs(self.prompts, self.prompt_counts)]
            if class_prompts is not None:
                assert self.class_prompt_counts is not None
                towers.append(self.prompt_kvs(class_prompts.unbind(1), self.class_prompt_counts))
            pooled = self.pooled(images, towers)
        of_towers = (pooled if self.autocast is None else pooled.float()).chunk(len(towers))
        embeddings = self.embedding(of_towers[0])
        if class_prompts is None and source in (None, "sample"):
            return embeddings, None if source is None else embeddings
        assert self.proxy_head is not None
        read = of_towers[-1].detach() if source == "fixed_encoder" else of_towers[-1]
        return embeddings, F.normalize(self.proxy_head(read), dim=-1)

    def embedding(self, pooled: Tensor) -> Tensor:
        """The sample embedding: (B, pooled tokens, D) -> (B, d), L2-normalised."""
        return F.normalize(pooled.mean(1) if self.sample_head is None else self.sample_head(pooled), dim=-1)

    def prompt_kvs(self, prompts: Tensor | tuple[Tensor, ...] | None, counts: list[int]) -> list[Tensor | None]:
        """Each block's prompts, (..., N, D), as keys and values (see `attend`), None where it has none."""
        kvs: list[Tensor | None] = [None] * len(self.backbone.blocks)
        if prompts is not None:
            for i, (block, of_block, count) in enumerate(zip(self.backbone.blocks, prompts, counts, strict=False)):
                kvs[i] = keys_and_values(block.attn, block.norm1(of_block[..., :count, :]))
        return kvs

    def pooled(self, images: Tensor, towers: list[list[Tensor | None]]) -> Tensor:
        """(towers * B, T, D): the T pooled tokens of each image after the final norm."""
        trunk, x = self.backbone, self.stem(images)
        one_batch = images.device.type != "cpu" if self.one_batch is None else self.one_batch
        run = run_block
        if self.checkpointing and torch.is_grad_enabled():  # blocks draw no random numbers: no state to restore
            run = partial(checkpoint, run_block, use_reentrant=False, preserve_rng_state=False)
        halves: tuple[Tensor, ...] | None = None  # one batch a tower after the fork (None: x holds both)
        forked, plain = False, len(trunk.blocks) - len(self.adapters)
        for i, block in enumerate(trunk.blocks):
            prompt_kvs = [tower[i] for tower in towers]
            adapter = None if i < plain else self.adapters[i - plain]
            last = i == len(trunk.blocks) - 1
            rows = self.pooled_count if last and self.pool == "cls" else None
            if halves is not None:
                pairs = zip(halves, prompt_kvs, strict=True)
                halves = tuple(run(block, half, [kv], adapter=adapter, rows=rows) for half, kv in pairs)
                continue
            x = run(block, x, prompt_kvs, adapter=adapter, forked=forked, rows=rows)
            forked = forked or (len(towers) == 2 and any(kv is not None for kv in prompt_kvs))
            if forked and not one_batch:
                halves = x.chunk(2)
        if halves is not None:
            x = torch.cat(halves)
        elif len(towers) == 2 and not forked:
            x = torch.cat([x, x])
        return self.pool_tokens(x)

    def stem(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, n, D), the input of the first block."""
        trunk = self.backbone
        return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))

    def pool_tokens(self, x: Tensor) -> Tensor:
        """Pool the last block's output, or its first rows: (B, n, D) -> (B, T, D), see `pooled`."""
        trunk, x = self.backbone, self.backbone.norm(x)
        if self.pool == "avg":
            x = x[:, 0 if trunk.pool_include_prefix else trunk.num_prefix_tokens :].mean(1, keepdim=True)
        else:
            x = x[:, : self.pooled_count]
        return trunk.fc_norm(x)
