"""Lets a CPU-only torch import a torchvision that was built for CUDA (timm imports torchvision).

PyPI's torchvision on Linux is the CUDA build. Beside a CPU build of torch its compiled library cannot load,
the operators `torchvision::nms` and `torchvision::qnms` are never defined, and `import torchvision`, which
registers shape functions for exactly these two, stops with "operator torchvision::nms does not exist". Their
schemas are enough for that import. The compiled operators (nms, image codecs) stay absent; we use neither.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # a Library takes its operators along when it is collected


def prepare() -> bool:
    """Define the two schemas where torchvision's own library cannot; call it before torchvision is imported.

    Does nothing with a GPU build of torch, a torchvision that fits its torch, no torchvision, or when called
    again. Returns True where it defined them, now or before.
    """
    global _library
    if _library is not None:
        return True
    if torch.version.cuda or torch.version.hip or _defined():
        return False
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return False
    # The compiled library goes first, as in torchvision: once the schemas are ours, it could not be loaded.
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("_C*")):
        if path.suffix in {".so", ".pyd"}:
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(path))
    if _defined():
        return False
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    return True


def _defined() -> bool:
    return hasattr(torch.ops.torchvision, "nms")
