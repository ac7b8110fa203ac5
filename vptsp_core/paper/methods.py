"""The rows of tables 1, 5 and 7 for each profile, as changes of a config; `tables` makes runs of them.

Tables and figures show a row's label. `paper_labels` gives the same labels to the paper's rows, so that both can be
joined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from vptsp_core.data.catalog import CATALOG
from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import has_peft
from vptsp_core.method.presets import table_preset

# The preset of each profile. In the paper, tables 1, 4, 5 and 7 and the figures use CUB-200 and ViT-S/16; tables 4
# and 5 and figure 3 also Cars196.
BASE = {"demo": "demo", "smoke": "smoke", "tiny": "cub200-vitti16", "paper": "cub200-vits16"}

# Keys by which rows differ. ``changes`` of all runs must not set them, because two rows could become the same run.
ROW_KEYS = (
    "dataset", "method", "bitfit", "accumulator", "proxy_source", "adapter_dim", "adapter_layers", "adapter_position",
    "adapter_norm", "adapter_init", "lora_rank", "lora_alpha", "start", "final_head",
)  # fmt: skip

FROZEN, FULL, BEST = "Frozen backbone", "Full fine-tuning (PA)", "VPTSP-G + BitFit"
CLOSED, LORA = "Closed form (whitened head, no training)", "LoRA (beyond the paper)"
UNTRAINED = (FROZEN, CLOSED)  # rows without training: rates, epochs and seeds do not matter

TRAIN_CLASSES = {"glyphs": 100, **{name: known.counts["train"][0] for name, known in CATALOG.items()}}

# Table 1, in the paper's order.
METHODS: dict[str, dict[str, Any]] = {
    FROZEN: dict(method="frozen", bitfit=False),  # ours, not in the paper
    # Ours, not in the paper: the head in closed form (runs.closed_form, docs/beyond.md), without training.
    CLOSED: dict(method="linear", bitfit=False, start="heads", epochs=0),
    FULL: dict(method="full", bitfit=False),
    "Linear probing": dict(method="linear", bitfit=False),
    "BitFit": dict(method="linear", bitfit=True),
    "Adapter": dict(method="adapter", bitfit=False),
    "Adapter + BitFit": dict(method="adapter", bitfit=True),
    LORA: dict(method="lora", bitfit=False),  # if peft is installed
    "VPT": dict(method="vpt", bitfit=False),
    "VPT + BitFit": dict(method="vpt", bitfit=True),
    "VPTSP-M": dict(method="vptsp", accumulator="ema", bitfit=False),
    "VPTSP-M + BitFit": dict(method="vptsp", accumulator="ema", bitfit=True),
    "VPTSP-G": dict(method="vptsp", accumulator="gru", bitfit=False),
    BEST: dict(method="vptsp", accumulator="gru", bitfit=True),
}

# The adapters that table 1 prints: in 7 of 12 blocks without BitFit, in one with it. Their width is 2/3 of the ViT's
# in every profile. The demo ViT has 6 blocks of width 96. The ViT of the profile tiny has 12 of width 192.
ADAPTERS = {
    profile: {
        "Adapter": dict(adapter_layers=layers, adapter_dim=dim),
        "Adapter + BitFit": dict(adapter_layers=1, adapter_dim=dim),
    }
    for profile, layers, dim in (("paper", 7, 256), ("tiny", 7, 128), ("demo", 4, 64), ("smoke", 4, 64))
}

# Profile tiny: the number of seeds of each row. All other rows have one.
SEEDED = {**dict.fromkeys((FULL, "Linear probing", "BitFit", "VPT + BitFit", "VPTSP-M + BitFit"), 3), BEST: 5}

# Table 5: the source of the semantic proxies (`MetricModel`), otherwise as in the best row of table 1.
PROXY_SOURCES = {
    "Sample": "sample", "Encoder": "encoder", "Fixed Encoder": "fixed_encoder", "VPTSP-G": "class_prompts",
}  # fmt: skip

# Table 7: how semantic proxies are accumulated (`vptsp_core.method.accumulators`).
INTEGRATIONS = {
    "LSTM": "lstm", "RNN unit": "rnn", "Cross attention (within the mini-batch)": "attention",
    "GRU with tanh": "gru_tanh", "GRU with ReLU": "gru",
}  # fmt: skip

# Learning rates by row, because the paper searched for them too (table 9). A row that is missing here has the rates of
# the profile's preset.
#
# paper: OUR choice within the search space of table 9. The paper prints only the rates of VPTSP-G + BitFit, which are
#   the released preset. Rows with few or new parameters have larger rates, full fine-tuning has smaller ones.
# demo: chosen by the MAP@R of held-out training classes, among 0.002, 0.004, 0.008 and 0.016 (full fine-tuning: 0.0001,
#   0.0003 and 0.001). While the best rate was the lowest or highest, the next one by a factor of 2 was tried too. The
#   preset has 0.004.
# tiny: from `paper.rate_search`, which searches every row in the same way (docs/tiny.md). `search_name` names the
#   rows of tables 5 and 7. A rate that the search has found is entered here if its run of all epochs passes the
#   check of docs/tiny.md, such as 0.02 for BitFit. For VPTSP-G + BitFit the search also found 0.02, but the run with
#   it ended with a higher loss than the run with the preset's 0.005, so the row keeps 0.005.
#   Full fine-tuning is not searched yet. It has a quarter of the preset's rate, because the whole backbone learns.
RATES: dict[str, dict[str, dict[str, float]]] = {
    "tiny": {FULL: dict(lr=0.00125), "BitFit": dict(lr=0.02), "VPTSP-G + BitFit": dict(lr=0.005)},
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
RATES["smoke"] = RATES["demo"]


def base_config(profile: str, **changes: Any) -> RunConfig:
    """Return the run that a profile's tables vary, with ``changes``. Raises ConfigError for an unknown profile."""
    check_choice("profile", profile, tuple(BASE))
    return table_preset(BASE[profile], **changes)


