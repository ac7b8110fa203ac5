"""Both forms of attention against softmax(q k^T) v, written out: outputs and all gradients."""

import pytest
import torch
from timm.models.vision_transformer import Attention

from vptsp_core.method import attention as module
from vptsp_core.method.attention import attend

HEADS, SIZE = 3, 8
A = HEADS * SIZE


def textbook(q, kv, prompt_kv, scale):
    """Compute each head of each row by itself."""
    if prompt_kv is not None:
        groups = prompt_kv if prompt_kv.dim() == 3 else prompt_kv[None]
        rows = groups.repeat_interleave(len(kv) // len(groups), 0)
        kv = torch.stack([torch.cat([of_row, own]) for of_row, own in zip(rows, kv, strict=True)])
    out = []
    for one, both in zip(q, kv, strict=True):
        heads = []
        for h in range(HEADS):
            part = slice(h * SIZE, (h + 1) * SIZE)
            k, v = both[:, :A][:, part], both[:, A:][:, part]
            heads.append((one[:, part] @ k.T * scale).softmax(-1) @ v)
        out.append(torch.cat(heads, -1))
    return torch.stack(out)


def inputs(tokens, prompts, dtype):
    torch.manual_seed(0)
    q, kv = torch.randn(4, tokens, A), torch.randn(4, tokens, 2 * A)
    prompt_kv = None if prompts is None else torch.randn(*prompts, 2 * A)
    rounded = [None if t is None else t.to(dtype) for t in (q, kv, prompt_kv)]
    return [None if t is None else t.clone().requires_grad_() for t in rounded]


def run(form, parts):
    for part in parts:
        if part is not None:
            part.grad = None
    out = form(*parts)
    (out * torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)).sum().backward()
    return [out.detach(), *[part.grad for part in parts if part is not None]]


@pytest.mark.parametrize("prompts", [None, (5,), (2, 3)], ids=["no prompts", "shared", "by class"])
@pytest.mark.parametrize("tokens", [3, 29, 32, 40])  # with prompts: fewer keys than fill a register, as many, and more
@pytest.mark.parametrize("products", [False, True], ids=["fused", "products"])
@pytest.mark.parametrize("dtype, bound", [(torch.float64, 1e-12), (torch.bfloat16, 3e-2)])
def test_same_as_textbook(monkeypatch, prompts, tokens, products, dtype, bound):
    monkeypatch.setattr(module, "uses_matmul_attention", lambda q: products)
    attention = Attention(A, HEADS)
    parts = inputs(tokens, prompts, dtype)
    found = run(lambda *given: attend(attention, *given), parts)
    exact = [None if part is None else part.detach().double().requires_grad_() for part in parts]
    expected = run(lambda *given: textbook(*given, attention.scale), exact)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is dtype
        assert (ours.double() - theirs).abs().max() <= bound * theirs.abs().max()


def test_only_bf16_on_a_cpu_uses_products():
    assert module.uses_matmul_attention(torch.zeros(1, dtype=torch.bfloat16))
    assert not module.uses_matmul_attention(torch.zeros(1))
    assert not module.uses_matmul_attention(torch.zeros(1, dtype=torch.bfloat16, device="meta"))
