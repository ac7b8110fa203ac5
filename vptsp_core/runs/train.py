"""The training of a run: `vptsp_core.method.loop` takes the steps; this module resumes, evaluates, selects and saves.

A run that was interrupted resumes like this, and ends with the numbers of an uninterrupted run:
1. the model is built from the seed, as at the first start;
2. the last whole checkpoint is found (`vptsp_core.runs.checkpoints`);
3. all state is read from it: learned tensors, both optimisers, both schedules, the gradient scaler, the history, the
   best epoch with its weights and per-query values, and the precision that ``"auto"`` chose;
4. every epoch seeds its own sampler, augmentation and dropout from (seed, epoch), so nothing else has state.

Several processes (`system.distributed`) take the same steps, each with its share of the images. The first one writes
the checkpoint, and all read it. It must be in a folder that all machines see.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vptsp_core.data import OWN, ImageSet
from vptsp_core.data.batches import train_batches
from vptsp_core.errors import TrainingError
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.loop import Loop, Row
from vptsp_core.method.model import MetricModel
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.step import TrainStep
from vptsp_core.runs.checkpoints import find_checkpoint, read_checkpoint, write_checkpoint
from vptsp_core.runs.closed_form import closed_form_head
from vptsp_core.runs.compile import CompiledStep, compiles
from vptsp_core.runs.folder import identity
from vptsp_core.runs.memory import fit_step, memory_errors
from vptsp_core.runs.numerics import all_learned, first_bad_tensor
from vptsp_core.runs.progress import write_progress
from vptsp_core.runs.selection import HELD_OUT, keep_queries, score
from vptsp_core.runs.start_from_data import start_from_data
from vptsp_core.system.bars import bar, duration, is_log, say
from vptsp_core.system.devices import choose_precision, trunk_dtype
from vptsp_core.system.distributed import check_batch, from_main, is_main, own_share


def make_sampler(config: RunConfig, images: ImageSet) -> ClassBalancedSampler:
    """Return the sampler of a run's training batches.
    Raises ConfigError: the processes cannot share the batch. Raises DataError: the images cannot fill it.
    """
    check_batch(config.batch, config.samples_per_class)
    return ClassBalancedSampler(
        images.labels, config.batch, config.samples_per_class, config.seed, config.steps_per_epoch,
        in_turn=config.dataset in OWN,
    )  # fmt: skip


class Trainer:
    """The training of one run.

    Args:
        model: on its device.
        images: the training set.
        folder: of the run and its checkpoints.
        evaluate: returns the model's metrics. It is called after each epoch from the config's ``eval_start`` on, and
            after the last. If it returns `Scores`, their per-query values are kept.
        progress: show a bar for each epoch's steps; in a log, write a line at the start and a line per epoch.
        checkpointing, compile, on_epoch: as for `runs.run.run`. ``"auto"`` turns gradient checkpointing on if a step
            does not fit into the GPU's memory, and compiles long runs on a GPU (`compiles`).
        part: returns the description of the part of the run that this call trains, for the record
            (`runs.record.part_of_run`).

    Raises:
        ConfigError: the processes cannot share the batch evenly.
        DataError: the training set is too small for the batch (see `ClassBalancedSampler`).
        WeightsError: no checkpoint is whole, or the one found is of another run or of other images or weights.
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
        part: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        config = self.config = model.config
        self.model, self.images, self.folder, self.evaluate = model, images, folder, evaluate
        self.progress, self.checkpointing, self.on_epoch = progress and is_main(), checkpointing, on_epoch
        if checkpointing != "auto":
            model.vit.checkpointing = checkpointing == "on"
        self.device = next(model.parameters()).device
        self.identity = identity(config)  # now: the file of weights may be deleted during the run
        self.saved, self.part = self._saved(part()), part
        self.precision = self._precision()
        model.vit.autocast = trunk_dtype(self.precision)
        self.sampler = make_sampler(config, images)
        self.statistics = normalisation(model.vit.backbone)
        compiled = compiles(compile, self.device, config.epochs * len(self.sampler))
        make_step = functools.partial(CompiledStep, must=compile == "on") if compiled else TrainStep
        self.loop = Loop(model, self.sampler, images.labels, self._batches, make_step)
        # The attributes below are in the checkpoint, beside the loop.
        self.history: list[Row] = []
        self.queries: dict[str, np.ndarray] = {}  # per-query values of each metric at its reported epoch
        self.weights: dict[str, Tensor] = {}  # of the best epoch: the tensors that retrieval needs, on the CPU
        self.parts = [self._new_part()]  # a description of each call that trained a part of the run
        self.best = -math.inf

    @property
    def finished(self) -> int:
        """The number of finished epochs."""
        return int(self.history[-1]["epoch"]) if self.history else 0

    def run(self) -> list[Row]:
        """Train to the last epoch, from the last checkpoint if there is one. Return the history, one row per epoch.

        A run that starts from the data is also evaluated before its first step, as epoch 0. That epoch can be the best.

        Raises:
            TrainingError: the loss, a weight or an optimiser's state is not finite, or the GPU's memory is full. The
                checkpoint of the epoch before still exists.
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
            with memory_errors("the trial step"):
                fit_step(self.model, self.loop.optimizers)
        begun, rows = time.perf_counter(), self.loop.rows(epochs.start)
        for epoch in epochs:
            with memory_errors(f"epoch {epoch + 1}"):
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
        """Start from the data, and evaluate and save the start as epoch 0."""
        begun = time.perf_counter()
        if self.progress:
            say(f"{self.folder.name}: starting {self.config.method} from its {len(self.images.labels):,} images")
        with memory_errors("the start from the data"):
            start_from_data(self.model, self.images)
            self._finish({"epoch": 0}, evaluated=True)
        if self.progress:
            took = duration(time.perf_counter() - begun)
            say(f"{self.folder.name}: {', '.join(['started from the data', *_scores(self.history[0]), took])}")

    def _finish(self, row: Row, evaluated: bool) -> None:
        """Add an epoch's row to the history, with metrics if it is to be ``evaluated``, and save a checkpoint."""
        closed = evaluated and self.config.final_head == "closed_form"
        with closed_form_head(self.model, self.images) if closed else contextlib.nullcontext():
            if evaluated:
                metrics = self.evaluate(self.model)
                keep_queries(self.queries, metrics, self.history, self.config.selection)
                row |= metrics
            self._keep_weights(row)
        self.history.append(row)
        self._save()

    def _batches(self, epoch: int) -> Iterable[tuple[Tensor, Tensor]]:
        """Return this process's share of an epoch's batches, with a bar."""
        part = own_share(self.config.batch)
        batches = train_batches(self.images, self.config, self.statistics, self.sampler, epoch, self.device, part)
        title, show = f"epoch {epoch + 1}/{self.config.epochs}", self.progress and not is_log()
        return bar(batches, title, len(self.sampler), show=show, leave=False)

    def compiled(self) -> dict[str, Any]:
        """Return whether steps run compiled, and the seconds that compiling has taken."""
        step = self.loop.step
        if isinstance(step, CompiledStep):
            return {"compiled": step.compiled, "compile_seconds": step.compile_seconds}
        return {"compiled": False, "compile_seconds": None}

    def _check_finite(self, epoch: int, row: Row) -> None:
        """Raise TrainingError if a loss of the epoch is not finite, or a tensor after it (`runs.numerics`)."""
        rates = f"lr = {row['lr']:g}, lr_proxy = {row['lr_proxy']:g}"
        bad_steps = (~self.loop.losses.isfinite()).nonzero().flatten().tolist()
        if bad_steps:
            step = bad_steps[0]
            batch = next(itertools.islice(self.sampler.epoch(epoch), step, None))
            images = ", ".join(dict.fromkeys(self.images.describe(int(i)) for i in batch))
            fault = f"the loss is not finite from step {step + 1} of epoch {epoch + 1} on ({rates}, images: {images})"
        elif name := first_bad_tensor(all_learned(self.model, self.loop.optimizers)):
            fault = f"{name} is not finite after epoch {epoch + 1}, though the losses are ({rates})"
        else:
            return
        at_start = epoch == 0 and bad_steps[:1] == [0]
        cure = "look at the images, loss_scale and loss_margin" if at_start else "lower the learning rates"
        raise TrainingError(f"{fault}; {cure}")

    def _keep_weights(self, row: Row) -> None:
        """Keep a copy of the weights if the epoch of ``row`` is the best one."""
        reached = score(row, self.config.selection)
        if self.config.selection == "last" or reached > self.best or not self.weights:
            state = self.model.learned_state(for_retrieval=True)
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in state.items()}
        self.best = max(self.best, reached)

    def _save(self) -> None:
        """Save a checkpoint."""
        self.parts[-1] |= {**self.part(), **self.compiled()}
        from_main(self._write)

    def _write(self) -> None:
        values = {
            **self.loop.state_dict(),
            "history": self.history,
            "queries": {name: torch.from_numpy(values) for name, values in self.queries.items()},
            "weights": self.weights,
            "best": self.best,
            "stretches": self.parts,
        }
        write_checkpoint(self.folder, self.identity, values)
        write_progress(self.folder, self.finished, self.config.epochs)

    def _saved(self, part: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the values of the last checkpoint, or None if there is none."""
        checkpoint = from_main(lambda: find_checkpoint(self.folder))
        return None if checkpoint is None else read_checkpoint(self.folder, checkpoint, self.identity, part)

    def _precision(self) -> dict[str, str]:
        """Return the precision of the run (`choose_precision`), which stays the same to its end in all processes."""
        width = self.model.vit.backbone.embed_dim
        here = from_main(lambda: choose_precision(self.config.precision, self.device, width))
        begun = None if self.saved is None else self.saved["stretches"][0]["precision"]
        if begun is None or begun["trunk"] == here["trunk"]:
            return here
        warnings.warn(f"{self.folder.name}: continues in {begun['trunk']}, with which it began; a new run here would "
                      f"compute in {here['trunk']} ({here['why']})", stacklevel=4)  # fmt: skip
        return begun | {"why": "the run began with it"}

    def _new_part(self) -> dict[str, Any]:
        """Describe the part of the run that this call trains, with the number of epochs before it."""
        return {"after_epochs": self.finished, "precision": self.precision, **self.part(), **self.compiled()}

    def _resume(self) -> None:
        """Restore the state of the last checkpoint, if there is one."""
        saved, self.saved = self.saved, None
        if saved is not None:
            self.loop.load_state_dict(saved)
            # The file is replaced later, so no tensor may stay mapped to it. torch copies no optimiser state on a CPU.
            for optimizer in self.loop.optimizers:
                for state in optimizer.state.values():
                    on_cpu = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.device.type == "cpu"}
                    state |= {k: v.clone() for k, v in on_cpu.items()}
            self.history, self.best = saved["history"], saved["best"]
            self.queries = {name: values.numpy().copy() for name, values in saved["queries"].items()}
            self.weights = {name: value.clone() for name, value in saved["weights"].items()}
            self.parts = [*saved["stretches"], self._new_part()]
        from_main(lambda: write_progress(self.folder, self.finished, self.config.epochs))


def epoch_line(row: Row, epochs: int, left: float) -> str:
    """Return an epoch's line for a log: loss, R@1 and MAP@R if evaluated, seconds of training, ``left`` seconds."""
    words = [f"epoch {row['epoch']}/{epochs}: loss {row['loss']:.3f}", *_scores(row), f"{row['seconds']:.0f} s"]
    return ", ".join([*words, f"{duration(left)} left"] if row["epoch"] < epochs else words)


def _scores(row: Mapping[str, Any]) -> list[str]:
    names = [of + name for of in ("", HELD_OUT) for name in ("R@1", "MAP@R")]
    return [f"{name} {100 * row[name]:.1f}" for name in names if name in row]
