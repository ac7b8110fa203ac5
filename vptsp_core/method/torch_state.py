"""Keep the caller's settings of torch out of public functions, and leave the caller's random state unchanged.

A public function runs under torch's default settings, so its numbers do not depend on the caller's. Afterwards torch's
random numbers continue as if the function had drawn none. (Nothing here draws from the global generators of NumPy and
Python.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch

_IN_PUBLIC_CALL = ContextVar("inside of a public function", default=False)


@contextlib.contextmanager
def torch_defaults() -> Iterator[None]:
    """Set torch's defaults within the context: no autocast, gradients on, float32, exact products, tensors on the CPU.

    Public functions have it as a decorator.

    Afterwards the caller's settings are restored, and torch's random state.
    """
    dtype = torch.get_default_dtype()
    backends: Any = torch.backends
    with contextlib.ExitStack() as stack:
        gpu = torch.accelerator.current_accelerator()
        for kind in {"cpu"} if gpu is None else {"cpu", gpu.type}:
            # No cache of cast weights: torch empties it only when the outermost autocast ends, and this one is the
            # outermost. With the cache, every step would compute with the casts of the first step's weights.
            stack.enter_context(torch.autocast(kind, enabled=False, cache_enabled=False))
        if not _IN_PUBLIC_CALL.get():  # a nested call continues the random numbers of the outer call
            stack.callback(_IN_PUBLIC_CALL.reset, _IN_PUBLIC_CALL.set(True))
            stack.enter_context(_random_states_kept())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            torch.set_default_dtype(torch.float32)
            stack.callback(torch.set_default_dtype, dtype)
        # By default, cuDNN's convolutions, such as the patch embedding, are in TF32. The switch of all kinds comes
        # first. Where it is enough, the others stay as they are, because some defaults cannot be set again.
        # torch.get_float32_matmul_precision would raise if the caller has set one of these.
        cudnn, mkldnn = backends.cudnn, backends.mkldnn
        kinds = (cudnn, backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
        for switch in (backends, *kinds):
            precision = switch.fp32_precision
            if precision != "ieee" and (switch is backends or precision != "none"):
                switch.fp32_precision = "ieee"
                stack.callback(setattr, switch, "fp32_precision", precision)
        yield


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore torch's random state after the context."""
    seed, started = torch.initial_seed(), torch.cuda.is_initialized()
    with torch.random.fork_rng(range(torch.cuda.device_count()) if started else []):
        try:
            yield
        finally:
            if not started:  # reading its state before would have started CUDA; torch seeds it when it starts
                torch.cuda.manual_seed_all(seed)
