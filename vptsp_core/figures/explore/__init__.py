"""Views of a finished run: what it finds, where it errs, where its proxies are, how much attention its prompts get.

Each module is one view: numbers from a run, pictures of them in `figures.views`. The notebook `explore` calls them;
`widgets` makes them answer clicks where somebody watches.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vptsp_core.data import Benchmark, ImageSet, load_benchmark
from vptsp_core.data.holdout import for_selection
from vptsp_core.errors import VptspError
from vptsp_core.runs.embedder import Embedder, load
from vptsp_core.runs.folder import METRICS, Run, read_run


@dataclass(frozen=True)
class Opened:
    """A run with its model, and the test images of a data set embedded by it.

    Attributes:
        run, embedder: the run and its model.
        benchmark: the data set looked at, the run's own or another.
        queries: (N, d) float32, L2-normalised: the test images.
        gallery: (M, d) what they are searched in; the same array where a data set has no gallery of its own.
    """

    run: Run
    embedder: Embedder
    benchmark: Benchmark
    queries: np.ndarray
    gallery: np.ndarray

    @property
    def found_in(self) -> ImageSet:
        """The images that queries are searched in."""
        return self.benchmark.test if self.benchmark.gallery is None else self.benchmark.gallery

    @property
    def among_themselves(self) -> bool:
        """Whether queries are searched among each other, so that none may find itself."""
        return self.benchmark.gallery is None

    @property
    def trained_on(self) -> ImageSet:
        """The training images that have proxies: without the classes that were held out to choose the epoch."""
        return for_selection(self.benchmark, self.run.config)[0].train

    @property
    def own_data(self) -> bool:
        """Whether these are the images of the run's own data set."""
        return self.benchmark.record() == self.run.record["data"]


def finished_runs(*results: Path) -> dict[str, Path]:
    """{what to call it: folder} of the finished runs in results folders, by name; unreadable ones are left out.

    A name is the folder's, which holds data set, method and hash, with the backbone, the seed and R@1 in percent.
    """
    found = {}
    for path in [path.parent for each in results for path in each.glob(f"runs/*/{METRICS}")]:
        with contextlib.suppress(VptspError, KeyError):  # opening it says what is wrong with it
            run = read_run(path)
            name = f"{path.name}, {run.config.backbone}, seed {run.config.seed}: R@1 {100 * run.metrics['R@1']:.1f}"
            found[name] = path
    return dict(sorted(found.items()))


def open_run(
    path: str | Path, data: str | Path | None = None, dataset: str | None = None, weights: str | Path | None = None
) -> Opened:
    """Load a run and embed the test images of its data set, or of another.

    Args:
        path: the run's folder.
        data: folder of the data sets (see `load_benchmark`); the glyphs leave it aside, as another run may be opened.
        weights: file of the backbone's weights, where it is elsewhere than when the run was made.
        dataset: another data set to look at; None for the run's own, whole or not, as the run had it.
    """
    run, embedder = read_run(path), load(path, weights=weights)
    name = dataset or run.config.dataset
    benchmark = load_benchmark(name, None if name == "glyphs" else data, allow_partial="partial" in run.record["data"])
    queries = embedder.embed(benchmark.test)
    gallery = queries if benchmark.gallery is None else embedder.embed(benchmark.gallery)
    return Opened(run, embedder, benchmark, queries, gallery)
