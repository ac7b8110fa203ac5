"""A finished run as files: where it is, what is in its folder, and whether that is what the run wrote.

The record has the SHA-256 of each other file and a checksum of its own, so what is read is what was written.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import safetensors.torch
from torch import Tensor

from vptsp_core.data import OWN, Benchmark
from vptsp_core.errors import WeightsError
from vptsp_core.method.backbone import identity
from vptsp_core.method.config import RunConfig
from vptsp_core.method.weights_file import read_weights
from vptsp_core.runs.checkpoints import remove_checkpoints
from vptsp_core.runs.progress import LOCK, PROGRESS
from vptsp_core.runs.selection import reported
from vptsp_core.system.files import as_json, write_bytes, write_json
from vptsp_core.system.seals import digest, sealed, unsealed

CONFIG, METRICS, HISTORY, RECORD = "config.json", "metrics.json", "history.csv", "record.json"
QUERIES, WEIGHTS = "queries.npz", "model.safetensors"
_AGAIN = "delete the folder and run it again"


@dataclass(frozen=True)
class Run:
    """A finished run; a light one is a run whose folder has all but the weights."""

    config: RunConfig
    path: Path  # its folder
    metrics: dict[str, float]  # of retrieval, as the config's ``selection`` picks them, fractions in [0, 1]
    history: pd.DataFrame  # one row an epoch: loss, learning rates, seconds of training, metrics where evaluated
    # What it ran on: commit, versions, device, checksums of data and weights, parameters, times. Of a run that was cut
    # short and resumed, ``started`` and ``seconds`` are those of the whole, ``stretches`` says what each part was made
    # with (see `vptsp_core.runs.record`), and the rest is that of the last part.
    record: dict[str, Any]

    @property
    def light(self) -> bool:
        """Whether the weights are not kept."""
        return not (self.path / WEIGHTS).is_file()

    @cached_property
    def queries(self) -> dict[str, np.ndarray] | None:
        """Each test query's own values, (N,) float32, of the epoch that their metric is reported from (see `Scores`);
        None for a run from before they were kept.
        Raises WeightsError: the file is damaged.
        """
        path = self.path / QUERIES
        verify(self.path, self.record, QUERIES)
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except Exception as error:  # numpy and zipfile raise what they meet
            raise WeightsError(f"{path}: unreadable ({error}); {_AGAIN}") from error


def run_folder(config: RunConfig, results: str | Path | None = None, benchmark: Benchmark | None = None) -> Path:
    """The folder of a run of this description. A weights file counts by its content, not by its place.

    ``benchmark`` tells apart what the description does not: your own images, and data sets that are not whole.
    """
    root = Path(results or os.environ.get("VPTSP_RESULTS") or "results").expanduser().absolute()
    name = f"{config.dataset}-{config.method}-{identity(config)}"
    if benchmark is not None and (benchmark.differences or config.dataset in OWN):
        name += f"{'-partial' if benchmark.differences else ''}-{benchmark.fingerprint()[:8]}"
    return root / "runs" / name


def write_run(
    config: RunConfig,
    path: Path,
    history: pd.DataFrame,
    record: dict[str, Any],
    queries: Mapping[str, np.ndarray],
    weights: Mapping[str, Tensor],
) -> Run:
    """Put a finished run into its folder, whose checkpoints go; ``weights`` are what was learned, on the CPU, of the
    epoch that R@1 is reported from.
    """
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **queries)  # type: ignore[arg-type]  # names are no keyword of it
    contents = {
        CONFIG: as_json(config.to_dict()),
        HISTORY: history.to_csv(index=False).encode(),
        QUERIES: buffer.getvalue(),
        WEIGHTS: safetensors.torch.save({name: each.contiguous() for name, each in weights.items()}),
        METRICS: as_json(reported(history, config.selection)),  # last: its presence says that the run is finished
    }
    files = {name: digest(content) for name, content in contents.items()}
    (path / METRICS).unlink(missing_ok=True)  # of a light run that is trained again
    write_json(path / RECORD, sealed({**record, "files": files}))
    for name, content in contents.items():
        write_bytes(path / name, content)
    remove_checkpoints(path)
    return read_run(path)


def finished_run(path: Path, benchmark: Benchmark | None = None, light: bool = True) -> Run | None:
    """The run of a folder, or None while it is not finished, or where it is a light one and ``light`` is False. What a
    killed process left beside a finished one is deleted.
    Raises WeightsError: a file of it is damaged or missing, they are another run's than the folder's name says, or it
    was made with other images than the ``benchmark``.
    """
    if not (path / METRICS).exists():
        return None
    done = read_run(path)
    if done.light and not light:
        return None
    verify(path, done.record, QUERIES, *([] if done.light else [WEIGHTS]))
    if f"-{done.record['hash']}" not in path.name:
        raise WeightsError(f"{path}: {CONFIG} and {RECORD} are not those of this folder's run; {_AGAIN}")
    if benchmark is not None and done.record["data"] != benchmark.record():
        raise WeightsError(
            f"{path}: made with other images of {benchmark.name} than these; give those, or another results folder"
        )
    if done.light:  # another process may be training it again
        return done
    with contextlib.suppress(OSError):  # results that may only be read are read
        remove_checkpoints(path)
        for name in (PROGRESS, LOCK):
            (path / name).unlink(missing_ok=True)
    return done


def read_run(path: str | Path) -> Run:
    """A finished run from its folder.
    Raises WeightsError: the folder holds none, or a file of it is damaged or was edited.
    """
    path = Path(path)
    for name in (CONFIG, METRICS, RECORD, HISTORY):
        if not (path / name).is_file():
            raise WeightsError(f"{path} holds no finished run ({name} is missing); give the folder of one")
    config = RunConfig.from_file(path / CONFIG)
    try:
        record = unsealed(json.loads((path / RECORD).read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise WeightsError(f"{path / RECORD}: {error} (damaged or edited); {_AGAIN}") from error
    verify(path, record, CONFIG, METRICS, HISTORY)
    metrics = json.loads((path / METRICS).read_text("utf-8"))
    return Run(config, path, metrics, pd.read_csv(path / HISTORY), record)


def learned_weights(path: Path, record: Mapping[str, Any]) -> dict[str, Tensor]:
    """What a finished run learned, by name, from its folder ``path``.
    Raises WeightsError: the run is light, or the file is unreadable or not what ``record`` has the checksum of.
    """
    if not (path / WEIGHTS).is_file():
        own = f"--preset {shlex.quote(str(path / CONFIG))} --results {shlex.quote(str(path.parent.parent))}"
        cure = f"to train it again: python -m vptsp_core train {own} --data DIR"
        raise WeightsError(f"{path}: a light run, without its weights; {cure}")
    verify(path, record, WEIGHTS)
    return read_weights(path / WEIGHTS)


def verify(path: Path, record: Mapping[str, Any], *names: str) -> None:
    """Compare files of the run in ``path`` with their checksums in its record.
    Raises WeightsError: one is missing, or not what the run wrote.
    """
    files = record.get("files", {})
    for name in (name for name in names if name in files):
        if not (path / name).is_file():
            raise WeightsError(f"{path} holds no finished run ({name} is missing); {_AGAIN}")
        if digest(path / name) != files[name]:
            fault = f"not what {RECORD} has the checksum of (damaged, edited, or another run's)"
            raise WeightsError(f"{path / name}: {fault}; {_AGAIN}")
