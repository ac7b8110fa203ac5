"""What made a run: code, machine, images and weights, and the parts of one that was cut short."""

from __future__ import annotations

import platform
import subprocess
import time
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import torch

from vptsp_core.data import Benchmark
from vptsp_core.method.backbone import checksum, identity
from vptsp_core.method.config import RunConfig
from vptsp_core.method.faiss_index import installed
from vptsp_core.method.model import MetricModel, count_parameters
from vptsp_core.runs.host_prompts import HostPrompts
from vptsp_core.system.devices import device_name, precision_and_reason
from vptsp_core.system.distributed import world_size
from vptsp_core.system.places import PACKAGE


def make_record(config: RunConfig, benchmark: Benchmark, model: MetricModel, device: torch.device) -> dict[str, Any]:
    """What a run is made with: commit, versions, device, checksums of images and weights, parameters."""
    prompts = model.class_prompts
    dtype, why = precision_and_reason(config.precision, device, model.vit.backbone.embed_dim)
    return {
        "hash": identity(config),
        **made_with(device),
        "processes": world_size(),
        "precision": {"trunk": str(dtype or torch.float32).removeprefix("torch."), "why": why},
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": benchmark.record(),
        "weights": checksum(model.vit.backbone),
        "search": "torch",  # what found the neighbours that the metrics are of; faiss is for commands that ask for it
        "faiss": installed(),
        "parameters": count_parameters(model),
        "class_table": None if prompts is None else "host" if isinstance(prompts, HostPrompts) else "device",
    }


def made_with(device: torch.device) -> dict[str, Any]:
    """The code and the machine: ``commit``, ``versions`` of the packages that numbers depend on, and ``device``."""
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
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


def make_stretch(record: dict[str, Any], model: MetricModel, seconds: float) -> dict[str, Any]:
    """The part of a record that may be another after a run was cut short, with the seconds that this part took."""
    parts = (
        "started", "processes", "device", "precision", "class_table", "commit", "versions", "deterministic", "data",
        "weights",
    )  # fmt: skip
    kept = {key: record[key] for key in parts}
    return {**kept, "checkpointing": model.vit.checkpointing, "seconds": round(seconds, 2)}


def close_record(record: dict[str, Any], stretches: list[dict[str, Any]]) -> dict[str, Any]:
    """The record of a finished run: ``started`` of the first part, ``seconds`` of all of them, and the parts."""
    seconds = round(sum(each["seconds"] for each in stretches), 2)
    ends = {"started": stretches[0]["started"], "checkpointing": stretches[-1]["checkpointing"]}
    return {**record, **ends, "seconds": seconds, "stretches": stretches}


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:  # not installed as a distribution: run from the source tree
        return "source tree"


@lru_cache
def _commit() -> str:
    """Commit of the source tree, with + where tracked files differ from it; "unknown" outside of git."""

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
