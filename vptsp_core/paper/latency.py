"""Table 10 of the paper, what a training step costs: the runs of its cells, and tables of their cost (`step_cost`)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import table_preset
from vptsp_core.paper.methods import FULL, check_changes, method_rows
from vptsp_core.paper.released import check_released
from vptsp_core.paper.report import fact_table, machine_facts, merged, paper_table
from vptsp_core.paper.step_bench import Bench, make_forms
from vptsp_core.runs.record import made_with

BASE = {"demo": "demo", "smoke": "smoke", "paper": "cars196-vits16"}  # the paper times Cars196, ViT-S/16
# The paper's names and our rows of table 1. The paper does not say whether biases learn in VPT and VPTSP, nor which
# accumulator VPTSP has; this is our choice.
ROWS = {
    "Full fine-tuning (PA)": FULL, "Linear probing": "Linear probing", "BitFit": "BitFit", "Adapter": "Adapter",
    "VPT": "VPT", "VPTSP": "VPTSP-G",
}  # fmt: skip

OWN = ("batch", "weights")  # keys that the table sets itself


def latency_configs(profile: str, **changes: Any) -> dict[tuple[str, int], RunConfig]:
    """Return the runs whose steps are measured, {(method as the paper names it, batch): run}, with random weights.

    ``changes`` apply to every run. Raises ConfigError for an unknown profile, and for changes of what the rows set.
    """
    check_choice("profile", profile, tuple(BASE))
    check_changes(changes)
    if own := [key for key in OWN if key in changes]:
        raise ConfigError(f"changes (--set) contain {', '.join(own)}, which table 10 sets itself; leave it out")
    rows = method_rows(profile)
    return {
        (name, batch): table_preset(BASE[profile], **{**rows[label], **changes, "batch": batch, "weights": "random"})
        for name, label in ROWS.items()
        for batch in (32, 64)
    }


def latency_benches(
    configs: Mapping[tuple[str, int], RunConfig], *, compiled: bool = False, reference: str | Path | None = None
) -> dict[tuple[str, int, str], Callable[[], Bench]]:
    """Return the table's cells in each form for `measure_steps`, {(method, batch, form): function that makes a bench}.

    Args:
        compiled: also measure the compiled form. Compiling may take a minute per cell.
        reference: a clone of the released implementation, which adds its form to the methods that it has.

    Raises:
        ConfigError: ``reference`` is given, but the released implementation has none of the runs.
    """
    forms = ("eager", "compiled", "textbook") if compiled else ("eager", "textbook")
    benches: dict[tuple[str, int, str], Callable[[], Bench]] = {}
    for (method, batch), config in configs.items():
        clone = None
        with contextlib.suppress(ConfigError):  # the adapter, and changes that were not released
            check_released(config)
            clone = reference
        benches |= {(method, batch, form): make for form, make in make_forms(config, forms, clone).items()}
    if reference is not None and not any(form == "released" for _, _, form in benches):
        raise ConfigError(f"reference = {reference}: the released implementation has none of these runs; leave it out")
    return benches


def paper_latency() -> pd.DataFrame:
    """Return the paper's table 10, one row per cell: ``row``, ``method``, ``batch``, ``ms`` and ``%``."""
    table = paper_table("table10_latency_ms").melt("method", var_name="batch", value_name="ms")
    return _with_shares(table.assign(batch=table["batch"].str.removeprefix("B=").astype(int)))


def measured_latency(measured: Mapping[tuple[str, int, str], dict[str, float]]) -> pd.DataFrame:
    """Return the result of `measure_steps`, one row per cell: ``row``, ``method``, ``batch``, ``form``, costs, ``%``.

    ``%`` is the time in percent of full fine-tuning's, in the same form and with the same batch.
    """
    rows = [{"method": name, "batch": batch, "form": form, **costs} for (name, batch, form), costs in measured.items()]
    by_form = pd.DataFrame(rows).groupby("form", sort=False)
    return pd.concat([_with_shares(table) for _, table in by_form], ignore_index=True)


def _with_shares(table: pd.DataFrame) -> pd.DataFrame:
    """Add ``row``, the method with its batch, and ``%``, the time in percent of full fine-tuning's with this batch."""
    full = table[table["method"] == FULL].set_index("batch")["ms"]
    row = table["method"] + ", " + table["batch"].astype(str)
    return table.assign(row=row, **{"%": 100 * table["ms"] / table["batch"].map(full)})


def record(configs: Mapping[tuple[str, int], RunConfig], device: torch.device) -> pd.DataFrame:
    """Return the machine and the models in the form of `report.record_table`, because no run is trained here."""
    facts = {
        **machine_facts(made_with(device)),
        "data": "random images",
    }
    models = ({"backbone": f"{c.backbone} ({c.weights})", "config hash": c.hash()} for c in configs.values())
    return fact_table(merged([facts, *models]))
