"""A training step that is compiled for one shape.

The whole loss (towers, proxies, Proxy-Anchor) is one graph, forward and backward. On a GPU it is replayed as a CUDA
graph: the host then launches a few graphs per step instead of about a thousand kernels.
"""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vptsp_core.errors import VptspError
from vptsp_core.method.model import MetricModel
from vptsp_core.method.step import TrainStep
from vptsp_core.system.caches import user_folder
from vptsp_core.system.distributed import world_size

COMPILE = ("auto", "on", "off")
ENOUGH_STEPS = 1000  # compiling takes about a minute, which a shorter run does not save
GUARDED = 3  # steps in which compiling can fail: CUDA graphs are recorded in the second and third


class CompiledStep(TrainStep):
    """`TrainStep` with a compiled loss.

    If the loss cannot be compiled, a warning says so, and the steps run uncompiled. With several processes, or if
    ``must`` is True, the step raises an error instead: one process of several cannot continue uncompiled alone.
    Raises VptspError: at a step, because the loss cannot be compiled.
    """

    def __init__(
        self,
        model: MetricModel,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None = None,
        *,
        must: bool = False,
    ) -> None:
        super().__init__(model, optimizers, scaler)
        self.must = must or world_size() > 1
        self.taken = 0
        self.compiled = True  # False after compiling has failed
        self.compile_seconds: float | None = None  # of the first step: nearly all of it is compiling
        self._loss = compiled_loss(model)

    def forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        if not self.compiled:
            return super().forward_backward(images, labels)
        loss = self._guarded(images, labels) if self.taken < GUARDED else self._replay(images, labels)
        self.taken += 1
        return loss

    def _replay(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach().clone()  # the next step writes its loss into the same memory

    def _guarded(self, images: Tensor, labels: Tensor) -> Tensor:
        """Take a compiled step. If compiling fails, restore the state before it, and take the step uncompiled."""
        proxies, on_gpu = self.model.proxies, self.device.type == "cuda"
        before = {} if proxies is None else {name: value.clone() for name, value in proxies.named_buffers()}
        random = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None
        start = time.perf_counter()
        try:
            loss = self._replay(images, labels)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise errors of many kinds
            if isinstance(error, torch.AcceleratorError) and "captur" not in str(error):  # of a CUDA graph
                raise
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if self.must:
                raise VptspError(f"a training step cannot be compiled here ({reason}); choose --compile off") from error
            warnings.warn(f"a training step cannot be compiled here ({reason}): steps run uncompiled", stacklevel=3)
            self.compiled, self.compile_seconds = False, None
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, value in before.items():
                    self.model.get_buffer(f"proxies.{name}").copy_(value)
            torch.set_rng_state(random[0])
            if random[1] is not None:
                torch.cuda.set_rng_state(random[1], self.device)
            return super().forward_backward(images, labels)
        if self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - start
        return loss


def compiles(wanted: str, device: torch.device, steps: int) -> bool:
    """Return whether steps run compiled, in a run of this many ``steps``.

    ``"auto"`` compiles on a GPU with the package triton, if one process runs `ENOUGH_STEPS`. On a CPU, compiled steps
    are not faster (``bench step``). With several processes they have not been measured.
    """
    alone_on_gpu = device.type == "cuda" and world_size() == 1
    pays = alone_on_gpu and steps >= ENOUGH_STEPS and importlib.util.find_spec("triton") is not None
    return wanted == "on" or (wanted == "auto" and pays)


def compiled_loss(model: MetricModel) -> Callable[[Tensor, Tensor], Tensor]:
    """Return `MetricModel.loss` as one compiled graph, which the first call compiles and stores for later runs.

    Several processes exchange embeddings in the middle of the loss. It is then not replayed as a CUDA graph.
    """
    # The compiled code is executed, so it is kept in the user's folder, not in the temporary folder of all users.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(user_folder() / "vptsp" / "compiled"))
    alone = world_size() == 1
    # With this option dropout draws the same masks as in an uncompiled step.
    options: dict[str, str | int | bool | Callable[..., object]] = {"fallback_random": True}
    if alone and next(model.parameters()).device.type == "cuda":
        options["triton.cudagraphs"] = True

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return model.loss(images, labels)

    # torch keeps at most eight compiled forms per code object, so each model needs its own code object.
    loss.__code__ = loss.__code__.replace()
    return torch.compile(loss, fullgraph=alone, dynamic=False, options=options)
