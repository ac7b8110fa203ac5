"""Count the operations of a training step, and measure how fast this device multiplies matrices of that size."""

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
from vptsp_core.paper.step_bench import StepBench
from vptsp_core.paper.step_cost import take_turn

PRODUCTS = 10  # in one call of `product`, so that the time to start it does not count


def product_rate(config: RunConfig, device: str | None = None, turns: int = 20) -> dict[str, Any]:
    """Return the ``GFLOP`` of a step and the device's ``product TFLOP/s`` (median over turns, after two untimed)."""
    bench = StepBench(config, device=device)
    multiply, operations = product(bench.model, bench.images)
    ms = [each for _ in range(turns + 2) for each in take_turn(multiply, bench.device).ms]
    rate = operations / statistics.median(ms[2 * len(ms) // (turns + 2) :]) / 1e9
    return {"GFLOP": step_flops(bench.model, bench.images, bench.labels) / 1e9, "product TFLOP/s": rate}


def step_flops(model: MetricModel, images: Tensor, labels: Tensor) -> int:
    """Count the floating-point operations of one forward and backward pass with PyTorch's counter.

    A multiplication and its addition are two operations. Only matrix products and convolutions count, not softmax,
    norms, activations or the optimiser. The pass also updates the accumulated proxies; gradients are cleared.

    Args:
        images, labels: (B, 3, H, W) and (B,), as for `MetricModel.loss`.
    """
    checkpointing, model.vit.checkpointing = model.vit.checkpointing, False
    # Only with this backend does the counter see attention's products on every device.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.loss(images, labels).backward()
    model.vit.checkpointing = checkpointing
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def product(model: MetricModel, images: Tensor) -> tuple[Callable[[], object], int]:
    """Prepare the first matrix product of a block's MLP, over all tokens of a batch, in the trunk's precision.

    Returns:
        A function that computes (B * T, D) @ (D, 4 D) ten times, and the number of its operations.
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
