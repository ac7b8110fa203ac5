"""The model of a run: all parts together, its optimisers, and which of its parameters learn."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vptsp_core.method.accumulators import make_accumulator
from vptsp_core.method.adapters import Adapter
from vptsp_core.method.class_prompts import ClassPrompts, table_shape
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import add_lora, is_lora
from vptsp_core.method.losses import proxy_anchor
from vptsp_core.method.proxies import SemanticProxies
from vptsp_core.method.vit import PromptedViT, prompt_counts


class Group(Protocol):
    """The processes that train a model together, each with its share of every batch.

    The methods below are those of one process, which has the whole batch (`OneProcess`).
    `vptsp_core.system.distributed.Processes` has the methods of many processes.
    """

    def share(self, rows: Tensor) -> Tensor:
        """Return this process's share of a batch's rows: (B, ...) -> (b, ...)."""
        return rows

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes, with their gradients: (b, d) -> (B, d)."""
        return rows

    def sum_gradients(self, partial: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
        """Give every process the gradients of the whole batch.

        Args:
            partial: parameters, of any shape, whose gradients come from a share of the batch: they are summed.
            whole: parameters whose gradients already come from the whole batch.
        """
        return  # one process has all gradients already


class OneProcess(Group):
    """A group of one process."""


class MetricModel(nn.Module):
    """A backbone with everything that learns, for one of the methods of table 1.

    ========  ==================================================================================
    method    what learns
    ========  ==================================================================================
    frozen    nothing; embeddings are the pooled tokens of the backbone
    linear    the head and the proxies O
    adapter   as linear, and the adapters of the last blocks (`vptsp_core.method.adapters`)
    lora      as linear, and LoRA in every block (`vptsp_core.method.lora`); not in the paper
    vpt       as linear, and the prompts of the sample tower
    vptsp     as vpt, and the class prompts, the head of the proxy tower, and the accumulator
    full      as linear, and every parameter of the backbone
    ========  ==================================================================================

    With ``bitfit``, every bias of the backbone learns too (Ben Zaken et al., "BitFit", ACL 2022).

    Table 5 compares VPTSP's class embeddings p with others for the accumulator (``proxy_source``). "encoder" is the
    released code's (options ``simple_proxies`` and ``simple_proxies_vpt``). The paper and that code do not say how
    "sample" and "fixed_encoder" are computed. In these forms, z are the pooled tokens of the sample tower:

    =============  ===============================================================================
    proxy_source   p
    =============  ===============================================================================
    class_prompts  the head of the proxy tower, which has the prompts of the image's class: VPTSP
    sample         the sample embedding; there is no second tower and no second head
    encoder        a second head on z; a second tower with the same prompts would give z again
    fixed_encoder  as encoder, but no gradient passes from p to z
    =============  ===============================================================================

    Args:
        config: the settings of the run.
        backbone: from `load_backbone`. It is changed in place: LoRA is added, and the parameters that learn are marked.
        num_classes: C, the number of classes in the training set.
        group: the processes that share a batch; None for one process.

    Raises:
        ConfigError: config and backbone do not fit (`RunConfig.check_backbone`), or the backbone cannot pool this way.
        VptspError: the method is lora, and peft is not installed.
    """

    def __init__(
        self, config: RunConfig, backbone: VisionTransformer, num_classes: int, group: Group | None = None
    ) -> None:
        super().__init__()
        config.check_backbone(len(backbone.blocks), backbone.embed_dim)
        self.config, self.group = config, group or OneProcess()
        semantic, frozen = config.method == "vptsp", config.method == "frozen"
        counts: list[int] = []
        class_counts: list[int] | None = None
        if config.method in ("vpt", "vptsp"):
            counts = prompt_counts(config.prompts, config.prompt_layers, config.prompt_step)
        if config.has_class_prompts:
            class_counts = prompt_counts(config.class_prompts, config.class_layers, config.class_step)
        self.vit = PromptedViT(
            backbone,
            None if frozen else config.embed_dim,
            prompt_counts=counts,
            class_prompt_counts=class_counts,
            adapters=_make_adapters(config, backbone.embed_dim) if config.method == "adapter" else (),
            proxy_head=semantic and config.proxy_source != "sample",
            pool=config.pool,
        )
        self.class_prompts = self.proxies = None
        if class_counts is not None:
            self.class_prompts = ClassPrompts(
                table_shape(config, num_classes, backbone.embed_dim),
                rowwise=config.class_optimizer == "rowwise",
                batch_classes=config.batch // config.samples_per_class,
                optimizer=config.optimizer,
            )
        if not frozen:
            self.proxies = SemanticProxies(
                num_classes,
                config.embed_dim,
                accumulator=make_accumulator(config) if semantic else None,
                alpha=config.alpha,
            )
        if config.method == "lora":
            add_lora(backbone, config.lora_rank, config.lora_alpha)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(config.method == "full" or (config.bitfit and "bias" in name) or is_lora(name))

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings for retrieval, from the sample tower: (B, 3, H, W) -> (B, d) float32, L2-normalised."""
        return self.vit(images)[0]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the training loss of one batch, a scalar. For vptsp, also update the proxies P. Frozen has no loss.

        If there are several processes, each embeds its share of the images. All compute the loss of the whole batch.

        Args:
            images: (b, 3, H, W), normalised: the images of this process's classes; all B of them if there is one
                process. The k images of a class are next to each other.
            labels: (B,) int64, the classes of the whole batch in the same order.
        """
        classes = labels[:: self.config.samples_per_class] if self.config.method == "vptsp" else None
        embeddings, p = self.towers(images, classes)
        p = None if p is None else self.group.gather(p)
        return self.loss_of_embeddings(self.group.gather(embeddings), p, labels, classes)

    def loss_of_embeddings(
        self, embeddings: Tensor, p: Tensor | None, labels: Tensor, classes: Tensor | None
    ) -> Tensor:  # fmt: skip
        """Update the proxies P, and return the loss of the whole batch, a scalar. Override this for another loss.

        ``embeddings`` and ``p`` (B, d) are those of `towers`, of all processes. ``labels`` (B,) are those of `loss`,
        and ``classes`` (C',) the same classes once each. Without semantic proxies, ``p`` and ``classes`` are None.
        """
        assert self.proxies is not None, "method frozen has no loss"
        return proxy_anchor(
            embeddings, self.proxies(p, classes), labels,
            scale=self.config.loss_scale, margin=self.config.loss_margin, semantics=self.config.semantics,
        )  # fmt: skip

    def towers(self, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the sample embeddings (b, d) and, for vptsp, the class embeddings (b, d), both L2-normalised.

        ``images`` (b, 3, H, W) are those of `loss`. ``classes`` (C',) are the classes of the whole batch, for vptsp.
        """
        if self.class_prompts is not None:
            return self.vit(images, self.group.share(self.class_prompts(classes)))
        return self.vit(images, source=self.config.proxy_source if self.config.method == "vptsp" else None)

    def sum_gradients(self) -> None:
        """Give every process the gradients of the whole batch; call it after the backward pass.

        The towers of a process saw only its share of the images. O and the accumulator saw the whole batch.
        """
        towers = [p for name, p in self.named_parameters() if not name.startswith("proxies.")]
        self.group.sum_gradients(towers, [] if self.proxies is None else self.proxies.parameters())

    def learned_state(self, *, for_retrieval: bool = False) -> dict[str, Tensor]:
        """Return what the run has learned, of any shape, by name: the state dict without the frozen backbone.

        If ``for_retrieval``, return only what is needed to embed images and to plot proxies.
        """
        frozen = {f"vit.backbone.{name}" for name, p in self.vit.backbone.named_parameters() if not p.requires_grad}
        frozen |= {f"vit.backbone.{name}" for name, _ in self.vit.backbone.named_buffers()}
        state = {name: value for name, value in self.state_dict().items() if name not in frozen}
        if for_retrieval:
            dropped = ("class_prompts.", "vit.proxy_head.", "proxies.accumulator.", "proxies.cell")
            state = {name: value for name, value in state.items() if not name.startswith(dropped)}
        return state


def _make_adapters(config: RunConfig, width: int) -> list[Adapter]:
    options: dict[str, Any] = dict(position=config.adapter_position, norm=config.adapter_norm, init=config.adapter_init)
    return [Adapter(width, config.adapter_dim, **options) for _ in range(config.adapter_layers)]


def make_optimizers(model: MetricModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Make two optimisers of the same kind: one for everything but O, at ``lr``, and one for O, at ``lr_proxy``.

    On an NVIDIA GPU they are fused, so the model must already be there. With fp16 they are not fused: if the first
    gradients overflow, torch's fused SGD starts its momentum from uninitialised memory.
    """
    assert model.proxies is not None
    config = model.config
    ordinary_proxies = model.proxies.bias  # O
    others = [p for p in model.parameters() if p.requires_grad and p is not ordinary_proxies]
    fused = True if ordinary_proxies.device.type == "cuda" and config.precision != "fp16" else None
    options: dict[str, Any] = dict(weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "sgd":
        options["momentum"] = config.momentum
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(others, lr=config.lr, **options), kind([ordinary_proxies], lr=config.lr_proxy, **options)


def count_parameters(model: MetricModel) -> dict[str, int]:
    """Count the parameters of a model in three ways.

    Returns:
        ``tunable``: the numbers that learn, with the class prompts of all classes. 0 if there is no epoch of training.
        ``tunable released``: the same, counted nearly as in table 1 of the paper: with only the class prompts of one
        batch (the paper's numbers fit 16 classes, the preset's batch has 32). With BitFit it includes the bias of the
        pretrained classifier, which is not used; full fine-tuning lacks that classifier's weights.
        ``total``: the numbers in the backbone and in everything added to it.
    """
    unused = "vit.backbone.attn_pool."  # the backbone's own pooling, if the config chooses another
    total = sum(p.numel() for p in model.parameters())
    if model.config.epochs == 0:
        return {"tunable": 0, "tunable released": 0, "total": total}
    tunable = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not name.startswith(unused))
    released = tunable
    if model.class_prompts is not None:
        table, batch_classes = model.class_prompts.table, model.config.batch // model.config.samples_per_class
        outside = (len(table) - batch_classes) * table[0].numel()  # prompts of classes that are not in a batch
        if model.class_prompts.rowwise:  # only the rows of one batch are parameters, but the whole table learns
            tunable, total = tunable + outside, total + outside
        else:
            released -= outside
    if model.config.bitfit:
        released += int((getattr(model.vit.backbone, "pretrained_cfg", None) or {}).get("num_classes") or 0)
    return {"tunable": tunable, "tunable released": released, "total": total}
