"""Let a CPU-only torch import a torchvision that was built for CUDA (timm imports torchvision).

PyPI's torchvision on Linux is the CUDA build. Its compiled library cannot load beside a CPU build of torch, so the
operators `torchvision::nms` and `torchvision::qnms` are not defined. `import torchvision` registers shape functions for
these two, and then stops with "operator torchvision::nms does not exist". Their schemas are enough for the import. The
compiled operators (nms, image codecs) stay absent, and we use neither.
"""

import contextlib
import importlib.util
from pathlib import Path

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: torch.library.Library | None = None  # kept, because its operators end with it


def prepare() -> None:
    """Define the two schemas if torchvision's own library cannot; call it before torchvision is imported.

    A GPU build of torch, or a torchvision that fits its torch, needs nothing.
    """
    global _library
    if torch.version.cuda or torch.version.hip or _defined():
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations:
        return
    # The compiled library is loaded first, as in torchvision: it cannot load after our schemas.
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("_C*")):
        if path.suffix in {".so", ".pyd"}:
            with contextlib.suppress(OSError):
                torch.ops.load_library(str(path))
    if _defined():
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)


def _defined() -> bool:
    return hasattr(torch.ops.torchvision, "nms")
