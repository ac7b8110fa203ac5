"""The folder of a finished run: its name, its files, and the check that they are what the run wrote.

The record contains the SHA-256 of every other file, and a checksum of itself (`system.seals`).
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
from torch import Tensor

from vptsp_core.data import OWN, Benchmark
from vptsp_core.errors import ConfigError, WeightsError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.weights_file import check_file, read_weights
from vptsp_core.runs.checkpoints import remove_checkpoints
from vptsp_core.runs.progress import LOCK, PROGRESS
from vptsp_core.runs.selection import reported
from vptsp_core.system.files import as_json, write_bytes, write_json
from vptsp_core.system.places import results_folder
from vptsp_core.system.seals import digest, sealed, unsealed

CONFIG, METRICS, HISTORY, RECORD = "config.json", "metrics.json", "history.csv", "record.json"
QUERIES, WEIGHTS = "queries.npz", "model.safetensors"
CLASS = "class"  # in `QUERIES`, beside the metrics
_AGAIN = "delete the folder and run it again"


@dataclass(frozen=True)
class Run:
    """A finished run. A light run is one whose folder has no weights."""

    config: RunConfig
    path: Path  # its folder
    # Of retrieval, fractions in [0, 1], of the epochs that ``selection`` chooses; and ``epoch``, the one of R@1.
    metrics: dict[str, float]
    # A row per epoch: loss, learning rates, seconds of training, and metrics if the epoch was evaluated.
    history: pd.DataFrame = field(repr=False)
    # Commit, versions, device, checksums of data and weights, parameters, times. If a run was cut short and resumed,
    # ``started``, ``precision`` and ``seconds`` are of the whole run, ``stretches`` describes each call that trained a
    # part of it (`runs.record.part_of_run`), and the rest is of the last call.
    record: dict[str, Any] = field(repr=False)

    @property
    def light(self) -> bool:
        """Whether the folder has no weights."""
        return not (self.path / WEIGHTS).is_file()

    @cached_property
    def queries(self) -> dict[str, np.ndarray]:
        """The values of each metric for all test queries, (N,) float32, at the metric's reported epoch (see `Scores`).

        "class" has the class of each query, (N,) int64. Raises WeightsError: the file is missing or damaged.
        """
        path = self.path / QUERIES
        verify(self.path, self.record, QUERIES)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # numpy and zipfile raise errors of many kinds
            raise WeightsError(f"{path}: unreadable ({error}); {_AGAIN}") from error


def identity(config: RunConfig) -> str:
    """Return the run's hash. A file of weights is part of it by its content, not by its path.
    Raises WeightsError if the file does not exist.
    """
    if config.weights in ("pretrained", "random"):
        return config.hash()
    file = Path(config.weights).expanduser()
    check_file(file, config.weights)
    return config.replace(weights=f"sha256:{digest(file)[:16]}").hash()


def whole_path(weights: str) -> str:
    """Return a config's ``weights``. A file's path is made absolute, so that it is valid in every working directory."""
    if weights in ("pretrained", "random") or not weights.strip():
        return weights
    return str(Path(weights).expanduser().absolute())


def run_folder(config: RunConfig, results: str | Path | None = None, benchmark: Benchmark | None = None) -> Path:
    """Return the folder of a run. A file of weights is identified by its content, not by its path.

    ``benchmark`` is needed for your own images and for incomplete data sets: their fingerprint is part of the name.
    """
    name = f"{config.dataset}-{config.method}-{identity(config)}"
    if benchmark is not None and (benchmark.differences or config.dataset in OWN):
        name += f"{'-partial' if benchmark.differences else ''}-{benchmark.fingerprint()[:8]}"
    return results_folder(results) / "runs" / name


def write_run(
    config: RunConfig,
    path: Path,
    history: pd.DataFrame,
    record: dict[str, Any],
    queries: Mapping[str, np.ndarray],
    weights: Mapping[str, Tensor],
) -> Run:
    """Write the files of a finished run, delete its checkpoints, and return the run.

    ``weights`` are the learned tensors, on the CPU, of the epoch that R@1 is reported from.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **queries)  # type: ignore[arg-type]  # no name is a keyword of it
    contents = {
        CONFIG: as_json(config.to_dict()),
        HISTORY: history.to_csv(index=False).encode(),
        QUERIES: buffer.getvalue(),
        WEIGHTS: safetensors.torch.save({name: each.contiguous() for name, each in weights.items()}),
        METRICS: as_json(reported(history, config.selection)),  # last: a run with this file is finished
    }
    files = {name: digest(content) for name, content in contents.items()}
    (path / METRICS).unlink(missing_ok=True)  # a light run that is trained again has one
    write_json(path / RECORD, sealed({**record, "files": files}))
    for name, content in contents.items():
        write_bytes(path / name, content)
    remove_checkpoints(path)
    return read_run(path)


