"""The work that test_distributed does in one process and, by torchrun, in two.

torchrun ... tests/two_processes.py FOLDER       every process writes its results to FOLDER/rank<n>.pt
torchrun ... tests/two_processes.py FOLDER fail  train, but only the second process reads a bad image
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import vptsp_core

# isort: split
from timm.models.vision_transformer import VisionTransformer

from vptsp_core import __main__, preset
from vptsp_core.data import Benchmark, ImageSet
from vptsp_core.data.batches import decoded
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.runs import run
from vptsp_core.runs.evaluate import embed, evaluate
from vptsp_core.runs.train import Trainer
from vptsp_core.system import distributed, files

CLASSES, IMAGES, SIDE = 12, 71, 16  # 71 is odd, so the shares differ
SGD, ADAMW = dict(optimizer="sgd", lr=0.005), dict(optimizer="adamw", lr=1e-3)
DENSE, ROWWISE = dict(class_optimizer="dense"), dict(class_optimizer="rowwise")
CASES: dict[str, dict[str, Any]] = {
    "gru dense sgd": dict(**SGD, **DENSE, gru_dropout=0.3),
    "gru dense adamw": dict(**ADAMW, **DENSE),
    "gru rowwise sgd": dict(**SGD, **ROWWISE, semantics="paper"),
    "gru rowwise adamw": dict(**ADAMW, **ROWWISE, samples_per_class=1, gru_dropout=0.3),
    "ema dense sgd": dict(**SGD, **DENSE, accumulator="ema", samples_per_class=4),
    "ema dense adamw": dict(**ADAMW, **DENSE, accumulator="ema"),
    "ema rowwise sgd": dict(**SGD, **ROWWISE, accumulator="ema"),
    "ema rowwise adamw": dict(**ADAMW, **ROWWISE, accumulator="ema", semantics="paper"),
    "gru rowwise adamw cached": dict(**ADAMW, **ROWWISE, pipeline="cached"),
    "started gru rowwise sgd": dict(**SGD, **ROWWISE, start="all"),
    "lstm dense adamw": dict(**ADAMW, **DENSE, accumulator="lstm"),
    "attention rowwise adamw": dict(**ADAMW, **ROWWISE, accumulator="attention"),
    "rnn of samples sgd": dict(**SGD, accumulator="rnn", proxy_source="sample", semantics="paper"),
    "gru of the encoder adamw": dict(**ADAMW, proxy_source="encoder"),
    "adapter adamw float64": dict(**ADAMW, method="adapter", adapter_layers=2, adapter_dim=8),
    "full adamw": dict(**ADAMW, method="full", bitfit=False),
    "gru rowwise adamw float64": dict(**ADAMW, **ROWWISE, gru_dropout=0.3),
    "ema dense sgd float64": dict(**SGD, **DENSE, accumulator="ema"),
}


class Noise(ImageSet):
    """Random images that record which of them were decoded."""

    def __init__(self, count: int = IMAGES) -> None:
        super().__init__("noise", np.sort(np.arange(count) % min(CLASSES, count)), list("abcdefghijkl")[:count])
        self.images = np.random.default_rng(0).integers(0, 256, (count, SIDE + 4, SIDE + 4, 3), dtype=np.uint8)
        self.decoded: list[int] = []

    def image(self, index: int) -> Image.Image:
        self.decoded.append(index)
        return Image.fromarray(self.images[index])

    def fingerprint(self) -> str:
        return "noise"


def tiny_model(**changes: Any) -> MetricModel:
    """Return a model on a ViT of two blocks."""
    settings = dict(
        weights="random", embed_dim=16, prompts=2, prompt_layers=2, class_prompts=2, class_layers=2, image_size=SIDE,
        resize=SIDE, batch=8, epochs=2, steps_per_epoch=10, precision="fp32", lr_proxy=0.01, weight_decay=1e-3,
        pipeline="classic",
    )  # fmt: skip
    config = RunConfig(**settings | changes)
    torch.manual_seed(0)
    backbone = VisionTransformer(img_size=SIDE, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    return MetricModel(config, backbone.eval().requires_grad_(False), CLASSES, distributed.Processes())


def train(case: str) -> dict[str, Tensor]:
    """Take twenty steps. Return ``losses``, the learned state, and the optimisers' moments as ``<name> <moment>``."""
    model, double = tiny_model(**CASES[case]), "float64" in case
    with tempfile.TemporaryDirectory() as folder:
        images = decoded(Benchmark("noise", Noise(), Noise()), model.config, Path(folder), progress=False).train
        trainer = Trainer(model.double() if double else model, images, Path(folder), lambda m: {}, progress=False)
        step, losses = trainer.loop.step, []

        def spy(images: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
            losses.append(step(images.double() if double else images, labels, classes))
            return losses[-1]

        trainer.loop.step = spy
        trainer.run()
    found = {"losses": torch.stack(losses)} | model.learned_state()
    for name, parameter in model.named_parameters():
        for optimizer in trainer.loop.optimizers:
            moments = optimizer.state.get(parameter, {})
            found |= {f"{name} {key}": value for key, value in moments.items() if isinstance(value, Tensor)}
    return found


def coupled(rows: Tensor) -> Tensor:
    """Return a loss that couples every row with every other."""
    return (rows @ rows.T).sin().mul(torch.arange(1.0, 1 + len(rows), dtype=rows.dtype)).sum()


def gather_gradient(x: Tensor, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """Return the gradients of `coupled` by this process's rows of x, by weight (before gathering) and bias (after)."""
    own = x[distributed.own_share(len(x))].clone().requires_grad_()
    weight, bias, unused = (t.clone().requires_grad_() for t in (weight, bias, bias))
    loss = coupled(distributed.Processes().gather(own @ weight) + bias)
    loss.backward()
    distributed.Processes().sum_gradients([weight, unused], [bias])
    assert unused.grad is None
    return {"loss": loss.detach(), "x": own.grad, "weight": weight.grad, "bias": bias.grad}


def gather_inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (4, 3), (3,)))


