"""The released implementation's evaluation, run from a user's clone on embeddings that are there already.

Its own functions are called, from the loader's batches on: the lists of numbers that it gathers embeddings in, the
search by faiss, R@K and MAP@R query by query; with a separate gallery its In-Shop evaluation. k-means and F1, which
ours does not compute, are left out. Without faiss for a GPU it searches on the CPU, as on a machine without one.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from vptsp_core.paper.released import clone_modules, on_device

BATCH = 64  # rows that its loader hands over at a time


def released_metrics(
    reference: str | Path, rows: Tensor, labels: Tensor, ks: Sequence[int],
    gallery: Tensor | None = None, gallery_labels: Tensor | None = None,
) -> Callable[[], dict[str, float]]:  # fmt: skip
    """What computes its metrics, ready to run.

    Args:
        rows, gallery: (N, d) and (M, d) float32, L2-normalised as its model does it.

    Returns:
        A function that gives "R@k" and "MAP@R released", with a gallery "MAP released", as `retrieval_metrics` calls
        the same.

    Raises:
        VptspError: the clone cannot be used.
    """
    package, in_shop = clone_modules(reference, ("metrics", "metrics.query_gallery_metrics"))
    if gallery is None:
        return lambda: _standard(package, rows, labels, ks)
    assert gallery_labels is not None
    loaders = (Loader(rows, labels), Loader(gallery, gallery_labels))

    def evaluate() -> dict[str, float]:
        with on_device(rows.device), _quiet():
            recalls, mean = in_shop.evaluate_query_gallery(Ready(), *loaders, list(ks))
        return {**{f"R@{k}": float(r) for k, r in zip(sorted(ks), recalls, strict=True)}, "MAP released": float(mean)}

    return evaluate


class Ready(nn.Module):
    """Stands for its model: the images are their embeddings."""

    name = "ready"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(b, d) as they are."""
        return {"embeds": images}


class Loader:
    """Stands for its data loader: batches of labels (b,), images, which are rows (b, d), and places."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels.cpu()
        paths = np.stack([np.arange(len(rows)).astype(str), self.labels.numpy().astype(str)], axis=1)
        self.dataset = SimpleNamespace(image_list=paths, image_paths=paths)

    def __len__(self) -> int:
        return -(-len(self.rows) // BATCH)

    def __iter__(self) -> Iterator[tuple[Tensor, dict[str, Tensor], None]]:
        for rows, labels in zip(self.rows.split(BATCH), self.labels.split(BATCH), strict=True):
            yield labels, {"image": rows}, None


def _standard(package: object, rows: Tensor, labels: Tensor, ks: Sequence[int]) -> dict[str, float]:
    import faiss

    options = SimpleNamespace(
        kernels=torch.get_num_threads(), device=rows.device, normal=False, n_test_classes=len(labels.unique())
    )  # fmt: skip
    names = [*(f"e_recall@{k}" for k in ks), "mAP_R"]
    with on_device(rows.device), _quiet():
        computer = package.MetricComputer(names, options)  # type: ignore[attr-defined]
        options.evaluate_on_gpu = rows.device.type == "cuda" and hasattr(faiss, "StandardGpuResources")
        found, _ = computer.compute_standard(options, Ready(), Loader(rows, labels), ["embeds"], rows.device, "Val")
    of_names = found["embeds"]
    return {**{f"R@{k}": float(of_names[f"e_recall@{k}"]) for k in ks}, "MAP@R released": float(of_names["mAP_R"])}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
        yield
