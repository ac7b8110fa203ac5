"""Named settings: the nine sets that the paper's authors released, the demo's, and newer ones.

The nine are the released configuration files. The file paper/released_presets.csv has the same values, and a test
compares the two. All nine also train the biases; the paper's tables mark this with "(B)".
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig

_S = dict(backbone="vit_small_patch16_224.augreg_in21k", embed_dim=384)
_B = dict(backbone="vit_base_patch16_224.augreg_in21k", embed_dim=512)
_ROWWISE = dict(optimizer="adamw", lr=1e-4, lr_proxy=0.05, samples_per_class=1, class_optimizer="rowwise", prompts=90)
_CARS = dict(
    dataset="cars196", optimizer="adamw", lr=5e-4, lr_proxy=0.01, weight_decay=0.0, batch=64, cosine_min=1e-6,
    prompts=80, prompt_step=2, class_prompts=50, class_layers=8, class_step=2,
)  # fmt: skip
_SOP = dict(dataset="sop", **_ROWWISE, weight_decay=1e-4, epochs=120, eval_start=30, cosine_T=120, batch=32, alpha=0.2)
_INSHOP = dict(dataset="inshop", **_ROWWISE, cosine_T=100, batch=32)

PRESETS: dict[str, dict[str, Any]] = {
    "cub200-vits16": dict(_S, dataset="cub200"),
    "cub200-vitb16": dict(
        _B, dataset="cub200", lr=1e-3, lr_proxy=0.01, epochs=60, eval_start=30, cosine_T=100, cosine_min=1e-7,
        prompts=20, class_prompts=5, class_layers=4, class_step=5, alpha=0.4,
    ),
    "cars196-vits16": dict(_S, **_CARS, epochs=50, eval_start=35, prompt_layers=11, alpha=0.7),
    "cars196-vitb16": dict(_B, **_CARS, epochs=60, eval_start=40, prompt_layers=10, alpha=0.1),
    "sop-vits16": dict(_S, **_SOP, cosine_min=5e-5, class_prompts=5, gru_dropout=0.1),
    "sop-vitb16": dict(
        _B, **_SOP, cosine_min=1e-7, prompt_step=5, class_prompts=5, class_layers=8, gru_dropout=0.5,
    ),
    "inshop-vits16": dict(
        _S, **_INSHOP, weight_decay=1e-7, epochs=80, eval_start=40, cosine_min=5e-6, class_prompts=80, alpha=0.2,
        gru_dropout=0.1,
    ),
    "inshop-vitb16": dict(
        _B, **_INSHOP, weight_decay=0.0, epochs=75, eval_start=20, cosine_min=1e-6, class_prompts=60, alpha=0.3,
    ),
    "inaturalist-vitb16": dict(
        _B, **_ROWWISE, dataset="inaturalist", weight_decay=0.0, epochs=40, eval_start=5, cosine_T=50, cosine_min=1e-6,
        batch=64, prompt_step=5, class_prompts=10, alpha=0.2,
    ),
    # For CPUs and laptops (profile "tiny"): the CUB preset with the smallest AugReg transformer.
    "cub200-vitti16": dict(
        dataset="cub200", backbone="vit_tiny_patch16_224.augreg_in21k_ft_in1k", embed_dim=192,
    ),
    # The glyphs and the small ViT of this package: seconds per run on two CPU cores, and no download. The few prompts
    # suit its 26 tokens: one prompt among 26 tokens weighs as much as eight among 197. The released loss divides the
    # pull of the positives by the number of all classes; one image per class in a batch compensates for that.
    "demo": dict(
        dataset="glyphs", backbone="demo_vit", embed_dim=96, image_size=40, resize=40, augmentation="gentle",
        prompts=2, prompt_layers=6, class_prompts=2, class_layers=6, optimizer="adamw", lr=4e-3, lr_proxy=0.05,
        weight_decay=1e-4, epochs=2, eval_start=0, cosine_T=2, cosine_min=1e-6, batch=16, samples_per_class=1,
        precision="fp32",
    ),
}  # fmt: skip
# Beyond the paper: newer backbones, with the settings of the released CUB preset of their size. The settings were not
# searched again, and no result is measured, because the weights were not available. Each backbone pools as it was
# trained ("auto": the class token), except SigLIP 2: its attention pooling would not be trained here, so it pools by
# the mean of its tokens.
_CUB_B = PRESETS["cub200-vitb16"]
PRESETS |= {
    "cub200-dinov2-vits14": dict(_S, dataset="cub200") | dict(backbone="vit_small_patch14_dinov2.lvd142m"),
    "cub200-dinov2reg-vits14": dict(_S, dataset="cub200") | dict(backbone="vit_small_patch14_reg4_dinov2.lvd142m"),
    "cub200-dinov2reg-vitb14": _CUB_B | dict(backbone="vit_base_patch14_reg4_dinov2.lvd142m"),
    "cub200-siglip2-vitb16": _CUB_B | dict(backbone="vit_base_patch16_siglip_gap_224.v2_webli"),
    "cub200-tipsv2-vitb14": _CUB_B | dict(backbone="vit_base_patch14_reg1_tipsv2.webli"),
}
# Beyond the paper, the recipe (docs/beyond.md): VPTSP-M with BitFit. Its heads and proxies start from the data
# (`vptsp_core.runs.start_from_data`), and held-out classes choose the epoch. Epoch 0, before any step, can be chosen.
RECIPE: dict[str, Any] = dict(
    method="vptsp", bitfit=True, accumulator="ema", start="proxies", selection="validation_map"
)  # fmt: skip


def recipe_rates(epochs: int) -> dict[str, Any]:
    """Return the recipe's rates and schedule: the cosine ends in the last of the ``epochs``, and each is evaluated."""
    return dict(optimizer="adamw", lr=1e-3, lr_proxy=0.05, cosine_T=epochs, eval_start=0)


