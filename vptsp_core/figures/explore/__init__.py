"""Views of a finished run: neighbours, errors, proxies, and the attention that its prompts get.

Each module computes the numbers of one view. `figures.views` and `figures.gallery` draw them, and `widgets` lets a user
click through them. The notebook `explore` puts them together.
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
    """A run with its model, and the test images of a data set, embedded by this model.

    Attributes:
        run, embedder: the run and its model.
        benchmark: the data set, either the run's own or another.
        queries: (N, d) float32, L2-normalised, the embeddings of the test images.
        gallery: (M, d), the embeddings of the images that are searched. If the data set has no separate gallery, this
            is the same array as ``queries``.
    """

    run: Run
    embedder: Embedder
    benchmark: Benchmark
    queries: np.ndarray
    gallery: np.ndarray

    @property
    def searched(self) -> ImageSet:
        """The images that are searched."""
        return self.benchmark.test if self.benchmark.gallery is None else self.benchmark.gallery

    @property
    def same_gallery(self) -> bool:
        """Whether queries are searched among each other. Then no query may find itself."""
        return self.benchmark.gallery is None

    @property
    def trained_on(self) -> ImageSet:
        """The training images, without the classes that were held out to choose the epoch: these have no proxies."""
        return for_selection(self.benchmark, self.run.config)[0].train

    @property
    def own_data(self) -> bool:
        """Whether these are the images of the run's own data set."""
        return self.benchmark.record() == self.run.record["data"]


def finished_runs(*results: Path) -> dict[str, Path]:
    """Return {name: folder} of the finished runs in results folders, sorted by name. Unreadable runs are left out.

    A name has the folder's name (data set, method and hash), the backbone, the seed and R@1 in percent.
    """
    runs = {}
    for path in [path.parent for each in results for path in each.glob(f"runs/*/{METRICS}")]:
        with contextlib.suppress(VptspError, KeyError):
            run = read_run(path)
            name = f"{path.name}, {run.config.backbone}, seed {run.config.seed}: R@1 {100 * run.metrics['R@1']:.1f}"
            runs[name] = path
    return dict(sorted(runs.items()))


def open_run(
    path: str | Path, data: str | Path | None = None, dataset: str | None = None, device: str | None = None
) -> Opened:
    """Load a run and embed the test images of its data set, or of another.

    Args:
        path: the run's folder.
        data: the folder of the data sets (see `load_benchmark`). Ignored for the glyphs, which need none.
        dataset: another data set than the run's own. If None, the run's own is loaded. If the run was trained on a
            partial data set, a partial one is accepted here too.
        device: where the images are embedded, as for `load`.
    """
    run, embedder = read_run(path), load(path, device)
    name = dataset or run.config.dataset
    benchmark = load_benchmark(name, None if name == "glyphs" else data, allow_partial="partial" in run.record["data"])
    queries = embedder.embed(benchmark.test)
    gallery = queries if benchmark.gallery is None else embedder.embed(benchmark.gallery)
    return Opened(run, embedder, benchmark, queries, gallery)
