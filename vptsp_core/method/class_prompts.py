"""The prompts of every class: a learnable table, or a table that lends a batch's rows to each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vptsp_core.method.config import RunConfig
from vptsp_core.method.vit import prompt_counts

# The state that an optimiser keeps for each number, by the names of torch.optim.
MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}


def table_shape(config: RunConfig, num_classes: int, width: int) -> tuple[int, int, int, int]:
    """Return (C, L_c, m, D), the shape of the table of class prompts, with the backbone's ``width`` D.

    >>> table_shape(RunConfig(class_prompts=3, class_layers=4, class_step=2), 100, 192)  # two blocks have none left
    (100, 2, 3, 192)
    """
    blocks = len(prompt_counts(config.class_prompts, config.class_layers, config.class_step))
    return num_classes, blocks, config.class_prompts, width


class ClassPrompts(nn.Module):
    """The prompts of all classes, (C, L_c, m, D): m prompts for each class in each of L_c blocks.

    The released code has two ways to optimise them, and so has this class:

    - dense: the table is one parameter. Momentum and Adam's state also move classes that are absent from the batch.
    - rowwise: before each step, the batch's rows are copied into a small parameter, and their optimiser state into the
      state of this parameter. After the step, both are copied back. Absent classes do not move. All rows share the
      optimiser's step count. (The released code calls this a memory bank.)

    A row-wise table that is too large for a GPU can stay in host memory (`vptsp_core.runs.host_prompts`).

    Args:
        shape: (C, L_c, m, D), from `table_shape`.
        rowwise: whether the table is row-wise, not dense.
        batch_classes: C', the number of classes in a batch.
        optimizer: ``"sgd"``, ``"adam"`` or ``"adamw"``: decides which state a row-wise table keeps.
    """

    table: Tensor

    def __init__(self, shape: tuple[int, int, int, int], *, rowwise: bool, batch_classes: int, optimizer: str) -> None:
        super().__init__()
        num_classes, _, count, width = shape
        table = torch.empty(shape).normal_(std=(2 / ((num_classes + count) * width)) ** 0.5)  # Xavier over (C, m, D)
        self.rowwise = rowwise
        self.moments = MOMENTS[optimizer] if rowwise else ()
        if rowwise:
            self.register_buffer("table", table)
            self.rows = nn.Parameter(torch.zeros(batch_classes, *shape[1:]))
            for name in self.moments:
                self.register_buffer(name, torch.zeros(shape))
        else:
            self.table = nn.Parameter(table)

    def forward(self, classes: Tensor) -> Tensor:
        """Return the prompts of a batch's classes: (C',) -> (C', L_c, m, D). Row-wise: only after their `swap_in`."""
        return self.rows if self.rowwise else self.table.index_select(0, classes)

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Fetch the rows of ``classes`` and their optimiser state, before the forward pass. Dense: do nothing.

        Args:
            classes: (C',) int64 without repetition, in pinned memory or on the table's device, so that the host does
                not wait for the GPU.
            optimizer: the one that trains the prompts.
        """
        if self.rowwise:
            classes = classes.to(self.table.device, non_blocking=self.table.device.type != "mps")
            for name, slot in self.slots(optimizer).items():
                slot.copy_(getattr(self, name).index_select(0, classes))

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """Put the rows of ``classes``, (C',) int64, and their state back, after the step. Dense: do nothing."""
        if self.rowwise:
            classes = classes.to(self.table.device, non_blocking=self.table.device.type != "mps")
            for name, slot in self.slots(optimizer).items():
                getattr(self, name).index_copy_(0, classes, slot)

    def slots(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """Return the batch's rows and their optimiser state, (C', L_c, m, D) each, by the names of `tables`."""
        state: dict[str, Any] = optimizer.state.get(self.rows, {})
        # Before the first step, torch has no state; the table's is zero.
        moments = {name: state[name] for name in self.moments if state.get(name) is not None}
        return {"table": self.rows, **moments}

    def tables(self) -> dict[str, Tensor]:
        """Return the table and its optimiser state, (C, L_c, m, D) each, by name. Dense: an empty dict."""
        return {name: getattr(self, name) for name in ("table", *self.moments)} if self.rowwise else {}
