"""Make a GPU compute the same numbers in every run. By default, the order of its sums varies. A CPU needs no settings.

The settings are those of PyTorch's note on reproducibility. An operation without a deterministic form raises an error.
The settings have not been tested on a GPU.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from vptsp_core.errors import VptspError

_VARIABLE, _FIXED = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")  # the two that cuBLAS documents
# The backward passes of these two add in a fixed order; PyTorch does not say so of the other backends.
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]


@contextlib.contextmanager
def deterministic_algorithms(device: str | None = None) -> Iterator[None]:
    """Inside, torch computes in a fixed order. Afterwards its settings are restored.

    Only the variable of `fix_cublas` stays set, because a second run in this process needs it.
    Raises VptspError: CUDA was started in this process without that variable, or it has another value.
    """
    import torch._inductor.config as inductor

    fix_cublas(device)
    cudnn, mode = torch.backends.cudnn, torch.get_deterministic_debug_mode()
    before = cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    # torch also sets the compiler's switch and does not restore it, so the patch is the outer context
    with inductor.patch(deterministic=True), sdpa_kernel(_ATTENTION):
        try:
            torch.use_deterministic_algorithms(True)
            cudnn.deterministic, cudnn.benchmark = True, False
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # we never read such memory
            yield
        finally:
            torch.set_deterministic_debug_mode(mode)
            cudnn.deterministic, cudnn.benchmark, torch.utils.deterministic.fill_uninitialized_memory = before  # type: ignore[attr-defined]


def fix_cublas(device: str | None = None) -> None:
    """Set the variable that cuBLAS reads when CUDA starts, unless the run is on a CPU or an Apple GPU.
    Raises VptspError: see `deterministic_algorithms`.
    """
    if str(device).startswith(("cpu", "mps")):
        return
    given = os.environ.get(_VARIABLE)
    if given in _FIXED:
        return
    if given is not None:
        raise VptspError(
            f"deterministic: {_VARIABLE}={given} is not {' or '.join(_FIXED)}; unset it or set one of these"
        )
    if torch.cuda.is_initialized():
        raise VptspError(
            f"deterministic: CUDA was started in this process without {_VARIABLE}; set it to {_FIXED[0]} before Python "
            "starts, or call this first"
        )
    os.environ[_VARIABLE] = _FIXED[0]
