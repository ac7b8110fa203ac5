"""VPTSP: semantic proxies from visual prompts, for parameter-efficient deep metric learning.

Ren, Chen, Wang, Hua, "Learning Semantic Proxies from Visual Prompts for Parameter-Efficient Fine-Tuning in Deep
Metric Learning", ICLR 2024 (arXiv 2402.02340).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vptsp_core._torchvision import prepare as _prepare_torchvision

if TYPE_CHECKING:
    from vptsp_core.config import RunConfig
    from vptsp_core.embedder import Embedder, load
    from vptsp_core.metrics import retrieval_metrics
    from vptsp_core.presets import PRESETS, preset
    from vptsp_core.runs import Run
    from vptsp_core.study import run

__version__ = "0.1.0"
__all__ = ["PRESETS", "Embedder", "Run", "RunConfig", "load", "preset", "retrieval_metrics", "run"]

_prepare_torchvision()

_HOME = {
    "RunConfig": "config", "Embedder": "embedder", "load": "embedder", "retrieval_metrics": "metrics",
    "PRESETS": "presets", "preset": "presets", "Run": "runs", "run": "study",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Public names are imported on first use, so that ``--help`` and error messages come at once."""
    if name not in _HOME:
        raise AttributeError(f"module 'vptsp_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vptsp_core.{_HOME[name]}"), name)
