"""The class prompts of all classes: a learnable table, or a table that lends its rows to each step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Per-element optimiser state, by torch.optim's names; the whole table shares one step count.
MOMENTS = {"sgd": ("momentum_buffer",), "adam": ("exp_avg", "exp_avg_sq"), "adamw": ("exp_avg", "exp_avg_sq")}


class ClassPrompts(nn.Module):
    """m prompts in each of L_c blocks for each of C classes, optimised in one of the two released ways.

    dense: one learnable table; momentum and Adam state also move classes that are absent from the batch.
    rowwise: the batch's rows, with their optimiser state, are swapped into a small parameter and back; absent rows
    and their state do not move, and the optimiser's step count is common to all rows (the released memory bank). A
    table that is too large for a GPU stays in host memory: `vptsp_core.runs.host_prompts`.

    Args:
        shape: (C, L_c, m, D).
        batch_classes: classes a batch, C', the rows swapped in.
        optimizer: its name decides the state kept per row (rowwise only).
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
        """The prompts of a batch's classes: (C',) -> (C', L_c, m, D); rowwise after `swap_in` of the same classes."""
        return self.rows if self.rowwise else self.table.index_select(0, classes)

    @torch.no_grad()
    def swap_in(self, classes: Tensor, optimizer: torch.optim.Optimizer, upcoming: Tensor | None = None) -> None:
        """Before the forward pass: fetch the rows of ``classes`` and their optimiser state (rowwise; else nothing).

        Args:
            classes: (C',) int64, each once; pinned or on the table's device, so that nothing waits for a GPU.
            upcoming: (C',) the next batch's, if known; a table in host memory sends them early.
        """
        if self.rowwise:
            classes = classes.to(self.table.device, non_blocking=self.table.device.type != "mps")
            for name, slot in self.slots(optimizer).items():
                slot.copy_(getattr(self, name).index_select(0, classes))

    @torch.no_grad()
    def swap_out(self, classes: Tensor, optimizer: torch.optim.Optimizer) -> None:
        """After the optimiser's step: put the rows of ``classes`` ((C',) int64) and their state back (rowwise; else
        nothing).
        """
        if self.rowwise:
            classes = classes.to(self.table.device, non_blocking=self.table.device.type != "mps")
            for name, slot in self.slots(optimizer).items():
                getattr(self, name).index_copy_(0, classes, slot)

    def slots(self, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
        """The batch's rows and their state on the device, (C', L_c, m, D) each, by table name."""
        state: dict[str, Any] = optimizer.state.get(self.rows, {})
        # Before the first step torch has no state, and ours are zeros.
        found = {name: state[name] for name in self.moments if state.get(name) is not None}
        return {"table": self.rows, **found}

    def tables(self) -> dict[str, Tensor]:
        """The table and its moments, (C, L_c, m, D) each, by name (rowwise; else nothing)."""
        return {name: getattr(self, name) for name in ("table", *self.moments)} if self.rowwise else {}
