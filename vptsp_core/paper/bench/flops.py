"""The arithmetic of a training step, and the rate at which this device multiplies matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vptsp_core.method.model import MetricModel

PRODUCTS = 10  # in one call of `product`, so that starting it weighs nothing


def step_flops(model: MetricModel, images: Tensor, labels: Tensor) -> int:
    """Floating-point operations of one forward and backward pass, a multiplication and its addition being two.

    Counted by PyTorch while our own form runs as written, hence what the method needs and no more: matrix products and
    convolutions (attention's two products forward and four backward among them; no softmax, norm, activation or
    optimiser); weight gradients where weights learn; prompts as keys and values, shared parts of the towers once,
    nothing twice. Every form's rate is worked out from this one number, whatever the form itself computes besides.

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
    tokens_an_image = trunk.patch_embed.num_patches + trunk.num_prefix_tokens
    rows, width = len(images) * tokens_an_image, trunk.embed_dim
    hidden, dtype = trunk.blocks[0].mlp.fc1.out_features, model.vit.autocast or torch.float32
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(rows, width, generator=generator).to(images.device, dtype)
    matrix = torch.randn(width, hidden, generator=generator).to(images.device, dtype)
    out = torch.empty(rows, hidden, device=images.device, dtype=dtype)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(tokens, matrix, out=out)

    return multiply, 2 * rows * width * hidden * PRODUCTS
