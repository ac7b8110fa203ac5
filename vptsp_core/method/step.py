"""One optimiser step, the same for every method: as it is written, or compiled for one shape and replayed.

Compiled, the whole loss (towers, proxies, Proxy-Anchor) is one graph, forward and backward; on a GPU it is replayed as
a CUDA graph, so that the host launches a handful of things a step instead of some thousand kernels. That wants fixed
shapes: a constant batch (the sampler drops the last, short one) and constant prompt counts, which a run has anyway.
Nothing in a step waits for the device: no ``.item()``, no boolean indexing, no copy out of pageable memory.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from vptsp_core.errors import VptspError
from vptsp_core.method.config import check_choice
from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import PromptedViT
from vptsp_core.system.distributed import world_size

COMPILE = ("auto", "on", "off")
ENOUGH_STEPS = 1000  # compiling takes about a minute, which shorter runs do not win back
GUARDED = 3  # steps in which compiling may fail: the graphs of a GPU are recorded in the second and third


class TrainStep:
    """One step of training: ``step(images, labels, classes, upcoming)``.

    Args:
        model: on its device, in train mode when called; its frozen weights are held in the trunk's precision from here
            on (`hold_frozen`).
        optimizers: from `make_optimizers`; the first holds the class prompts' rows.
        scaler: of fp16's gradients; None scales nothing.
        compiled: see `compiles`.
        must: a graph that cannot be compiled is an error; else one line warns, and steps go on as written. Of several
            processes none can go on alone, so there it is an error always.

    Attributes:
        compiled: whether steps run compiled (False from the moment that compiling failed).
        compile_seconds: what the first compiled step took, nearly all of it compiling, or reading what an earlier run
            compiled; None before it, and for steps as written.
    """

    def __init__(
        self,
        model: MetricModel,
        optimizers: Sequence[torch.optim.Optimizer],
        scaler: torch.amp.GradScaler | None = None,
        *,
        compiled: bool,
        must: bool = False,
    ) -> None:
        self.model, self.optimizers, self.must = model, optimizers, must or world_size() > 1
        self.taken = 0
        self.device = next(model.parameters()).device
        self.scaler = scaler or torch.amp.GradScaler(self.device.type, enabled=False)
        hold_frozen(model.vit)
        self.compiled = compiled
        self.compile_seconds: float | None = None
        self._loss: Callable[[Tensor, Tensor], Tensor] = compiled_loss(model) if compiled else model.loss

    def __call__(
        self, images: Tensor, labels: Tensor, classes: Tensor | None = None, upcoming: Tensor | None = None
    ) -> Tensor:
        """Forward, backward, both optimisers; the loss before them, still on the device.

        Args:
            images, labels: see `MetricModel.loss`.
            classes, upcoming: (C',) int64 on the CPU, the classes of this batch and of the next (see
                `ClassPrompts.swap_in`); without them they are read from the labels, and nothing is fetched ahead.

        Raises:
            VptspError: it cannot be compiled, and must be.
        """
        prompts, (optimizer, _) = self.model.class_prompts, self.optimizers
        if classes is None:
            classes = labels[:: self.model.config.samples_per_class]
            classes = classes.cpu() if prompts is not None and prompts.on_host else classes
        if prompts is not None:
            prompts.swap_in(classes, optimizer, upcoming)
        for each in self.optimizers:
            each.zero_grad(set_to_none=True)
        guarded = self.compiled and self.taken < GUARDED
        loss = self._guarded(images, labels) if guarded else self._forward_backward(images, labels)
        self.taken += 1
        self.model.sum_gradients()
        for each in self.optimizers:
            self.scaler.step(each)
        self.scaler.update()
        if prompts is not None:
            prompts.swap_out(classes, optimizer)
        return loss

    def _forward_backward(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.compiled and self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        loss = self._loss(images, labels)
        self.scaler.scale(loss).backward()
        return loss.detach().clone()  # a replayed graph writes the next step's loss into the same memory

    def _guarded(self, images: Tensor, labels: Tensor) -> Tensor:
        """A compiled step; where it fails, all is put back as it was before, and the step is taken as written."""
        proxies, on_gpu = self.model.proxies, self.device.type == "cuda"
        before = {} if proxies is None else {name: value.clone() for name, value in proxies.named_buffers()}
        random = torch.get_rng_state(), torch.cuda.get_rng_state(self.device) if on_gpu else None
        start = time.perf_counter()
        try:
            loss = self._forward_backward(images, labels)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except Exception as error:  # the compilers raise what they like
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if self.must:
                raise VptspError(f"a training step cannot be compiled here ({reason}); choose --compile off") from error
            warnings.warn(f"a training step cannot be compiled here ({reason}): steps run as written", stacklevel=3)
            self.compiled, self.compile_seconds, self._loss = False, None, self.model.loss
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            with torch.no_grad():
                for name, value in before.items():
                    self.model.get_buffer(f"proxies.{name}").copy_(value)
            torch.set_rng_state(random[0])
            if random[1] is not None:
                torch.cuda.set_rng_state(random[1], self.device)
            return self._forward_backward(images, labels)
        if self.compile_seconds is None:
            self.compile_seconds = time.perf_counter() - start
        return loss


def compiles(wanted: str, device: torch.device, steps: int) -> bool:
    """Whether steps run compiled: ``"on"``, ``"off"``, or ``"auto"``, on a GPU that has a compiler, in a run of so many
    steps that it pays. On a CPU compiled steps were found to be no quicker (``bench step``).

    Raises:
        ConfigError: another word.
        VptspError: ``"on"``, and this machine has no compiler for the device.
    """
    check_choice("compile", wanted, COMPILE)
    missing = _missing_compiler(device)
    if wanted == "on" and missing:
        raise VptspError(f"compile = 'on' needs {missing}; install it, or leave --compile away")
    pays = device.type == "cuda" and steps >= ENOUGH_STEPS
    return wanted == "on" or (wanted == "auto" and pays and not missing)


def _missing_compiler(device: torch.device) -> str:
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else "the package triton"
    compilers = (os.environ.get("CXX", ""), "g++", "clang++", "c++")
    return "" if any(shutil.which(name) for name in compilers if name) else "a C++ compiler (g++)"


def compiled_loss(model: MetricModel) -> Callable[[Tensor, Tensor], Tensor]:
    """`MetricModel.loss` as one compiled graph, its compiled form kept between runs.

    It is compiled when first called. Several processes exchange embeddings in its midst: what lies before and after
    is then compiled on its own, and not replayed as a CUDA graph.
    """
    # What is kept there is code, so it lies with the user and not in the folder for everybody's temporary files.
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(Path(home) / "vptsp" / "compiled"))
    alone = world_size() == 1
    # Dropout draws what it draws uncompiled, so that the same seed gives the same masks.
    options: dict[str, str | int | bool | Callable[..., object]] = {"fallback_random": True}
    if alone and next(model.parameters()).device.type == "cuda":
        options["triton.cudagraphs"] = True

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return model.loss(images, labels)

    # torch keeps what it compiled by code object, eight forms of each: a model needs one of its own.
    loss.__code__ = loss.__code__.replace()
    return torch.compile(loss, fullgraph=alone, dynamic=False, options=options)


def hold_frozen(vit: PromptedViT) -> None:
    """Keep the weights that do not learn in the precision that autocast computes in; it changes no number.

    Autocast rounds a weight each time it is used, and keeps no rounded copy of one without gradient: a pass over all
    weights for every tower and step, and twice the memory. Norms, embeddings and whatever learns stay in float32, as
    do heads, prompts, proxies and accumulators, which are computed in it. The model is for training and measuring from
    here on: what is taken away is loaded from the run's folder, and with it the weights as they were.
    """
    if vit.autocast is None:
        return
    for module in vit.backbone.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    parameter.data = parameter.data.to(vit.autocast)
