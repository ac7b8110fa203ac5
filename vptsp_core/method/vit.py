"""The prompted vision transformer: two towers over one frozen backbone, in which prompts are only keys and values.

Deep visual prompts are put before the tokens at the input of a block, and their outputs are dropped after it. So only
a prompt's LayerNorm, key and value matter. Its query, output projection and MLP are never computed here.

Both towers run the same weights over the same images, and differ only by their prompts. So the first block's input,
LayerNorm, queries, keys and values are computed once. The towers fork in the attention of that block, because
the class prompts add their own keys and values there.

The result is exact: loss and gradients equal those of the textbook form (`vptsp_core.method.textbook`) up to rounding.
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
    """Return max(count - step * i, 0), the number of prompts in block i, for each block below ``layers`` that has any.

    >>> prompt_counts(4, 3, 2)
    [4, 2]
    """
    counts = [max(count - step * i, 0) for i in range(layers)]
    return [n for n in counts if n > 0]


def in_autocast(x: Tensor) -> Tensor:
    """Return ``x``, of any shape, in the dtype of autocast, or unchanged if autocast is off."""
    kind = x.device.type
    on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return x.to(torch.get_autocast_dtype(kind)) if on else x


def run_block(
    block: Block, x: Tensor, prompt_kvs: list[Tensor | None],
    *, adapter: nn.Module | None = None, forked: bool = False, only_first: int | None = None,
) -> Tensor:  # fmt: skip
    """Run one transformer block for one or two towers.

    Args:
        x: (B, T, D) tokens of one tower, or of two that fork in this block; (2B, T, D) of two that ``forked`` before.
        prompt_kvs: for each tower, the keys and values of its prompts in this block (see `attend`), or None.
        adapter: the adapter of this block, or None.
        forked: whether ``x`` already has the images of both towers. Ignored for one tower.
        only_first: compute only this number of tokens of the output; None for all T. For the last block, of which only
            the pooled tokens are read.

    Returns:
        (B, T, D), or (2B, T, D) for two towers; with ``only_first`` in place of T if it is given.
    """
    attention, normed = block.attn, in_autocast(block.norm1(x))  # cast once, not for each projection
    # Two projections, not one joint QKV: keys and values are copied behind those of the prompts, and the backward pass
    # would keep the joint output as well, because of the queries.
    kv = keys_and_values(attention, normed)
    if only_first is not None:
        x, normed = x[:, :only_first], normed[:, :only_first]
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
    """The head of a tower: LayerNorm, then Linear(D, d).

    For a distilled ViT, the class token and the distillation token each have a LayerNorm and a Linear. The two outputs
    are averaged, as in the released code.

    Args:
        width, embed_dim: D and d.
        tokens: how many pooled tokens an image has: 2 for a distilled ViT, otherwise 1.
    """

    def __init__(self, width: int, embed_dim: int, tokens: int = 1) -> None:
        super().__init__()
        self.norm, self.fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        if tokens == 2:
            self.dist_norm, self.dist_fc = nn.LayerNorm(width), _xavier_linear(width, embed_dim)
        self.tokens = tokens

    def forward(self, pooled: Tensor) -> Tensor:
        """Return embeddings (B, d), not normalised, of pooled tokens (B, tokens, D)."""
        out = self.fc(self.norm(pooled[:, 0]))
        return out if self.tokens == 1 else (out + self.dist_fc(self.dist_norm(pooled[:, 1]))) / 2


def _xavier_linear(width: int, embed_dim: int) -> nn.Linear:
    linear = nn.Linear(width, embed_dim)
    nn.init.xavier_uniform_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class PromptedViT(nn.Module):
    """A frozen backbone with the prompts, adapters and heads that learn (arXiv 2402.02340, section 3.2 and figure 2).

    Args:
        backbone: from `load_backbone`.
        embed_dim: d, the width of an embedding; None for a model without heads (method frozen).
        prompt_counts: prompts of the sample tower in each of the first blocks, from the function of that name.
        class_prompt_counts: the same for the proxy tower; None for a model without a proxy tower.
        adapters: the adapters of the last blocks, in the order of the blocks.
        proxy_head: whether class embeddings have their own head. A proxy tower needs it.
        pool: ``"auto"``, ``"cls"`` or ``"avg"``; raises ConfigError if the backbone cannot pool this way (`pooling`).

    Attributes:
        autocast: the dtype in which the backbone computes; None for float32. The heads always compute in float32.
        one_batch: whether two towers run as one batch of 2B rows after they fork, or as two batches. None: two batches
            on a CPU, one elsewhere. A CPU's cache holds the MLP of B rows but not of 2B (ViT-S/16, batch 16, two cores:
            1.1 times faster).
        checkpointing: whether to keep only the inputs of the blocks, and to compute each block again in the backward
            pass (Chen et al., arXiv 1604.06174). The numbers are the same; a step takes a third longer.
    """

    def __init__(
        self,
        backbone: VisionTransformer,
        embed_dim: int | None,
        *,
        prompt_counts: list[int],
        class_prompt_counts: list[int] | None = None,
        adapters: Iterable[Adapter] = (),
        proxy_head: bool = False,
        pool: str = "auto",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.autocast: torch.dtype | None = None
        self.one_batch: bool | None = None
        self.checkpointing = False
        self.pool = pooling(backbone, pool)
        self.pooled_count = 2 if hasattr(backbone, "dist_token") and self.pool == "cls" else 1
        self.prompt_counts, self.class_prompt_counts = prompt_counts, class_prompt_counts
        width = backbone.embed_dim
        self.prompts = None
        if prompt_counts:
            most = prompt_counts[0]  # N rows for every block, used or not, as in the released checkpoints
            self.prompts = nn.Parameter(torch.empty(len(prompt_counts), most, width))
            nn.init.normal_(self.prompts, std=(2 / ((most + 1) * width)) ** 0.5)  # Xavier over (1, N, D)
        self.sample_head = None if embed_dim is None else Head(width, embed_dim, self.pooled_count)
        self.proxy_head = None
        if embed_dim is not None and proxy_head:
            self.proxy_head = Head(width, embed_dim, self.pooled_count)
        self.adapters = nn.ModuleList(adapters)

    def forward(
        self, images: Tensor, class_prompts: Tensor | None = None, *, source: str | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the sample embeddings, and the class embeddings if ``class_prompts`` or ``source`` is given.

        Args:
            images: (B, 3, H, W), normalised. With class prompts, the images of a class are next to each other.
            class_prompts: (C', L_c, m, D), the m prompts of each class in each block. They make the proxy tower, in
                which each class has B / C' adjacent images.
            source: where class embeddings come from without class prompts: ``"sample"``, ``"encoder"`` or
                ``"fixed_encoder"`` (see `MetricModel`). They need no second tower.

        Returns:
            Sample embeddings (B, d), and class embeddings (B, d) or None. Both are float32 and L2-normalised.
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
        """Return the sample embeddings (B, d), L2-normalised, of pooled tokens (B, tokens, D)."""
        return F.normalize(pooled.mean(1) if self.sample_head is None else self.sample_head(pooled), dim=-1)

    def prompt_kvs(self, prompts: Tensor | tuple[Tensor, ...] | None, counts: list[int]) -> list[Tensor | None]:
        """Return the keys and values (see `attend`) of each block's prompts, or None for a block without prompts.

        ``prompts`` are (..., N, D) for each of the first blocks. A block uses the first ``counts[i]`` of the N.
        """
        kvs: list[Tensor | None] = [None] * len(self.backbone.blocks)
        if prompts is not None:
            for i, (block, of_block, count) in enumerate(zip(self.backbone.blocks, prompts, counts, strict=False)):
                kvs[i] = keys_and_values(block.attn, block.norm1(of_block[..., :count, :]))
        return kvs

    def pooled(self, images: Tensor, towers: list[list[Tensor | None]]) -> Tensor:
        """Return the pooled tokens of every tower after the final norm.

        Args:
            images: (B, 3, H, W), normalised.
            towers: one or two towers, each with the keys and values of its prompts in every block (`prompt_kvs`). If
                there are two, the second one has prompts in the first block.

        Returns:
            (towers * B, tokens, D), tower by tower.
        """
        one_batch = images.device.type != "cpu" if self.one_batch is None else self.one_batch
        run = run_block
        if self.checkpointing and torch.is_grad_enabled():  # blocks draw no random numbers: no state to restore
            run = partial(checkpoint, run_block, use_reentrant=False, preserve_rng_state=False)
        blocks, first_adapter = self.backbone.blocks, len(self.backbone.blocks) - len(self.adapters)
        batches = [(self.stem(images), towers)]  # the tokens of each batch, and the towers in it
        for i, block in enumerate(blocks):
            adapter = self.adapters[i - first_adapter] if i >= first_adapter else None
            first = self.pooled_count if self.pool == "cls" and i == len(blocks) - 1 else None
            batches = [
                (run(block, x, [tower[i] for tower in inside], adapter=adapter, forked=i > 0, only_first=first), inside)
                for x, inside in batches
            ]
            if i == 0 and len(towers) == 2 and not one_batch:
                batches = [(half, [tower]) for half, tower in zip(batches[0][0].chunk(2), towers, strict=True)]
        tokens = [x for x, _ in batches]
        return self.pool_tokens(tokens[0] if len(tokens) == 1 else torch.cat(tokens))

    def stem(self, images: Tensor) -> Tensor:
        """Return the input of the first block, (B, T, D), for images (B, 3, H, W)."""
        trunk = self.backbone
        return trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(images))))

    def pool_tokens(self, x: Tensor) -> Tensor:
        """Normalise and pool the last block's output, or only its first tokens: (B, T, D) -> (B, tokens, D)."""
        trunk, x = self.backbone, self.backbone.norm(x)
        if self.pool == "avg":
            x = x[:, 0 if trunk.pool_include_prefix else trunk.num_prefix_tokens :].mean(1, keepdim=True)
        else:
            x = x[:, : self.pooled_count]
        return trunk.fc_norm(x)
