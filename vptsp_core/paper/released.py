"""The released implementation's training step, run from a user's clone, so that `step_cost` can time it beside ours.

This project contains no code of the clone and writes nothing into it. The step calls the clone's model, loss and memory
bank in the order of its training loop: drop the gradients of both optimisers, forward and loss (with fp16 autocast on
a GPU), read the loss on the host for the progress bar, scaled backward, step both optimisers. With a memory bank, it
then writes the batch's class prompts and their optimiser state back into the bank.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import timm
import torch
from torch import Tensor, nn

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.accumulators import GRUAccumulator
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel

NEEDED = ("params.py", "architectures/peft_vit.py", "criteria/dml_proxy_peft.py", "metrics/__init__.py")
ACCUMULATORS = {"gru": "gru_relu", "gru_tanh": "gru", "ema": "mix"}
GATES = {"W_z": "W_iz", "W_r": "W_ir", "W_n": "W_in", "U_z": "W_hz", "U_r": "W_hr", "U_n": "W_hn",
         "b_z": "b_iz", "b_r": "b_ir", "b_n": "b_in"}  # fmt: skip
HEADS = {"head": "fc", "fc_norm": "norm", "dist_head": "dist_fc", "dist_norm": "dist_norm"}
BOUND = 1e-4  # on the relative difference of the two losses


class ReleasedBench:
    """The released training step, with the weights of our model and on the same batch.

    Args:
        ours: our model in float32 and train mode. It is not used after the constructor.
        images, labels: (B, 3, H, W) and (B,), on the model's device.
        reference: the clone's folder.
        checkpointing: whether to use gradient checkpointing. If None, it is on with a memory bank, as in the clone's
            configuration files (SOP, In-Shop, iNaturalist).

    Attributes:
        precision: of the clone's trunk. It is float16 on a GPU unless the run is in float32, and float32 on a CPU.
        difference: relative difference of the clone's loss and ours before the first step, in float32 without dropout.

    Raises:
        VptspError: the run was not released, the clone cannot be used, or its loss differs from ours.
    """

    def __init__(
        self, ours: MetricModel, images: Tensor, labels: Tensor, reference: str | Path,
        checkpointing: bool | None = None,
    ) -> None:  # fmt: skip
        config, self.device = ours.config, images.device
        check_released(config)
        names = ("architectures.peft_vit", "criteria.dml_proxy_peft", "params")
        architecture, criterion, params = clone_modules(reference, names)
        opt = _options(params, config, len(ours.proxies.bias))  # type: ignore[union-attr]
        self.bank = opt.prompt_memory_bank
        opt.checkpoint = self.bank if checkpointing is None else checkpointing
        opt.device = self.device
        backbone = copy.deepcopy(ours.vit.backbone)
        # The clone's constructor reads these from a timm model.
        backbone.default_cfg = backbone.pretrained_cfg = {"input_size": (3, *backbone.patch_embed.img_size)}
        with on_device(self.device, backbone):
            self.model = architecture.Network(opt).to(self.device).train()
            self.criterion = criterion.Criterion(opt).to(self.device)
        if self.bank:
            self.model.p_prompts.to("cpu")
        put_weights(ours, self.model)
        self.model.optimizer = _optimizer(config, self.model.optim_dict_list)
        self.model.p_optimizer = _optimizer(config, self.model.p_optim_dict_list)
        half = config.precision != "fp32" and self.device.type == "cuda"
        self.precision = "float16" if half else "float32"
        self.autocast = torch.autocast(self.device.type, torch.float16, enabled=half)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        self.images, self.labels = images, labels.cpu()  # the clone's loader leaves the labels in host memory
        self.difference = self._compare(ours)

    def step(self) -> None:
        """Run one step of the clone's training loop."""
        model = self.model
        model.optimizer.zero_grad(set_to_none=True)
        model.p_optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.loss()
        loss.item()  # the clone reads it for its progress bar
        self.scaler.scale(loss).backward()
        self.scaler.step(model.optimizer)
        self.scaler.step(model.p_optimizer)
        self.scaler.update()
        if self.bank:
            model.bank_optim_states_save()
            model.bank_prompt_p_save()

    def loss(self) -> Tensor:
        """Run the clone's forward pass and return its loss, a scalar ()."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the clone calls checkpoint() without arguments that are now required
            out = self.model(x=self.images, labels=self.labels.to(self.device), anchor=None)
        return self.criterion(batch=out["embeds"], labels=self.labels, proxies=out["proxies"])

    def kept(self) -> tuple[Any, list[Tensor], Sequence[torch.optim.Optimizer]] | None:
        """Do what `step_bench.StepBench.kept` does.

        With checkpointing, return None, because the tensors cannot be counted.
        """
        if self.model.pars.checkpoint:
            return None
        return self.loss, list(self.model.state_dict().values()), (self.model.optimizer, self.model.p_optimizer)

    def facts(self) -> dict[str, Any]:
        """Return the facts to report beside the step's time."""
        return {"loss_difference": self.difference, "precision": self.precision}

    @torch.no_grad()
    def _compare(self, ours: MetricModel) -> float:
        """Return the relative difference of the clone's loss and ours. Raises VptspError if it is above `BOUND`."""
        dropouts = [each for model in (ours, self.model) for each in model.modules() if isinstance(each, nn.Dropout)]
        rates = [each.p for each in dropouts]
        for each in dropouts:
            each.p = 0.0
        if ours.class_prompts is not None:
            classes = self.labels[:: ours.config.samples_per_class]
            ours.class_prompts.swap_in(classes, torch.optim.SGD([torch.zeros(1)]))
        mine = float(ours.loss(self.images, self.labels.to(self.device)))
        state = self.model.proxies_container
        self.model.proxies_container = state.clone()
        theirs = float(self.loss())
        self.model.proxies_container = state
        for each, rate in zip(dropouts, rates, strict=True):
            each.p = rate
        difference = abs(theirs - mine) / max(abs(mine), 1e-12)
        if not difference <= BOUND:
            raise VptspError(
                f"reference: its loss is {theirs:.6g}, ours {mine:.6g} on the same weights and images, so times cannot "
                "be compared; use an unchanged clone of the released implementation"
            )
        return difference


