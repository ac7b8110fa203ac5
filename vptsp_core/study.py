"""Many runs: each is trained once, found again by its hash, and read into data frames."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import safetensors.torch
import torch
from tqdm.auto import tqdm

from vptsp_core.backbone import checksum, load_backbone
from vptsp_core.config import RunConfig
from vptsp_core.data import Benchmark, load_benchmark
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.evaluate import evaluate
from vptsp_core.files import writable_folder, write_bytes, write_json
from vptsp_core.train import CHECKPOINT, WEIGHTS, Trainer, autocast_dtype, pick_device
from vptsp_core.tuning import MetricModel, count_parameters

CONFIG, METRICS, HISTORY, RECORD = "config.json", "metrics.json", "history.csv", "record.json"
NOT_METRICS = ("epoch", "loss", "lr", "lr_proxy", "seconds")


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        config: its description.
        path: its folder.
        metrics: retrieval metrics as the config's ``selection`` picks them, fractions in [0, 1].
        history: one row an epoch: loss, learning rates, seconds of training, metrics where evaluated.
        record: what it ran on: commit, versions, device, checksums of data and weights, parameters, times.
    """

    config: RunConfig
    path: Path
    metrics: dict[str, float]
    history: pd.DataFrame
    record: dict[str, Any]


def run(
    config: RunConfig,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    device: str | None = None,
    progress: bool = True,
    allow_partial: bool = False,
) -> Run:
    """Train and evaluate, or return the finished run of the same hash; a run cut short goes on where it was.

    Args:
        config: from `preset` or `RunConfig`.
        data: folder of the data sets; default the environment's VPTSP_DATA. The glyphs need none.
        results: the run goes to ``results/runs/<dataset>-<method>-<hash>``; default VPTSP_RESULTS, else ./results.
        device: ``"cpu"``, ``"cuda"``, ...; default a GPU where there is one.
        allow_partial: go on with a data set that is not whole; the run then lies apart, and its record says so.

    Raises:
        VptspError: whatever the user can mend, in one line; nothing half-written stays behind.
    """
    place = str(data or os.environ.get("VPTSP_DATA") or "") or None
    path = run_folder(config, results)
    if config.dataset == "folder" or allow_partial:  # then the images decide, too, which run it is
        path = run_folder(config, results, _benchmark(config.dataset, place, allow_partial))
    if (path / METRICS).exists():
        return read_run(path)
    benchmark = _benchmark(config.dataset, place, allow_partial)
    target = pick_device(device)
    model = build_model(config, benchmark.train.num_classes, target)
    record = _record(config, benchmark, model, target)
    writable_folder(path)
    start = time.perf_counter()
    try:
        history = _history(config, benchmark, model, path, progress)
    except VptspError:
        with contextlib.suppress(OSError):
            path.rmdir()  # only where nothing was learned: a checkpoint keeps the folder
        raise
    frame = pd.DataFrame(history)
    record["seconds"] = round(time.perf_counter() - start, 2)
    write_json(path / CONFIG, config.to_dict())
    write_bytes(path / HISTORY, frame.to_csv(index=False).encode())
    write_json(path / RECORD, record)
    write_json(path / METRICS, _selected(frame, config.selection))  # last: its presence says that the run is finished
    (path / CHECKPOINT).unlink(missing_ok=True)
    return read_run(path)


def _history(
    config: RunConfig, benchmark: Benchmark, model: MetricModel, path: Path, progress: bool
) -> list[dict[str, float]]:
    if config.method == "frozen":
        model.vit.autocast = autocast_dtype(config.precision, next(model.parameters()).device)
        metrics = evaluate(model, benchmark)
        write_bytes(path / WEIGHTS, safetensors.torch.save({}))
        return [{"epoch": 0, **metrics}]
    if config.epochs == 0:
        raise ConfigError("epochs = 0 trains nothing; use method = 'frozen' for the backbone as it is")
    trainer = Trainer(model, benchmark.train, path, lambda m: evaluate(m, benchmark), progress=progress)
    return trainer.run()


def build_model(config: RunConfig, num_classes: int, device: torch.device) -> MetricModel:
    """The model of a run at its start, every random tensor drawn from the run's seed."""
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, config.weights, config.image_size)
    torch.manual_seed(config.seed)  # again: what starts beside the backbone is the same whatever its weights are
    return MetricModel(config, backbone, num_classes).to(device)


