"""Figure 3 of the paper as sweeps: each panel varies one key of table 1's best method, beside the paper's curve.

If the paper does not say exactly what a panel varies, `SWEEPS` and the notebook explain our choice.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from vptsp_core.errors import ConfigError, check_choice
from vptsp_core.method.backbone import shape
from vptsp_core.method.class_prompts import table_shape
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.methods import BEST, TRAIN_CLASSES, configured, method_rows

WITHOUT_CLASS_PROMPTS = "VPT + BitFit"  # `BEST` without class prompts


class Point(NamedTuple):
    """One run of a sweep: its name in tables, its x in our curve, and its x in the paper's curve or None."""

    label: str
    x: float
    paper_x: float | None
    config: RunConfig


@dataclass(frozen=True)
class Sweep:
    """One panel.

    Attributes:
        key: the key of `RunConfig` that is varied.
        title, axis: the text above and below the panel.
        paper_axis: the text below the paper's curve, or "" if it is the same.
        claim: a description of the paper's curve.
        values: {profile: {value of key: the paper's x beside it, or None}}. A profile that is not named has the paper
            profile's. The value of table 1 is included, so that its run is shared. Profile tiny has the points that the
            claim is about, because each takes one to two hours on a CPU.
        row: the method of table 1 that is varied.
        logarithmic: whether the x axis is logarithmic.
    """

    key: str
    title: str
    axis: str
    claim: str
    values: Mapping[str, Mapping[float, float | None]]
    row: str = BEST
    logarithmic: bool = False
    paper_axis: str = ""

    def points_of(self, profile: str) -> Mapping[float, float | None]:
        """Return the values of a profile."""
        return self.values.get(profile, self.values["paper"])


def _same(*values: float) -> dict[float, float | None]:
    return {value: value for value in values}


SWEEPS: dict[str, Sweep] = {
    "a": Sweep(
        "class_prompts", "tunable parameters", "class-prompt parameters, K",
        "nearly flat: CUB 85.0 at 0, highest at 1,500 K (85.5), 84.5 from 2,500 K on",
        {
            # Our choice: m class prompts per class. 100 classes, 12 blocks and width 384 make 461 K parameters for each
            # m. The released m = 3 is at 1,382 K, near the paper's maximum. The paper's seven points become m = 0 to 6.
            # The ViT-Ti of profile tiny is half as wide, so each m makes half as many.
            "paper": {m: 500 * m for m in range(7)},
            "tiny": {0: 0, 3: 1500, 6: 3000},
            "demo": {0: 0, 1: None, 2: None, 4: None},
            "smoke": {0: 0, 2: None},
        },
        paper_axis="tunable parameters, K",
    ),
    "b": Sweep(
        "batch", "batch size", "images in a batch",
        "a mild optimum: CUB 85.7 at 25, 86.1 at 50, 85.3 at 250; Cars 85.7 at 25, 88.0 at 150, 87.4 at 250",
        {
            "paper": {24: 25, **_same(50), 64: None, **_same(100, 150, 250)},  # 25 is impossible with pairs of images
            "tiny": {24: 25, **_same(50), 64: None, **_same(150)},  # its 100 classes cannot fill a batch of 250
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
            "tiny": {**_same(32, 128), 192: None},  # at most the width of the ViT
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
            "demo": {**_same(0.0, 0.2), 0.5: None, **_same(0.8, 1.0)},
            "smoke": {**_same(0.0), 0.5: None},
        },
    ),
    "e": Sweep(
        "prompt_layers", "layers with prompts", "first blocks that have prompts",
        "more is better: CUB 85.75 with 2 of 12 blocks, 86.75 with all; Cars 85.5 and 87.25",
        {
            "paper": _same(2, 4, 6, 8, 10, 12),
            "tiny": _same(2, 12),
            "demo": {1: 2, 2: 4, 4: 8, 6: 12},  # the same shares of the demo ViT's six blocks
            "smoke": {1: 2, 6: 12},
        },
    ),
    "f": Sweep(
        "prompts", "prompts a layer", "prompts a block, sample tower",
        "the data decide: CUB highest at 20 (86.5), 82.5 at 100; Cars 84.5 at 0, highest at 60 (87.0)",
        {
            "paper": {**_same(0), 10: None, **_same(20, 40, 60, 80, 100)},
            "tiny": {**_same(0), 10: None, **_same(20, 100)},
            "demo": {**_same(0), 2: None, 10: None, **_same(20)},
            "smoke": {**_same(0), 2: None},
        },
    ),
    "lambda": Sweep(
        "ema_keep", "memory of the running average", "λ, share of P that is kept",
        "mentioned without a curve; the released code has 0.8",
        {
            "paper": dict.fromkeys((0.0, 0.2, 0.5, 0.8, 0.9, 0.99)),
            "tiny": dict.fromkeys((0.0, 0.8, 0.99)),
            "demo": dict.fromkeys((0.0, 0.8, 0.95)),
            "smoke": dict.fromkeys((0.0, 0.8)),
        },
        row="VPTSP-M + BitFit",
    ),
}  # fmt: skip


