"""A training run at its start, midway and at its end: the models, and where their proxies are.

The learning rate's cosine does not depend on ``epochs`` (``cosine_T`` sets it), and every epoch draws its batches from
(seed, epoch) alone, so a run of half the epochs is the first half of the whole one.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from vptsp_core.method.config import RunConfig
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.folder import Run, learned_weights
from vptsp_core.runs.run import build_model
from vptsp_core.system.devices import autocast_dtype, pick_device

START, MIDWAY, END = "start", "midway", "end"


def run_moments(config: RunConfig) -> dict[str, RunConfig]:
    """The runs to train for the moments after the start: half of the epochs (left out of a run of one), and all. Each
    keeps the weights of its last epoch; ``selection="released"`` would keep those of the best.
    """
    halves = {MIDWAY: config.epochs // 2, END: config.epochs}
    return {name: config.replace(epochs=n, selection="last") for name, n in halves.items() if n >= 1}


def untouched(config: RunConfig, num_classes: int) -> tuple[Embedder, dict[str, np.ndarray]]:
    """The model of a run before its first step, and its proxies (`proxies_of`)."""
    device = pick_device(None)
    model = build_model(config, num_classes, device)
    model.vit.autocast = autocast_dtype(config.precision, device, model.vit.backbone.embed_dim)
    return Embedder(model), proxies_of(model.learned_state(for_retrieval=True), config.alpha)


def learned_proxies(run: Run) -> dict[str, np.ndarray]:
    """The proxies (`proxies_of`) that a finished run of vptsp keeps in its folder."""
    return proxies_of(learned_weights(run.path, run.record), run.config.alpha)


def proxies_of(state: dict[str, Tensor], alpha: float) -> dict[str, np.ndarray]:
    """O, P and Q = normal((1 - alpha) P + alpha O) of every class, as the loss mixes them: {name: (C, d)}, of length 1.

    Args:
        state: `MetricModel.learned_state` of a model with semantic proxies. O enters Q at the length it has.
    """
    ordinary, semantic = (state[f"proxies.{name}"].detach().cpu().numpy() for name in ("bias", "state"))
    mixed = (1 - alpha) * semantic + alpha * ordinary
    return {name: v / np.linalg.norm(v, axis=1, keepdims=True) for name, v in zip("OPQ", (ordinary, semantic, mixed))}
