"""How a file of weights is recognised and read. No code in a file is executed."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from vptsp_core.errors import WeightsError

WRONG_STARTS = {b"version https://git-lfs": "a Git LFS pointer; run git lfs pull", b"<": "a web page"}
OTHER_FAULT = "damaged, or not a .safetensors, .pth, .pt, .bin, .ckpt or .npz file"


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors, of any shape, in a file that this project wrote, by name.
    Raises WeightsError if the file is missing or unreadable, contains code, or has values that are not finite.
    """
    state = read_content(path)
    for key, value in state.items():
        check_tensor(path, key, value)
    return state


def check_file(path: Path, given: str) -> None:
    """Check that the file exists. Raises WeightsError if not; its message has the path as it was ``given``."""
    if not given.strip():
        raise WeightsError("weights is empty; give a .safetensors or .pth file, or leave it out")
    if not path.is_file():
        fault = "a folder, no file" if path.is_dir() else "no such file"
        raise WeightsError(f"weights {given}: {fault}; give a .safetensors or .pth file")


def read_content(path: Path) -> Any:
    """Return the content of a .safetensors or torch file. The first bytes or the suffix .safetensors show the format.
    Raises WeightsError if the file is missing or unreadable, or contains code.
    """
    check_file(path, str(path))
    start = b""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start[8:9] == b"{" or path.suffix.lower() == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # training options, which many files contain
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if code := re.search(r"GLOBAL (\S+)|TorchScript", str(error)):  # torch's own message advises to trust the file
            held = f"{code[1]} besides tensors" if code[1] else "a TorchScript program"
            raise WeightsError(
                f"weights {path}: holds {held}, and no code of a file is executed; save model.state_dict() alone"
            ) from error
        reason = error.strerror if isinstance(error, OSError) else None
        reason = next((what for beginning, what in WRONG_STARTS.items() if start.startswith(beginning)), reason)
        raise WeightsError(f"weights {path}: unreadable ({reason or OTHER_FAULT}); get the file again") from error


def check_tensor(path: Path, key: str, value: Any) -> None:
    """Check that ``value``, of any shape, is a tensor of finite floating-point numbers, of 16 bits or more.
    Raises WeightsError if not. The message has the tensor's ``key``.
    """
    if not isinstance(value, Tensor) or value.dtype not in (torch.half, torch.bfloat16, torch.float, torch.double):
        raise WeightsError(f"weights {path}: {key} is not a floating-point tensor; save model.state_dict()")
    if not value.isfinite().all():
        raise WeightsError(f"weights {path}: {key} holds values that are not finite numbers; get the file again")
