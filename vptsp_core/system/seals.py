"""Compute and compare checksums (SHA-256) of files, and of headers with their tensors.

They protect against damage and mistakes, not against somebody who changes a file on purpose.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEAL, TENSORS = "checksum", "tensors"


def digest(content: bytes | memoryview | Path) -> str:
    """Return the SHA-256 of bytes, or of a file."""
    if not isinstance(content, Path):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sealed(values: Mapping[str, Any], tensors: Mapping[str, Tensor | np.ndarray] | None = None) -> dict[str, Any]:
    """Return JSON values with their checksum. If ``tensors`` are given, include the tensors' checksum too."""
    values = values if tensors is None else {**values, TENSORS: _of_tensors(tensors)}
    return {**values, SEAL: _of_json(values)}


def unsealed(values: Mapping[str, Any], tensors: Mapping[str, Tensor | np.ndarray] | None = None) -> dict[str, Any]:
    """Return the values without their checksum.
    Raises ValueError: a checksum is missing, or does not fit the values or the tensors. Raises TypeError: the values
    are not a table.
    """
    kept = dict(values)
    if kept.pop(SEAL, None) != _of_json(kept):
        raise ValueError("its content does not fit its checksum")
    if tensors is not None and kept.get(TENSORS) != _of_tensors(tensors):
        raise ValueError("its tensors do not fit their checksum")
    return kept


def _of_json(values: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(values))  # number keys become text, tuples become lists
    return digest(json.dumps(read_back, sort_keys=True).encode())


def _of_tensors(tensors: Mapping[str, Tensor | np.ndarray]) -> str:
    """Return the checksum of names, types, shapes and bytes."""
    checksum = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        checksum.update(json.dumps([name, str(values.dtype).removeprefix("torch."), list(values.shape)]).encode())
        flat = values.reshape(-1)
        of_bytes = flat.view(torch.uint8).numpy() if isinstance(flat, Tensor) else flat.view(np.uint8)
        checksum.update(of_bytes)  # type: ignore[arg-type]  # a buffer
    return checksum.hexdigest()
