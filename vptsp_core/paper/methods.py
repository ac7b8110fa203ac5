"""The rows of the paper's tables as changes of a run description, for each profile.

A row's label is what tables and figures show; `paper_labels` gives the same labels to the paper's own rows, so
that the two can be joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import has_peft
from vptsp_core.method.presets import table_preset

# The preset of each profile. The paper's tables 1, 4, 5 and 7 and its figures are of CUB-200 with ViT-S/16.
BASE = {"demo": "demo", "smoke": "smoke", "tiny": "cub200-vitti16", "paper": "cub200-vits16"}

# Keys by which rows differ. A change of all runs must not set them, or two rows would be the same run.
ROW_KEYS = (
    "dataset", "method", "bitfit", "accumulator", "proxy_source", "adapter_dim", "adapter_layers", "adapter_position",
    "adapter_norm", "adapter_init", "lora_rank", "lora_alpha", "start",
)  # fmt: skip

FROZEN, FULL, BEST = "Frozen backbone", "Full fine-tuning (PA)", "VPTSP-G + BitFit"
CLOSED, LORA = "Closed form (whitened head, no training)", "LoRA (beyond the paper)"
UNTRAINED = (FROZEN, CLOSED)  # rows that take no step: rates, epochs and seeds do not matter

# Table 1, in the paper's order.
METHODS: dict[str, dict[str, Any]] = {
    FROZEN: dict(method="frozen", bitfit=False),  # ours only
    # Ours only: the head in closed form (runs.start_from_data, docs/beyond.md), without a step of training.
    CLOSED: dict(method="linear", bitfit=False, start="heads", epochs=0),
    FULL: dict(method="full", bitfit=False),
    "Linear probing": dict(method="linear", bitfit=False),
    "BitFit": dict(method="linear", bitfit=True),
    "Adapter": dict(method="adapter", bitfit=False),
    "Adapter + BitFit": dict(method="adapter", bitfit=True),
    LORA: dict(method="lora", bitfit=False),  # where peft is installed
    "VPT": dict(method="vpt", bitfit=False),
    "VPT + BitFit": dict(method="vpt", bitfit=True),
    "VPTSP-M": dict(method="vptsp", accumulator="ema", bitfit=False),
    "VPTSP-M + BitFit": dict(method="vptsp", accumulator="ema", bitfit=True),
    "VPTSP-G": dict(method="vptsp", accumulator="gru", bitfit=False),
    BEST: dict(method="vptsp", accumulator="gru", bitfit=True),
}

# Adapters, as table 1 prints them: 7 of 12 blocks without BitFit, one with it. The demo ViT has 6 blocks, 96 wide.
ADAPTERS = {
    profile: {
        "Adapter": dict(adapter_layers=layers, adapter_dim=dim),
        "Adapter + BitFit": dict(adapter_layers=1, adapter_dim=dim),
    }
    # tiny: the same blocks, and the same share of a narrower ViT
    for profile, layers, dim in (("paper", 7, 256), ("tiny", 7, 128), ("demo", 4, 64))
}

# Profile tiny: the rows that are run with every seed that is asked for.
SEEDED = (FULL, "Linear probing", "BitFit", "VPT + BitFit", "VPTSP-M + BitFit", BEST)

# Table 5: what the semantic proxies are accumulated from (`MetricModel`), beside the best row of table 1.
PROXY_SOURCES = {
    "Sample": "sample", "Encoder": "encoder", "Fixed Encoder": "fixed_encoder", "VPTSP-G": "class_prompts",
}  # fmt: skip

# Table 7: how they are accumulated (`vptsp_core.method.accumulators`).
INTEGRATIONS = {
    "LSTM": "lstm", "RNN unit": "rnn", "Cross attention (within the mini-batch)": "attention",
    "GRU with tanh": "gru_tanh", "GRU with ReLU": "gru",
}  # fmt: skip

# Each method has learning rates of its own (the paper searched for them too: table 9). A method that is not
# named keeps those of the profile's preset.
#
# paper: OURS, taken from within the search space of table 9; the paper prints only those of VPTSP-G + BitFit,
#   which are the released preset. Fewer and fresher parameters take larger steps, the whole backbone smaller ones.
# demo: by the MAP@R of held-out training classes, each row at 0.002, 0.004, 0.008 and 0.016 (full fine-tuning 0.0001,
#   0.0003 and 0.001) and further by a factor 2 while the best was at an end; a row that is not named has the preset's
#   0.004. The smoke profile uses the same.
# tiny: found by `paper.rate_search`, the same search for every row (docs/tiny.md). Rows of tables 5 and 7 are
#   named by `search_name`. A row that is not named has the preset's 0.005, whether the search chose it or has not run;
#   a rate that was found is entered together with its run of all epochs. Full fine-tuning was not searched yet: it has
#   a quarter of the preset's, as the whole backbone learns.
RATES: dict[str, dict[str, dict[str, float]]] = {
    "tiny": {FULL: dict(lr=0.00125)},
    "paper": {
        FULL: dict(lr=0.001, lr_proxy=0.1),
        "Linear probing": dict(lr=0.05, lr_proxy=0.1),
        "BitFit": dict(lr=0.005, lr_proxy=0.1),
        **dict.fromkeys(("Adapter", LORA, "VPT", "VPTSP-M", "VPTSP-G"), dict(lr=0.01, lr_proxy=0.1)),
        **dict.fromkeys(("Adapter + BitFit", "VPT + BitFit", "VPTSP-M + BitFit"), dict(lr=0.005, lr_proxy=0.1)),
    },
    "demo": {
        FULL: dict(lr=3e-4, lr_proxy=0.05),
        "Linear probing": dict(lr=0.016, lr_proxy=0.05),
        "Adapter": dict(lr=8e-3, lr_proxy=0.05),
        **dict.fromkeys(("VPT", "VPTSP-M", "VPTSP-G"), dict(lr=0.064, lr_proxy=0.05)),
    },
}


def base_config(profile: str, **changes: Any) -> RunConfig:
    """The run that a profile's tables vary, with ``changes``. Raises ConfigError for an unknown profile."""
    if profile not in BASE:
        raise ConfigError(f"profile = {profile!r} must be one of {', '.join(BASE)}")
    return table_preset(BASE[profile], **changes)


