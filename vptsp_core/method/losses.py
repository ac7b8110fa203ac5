"""Proxy-Anchor (Kim et al., CVPR 2020; VPTSP eq. 2), normalised as the paper or as the released code does."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def proxy_anchor(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.1,
    semantics: str = "released",
) -> Tensor:
    """Proxy-Anchor loss over all proxies.

    With cosine similarity s, the positives of proxy c are the batch's embeddings of class c::

        1/K sum_c log(1 + sum_{positives} exp(-scale (s - margin)))
            + 1/C sum_c log(1 + sum_{negatives} exp(scale (s + margin)))

    K is the number of classes in the batch (``semantics="paper"``), or C, the number of all classes
    (``"released"``, which made the published numbers).

    Args:
        embeddings: (B, d), any length; normalised here.
        proxies: (C, d), likewise.
        labels: (B,) int64 in [0, C).

    Returns:
        A scalar of the embeddings' dtype.
    """
    similarity = F.normalize(embeddings, dim=-1) @ F.normalize(proxies, dim=-1).T
    positive = labels[:, None] == torch.arange(proxies.shape[0], device=labels.device)
    # log(1 + sum exp) = softplus(logsumexp); the lowest float, not -inf, keeps the gradient of empty columns at 0.
    lowest = torch.finfo(similarity.dtype).min
    pull = torch.logsumexp((-scale * (similarity - margin)).masked_fill(~positive, lowest), dim=0)
    push = torch.logsumexp((scale * (similarity + margin)).masked_fill(positive, lowest), dim=0)
    normaliser = proxies.shape[0] if semantics == "released" else positive.any(0).sum()
    return F.softplus(pull).sum() / normaliser + F.softplus(push).mean()