def finished_run(path: Path, benchmark: Benchmark | None = None, light: bool = True) -> Run | None:
    """Return the run in a folder, or None if it is not finished, or if it is light and ``light`` is False.

    Files that a killed process left beside a finished run are deleted.
    Raises WeightsError: a file is damaged or missing, or the run was made with other images than those of
    ``benchmark``.
    """
    if not (path / METRICS).exists():
        return None
    done = read_run(path)
    if done.light and not light:
        return None
    verify(path, done.record, QUERIES, *([] if done.light else [WEIGHTS]))
    if benchmark is not None and done.record["data"] != benchmark.record():
        raise WeightsError(
            f"{path}: made with other images of {benchmark.name} than these; give those, or another results folder"
        )
    if done.light:  # another process may be training it again
        return done
    with contextlib.suppress(OSError):  # the folder may be read-only
        remove_checkpoints(path)
        for name in (PROGRESS, LOCK):
            (path / name).unlink(missing_ok=True)
    return done


def read_run(path: str | Path) -> Run:
    """Read a finished run from its folder.
    Raises WeightsError: the folder holds no finished run, or one of its files is damaged or was edited.
    """
    path = Path(path)
    for name in (CONFIG, METRICS, RECORD, HISTORY):
        if not (path / name).is_file():
            raise WeightsError(f"{path} holds no finished run ({name} is missing); give the folder of one")
    config = _read_config(path / CONFIG)
    try:
        record = unsealed(json.loads((path / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path / RECORD}: {error} (damaged or edited); {_AGAIN}") from error
    verify(path, record, CONFIG, METRICS, HISTORY)
    metrics = json.loads((path / METRICS).read_text("utf-8"))
    return Run(config, path, metrics, pd.read_csv(path / HISTORY), record)


def _read_config(path: Path) -> RunConfig:
    """Read a config.json. Raises WeightsError if it is unreadable, or another version of this project wrote it."""
    try:
        return RunConfig.from_dict(dict(json.loads(path.read_text(encoding="utf-8"))))
    except ConfigError as error:
        raise WeightsError(f"{path}: {error} (of another version?); use that version, or {_AGAIN}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path}: unreadable (cut short or damaged); {_AGAIN}") from error


def learned_weights(path: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """Read the learned tensors of the finished run in ``path``, by name.
    Raises WeightsError: the run is light, or the file is unreadable or does not have the checksum in ``record``.
    """
    if not (path / WEIGHTS).is_file():
        own = f"--preset {shlex.quote(str(path / CONFIG))} --results {shlex.quote(str(path.parent.parent))}"
        cure = f"to train it again: python -m vptsp_core train {own}{data_options(record['data'])}"
        raise WeightsError(f"{path}: a light run, without its weights; {cure}")
    verify(path, record, WEIGHTS)
    return read_weights(path / WEIGHTS)


def data_options(data: Mapping[str, Any]) -> str:
    """Return the options of `train` for the images of a run, from ``data`` of its record (`Benchmark.record`)."""
    options = "" if data["name"] == "glyphs" else " --data DIR"
    return options + (" --allow-partial" if "partial" in data else "")


def verify(path: Path, record: Mapping[str, Any], *names: str) -> None:
    """Compare files of the run in ``path`` with their checksums in its record.
    Raises WeightsError: a file is missing, or is not what the run wrote.
    """
    files = record.get("files", {})
    for name in (name for name in names if name in files):
        if not (path / name).is_file():
            raise WeightsError(f"{path / name}: missing; {_AGAIN}")
        if digest(path / name) != files[name]:
            fault = f"does not have the checksum in {RECORD} (damaged, edited, or another run's)"
            raise WeightsError(f"{path / name}: {fault}; {_AGAIN}")
