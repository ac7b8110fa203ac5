"""The runs of the table "beyond the paper", which is not part of the reproduction.

All rows that train have the epochs, steps and batches of the profile's preset; the newer backbones, those of their own.
Test classes choose nothing. Every run reports the epoch with the best MAP@R on held-out training classes
(``selection`` = "validation_map").
"""

from __future__ import annotations

from typing import Any

from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import has_peft
from vptsp_core.method.presets import PRESETS, recipe_rates, table_preset
from vptsp_core.method.presets import RECIPE as SETTINGS
from vptsp_core.paper.methods import BEST, FULL, LORA, base_config, configured, method_rows

REFERENCE = f"{BEST}, as released"
RECIPE = "the recipe: VPTSP-M + BitFit, heads and proxies from the data"
NEWER = [name for name in PRESETS if any(each in name for each in ("dinov2", "siglip2", "tips"))]


def rows(profile: str) -> dict[str, dict[str, Any]]:
    """Return {label: changes to `base_config`}: the paper's best row, the recipe, and the recipe without each part.

    LoRA is included if peft is installed. Raises ConfigError for an unknown profile.
    """
    known = method_rows(profile)
    rates = recipe_rates(base_config(profile).epochs)
    recipe = {**known["VPTSP-M + BitFit"], **rates, "start": "proxies"}
    out = {
        REFERENCE: known[BEST],
        f"{BEST}, final head in closed form": {**known[BEST], "final_head": "closed_form"},
        RECIPE: recipe,
        "... with the final head in closed form": {**recipe, "final_head": "closed_form"},
        "... with a GRU": {**recipe, "accumulator": "gru"},
        "... with prompts from the data": {**recipe, "start": "all"},
        "... without proxies from the data": {**recipe, "start": "heads"},
        "... without a start from the data": {**recipe, "start": "released"},
        "... without prompts (BitFit)": {**recipe, "method": "linear"},
        "... without training": {**recipe, "method": "linear", "bitfit": False, "start": "heads", "epochs": 0},
        # 1e-4 was worse on the held-out classes of CUB (docs/beyond_measured.md).
        f"{FULL}, as the recipe, lr 3e-5": {**known[FULL], **rates, "start": "proxies", "lr": 3e-5},
    }
    if has_peft():
        out |= {LORA: known[LORA], f"{LORA}, as the recipe": {**known[LORA], **rates, "start": "proxies"}}
    return out


def cells(profile: str, **changes: Any) -> dict[tuple[str, str], RunConfig]:
    """Return the runs of the rows, {(row, set): run}, with ``changes`` for every run.

    In the profile paper, each newer backbone is added twice: with its preset and with the recipe. Newer backbones
    are left out if ``changes`` set ``backbone``, ``weights`` or ``embed_dim``. Raises ConfigError for an unknown
    profile and for changes that `check_changes` refuses.
    """
    judged = {"selection": "validation_map", **changes}
    configs = {(label, "CUB"): configured(profile, row, judged) for label, row in rows(profile).items()}
    if profile == "paper" and not {"backbone", "weights", "embed_dim"} & changes.keys():
        for name in NEWER:
            plain = configs[name, "CUB"] = table_preset(name, **judged)
            recipe = {**SETTINGS, **recipe_rates(plain.epochs), **judged}
            configs[f"{name}, the recipe", "CUB"] = table_preset(name, **recipe)
    return configs
