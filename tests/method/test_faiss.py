"""The search by faiss against an argsort of float64 cosines in numpy, and against the metrics written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
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
from vptsp_core.method.metrics import nearest_neighbours, retrieval_metrics
from vptsp_core.runs.evaluate import evaluate

pytest.importorskip("faiss")

ROOT = Path(__file__).resolve().parents[2]


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
@pytest.mark.parametrize("k", [1, 10, 250, 299, 300, 400])
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


def test_a_query_with_more_duplicates_than_its_list_is_long():
    x = torch.ones(40, 3)
    for k in (1, 5, 39):
        found = nearest_neighbours(x, x, k, exclude_self=True, backend="faiss")[1]
        assert not (found == torch.arange(40)[:, None]).any() and (found.diff(dim=1) > 0).all()


@pytest.mark.parametrize("separate", [False, True])
def test_metrics_with_long_tailed_classes_and_duplicates(separate):
    x, labels = long_tailed(330, 24)
    args, ks = (x, labels), (1, 4, 32, 1000)
    if separate:
        args = (x[:80], labels[:80], x[80:], labels[80:])
    names = ("gallery", "gallery_labels")
    ours = retrieval_metrics(*args[:2], **dict(zip(names, args[2:])), ks=ks, backend="faiss")
    assert ours == pytest.approx(reference(*args, ks=ks), abs=1e-4)
    assert ours == pytest.approx(retrieval_metrics(*args[:2], **dict(zip(names, args[2:])), ks=ks), abs=1e-4)


@pytest.mark.parametrize("separate", [False, True])
def test_metrics_of_tied_scores_are_exact(separate):
    x, labels = exact_grid(160)
    args, ks = (x, labels), (1, 2, 160)  # lists of all items: no tie across their end
    if separate:
        args = (x[:60], labels[:60], x[60:], labels[60:])
    ours = retrieval_metrics(*args[:2], **dict(zip(("gallery", "gallery_labels"), args[2:])), ks=ks, backend="faiss")
    assert ours == pytest.approx(reference(*args, ks=ks), abs=1e-12)


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


@pytest.mark.parametrize("imports", ["faiss, torch", "torch, faiss"])
def test_two_openmp_runtimes_in_one_process(imports):
    """torch and faiss each have their own OpenMP. Used alternately, with several threads, they must not crash."""
    code = (
        f"import {imports}\nfrom vptsp_core.method.metrics import retrieval_metrics as metrics\n"
        "torch.set_num_threads(2); faiss.omp_set_num_threads(2); torch.manual_seed(0)\n"
        "x, labels = torch.randn(2000, 64), torch.arange(2000) // 4\n"
        "a, b = ([metrics(x, labels, backend=name) for name in ('torch', 'faiss') * 3][i::2] for i in (0, 1))\n"
        "print(all(abs(p[k] - q[k]) < 1e-3 for p, q in zip(a, b) for k in p))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.strip() == "True", done.stderr


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
        mock.patch("vptsp_core.runs.embedder.load", return_value=SimpleNamespace(model=Model(), data=None)),
        mock.patch("vptsp_core.data.load_benchmark", return_value=benchmark),
        mock.patch.object(neighbours, "FlatIndex", side_effect=FlatIndex) as index,
    ):
        assert __main__.main(["evaluate", "run"]) == 0
        assert not index.called
        assert __main__.main(["evaluate", "run", "--backend", "faiss"]) == 0
        benchmark.gallery = None
        assert __main__.main(["evaluate", "run", "--backend", "faiss"]) == 0
        assert index.call_count == 2
    assert capsys.readouterr().out.count(f"searched by {installed()}\n") == 2 and installed().startswith("faiss")
