"""What the table "beyond the paper" runs: {(row, set): RunConfig}, apart from the reproduction.

All rows that train have the epochs, steps and batches of the profile's preset. Nothing is chosen by test classes: every
run's epoch is that which is best on held-out training classes (``selection`` = "validation"), and so is the recipe.
"""

from __future__ import annotations

from typing import Any

from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import has_peft
from vptsp_core.method.presets import PRESETS, table_preset
from vptsp_core.method.presets import RECIPE as SETTINGS
from vptsp_core.method.presets import RECIPE_RATES as RATES
from vptsp_core.paper.methods import BEST, LORA, base_config, check_changes, method_rows

REFERENCE = f"{BEST}, as released"
RECIPE = "the recipe: VPTSP-M + BitFit, heads and proxies from the data"
RECIPES = {"demo": "demo-best", "smoke": "demo-best", "paper": "cub200-vits16-best"}
NEWER = [name for name in PRESETS if any(each in name for each in ("dinov2", "siglip2", "tips"))]


def rows(profile: str) -> dict[str, dict[str, Any]]:
    """{label: changes to `base_config`}: the paper's best row; the recipe, and what it is without each of its parts,
    training included; LoRA where peft is installed.
    """
    known = method_rows(profile)
    recipe = {**known["VPTSP-M + BitFit"], **RATES, "start": "proxies"}
    out = {
        REFERENCE: known[BEST],
        RECIPE: recipe,
        "... with a GRU": {**recipe, "accumulator": "gru"},
        "... with prompts from the data": {**recipe, "start": "all"},
        "... without proxies from the data": {**recipe, "start": "heads"},
        "... without a start from the data": {**recipe, "start": "released"},
        "... without prompts (BitFit)": {**recipe, "method": "linear"},
        "... without training": {**recipe, "method": "linear", "bitfit": False, "start": "heads", "epochs": 0},
    }
    if has_peft():
        out |= {LORA: known[LORA], f"{LORA}, as the recipe": {**known[LORA], **RATES, "start": "proxies"}}
    return out


def cells(profile: str, **changes: Any) -> dict[tuple[str, str], RunConfig]:
    """The rows as runs; in the profile paper the newer backbones too, each as its preset and by the recipe."""
    check_changes(changes)
    judged = {"selection": "validation", **changes}
    found = {}
    for label, row in rows(profile).items():
        own = {key: row[key] for key in ("epochs",) if key in row}  # a row that takes no step takes none
        found[label, "CUB"] = base_config(profile, **{**row, **judged, **own})
    if profile == "paper" and not {"backbone", "weights", "embed_dim"} & changes.keys():
        for name in NEWER:
            found[name, "CUB"] = table_preset(name, **judged)
            found[f"{name}, the recipe", "CUB"] = table_preset(name, **{**SETTINGS, **RATES, **judged})
    return found
