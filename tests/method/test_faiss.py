"""The search by faiss against an argsort of float64 cosines in numpy, and against the metrics written out."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from tests.method.test_metrics import reference
from vptsp_core import __main__
from vptsp_core.errors import VptspError
from vptsp_core.method import neighbours
from vptsp_core.method.faiss_index import FlatIndex, installed
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.runs.evaluate import evaluate

pytest.importorskip("faiss")


def long_tailed(n, d, seed=0):
    """Return items of classes of 1, 2, 4, 8, ... items, and three of one. Every tenth item occurs twice."""
    rng = np.random.default_rng(seed)
    labels = np.minimum(np.log2(np.arange(1, n + 1)).astype(int), 30)
    labels[-3:] = [100, 101, 102]
    x = rng.normal(size=(103, d))[labels] + 1.2 * rng.normal(size=(n, d))
    x[9::10] = x[8::10][: len(x[9::10])]
    order = rng.permutation(n)
    return torch.from_numpy(x[order]).float(), torch.from_numpy(labels[order])


def exact_grid(n, seed=0):
    """Return rows of four entries ±1. Their cosines are exact multiples of 1/4 in float32, and many are equal."""
    rng = np.random.default_rng(seed)
    x = np.zeros((n, 8), dtype=np.float32)
    for row in x:
        row[rng.permutation(8)[:4]] = rng.choice([-1, 1], 4)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(12, size=n))


def cosines(queries, gallery):
    q, g = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1)[:, None] for x in (queries, gallery))
    return q @ g.T


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("k", [1, 250, 300, 400])
def test_lists_equal_an_argsort_up_to_swaps_within_rounding(separate, k):
    x, _ = long_tailed(400 if separate else 300, 24)
    queries, gallery = (x[:100], x[100:]) if separate else (x, x)
    true = cosines(queries, gallery)
    if not separate:
        np.fill_diagonal(true, -np.inf)
    places = min(k, 300 if separate else 299)
    scores, found = nearest_neighbours(queries, gallery, k, exclude_self=not separate, backend="faiss")
    assert scores.shape == found.shape == (len(queries), k) and found.dtype == torch.int64
    assert (found[:, places:] == -1).all() and scores[:, places:].isneginf().all()
    found, expected = found.numpy()[:, :places], -np.sort(-true, axis=1)[:, :places]
    assert all(len(set(row)) == places for row in found.tolist())
    np.testing.assert_allclose(np.take_along_axis(true, found, 1), expected, atol=1e-6)
    np.testing.assert_allclose(scores.numpy()[:, :places], expected, atol=1e-6)


@pytest.mark.parametrize("separate", [False, True])
def test_ties_within_a_list_are_ordered_by_index(separate):
    x, _ = exact_grid(200)
    x[50:100] = x[:50]
    queries, gallery = (x[:60], x[60:]) if separate else (x, x)
    true = cosines(queries, gallery)
    if not separate:
        np.fill_diagonal(true, -np.inf)
    expected = np.argsort(-true, axis=1, kind="stable")[:, : len(gallery) - (not separate)]
    _, found = nearest_neighbours(queries, gallery, len(gallery), exclude_self=not separate, backend="faiss")
    assert (found.numpy()[:, : expected.shape[1]] == expected).all()
    # a shorter list has the right scores, and its ties are ordered by index too
    scores, found = nearest_neighbours(queries, gallery, 20, exclude_self=not separate, backend="faiss")
    assert (scores.numpy() == -np.sort(-true, axis=1)[:, :20]).all()
    assert (found.diff(dim=1)[scores.diff(dim=1) == 0] > 0).all()


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize(("made", "ks", "bound"), [
    (long_tailed(330, 24), (1, 4, 32, 1000), 1e-4),
    (exact_grid(160), (1, 2, 160), 1e-12),  # ties in lists of all items: none across their end
], ids=["long-tailed classes and duplicates", "tied scores"])  # fmt: skip
def test_metrics_equal_those_written_out(separate, made, ks, bound):
    x, labels = made
    args = (x[:60], labels[:60], x[60:], labels[60:]) if separate else (x, labels)
    ours = retrieval_metrics(*args[:2], **dict(zip(("gallery", "gallery_labels"), args[2:])), ks=ks, backend="faiss")
    assert ours == pytest.approx(reference(*args, ks=ks), abs=bound)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_small_chunks_bound_the_memory_and_change_nothing(backend):
    x, labels = exact_grid(300)
    labels[:150] = -1  # half of all items are in one class: its lists are long, and come first
    ks = (1, 300)
    whole = retrieval_metrics(x, labels, ks=ks, backend=backend)
    budget, made, asked = 2**17, [], []

    class Watched(FlatIndex):
        def __init__(self, items, deepest):
            made.append(deepest)
            super().__init__(items, deepest)

        def search(self, queries, k):
            asked.append((len(queries), k))
            return super().search(queries, k)

    with mock.patch.dict(neighbours.CHUNK_BYTES, cpu=budget), mock.patch.object(neighbours, "FlatIndex", Watched):
        assert retrieval_metrics(x, labels, ks=ks, backend=backend) == whole
        asked.clear()
        retrieval_metrics(x, labels, ks=(1,), backend=backend)
    if backend == "torch":
        assert not made
        return
    assert made == [300, 151]  # one index for each evaluation
    assert sum(rows for rows, _ in asked) == 300
    assert all(rows * (4 * 8 + 64 * (k - 1)) <= budget for rows, k in asked)
    assert [k for _, k in asked] == sorted((k for _, k in asked), reverse=True) and asked[0][1] == 151
    assert asked[-1][1] < 60 and asked[-1][0] + asked[-2][0] > 2 * asked[0][0]  # lists get shorter, chunks larger


@pytest.mark.parametrize("answered", [0, 2])
def test_if_the_index_fails_torch_continues(answered):
    """As on a GPU that faiss cannot use, or whose memory is full after some chunks."""
    x, labels = exact_grid(300)
    expected = retrieval_metrics(x, labels, ks=(1, 300))

    class Declining(FlatIndex):
        left = answered

        def search(self, queries, k):
            if not Declining.left:
                self._on_gpu = True
                return self._decline(RuntimeError("out of memory"))
            Declining.left -= 1
            return super().search(queries, k)

    with mock.patch.dict(neighbours.CHUNK_BYTES, cpu=2**20), mock.patch.object(neighbours, "FlatIndex", Declining):
        with mock.patch("vptsp_core.method.faiss_index._warn_once") as warned:
            assert retrieval_metrics(x, labels, ks=(1, 300), backend="faiss") == expected
    assert warned.call_count == 1 and "searching with torch" in warned.call_args.args[0]


def test_a_missing_faiss_is_an_error_before_anything_is_embedded():
    with mock.patch.dict(sys.modules, faiss=None):
        for call in (
            lambda: nearest_neighbours(torch.eye(2), torch.eye(2), 1, backend="faiss"),
            lambda: retrieval_metrics(torch.eye(2), [0, 1], backend="faiss"),
            lambda: evaluate(None, None, backend="faiss"),
        ):
            with pytest.raises(VptspError, match="pip install faiss-cpu"):
                call()


def test_evaluate_passes_the_backend_to_the_search(capsys):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(dataset="glyphs")

    x, labels = long_tailed(60, 8)
    parts = {"test": SimpleNamespace(labels=labels.numpy()), "gallery": SimpleNamespace(labels=labels[:40].numpy())}
    benchmark = SimpleNamespace(name="inshop", **parts)
    with (
        mock.patch("vptsp_core.runs.evaluate.embed", lambda model, images, progress: x[: len(images.labels)]),
        mock.patch("vptsp_core.deploy.evaluate.load", return_value=SimpleNamespace(model=Model(), data=None)),
        mock.patch("vptsp_core.deploy.evaluate.load_benchmark", return_value=benchmark),
        mock.patch.object(neighbours, "FlatIndex", side_effect=FlatIndex) as index,
    ):
        assert __main__.main(["evaluate", "run"]) == 0
        assert not index.called
        assert __main__.main(["evaluate", "run", "--backend", "faiss"]) == 0
        benchmark.gallery = None
        assert __main__.main(["evaluate", "run", "--backend", "faiss"]) == 0
        assert index.call_count == 2
    assert capsys.readouterr().out.count(f"searched by {installed()}\n") == 2 and installed().startswith("faiss")
