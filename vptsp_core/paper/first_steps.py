"""What embeddings and proxies do in the first epoch of a run, step by step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.data import OWN, data_folder, load_benchmark
from vptsp_core.data.batches import cache_folder, decoded
from vptsp_core.data.holdout import for_selection
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.step import TrainStep
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.paper.report import fact_table, machine_facts, merged
from vptsp_core.runs.folder import identity
from vptsp_core.runs.record import make_record
from vptsp_core.runs.run import build_model
from vptsp_core.runs.start_from_data import start_from_data
from vptsp_core.runs.train import Trainer
from vptsp_core.system.devices import pick_device
from vptsp_core.system.files import write_json
from vptsp_core.system.seals import sealed, unsealed

FOLDER = "first_steps"  # of the results


class Recording(NamedTuple):
    """The steps, one row each, and what they were made with, as in a run's record: versions, device, data, weights."""

    steps: pd.DataFrame
    made: dict[str, Any]


@torch_defaults()
def record_first_steps(
    config: RunConfig, *, data: str | Path | None = None, results: str | Path, progress: bool = True
) -> Recording:
    """Take the steps of the first epoch of a run, as the run itself takes them, and record each.

    The recording is stored in ``results/first_steps/<hash>.json``. If the file exists, it is read.

    Returns:
        Columns ``step`` (from 1), ``loss``, and, as the step finds them:
        - the mean cosine of two images of ``other classes`` in the batch, and of the ``same class``;
        - ``R@1 in the batch``: the share of its images whose nearest other image has their class;
        - the mean cosine of two proxies ``O``, and of two ``P``.

        A column is missing if the batches have one image per class, or the method has no P.

    Raises:
        WeightsError: the stored file is damaged, or was made from other images.
        VptspError: images or weights are missing, the images are your own, or the method has no training step.
    """
    if config.dataset in OWN or config.method == "frozen":
        raise VptspError(
            f"dataset = {config.dataset!r}, method = {config.method!r}: first steps are recorded only on benchmarks "
            "and for methods that train"
        )
    path, folder = stored_at(config, results), data_folder(config.dataset, data)
    if path.is_file():
        stored = _read(path)
        if folder is not None and load_benchmark(config.dataset, folder).record() != stored.made["data"]:
            raise WeightsError(f"{path}: recorded from other images than those in {folder}; delete it")
        return stored
    device, whole = pick_device(None), load_benchmark(config.dataset, folder)
    benchmark = decoded(whole, config, cache_folder(config.dataset, folder), progress=progress)
    images = for_selection(benchmark, config)[0].train
    model = build_model(config, images.num_classes, device)
    record = make_record(config, whole, model, device, deterministic=False)
    trainer = Trainer(model, images, path.parent, lambda _: {}, progress=progress, compile="off")
    trainer.loop.step = step = RecordedStep(model, trainer.loop.optimizers, trainer.loop.scaler)
    start_from_data(model, images)
    trainer.loop.train_epoch(0)
    steps = pd.DataFrame(step.rows).round(5)
    made = {key: record[key] for key in ("commit", "versions", "device", "data", "weights")}
    made |= {"precision": trainer.precision}
    write_json(path, sealed({"made": made, "steps": steps.to_dict("list")}))
    return Recording(steps, made)


def stored_at(config: RunConfig, results: str | Path) -> Path:
    """Return the file of `record_first_steps`, which may not exist yet."""
    return Path(results) / FOLDER / f"{identity(config)}.json"


def _read(path: Path) -> Recording:
    try:
        stored = unsealed(json.loads(path.read_text("utf-8")))
        return Recording(pd.DataFrame(stored["steps"]), stored["made"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise WeightsError(f"{path}: damaged ({error}); delete it and record again") from error


def facts(recorded: Mapping[str, Recording], configs: Mapping[str, RunConfig]) -> pd.DataFrame:
    """Return what recordings were made with: a row per fact, with all its values."""
    return fact_table(merged(
        {
            **machine_facts(made), "trunk": made["precision"]["trunk"], "seed": configs[name].seed,
            "weights checksum": made["weights"], "data checksum, train": made["data"]["train"],
            "run": identity(configs[name]),
        }
        for name, (_, made) in recorded.items()
    ))  # fmt: skip


class RecordedStep(TrainStep):
    """A training step that adds a row to ``rows``. It computes the same numbers as `TrainStep`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows: list[dict[str, float]] = []

    def __call__(self, images: Tensor, labels: Tensor, *more: Any) -> Tensor:
        """Take a step: ``images`` (b, 3, H, W) and ``labels`` (B,), as for `TrainStep`."""
        assert self.model.proxies is not None
        embedded: list[Tensor] = []
        row = {"step": len(self.rows) + 1, "O": mean_cosine(self.model.proxies.bias.detach())}
        if self.model.proxies.accumulator is not None:
            row["P"] = mean_cosine(self.model.proxies.state)
        hook = self.model.vit.register_forward_hook(lambda _, images, outputs: embedded.append(outputs[0].detach()))
        with hook:
            loss = super().__call__(images, labels, *more)
        self.rows.append({**row, "loss": loss.item(), **batch_cosines(embedded[0], labels)})
        return loss


def batch_cosines(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the mean cosines of a batch, ``same class`` and ``other classes``, and ``R@1 in the batch``.

    ``embeddings`` (B, d) are L2-normalised; ``labels`` are (B,). Without two images of one class, only ``other
    classes`` is returned.
    """
    cosines, same = embeddings @ embeddings.T, labels[:, None] == labels
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    pairs, nearest = same & ~itself, cosines.masked_fill(itself, -2).argmax(1)
    found = {"other classes": float(cosines[~same].mean())}
    if pairs.any():
        right = (labels[nearest] == labels).float().mean()
        found |= {"same class": float(cosines[pairs].mean()), "R@1 in the batch": float(right)}
    return found


def mean_cosine(rows: Tensor) -> float:
    """Return the mean cosine of two different rows of (C, d)."""
    total, count = F.normalize(rows, dim=-1).sum(0).square().sum(), len(rows)
    return float((total - count) / (count * (count - 1)))
