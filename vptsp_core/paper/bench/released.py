"""The released implementation's training step, run from a user's clone with our weights in it, to be timed beside ours.

Its model, its loss and its memory bank are called where they lie (`paper.bench.clone`); the order of the calls is
that of its training loop: both optimisers' gradients dropped, forward and loss (under fp16 autocast on a GPU), the
loss read by the host for the progress bar, scaled backward, both optimisers, and with a memory bank the batch's class
prompts and their optimiser state put back into it.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.method.accumulators import GRUAccumulator
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.paper.bench import check_trains, random_batch
from vptsp_core.paper.bench.clone import at_home, clone_modules, clone_options
from vptsp_core.paper.bench.memory import kept_bytes
from vptsp_core.runs.run import build_model
from vptsp_core.system.devices import pick_device

ACCUMULATORS = {"gru": "gru_relu", "gru_tanh": "gru", "ema": "mix"}
GATES = {"W_z": "W_iz", "W_r": "W_ir", "W_n": "W_in", "U_z": "W_hz", "U_r": "W_hr", "U_n": "W_hn",
         "b_z": "b_iz", "b_r": "b_ir", "b_n": "b_in"}  # fmt: skip
HEADS = {"head": "fc", "fc_norm": "norm", "dist_head": "dist_fc", "dist_norm": "dist_norm"}
BOUND = 1e-4  # of the two losses' relative difference


class ReleasedBench:
    """One released training step on the images of `StepBench`, from the same weights.

    Args:
        reference: the clone.
        classes: C, of the training set.
        checkpointing: of gradients; None: as its configuration files have it, on where there is a memory bank (SOP,
            In-Shop, iNaturalist).

    Attributes:
        precision: of its trunk, as released: float16 on a GPU, unless the run is one in float32; float32 on a CPU.
        difference: of its loss and ours before the first step, relative, both in float32 and without dropout.

    Raises:
        ConfigError: a run that the released implementation does not have.
        VptspError: the clone cannot be used, or its loss is another than ours.
    """

    def __init__(
        self, config: RunConfig, reference: str | Path, device: str | None = None,
        *, classes: int, checkpointing: bool | None = None,
    ) -> None:  # fmt: skip
        check_trains(config)
        check_released(config)
        self.device = pick_device(device)
        architecture, criterion, params = clone_modules(
            reference, ("architectures.peft_vit", "criteria.dml_proxy_peft", "params")
        )
        values = options(config, classes)
        self.bank = bool(values["prompt_memory_bank"])
        values["checkpoint"] = self.bank if checkpointing is None else checkpointing
        values["device"] = self.device
        opt = clone_options(params, values)
        ours = build_model(config.replace(weights="random"), classes, self.device).train()
        with at_home(self.device, _bare_backbone(ours)):
            self.model = architecture.Network(opt)
            self.criterion = criterion.Criterion(opt).to(self.device)
        self.model.to(self.device).train()
        if self.bank:
            self.model.p_prompts.to("cpu")
        put_weights(ours, self.model)
        # as its loop makes them: one kind, O apart
        self.model.optimizer = _optimizer(config, self.model.optim_dict_list)
        self.model.p_optimizer = _optimizer(config, self.model.p_optim_dict_list)
        half = config.precision != "fp32" and self.device.type == "cuda"
        self.precision = "float16" if half else "float32"
        self.autocast = torch.autocast(self.device.type, torch.float16) if half else contextlib.nullcontext()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.device.type == "cuda")
        images, chosen = random_batch(config)
        self.images, self.labels = images.to(self.device), chosen.repeat_interleave(config.samples_per_class)
        self.difference = self._check(ours)

    def step(self) -> None:
        """One step of its training loop."""
        model = self.model
        model.optimizer.zero_grad(set_to_none=True)
        model.p_optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            loss = self.loss()
        loss.item()  # its progress bar shows the loss of every step
        self.scaler.scale(loss).backward()
        self.scaler.step(model.optimizer)
        self.scaler.step(model.p_optimizer)
        self.scaler.update()
        if self.bank:
            model.bank_optim_states_save()
            model.bank_prompt_p_save()

    def loss(self) -> Tensor:
        """Its forward pass and loss, a scalar (); like its loader, it has the labels in host memory."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of checkpointing without its newer arguments
            out = self.model(x=self.images, labels=self.labels.to(self.device), anchor=None)
        return self.criterion(batch=out["embeds"], labels=self.labels, proxies=out["proxies"])

    def kept_bytes(self) -> int | None:
        """See `Bench`; None with checkpointing, which hides what it keeps."""
        if self.model.pars.checkpoint:
            return None
        return kept_bytes(
            self.loss, self.model.state_dict().values(), (self.model.optimizer, self.model.p_optimizer)
        )  # fmt: skip

    @torch.no_grad()
    def _check(self, ours: MetricModel) -> float:
        rates = {module: module.p for model in (ours, self.model) for module in model.modules()
                 if isinstance(module, nn.Dropout)}  # fmt: skip
        for module in rates:
            module.p = 0.0
        if ours.class_prompts is not None:
            chosen = self.labels[:: ours.config.samples_per_class]
            ours.class_prompts.swap_in(chosen, torch.optim.SGD([torch.zeros(1)]))
        mine = float(ours.loss(self.images, self.labels.to(self.device)))
        state = self.model.proxies_container
        self.model.proxies_container = state.clone()
        theirs = float(self.loss())
        self.model.proxies_container = state
        for module, rate in rates.items():
            module.p = rate
        difference = abs(theirs - mine) / max(abs(mine), 1e-12)
        if not difference <= BOUND:
            raise VptspError(
                f"reference: its loss is {theirs:.6g}, ours {mine:.6g} on the same weights and images; "
                "what computes another thing is not compared (is the clone as it was released?)"
            )
        return difference


