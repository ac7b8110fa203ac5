"""Figure 3 of the paper as sweeps: one key of table 1's best method varied, a panel each, beside the paper's curve.

Where the paper leaves open what a panel varies, `SWEEPS` and the notebook say how it is read here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd
import torch

from vptsp_core.data.catalog import CATALOG
from vptsp_core.errors import ConfigError
from vptsp_core.method.config import RunConfig
from vptsp_core.paper import report
from vptsp_core.paper.methods import BEST, configured, method_rows
from vptsp_core.runs import significance
from vptsp_core.runs.folder import Run
from vptsp_core.runs.run import build_model

METRICS = ("R@1", "MAP@R", "MAP@R released")
WITHOUT_CLASS_PROMPTS = "VPT + BitFit"  # `BEST` without class prompts


class Point(NamedTuple):
    """One run of a sweep: its name in tables, its place on our x axis and on the paper's (None: not there)."""

    label: str
    x: float
    paper_x: float | None
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """One panel.

    Attributes:
        key: of `RunConfig`, what is varied.
        title, axis: what a figure writes above it and below it.
        paper_axis: what it writes below the paper's curve, where that is not the same; empty where it is.
        claim: what the paper's curve shows.
        values: {profile: {value of key: the paper's x that it stands beside, None where the paper has no point}}.
            The value of table 1 is among them, so that its run is shared.
        row: the method of table 1 that is varied.
        logarithmic: x axis.
    """

    key: str
    title: str
    axis: str
    claim: str
    values: Mapping[str, Mapping[float, float | None]]
    row: str = BEST
    logarithmic: bool = False
    paper_axis: str = ""


def _same(*values: float) -> dict[float, float | None]:
    return {value: value for value in values}


SWEEPS: dict[str, Sweep] = {
    "a": Sweep(
        "class_prompts", "tunable parameters", "class-prompt parameters, K",
        "nearly flat: CUB 85.0 at 0, highest at 1,500 K (85.5), 84.5 from 2,500 K on",
        {
            # Class prompts of 100 classes in 12 blocks of width 384: 461 K for each m. The released m = 3 is then at
            # 1,382 K, where the paper's curve has its maximum, and its seven points are m = 0 to 6.
            "paper": {m: 500 * m for m in range(7)},
            "tiny": {m: 500 * m for m in range(7)},  # of width 192: half the parameters for each m
            "demo": {0: 0, 1: None, 2: None, 4: None},
            "smoke": {0: 0, 2: None},
        },
        paper_axis="tunable parameters, K",
    ),
    "b": Sweep(
        "batch", "batch size", "images in a batch",
        "a mild optimum: CUB 85.7 at 25, 86.1 at 50, 85.3 at 250; Cars 85.7 at 25, 88.0 at 150, 87.4 at 250",
        {
            "paper": {24: 25, **_same(50), 64: None, **_same(100, 150, 250)},  # pairs of images: 25 cannot be
            "tiny": {24: 25, **_same(50), 64: None, **_same(100, 150, 250)},
            "demo": {8: None, 16: None, 32: None, 64: None},
            "smoke": {8: None, 16: None},
        },
        logarithmic=True,
    ),
    "c": Sweep(
        "embed_dim", "embedding dimension", "embedding dimension d",
        "saturates: CUB 77.0 at 32, 86.5 at 384 and at 1,024; Cars 74.5 at 32, highest at 384 (87.5)",
        {
            "paper": _same(32, 128, 256, 384, 512, 1024),
            "tiny": {**_same(32, 128), 192: None},  # as wide as the ViT, at most
            "demo": {**_same(32), 96: None, **_same(128, 256)},
            "smoke": {**_same(32), 96: None},
        },
        logarithmic=True,
    ),
    "d": Sweep(
        "alpha", "weight of the ordinary proxy", "α, weight of O in Q",
        "neither proxy alone is best: CUB 85.35 at 0, 86.75 at 0.6, 85.75 at 1; Cars 86.65, 87.25 at 0.8, 86.35",
        {
            "paper": {**_same(0.0, 0.2, 0.4), 0.5: None, **_same(0.6, 0.8, 1.0)},
            "tiny": {**_same(0.0, 0.2, 0.4), 0.5: None, **_same(0.6, 0.8, 1.0)},
            "demo": {**_same(0.0, 0.2), 0.5: None, **_same(0.8, 1.0)},
            "smoke": {**_same(0.0), 0.5: None},
        },
    ),
    "e": Sweep(
        "prompt_layers", "layers with prompts", "first blocks that have prompts",
        "more is better: CUB 85.75 with 2 of 12 blocks, 86.75 with all; Cars 85.5 and 87.25",
        {
            "paper": _same(2, 4, 6, 8, 10, 12),
            "tiny": _same(2, 4, 6, 8, 10, 12),
            "demo": {1: 2, 2: 4, 4: 8, 6: 12},  # the same share of the demo ViT's six blocks
            "smoke": {1: 2, 6: 12},
        },
    ),
    "f": Sweep(
        "prompts", "prompts a layer", "prompts a block, sample tower",
        "the data decide: CUB highest at 20 (86.5), 82.5 at 100; Cars 84.5 at 0, highest at 60 (87.0)",
        {
            "paper": {**_same(0), 10: None, **_same(20, 40, 60, 80, 100)},
            "tiny": {**_same(0), 10: None, **_same(20, 40, 60, 80, 100)},
            "demo": {**_same(0), 2: None, 10: None, **_same(20)},
            "smoke": {**_same(0), 2: None},
        },
    ),
    "lambda": Sweep(
        "ema_keep", "memory of the running average", "λ, share of P that is kept",
        "mentioned without a curve; the released code has 0.8",
        {
            "paper": dict.fromkeys((0.0, 0.2, 0.5, 0.8, 0.9, 0.99)),
            "tiny": dict.fromkeys((0.0, 0.2, 0.5, 0.8, 0.9, 0.99)),
            "demo": dict.fromkeys((0.0, 0.8, 0.95)),
            "smoke": dict.fromkeys((0.0, 0.8)),
        },
        row="VPTSP-M + BitFit",
    ),
}  # fmt: skip


