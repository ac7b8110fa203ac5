"""The arithmetic of a training step, and the rate at which this device multiplies matrices of its size."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.paper.step_cost import StepBench, take_turn

PRODUCTS = 10  # in one call of `product`, so that starting it weighs nothing


def product_rate(config: RunConfig, device: str | None = None, turns: int = 20) -> dict[str, Any]:
    """``GFLOP`` that a step needs, and the device's ``product TFLOP/s`` (median over turns, after two untimed ones)."""
    bench = StepBench(config, device=device)
    multiply, operations = product(bench.model, bench.images)
    ms = [each for _ in range(turns + 2) for each in take_turn(multiply, bench.device).ms]
    rate = operations / statistics.median(ms[2 * len(ms) // (turns + 2) :]) / 1e9
    return {"GFLOP": step_flops(bench.model, bench.images, bench.labels) / 1e9, "product TFLOP/s": rate}


def step_flops(model: MetricModel, images: Tensor, labels: Tensor) -> int:
    """Floating-point operations of one forward and backward pass; a multiplication and its addition are two.

    PyTorch counts them while our own form runs as written, so they are what the method needs: matrix products and
    convolutions (attention's two products forward and four backward among them; no softmax, norm, activation or
    optimiser); weight gradients where weights learn; prompts as keys and values; shared parts of the towers once.

    The accumulated proxies move on, as in any step; gradients are gone afterwards.

    Args:
        images, labels: (B, 3, H, W) and (B,), as for `MetricModel.loss`.
    """
    checkpointing, model.vit.checkpointing = model.vit.checkpointing, False
    # The counter knows attention's products on all devices only where they are written out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(images, labels).backward()
    model.vit.checkpointing = checkpointing
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def product(model: MetricModel, images: Tensor) -> tuple[Callable[[], object], int]:
    """The first matrix of a block's MLP over all tokens of a batch, in the trunk's precision.

    Returns:
        What does (B * T, D) @ (D, 4 D) ten times, and how many operations that is.
    """
    trunk = model.vit.backbone
    rows = len(images) * (trunk.patch_embed.num_patches + trunk.num_prefix_tokens)
    width, hidden = trunk.embed_dim, trunk.blocks[0].mlp.fc1.out_features
    options = dict(device=images.device, dtype=model.vit.autocast or torch.float32)
    tokens, matrix = torch.randn(rows, width, **options), torch.randn(width, hidden, **options)
    out = torch.empty(rows, hidden, **options)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(tokens, matrix, out=out)

    return multiply, 2 * rows * width * hidden * PRODUCTS
