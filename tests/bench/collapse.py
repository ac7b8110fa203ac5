"""Record what embeddings and proxies do in the first steps of a run (docs/measured.md):
python -m tests.bench.collapse --data DIR --results DIR --out FILE.csv --epochs 2 --set seed=2

The run itself is an ordinary one in the folder of its hash, stopped after some epochs. With --warm-up N, both learning
rates rise linearly from 1/N of their values over the first N steps, which no setting of vptsp_core does.
"""

from __future__ import annotations

import argparse
from typing import Any
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

import vptsp_core
from vptsp_core.method.model import MetricModel
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.step import TrainStep


class Recorder:
    """Replaces `TrainStep.__call__`, and keeps one row per step.

    Args:
        warm_up: steps over which the learning rates rise; 0 for none.
    """

    def __init__(self, warm_up: int = 0) -> None:
        self.warm_up = warm_up
        self.rows: list[dict[str, float]] = []
        self.take, self.towers = TrainStep.__call__, MetricModel.towers

    def step(self, step: TrainStep, images: Tensor, labels: Tensor, *more: Any) -> Tensor:
        """Take a step, and measure what its forward pass computed."""
        embedded: list[Tensor] = []
        assert step.model.proxies is not None
        ordinary = step.model.proxies.bias.detach().clone()  # as this step's loss sees them

        def towers(model: MetricModel, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
            found = self.towers(model, images, classes)
            embedded.append(found[0].detach())
            return found

        share = min(1.0, (len(self.rows) + 1) / self.warm_up) if self.warm_up else 1.0
        groups = [group for optimizer in step.optimizers for group in optimizer.param_groups]
        rates = [group["lr"] for group in groups]
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = share * rate
        with mock.patch.object(MetricModel, "towers", towers):
            loss = self.take(step, images, labels, *more)
        for group, rate in zip(groups, rates, strict=True):
            group["lr"] = rate
        self.rows.append({"step": len(self.rows) + 1, "loss": loss.item(), **measured(embedded[0], labels, ordinary)})
        if step.model.proxies.accumulator is not None:
            self.rows[-1]["P"] = mean_cosine(step.model.proxies.state)
        return loss


def measured(embeddings: Tensor, labels: Tensor, ordinary: Tensor) -> dict[str, float]:
    """Return mean cosines in a batch of embeddings (B, d) with ``labels`` (B,), and among the proxies O (C, d).

    ``R@1 in the batch`` is the share of images whose nearest other image has their class.
    """
    cosines, same = embeddings @ embeddings.T, labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    nearest = cosines.masked_fill(itself, -2).argmax(1)
    return {
        "same class": float(cosines[same & ~itself].mean()),
        "other classes": float(cosines[~same].mean()),
        "R@1 in the batch": float((labels[nearest] == labels).float().mean()),
        "O": mean_cosine(ordinary),
    }


def mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine of two different rows of (C, d)."""
    total, count = F.normalize(rows, dim=-1).sum(0).square().sum(), len(rows)
    return float((total - count) / (count * (count - 1)))


class _Enough(Exception):
    pass


def main() -> None:
    """Train the first epochs of the run that the command line asks for, and write a row per step."""
    parser = argparse.ArgumentParser("python -m tests.bench.collapse")
    parser.add_argument("--data", required=True)
    parser.add_argument("--results", required=True)
    parser.add_argument("--out", required=True, metavar="FILE.csv")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--warm-up", type=int, default=0, metavar="STEPS")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", dest="changes")
    args = parser.parse_args()
    config = preset("cub200-vitti16", **dict(map(parse_change, args.changes)))
    recorder = Recorder(args.warm_up)

    def stop(history: list[Any]) -> None:
        pd.DataFrame(recorder.rows).to_csv(args.out, index=False)
        if len(history) >= args.epochs:
            raise _Enough

    def step(self: TrainStep, *rest: Any) -> Tensor:
        return recorder.step(self, *rest)

    with mock.patch.object(TrainStep, "__call__", step):
        try:
            vptsp_core.run(config, data=args.data, results=args.results, on_epoch=stop, compile="off")
        except _Enough:
            pass


if __name__ == "__main__":
    main()