def check_changes(changes: Mapping[str, Any]) -> None:
    """Raises ConfigError for what cannot be changed for every run of a table: a key of `ROW_KEYS`, or the seed, which
    has a parameter of its own.
    """
    if "seed" in changes:
        raise ConfigError("changes (--set) hold seed; give seeds (--seeds) instead")
    if found := [key for key in ROW_KEYS if key in changes]:
        raise ConfigError(
            f"changes (--set) hold {', '.join(found)}, by which the rows of tables differ; leave it out, or train "
            "such a run by itself: python -m vptsp_core train --set"
        )


def configured(profile: str, row: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """The run of a row, with ``changes`` for every run (`check_changes`) applied last.

    A row that takes no step takes none whatever ``changes`` say of epochs.
    """
    check_changes(changes)
    untrained = {"epochs": 0} if row.get("epochs") == 0 else {}
    return base_config(profile, **{**row, **changes, **untrained})


def method_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Table 1: {label: changes to `base_config`} of every method that can be run, in the paper's order; LoRA, which is
    not the paper's, where peft is installed.

    >>> base_config("demo", **method_rows("demo")["VPT"], seed=1).method
    'vpt'
    """
    base_config(profile)
    of = _settings_of(profile)
    return {
        label: {**row, **ADAPTERS[of].get(label, {}), **RATES[of].get(label, {})}
        for label, row in METHODS.items()
        if label != LORA or has_peft()
    }


def proxy_source_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Table 5: {label: changes to `base_config`}; its last row is the run of table 1's "VPTSP-G + BitFit"."""
    return _variants(profile, 5, BEST, "proxy_source", PROXY_SOURCES)


def integration_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Table 7: {label: changes to `base_config`}; its last row is the run of table 1's "VPTSP-G", without BitFit.

    The paper does not say that table 7 is without BitFit; the last row's 86.1 and 52.1 are those of "VPTSP-G" in
    table 1, and of "VPTSP (GRU)" in table 4.
    """
    return _variants(profile, 7, "VPTSP-G", "accumulator", INTEGRATIONS)


def _variants(profile: str, number: int, label: str, key: str, values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    row, rates = method_rows(profile)[label], RATES[_settings_of(profile)]
    return {name: {**row, key: value, **rates.get(search_name(number, name), {})} for name, value in values.items()}


def search_name(number: int, label: str) -> str:
    """The name of a row of table 5 or 7 among `RATES`: their labels are not all different from table 1's."""
    return f"table {number}: {label}"


def seeds_by_row(
    profile: str, configs: Mapping[Any, RunConfig], seeds: Sequence[int], changes: Mapping[str, Any]
) -> dict[Any, Sequence[int]]:
    """The seeds that each run is made with: all of them; in the profile tiny only the runs of `SEEDED` rows have more
    than the first (docs/tiny.md).
    """
    if profile != "tiny":
        return dict.fromkeys(configs, seeds)
    rows = method_rows(profile)
    several = {configured(profile, rows[label], changes).hash() for label in SEEDED}
    return {key: seeds if config.hash() in several else seeds[:1] for key, config in configs.items()}


def _settings_of(profile: str) -> str:
    """Whose `RATES` and `ADAPTERS` a profile has."""
    return profile if profile in RATES else "demo"


def paper_labels(table: pd.DataFrame) -> pd.DataFrame:
    """``paper_table("table1_peft_methods_cub200")`` with a column ``label`` that matches `METHODS`."""
    also = table["bitfit"].eq("yes") & (table["method"] + " + BitFit").isin(METHODS)
    return table.assign(label=table["method"] + also.map({True: " + BitFit", False: ""}))