def check_panels(panels: Sequence[str]) -> list[str]:
    """The panels, each once. Raises ConfigError for an unknown one, or none at all."""
    for panel in panels:
        if panel not in SWEEPS:
            raise ConfigError(f"panel {panel!r} must be one of {', '.join(SWEEPS)}")
    if not panels:
        raise ConfigError(f"panels = [] leaves nothing to show; name some of {', '.join(SWEEPS)}")
    return list(dict.fromkeys(panels))


def points(panel: str, profile: str, **changes: Any) -> list[Point]:
    """The runs of a panel, in the order of x; ``changes`` of the run description are applied last.

    What the data have too few classes for is left out, and everything where ``changes`` hold the panel's own key
    (`left_out` says so).
    """
    sweep, rows = SWEEPS[panel], method_rows(profile)
    if sweep.key in changes:
        return []
    found, scale = [], 1.0
    if panel == "a":
        scale = class_prompt_parameters(configured(profile, {**rows[BEST], "class_prompts": 1}, changes)) / 1e3
    for value, paper_x in sweep.values[profile].items():
        without = panel == "a" and value == 0
        row = rows[WITHOUT_CLASS_PROMPTS] if without else {**rows[sweep.row], sweep.key: value}
        config = configured(profile, row, changes)
        if config.batch // config.samples_per_class > train_classes(config):
            continue
        x = 0.0 if without else scale * getattr(config, sweep.key)
        beside = "" if paper_x is None or abs(paper_x - x) < 1e-9 else f" (paper: {paper_x:g})"
        found.append(Point(f"{x:g}{beside}", x, paper_x, config))
    return found


def left_out(panel: str, profile: str, **changes: Any) -> str:
    """Which values a panel lacks because a batch would draw more classes than the data have, or that it lacks all
    because ``changes`` hold the key that it varies; empty for none.
    """
    sweep, row = SWEEPS[panel], method_rows(profile)[SWEEPS[panel].row]
    if sweep.key in changes:
        return f"No runs: changes (--set) hold {sweep.key}, which panel {panel} varies; without it the panel is run"
    config = configured(profile, row, changes)
    most = train_classes(config) * config.samples_per_class
    lost = [f"{value:g}" for value in sweep.values[profile] if panel == "b" and value > most]
    if not lost:
        return ""
    return (
        f"Panel b without {', '.join(lost)}: {config.samples_per_class} images a class make batches of at most {most} "
        f"with the {train_classes(config)} training classes of {config.dataset}"
    )


