"""Table 10 of the paper: what a training step of six methods costs, in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch

from vptsp_core.config import RunConfig
from vptsp_core.errors import ConfigError
from vptsp_core.presets import preset
from vptsp_core.report import paper_table
from vptsp_core.rows import FULL, check_changes, method_rows
from vptsp_core.runs import made_with

BASE = {"demo": "demo", "smoke": "smoke", "paper": "cars196-vits16"}  # the paper times Cars196, ViT-S/16
# The paper's names, and the rows of table 1 that we take them for: it does not say whether biases learn in VPT and
# VPTSP, nor which accumulator VPTSP has.
ROWS = {
    "Full fine-tuning (PA)": FULL, "Linear probing": "Linear probing", "BitFit": "BitFit", "Adapter": "Adapter",
    "VPT": "VPT", "VPTSP": "VPTSP-G",
}  # fmt: skip
BATCHES = (32, 64)


def latency_configs(profile: str, batches: Sequence[int] = BATCHES, **changes: Any) -> dict[tuple[str, int], RunConfig]:
    """The runs whose steps are measured: {(method as the paper names it, batch): run}, weights at random.

    ``changes`` are applied to all, but the batch is the table's column.

    Raises:
        ConfigError: no such profile, or changes that cannot run.
    """
    if profile not in BASE:
        raise ConfigError(f"profile = {profile!r} must be one of {', '.join(BASE)}")
    check_changes(changes)
    rows = method_rows(profile)
    return {
        (name, batch): preset(BASE[profile], **{**rows[label], **changes, "batch": batch, "weights": "random"})
        for name, label in ROWS.items()
        for batch in batches
    }


def paper_latency() -> pd.DataFrame:
    """The paper's table 10, long: ``row``, ``method``, ``batch``, ``ms``."""
    table = paper_table("table10_latency_ms").melt("method", var_name="batch", value_name="ms")
    return _long(table.assign(batch=table["batch"].str.removeprefix("B=").astype(int)))


def measured_latency(measured: dict[tuple[str, int], dict[str, float]]) -> pd.DataFrame:
    """What `bench.measure_steps` found, long: ``row``, ``method``, ``batch`` and what was measured."""
    rows = [{"method": name, "batch": batch, **costs} for (name, batch), costs in measured.items()]
    return _long(pd.DataFrame(rows))


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """With ``row``, the name of a method at a batch, and ``%``, of full fine-tuning at the same batch."""
    full = table[table["method"] == FULL].set_index("batch")["ms"]
    row = table["method"] + ", " + table["batch"].astype(str)
    return table.assign(row=row, **{"%": 100 * table["ms"] / table["batch"].map(full)})


def record(configs: Mapping[tuple[str, int], RunConfig], device: torch.device) -> pd.DataFrame:
    """What was measured on what, in the form of `report.record_table`: no run was trained, so there is no data."""
    made = made_with(device)
    facts = {
        "commit": made["commit"],
        **{f"{name} version": number for name, number in made["versions"].items()},
        "device": made["device"],
        "data": "random images",
        "backbone": ", ".join(dict.fromkeys(f"{c.backbone} ({c.weights})" for c in configs.values())),
        "model description": ", ".join(c.hash() for c in configs.values()),
    }
    return pd.DataFrame({"value": list(facts.values())}, index=pd.Index(facts, name="fact"))
