"""The record of a run: its code, machine, images and weights, and the calls that trained its parts."""

from __future__ import annotations

import hashlib
import platform
import subprocess
import time
from collections.abc import Collection
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from vptsp_core.data import Benchmark
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import is_lora
from vptsp_core.method.model import MetricModel, count_parameters
from vptsp_core.runs.folder import identity
from vptsp_core.runs.host_prompts import HostPrompts
from vptsp_core.system.devices import device_name
from vptsp_core.system.distributed import world_size
from vptsp_core.system.places import PACKAGE


def make_record(
    config: RunConfig, benchmark: Benchmark, model: MetricModel, device: torch.device, deterministic: bool
) -> dict[str, Any]:
    """Return a record with all that is known before training."""
    prompts = model.class_prompts
    return {
        "hash": identity(config),
        **made_with(device),
        "processes": world_size(),
        "deterministic": deterministic or torch.are_deterministic_algorithms_enabled(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": benchmark.record(),
        "weights": checksum(model.vit.backbone),
        "parameters": count_parameters(model),
        "class_table": None if prompts is None else "host" if isinstance(prompts, HostPrompts) else "device",
    }


def made_with(device: torch.device) -> dict[str, Any]:
    """Return the ``commit``, the ``versions`` of the packages that numbers depend on, and the ``device``."""
    count = torch.get_num_threads()
    threads = f", {count} thread{'s' * (count > 1)}" if device.type == "cpu" else ""
    packages = ("torchvision", "timm", "numpy", "vptsp-core")
    return {
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),  # with its build, such as +cu130
            **{name: _version(name) for name in packages},
        },
        "device": device_name(device) + threads,
    }


def part_of_run(record: dict[str, Any], model: MetricModel, seconds: float) -> dict[str, Any]:
    """Describe the part of a run that one call trained: what can change between two calls, and the call's seconds."""
    keys = (
        "started", "processes", "device", "class_table", "commit", "versions", "deterministic", "data", "weights",
    )  # fmt: skip
    kept = {key: record[key] for key in keys}
    return {**kept, "checkpointing": model.vit.checkpointing, "seconds": round(seconds, 2)}


def close_record(record: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Complete the record of a finished run: start and precision of its first part, seconds of all, and the parts."""
    seconds = round(sum(part["seconds"] for part in parts), 2)
    first = {key: parts[0][key] for key in ("started", "precision")}
    return {**record, **first, "checkpointing": parts[-1]["checkpointing"], "seconds": seconds, "stretches": parts}


def checksum(model: nn.Module, names: Collection[str] | None = None) -> str:
    """Return the first sixteen hex digits of a SHA-256 over names and values of the tensors called ``names``.

    If ``names`` is None, all tensors count except LoRA's factors, by the names that they have without LoRA.
    """
    state = model.state_dict()
    if names is None:
        state = {name.replace(".base_layer.", "."): value for name, value in state.items() if not is_lora(name)}
    else:
        state = {name: value for name, value in state.items() if name in names}
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "source tree"


@lru_cache
def _commit() -> str:
    """Return the commit of the source tree, with "+" if tracked files differ from it, or "unknown" outside of git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")  # another project's repository can contain an installed copy
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
