"""The runs of tables 2 to 8 for each profile, and the paper's rows with the same labels; `compare` shows both.

Each function of `TABLES` takes a profile and ``changes``, the keys of `RunConfig` to set in every run. It raises
ConfigError for an unknown profile and for changes that `methods.check_changes` refuses. If the changes set a key that
the rows set themselves, it returns no cells, and `left_out` says why.

A column of these tables is named "<set> <metric>" ("CUB R@1", "InShop R@10"). In the profiles demo and smoke the
glyphs replace CUB, and the other sets are left out. The profile tiny has only CUB. Settings that the paper prints are
the released presets. Settings that it does not print are our choice, and a comment here says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import table_preset
from vptsp_core.paper import methods
from vptsp_core.paper.methods import BEST, FULL, METHODS, base_config, check_changes, configured, method_rows
from vptsp_core.paper.report import paper_table

Cells = dict[tuple[str, str], RunConfig]  # (row, set) -> run
SETS = {"CUB": "cub200", "Cars": "cars196", "SOP": "sop", "InShop": "inshop", "iNaturalist": "inaturalist"}

# Learning rates of rows without a released preset, on sets other than CUB (for CUB see methods.RATES). They are OUR
# choice within the search space of table 9. Other rows have the rates of the set's preset, which is for VPTSP-G.
RATES = {("Cars", FULL): dict(lr=1e-4, lr_proxy=0.01)}

# Table 4's variants as rows of table 1.
COMPONENTS = {
    FULL: FULL,
    "VPT + BitFit (baseline)": "VPT + BitFit",
    "VPTSP (EMA)": "VPTSP-M",
    "VPTSP (EMA) + BitFit": "VPTSP-M + BitFit",
    "VPTSP (GRU)": "VPTSP-G",
    "VPTSP (GRU) + BitFit": BEST,
}

# Beyond the paper's table 8: the backbones of all other tables, and backbones that are newer than the paper. SigLIP 2
# pools by an attention layer, which we do not tune. Its form "gap" in timm averages the tokens instead.
AUGREG = "AugReg (ImageNet-21k), ViT-S/16"
NEWER = {
    AUGREG: "vit_small_patch16_224.augreg_in21k",
    "AugReg (ImageNet-21k), ViT-B/16": "vit_base_patch16_224.augreg_in21k",
    "DINOv2, ViT-S/14": "vit_small_patch14_dinov2.lvd142m",
    "DINOv2, ViT-B/14": "vit_base_patch14_dinov2.lvd142m",
    "SigLIP 2, ViT-B/16": "vit_base_patch16_siglip_gap_224.v2_webli",
}
DEMO_PRETRAINED, DEMO_RANDOM = "demo ViT, pretrained (stand-in)", "demo ViT, random weights (stand-in)"
GLYPHS = "VPTSP-G on glyphs (stand-in)"


def sota(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 2, {(row, set): run}.

    The paper does not say which rows tune the biases. Here VPT-Base and VPTSP-M do so on all sets except CUB. The
    paper's numbers agree: on CUB they are the same as in table 1 without BitFit, and on Cars as in table 4 with BitFit.
    The released presets of SOP and In-Shop have BitFit.
    """
    if left_out(2, changes):
        return {}
    sets = _sets(profile, "CUB", "Cars", "SOP", "InShop")
    cells = {
        (f"{row}, ViT-S/16", name): _cell(profile, name, label if name == "CUB" else elsewhere, changes)
        for row, label, elsewhere in (
            ("VPT-Base", "VPT", "VPT + BitFit"), ("VPTSP-M", "VPTSP-M", "VPTSP-M + BitFit"), ("VPTSP-G", BEST, BEST),
        )
        for name in sets
    }  # fmt: skip
    large = {} if profile == "paper" else {"embed_dim": 128}  # the demo ViT has one size: only the head is larger
    return cells | {
        ("VPTSP-G, ViT-B/16", name): _cell(profile, name, BEST, changes, size="vitb16", **large) for name in sets
    }


