"""Figure 4 of the paper: the models and proxies of a training run at its start, midway and at its end.

A run of half the epochs is the first half of the whole run. Its learning rates are the same, because ``cosine_T`` sets
the cosine and ``epochs`` does not. Its batches are the same, because an epoch draws them from (seed, epoch).
"""

from __future__ import annotations

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.method.config import RunConfig
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.folder import Run, learned_weights
from vptsp_core.runs.run import build_model
from vptsp_core.system.devices import autocast_dtype, pick_device

START, MIDWAY, END = "start", "midway", "end"


def run_moments(config: RunConfig) -> dict[str, RunConfig]:
    """Return the runs to train for the moments after the start, {moment: run}. A run of one epoch has no middle.

    Each run keeps the weights of its last epoch. ``selection="released"`` would keep the best epoch's.
    """
    halves = {MIDWAY: config.epochs // 2, END: config.epochs}
    return {name: config.replace(epochs=n, selection="last") for name, n in halves.items() if n >= 1}


def untouched(config: RunConfig, num_classes: int) -> tuple[Embedder, dict[str, np.ndarray]]:
    """Return the model of a run before its first step, and its proxies (C, d) by name (`proxies_of`)."""
    device = pick_device(None)
    model = build_model(config, num_classes, device)
    model.vit.autocast = autocast_dtype(config.precision, device, model.vit.backbone.embed_dim)
    return Embedder(model), proxies_of(model.learned_state(for_retrieval=True), config.alpha)


def learned_proxies(run: Run) -> dict[str, np.ndarray]:
    """Return the proxies of a finished run, of length 1: {name: (C, d)} (`proxies_of`)."""
    return proxies_of(learned_weights(run.path, run.record), run.config.alpha)


def proxies_of(state: dict[str, Tensor], alpha: float) -> dict[str, np.ndarray]:
    """Return the proxies of all classes, {"O" | "P" | "Q": (C, d)}, with rows of length 1.

    These are O, P and Q for vptsp, O for the other methods that train, and none for the frozen backbone. As in
    training, Q = normal((1 - alpha) P + alpha O), and O is not normalised before it is mixed.

    Args:
        state: `MetricModel.learned_state`.
    """
    found = {name: state[key] for name, key in (("O", "proxies.bias"), ("P", "proxies.state")) if key in state}
    if "P" in found:
        found["Q"] = (1 - alpha) * found["P"] + alpha * found["O"]
    return {name: F.normalize(rows.detach().cpu(), dim=1).numpy() for name, rows in found.items()}
