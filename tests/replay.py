"""Replay golden training trajectories of the released implementation: python tests/replay.py [--host] FILE.npz ...

The command loads a file's initial tensors, trains our model on its batches, and compares losses, the gradients of the
first step, and the final state. It prints the largest relative error of each. The error of a tensor is the norm of the
difference over the norm of the golden tensor. It exits with 1 above 1e-4, and with 2 if a file cannot be replayed.

A file comes from training the released implementation: its options, initial tensors, batches, losses, and the outputs,
gradients and final state to compare with. `own_trajectory` in tests/test_replay.py writes one in the same format. The
project does not include files of the released implementation.

With ``--host``, row-wise class prompts are in host memory. A dense table is not affected.

The bias of the attention keys under Adam or AdamW is compared by its effect, not by its values. Softmax is invariant to
it, so its gradient is zero up to rounding. Adam scales this rounding up to full steps of random sign: 1e-3 of the
tensor, in the textbook form too. The golden bias is put into our model, whose embeddings must stay within the bound.
"""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import vptsp_core  # noqa: E402, F401  (first, so that timm can import torchvision)

# isort: split
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

from vptsp_core.errors import VptspError  # noqa: E402
from vptsp_core.method.config import RunConfig  # noqa: E402
from vptsp_core.method.model import MetricModel, make_optimizers  # noqa: E402
from vptsp_core.method.step import TrainStep  # noqa: E402
from vptsp_core.runs.host_prompts import HostPrompts  # noqa: E402

BOUND = 1e-4
ACCUMULATORS = {"gru_relu": "gru", "gru": "gru_tanh", "mix": "ema"}


POOLS = {"token": "cls", "avg": "avg"}  # avg: the mean over all tokens but the class token
# Released options that `run_config` and `build` read.
READ = {
    "n_classes", "num_heads", "vit_bitfit", "embed_dim", "batch_size", "samples_per_class", "num_prompt",
    "prompt_depth", "prompt_block_step", "num_p_prompt", "p_prompt_depth", "prompt_p_block_step", "proxy_bias_ratio",
    "prompt_memory_bank", "semantic_mix_type", "proxy_mix_keep_ratio", "rnn_dropout", "optim", "lr", "lr_proxy",
    "decay", "sdg_momentum", "vit_global_pooling", "loss_oproxy_pos_alpha", "loss_oproxy_pos_delta",
}  # fmt: skip
NO_NUMBERS = {"case", "checkpoint"}  # do not change the numbers: the file's name, and gradient checkpointing
# Options that can have only one value: the whole method, in float32 and one process.
FIXED = {
    "full_fine_tune": False, "vit_head": True, "vit_prompt": True, "vit_proxy_net": True, "proxy_mix_bias": True,
    "proxy_data_range": "both_all", "mix_precision": False, "world_size": 1,
}  # fmt: skip


def check_options(golden: dict[str, Any]) -> None:
    """Check that every option of the file can be replayed.
    Raises VptspError if an option is unknown here, or its value has no counterpart.
    """
    scale, margin = golden.get("loss_oproxy_pos_alpha", 32.0), golden.get("loss_oproxy_pos_delta", 0.1)
    fixed = FIXED | {"loss_oproxy_neg_alpha": scale, "loss_oproxy_neg_delta": -margin}
    if unknown := sorted(golden.keys() - READ - NO_NUMBERS - fixed.keys()):
        raise VptspError(f"the replay does not know the option {', '.join(unknown)}; map it in tests/replay.py")
    allowed = {key: (value,) for key, value in fixed.items()}
    allowed |= {"semantic_mix_type": tuple(ACCUMULATORS), "vit_global_pooling": tuple(POOLS)}
    for option, values in allowed.items():
        if option in golden and golden[option] not in values:
            wanted = " or ".join(map(repr, values))
            raise VptspError(f"option {option} = {golden[option]!r} cannot be replayed, only {wanted}")


