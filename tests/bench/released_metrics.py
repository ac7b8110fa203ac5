"""Run the released implementation's evaluation, from a user's clone, on given embeddings.

Its own functions collect the loader's batches, search with faiss and compute R@K and MAP@R; with a separate gallery,
its In-Shop evaluation does. k-means and F1 are left out, because ours does not compute them. Without faiss for a GPU,
the released code searches on the CPU.
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

BATCH = 64  # rows per batch of its loader


def released_metrics(
    reference: str | Path, rows: Tensor, labels: Tensor, ks: Sequence[int],
    gallery: Tensor | None = None, gallery_labels: Tensor | None = None,
) -> Callable[[], dict[str, float]]:  # fmt: skip
    """Prepare the released metrics.

    Args:
        rows, gallery: (N, d) and (M, d) float32, L2-normalised as by its model.

    Returns:
        A function that returns "R@k" and "MAP@R released", or with a gallery "MAP released": the names of
        `retrieval_metrics`.

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
    """A stand-in for its model: the images are the embeddings already."""

    name = "ready"

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the (b, d) rows unchanged."""
        return {"embeds": images}


class Loader:
    """A stand-in for its data loader: batches of labels (b,) and images, which are rows (b, d)."""

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
