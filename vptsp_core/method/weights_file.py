"""The formats of weight files: how a file is recognised and read. No code in a file is executed."""

from __future__ import annotations

import argparse
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from vptsp_core.errors import WeightsError

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".ckpt", ".npz")
WRONG_FILE_STARTS = {
    b"version https://git-lfs": "a Git LFS pointer in place of the weights; run git lfs pull",
    b"<": "a web page in place of the weights; download the file itself",
    b"\x1f\x8b": "a compressed archive; unpack it and give the file of weights inside",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors, of any shape, in a file that this project wrote, by name.
    Raises WeightsError if the file is missing or unreadable, contains code, or has values that are not finite.
    """
    state = read_content(path)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise WeightsError(f"weights {path}: holds no table of tensors; save model.state_dict()")
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


def file_kind(path: Path) -> str:
    """Return ``"safetensors"``, ``"torch"`` or ``"npz"``, by the content of the file.

    A file called .safetensors is never read as a pickle.
    Raises WeightsError if the file is missing or of another kind. The message says what it seems to be.
    """
    check_file(path, str(path))
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as error:
        raise WeightsError(f"weights {path}: unreadable ({error.strerror}); get the file again") from error
    suffix = path.suffix.lower()
    if start[8:9] == b"{":
        return "safetensors"
    by_torch = start[:1] == b"\x80"  # torch's format until version 1.5
    if zipfile.is_zipfile(path):
        names = _members(path)
        if any(name.endswith("/constants.pkl") for name in names):
            raise WeightsError(f"weights {path}: a TorchScript program, and no code of a file is executed; "
                               "save its state_dict() alone")  # fmt: skip
        if names and all(name.endswith(".npy") for name in names):
            return "npz"
        by_torch = any(name.endswith("/data.pkl") for name in names)
    if by_torch and suffix == ".safetensors":
        fault = "a torch file, which is never read under the name .safetensors; rename it to .pth"
        raise WeightsError(f"weights {path}: {fault}")
    if by_torch:
        return "torch"
    for beginning, what in WRONG_FILE_STARTS.items():
        if start.startswith(beginning):
            raise WeightsError(f"weights {path}: {what}")
    if suffix == ".tar" and tarfile.is_tarfile(path):
        raise WeightsError(f"weights {path}: an archive; unpack it and give the file of weights inside")
    if suffix not in SUFFIXES:
        raise WeightsError(f"weights {path}: unknown kind {path.suffix!r}; give .safetensors, .pth, .pt, .bin or .npz")
    raise WeightsError(f"weights {path}: unreadable (cut short or damaged); get the file again")


def _members(path: Path) -> list[str]:
    """Return the names in a zip archive, or [] if it is damaged."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.namelist()
    except Exception:  # zipfile raises many kinds of errors
        return []


def read_content(path: Path) -> Any:
    """Return the content of a .safetensors or torch file.
    Raises WeightsError if the file is missing or unreadable, or contains code.
    """
    try:
        if file_kind(path) == "safetensors":
            with safe_open(path, "pt") as file:
                ours = [key for key in file.metadata() or {} if key.startswith("vptsp_")]
            return ProjectTensors(load_file(path)) if ours else load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # training options, which many files contain
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):  # torch's own message advises to trust the file
            raise WeightsError(
                f"weights {path}: holds {code[1]} besides tensors, and no code of a file is executed; "
                "save model.state_dict() alone"
            ) from error
        reason = error.strerror if isinstance(error, OSError) and error.strerror else "cut short or damaged"
        raise WeightsError(f"weights {path}: unreadable ({reason}); get the file again") from error


class ProjectTensors(dict[str, Tensor]):
    """The tensors of a .safetensors file whose metadata says that this project wrote it."""


def check_tensor(path: Path, key: str, value: Any) -> None:
    """Check that ``value``, of any shape, is a plain tensor of finite floating-point numbers.
    Raises WeightsError if not. The message has the tensor's ``key``.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.layout != torch.strided:
        raise WeightsError(f"weights {path}: {key} is not a table of floating-point numbers; save model.state_dict()")
    # A small file can claim a huge tensor by repeating its numbers. torch cannot compute with 8-bit numbers.
    whole = value.device.type == "cpu" and value.untyped_storage().nbytes() >= value.nbytes and value.itemsize > 1
    if not whole:
        raise WeightsError(f"weights {path}: {key} is not a plain table of 16, 32 or 64 bits; save model.state_dict()")
    if not value.isfinite().all():
        raise WeightsError(f"weights {path}: {key} holds values that are not finite numbers; get the file again")