PRESETS |= {
    f"{name}-recipe": PRESETS[name] | RECIPE | recipe_rates(PRESETS[name].get("epochs", RunConfig.epochs))
    for name in ("cub200-vits16", "demo")
}
PRESETS["smoke"] = dict(PRESETS["demo"], epochs=1, steps_per_epoch=3)


def preset(name: str | Path, /, **changes: Any) -> RunConfig:
    """Return the settings called ``name``, with ``changes``. A name is a key of `PRESETS`, or a .json file of settings.

    Warns of each change, and of each key in the file, that the run does not read (such as ``prompts`` with
    ``method="linear"``). The config.json of a run has every key, so only changes are warned of.
    Raises ConfigError if the name or a key is unknown, the file is unreadable, or a value is invalid.

    >>> preset("cub200-vits16").prompts
    10
    >>> preset("cub200-vits16", alpha=0.2).alpha
    0.2
    """
    name = str(name)
    if name.endswith(".json"):
        values = _from_file(name)
        if Path(name).expanduser().with_name("record.json").is_file():  # a run's own config.json: nobody chose its keys
            config = RunConfig.from_dict(values).replace(**changes)
        else:
            changes = values | changes
            config = RunConfig().replace(**changes)
    else:
        config = table_preset(name, **changes)
    config.warn_unread(changes)
    return config


def preset_or_demo(name: str | None, changes: dict[str, Any]) -> RunConfig:
    """Return `preset` of a command line's ``name`` and ``changes``; without a name, that of the demo.

    Raises ConfigError as `preset` does, and if there is no name for a data set of photographs: the demo's ViT is made
    for glyphs.
    """
    dataset = changes.get("dataset", "glyphs")
    if name is None and dataset != "glyphs":
        raise ConfigError(f"dataset={dataset}: no preset is named; give --preset, such as cub200-vits16")
    return preset(name or "demo", **changes)


def table_preset(name: str, /, **changes: Any) -> RunConfig:
    """Return the settings called ``name`` in `PRESETS`, with ``changes``, and without the warning of `preset`.

    For rows of tables, which set the same keys for all methods.
    Raises ConfigError if the name or a key is unknown, or a value is invalid.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown preset {name!r}; known: {', '.join(PRESETS)}, or a .json file")
    return RunConfig(**PRESETS[name]).replace(**changes)


def _from_file(path: str) -> dict[str, Any]:
    cure = "give a .json file of RunConfig's keys and values, such as one that tune writes"
    try:
        values = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise ConfigError(f"preset {path}: unreadable ({reason}); {cure}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"preset {path}: holds no keys and values; {cure}")
    return values


def parse_change(text: str) -> tuple[str, Any]:
    """Split ``key=value`` from a command line into a key and a value for `preset`.

    The value is read as JSON, or as Python's True, False or None. Anything else is text.
    Raises ConfigError if there is no ``=`` in it.

    >>> parse_change("alpha=0.2"), parse_change("accumulator=ema")
    (('alpha', 0.2), ('accumulator', 'ema'))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write KEY=VALUE")
    python = {"True": True, "False": False, "None": None}
    if value in python:
        return key, python[value]
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value
