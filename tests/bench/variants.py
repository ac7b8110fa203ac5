"""Train a run with one idea from outside the paper that vptsp_core does not have (docs/beyond.md).

These ideas were tried on photographs and did not pay, so they are here and not in the package. Each one replaces a few
lines of the method while a run is trained, in the folder of its own name. Give the same settings without an idea to
`python -m vptsp_core train` for the run to compare with.
"""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vptsp_core
from vptsp_core.method import model as model_module
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.proxies import SemanticProxies
from vptsp_core.runs import train as train_module
from vptsp_core.runs.folder import Run

PROXIES = 3  # per class, in `several_proxies`
SHARPNESS = 0.1  # temperature of the softmax over a class's proxies


def one_head() -> Any:
    """One head for both towers: class embeddings and sample embeddings are made by the same weights."""
    plain = MetricModel.__init__

    def init(self: MetricModel, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        if self.vit.proxy_head is not None:
            self.vit.proxy_head = self.vit.sample_head

    return mock.patch.object(MetricModel, "__init__", init)


def several_proxies() -> Any:
    """Three proxies O per class (method linear, full or lora), mixed as in SoftTriple (Qian et al., ICCV 2019).

    The similarity of an image and a class is the mean over the class's proxies, weighted by their softmax. The proxies
    start at the class mean, each with noise of a third of its length.
    """
    plain, start = SemanticProxies.__init__, train_module.start_from_data

    def init(self: SemanticProxies, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        self.bias = nn.Parameter(self.bias.detach().repeat(PROXIES, 1, 1))

    def with_noise(model: MetricModel, images: Any) -> None:
        start(model, images)
        assert model.proxies is not None
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(model.config.seed)
            bias = model.proxies.bias
            bias.add_(0.3 / model.config.embed_dim**0.5 * torch.randn_like(bias))

    def loss(
        embeddings: Tensor, proxies: Tensor, labels: Tensor, *, scale: float, margin: float, semantics: str
    ) -> Tensor:
        cosines = torch.einsum("bd,kcd->kbc", F.normalize(embeddings, dim=-1), F.normalize(proxies, dim=-1))
        similarity = ((cosines / SHARPNESS).softmax(0) * cosines).sum(0)
        # Proxy-Anchor, as in `losses.proxy_anchor`, but of these similarities.
        positive = labels[:, None] == torch.arange(similarity.shape[1], device=labels.device)
        lowest = torch.finfo(similarity.dtype).min
        pull = torch.logsumexp((-scale * (similarity - margin)).masked_fill(~positive, lowest), dim=0)
        push = torch.logsumexp((scale * (similarity + margin)).masked_fill(positive, lowest), dim=0)
        normaliser = similarity.shape[1] if semantics == "released" else positive.any(0).sum()
        return F.softplus(pull).sum() / normaliser + F.softplus(push).mean()

    three = contextlib.ExitStack()
    three.enter_context(mock.patch.object(SemanticProxies, "__init__", init))
    three.enter_context(mock.patch.object(train_module, "start_from_data", with_noise))
    three.enter_context(mock.patch.object(model_module, "proxy_anchor", loss))
    return three


def synthetic_embeddings() -> Any:
    """One more embedding per class of the batch: a random point on the arc between the embeddings of its two images."""
    plain = model_module.proxy_anchor

    def loss(embeddings: Tensor, proxies: Tensor, labels: Tensor, **options: Any) -> Tensor:
        real = F.normalize(embeddings, dim=-1)
        one, other, share = real[::2], real[1::2], torch.rand(len(real) // 2, 1, device=real.device)
        angle = torch.acos((one * other).sum(1, keepdim=True).clamp(-1 + 1e-6, 1 - 1e-6))
        between = (torch.sin((1 - share) * angle) * one + torch.sin(share * angle) * other) / torch.sin(angle)
        return plain(torch.cat([real, between]), proxies, torch.cat([labels, labels[::2]]), **options)

    return mock.patch.object(model_module, "proxy_anchor", loss)


VARIANTS = {"one_head": one_head, "several_proxies": several_proxies, "synthetic_embeddings": synthetic_embeddings}


def train_variant(name: str, config: RunConfig, data: str | Path, results: str | Path, **options: Any) -> Run:
    """Train a run with the idea ``name`` of `VARIANTS`, in ``results/<name>``, and return it (see `vptsp_core.run`)."""
    with VARIANTS[name]():
        return vptsp_core.run(config, data=data, results=Path(results) / name, **options)


def main() -> None:
    """Train the run that the command line asks for, and print its metrics."""
    parser = argparse.ArgumentParser("python -m tests.bench.variants")
    parser.add_argument("name", choices=VARIANTS)
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes")
    args = parser.parse_args()
    config = preset("cub200-vitti16", **dict(map(parse_change, args.changes)))
    print(train_variant(args.name, config, args.data, args.results).metrics)


if __name__ == "__main__":
    main()
