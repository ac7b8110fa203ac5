"""Train a run with an idea that vptsp_core does not have (docs/beyond_measured.md, "More ideas, one by one"):
python -m tests.bench.ideas NAME ... --data DIR --results DIR --set KEY=VALUE ...

Several ideas can be given together. Each replaces a few lines of the method while a run is trained. The run to compare
with has the same settings:
python -m vptsp_core train --preset cub200-vitti16 --data DIR --set KEY=VALUE ...
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import math
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vptsp_core import run
from vptsp_core.method import vit as vit_module
from vptsp_core.method.attention import attend as plain_attend
from vptsp_core.method.attention import keys_values_by_head
from vptsp_core.method.model import MetricModel
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.step import cast_frozen_weights
from vptsp_core.runs.start_from_data import start_from_data
from vptsp_core.runs.train import Trainer

OFFSET = -4.0  # of the prompts' logits before the first step: each prompt has e^-4 of its weight
SPEED = 20.0  # of the offset per unit of its parameter, so that AdamW with a rate of 1e-3 can move it by several units
DISTIL = 1.0  # weight of the distillation loss beside Proxy-Anchor
TEMPERATURE = 0.1  # of the similarities that are distilled


def learned_offset(stack: contextlib.ExitStack) -> None:
    """Add a learned offset to the prompts' logits, one per block, head and tower. It starts low."""
    plain = MetricModel.__init__

    def init(self: MetricModel, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        for block in self.vit.backbone.blocks:
            block.attn.prompt_offset = nn.Parameter(torch.zeros(2, block.attn.num_heads))

    def attend(attention: Any, q: Tensor, kv: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
        q = attention.q_norm(q.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2))
        k, v = keys_values_by_head(attention, kv, prompt_kv, padded=True)
        k = attention.k_norm(k)
        keys = kv.shape[1] + (0 if prompt_kv is None else prompt_kv.shape[-2])
        scores = (q.contiguous() * attention.scale) @ k.transpose(-2, -1)
        if prompt_kv is not None:
            count, of_class = prompt_kv.shape[-2], prompt_kv.dim() == 3
            offset = OFFSET + SPEED * attention.prompt_offset[int(of_class)]
            row = torch.cat(
                [offset[:, None].expand(-1, count), offset.new_zeros(len(offset), scores.shape[-1] - count)], 1
            )
            scores = scores + row[:, None].to(scores.dtype)
        scores.detach()[..., keys:] = -math.inf
        out = scores.softmax(-1) @ v
        return attention.norm(out.transpose(1, 2).flatten(2))

    stack.enter_context(mock.patch.object(MetricModel, "__init__", init))
    stack.enter_context(mock.patch.object(vit_module, "attend", attend))


def gate(stack: contextlib.ExitStack) -> None:
    """Put prompts behind a gate that starts at zero (arXiv 2303.16199): their own softmax, times tanh(gate) per head.

    The sample prompts and the class prompts of a block have a gate each.
    """
    plain = MetricModel.__init__

    def init(self: MetricModel, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        for block in self.vit.backbone.blocks:
            block.attn.prompt_gates = nn.Parameter(torch.zeros(2, block.attn.num_heads))

    def gated(attention: Any, q: Tensor, kv: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
        out = plain_attend(attention, q, kv)
        if prompt_kv is None:
            return out
        heads, of_class = attention.num_heads, prompt_kv.dim() == 3
        k, v = (each.unflatten(-1, (heads, -1)) for each in prompt_kv.chunk(2, -1))  # (C', n, heads, A / heads)
        if not of_class:
            k, v = k[None], v[None]
        rows = q.unflatten(-1, (heads, -1)).unflatten(0, (len(k), -1))  # (C', B / C', T, heads, A / heads)
        weights = (torch.einsum("cbthe,cnhe->cbthn", rows, k) * attention.scale).softmax(-1)
        extra = torch.einsum("cbthn,cnhe->cbthe", weights, v).flatten(0, 1)
        return out + (extra * attention.prompt_gates[int(of_class)].tanh()[:, None]).flatten(-2).to(out)

    stack.enter_context(mock.patch.object(MetricModel, "__init__", init))
    stack.enter_context(mock.patch.object(vit_module, "attend", gated))


def distillation(stack: contextlib.ExitStack) -> None:
    """Distil the frozen model's similarities between the images of a batch, beside Proxy-Anchor.

    The frozen model has no prompts, and its head in closed form. Its similarities to the other images, divided by
    `TEMPERATURE`, give a distribution per image; the loss adds the mean Kullback-Leibler divergence of the model's.
    """
    plain, resume, loss = MetricModel.towers, Trainer._resume, MetricModel.loss

    def with_teacher(self: Any) -> None:
        start_from_data(self.model, self.images)
        teacher = copy.deepcopy(self.model.vit).eval().requires_grad_(False)
        teacher.prompts = None
        cast_frozen_weights(teacher)
        self.model.teacher = [teacher]  # in a list, so that it is no part of the model
        resume(self)

    def towers(self: MetricModel, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        self.own, p = plain(self, images, classes)
        with torch.no_grad():
            self.target = self.teacher[0](images)[0]
        return self.own, p

    def with_distillation(self: MetricModel, images: Tensor, labels: Tensor) -> Tensor:
        main = loss(self, images, labels)
        own, target = (_logs(each) for each in (self.own, self.target))
        return main + DISTIL * F.kl_div(own, target, reduction="batchmean", log_target=True)

    stack.enter_context(mock.patch.object(Trainer, "_resume", with_teacher))
    stack.enter_context(mock.patch.object(MetricModel, "towers", towers))
    stack.enter_context(mock.patch.object(MetricModel, "loss", with_distillation))


def _logs(embeddings: Tensor) -> Tensor:
    """Return the logarithms of each image's distribution over the others: (B, d) -> (B, B - 1)."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool, device=embeddings.device)
    return (embeddings @ embeddings.T / TEMPERATURE)[others].view(count, -1).log_softmax(-1)


IDEAS = {"learned_offset": learned_offset, "gate": gate, "distillation": distillation}


def main() -> None:
    """Train the run that the command line asks for, and print its metrics."""
    parser = argparse.ArgumentParser("python -m tests.bench.ideas")
    parser.add_argument("names", nargs="+", choices=IDEAS, metavar="NAME")
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes")
    args = parser.parse_args()
    config = preset("cub200-vitti16", **dict(map(parse_change, args.changes)))
    with contextlib.ExitStack() as stack:
        for name in args.names:
            IDEAS[name](stack)
        print(run(config, data=args.data, results=args.results).metrics)


if __name__ == "__main__":
    main()
