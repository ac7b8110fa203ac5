"""Public functions run under torch's default settings, so that a caller's settings do not change the numbers; and the
caller's random numbers go on as if nothing had been drawn.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch

P = ParamSpec("P")
R = TypeVar("R")
_IN_PUBLIC_CALL = ContextVar("inside of a public function", default=False)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Inside: no autocast, gradients recorded, float32 by default and in full in matrix products, new tensors on the
    CPU. Then the caller's settings return, the random states of torch, NumPy and Python too.
    """
    dtype = torch.get_default_dtype()
    backends: Any = torch.backends
    with contextlib.ExitStack() as stack:
        gpu = torch.accelerator.current_accelerator()
        for kind in {"cpu"} if gpu is None else {"cpu", gpu.type}:
            stack.enter_context(torch.autocast(kind, enabled=False))
        if not _IN_PUBLIC_CALL.get():  # a nested call continues the outer one's random numbers
            stack.callback(_IN_PUBLIC_CALL.reset, _IN_PUBLIC_CALL.set(True))
            stack.enter_context(_random_states_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        # Not torch.get_float32_matmul_precision: it raises if a caller has set these.
        for switch in (backends, backends.cuda.matmul, backends.mkldnn, backends.mkldnn.matmul):
            precision = switch.fp32_precision
            if precision not in ("none", "ieee"):
                switch.fp32_precision = "none"
                stack.callback(setattr, switch, "fp32_precision", precision)
        yield


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    of_numpy, of_python, seed = np.random.get_state(), random.getstate(), torch.initial_seed()
    started = torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
        try:
            yield
        finally:
            np.random.set_state(of_numpy)
            random.setstate(of_python)
            if not started and torch.cuda.is_available():  # reading its state would start CUDA
                torch.cuda.manual_seed_all(seed)


def in_torch_defaults(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which runs in `torch_defaults` whatever its caller has set."""

    @functools.wraps(function)
    def guarded(*args: P.args, **options: P.kwargs) -> R:
        with torch_defaults():
            return function(*args, **options)

    return guarded
