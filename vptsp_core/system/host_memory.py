"""Host memory for tables that are too large for a GPU: their room, pages of their own, and pinning."""

from __future__ import annotations

import math
import mmap

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.system.portable import available_memory

_PORTABLE = 1  # cudaHostRegisterPortable: pinned for all devices


def check_room(size: int) -> None:
    """Raise VptspError if this machine's memory cannot hold a table of ``size`` bytes."""
    if size > (available := available_memory()):
        raise VptspError(
            f"no host memory for a class-prompt table of {size / 1e9:.1f} GB ({available / 1e9:.1f} GB are available); "
            "lower class_prompts or class_layers"
        )


def own_pages(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return zeros of ``shape`` (rows, ...) in memory pages of their own, so that they can be pinned.

    Memory is used only when a page is first touched. Forked processes share the pages: a copy on write would move
    rows that a GPU is reading.
    Raises VptspError: the memory is too small.
    """
    size = math.prod(shape) * dtype.itemsize
    check_room(size)
    pages = mmap.mmap(-1, max(size, 1))
    return torch.frombuffer(pages, dtype=dtype, count=math.prod(shape)).view(shape)


def pin(table: Tensor, device: torch.device) -> int:
    """Pin the memory of a table (rows, ...) in place, and return its address for `unpin`.

    ``Tensor.pin_memory`` would copy it into an allocation rounded up to a power of two.
    Raises VptspError: the system's limit of locked memory is too low.
    """
    try:
        with torch.cuda.device(device):
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(table.data_ptr(), table.nbytes, _PORTABLE))
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise VptspError(
            f"cannot pin {table.nbytes / 1e9:.1f} GB of host memory for the class prompts ({reason}); "
            "raise the limit of locked memory (ulimit -l), or keep them on the GPU with --class-table device"
        ) from error
    return table.data_ptr()


def unpin(addresses: list[int], device: torch.device) -> None:
    """Undo `pin`, when no copy on the device uses the memory any more."""
    torch.cuda.synchronize(device)
    for address in addresses:
        torch.cuda.cudart().cudaHostUnregister(address)
