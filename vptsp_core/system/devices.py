"""Choose the device and the precision of a run."""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.system.distributed import launched, local_rank
from vptsp_core.system.portable import processor

PAYS = 1.5  # on a CPU, a bf16 product must be this many times as fast as a float32 one


def autocast_dtype(precision: str, device: torch.device, width: int = 384) -> torch.dtype | None:
    """Return the dtype in which the backbone computes; None is float32.

    ``"auto"`` is bf16 on a GPU that has it natively. On a CPU that has it, a product of the backbone's ``width`` is
    timed, and ``"auto"`` is bf16 if bf16 is at least `PAYS` times as fast as float32.
    Raises VptspError: ``"fp16"`` on a device without it.
    """
    return trunk_dtype(choose_precision(precision, device, width))


def trunk_dtype(chosen: Mapping[str, str]) -> torch.dtype | None:
    """Return the dtype that `choose_precision` chose, for autocast; None is float32."""
    return None if chosen["trunk"] == "float32" else getattr(torch, chosen["trunk"])


def choose_precision(precision: str, device: torch.device, width: int = 384) -> dict[str, str]:
    """Return the choice of `autocast_dtype` for a record: ``trunk``, the dtype's name, and ``why``, the reason.
    Raises the same errors.
    """
    dtype, why = _dtype_and_reason(precision, device, width)
    return {"trunk": str(dtype or torch.float32).removeprefix("torch."), "why": why}


def _dtype_and_reason(precision: str, device: torch.device, width: int) -> tuple[torch.dtype | None, str]:
    if precision == "auto":
        if device.type == "cpu":
            return _cpu_precision(width)
        if device.type == "mps":
            native = torch.backends.mps.is_macos_or_newer(14, 0)  # the same condition as in torch's autocast
        else:
            with torch.cuda.device(device):  # emulated bf16 is slower than float32
                native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "this GPU has bf16") if native else (None, "this GPU has no bf16")
    if precision == "fp16" and device.type != "cuda":
        raise VptspError(
            f"precision = 'fp16' needs an NVIDIA GPU, the device is {device}; use 'auto', 'bf16' or 'fp32'"
        )
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision], "asked for"


@functools.cache
def _cpu_precision(width: int) -> tuple[torch.dtype | None, str]:
    units = [name for name in ("amx_bf16", "avx512_bf16") if torch.cpu.get_capabilities().get(name)]
    if not units:
        return None, "this CPU has no bf16 units (AMX, AVX512-BF16)"
    quicker = bf16_speedup(width)
    reason = f"this CPU has {' and '.join(units)}; a bf16 product is {quicker:.1f} times as fast as a float32 one"
    return (torch.bfloat16 if quicker >= PAYS else None), reason


def bf16_speedup(width: int) -> float:
    """Return how many times as fast as float32 a bf16 product of the backbone's shapes is.

    It runs twenty of each alternately in one thread and measures that thread's CPU time, so other work hardly matters.
    """
    x, weight = torch.ones(1576, width), torch.ones(3 * width, width)  # QKV of eight images of 224 px
    spent = dict.fromkeys((torch.float32, torch.bfloat16), 0.0)
    factors = {dtype: (x.to(dtype), weight.to(dtype)) for dtype in spent}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for pair in factors.values():
                torch.nn.functional.linear(*pair)  # the first product of a kind also prepares it
            for dtype in 20 * list(spent):
                start = time.thread_time()
                torch.nn.functional.linear(*factors[dtype])
                spent[dtype] += time.thread_time() - start
    finally:
        torch.set_num_threads(threads)
    return spent[torch.float32] / max(spent[torch.bfloat16], 1e-9)


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device called ``name``; None picks a GPU (cuda, then mps) if there is one, otherwise the CPU.

    Under torchrun each process gets its own GPU, or computes on the CPU.
    Raises VptspError: the device does not exist or does not work, or one GPU was named for all processes.
    """
    try:
        device = torch.device(_best() if name is None else name)
        if device.type not in ("cpu", "cuda", "mps") or (device.type != "cuda" and device.index):
            raise RuntimeError("another kind of device")
        if device.type == "mps" and launched():
            raise VptspError(f"device {str(name)!r}: an Apple GPU works for one process; use cpu, or no torchrun")
        if device.type == "cuda" and launched():
            if device.index not in (None, local_rank()):
                raise VptspError(f"device {str(name)!r}: each process has its own GPU; use cuda")
            device = torch.device("cuda", local_rank())
        torch.zeros(1, device=device).add_(1)  # fails if torch was built without kernels for this GPU
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise VptspError(
            f"device {str(name or _best())!r} cannot be used here ({reason}); choose cpu, or cuda or mps if there is "
            "such a GPU"
        ) from error
    return device


def free_gpu_memory(device: torch.device) -> int:
    """Return the free bytes of an NVIDIA GPU, after torch has given back the memory that it only keeps for later."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() and not launched() else "cpu"


def device_name(device: torch.device) -> str:
    """Return the name of an NVIDIA GPU or of the processor; "mps" for Apple's GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor() if device.type == "cpu" else device.type


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small tensor (any shape) to the device from pinned memory, so that the host does not wait for a GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
