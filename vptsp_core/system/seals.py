"""Checksums that files carry of what they hold: one flipped bit, or an edit by hand, is told and not computed with.

They guard against damage and slips, not against somebody who means to deceive: who can write a file can seal it.
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


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with the checksum of them all beside them."""
    return {**values, SEAL: _of_json(values)}


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `sealed` was given.

    Raises:
        ValueError: there is no checksum, or it is not theirs.
    """
    kept = {key: value for key, value in values.items() if key != SEAL}
    if values.get(SEAL) != _of_json(kept):
        raise ValueError("its content does not fit its checksum")
    return kept


def sealed_header(header: Mapping[str, Any], tensors: Mapping[str, Tensor | np.ndarray]) -> dict[str, Any]:
    """`sealed`, the tensors that the header lies beside included."""
    return sealed({**header, TENSORS: _of_tensors(tensors)})


def check_tensors(header: Mapping[str, Any], tensors: Mapping[str, Tensor | np.ndarray]) -> None:
    """Refuse tensors that are not those of `sealed_header`.

    Raises:
        ValueError: they are not.
    """
    if header.get(TENSORS) != _of_tensors(tensors):
        raise ValueError("its tensors do not fit their checksum")


def digest(content: bytes | Path) -> str:
    """SHA-256 of bytes, or of a file's."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _of_json(values: Mapping[str, Any]) -> str:
    read_back = json.loads(json.dumps(values))  # keys that are numbers are text there, tuples are lists
    return digest(json.dumps(read_back, sort_keys=True).encode())


def _of_tensors(tensors: Mapping[str, Tensor | np.ndarray]) -> str:
    """Over names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name, values in sorted(tensors.items()):
        found.update(json.dumps([name, str(values.dtype).removeprefix("torch."), list(values.shape)]).encode())
        flat = values.reshape(-1)
        of_bytes = flat.view(torch.uint8).numpy() if isinstance(flat, Tensor) else flat.view(np.uint8)
        found.update(of_bytes)  # type: ignore[arg-type]  # a buffer
    return found.hexdigest()
