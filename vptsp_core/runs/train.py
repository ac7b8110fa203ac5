"""Training as a run does it: resumes, evaluates, selects, saves. The steps are those of `vptsp_core.method.loop`.

How a run resumes, so that an interrupted run gives the numbers of an uninterrupted one:
1. the model is built from the seed, as at the first start;
2. the last whole checkpoint is looked for (`vptsp_core.runs.checkpoints`), the one before it where that is damaged;
3. what was learned, both optimisers, both schedules, the history and the best epoch, its weights and per-query values
   included, are read from it; no other file counts;
4. every epoch seeds its own sampler, augmentation and dropout from (seed, epoch): nothing else is carried over.

Several processes (`system.distributed`) take the same steps, each with its share of the images; the first one
writes, all read the checkpoint, which has to be in a folder that all machines see.
"""

from __future__ import annotations

import functools
import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.data import OWN, ImageSet
from vptsp_core.data.batches import train_batches
from vptsp_core.errors import TrainingError
from vptsp_core.method.backbone import identity, normalisation
from vptsp_core.method.loop import Loop, Row
from vptsp_core.method.model import MetricModel
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.step import TrainStep
from vptsp_core.runs.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint
from vptsp_core.runs.compile import CompiledStep, compiles
from vptsp_core.runs.memory import failures_named, fit_step
from vptsp_core.runs.numerics import all_learned, first_bad_loss, first_bad_tensor, listed
from vptsp_core.runs.progress import write_progress
from vptsp_core.runs.selection import HELD_OUT, keep_queries, score
from vptsp_core.runs.start_from_data import start_from_data
from vptsp_core.system.bars import bar, duration, is_log, say
from vptsp_core.system.devices import autocast_dtype
from vptsp_core.system.distributed import check_batch, from_main, is_main, own_share


