"""Table 10 of the paper, what a training step costs: its cells, and what was measured for them (`step_cost`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import table_preset
from vptsp_core.paper.methods import FULL, check_changes, method_rows
from vptsp_core.paper.released import check_released
from vptsp_core.paper.report import machine_facts, paper_table
from vptsp_core.paper.step_bench import Bench, make_forms
from vptsp_core.runs.record import made_with

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

    ``changes`` are applied to all, but the batch is the table's column. Raises ConfigError for an unknown profile.
    """
    if profile not in BASE:
        raise ConfigError(f"profile = {profile!r} must be one of {', '.join(BASE)}")
    check_changes(changes)
    rows = method_rows(profile)
    return {
        (name, batch): table_preset(BASE[profile], **{**rows[label], **changes, "batch": batch, "weights": "random"})
        for name, label in ROWS.items()
        for batch in batches
    }


def latency_benches(
    configs: Mapping[tuple[str, int], RunConfig], *, compiled: bool = False, reference: str | Path | None = None
) -> dict[tuple[str, int, str], Callable[[], Bench]]:
    """For `measure_steps`: the cells of the table in each form, {(method, batch, form): what makes it}.

    Args:
        compiled: among our forms; each cell is compiled on its own, which may take a minute.
        reference: the user's clone of the released implementation; adds its form where it has the method.
    """
    forms = ("eager", "compiled", "textbook") if compiled else ("eager", "textbook")
    benches: dict[tuple[str, int, str], Callable[[], Bench]] = {}
    for (method, batch), config in configs.items():
        clone = None
        with contextlib.suppress(ConfigError):  # the adapter, and changes that were not released
            check_released(config)
            clone = reference
        benches |= {(method, batch, form): make for form, make in make_forms(config, forms, clone).items()}
    return benches


def paper_latency() -> pd.DataFrame:
    """The paper's table 10, long: ``row``, ``method``, ``batch``, ``ms``."""
    table = paper_table("table10_latency_ms").melt("method", var_name="batch", value_name="ms")
    return _long(table.assign(batch=table["batch"].str.removeprefix("B=").astype(int)))


def measured_latency(measured: Mapping[tuple[str, int, str], dict[str, float]]) -> pd.DataFrame:
    """What `measure_steps` found of `latency_benches`, long: ``row``, ``method``, ``batch``, ``form`` and what
    was measured; percent are of full fine-tuning in the same form.
    """
    rows = [{"method": name, "batch": batch, "form": form, **costs} for (name, batch, form), costs in measured.items()]
    table = pd.DataFrame(rows)
    return pd.concat([_long(of_form) for _, of_form in table.groupby("form", sort=False)], ignore_index=True)


def _long(table: pd.DataFrame) -> pd.DataFrame:
    """With ``row``, the name of a method at a batch, and ``%``, of full fine-tuning at the same batch."""
    full = table[table["method"] == FULL].set_index("batch")["ms"]
    row = table["method"] + ", " + table["batch"].astype(str)
    return table.assign(row=row, **{"%": 100 * table["ms"] / table["batch"].map(full)})


def record(configs: Mapping[tuple[str, int], RunConfig], device: torch.device) -> pd.DataFrame:
    """The machine and the models, as `report.record_table` shows them for runs; here no run is trained."""
    facts = {
        **machine_facts(made_with(device)),
        "data": "random images",
        "backbone": ", ".join(dict.fromkeys(f"{c.backbone} ({c.weights})" for c in configs.values())),
        "model description": ", ".join(c.hash() for c in configs.values()),
    }
    return pd.DataFrame({"value": list(facts.values())}, index=pd.Index(facts, name="fact"))