def check_panels(panels: Sequence[str]) -> list[str]:
    """Return the panels without duplicates. Raises ConfigError for an unknown panel or an empty list."""
    for panel in panels:
        check_choice("panel", panel, tuple(SWEEPS))
    if not panels:
        raise ConfigError(f"panels = [] leaves nothing to show; name some of {', '.join(SWEEPS)}")
    return list(dict.fromkeys(panels))


def points(panel: str, profile: str, **changes: Any) -> list[Point]:
    """Return the runs of a panel, in the order of x, with the settings in ``changes`` applied last.

    Panel b leaves out batches that are not of whole classes, or of more classes than the data have. If ``changes``
    contain the panel's key, all runs are left out. `left_out` says both.
    """
    sweep, rows = SWEEPS[panel], method_rows(profile)
    if sweep.key in changes:
        return []
    swept = []
    for value, paper_x in sweep.points_of(profile).items():
        without = panel == "a" and value == 0
        row = rows[WITHOUT_CLASS_PROMPTS] if without else {**rows[sweep.row], sweep.key: value}
        if panel == "b" and not _possible(value, configured(profile, rows[sweep.row], changes)):
            continue
        config = configured(profile, row, changes)
        x = float(getattr(config, sweep.key))
        if panel == "a":
            x = 0.0 if without else _class_prompt_parameters(config) / 1e3
        beside = "" if paper_x is None or abs(paper_x - x) < 1e-9 else f" (paper: {paper_x:g})"
        swept.append(Point(f"{x:g}{beside}", x, paper_x, config))
    return swept


def left_out(panel: str, profile: str, **changes: Any) -> str:
    """Return one line that says which runs `points` left out and why, or "" if it left out none."""
    sweep, row = SWEEPS[panel], method_rows(profile)[SWEEPS[panel].row]
    if sweep.key in changes:
        return f"No runs: changes (--set) contain {sweep.key}, which panel {panel} varies; leave it out"
    config = configured(profile, row, changes)
    lost = [f"{value:g}" for value in sweep.points_of(profile) if panel == "b" and not _possible(value, config)]
    if not lost:
        return ""
    k, classes = config.samples_per_class, TRAIN_CLASSES[config.dataset]
    return (
        f"Panel b without {', '.join(lost)}: {k} images per class make batches that are multiples of {k} and at most "
        f"{k * classes} with the {classes} training classes of {config.dataset}"
    )


def _possible(batch: float, config: RunConfig) -> bool:
    """Return whether ``batch`` images are whole classes of the config, as many as its data have."""
    classes, rest = divmod(batch, config.samples_per_class)
    return rest == 0 and classes <= TRAIN_CLASSES[config.dataset]


@functools.cache
def _class_prompt_parameters(config: RunConfig) -> int:
    """Return the number of parameters of the class prompts of all training classes."""
    _, width, _ = shape(config.backbone)
    return math.prod(table_shape(config, TRAIN_CLASSES[config.dataset], width))