class Trainer:
    """One run of training.

    Args:
        model: on its device.
        images: the training set.
        folder: where the checkpoints go.
        evaluate: metrics of the model as it is; called after the epochs that the config names and after the last.
            Where it gives `Scores`, their per-query values are kept.
        progress: show a bar for each epoch's steps; in a log, write a line at the start and one an epoch.
        checkpointing, compile, on_epoch: as for `runs.run.run`; ``"auto"`` checkpoints gradients on a GPU where a step
            does not fit without, and compiles long runs on a GPU (`compiles`).
        stretch: says what the run is made with in this call and for how long by now, for its record.

    Raises:
        ConfigError: the processes cannot share the batch evenly.
        DataError: the training set is too small for the batch.
    """

    def __init__(
        self,
        model: MetricModel,
        images: ImageSet,
        folder: Path,
        evaluate: Callable[[MetricModel], Mapping[str, float]],
        *,
        progress: bool = True,
        checkpointing: str = "auto",
        compile: str = "auto",
        on_epoch: Callable[[list[Row]], None] | None = None,
        stretch: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        config = self.config = model.config
        check_batch(config.batch, config.samples_per_class)
        self.model, self.images, self.folder, self.evaluate = model, images, folder, evaluate
        self.progress, self.checkpointing, self.on_epoch = progress and is_main(), checkpointing, on_epoch
        if checkpointing != "auto":
            model.vit.checkpointing = checkpointing == "on"
        self.device = next(model.parameters()).device
        model.vit.autocast = autocast_dtype(config.precision, self.device, model.vit.backbone.embed_dim)
        self.sampler = ClassBalancedSampler(
            images.labels, config.batch, config.samples_per_class, config.seed, config.steps_per_epoch,
            in_turn=config.dataset in OWN,
        )  # fmt: skip
        self.identity = identity(config)  # read once: the file of weights may go while the run lasts
        self.statistics = normalisation(model.vit.backbone)
        compiled = compiles(compile, self.device, config.epochs * len(self.sampler))
        make_step = functools.partial(CompiledStep, must=compile == "on") if compiled else TrainStep
        self.loop = Loop(model, self.sampler, images.labels, self._batches, make_step)
        # The checkpoint holds what follows, beside the loop.
        self.history: list[Row] = []
        self.queries: dict[str, np.ndarray] = {}  # per-query values of each metric at the epoch it is reported from
        self.weights: dict[str, Tensor] = {}  # of the best epoch, what retrieval needs, on the CPU
        # One record for each call that trained this run, with the epochs that were finished before it.
        self.stretch, self.stretches = stretch, [{"after_epochs": 0, **stretch(), **self.compiled()}]
        self.best = -math.inf

    @property
    def finished(self) -> int:
        """Number of finished epochs."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def run(self) -> list[Row]:
        """Train to the last epoch, from the checkpoint where there is one; one row of history an epoch. What starts
        from the data is evaluated before its first step too, as epoch 0, and may be the best.

        Raises:
            WeightsError: no checkpoint is whole, or they belong to another run.
            TrainingError: the loss, a weight or an optimiser's state is not finite, or the GPU's memory is full; the
                checkpoint of the epoch before stays.
            VptspError: the folder cannot be written.
        """
        self._resume()
        epochs = range(self.finished, self.config.epochs)
        if self.progress and epochs:
            say(f"{self.folder.name}: training {self.config.method} on {len(self.images.labels):,} images, "
                f"epochs {epochs.start + 1} to {epochs.stop} of {len(self.sampler)} steps")  # fmt: skip
        if not self.history and self.config.start != "released":
            self._start()
        if self.checkpointing == "auto" and self.device.type == "cuda" and epochs:
            fit_step(self.model, self.loop.optimizers)
        begun, rows = time.perf_counter(), self.loop.rows(epochs.start)
        for epoch in epochs:
            with failures_named(self.model, f"epoch {epoch + 1}"):
                row = next(rows)
                self._check_finite(epoch, row)
                self._finish(row, epoch >= self.config.eval_start or epoch == self.config.epochs - 1)
            if self.progress:
                mean = (time.perf_counter() - begun) / (epoch + 1 - epochs.start)
                say(f"{self.folder.name}: {epoch_line(row, epochs.stop, (epochs.stop - epoch - 1) * mean)}")
            if self.on_epoch is not None and is_main():
                self.on_epoch(self.history)
        return self.history

    def _start(self) -> None:
        begun = time.perf_counter()
        if self.progress:
            say(f"{self.folder.name}: starting {self.config.method} from its {len(self.images.labels):,} images")
        with failures_named(self.model, "the start from the data"):
            start_from_data(self.model, self.images)
            self._finish({"epoch": 0}, evaluated=True)
        if self.progress:
            took = duration(time.perf_counter() - begun)
            say(f"{self.folder.name}: {', '.join(['started from the data', *_recalls(self.history[0]), took])}")

    def _finish(self, row: Row, evaluated: bool) -> None:
        """Put the row of an epoch into the history, with the metrics where it is ``evaluated``, and save."""
        if evaluated:
            found = self.evaluate(self.model)
            keep_queries(self.queries, found, self.history, self.config.selection)
            row |= found
        self.history.append(row)
        self._save(row)

    def _batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """This process's share of an epoch's batches, under a bar."""
        part = own_share(self.config.batch)
        batches = train_batches(self.images, self.config, self.statistics, self.sampler, epoch, self.device, part)
        title, show = f"epoch {epoch + 1}/{self.config.epochs}", self.progress and not is_log()
        return bar(batches, title, len(self.sampler), show=show, leave=False)

    def compiled(self) -> dict[str, Any]:
        """Whether steps run compiled by now, and the seconds that compiling took."""
        step = self.loop.step
        if isinstance(step, CompiledStep):
            return {"compiled": step.compiled, "compile_seconds": step.compile_seconds}
        return {"compiled": False, "compile_seconds": None}

    def _check_finite(self, epoch: int, row: Row) -> None:
        """Refuse an epoch with a loss, or with a tensor after it, that is not finite (`runs.numerics`)."""
        step, rates = first_bad_loss(self.loop.losses), f"lr = {row['lr']:g}, lr_proxy = {row['lr_proxy']:g}"
        if step is not None:
            batch = next(itertools.islice(self.sampler.epoch(epoch), step, None))
            images = listed([self.images.describe(int(i)) for i in batch])
            fault = f"the loss is not finite from step {step + 1} of epoch {epoch + 1} on ({rates}, images {images})"
        elif name := first_bad_tensor(all_learned(self.model, self.loop.optimizers)):
            fault = f"{name} is not finite after epoch {epoch + 1}, though the losses are ({rates})"
        else:
            return
        cure = "look at the images, loss_scale and loss_margin" if step == 0 == epoch else "lower the learning rates"
        raise TrainingError(f"{fault}; {cure}{f'; the checkpoint of epoch {epoch} stays' if epoch else ''}")

    def _save(self, row: Row) -> None:
        self.stretches[-1] |= {**self.stretch(), **self.compiled()}
        found = score(row, self.config.selection)
        if self.config.selection == "last" or found > self.best or not self.weights:
            state = self.model.learned_state(for_retrieval=True)
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        self.best = max(self.best, found)
        from_main(self._write)

    def _write(self) -> None:
        values = {
            **self.loop.state_dict(),
            "history": self.history,
            "queries": {name: torch.from_numpy(values) for name, values in self.queries.items()},
            "weights": self.weights,
            "best": self.best,
            "stretches": self.stretches,
        }
        write_checkpoint(self.folder, self.identity, values)
        write_progress(self.folder, self.finished, self.config.epochs)

    def _resume(self) -> None:
        found = from_main(lambda: find_checkpoint(self.folder))
        if found is not None:
            self._restore(read_checkpoint(self.folder, found, self.identity, self.stretches[-1]))
        from_main(lambda: write_progress(self.folder, self.finished, self.config.epochs))

    def _restore(self, saved: dict[str, Any]) -> None:
        self.loop.load_state_dict(saved)
        for optimizer in self.loop.optimizers:  # torch takes a CPU's state as it is, mapped from a file to be replaced
            for state in optimizer.state.values():
                state |= {k: v.clone() for k, v in state.items() if isinstance(v, Tensor) and v.device.type == "cpu"}
        self.history, self.best = saved["history"], saved["best"]
        self.queries = {name: values.numpy().copy() for name, values in saved["queries"].items()}
        self.weights = {name: value.clone() for name, value in saved["weights"].items()}  # the file is replaced later
        own = {"after_epochs": self.finished, **self.stretch(), **self.compiled()}
        self.stretches = [*saved["stretches"], own]


def epoch_line(row: Row, epochs: int, left: float) -> str:
    """What a log says of an epoch: loss, R@1 where evaluated, seconds of training, and the time ``left`` in seconds."""
    parts = [f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}", *_recalls(row), f"{row['seconds']:.0f} s"]
    return ", ".join([*parts, f"{duration(left)} left"] if row["epoch"] < epochs else parts)


def _recalls(row: Mapping[str, Any]) -> list[str]:
    return [f"{name} {100 * row[name]:.1f}" for name in ("R@1", HELD_OUT + "R@1") if name in row]