def run_config(golden: dict[str, Any]) -> RunConfig:
    """Return our settings for the released options."""
    return RunConfig(
        loss_scale=golden.get("loss_oproxy_pos_alpha", 32.0), loss_margin=golden.get("loss_oproxy_pos_delta", 0.1),
        momentum=golden.get("sdg_momentum", 0.9), pool=POOLS[golden.get("vit_global_pooling", "token")],
        method="vptsp", semantics="released", bitfit=golden["vit_bitfit"],
        embed_dim=golden["embed_dim"], batch=golden["batch_size"], samples_per_class=golden["samples_per_class"],
        prompts=golden["num_prompt"], prompt_layers=golden["prompt_depth"], prompt_step=golden["prompt_block_step"],
        class_prompts=golden["num_p_prompt"], class_layers=golden["p_prompt_depth"],
        class_step=golden["prompt_p_block_step"], alpha=golden["proxy_bias_ratio"],
        class_optimizer="rowwise" if golden["prompt_memory_bank"] else "dense",
        accumulator=ACCUMULATORS[golden["semantic_mix_type"]], ema_keep=golden["proxy_mix_keep_ratio"],
        gru_dropout=golden["rnn_dropout"], optimizer=golden["optim"], lr=golden["lr"], lr_proxy=golden["lr_proxy"],
        weight_decay=golden["decay"], precision="fp32",
    )  # fmt: skip


def named(model: MetricModel, *, gradient: bool = False) -> dict[str, Tensor]:
    """Return our tensors, or their gradients, under the golden names."""

    def value(parameter: Tensor) -> Tensor:
        if not gradient:
            return parameter.detach()
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    assert model.proxies is not None and model.class_prompts is not None
    found = {"proxy_bias": value(model.proxies.bias)}
    if model.vit.prompts is not None:
        for i, of_block in enumerate(value(model.vit.prompts)):
            found[f"prompts.{i}"] = of_block
    if not (gradient and model.class_prompts.rowwise):  # row-wise: the table has no gradient, only the batch's rows
        for i, of_block in enumerate(value(model.class_prompts.table).unbind(1)):
            found[f"class_prompts.{i}"] = of_block
    for name, head in (("sample_head", model.vit.sample_head), ("proxy_head", model.vit.proxy_head)):
        assert head is not None
        found |= {f"{name}.{key}": value(parameter) for key, parameter in head.named_parameters()}
    found |= {f"gru.{key}": value(p) for key, p in model.proxies.accumulator.named_parameters()}
    found |= {f"backbone.{key}": value(p) for key, p in model.vit.backbone.named_parameters() if p.requires_grad}
    if not gradient:
        found["proxy_state"] = model.proxies.state
    return found


def build(data: dict[str, Tensor], golden: dict[str, Any]) -> MetricModel:
    """Return our model with the file's initial tensors."""
    state = {key.removeprefix("backbone."): v for key, v in data.items() if key.startswith("backbone.")}
    width, side = state["patch_embed.proj.weight"].shape[0], data["images"].shape[-1]
    backbone = VisionTransformer(
        img_size=side, patch_size=state["patch_embed.proj.weight"].shape[-1], embed_dim=width,
        depth=1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks.")),
        num_heads=golden.get("num_heads", 3), num_classes=state["head.bias"].shape[0] if "head.bias" in state else 0,
    )  # fmt: skip
    backbone.load_state_dict(state)
    backbone.reset_classifier(0)
    backbone.eval().requires_grad_(False)
    model = MetricModel(run_config(golden), backbone, golden["n_classes"])
    with torch.no_grad():
        for name, tensor in named(model).items():
            if not name.startswith("backbone."):
                tensor.copy_(data[f"init.{name}"])
    return model.train()


def relative(ours: Tensor, golden: Tensor) -> float:
    """Return the norm of the difference over the norm of the golden tensor."""
    ours, golden = ours.double(), golden.double()
    if ours.shape != golden.shape or not torch.isfinite(ours).all():
        return float("inf")
    return float((ours - golden).norm() / golden.norm().clamp_min(1e-12))


@torch.no_grad()
def key_bias_effect(model: MetricModel, name: str, theirs: Tensor, images: Tensor) -> float:
    """Return the relative change of our embeddings if a block gets the golden bias of the keys."""
    parameter = model.get_parameter(f"vit.{name}")
    kept, before = parameter.clone(), model(images)
    third = len(parameter) // 3
    parameter[third : 2 * third] = theirs[third : 2 * third]
    moved = relative(model(images), before)
    parameter.copy_(kept)
    return moved


