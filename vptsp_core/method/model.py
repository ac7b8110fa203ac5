"""The model of a run; its tunable parameters are marked, counted and saved."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from vptsp_core.method.accumulators import make_accumulator
from vptsp_core.method.adapters import Adapter
from vptsp_core.method.class_prompts import ClassPrompts
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import add_lora, is_lora
from vptsp_core.method.losses import proxy_anchor
from vptsp_core.method.proxies import SemanticProxies
from vptsp_core.method.vit import PromptedViT, prompt_counts


class Group(Protocol):
    """The processes that train a model together, each with its share of every batch. What stands here is that of one
    process, which holds the whole batch; for many: `vptsp_core.system.distributed.Processes`.
    """

    def share(self, rows: Tensor) -> Tensor:
        """This process's share of a batch's rows: (B, ...) -> (b, ...)."""
        return rows

    def gather(self, rows: Tensor) -> Tensor:
        """The rows of all processes, with their gradients: (b, d) -> (B, d)."""
        return rows

    def sum_gradients(self, partial: Iterable[Tensor], whole: Iterable[Tensor]) -> None:
        """Give every process the gradients of the batch: sum those of ``partial`` over the processes; those of
        ``whole`` are complete already.
        """
        return  # of one process all are


class OneProcess(Group):
    """A group of one."""


class MetricModel(nn.Module):
    """A backbone with everything that learns beside it, for one of the methods of table 1.

    ========  =================================================================================
    method    learns
    ========  =================================================================================
    frozen    nothing: the backbone's own pooled features
    linear    head and proxies O
    adapter   also the adapters of the last blocks (`vptsp_core.method.adapters`)
    lora      also LoRA's factors of every block's QKV projection (`vptsp_core.method.lora`); not in the paper
    vpt       head, proxies O and the prompts of the sample tower
    vptsp     also the proxy tower: class prompts, its head, the accumulator; proxies are Q
    full      head, proxies O and every parameter of the backbone
    ========  =================================================================================

    ``bitfit`` adds every bias of the backbone (Ben Zaken et al., ACL 2022) to all but frozen and full.

    Table 5 gives vptsp other class embeddings p to accumulate (``proxy_source``). Neither the paper nor the
    released code says how they are made; ours, with z the pooled tokens of the sample tower:

    =============  ============================================================================
    class_prompts  p = proxy head of a second tower with the prompts of the class: the method
    sample         p = the sample embeddings: no second tower, no second head
    encoder        p = proxy head of z: a tower with the sample tower's prompts gives z again
    fixed_encoder  as encoder, with z detached: only the proxy head learns from p
    =============  ============================================================================

    Args:
        config: the run.
        backbone: from `load_backbone(config.backbone, ...)`; it is changed in place (what learns is marked).
        num_classes: C, classes of the training set.
        group: the processes that share the batch; None: one process.

    Raises:
        ConfigError: more prompt layers than blocks, or a pooling that the backbone does not have.
        VptspError: lora without peft installed.
    """

    def __init__(
        self, config: RunConfig, backbone: VisionTransformer, num_classes: int, group: Group | None = None
    ) -> None:
        super().__init__()
        config.check_depth(len(backbone.blocks))
        self.config, self.group = config, group or OneProcess()
        semantic, frozen, own = config.method == "vptsp", config.method == "frozen", config.has_class_prompts
        prompted = config.method in ("vpt", "vptsp")
        counts = prompt_counts(config.prompts, config.prompt_layers, config.prompt_step) if prompted else []
        class_counts = prompt_counts(config.class_prompts, config.class_layers, config.class_step)
        self.vit = PromptedViT(
            backbone,
            None if frozen else config.embed_dim,
            prompts=counts,
            class_prompts=class_counts if own else None,
            adapters=_adapters(config, backbone.embed_dim) if config.method == "adapter" else (),
            proxy_head=semantic and config.proxy_source != "sample",
            pool=config.pool,
        )
        self.class_prompts = self.proxies = None
        if own:
            self.class_prompts = ClassPrompts(
                (num_classes, len(class_counts), config.class_prompts, backbone.embed_dim),
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
        """Embeddings for retrieval, sample tower only: (B, 3, H, W) -> (B, d) float32, L2-normalised."""
        return self.vit(images)[0]

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Training loss of one batch; it also updates P.

        Several processes embed a share of the images each, and all of them compute the loss of the whole batch.

        Args:
            images: (b, 3, H, W), normalised: this process's share of whole classes, all B where there is one
                process; the k images of a class next to each other.
            labels: (B,) int64 of the whole batch, each class in one run of k.
        """
        assert self.proxies is not None
        classes = labels[:: self.config.samples_per_class] if self.config.method == "vptsp" else None
        embeddings, p = self.towers(images, classes)
        embeddings, p = self.group.gather(embeddings), None if p is None else self.group.gather(p)
        return proxy_anchor(
            embeddings, self.proxies(p, classes), labels,
            scale=self.config.loss_scale, margin=self.config.loss_margin, semantics=self.config.semantics,
        )  # fmt: skip

    def towers(self, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Sample and class embeddings of this process's images (see `loss`): (b, d) and, for vptsp, (b, d),
        L2-normalised. ``classes`` (C',) are those of the whole batch; only vptsp reads them.
        """
        if self.class_prompts is not None:
            return self.vit(images, self.group.share(self.class_prompts(classes)))
        return self.vit(images, source=self.config.proxy_source if self.config.method == "vptsp" else None)

    def sum_gradients(self) -> None:
        """After backward: turn each process's gradients into the batch's.

        The towers saw only a process's own images; O and the accumulator saw the whole batch everywhere.
        """
        towers = [p for name, p in self.named_parameters() if not name.startswith("proxies.")]
        self.group.sum_gradients(towers, [] if self.proxies is None else self.proxies.parameters())

    def learned_state(self, *, for_retrieval: bool = False) -> dict[str, Tensor]:
        """What the run has learned, by name: all of it, or only what embedding images and plotting proxies need.

        It never holds the frozen part of the backbone.
        """
        frozen = {f"vit.backbone.{name}" for name, p in self.vit.backbone.named_parameters() if not p.requires_grad}
        frozen |= {f"vit.backbone.{name}" for name, _ in self.vit.backbone.named_buffers()}
        state = {name: value for name, value in self.state_dict().items() if name not in frozen}
        if for_retrieval:
            dropped = ("class_prompts.", "vit.proxy_head.", "proxies.accumulator.", "proxies.cell")
            state = {name: value for name, value in state.items() if not name.startswith(dropped)}
        return state


def _adapters(config: RunConfig, width: int) -> list[Adapter]:
    options: dict[str, Any] = dict(position=config.adapter_position, norm=config.adapter_norm, init=config.adapter_init)
    return [Adapter(width, config.adapter_dim, **options) for _ in range(config.adapter_layers)]


def make_optimizers(model: MetricModel) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
    """Two optimisers of one kind: everything but O at ``lr``, O at ``lr_proxy`` (docs/reproducing.md).

    On a GPU each step is one fused kernel, so the model must be there already. Not with fp16: if the first gradients
    overflow, torch's fused SGD starts its momentum from uninitialised memory.
    """
    assert model.proxies is not None
    config = model.config
    ordinary_proxies = model.proxies.bias  # O
    others = [p for p in model.parameters() if p.requires_grad and p is not ordinary_proxies]
    fused = ordinary_proxies.device.type == "cuda" and config.precision != "fp16"
    options: dict[str, Any] = dict(weight_decay=config.weight_decay, fused=fused)
    if config.optimizer == "sgd":
        options["momentum"] = config.momentum
    kind = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(others, lr=config.lr, **options), kind([ordinary_proxies], lr=config.lr_proxy, **options)


def count_parameters(model: MetricModel) -> dict[str, int]:
    """Tunable parameters, counted twice.

    Returns:
        ``tunable``: all that learns, the class prompts of all classes included. ``tunable released``: as the paper's
        table 1 counts them: class prompts of one batch only and, with BitFit, the bias of the pretrained classifier,
        which nothing uses. ``total``: the backbone and all that was added.
    """
    unused = "vit.backbone.attn_pool."  # its own pooling, if `pool` names another
    tunable = sum(p.numel() for name, p in model.named_parameters() if p.requires_grad and not name.startswith(unused))
    released, total = tunable, sum(p.numel() for p in model.parameters())
    if model.class_prompts is not None:
        prompts = model.class_prompts.table
        per_class, of_batch = prompts[0].numel(), model.config.batch // model.config.samples_per_class
        if model.class_prompts.rowwise:  # one batch's rows are parameters, the whole table learns
            tunable += prompts.numel() - of_batch * per_class
            total += prompts.numel() - of_batch * per_class
        else:
            released -= prompts.numel() - of_batch * per_class
    if model.config.bitfit:
        released += int((getattr(model.vit.backbone, "pretrained_cfg", None) or {}).get("num_classes") or 0)
    return {"tunable": tunable, "tunable released": released, "total": total}