def check_released(config: RunConfig) -> None:
    """Check that the released implementation has the run. Raises ConfigError, with the key, if it does not."""
    semantic = config.method == "vptsp"
    wrong = {
        "semantics": config.semantics != "released",
        # The clone's block with an adapter always has 12 heads and no QKV bias. It has no LoRA.
        "method": config.method in ("adapter", "lora"),
        "optimizer": config.class_optimizer == "rowwise" and config.optimizer == "adam",
        "accumulator": semantic and config.accumulator not in ACCUMULATORS,
        "proxy_source": semantic and config.proxy_source not in ("class_prompts", "encoder"),
        "prompts": semantic and not (config.prompts and config.prompt_layers),
    }
    for key, is_wrong in wrong.items():
        if is_wrong:
            value = getattr(config, key)
            raise ConfigError(f"{key} = {value!r}: the released implementation has no such run; leave --reference out")


def clone_folder(folder: str | Path) -> Path:
    """Return the clone's absolute folder. Raises VptspError if the folder or a file that we need is missing."""
    path = Path(folder).expanduser().resolve()
    for name in ("", *NEEDED):
        if not (path / name).exists():
            missing = f"reference {folder}: {name or 'the folder'} is missing"
            raise VptspError(f"{missing}; give a whole clone of the released implementation")
    return path