def without_key_bias(qkv_bias: Tensor) -> Tensor:
    """Return the query and value parts of a (3A,) bias."""
    query, _, value = qkv_bias.chunk(3)
    return torch.cat([query, value])


def replay(path: Path, host: bool = False) -> dict[str, float]:
    """Return the largest relative errors of a file: ``losses``, ``step 0`` (outputs and gradients), ``final`` state."""
    with np.load(path, allow_pickle=False) as file:
        golden = json.loads(str(file["config"]))
        data = {key: torch.from_numpy(file[key]) for key in file.files if key != "config"}
    check_options(golden)
    model = build(data, golden)
    prompts = model.class_prompts
    if host and prompts.rowwise:
        prompts = model.class_prompts = HostPrompts(prompts)
    optimizers = make_optimizers(model)
    start = {name: tensor.clone() for name, tensor in named(model).items()}
    losses, errors = [], {"losses": 0.0, "step 0": 0.0, "final": 0.0}

    def compare(part: str, ours: Tensor, key: str) -> None:
        theirs = data[key]
        if key.endswith("qkv.bias") and golden["optim"] != "sgd":
            errors["key bias, by its effect"] = max(
                errors.get("key bias, by its effect", 0.0),
                key_bias_effect(model, key.removeprefix("final."), theirs, data["images"][0]),
            )
            ours, theirs = without_key_bias(ours), without_key_bias(theirs)
        errors[part] = max(errors[part], relative(ours, theirs))

    class FirstStep(TrainStep):
        """A step that compares its outputs before and its gradients after the backward pass."""

        def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
            classes = labels[:: golden["samples_per_class"]]
            with torch.no_grad():
                kept = model.proxies.state.clone()
                embeddings, p = model.vit(images, prompts(classes))
                compare("step 0", embeddings, "step0.embeddings")
                compare("step 0", model.proxies(p, classes), "step0.proxies_unnormalised")
                model.proxies.state.copy_(kept)
            loss = super().forward_backward(images, labels)
            for name, gradient in named(model, gradient=True).items():
                if f"step0.grad.{name}" in data:
                    compare("step 0", gradient, f"step0.grad.{name}")
            return loss

    for step, (images, labels) in enumerate(zip(data["images"], data["labels"], strict=True)):
        take = (TrainStep if step else FirstStep)(model, optimizers)
        losses.append(take(images, labels).item())
    compare("losses", torch.tensor(losses, dtype=torch.float64), "losses")
    if isinstance(prompts, HostPrompts):
        prompts.flush()
    final = named(model)
    for key in data:
        name = key.removeprefix("final.")
        if name == key or name == "embeddings_of_step0_images":
            continue
        if name in final:
            compare("final", final[name], key)
        elif name in data:  # a frozen bias of the backbone, which must not have moved
            compare("final", model.vit.backbone.state_dict()[name.removeprefix("backbone.")], key)
        elif f"init.{name}" in data:  # the prompts of a block that uses none, which must not have moved
            errors["final"] = max(errors["final"], relative(data[f"init.{name}"], data[key]))
        else:
            raise KeyError(f"{key} has no counterpart in the model")
    moved = [name for name in final if f"final.{name}" not in data and not torch.equal(final[name], start[name])]
    if moved:
        raise KeyError(f"{moved[0]} learns here but is absent from the file")
    with torch.no_grad():
        compare("final", model.eval()(data["images"][0]), "final.embeddings_of_step0_images")
    return errors


def main(paths: list[str]) -> int:
    """Replay files and print one line for each. Return 0 if all errors are within the bound."""
    host, paths = "--host" in paths, [path for path in paths if path != "--host"]
    if not paths:
        print(__doc__)
        return 2
    worst = 0.0
    for path in paths:
        try:
            errors = replay(Path(path), host)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, VptspError) as error:
            print(f"{path}: cannot be replayed: {error}", file=sys.stderr)
            return 2
        print(f"{Path(path).name}: largest relative error " + ", ".join(f"{k} {v:.1e}" for k, v in errors.items()))
        worst = max(worst, *errors.values())
    print(f"worst {worst:.1e}, bound {BOUND:.0e}: {'within' if worst <= BOUND else 'ABOVE'}")
    return int(not worst <= BOUND)


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main(sys.argv[1:]))
