"""Figure 4 of the paper: the models and proxies of a training run at its start, midway and at its end.

A run of half the epochs is the first half of the whole run. Its learning rates are the same, because ``cosine_T`` sets
the cosine and ``epochs`` does not. Its batches are the same, because an epoch draws them from (seed, epoch).
"""

from __future__ import annotations

import numpy as np
import torch
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
    """Return the proxies of a finished run, of length 1: {name: (C, d)}.

    These are O, P and Q (`proxies_of`) for vptsp, O for the other trained methods, and none for the frozen backbone.
    """
    state = learned_weights(run.path, run.record)
    if "proxies.state" in state:
        return proxies_of(state, run.config.alpha)
    if "proxies.bias" not in state:
        return {}
    return {"O": torch.nn.functional.normalize(state["proxies.bias"], dim=1).numpy()}


def proxies_of(state: dict[str, Tensor], alpha: float) -> dict[str, np.ndarray]:
    """Return the proxies of all classes, {"O" | "P" | "Q": (C, d)}, with rows of length 1.

    As in training, Q = normal((1 - alpha) P + alpha O), and O is not normalised before it is mixed.

    Args:
        state: `MetricModel.learned_state` of a model with semantic proxies.
    """
    ordinary, semantic = (state[f"proxies.{name}"].detach().cpu().numpy() for name in ("bias", "state"))
    mixed = (1 - alpha) * semantic + alpha * ordinary
    return {name: v / np.linalg.norm(v, axis=1, keepdims=True) for name, v in zip("OPQ", (ordinary, semantic, mixed))}