def inaturalist(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 3, {(row, set): run}. Profiles other than paper have one stand-in row."""
    if left_out(3, changes):
        return {}
    if profile != "paper":
        return {(GLYPHS, "iNaturalist"): _cell(profile, "CUB", BEST, changes)}
    return {("VPTSP-G, ViT-B/16", "iNaturalist"): _cell(profile, "iNaturalist", BEST, changes, size="vitb16")}


def components(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 4, {(row, set): run}."""
    sets = _sets(profile, "CUB", "Cars")
    return {(row, name): _cell(profile, name, label, changes) for row, label in COMPONENTS.items() for name in sets}


def proxy_sources(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 5, {(row, set): run}."""
    best = method_rows(profile)[BEST]
    return {
        (row, name): _cell(profile, name, BEST, changes, **{k: v for k, v in of_row.items() if best.get(k) != v})
        for row, of_row in methods.proxy_source_rows(profile).items()
        for name in _sets(profile, "CUB", "Cars")
    }


def cub200(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 6, {(row, set): run}."""
    rows = {f"{FULL}, ViT-S/16": FULL, "VPTSP, ViT-S/16": BEST} if not left_out(6, changes) else {}
    return {(row, "CUB"): _cell(profile, "CUB", label, changes) for row, label in rows.items()}


def integration(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 7, {(row, set): run}."""
    rows = methods.integration_rows(profile)
    return {(row, "CUB"): configured(profile, of_row, changes) for row, of_row in rows.items()}


def pretraining(profile: str, **changes: Any) -> Cells:
    """Return the cells of table 8, {(row, set): run}.

    They are VPTSP-G with the settings of the set's preset for ViT-S, or for ViT-B if the backbone is larger.
    """
    if left_out(8, changes):
        return {}
    if profile != "paper":
        weights = {DEMO_PRETRAINED: "pretrained", DEMO_RANDOM: "random"}
        return {(row, "CUB"): _cell(profile, "CUB", BEST, changes, weights=w) for row, w in weights.items()}
    printed = dict(zip(paper_rows(8)["row"], paper_table("table8_pretraining_R1")["timm_name"], strict=True))
    return {
        (row, name): _cell(
            profile, name, BEST, changes, size="vits16" if "ViT-S" in row else "vitb16", backbone=backbone
        )
        for row, backbone in {**printed, **NEWER}.items()
        for name in _sets(profile, "CUB", "Cars", "SOP", "InShop")
    }


TABLES: dict[int, Callable[..., Cells]] = {
    2: sota, 3: inaturalist, 4: components, 5: proxy_sources, 6: cub200, 7: integration, 8: pretraining,
}  # fmt: skip

# Keys that the rows of a table set themselves. With one of them in ``changes`` the table has no runs.
OWN_KEYS = {
    2: ("backbone", "weights", "embed_dim"), 3: ("backbone",), 6: ("backbone",), 8: ("backbone", "weights", "embed_dim")
}  # fmt: skip


def left_out(number: int, changes: Mapping[str, Any]) -> str:
    """Return one line that says why a table has no runs with these changes, or "" if it has runs."""
    own = ", ".join(key for key in OWN_KEYS.get(number, ()) if key in changes)
    why = f"No runs: changes (--set) contain {own}, which the rows of table {number} set themselves; leave it out"
    return why if own else ""


# The CSV file of each table, and the data set of columns whose names do not contain it.
_PRINTED = {
    2: ("table2_sota", ""), 3: ("table3_inaturalist", "iNaturalist"), 4: ("table4_components", ""),
    5: ("table5_proxy_source", ""), 6: ("table6_cub200_literature", "CUB"), 7: ("table7_integration_cub200", "CUB"),
    8: ("table8_pretraining_R1", ""),
}  # fmt: skip


def paper_rows(number: int) -> pd.DataFrame:
    """Return the paper's table: a column ``row`` as in `TABLES`, and "<set> <metric>" columns in percent.

    Table 6 also has a column "parameters, M".
    """
    name, only = _PRINTED[number]
    table = paper_table(name)
    first = {8: "pretraining"}.get(number, table.columns[0])
    rows = table[first].str.cat(table["arch"], sep=", ") if "arch" in table else table[first]
    out = {"row": rows}
    for column in table.columns:
        if column == "params_M":
            out["parameters, M"] = table[column]
        elif column in SETS:
            out[f"{column} R@1"] = table[column]
        elif "@" in column:
            out[f"{only} {column}".strip()] = table[column]
    return pd.DataFrame(out)


def _sets(profile: str, *sets: str) -> tuple[str, ...]:
    return sets if profile == "paper" else ("CUB",)


def _cell(
    profile: str, name: str, label: str, changes: Mapping[str, Any], *, size: str = "vits16", **of_cell: Any
) -> RunConfig:
    """Return the run of a row of table 1 on one set, with the set's learning rates, ``of_cell`` and ``changes`` last.

    The profile paper varies the released preset of the set and size. Other profiles vary their only preset.
    """
    check_changes(changes)
    row = method_rows(profile)[label] if name == "CUB" else {**METHODS[label], **RATES.get((name, label), {})}
    values = {**row, **of_cell, **changes}
    return table_preset(f"{SETS[name]}-{size}", **values) if profile == "paper" else base_config(profile, **values)