def clone_modules(folder: str | Path, names: Sequence[str]) -> list[ModuleType]:
    """Import modules of the clone by name (``"architectures.peft_vit"``).

    Other packages have modules of the same names (``metrics``, ``datasets``), so the interpreter's module table and
    search path are restored afterwards. Raises VptspError if the clone is incomplete or cannot be imported.
    """
    path = clone_folder(folder)
    own = {each.stem for each in path.glob("*.py")} | {each.parent.name for each in path.glob("*/__init__.py")}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    importlib.invalidate_caches()
    try:
        with (
            mock.patch.object(sys, "path", [str(path), *sys.path]),
            mock.patch.object(sys, "dont_write_bytecode", True),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # the clone imports deprecated names of timm
            return [importlib.import_module(name) for name in names]
    except ImportError as error:
        raise VptspError(
            f"reference {folder}: it cannot be imported ({error}); use an unchanged clone, and install its "
            "requirements: pip install faiss-cpu scikit-learn"
        ) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(aside)


@contextlib.contextmanager
def on_device(device: torch.device, backbone: nn.Module | None = None) -> Iterator[None]:
    """Let the clone run on ``device`` without a download.

    Inside this context, ``.cuda()`` moves modules and tensors to ``device``, and timm's ``create_model`` returns
    ``backbone``.
    """

    def move(self: Any, *_: Any, **__: Any) -> Any:
        return self.to(device)

    with (
        mock.patch.object(nn.Module, "cuda", move),
        mock.patch.object(Tensor, "cuda", move),
        mock.patch.object(timm, "create_model", lambda *_, **__: backbone),
    ):
        yield


def _options(params: ModuleType, config: RunConfig, classes: int) -> argparse.Namespace:
    """Return a run as options of the released implementation. Other options have the clone's defaults (``params``)."""
    parser = argparse.ArgumentParser()
    for name in ("basic_training", "scale_optimizing", "batch_creation", "batchmining_specific", "loss_specific"):
        parser = getattr(params, f"{name}_parameters")(parser)
    semantic, encoder = config.method == "vptsp", config.proxy_source == "encoder"
    values = {
        "pretrained_model": config.backbone, "n_classes": classes, "embed_dim": config.embed_dim,
        "batch_size": config.batch, "samples_per_class": config.samples_per_class, "world_size": 1,
        "full_fine_tune": config.method == "full", "vit_bitfit": config.bitfit, "vit_head": True,
        "vit_global_pooling": "avg" if config.pool == "avg" else "token",
        "vit_prompt": config.method in ("vpt", "vptsp"), "num_prompt": config.prompts,
        "prompt_depth": config.prompt_layers, "prompt_block_step": config.prompt_step,
        "vit_proxy_net": semantic, "proxy_mix_bias": semantic and not encoder, "simple_proxies": encoder,
        "simple_proxies_vpt": encoder, "num_p_prompt": config.class_prompts,
        "p_prompt_depth": config.class_layers, "prompt_p_block_step": config.class_step,
        "prompt_memory_bank": semantic and config.class_optimizer == "rowwise",
        "semantic_mix_type": ACCUMULATORS.get(config.accumulator), "proxy_mix_keep_ratio": config.ema_keep,
        "rnn_dropout": config.gru_dropout, "proxy_bias_ratio": config.alpha, "proxy_data_range": "both_all",
        "loss_oproxy_pos_alpha": config.loss_scale, "loss_oproxy_neg_alpha": config.loss_scale,
        "loss_oproxy_pos_delta": config.loss_margin, "loss_oproxy_neg_delta": -config.loss_margin,
        "optim": config.optimizer, "lr": config.lr, "lr_proxy": config.lr_proxy, "decay": config.weight_decay,
        "sdg_momentum": config.momentum,
    }  # fmt: skip
    return argparse.Namespace(**{**vars(parser.parse_args([])), **values})


@torch.no_grad()
def put_weights(ours: MetricModel, released: Any) -> None:
    """Copy the weights of our model into the released one, except the backbone, which it already has."""
    vit, proxies = ours.vit, ours.proxies
    assert proxies is not None
    for head, prefix in ((vit.sample_head, ""), (vit.proxy_head, "p_")):
        for name, own in HEADS.items():
            if hasattr(head, own):
                getattr(released, prefix + name).load_state_dict(getattr(head, own).state_dict())
    for theirs, mine in zip(getattr(released, "prompts", ()), [] if vit.prompts is None else vit.prompts):
        theirs.copy_(mine)
    if ours.class_prompts is not None:
        for theirs, mine in zip(released.p_prompts, ours.class_prompts.table.unbind(1)):
            theirs.copy_(mine)
    released.proxies_bias.copy_(proxies.bias)
    if proxies.accumulator is not None:
        released.proxies_container = proxies.state.clone()
    if isinstance(proxies.accumulator, GRUAccumulator):
        for own, name in GATES.items():
            getattr(released.rnn_update, name).copy_(getattr(proxies.accumulator, own))


def _optimizer(config: RunConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups)