def embeddings() -> dict[str, Any]:
    """Return embeddings of 71 images and of one, the images that this process decoded, and the metrics."""
    model, many, one = tiny_model(), Noise(), Noise(1)
    with mock.patch("vptsp_core.runs.evaluate.embed_batch", lambda model: 8):  # several batches in each process
        found: dict[str, Any] = {"many": embed(model, many), "one": embed(model, one)}
    found |= {"decoded": many.decoded, "decoded one": one.decoded}
    return found | {"metrics": dict(evaluate(model, Benchmark("noise", Noise(), Noise())))}


def noise_benchmark(name: str, data: str | None, allow_partial: bool) -> Benchmark:
    """Replace the glyphs, which take seconds to draw."""
    return Benchmark("glyphs", Noise(), Noise())


def smoke_config() -> RunConfig:
    return preset("smoke", batch=8, steps_per_epoch=2, epochs=3, class_optimizer="rowwise", gru_dropout=0.2)


def refusal(folder: Path, **changes: Any) -> str:
    try:
        vptsp_core.run(smoke_config().replace(**changes), results=folder, progress=False)
    except VptspError as error:
        return str(error)
    return ""


def cut_and_resume(folder: Path) -> dict[str, Any]:
    """Run until the first process cannot write the second checkpoint, and run again."""
    writes: list[str] = []
    write, replace = Trainer._write, files.os.replace

    def spy(source: Path, target: Path) -> None:
        writes.append(target.name)
        replace(source, target)

    files.os.replace = spy

    def full_disk(self: Trainer) -> None:
        if len(self.history) == 2:
            raise VptspError("the disk is full")
        write(self)

    Trainer._write = full_disk
    raised = refusal(folder)
    Trainer._write = write
    done = vptsp_core.run(smoke_config(), results=folder, progress=False)
    files.os.replace = replace
    left = sorted(path.name for path in done.path.iterdir())
    return {"raised": raised, "writes": writes, "files": left, "processes": done.record["processes"],
            "loss": done.history["loss"].tolist(), "metrics": done.metrics,
            "found": torch.from_numpy(done.queries["R@1"])}  # fmt: skip


def validated(folder: Path) -> dict[str, Any]:
    """Run with an epoch that held-out classes choose."""
    done = vptsp_core.run(smoke_config().replace(selection="validation"), results=folder, progress=False)
    history = done.history.drop(columns="seconds").fillna(-1)
    return {"history": history.to_dict("list"), "queries": torch.from_numpy(done.queries["R@1"])}


def bad_command() -> dict[str, Any]:
    """Run a command line with a mistake."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        status = __main__.main(["train", "--preset", "smoke", "--set", "alhpa=1"])
    return {"status": status, "said": said.getvalue().splitlines()}


def fail(folder: Path) -> int:
    def bad_image(self: ImageSet, index: int) -> Image.Image:
        raise DataError("no such image; unpack it again")

    if distributed.local_rank() == 1:
        Noise.image = bad_image
    return __main__.main(["train", "--preset", "smoke", "--set", "batch=8", "--results", str(folder)])


def main(folder: Path) -> None:
    distributed.start(torch.device("cpu"))
    found: dict[str, Any] = {case: train(case) for case in CASES}
    found["gather"] = gather_gradient(*gather_inputs())
    found["embeddings"] = embeddings()
    found["resumed"] = cut_and_resume(folder / "results")
    found["validated"] = validated(folder / "results")
    found["odd batch"] = refusal(folder / "odd", batch=9)
    found["bad command"] = bad_command()
    torch.save(found, folder / f"rank{distributed.rank()}.pt")
    distributed.stop()


if __name__ == "__main__":
    torch.set_num_threads(1)
    run.load_benchmark = noise_benchmark
    if sys.argv[2:] == ["fail"]:
        __main__.leave(fail(Path(sys.argv[1])))
    main(Path(sys.argv[1]))
