"""A finished run in TensorBoard: its history, and the neighbours of some test images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from vptsp_core.figures.explore import open_run
from vptsp_core.figures.explore.retrieval import all_neighbours
from vptsp_core.figures.gallery import retrieval_grid
from vptsp_core.figures.style import file_of
from vptsp_core.figures.umap import spread_classes
from vptsp_core.runs.curves import Curves
from vptsp_core.runs.folder import Run
from vptsp_core.system.distributed import is_main


def show_finished(done: Run, folder: str | Path, data: str | Path | None = None, device: str | None = None) -> None:
    """Write a run's history and a retrieval grid below ``folder``. This embeds all test images.

    Args:
        data: the folder of the data sets, or of your own images.
        device: where they are embedded, as for `load`.
    """
    if is_main():
        curves = Curves(Path(folder).expanduser() / done.path.name)
        curves(done.history.to_dict("records"))  # first: the images of a finished run may be missing here
    opened = open_run(done.path, data, device=device)  # in all processes: each embeds a share
    if not is_main():
        return
    _, places = all_neighbours(opened, 8)
    test = opened.benchmark.test
    asked = {"test images": spread_classes(len(test), 10)}
    figure = retrieval_grid(test, opened.searched, asked, {f"R@1 {100 * done.metrics['R@1']:.1f} %": places})
    picture = np.asarray(Image.open(file_of(figure)).convert("RGB"))
    curves.writer.add_image("retrieval", picture, int(done.metrics["epoch"]), dataformats="HWC")
    curves.writer.close()
