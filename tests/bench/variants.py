"""Train a run with an idea that vptsp_core does not have (docs/beyond.md):
python -m tests.bench.variants NAME --data DIR --results DIR --set KEY=VALUE ...

Each idea replaces a few lines of the method while a run is trained, in a folder of its own name. The run to compare
with has the same settings: python -m vptsp_core train --preset cub200-vitti16 --set KEY=VALUE ...
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vptsp_core
from vptsp_core.method import vit as vit_module
from vptsp_core.method.attention import attend
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.proxies import SemanticProxies
from vptsp_core.method.step import TrainStep, cast_frozen_weights
from vptsp_core.runs import train as train_module
from vptsp_core.runs.closed_form import closed_form_head
from vptsp_core.runs.folder import Run
from vptsp_core.runs.start_from_data import start_from_data

AVERAGE = 0.98  # of the averaged weights, kept in each step: an average over about 50 steps
DISTIL = 1.0  # weight of the distillation loss beside Proxy-Anchor
TEMPERATURE = 0.1  # of the similarities that are distilled


def gated_prompts() -> Any:
    """Prompts behind a gate that starts at zero (arXiv 2303.16199): their own softmax, times tanh(gate) of each head.

    The sample prompts and the class prompts of a block have a gate each.
    """
    plain = MetricModel.__init__

    def init(self: MetricModel, *args: Any, **options: Any) -> None:
        plain(self, *args, **options)
        for block in self.vit.backbone.blocks:
            block.attn.prompt_gates = nn.Parameter(torch.zeros(2, block.attn.num_heads))

    def gated(attention: Any, q: Tensor, kv: Tensor, prompt_kv: Tensor | None = None) -> Tensor:
        out = attend(attention, q, kv)
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

    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(MetricModel, "__init__", init))
    both.enter_context(mock.patch.object(vit_module, "attend", gated))
    return both


def equal_lengths() -> Any:
    """O of length 1 in the mixture Q, like P, so that alpha is a share."""
    plain = SemanticProxies.forward

    def forward(self: SemanticProxies, p: Tensor | None = None, classes: Tensor | None = None) -> Tensor:
        longer = plain(self, p, classes)  # (1 - alpha) P + alpha O
        return longer if p is None else longer + self.alpha * (F.normalize(self.bias, dim=-1) - self.bias)

    return mock.patch.object(SemanticProxies, "forward", forward)


def distillation() -> Any:
    """The frozen model's similarities between the images of a batch as a soft target, beside Proxy-Anchor.

    The frozen model has its head in closed form. Its similarities to the other images, divided by `TEMPERATURE`, give
    a distribution per image; the loss adds the mean Kullback-Leibler divergence of the model's own distribution.
    """
    plain, resume = MetricModel.towers, train_module.Trainer._resume

    def with_teacher(self: Any) -> None:
        start_from_data(self.model, self.images)
        teacher = copy.deepcopy(self.model.vit).eval().requires_grad_(False)
        cast_frozen_weights(teacher)
        self.model.teacher = [teacher]  # in a list, so that it is no part of the model
        resume(self)

    def towers(self: MetricModel, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        embeddings, p = plain(self, images, classes)
        with torch.no_grad():
            self.target = self.teacher[0](images)[0]
        self.own = embeddings
        return embeddings, p

    loss = MetricModel.loss

    def with_distillation(self: MetricModel, images: Tensor, labels: Tensor) -> Tensor:
        main = loss(self, images, labels)
        own, target = (_logs(each) for each in (self.own, self.target))
        return main + DISTIL * F.kl_div(own, target, reduction="batchmean", log_target=True)

    three = contextlib.ExitStack()
    three.enter_context(mock.patch.object(train_module.Trainer, "_resume", with_teacher))
    three.enter_context(mock.patch.object(MetricModel, "towers", towers))
    three.enter_context(mock.patch.object(MetricModel, "loss", with_distillation))
    return three


def _logs(embeddings: Tensor) -> Tensor:
    """Return the logarithms of each image's distribution over the others: (B, d) -> (B, B - 1)."""
    count = len(embeddings)
    others = ~torch.eye(count, dtype=torch.bool, device=embeddings.device)
    return (embeddings @ embeddings.T / TEMPERATURE)[others].view(count, -1).log_softmax(-1)


def averaged_weights() -> Any:
    """Evaluations and results by an average of the weights over the steps; the training does not change.

    A run that is interrupted must be begun again, because its checkpoint does not have the average.
    """
    take = TrainStep.__call__

    def step(self: TrainStep, *args: Any) -> Tensor:
        averages = self.__dict__.setdefault("averages", {})
        learned = {name: each for name, each in self.model.vit.named_parameters() if each.requires_grad}
        for name, each in learned.items() if not averages else ():
            averages[name] = each.detach().clone()
        found = take(self, *args)
        self.model.averages = averages
        for name, each in learned.items():
            averages[name].lerp_(each.detach(), 1 - AVERAGE)
        return found

    @contextlib.contextmanager
    def averaged(model: MetricModel, images: Any) -> Iterator[None]:
        averages = getattr(model, "averages", {})
        current = {name: each for name, each in model.vit.named_parameters() if name in averages}
        kept = {name: each.detach().clone() for name, each in current.items()}
        for name, each in current.items():
            each.data.copy_(averages[name])
        with closed_form_head(model, images):
            yield
        for name, each in current.items():
            each.data.copy_(kept[name])

    both = contextlib.ExitStack()
    both.enter_context(mock.patch.object(TrainStep, "__call__", step))
    both.enter_context(mock.patch.object(train_module, "closed_form_head", averaged))
    return both


VARIANTS = {
    "gated_prompts": gated_prompts,
    "equal_lengths": equal_lengths,
    "distillation": distillation,
    "averaged_weights": averaged_weights,
}


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
