"""One run, described: a frozen, validated `RunConfig`.

An impossible value is an error before anything is loaded; it names the key and the allowed values.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import types
import typing
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vptsp_core.errors import ConfigError, WeightsError

Method = Literal["frozen", "full", "linear", "adapter", "lora", "vpt", "vptsp"]
Accumulator = Literal["gru", "gru_tanh", "ema", "rnn", "lstm", "attention"]
ProxySource = Literal["class_prompts", "sample", "encoder", "fixed_encoder"]

# Keys that only some methods read; the hash of the other methods ignores them.
_PROMPT_KEYS = ("prompts", "prompt_layers", "prompt_step")
_ADAPTER_KEYS = ("adapter_dim", "adapter_layers", "adapter_position", "adapter_norm", "adapter_init")
_LORA_KEYS = ("lora_rank", "lora_alpha")
_CLASS_PROMPT_KEYS = ("class_prompts", "class_layers", "class_step", "class_optimizer")
_SEMANTIC_KEYS = (*_CLASS_PROMPT_KEYS, "accumulator", "ema_keep", "gru_dropout", "alpha", "proxy_source")
_TRAINING_KEYS = (
    "embed_dim", "loss_scale", "loss_margin", "optimizer", "lr", "lr_proxy", "weight_decay", "momentum", "epochs",
    "eval_start", "cosine_T", "cosine_min", "steps_per_epoch", "batch", "samples_per_class", "augmentation",
    "pipeline", "selection", "start",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run's numbers (folders and devices do not, and are not here).

    The defaults are the paper's protocol for CUB with ViT-S/16; `preset` names the others. Letters in
    brackets are the paper's symbols (arXiv 2402.02340, section 3).
    Raises ConfigError: naming the key, for a wrong type, an impossible value or an impossible combination.
    """

    dataset: str = "cub200"
    backbone: str = "vit_small_patch16_224.augreg_in21k"  # full timm name, or "demo_vit"
    weights: str = "pretrained"  # "pretrained", "random", or a .safetensors / .pth file
    pool: Literal["auto", "cls", "avg"] = "auto"  # auto: what the backbone was trained with
    method: Method = "vptsp"
    bitfit: bool = True  # every bias of the backbone learns too
    semantics: Literal["released", "paper"] = "released"  # of loss, accumulators, resizing (docs/reproducing.md)
    embed_dim: int = 384  # [d]
    prompts: int = 10  # [N] a block, sample tower
    prompt_layers: int = 12  # [L] first blocks that have prompts
    prompt_step: int = 0  # block i has max(N - step * i, 0)
    adapter_dim: int = 256  # width between the projections down and up
    adapter_layers: int = 12  # how many of the LAST blocks have one
    adapter_position: Literal["parallel", "sequential"] = "parallel"  # to the MLP
    adapter_norm: Literal["before", "after"] = "after"  # LayerNorm before the projection down, or after the one up
    adapter_init: Literal["lora", "bert"] = "lora"  # lora: the projection up starts at zero
    lora_rank: int = 8  # beyond the paper (vptsp_core.method.lora)
    lora_alpha: int = 16  # scale: lora_alpha / lora_rank
    proxy_source: ProxySource = "class_prompts"  # what semantic proxies are accumulated from (table 5)
    class_prompts: int = 3  # [m] a block and class, proxy tower
    class_layers: int = 12
    class_step: int = 0
    class_optimizer: Literal["dense", "rowwise"] = "dense"  # rowwise: absent classes do not move
    accumulator: Accumulator = "gru"
    ema_keep: float = 0.8  # [lambda]
    gru_dropout: float = 0.0  # of gru and gru_tanh
    alpha: float = 0.5  # weight of the ordinary proxy O in Q
    loss_scale: float = 32.0
    loss_margin: float = 0.1
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.005
    lr_proxy: float = 0.1  # for O
    weight_decay: float = 1e-6
    momentum: float = 0.9  # SGD only
    epochs: int = 15
    eval_start: int = 5  # first epoch (from 0) that is evaluated; the last one always is
    cosine_T: int = 50  # epochs until the rate is cosine_min
    cosine_min: float = 1e-8
    steps_per_epoch: int | None = None  # None: len(train) // batch
    batch: int = 64
    samples_per_class: int = 2  # [k]
    image_size: int = 224
    resize: int = 256
    # base: the paper's; gentle: no flip, crops of 85 % and more; adv, v2, auto: the released code's, classic pipeline
    augmentation: Literal["base", "gentle", "adv", "v2", "auto"] = "base"
    # cached: from images decoded once (shorter side `resize`), augmented on the device; classic: decoded each time
    pipeline: Literal["cached", "classic"] = "cached"
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where the device has it and it pays
    # released: best epoch ON THE TEST SET; validation: best on every fifth training class, which is held out
    selection: Literal["released", "last", "validation"] = "released"
    # beyond the paper: what starts from the training images; each adds to the one before (runs.start_from_data)
    start: Literal["released", "heads", "proxies", "all"] = "released"
    seed: int = 0

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = _checked(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
        for key in (
            "embed_dim", "batch", "samples_per_class", "image_size", "resize", "cosine_T", "adapter_dim", "lora_rank",
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
        wanted = {"vpt": ("prompts", "prompt_layers"), "adapter": ("adapter_layers",)}.get(self.method, ())
        for key in ("class_prompts", "class_layers") if self.has_class_prompts else wanted:
            self._require(key, getattr(self, key) >= 1, f"must be at least 1 for method = {self.method!r}")
        if self.method in ("frozen", "full"):
            self._require("bitfit", not self.bitfit, f"must be False for method = {self.method!r}")

    def _require(self, key: str, ok: bool, rule: str) -> None:
        if not ok:
            raise ConfigError(f"{key} = {_shown(getattr(self, key))} {rule}")

    @property
    def has_class_prompts(self) -> bool:
        """Whether there is a table of class prompts."""
        return self.method == "vptsp" and self.proxy_source == "class_prompts"

    def check_depth(self, depth: int) -> None:
        """Refuse more layers than the backbone has blocks (known only once it is loaded)."""
        keys = ["prompt_layers"] if self.method in ("vpt", "vptsp") else []
        keys += ["adapter_layers"] if self.method == "adapter" else []
        keys += ["class_layers"] if self.has_class_prompts else []
        for key in keys:
            self._require(key, getattr(self, key) <= depth, f"must be at most {depth}, the blocks of {self.backbone}")

    def replace(self, /, **changes: Any) -> RunConfig:
        """A changed copy; an unknown key is refused with the nearest known ones."""
        _refuse_unknown(changes)
        return dataclasses.replace(self, **changes)

    def with_whole_path(self) -> RunConfig:
        """The same run, with the absolute path of a weights file: other working directories can read it."""
        whole = whole_path(self.weights)
        return self if whole == self.weights else self.replace(weights=whole)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RunConfig:
        """The inverse of `to_dict`. A missing key has its default: it is newer than the run.
        Raises ConfigError: naming an unknown key.
        """
        _refuse_unknown(values)
        return cls(**values)

    @classmethod
    def from_file(cls, path: Path) -> RunConfig:
        """`from_dict` of the config.json of a run.
        Raises WeightsError: unreadable, or of another version of this project.
        """
        again = "delete the folder and run it again"
        try:
            return cls.from_dict(dict(json.loads(path.read_text(encoding="utf-8"))))
        except ConfigError as error:
            raise WeightsError(f"{path}: {error} (of another version?); use that one, or {again}") from error
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise WeightsError(f"{path}: unreadable (cut short or damaged); {again}") from error

    def hash(self) -> str:
        """Twelve hex digits, the same for two descriptions that must give the same numbers.

        Keys that the method does not read are left out, so that tables share runs.
        """
        left_out = set(self.unread())
        if self.has_class_prompts:
            left_out.add("proxy_source")  # runs from before these keys existed keep their hashes
        if self.pipeline == "classic":
            left_out.add("pipeline")
        if self.start == "released":
            left_out.add("start")
        kept = {key: value for key, value in sorted(self.to_dict().items()) if key not in left_out}
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]

    def unread(self) -> dict[str, str]:
        """The keys that this run does not read, each with the key that decides.

        >>> RunConfig(method="linear").unread()["prompts"]
        'method'
        """
        keys: dict[str, str] = {}
        if self.method != "vptsp":
            keys |= dict.fromkeys(_SEMANTIC_KEYS, "method")
        else:
            keys |= {} if self.accumulator == "ema" else {"ema_keep": "accumulator"}
            keys |= {} if self.accumulator in ("gru", "gru_tanh") else {"gru_dropout": "accumulator"}
            keys |= {} if self.has_class_prompts else dict.fromkeys(_CLASS_PROMPT_KEYS, "proxy_source")
        if self.method != "adapter":
            keys |= dict.fromkeys(_ADAPTER_KEYS, "method")
        if self.method != "lora":
            keys |= dict.fromkeys(_LORA_KEYS, "method")
        if self.method not in ("vpt", "vptsp"):
            keys |= dict.fromkeys(_PROMPT_KEYS, "method")
        if self.optimizer != "sgd":
            keys["momentum"] = "optimizer"
        if self.method == "frozen":
            keys |= dict.fromkeys(_TRAINING_KEYS, "method")
        return keys

    def warn_unread(self, named: Iterable[str]) -> None:
        """Warn in one line of keys that a user set and this run does not read."""
        unread = self.unread()
        found = [key for key in named if key in unread]
        parts = []
        for decider in dict.fromkeys(unread[key] for key in found):
            keys = ", ".join(key for key in found if unread[key] == decider)
            parts.append(f"{keys} with {decider} = {getattr(self, decider)!r}")
        if parts:
            warnings.warn(f"set, but this run does not read it: {'; '.join(parts)}", stacklevel=3)


def whole_path(weights: str) -> str:
    """A value of ``weights``, absolute where it is a file."""
    if weights in ("pretrained", "random") or not weights.strip():
        return weights
    return str(Path(weights).expanduser().absolute())


def checked_changes(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes with checked types; `RunConfig` checks whether they fit together.
    Raises ConfigError: an unknown key, or a wrong type.
    """
    _refuse_unknown(changes)
    hints = typing.get_type_hints(RunConfig)
    return {key: _checked(key, value, hints[key]) for key, value in changes.items()}


def _refuse_unknown(values: dict[str, Any]) -> None:
    import difflib

    known = [field.name for field in dataclasses.fields(RunConfig)]
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or known
            raise ConfigError(f"unknown key {key!r}; did you mean {', '.join(near)}?")


def _checked(key: str, value: Any, hint: Any) -> Any:
    """``value`` as the annotated type (an int is accepted as float, a bool not as int), or a ConfigError."""
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            raise ConfigError(f"{key} = {_shown(value)} must be one of {', '.join(map(repr, allowed))}")
        return value
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    wanted = next(option for option in options if option is not type(None))
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 2**1023 else float("inf")
    if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
        raise ConfigError(f"{key} = {_shown(value)} must be of type {wanted.__name__}, not {type(value).__name__}")
    if wanted is float and not (value == value and abs(value) != float("inf")):
        raise ConfigError(f"{key} = {_shown(value)} must be a finite number")
    return value


def _shown(value: Any) -> str:
    """The value's repr, cut where it would fill the screen."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