def check_changes(changes: Mapping[str, Any]) -> None:
    """Check that ``changes`` can apply to every run of a table.

    Raises ConfigError for a key of `ROW_KEYS`, and for the seed, because ``seeds`` is a separate parameter.
    """
    if "seed" in changes:
        raise ConfigError("changes (--set) contain seed; give seeds (--seeds) instead")
    if refused := [key for key in ROW_KEYS if key in changes]:
        raise ConfigError(
            f"changes (--set) contain {', '.join(refused)}, by which the rows of tables differ; leave it out, or train "
            "one run with it: python -m vptsp_core train --set"
        )


def configured(profile: str, row: Mapping[str, Any], changes: Mapping[str, Any]) -> RunConfig:
    """Return the run of a row, with the ``changes`` of all runs (`check_changes`) applied last.

    A row with 0 epochs keeps them, because it is not trained.
    """
    check_changes(changes)
    untrained = {"epochs": 0} if row.get("epochs") == 0 else {}
    return base_config(profile, **{**row, **changes, **untrained})


def method_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Return table 1, {label: changes to `base_config`}, in the paper's order.

    LoRA, which is not in the paper, is included if peft is installed.

    >>> base_config("demo", **method_rows("demo")["VPT"], seed=1).method
    'vpt'
    """
    check_choice("profile", profile, tuple(BASE))
    return {
        label: {**row, **ADAPTERS[profile].get(label, {}), **RATES[profile].get(label, {})}
        for label, row in METHODS.items()
        if label != LORA or has_peft()
    }


def proxy_source_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Return table 5, {label: changes to `base_config`}. Its last row is "VPTSP-G + BitFit" of table 1."""
    return _variants(profile, 5, BEST, "proxy_source", PROXY_SOURCES)


def integration_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Return table 7, {label: changes to `base_config`}. Its last row is "VPTSP-G" of table 1, without BitFit.

    The paper does not say that table 7 is without BitFit. But the last row has the numbers of "VPTSP-G" in table 1 and
    of "VPTSP (GRU)" in table 4, 86.1 and 52.1.
    """
    return _variants(profile, 7, "VPTSP-G", "accumulator", INTEGRATIONS)


def all_rows(profile: str) -> dict[str, dict[str, Any]]:
    """Return the rows of tables 1, 5 and 7, {name: changes to `base_config`}.

    The last rows of tables 5 and 7 have their names in table 1; `search_name` names the others.
    """
    rows = method_rows(profile)
    for number, of_table in ((5, proxy_source_rows(profile)), (7, integration_rows(profile))):
        rows |= {search_name(number, label): of_table[label] for label in list(of_table)[:-1]}
    return rows


def _variants(profile: str, number: int, label: str, key: str, values: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    row, rates = method_rows(profile)[label], RATES[profile]
    return {name: {**row, key: value, **rates.get(search_name(number, name), {})} for name, value in values.items()}


def search_name(number: int, label: str) -> str:
    """Return the name of a row of table 5 or 7 in `RATES`. Its label alone may also be a label of table 1."""
    return f"table {number}: {label}"


def seeds_by_row(
    profile: str, configs: Mapping[Any, RunConfig], seeds: Sequence[int], changes: Mapping[str, Any]
) -> dict[Any, Sequence[int]]:
    """Return the seeds of each run.

    In the profile tiny, these are the first one, three or five of ``seeds``, as `SEEDED` says (docs/tiny.md).
    """
    if profile != "tiny":
        return dict.fromkeys(configs, seeds)
    rows = method_rows(profile)
    count = {configured(profile, rows[label], changes).hash(): number for label, number in SEEDED.items()}
    return {key: seeds[: count.get(config.hash(), 1)] for key, config in configs.items()}


def paper_labels(table: pd.DataFrame) -> pd.DataFrame:
    """Add a column ``label``, as in `METHODS`, to ``paper_table("table1_peft_methods_cub200")``."""
    with_bitfit = table["bitfit"].eq("yes") & (table["method"] + " + BitFit").isin(METHODS)
    return table.assign(label=table["method"] + with_bitfit.map({True: " + BitFit", False: ""}))