def train_classes(config: RunConfig) -> int:
    """Classes of the training split, as published; of your own images any number."""
    if config.dataset in CATALOG:
        return CATALOG[config.dataset].counts["train"][0]
    return 100 if config.dataset == "glyphs" else 2**31


def class_prompt_parameters(config: RunConfig) -> int:
    """Parameters of the class prompts of all training classes, counted on the model itself."""
    model = build_model(config.replace(weights="random"), train_classes(config), torch.device("cpu"))
    assert model.class_prompts is not None
    return model.class_prompts.table.numel()


# ---- results -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """The results of a sweep.

    Attributes:
        ours: a row a point: ``label``, ``x``, `METRICS` and their intervals in percent; no rows where nothing ran.
        paper: a row a point: ``label``, ``x``, ``CUB`` and ``Cars``: R@1 in percent.
        best: the label of our highest R@1; None where nothing ran.
        paired: `runs.significance.compare_paired` with the best, by label; None where nothing ran.
    """

    name: str
    sweep: Sweep
    ours: pd.DataFrame
    paper: pd.DataFrame
    best: str | None
    paired: pd.DataFrame | None

    @property
    def unclear(self) -> list[float]:
        """Our x whose difference to the best R@1 could be chance."""
        if self.paired is None:
            return []
        doubtful = self.paired.index[self.paired["R@1", "chance"].eq(True)]
        return self.ours.loc[self.ours["label"].isin(doubtful), "x"].tolist()


def outcome(panel: str, asked: Sequence[Point], runs: Sequence[Run], names: Sequence[str]) -> Panel:
    """A panel from its points and their finished ``runs``, of any points and seeds; ``names``: the label of each run's
    point.
    """
    places = pd.DataFrame({"label": [p.label for p in asked], "x": [p.x for p in asked]})
    ours = places.merge(report.averaged(runs, {"label": names}, METRICS), on="label")
    theirs = report.paper_table("fig3_curves_R1")
    theirs = theirs[theirs["panel"] == panel]
    beside = {point.paper_x: point.label for point in asked}
    theirs = theirs.assign(label=[beside.get(x, f"paper: {x:g}") for x in theirs["x"]])
    best = None if ours.empty else str(ours["label"].iloc[int(ours["R@1"].argmax())])
    paired = None if best is None else significance.compare_paired(runs, names, best, metrics=("R@1",))
    return Panel(panel, SWEEPS[panel], ours, theirs[["label", "x", "CUB", "Cars"]], best, paired)


def table(panel: Panel) -> pd.DataFrame:
    """Paper | ours | difference of R@1, a row a point in the order of x; MAP@R, which the paper has no curve of, ours
    alone; the paper's Cars196 in a column of its own. Each point is tested against our best (`report.marked`).
    """
    paper = panel.paper.rename(columns={"CUB": "R@1"})
    found = report.compare(paper, panel.ours, on="label", columns=["R@1"], only_ours=METRICS[1:])
    if panel.best is not None and panel.paired is not None:
        found = report.marked(found, panel.paired, panel.best)
    found["R@1 on Cars196", "paper"] = panel.paper.set_index("label")["Cars"].reindex(found.index)
    order = pd.concat([panel.ours, panel.paper]).drop_duplicates("label", keep="last").sort_values("x", kind="stable")
    return found.reindex(order["label"]).rename_axis(panel.sweep.axis)


def maxima(panels: Sequence[Panel]) -> pd.DataFrame:
    """Where each curve of R@1 is highest: a row a panel, of the paper's two curves and of ours.

    ``not clearly below`` lists our points whose difference to our highest could be chance.
    """
    rows = {}
    for panel in panels:
        curves = {
            "paper, CUB": panel.paper.set_index("x")["CUB"], "paper, Cars": panel.paper.set_index("x")["Cars"],
            "ours": panel.ours.set_index("x")["R@1"],
        }  # fmt: skip
        highest = {name: f"{c.idxmax():g} ({c.max():.4g})" if c.notna().any() else "" for name, c in curves.items()}
        doubtful = ", ".join(f"{x:g}" for x in panel.unclear)
        rows[f"{panel.name}: {panel.sweep.title}"] = {**highest, "not clearly below": doubtful}
    return pd.DataFrame(rows).T
