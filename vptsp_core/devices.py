"""Where a run computes, and in what precision."""

from __future__ import annotations

import torch
from torch import Tensor

from vptsp_core.distributed import launched, local_rank
from vptsp_core.errors import VptspError


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The trunk's dtype: bf16 where a GPU has it for ``"auto"``; None is float32.

    Raises:
        VptspError: half precision was asked for on a device without it.
    """
    if precision == "auto":
        if device.type != "cuda":
            return None
        with torch.cuda.device(device):  # emulated it would be slower than float32
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    if precision == "fp16" and device.type != "cuda":
        raise VptspError(f"precision = 'fp16' needs a GPU, the device is {device}; use 'auto', 'bf16' or 'fp32'")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """The device called ``name``; None: a GPU where there is one. Under torchrun each process has a GPU of its own.

    Raises:
        VptspError: no such device, none that works here, or one GPU for all processes.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name is None else name)
        if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
            raise RuntimeError("another kind of device")
        if device.type == "cuda" and launched():
            if device.index not in (None, local_rank()):
                raise VptspError(f"device {str(name)!r}: each process has a GPU of its own; use cuda")
            device = torch.device("cuda", local_rank())
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise VptspError(
            f"device {str(name)!r} cannot be used here; choose cpu, or cuda where there is a GPU"
        ) from error
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A small tensor of any shape on the device.

    The host does not wait for a GPU, as it would for a copy out of pageable memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
