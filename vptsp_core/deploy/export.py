"""Export the sample tower for other programs, as ONNX or torch.export.

A prompt acts on a block only through its key and value. These do not depend on the image, so they are constants after
training. The exported graph is the backbone with these extra keys and values, the adapters and one head.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.errors import VptspError, refuse_empty
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.embedder import Embedder, load
from vptsp_core.runs.embedder_file import preprocessing
from vptsp_core.runs.share import is_shared, place
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import VERSION

INPUT, OUTPUT = "images", "embeddings"


class SampleTower(nn.Module):
    """The sample tower of an embedder, copied to the CPU in float32.

    It maps (B, 3, S, S) float32 in [0, 1] to (B, d) float32, L2-normalised. It normalises the images by mean and
    deviation, but does not resize or crop them (S is the crop size, see ``preprocessing`` in the file's metadata).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        model = copy.deepcopy(embedder.model).cpu().float().eval().requires_grad_(False)
        self.vit = model.vit
        for i, kv in enumerate(self.vit.prompt_kvs(self.vit.prompts, self.vit.prompt_counts)):
            if kv is not None:  # torch.export would count a None among the inputs
                self.register_buffer(f"prompts_{i}", kv)
        self.vit.prompts = self.vit.proxy_head = self.vit.autocast = None
        prepared = preprocessing(model)
        self.size = int(prepared["crop"])
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(prepared[name]).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Embed images (B, 3, S, S) in [0, 1] as rows (B, d)."""
        kvs = [getattr(self, f"prompts_{i}", None) for i in range(len(self.vit.backbone.blocks))]
        return self.vit.embedding(self.vit.pooled((images - self.mean) / self.std, [kvs]))


def about(embedder: Embedder) -> dict[str, str]:
    """Return the metadata of an exported file: text by name, lists as JSON."""
    config, prepared = embedder.config, preprocessing(embedder.model)
    return {
        "made_by": f"vptsp_core {VERSION}",
        "run": embedder.run or "",
        "backbone": config.backbone,
        "method": config.method + (" + bitfit" if config.bitfit else ""),
        "input": f"{INPUT}: batch x 3 x {config.image_size} x {config.image_size}, float32, RGB in [0, 1]",
        "output": f"{OUTPUT}: batch x d, float32, of length 1",
        "preprocessing": json.dumps({**prepared, "mean and std": "folded in"}),
        "metrics": json.dumps(embedder.metrics),
    }


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    """Turn off cuDNN's TF32 by its older name. torch.export reads this name, and raises if the newer ones disagree."""
    cudnn: Any = torch.backends.cudnn
    kinds = (cudnn.conv, cudnn.rnn)
    before = [kind.fp32_precision for kind in kinds]
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before == ["tf32", "tf32"]
        for kind, precision in zip(kinds, before):
            if kind.fp32_precision != precision:
                kind.fp32_precision = precision


@_without_tf32()
@torch_defaults()
def export_program(embedder: Embedder) -> torch.export.ExportedProgram:
    """Return the tower as a `torch.export` program for batches of any size."""
    tower = SampleTower(embedder)
    example = torch.rand(2, 3, tower.size, tower.size)
    with _quiet():
        return torch.export.export(tower, (example,), dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}})


def write_pt2(path: Path, embedder: Embedder) -> None:
    """Write `export_program` for `torch.export.load`, with the metadata as its extra file ``about.json``.

    `torch.export.load` can fall back to pickle, so load only files from people you trust.
    """
    buffer, extra = io.BytesIO(), {"about.json": json.dumps(about(embedder), indent=2)}
    with _quiet():
        torch.export.save(export_program(embedder), buffer, extra_files=extra)
    write_bytes(path, buffer.getvalue())


def write_onnx(path: Path, embedder: Embedder) -> None:
    """Write the tower as ONNX with its metadata: ``images`` -> ``embeddings``, for batches of any size.
    Raises VptspError: onnx or onnxscript is not installed.
    """
    if missing := [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]:
        raise VptspError(f"ONNX needs {missing[0]}; pip install onnx onnxscript, or export to .pt2")
    with _quiet():
        made: Any = torch.onnx.export(
            export_program(embedder), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False,
            dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
        )  # fmt: skip
        made.model.metadata_props.update(about(embedder))
        write_bytes(path, made.model_proto.SerializeToString())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what the exporters print and log about their own work."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


WRITERS: dict[str, Callable[[Path, Embedder], object]] = {
    ".safetensors": lambda path, embedder: embedder.save(path),
    ".onnx": write_onnx,
    ".pt2": write_pt2,
}


def main(argv: Sequence[str]) -> int:
    """python -m vptsp_core export: write a run as one file. Return the exit status.

    Raises VptspError if the file would be among the run's files, or its kind is unknown.
    """
    parser = argparse.ArgumentParser("python -m vptsp_core export", description="export a trained model as one file")
    parser.add_argument("run", help="folder of a finished run, a saved embedder, or hf://ORG/NAME")
    parser.add_argument(
        "--to", required=True, metavar="FILE",
        help=".safetensors: the learned weights, for vptsp_core.load; .onnx and .pt2 (torch.export): backbone and "
        "prompts in one graph for other programs; hf://ORG/NAME or hf://ORG/NAME@BRANCH: the learned weights and a "
        "model card, on the Hugging Face Hub",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, if they have moved since")
    args = parser.parse_args(argv)
    refuse_empty({name: value for name, value in vars(args).items() if name != "run"})
    if is_shared(args.to):
        print(load(args.run, "cpu", weights=args.weights).push_to_hub(*place(args.to)))
        return 0
    path = Path(args.to).expanduser().absolute()
    if Path(args.run).expanduser().resolve() in (path.resolve(), path.resolve().parent):
        raise VptspError(f"{path} is the exported model or in its folder, which must not change; name another place")
    if path.suffix not in WRITERS:
        raise VptspError(f"{path}: unknown kind {path.suffix!r}; give {', '.join(WRITERS)}")
    WRITERS[path.suffix](path, load(args.run, "cpu", weights=args.weights))
    print(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    return 0
