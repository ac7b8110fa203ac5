"""VPTSP: semantic proxies from visual prompts, for parameter-efficient deep metric learning.

Ren, Chen, Wang, Hua, "Learning Semantic Proxies from Visual Prompts for Parameter-Efficient Fine-Tuning in Deep
Metric Learning", ICLR 2024 (arXiv 2402.02340).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vptsp_core.system._torchvision import prepare as _prepare_torchvision
from vptsp_core.system.caches import prepare as _prepare_caches
from vptsp_core.system.places import VERSION

if TYPE_CHECKING:
    from vptsp_core.method.config import RunConfig
    from vptsp_core.method.metrics import retrieval_metrics
    from vptsp_core.method.presets import PRESETS, preset
    from vptsp_core.runs.embedder import Embedder, load
    from vptsp_core.runs.folder import Run
    from vptsp_core.runs.run import run

__version__ = VERSION
__all__ = ["PRESETS", "Embedder", "Run", "RunConfig", "load", "preset", "retrieval_metrics", "run"]

_prepare_caches()
_prepare_torchvision()

_HOME = {
    "RunConfig": "method.config", "Embedder": "runs.embedder", "load": "runs.embedder",
    "retrieval_metrics": "method.metrics", "PRESETS": "method.presets", "preset": "method.presets",
    "Run": "runs.folder", "run": "runs.run",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Import public names on first use, so that ``--help`` and error messages do not wait for timm and pandas."""
    if name not in _HOME:
        raise AttributeError(f"module 'vptsp_core' has no attribute {name!r}")
    return getattr(importlib.import_module(f"vptsp_core.{_HOME[name]}"), name)
