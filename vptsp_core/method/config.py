"""The settings of one run: `RunConfig`, frozen and validated.

An invalid value raises ConfigError before anything is loaded. The message names the key and the allowed values.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import typing
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from vptsp_core.errors import ConfigError
from vptsp_core.method.value_types import check_type, short_repr

Method = Literal["frozen", "full", "linear", "adapter", "lora", "vpt", "vptsp"]
Accumulator = Literal["gru", "gru_tanh", "ema", "rnn", "lstm", "attention"]
ProxySource = Literal["class_prompts", "sample", "encoder", "fixed_encoder"]

# Keys that only some runs read (`RunConfig.unread`).
_PROMPT_KEYS = ("prompts", "prompt_layers", "prompt_step")
_ADAPTER_KEYS = ("adapter_dim", "adapter_layers", "adapter_position", "adapter_norm", "adapter_init")
_LORA_KEYS = ("lora_rank", "lora_alpha")
_CLASS_PROMPT_KEYS = ("class_prompts", "class_layers", "class_step", "class_optimizer")
_SEMANTIC_KEYS = (*_CLASS_PROMPT_KEYS, "accumulator", "ema_keep", "gru_dropout", "alpha", "proxy_source")
_TRAINING_KEYS = (
    "embed_dim", "loss_scale", "loss_margin", "optimizer", "lr", "lr_proxy", "weight_decay", "momentum", "epochs",
    "eval_start", "cosine_T", "cosine_min", "steps_per_epoch", "batch", "samples_per_class", "augmentation",
    "pipeline", "selection", "start", "final_head",
)  # fmt: skip
# Keys that are newer than finished runs, with the value that those runs used.
_BEFORE = {"pipeline": "classic", "start": "released", "final_head": "trained", "proxy_source": "class_prompts"}


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """The settings of one run: all that decides its numbers, except for the device if ``precision`` is ``"auto"``.

    The defaults are the released settings for CUB-200 with a ViT-S/16; `preset` has those of other data sets. Letters
    in square brackets are the paper's symbols (arXiv 2402.02340, section 3).
    Raises ConfigError if a value has the wrong type, is out of range, or does not fit the other values.
    """

    # data and backbone
    dataset: str = "cub200"
    backbone: str = "vit_small_patch16_224.augreg_in21k"  # full timm name, or "demo_vit"
    weights: str = "pretrained"  # "pretrained", "random", or the path of a file of weights
    pool: Literal["auto", "cls", "avg"] = "auto"  # how tokens become one vector; auto: as in the backbone's training
    # method
    method: Method = "vptsp"  # decides what learns: see `MetricModel`
    bitfit: bool = True  # also train every bias of the backbone
    semantics: Literal["released", "paper"] = "released"  # form of loss, accumulators and interpolation
    embed_dim: int = 384  # [d] width of embeddings and proxies
    prompts: int = 10  # [N] prompts per block of the sample tower
    prompt_layers: int = 12  # [L] how many blocks have prompts, counted from the first
    prompt_step: int = 0  # block i, counted from 0, has max(N - step * i, 0) prompts
    adapter_dim: int = 256  # width between an adapter's two projections
    adapter_layers: int = 12  # how many blocks have an adapter, counted from the last
    adapter_position: Literal["parallel", "sequential"] = "parallel"  # an adapter reads the MLP's input, or its output
    adapter_norm: Literal["before", "after"] = "after"  # LayerNorm before the first projection or after the second
    adapter_init: Literal["lora", "bert"] = "lora"  # see `Adapter`
    lora_rank: int = 8  # method lora is not in the paper (`vptsp_core.method.lora`)
    lora_alpha: int = 16  # LoRA's product is scaled by lora_alpha / lora_rank
    # semantic proxies
    proxy_source: ProxySource = "class_prompts"  # which class embeddings the proxies accumulate (table 5)
    class_prompts: int = 3  # [m] prompts per class and block of the proxy tower
    class_layers: int = 12  # like prompt_layers, for the proxy tower
    class_step: int = 0  # like prompt_step, for the proxy tower
    class_optimizer: Literal["dense", "rowwise"] = "dense"  # rowwise: prompts of absent classes do not move
    accumulator: Accumulator = "gru"
    ema_keep: float = 0.8  # [lambda] for accumulator ema
    gru_dropout: float = 0.0  # for accumulators gru and gru_tanh
    alpha: float = 0.5  # [alpha] weight of the ordinary proxy O in the output proxy Q
    # loss and optimisers
    loss_scale: float = 32.0
    loss_margin: float = 0.1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.005  # for everything but O
    lr_proxy: float = 0.1  # for O
    weight_decay: float = 1e-6
    momentum: float = 0.9  # SGD only
    # schedule
    epochs: int = 15
    eval_start: int = 5  # the first epoch, counted from 0, that is evaluated; the last epoch always is
    cosine_T: int = 50  # epochs in which the learning rate falls to cosine_min; in later ones it rises again
    cosine_min: float = 1e-8
    steps_per_epoch: int | None = None  # None: training images // batch
    # batches and images
    batch: int = 64  # images per step
    samples_per_class: int = 2  # [k] images per class in a batch
    image_size: int = 224  # side in pixels
    resize: int = 256  # shorter side in pixels before a test image is cropped to image_size
    # base: the paper's. gentle: no flip, and crops of at least 85 % of the area. adv, v2, auto: other augmentations of
    # the released code, only with the classic pipeline.
    augmentation: Literal["base", "gentle", "adv", "v2", "auto"] = "base"
    # cached: images are decoded once, to shorter side `resize`, and augmented on the device. classic: they are decoded
    # and augmented on the CPU in every epoch.
    pipeline: Literal["cached", "classic"] = "cached"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 if the device computes faster with it
    # released: the best epoch ON THE TEST SET. validation: the best R@1 on every fifth training class, which is held
    # out. validation_map: the best MAP@R on these classes, for data whose R@1 is near 100 %.
    selection: Literal["released", "last", "validation", "validation_map"] = "released"
    # Beyond the paper: which parts start from the training images. Each value includes the one before it
    # (`vptsp_core.runs.start_from_data`).
    start: Literal["released", "heads", "proxies", "all"] = "released"
    # Beyond the paper: closed_form replaces the trained head in evaluations and in the result
    # (`vptsp_core.runs.closed_form`).
    final_head: Literal["trained", "closed_form"] = "trained"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = check_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        for key in (
            "embed_dim", "samples_per_class", "batch", "image_size", "resize", "cosine_T", "adapter_dim", "lora_rank",
            "lora_alpha",
        ):  # fmt: skip
            self._require(key, getattr(self, key) >= 1, "must be at least 1")
        for key in (
            "prompts", "prompt_layers", "prompt_step", "adapter_layers", "class_prompts", "class_layers", "class_step",
            "epochs", "eval_start", "seed", "lr", "lr_proxy", "weight_decay", "cosine_min", "loss_margin",
        ):  # fmt: skip
            self._require(key, getattr(self, key) >= 0, "must not be negative")
        self._require("seed", self.seed < 2**63, "must be below 2 ** 63")
        for key in ("alpha", "ema_keep"):
            self._require(key, 0 <= getattr(self, key) <= 1, "must be in [0, 1]")
        for key in ("gru_dropout", "momentum"):
            self._require(key, 0 <= getattr(self, key) < 1, "must be in [0, 1)")
        self._require("loss_scale", self.loss_scale > 0, "must be positive")
        self._require("batch", self.batch % self.samples_per_class == 0,
                      f"must be a multiple of samples_per_class = {self.samples_per_class}")  # fmt: skip
        self._require("resize", self.resize >= self.image_size, f"must be at least image_size = {self.image_size}")
        self._require("steps_per_epoch", self.steps_per_epoch is None or self.steps_per_epoch >= 1,
                      "must be at least 1, or None for a whole epoch")  # fmt: skip
        self._require("augmentation", self.augmentation in ("base", "gentle") or self.pipeline == "classic",
                      "is made on the CPU only: set pipeline=classic too")  # fmt: skip
        needed = {"vpt": ("prompts", "prompt_layers"), "adapter": ("adapter_layers",)}.get(self.method, ())
        if self.has_class_prompts:
            needed = ("class_prompts", "class_layers")
        for key in needed:
            self._require(key, getattr(self, key) >= 1, f"must be at least 1 for method = {self.method!r}")
        if self.method in ("frozen", "full"):
            self._require("bitfit", not self.bitfit, f"must be False for method = {self.method!r}")

    def _require(self, key: str, ok: bool, rule: str) -> None:
        if not ok:
            raise ConfigError(f"{key} = {short_repr(getattr(self, key))} {rule}")

    @property
    def holds_out(self) -> bool:
        """Whether held-out training classes choose the epoch."""
        return self.selection.startswith("validation")

    @property
    def has_class_prompts(self) -> bool:
        """Whether the run learns prompts for every class, and so has a proxy tower."""
        return self.method == "vptsp" and self.proxy_source == "class_prompts"

    def check_backbone(self, depth: int, width: int) -> None:
        """Check the run against the loaded backbone: ``depth`` blocks with tokens of ``width``.
        Raises ConfigError if the run needs prompts or adapters in more blocks than the backbone has, or if
        ``embed_dim`` is larger than ``width`` for a head in closed form.
        """
        unread = self.unread()
        for key in ("prompt_layers", "class_layers", "adapter_layers"):
            fits = key in unread or getattr(self, key) <= depth
            self._require(key, fits, f"must be at most {depth}, the blocks of {self.backbone}")
        for key, plain in {"start": "released", "final_head": "trained"}.items():
            if key not in unread and getattr(self, key) != plain:
                self._require("embed_dim", self.embed_dim <= width, f"must be at most {width}, the width of "
                              f"{self.backbone}, for {key} = {getattr(self, key)!r}")  # fmt: skip

    def replace(self, /, **changes: Any) -> RunConfig:
        """Return a copy with ``changes``.
        Raises ConfigError if a key is unknown (the message has similar keys), or a value is invalid.
        """
        _refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Return all settings as plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """Return the run that `to_dict` described. A missing key gets the value of runs that are older than the key
        (`_BEFORE`), or else its default.
        Raises ConfigError if a key is unknown, or a value is invalid.
        """
        _refuse_unknown(values)
        return cls(**{**_BEFORE, **values})

    def hash(self) -> str:
        """Return twelve hex digits. Two configs with the same digits give the same numbers, if their files of weights
        have the same content and ``precision="auto"`` finds the same precision.

        Keys that the run does not read are left out, so that tables share runs. Some keys are newer than finished runs.
        Such a key is left out if it has the value that those runs used (`_BEFORE`), so that their hashes stay the same.
        """
        left_out = {*self.unread(), *(key for key, value in _BEFORE.items() if getattr(self, key) == value)}
        kept = {key: value for key, value in self.to_dict().items() if key not in left_out}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def unread(self) -> dict[str, str]:
        """Return the keys that this run does not read, each with the key that decides so.

        >>> RunConfig(method="linear").unread()["prompts"]
        'method'
        """
        rules = [  # (keys, the key that decides, whether they are read); a later rule overrides an earlier one
            (("momentum",), "optimizer", self.optimizer == "sgd"),
            (("ema_keep",), "accumulator", self.accumulator == "ema"),
            (("gru_dropout",), "accumulator", self.accumulator in ("gru", "gru_tanh")),
            (_CLASS_PROMPT_KEYS, "proxy_source", self.proxy_source == "class_prompts"),
            (_SEMANTIC_KEYS, "method", self.method == "vptsp"),
            (_PROMPT_KEYS, "method", self.method in ("vpt", "vptsp")),
            (_ADAPTER_KEYS, "method", self.method == "adapter"),
            (_LORA_KEYS, "method", self.method == "lora"),
            (_TRAINING_KEYS, "method", self.method != "frozen"),
        ]
        return {key: decider for keys, decider, read in rules if not read for key in keys}

    def warn_unread(self, named: Iterable[str]) -> None:
        """Warn, in one line, of the keys in ``named`` that this run does not read."""
        unread = self.unread()
        by_decider: dict[str, list[str]] = {}
        for key in named:
            if key in unread:
                by_decider.setdefault(unread[key], []).append(key)
        if by_decider:
            parts = [f"{', '.join(keys)} with {one} = {getattr(self, one)!r}" for one, keys in by_decider.items()]
            warnings.warn(f"set, but this run does not read {'; '.join(parts)}", stacklevel=3)


def checked_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """Return ``changes`` with values of the right types. `RunConfig` checks whether they fit together.
    Raises ConfigError if a key is unknown, or a value has the wrong type.
    """
    _refuse_unknown(changes)
    hints = typing.get_type_hints(RunConfig)
    return {key: check_type(key, value, hints[key]) for key, value in changes.items()}


def _refuse_unknown(values: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(RunConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3)
            hint = f"did you mean {', '.join(near)}?" if near else f"the keys are {', '.join(known)}"
            raise ConfigError(f"unknown key {key!r}; {hint}")
