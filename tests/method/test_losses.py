"""Proxy-Anchor against pytorch-metric-learning, and against the formula in loops."""

import math

import pytest
import torch
import torch.nn.functional as F

from vptsp_core.errors import ConfigError
from vptsp_core.method.losses import proxy_anchor


def case(seed=0, size=12, classes=7, dim=9):
    torch.manual_seed(seed)
    embeddings = torch.randn(size, dim, dtype=torch.float64, requires_grad=True)
    proxies = torch.randn(classes, dim, dtype=torch.float64, requires_grad=True)
    return embeddings, proxies, torch.randint(0, classes - 1, (size,))  # the last class is always absent


@pytest.mark.parametrize("seed", range(5))
def test_paper_form_equals_pytorch_metric_learning(seed):
    from pytorch_metric_learning.losses import ProxyAnchorLoss

    embeddings, proxies, labels = case(seed)
    theirs = ProxyAnchorLoss(7, 9, margin=0.1, alpha=32).double()
    with torch.no_grad():
        theirs.proxies.copy_(proxies)
    expected = theirs(embeddings, labels)
    ours = proxy_anchor(embeddings, proxies, labels, semantics="paper")
    assert ours.item() == pytest.approx(expected.item(), rel=1e-9)
    grads = torch.autograd.grad(ours, [embeddings, proxies])
    theirs_grads = torch.autograd.grad(expected, [embeddings, theirs.proxies])
    for mine, other in zip(grads, theirs_grads, strict=True):
        assert torch.allclose(mine, other, atol=1e-9)


def test_another_form_is_refused():
    with pytest.raises(ConfigError, match="semantics = 'Released' must be one of released, paper"):
        proxy_anchor(*case(0), semantics="Released")


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_against_the_formula_in_loops(semantics):
    embeddings, proxies, labels = case(3)
    x, p = F.normalize(embeddings, dim=-1), F.normalize(proxies, dim=-1)
    pull = push = 0.0
    present = labels.unique().tolist()
    for c in range(7):
        similarities = (x @ p[c]).tolist()
        positives = [s for s, label in zip(similarities, labels.tolist(), strict=True) if label == c]
        negatives = [s for s, label in zip(similarities, labels.tolist(), strict=True) if label != c]
        pull += math.log(1 + sum(math.exp(-32 * (s - 0.1)) for s in positives))
        push += math.log(1 + sum(math.exp(32 * (s + 0.1)) for s in negatives))
    expected = pull / (7 if semantics == "released" else len(present)) + push / 7
    assert proxy_anchor(embeddings, proxies, labels, semantics=semantics).item() == pytest.approx(expected, rel=1e-9)


def test_a_batch_of_one_class_has_finite_gradients():
    embeddings, proxies, _ = case()
    loss = proxy_anchor(embeddings, proxies, torch.full((12,), 3))
    loss.backward()
    assert loss.isfinite() and embeddings.grad.isfinite().all() and proxies.grad.isfinite().all()


def test_the_lengths_of_the_vectors_do_not_matter():
    embeddings, proxies, labels = case()
    assert torch.allclose(proxy_anchor(embeddings, proxies, labels), proxy_anchor(3 * embeddings, proxies / 7, labels))
