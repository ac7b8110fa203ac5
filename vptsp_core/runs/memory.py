"""Where the class prompts of all classes are kept, and whether a training step fits into the GPU's memory.

A trial step before training measures memory use instead of estimating it. It runs the towers and holds the
optimiser state, nearly all that a step takes. It leaves out
- the proxies and the loss: a few (classes, d) tensors;
- what augmenting on the GPU takes: for each image some 25 bytes a pixel of the batch's tallest and widest boxes;
- the decoded training set, where it is kept on the GPU: up to a quarter of what is free by then (`data.store`);
- of several processes, the copy of all gradients in one row that they send (`system.distributed.Processes`);
- what evaluation holds: embeddings and a part of their products.
If these are too much, `failures_named` says in one line what helps.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence

import torch

from vptsp_core.errors import ConfigError, TrainingError, VptspError
from vptsp_core.method.class_prompts import MOMENTS, ClassPrompts
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.runs.host_prompts import HostPrompts
from vptsp_core.system.distributed import local_size
from vptsp_core.system.host_rows import check_room
from vptsp_core.system.portable import available_memory


def probe_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """The towers' forward and backward pass over zeros, beside room for the optimiser state that is still to come.

    Of several processes each tries its own share. Nothing of it stays: random numbers, mode and gradients are as
    before.
    Raises torch.OutOfMemoryError: it does not fit.
    """
    config, device = model.config, next(model.parameters()).device
    learned = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    have_state = {p for optimizer in optimizers for p in optimizer.state}
    training = model.training
    if isinstance(model.class_prompts, HostPrompts):
        model.class_prompts.host_rows()  # its buffers are part of a step
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            room = [torch.empty_like(p) for p in learned if p not in have_state for _ in MOMENTS[config.optimizer]]
            classes = torch.arange(config.batch // config.samples_per_class, device=device)
            whole = torch.zeros(config.batch, 3, config.image_size, config.image_size, device=device)
            images = model.group.share(whole)
            embeddings, p = model.train().towers(images, classes)
            (embeddings.sum() if p is None else embeddings.sum() + p.sum()).backward()
            del room
    finally:
        model.train(training).zero_grad(set_to_none=True)


def fit_step(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Turn gradient checkpointing on if a step does not fit without it, and say so.
    Raises TrainingError: it does not fit with it either.
    """
    if _fits(model, optimizers):
        return
    if not model.vit.checkpointing:
        model.vit.checkpointing = True
        if _fits(model, optimizers):
            message = "a training step does not fit into the GPU's memory: gradient checkpointing is on (slower)"
            warnings.warn(message, stacklevel=2)
            return
    raise TrainingError(
        f"a training step of batch = {model.config.batch} does not fit into the GPU's memory, even with gradient "
        f"checkpointing; {_cure(model)}"
    )


@contextlib.contextmanager
def failures_named(model: MetricModel, when: str) -> Iterator[None]:
    """Inside, memory that is full and a GPU that fails or is gone are errors of one line, which says ``when``.
    Raises TrainingError: one of these; the checkpoint of the epoch before is in the run's folder.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        if isinstance(error, torch.OutOfMemoryError) or reason.startswith("MPS backend out of memory"):
            raise TrainingError(f"the GPU's memory is full in {when}; {_cure(model)}, or --device cpu") from error
        if isinstance(error, MemoryError) or "can't allocate memory" in reason:  # of the CPU, by NumPy or by torch
            raise TrainingError(f"the memory of this machine is full in {when}; lower batch") from error
        if isinstance(error, torch.AcceleratorError) or reason.startswith("CUDA error"):
            raise TrainingError(
                f"the GPU failed in {when} ({reason}); the same command resumes after the last finished epoch: start "
                "it again, or with --device cpu"
            ) from error
        raise


def _cure(model: MetricModel) -> str:
    """What takes less memory, first of all what changes no number."""
    prompts = model.class_prompts
    choices = [] if model.vit.checkpointing else ["--checkpointing on"]
    if prompts is not None and prompts.rowwise and not isinstance(prompts, HostPrompts):
        choices.append("--class-table host")
    return f"choose {' or '.join(choices)}, or lower batch" if choices else "lower batch"


def _fits(model: MetricModel, optimizers: Sequence[torch.optim.Optimizer]) -> bool:
    try:
        probe_step(model, optimizers)
    except torch.OutOfMemoryError:
        pass  # the error holds the frames, and they the tensors: both must go before the cache can be emptied
    else:
        return True
    torch.cuda.empty_cache()
    return False


def place_class_prompts(model: MetricModel, device: torch.device, where: str = "auto") -> None:
    """Decide where the class-prompt table is kept, before the model moves to its device; it changes no numbers.

    Args:
        where: ``"device"``, ``"host"`` (row-wise tables only; a copy for each process), or ``"auto"``: in host memory
            if the table and its optimiser state would take more than half of what the GPU has free.

    Raises:
        ConfigError: ``"host"`` for a model without a row-wise table.
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
        free, _ = torch.cuda.mem_get_info(device)
        where = "host" if _bytes(prompts) > free / 2 else "device"
    if where != "host":
        return
    # The tables are there already, this process's and about now the others'; the moments come with the steps.
    processes, moments = local_size(), _bytes(prompts) - prompts.table.nbytes
    available = available_memory()
    if moments * processes > available:
        raise VptspError(
            f"class table on the host: {moments / 1e9:.2f} GB of optimiser state x {processes} processes of this "
            f"machine = {moments * processes / 1e9:.2f} GB, but {available / 1e9:.2f} GB of its memory are available; "
            f"{'start fewer processes, ' if processes > 1 else ''}lower class_prompts or class_layers, "
            "or keep the table on the GPU with --class-table device"
        )
    model.class_prompts = HostPrompts(prompts)


def check_table_memory(config: RunConfig, num_classes: int, width: int) -> None:
    """Refuse a class-prompt table (C classes, the backbone's width D) that this machine's memory cannot hold, before
    the system ends the process.
    Raises VptspError: it cannot; the message has both sizes.
    """
    if config.has_class_prompts:
        check_room(4 * num_classes * config.class_layers * config.class_prompts * width)


def _bytes(prompts: ClassPrompts) -> int:
    return sum(table.nbytes for table in prompts.tables().values())
