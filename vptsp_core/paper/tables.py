"""What tables 2 to 8 run, for each profile: {(row, set): RunConfig}, and the paper's own rows under the same labels.

A column of these tables is named "<set> <metric>" ("CUB R@1", "InShop R@10"). In the profiles demo and smoke the
glyphs stand in for CUB; the other sets have no stand-in there. The profile tiny has CUB alone. Settings that the paper
prints are the released presets; where it prints none they are ours, and it is said here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import table_preset
from vptsp_core.paper.methods import (
    BEST,
    FULL,
    METHODS,
    base_config,
    check_changes,
    configured,
    integration_rows,
    method_rows,
    proxy_source_rows,
)
from vptsp_core.paper.report import paper_table

Cells = dict[tuple[str, str], RunConfig]
SETS = {"CUB": "cub200", "Cars": "cars196", "SOP": "sop", "InShop": "inshop", "iNaturalist": "inaturalist"}

# Learning rates of rows without a released preset on sets other than CUB (whose own are rows.RATES): OURS, from the
# search space of table 9. Rows that are not named keep the rates of the set's preset, which is VPTSP-G's.
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

# Beyond the paper's table 8: what the method starts from in all other tables, and backbones published since. SigLIP 2
# pools by an attention layer of its own, of which nothing is learned here: timm's "gap" form averages the tokens.
AUGREG = "AugReg (ImageNet-21k), ViT-S/16"
NEWER = {
    AUGREG: "vit_small_patch16_224.augreg_in21k",
    "AugReg (ImageNet-21k), ViT-B/16": "vit_base_patch16_224.augreg_in21k",
    "DINOv2, ViT-S/14": "vit_small_patch14_dinov2.lvd142m",
    "DINOv2, ViT-B/14": "vit_base_patch14_dinov2.lvd142m",
    "DINOv3, ViT-S/16": "vit_small_patch16_dinov3.lvd1689m",
    "DINOv3, ViT-B/16": "vit_base_patch16_dinov3.lvd1689m",
    "SigLIP 2, ViT-B/16": "vit_base_patch16_siglip_gap_224.v2_webli",
}
DEMO_PRETRAINED, DEMO_RANDOM = "demo ViT, pretrained (stand-in)", "demo ViT, random weights (stand-in)"
GLYPHS = "VPTSP-G on glyphs (stand-in)"


def sota(profile: str, **changes: Any) -> Cells:
    """Table 2. The paper does not say which of its rows tune the biases; on CUB its VPT-Base and VPTSP-M have the
    numbers of table 1's rows without BitFit, on Cars those of table 4's with it, and the released presets of SOP
    and In-Shop have it: so it is done here."""
    rows = {"VPT-Base": "VPT", "VPTSP-M": "VPTSP-M", "VPTSP-G": BEST}
    cells: Cells = {}
    if left_out(2, changes):
        return cells
    for row, label in rows.items():
        for name in _sets(profile, "CUB", "Cars", "SOP", "InShop"):
            tuned = label if name == "CUB" or label == BEST else f"{label} + BitFit"
            cells[f"{row}, ViT-S/16", name] = _cell(profile, name, tuned, changes)
    for name in _sets(profile, "CUB", "Cars", "SOP", "InShop"):
        # demo: the width of the heads is what of the larger model can be had in the embedded one
        large = {} if profile == "paper" else {"embed_dim": 128}
        cells["VPTSP-G, ViT-B/16", name] = _cell(profile, name, BEST, changes, size="vitb16", **large)
    return cells


def inaturalist(profile: str, **changes: Any) -> Cells:
    """Table 3; in demo and smoke a row of its own, on the glyphs, which are no iNaturalist."""
    if left_out(3, changes):
        return {}
    if profile != "paper":
        return {(GLYPHS, "iNaturalist"): _cell(profile, "CUB", BEST, changes)}
    return {("VPTSP-G, ViT-B/16", "iNaturalist"): _cell(profile, "iNaturalist", BEST, changes, size="vitb16")}


def components(profile: str, **changes: Any) -> Cells:
    """Table 4."""
    sets = _sets(profile, "CUB", "Cars")
    return {(row, name): _cell(profile, name, label, changes) for row, label in COMPONENTS.items() for name in sets}


def proxy_sources(profile: str, **changes: Any) -> Cells:
    """Table 5."""
    best = method_rows(profile)[BEST]
    return {
        (row, name): _cell(profile, name, BEST, changes, **{k: v for k, v in own.items() if best.get(k) != v})
        for row, own in proxy_source_rows(profile).items()
        for name in _sets(profile, "CUB", "Cars")
    }


def cub200(profile: str, **changes: Any) -> Cells:
    """Table 6."""
    rows = {f"{FULL}, ViT-S/16": FULL, "VPTSP, ViT-S/16": BEST} if not left_out(6, changes) else {}
    return {(row, "CUB"): _cell(profile, "CUB", label, changes) for row, label in rows.items()}


def integration(profile: str, **changes: Any) -> Cells:
    """Table 7."""
    rows = integration_rows(profile)
    return {(row, "CUB"): configured(profile, own, changes) for row, own in rows.items()}


def pretraining(profile: str, **changes: Any) -> Cells:
    """Table 8: settings of the set's preset of ViT-S, for larger backbones of ViT-B; its R@1 are VPTSP-G's."""
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

# Keys whose values rows of these tables have, or name, of their own; tables that are not here show any backbone.
OWN_KEYS = {
    2: ("backbone", "weights", "embed_dim"), 3: ("backbone",), 6: ("backbone",), 8: ("backbone", "weights", "embed_dim")
}  # fmt: skip


def left_out(number: int, changes: Mapping[str, Any]) -> str:
    """Why nothing of a table is run with these changes, in a line; empty where its cells are."""
    found = ", ".join(key for key in OWN_KEYS.get(number, ()) if key in changes)
    rows = f"No runs: changes (--set) hold {found}, and the rows of table {number} stand for values of their own"
    return f"{rows}; without it they are run" if found else ""


# The packaged CSV of each table, and the set of columns that name none.
_PRINTED = {
    2: ("table2_sota", ""), 3: ("table3_inaturalist", "iNaturalist"), 4: ("table4_components", ""),
    5: ("table5_proxy_source", ""), 6: ("table6_cub200_literature", "CUB"), 7: ("table7_integration_cub200", "CUB"),
    8: ("table8_pretraining_R1", ""),
}  # fmt: skip


def paper_rows(number: int) -> pd.DataFrame:
    """The paper's table: ``row`` as in `TABLES`, and its numbers in percent as "<set> <metric>"; table 6 also has
    "parameters, M".

    Raises:
        ConfigError: a table that is not among `TABLES`.
    """
    if number not in _PRINTED:
        raise ConfigError(f"table {number} must be one of {', '.join(map(str, _PRINTED))}")
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


def _base(profile: str, name: str, size: str = "vits16", **changes: Any) -> RunConfig:
    """The profile's run on a set: the released preset of that set and size; the glyphs in place of CUB."""
    return table_preset(f"{SETS[name]}-{size}", **changes) if profile == "paper" else base_config(profile, **changes)


def _cell(
    profile: str, name: str, label: str, changes: Mapping[str, Any], *, size: str = "vits16", **own: Any
) -> RunConfig:
    """A row of table 1 on one set, with learning rates of that set and what is the cell's own; ``changes`` last."""
    check_changes(changes)
    row = method_rows(profile)[label] if name == "CUB" else {**METHODS[label], **RATES.get((name, label), {})}
    return _base(profile, name, size, **{**row, **own, **changes})