def check_released(config: RunConfig) -> None:
    """Refuse a run that the released implementation does not have.

    Raises:
        ConfigError: naming the key.
    """
    wrong = []
    if config.semantics != "released":
        wrong.append("semantics")
    if config.method == "adapter":  # its adapted block has 12 heads and no QKV bias, whatever the backbone has
        wrong.append("method")
    if config.method == "vptsp":
        wrong += ["accumulator"] if config.accumulator not in ACCUMULATORS else []
        wrong += ["proxy_source"] if config.proxy_source != "class_prompts" else []
        wrong += ["prompts"] if not (config.prompts and config.prompt_layers) else []
    if config.class_optimizer == "rowwise" and config.optimizer == "adam":
        wrong.append("optimizer")
    if wrong:
        value = getattr(config, wrong[0])
        raise ConfigError(f"{wrong[0]} = {value!r}: the released implementation has no such run; leave --reference out")


def options(config: RunConfig, classes: int) -> dict[str, Any]:
    """A run in the released option names."""
    semantic = config.method == "vptsp"
    return {
        "pretrained_model": config.backbone, "n_classes": classes, "embed_dim": config.embed_dim,
        "batch_size": config.batch, "samples_per_class": config.samples_per_class, "world_size": 1,
        "full_fine_tune": config.method == "full", "vit_bitfit": config.bitfit, "vit_head": True,
        "vit_global_pooling": "avg" if config.pool == "avg" else "token",
        "vit_prompt": config.method in ("vpt", "vptsp"), "num_prompt": config.prompts,
        "prompt_depth": config.prompt_layers, "prompt_block_step": config.prompt_step,
        "vit_proxy_net": semantic, "proxy_mix_bias": semantic, "num_p_prompt": config.class_prompts,
        "p_prompt_depth": config.class_layers, "prompt_p_block_step": config.class_step,
        "prompt_memory_bank": semantic and config.class_optimizer == "rowwise",
        "semantic_mix_type": ACCUMULATORS.get(config.accumulator), "proxy_mix_keep_ratio": config.ema_keep,
        "rnn_dropout": config.gru_dropout, "proxy_bias_ratio": config.alpha, "proxy_data_range": "both_all",
        "loss_oproxy_pos_alpha": config.loss_scale, "loss_oproxy_neg_alpha": config.loss_scale,
        "loss_oproxy_pos_delta": config.loss_margin, "loss_oproxy_neg_delta": -config.loss_margin,
        "optim": config.optimizer, "lr": config.lr, "lr_proxy": config.lr_proxy, "decay": config.weight_decay,
        "sdg_momentum": config.momentum,
    }  # fmt: skip


@torch.no_grad()
def put_weights(ours: MetricModel, released: Any) -> None:
    """All that starts at random in our model, put into the released one; the backbone is there already."""
    vit, proxies = ours.vit, ours.proxies
    assert proxies is not None
    for head, prefix in ((vit.sample_head, ""), (vit.proxy_head, "p_")):
        if head is not None:
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


def _bare_backbone(ours: MetricModel) -> nn.Module:
    """A copy of our backbone, with what its constructor asks a timm model for."""
    trunk = copy.deepcopy(ours.vit.backbone)
    size = trunk.patch_embed.img_size
    trunk.default_cfg = trunk.pretrained_cfg = {"input_size": (3, *size)}
    return trunk


def _optimizer(config: RunConfig, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=config.momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer](groups)