def run_folder(config: RunConfig, results: str | Path | None = None, benchmark: Benchmark | None = None) -> Path:
    """Where a run of this description lies, or will lie. A weights file counts by its content, not by its place.

    ``benchmark`` tells apart what the description does not: images of one's own, and data sets that are not whole.
    """
    identity = config
    if config.weights not in ("pretrained", "random"):
        identity = config.replace(weights="sha256:" + _file_digest(config.weights))
    root = Path(results or os.environ.get("VPTSP_RESULTS") or "results").expanduser()
    name = f"{config.dataset}-{config.method}-{identity.hash()}"
    if benchmark is not None and (benchmark.differences or config.dataset == "folder"):
        name += f"{'-partial' if benchmark.differences else ''}-{benchmark.fingerprint()[:8]}"
    return root / "runs" / name


def read_run(path: str | Path) -> Run:
    """A finished run from its folder.

    Raises:
        WeightsError: the folder holds none.
    """
    path = Path(path)
    try:
        config, metrics, record = (json.loads((path / name).read_text()) for name in (CONFIG, METRICS, RECORD))
        history = pd.read_csv(path / HISTORY)
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} holds no finished run ({error}); delete the folder and run it again") from error
    if not all(isinstance(part, dict) for part in (config, metrics, record)):
        raise WeightsError(f"{path} holds no finished run (not its files); delete the folder and run it again")
    return Run(RunConfig.from_dict(config), path, metrics, history, record)


def many(configs: Iterable[RunConfig], *, progress: bool = True, **options: Any) -> list[Run]:
    """`run` each in turn; options go to `run`."""
    configs = list(configs)
    bar = tqdm(configs, "runs", disable=not progress)
    return [run(config, progress=progress, **options) for config in bar]


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: every key of its config, every metric, tunable parameters, seconds."""
    rows = []
    for each in runs:
        of_run = {"seconds": each.record["seconds"], "path": str(each.path)}
        rows.append({**each.config.to_dict(), **each.metrics, **each.record["parameters"], **of_run})
    return pd.DataFrame(rows)


def over_seeds(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean and half-width of the 95 % interval (Student's t) of ``columns`` over the rows alike in ``by``.

    Returns:
        One row a group, in order of appearance: for each column its mean and ``<column> ±`` (NaN for one seed).
    """
    from scipy.stats import t

    groups = table.groupby(list(by), sort=False)
    out = groups[list(columns)].mean()
    for column in columns:
        count = groups[column].count()
        out[f"{column} ±"] = groups[column].sem() * t.ppf(0.975, (count - 1).clip(lower=1)).reshape(-1)
    out["seeds"] = groups.size()
    return out.reset_index()


def _selected(history: pd.DataFrame, selection: str) -> dict[str, float]:
    """released: each metric at its own best epoch on the test set, as the published numbers; last: the last epoch."""
    evaluated = history.dropna(subset=["R@1"])
    metrics = evaluated.drop(columns=[c for c in NOT_METRICS if c in evaluated])
    place = int(evaluated["R@1"].to_numpy().argmax()) if selection == "released" else len(evaluated) - 1
    chosen = metrics.max() if selection == "released" else metrics.iloc[-1]
    return {**{str(k): float(v) for k, v in chosen.items()}, "epoch": int(evaluated["epoch"].iloc[place])}


def _record(config: RunConfig, benchmark: Benchmark, model: MetricModel, device: torch.device) -> dict[str, Any]:
    packages = ("torch", "torchvision", "timm", "numpy", "vptsp-core")
    return {
        "hash": config.hash(),
        "commit": _commit(),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in packages},
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "data": benchmark.record(),
        "weights": checksum(model.vit.backbone),
        "parameters": count_parameters(model),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except Exception:  # not installed as a distribution: run from the source tree
        return "source tree"


@lru_cache
def _commit() -> str:
    """Commit of the source tree, with + where tracked files differ from it; "unknown" outside of git."""
    here = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", "-uno", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@lru_cache(maxsize=4)
def _benchmark(name: str, data: str | None, allow_partial: bool) -> Benchmark:
    return load_benchmark(name, data, allow_partial)


def _file_digest(path: str) -> str:
    file = Path(path).expanduser()
    if not file.is_file():
        raise WeightsError(f"weights {path}: no such file; give a .safetensors or .pth file")
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]
