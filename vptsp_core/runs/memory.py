"""Memory: where the table of class prompts is kept, and whether a training step fits into the GPU's memory.

A trial step before training allocates the memory of the towers and of the optimisers' state, nearly all that training
needs. It leaves out the proxies and the loss, the augmentation on the GPU, a decoded training set on the GPU
(`data.store`), the copy of all gradients that several processes send, and the evaluation. If these do not fit,
`memory_errors` names the cure.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Sequence

import torch

from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.method.class_prompts import MOMENTS, ClassPrompts, table_shape
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.runs.host_prompts import HostPrompts
from vptsp_core.system.devices import free_gpu_memory
from vptsp_core.system.distributed import local_size
from vptsp_core.system.host_memory import check_room
from vptsp_core.system.portable import available_memory

CLASS_TABLES = ("auto", "device", "host")  # where the class prompts of all classes are
_HOST = "--class-table host for row-wise class prompts"


def probe_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Run the towers forward and backward on images of zeros, with memory allocated for the optimisers' future state.

    Afterwards, random numbers and mode are as before, and there are no gradients. With several processes, each one
    tries its own share.
    Raises torch.OutOfMemoryError: the step does not fit.
    """
    config, device = model.config, next(model.parameters()).device
    learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    have_state = {p for optimizer in optimizers for p in optimizer.state}
    training = model.training
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            room = [torch.empty_like(p) for p in learned if p not in have_state for _ in MOMENTS[config.optimizer]]
            classes = torch.arange(config.batch // config.samples_per_class, device=device)
            images = torch.zeros(config.batch, 3, config.image_size, config.image_size, device=device)
            embeddings, p = model.train().towers(model.group.share(images), classes)
            (embeddings.sum() if p is None else embeddings.sum() + p.sum()).backward()
            del room
    finally:
        model.train(training).zero_grad(set_to_none=True)


def fit_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """If a step does not fit, turn gradient checkpointing on, with a warning.
    Raises TrainingError: it does not fit with gradient checkpointing either.
    """
    while True:
        try:
            probe_step(model, optimizers)
            return
        except torch.OutOfMemoryError:
            pass  # the cache can be emptied only after this block, because the error refers to the tensors
        torch.cuda.empty_cache()
        if model.vit.checkpointing:
            raise TrainingError(
                f"a training step of batch = {model.config.batch} does not fit into the GPU's memory, even with "
                f"gradient checkpointing; lower batch, or choose {_HOST}"
            )
        message = "a training step does not fit into the GPU's memory: gradient checkpointing is turned on (slower)"
        warnings.warn(message, stacklevel=2)
        model.vit.checkpointing = True


@contextlib.contextmanager
def memory_errors(when: str) -> Iterator[None]:
    """Turn errors of full memory and of a failing GPU into one line, which says ``when`` they happened.
    Raises TrainingError: there was such an error. A checkpoint that was written before still exists.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or reason.startswith("MPS backend out of memory"):
            raise TrainingError(
                f"the GPU's memory is full in {when}; lower batch, or choose --checkpointing on, "
                f"--compile off, --device cpu, or {_HOST}"
            ) from error
        if isinstance(error, MemoryError) or "can't allocate memory" in reason:  # of the CPU, by NumPy or by torch
            raise TrainingError(
                f"the memory of this machine is full in {when}; lower batch, or make the model smaller"
            ) from error
        if isinstance(error, torch.AcceleratorError) or reason.startswith("CUDA error"):
            raise TrainingError(
                f"the GPU failed in {when} ({reason}); the same command resumes after the last finished epoch: start "
                "it again, or with --device cpu"
            ) from error
        raise


def place_class_prompts(model: MetricModel, device: torch.device, where: str = "auto") -> None:
    """Decide where the table of class prompts is kept, before the model moves to its device. No numbers change.

    Args:
        where: ``"device"``, ``"host"`` (only row-wise tables; each process has a copy), or ``"auto"``: in host memory
            if the table and its optimiser state would take more than half of the GPU's free memory.

    Raises:
        ConfigError: ``"host"``, and the model has no row-wise table.
        VptspError: the copies of this machine's processes do not fit into its memory.
    """
    prompts = model.class_prompts
    if prompts is None or not prompts.rowwise:
        if where != "host":
            return
        raise ConfigError(
            "class table on the host: needs method = 'vptsp' with class_optimizer = 'rowwise'; leave it out"
        )
    if where == "auto" and device.type == "cuda":
        where = "host" if _bytes(prompts) > free_gpu_memory(device) / 2 else "device"
    if where != "host":
        return
    # Every process of this machine has its table and moments by now, and `HostPrompts` copies one of them at a time.
    processes, copied = local_size(), prompts.table.nbytes
    available = available_memory()
    if copied * processes > available:
        raise VptspError(
            f"class table on the host: a copy of {copied / 1e9:.2f} GB x {processes} processes of this "
            f"machine = {copied * processes / 1e9:.2f} GB, but {available / 1e9:.2f} GB of its memory are available; "
            f"{'start fewer processes, ' if processes > 1 else ''}lower class_prompts or class_layers, "
            "or keep the table on the GPU with --class-table device"
        )
    model.class_prompts = HostPrompts(prompts)


def check_table_memory(config: RunConfig, num_classes: int, width: int) -> None:
    """Check that this machine's memory can hold the table of class prompts and a row-wise table's optimiser state.

    ``width`` is the backbone's.

    Without this check, the system would end the process. Raises VptspError: it cannot; the message has both sizes.
    """
    if config.has_class_prompts:
        tables = 1 + (len(MOMENTS[config.optimizer]) if config.class_optimizer == "rowwise" else 0)
        check_room(4 * tables * math.prod(table_shape(config, num_classes, width)))


def _bytes(prompts: ClassPrompts) -> int:
    return sum(table.nbytes for table in prompts.tables().values())
