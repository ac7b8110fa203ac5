"""The loss: Proxy-Anchor (Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020; VPTSP eq. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.errors import check_choice


def proxy_anchor(
    embeddings: Tensor,
    proxies: Tensor,
    labels: Tensor,
    *,
    scale: float = 32.0,
    margin: float = 0.1,
    semantics: str = "released",
) -> Tensor:
    """Return the Proxy-Anchor loss of a batch, over the proxies of all C classes (eq. 2)::

        1/K sum_c log(1 + sum_{x in positives of c} exp(-scale (s(x, c) - margin)))
            + 1/C sum_c log(1 + sum_{x in negatives of c} exp(scale (s(x, c) + margin)))

    s(x, c) is the cosine of embedding x and proxy c. The positives of c are the embeddings of class c in the batch, and
    the negatives are the other embeddings. K is the number of classes in the batch with ``semantics="paper"``. It is C
    with ``"released"``, which gave the published numbers.

    Args:
        embeddings: (B, d), of any length; they are normalised here.
        proxies: (C, d), of any length; they are normalised here.
        labels: (B,) int64, classes in [0, C).
        scale, margin: see the equation.
        semantics: ``"paper"`` or ``"released"``.

    Returns:
        A scalar in the dtype of the embeddings.

    Raises:
        ConfigError: ``semantics`` is another word.
    """
    check_choice("semantics", semantics, ("released", "paper"))
    similarity = F.normalize(embeddings, dim=-1) @ F.normalize(proxies, dim=-1).T
    positive = labels[:, None] == torch.arange(proxies.shape[0], device=labels.device)
    # log(1 + sum exp) = softplus(logsumexp). Masked entries get the lowest float, not -inf: in a column without
    # positives, the gradient of logsumexp would be NaN.
    lowest = torch.finfo(similarity.dtype).min
    pull = torch.logsumexp((-scale * (similarity - margin)).masked_fill(~positive, lowest), dim=0)
    push = torch.logsumexp((scale * (similarity + margin)).masked_fill(positive, lowest), dim=0)
    normaliser = proxies.shape[0] if semantics == "released" else positive.any(0).sum()
    return F.softplus(pull).sum() / normaliser + F.softplus(push).mean()
