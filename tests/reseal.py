"""Change the files of a run or an embedder on purpose, and give them checksums that fit."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors
import safetensors.numpy

from vptsp_core.system.seals import SEAL, digest, sealed


def reseal_run(folder: Path) -> None:
    record = json.loads((folder / "record.json").read_text())
    record.pop(SEAL)
    record["files"] = {name: digest(folder / name) for name in record["files"] if (folder / name).is_file()}
    (folder / "record.json").write_text(json.dumps(sealed(record)))


def rewrite_header(path: Path, key: str, change) -> None:
    """Write the same tensors with a changed header."""
    header, tensors = read(path, key)
    change(header)
    write_sealed(path, key, header, tensors)


def read(path: Path, key: str) -> tuple[dict, dict]:
    """Return the header under ``key``, and the tensors."""
    with safetensors.safe_open(path, "np") as file:
        names = file.keys()
        return json.loads(file.metadata()[key]), {name: file.get_tensor(name) for name in names}


def write_sealed(path: Path, key: str, header: dict, tensors: dict) -> None:
    header = {name: value for name, value in header.items() if name != SEAL}
    path.write_bytes(safetensors.numpy.save(tensors, {key: json.dumps(sealed(header, tensors))}))
