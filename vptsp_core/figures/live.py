"""A training run in progress: its loss and R@1 so far, drawn again in the notebook after every epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vptsp_core.figures.style import BLUE, GREY, VERMILION, file_of, in_house_style
from vptsp_core.paper.report import watched
from vptsp_core.runs.train import Row


@in_house_style
def training(history: pd.DataFrame, *, epochs: int, frozen: float | None = None) -> Figure:
    """Draw loss and R@1 on the test classes over the epochs so far.

    Args:
        history: columns ``epoch``, ``loss`` and, if the run is evaluated on the test set, ``R@1``, a fraction.
        epochs: the epochs of the whole run. The axis has this length from the start.
        frozen: R@1 of the frozen backbone, a fraction, for a dashed line.
    """
    fig = Figure(figsize=(8.4, 3.2), layout="constrained")
    loss, recall = fig.subplots(1, 2)
    loss.plot(history["epoch"], history["loss"], "o-", color=BLUE, clip_on=False)  # the highest marker is not cut off
    loss.set(ylabel="loss, mean of the epoch", ylim=(0, None))
    if frozen is not None:
        recall.axhline(100 * frozen, color=GREY, linestyle="--", label="frozen backbone")
    if "R@1" in history:
        seen = history.dropna(subset=["R@1"])
        recall.plot(seen["epoch"], 100 * seen["R@1"], "o-", color=VERMILION, label="this run")
        recall.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0.2)
    recall.set(ylabel="R@1 on unseen classes, %")
    for ax in (loss, recall):
        ax.set(xlabel="epoch", xlim=(0.5, epochs + 0.5))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return fig


class Redrawn:
    """A figure of the history in the notebook's output, for ``on_epoch`` of `runs.run.run`.

    If nobody watches the notebook (`paper.report.watched`), only the picture of `finish` is shown.
    """

    def __init__(self, draw: Callable[[pd.DataFrame], Figure]) -> None:
        self.draw = draw
        self._handle: Any = None

    def __call__(self, history: Sequence[Row]) -> None:
        """Show the history so far."""
        from IPython.display import Image

        if watched():
            fig = self.draw(pd.DataFrame(history))
            self.finish(Image(data=file_of(fig).getvalue(), width=int(100 * fig.get_figwidth())))

    def finish(self, picture: Any) -> None:
        """Show ``picture``, from `figures.style.save_figure`, in place of the last one."""
        from IPython.display import display

        if self._handle is None:
            self._handle = display(picture, display_id=True)
        else:
            self._handle.update(picture)
