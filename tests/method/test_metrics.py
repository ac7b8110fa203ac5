"""Retrieval metrics against pytorch-metric-learning, the definitions written out, and values computed by hand."""

from __future__ import annotations

import math
import pickle
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch

from vptsp_core.errors import VptspError
from vptsp_core.method import metrics, neighbours
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.method.neighbours import nearest_neighbours


def make(n, d, classes, seed=0, spread=1.0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=g)
    return torch.randn(classes, d, generator=g)[labels] + spread * torch.randn(n, d, generator=g), labels


def reference(x, labels, gallery=None, gallery_labels=None, ks=(1, 2, 4, 8)):
    """Compute the metrics by their definitions, one query and one rank at a time."""
    alone = gallery is None
    gallery, gallery_labels = (x, labels) if alone else (gallery, gallery_labels)
    cosines = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(gallery).T
    sums = {name: [] for name in (*(f"R@{k}" for k in ks), *metrics.OF_R, "MAP released")}
    for i, row in enumerate(cosines.numpy()):
        order = [j for j in np.argsort(-row, kind="stable") if not (alone and j == i)]
        rel = [int(gallery_labels[j] == labels[i]) for j in order]
        r = sum(rel)
        precision = [sum(rel[: j + 1]) / (j + 1) * rel[j] for j in range(len(rel))]
        for k in ks:
            sums[f"R@{k}"].append(float(any(rel[:k])))
        sums["MAP released"].append(sum(precision[:50]) / max(1, sum(rel[:50])))
        if r:
            sums["MAP@R"].append(sum(precision[:r]) / r)
            sums["MAP@R released"].append(sum(precision[: r + 1]) / (r + 1))
            sums["R-precision"].append(sum(rel[:r]) / r)
    if alone:
        del sums["MAP released"]
    return {name: float(np.mean(v)) if v else 0.0 for name, v in sums.items()}


@pytest.mark.parametrize("n, d, classes", [(300, 16, 40), (200, 8, 3), (150, 5, 120), (64, 4, 1), (40, 3, 40)])
def test_agrees_with_the_definitions(n, d, classes):
    x, labels = make(n, d, classes)
    ks = (1, 2, 4, 8, 100, 1000)
    assert retrieval_metrics(x, labels, ks=ks) == pytest.approx(reference(x, labels, ks=ks), abs=1e-12)


@pytest.mark.parametrize("classes", [4, 30, 70])
def test_separate_gallery_agrees_with_the_definitions(classes):
    x, labels = make(260, 12, classes)
    args = (x[:100], labels[:100], x[100:], labels[100:])
    ours = retrieval_metrics(args[0], args[1], gallery=args[2], gallery_labels=args[3], ks=(1, 10, 50))
    assert ours == pytest.approx(reference(*args, ks=(1, 10, 50)), abs=1e-12)


def test_each_query_by_hand():
    """Classes 0 0 0 1 1 2 on a circle, at 0 10 50 21 24 95 degrees. The neighbours, in order, with hits marked:
    0: 1* 3 4 2*;  1: 0* 3 4 2*;  2: 4 3 1* 5 0*;  3: 4* 1 0 2;  4: 3* 1 0 2;  5: no other of its class."""
    x = torch.tensor([0.0, 10, 50, 21, 24, 95]).deg2rad()
    scores = retrieval_metrics(torch.stack([x.cos(), x.sin()], 1), torch.tensor([0, 0, 0, 1, 1, 2]), ks=(1, 3))
    assert scores["R@1"] == 4 / 6 and scores["R@3"] == 5 / 6
    found, nan = scores.queries, np.nan
    expected = {
        "R@1": [1, 1, 0, 1, 1, 0],
        "MAP@R": [1 / 2, 1 / 2, 0, 1, 1, nan],
        "MAP@R released": [1 / 3, 1 / 3, 1 / 9, 1 / 2, 1 / 2, nan],
        "R-precision": [1 / 2, 1 / 2, 0, 1, 1, nan],
    }
    assert list(found) == list(expected)
    for name, values in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], values, rtol=1e-7)


@pytest.mark.parametrize("separate", [False, True])
def test_the_values_of_a_query_are_its_own_metrics_and_their_mean_is_the_metric(separate):
    x, labels = make(230, 6, 60)
    queries = slice(0, 80 if separate else None)
    gallery = dict(gallery=x[80:], gallery_labels=labels[80:]) if separate else {}
    found = retrieval_metrics(x[queries], labels[queries], **gallery)
    for name, values in found.queries.items():
        assert np.nanmean(values, dtype=np.float64) == pytest.approx(found[name], rel=1e-6)
    assert np.isnan(found.queries["MAP@R"]).any() and not np.isnan(found.queries["R@1"]).any()
    owned = labels[80:] if separate else labels
    for i in (0, 17, 79):  # against a gallery without the query itself, one query after another
        others = torch.arange(80 if separate else 0, len(x)) != (-1 if separate else i)
        items = x[80:] if separate else x[others]
        alone = reference(x[i : i + 1], labels[i : i + 1], items, owned if separate else labels[others])
        for name, values in found.queries.items():
            if not np.isnan(values[i]):
                assert values[i] == pytest.approx(alone[name], rel=1e-6), name


def test_scores_are_a_plain_dict():
    found = retrieval_metrics(torch.eye(3)[[0, 0, 1, 1]], torch.tensor([7, 7, 9, 9]), ks=(2,))
    assert found == {"R@2": 1.0, "MAP@R": 1.0, "MAP@R released": 0.5, "R-precision": 1.0}
    assert list(found.queries) == ["MAP@R", "MAP@R released", "R-precision"]
    again = pickle.loads(pickle.dumps(found))  # so processes send them to each other
    assert again == found and again.queries.keys() == found.queries.keys()


@pytest.mark.parametrize("separate", [False, True])
def test_agrees_with_pytorch_metric_learning(separate):
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    x, labels = make(400, 16, 35)
    names = {"precision_at_1": "R@1", "r_precision": "R-precision", "mean_average_precision_at_r": "MAP@R"}
    unit = torch.nn.functional.normalize(x)
    cpu = torch.device("cpu")
    oracle = calculator.AccuracyCalculator(include=tuple(names), k="max_bin_count", device=cpu)
    if separate:
        theirs = oracle.get_accuracy(unit[:150], labels[:150], unit[150:], labels[150:])
        ours = retrieval_metrics(x[:150], labels[:150], gallery=x[150:], gallery_labels=labels[150:])
    else:
        theirs, ours = oracle.get_accuracy(unit, labels), retrieval_metrics(x, labels)
    for their_name, our_name in names.items():
        assert ours[our_name] == pytest.approx(theirs[their_name], abs=1e-6)


def test_released_code_searches_class_size_plus_1_and_drops_the_first():
    """The released loop, on data without duplicates. With duplicates, it could drop another item than the query."""
    x, labels = make(200, 6, 20)
    unit = torch.nn.functional.normalize(x)
    _, place, sizes = labels.unique(return_inverse=True, return_counts=True)
    found = torch.cdist(unit.double(), unit.double()).topk(int(sizes.max()) + 1, largest=False).indices[:, 1:]
    total = 0.0
    for query, size in enumerate(sizes[place].tolist()):
        rel = (labels[found[query, :size]] == labels[query]).double()
        total += float((rel.cumsum(0) * rel / torch.arange(1, size + 1)).sum() / size)
    assert sizes.min() > 1  # the released code counts a class of one item as 0; we leave it out
    assert retrieval_metrics(x, labels)["MAP@R released"] == pytest.approx(total / 200)


def test_released_in_shop_map_looks_at_50_ranks_and_divides_by_hits_found():
    angle = torch.linspace(0, 1, 60)
    gallery = torch.stack([angle.cos(), angle.sin()], dim=1)
    labels = torch.zeros(60, dtype=torch.int64)
    labels[[1, 3, 19, 55]] = 7  # ranks 2, 4 and 20, and one beyond the 50
    query = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    result = retrieval_metrics(query, torch.tensor([7, 8]), gallery=gallery, gallery_labels=labels, ks=(1,))
    assert result["MAP released"] == pytest.approx((1 / 2 + 2 / 4 + 3 / 20) / 3 / 2)  # class 8 is not in the gallery: 0
    assert result["MAP@R"] == pytest.approx((1 / 2 + 2 / 4) / 4)  # class 8 is left out
    assert result["MAP@R released"] == pytest.approx((1 / 2 + 2 / 4) / 5)


def test_a_query_is_excluded_by_index_not_as_the_first_neighbour():
    x = torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]])
    # three equal rows: to drop the first neighbour of query 1 or 2 would drop item 0 and keep the query
    assert nearest_neighbours(x, x, 2, exclude_self=True)[1].tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert retrieval_metrics(x, torch.tensor([0, 1, 1, 0]), ks=(1, 2))["R@1"] == 0.25


def test_one_class_of_all_items_and_classes_of_one_item():
    x, _ = make(30, 4, 5)
    result = retrieval_metrics(x, torch.full((30,), -3), ks=(1,))
    expected = {"R@1": 1.0, "MAP@R": 1.0, "MAP@R released": 29 / 30, "R-precision": 1.0}
    assert result == pytest.approx(expected)
    assert set(retrieval_metrics(x, torch.arange(30)).values()) == {0.0}


def test_ties_are_ranked_by_index():
    g = torch.Generator().manual_seed(0)
    x = torch.randint(-1, 2, (400, 4), generator=g).float()  # few directions, rows of zeros among them
    unit = torch.nn.functional.normalize(x)
    for k in (1, 3, 17, 250, 400):
        scores, found = nearest_neighbours(x, x, k)
        full = (unit @ unit.T).round(decimals=5)  # scores that are equal in exact arithmetic are equal here
        mine = full.gather(1, found)
        assert (mine[:, 1:] <= mine[:, :-1]).all()
        same_direction = unit.unique(dim=0, return_inverse=True)[1]
        for row in range(0, 400, 37):  # equal rows of the gallery come in the order of their index
            for direction in same_direction[found[row]].unique():
                places = found[row][same_direction[found[row]] == direction]
                assert (places.diff() > 0).all()
                first = (same_direction == direction).nonzero().squeeze(1)[: len(places)]
                assert places.tolist() == first.tolist()
    x = torch.zeros(50, 3)
    assert nearest_neighbours(x, x, 4)[1].tolist() == [[0, 1, 2, 3]] * 50


def test_ranked_ties_are_a_stable_sort():
    g = torch.Generator().manual_seed(0)
    scores = torch.randint(-3, 4, (20, 100), generator=g) / 4
    scores[3, 5], scores[4] = -0.0, -torch.inf
    for k in (1, 10, 100):
        expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
        best, found = scores.topk(k)
        found = neighbours._complete_ties(scores, best, neighbours._order_ties(best, found))
        assert torch.equal(found, expected)


@pytest.mark.parametrize("chunk", [1, 7, 16, 100, 10_000])
def test_chunk_size_changes_nothing(chunk):
    x, labels = make(301, 24, 20)
    x[200:250] = x[:50]
    expected = nearest_neighbours(x, x, 5, exclude_self=True)
    metrics = retrieval_metrics(x, labels)
    with mock.patch.dict(neighbours.CHUNK_BYTES, cpu=(4 * 301 + 64 * 5) * chunk):
        found = nearest_neighbours(x, x, 5, exclude_self=True)
        assert retrieval_metrics(x, labels) == metrics
    for a, b in zip(found, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int16])
def test_any_precision(dtype):
    x, labels = make(200, 16, 20)
    x = (8 * x).to(dtype)
    assert retrieval_metrics(x, labels) == pytest.approx(reference(x.float(), labels), abs=1e-12)
    assert nearest_neighbours(x, x, 3)[0].dtype == torch.float32


def test_many_kinds_of_embeddings_and_labels_of_any_value():
    x, labels = make(120, 8, 12)
    expected = retrieval_metrics(x, labels)
    far = torch.randint(-(2**40), 2**40, (12,))[labels]
    wide = np.zeros((120, 16), dtype=np.float32)
    wide[:, ::2] = x.numpy()
    for embeddings in (wide[:, ::2], x.tolist(), x.T.contiguous().T):
        for ids in (far, far.numpy(), far.tolist(), labels.to(torch.int32), labels.numpy().astype(np.uint16)):
            assert retrieval_metrics(embeddings, ids) == expected
    assert torch.equal(x, make(120, 8, 12)[0])  # the input is unchanged


def test_length_of_rows_does_not_matter():
    x, labels = make(100, 8, 10)
    lengths = torch.logspace(-60, 60, 100, dtype=torch.float64)[:, None]
    assert retrieval_metrics(x.double() * lengths, labels) == pytest.approx(retrieval_metrics(x, labels))
    tiny = torch.tensor([[1e-30, 0], [3e37, 3e37], [0, 1e-42]])
    scores, found = nearest_neighbours(tiny, torch.eye(2), 2)
    assert found.tolist() == [[0, 1], [0, 1], [1, 0]]
    assert scores[1].tolist() == pytest.approx([math.sqrt(0.5)] * 2)


def test_neighbours_fewer_than_k_and_separate_gallery():
    scores, found = nearest_neighbours(torch.eye(3)[:2], torch.eye(3), 5)
    assert found.tolist() == [[0, 1, 2, -1, -1], [1, 0, 2, -1, -1]]
    assert scores[0].tolist() == [1, 0, 0, -math.inf, -math.inf]
    scores, found = nearest_neighbours(torch.ones(1, 2), torch.ones(1, 2), 2, exclude_self=True)
    assert found.tolist() == [[-1, -1]] and scores.tolist() == [[-math.inf, -math.inf]]


TWO, NAMES = (torch.eye(2), [0, 1]), ("gallery", "gallery_labels")


@pytest.mark.parametrize(
    "message, args, kwargs",
    [
        ("embeddings: NaN or .* in 2 of 3 rows \\(0, 2\\)", ([[math.nan], [1], [math.inf]], [0, 1, 2]), {}),
        ("gallery: NaN or infinity in 1 of 1", TWO, dict(zip(NAMES, ([[math.inf, 0]], [0])))),
        ("labels: 3 labels for 2", (torch.eye(2), [0, 1, 1]), {}),
        ("gallery_labels: 1 labels for 2", TWO, dict(zip(NAMES, (torch.eye(2), [0])))),
        ("labels: torch.float32", (torch.eye(2), [0.0, 1.0]), {}),
        ("labels: .*shape \\(2, 1\\)", (torch.eye(2), [[0], [1]]), {}),
        ("embeddings: .*shape \\(0, 4\\)", (torch.empty(0, 4), []), {}),
        ("embeddings: .*shape \\(4, 0\\)", (torch.empty(4, 0), [0] * 4), {}),
        ("embeddings: .*shape \\(3,\\)", (torch.ones(3), [0, 1, 2]), {}),
        ("embeddings: torch.complex64", (torch.ones(2, 2, dtype=torch.complex64), [0, 1]), {}),
        ("gallery: 3 dimensions, but the queries have 2", TWO, dict(zip(NAMES, (torch.eye(3), [0, 1, 2])))),
        ("belong together", TWO, {"gallery": torch.eye(2)}),
        ("belong together", TWO, {"gallery_labels": [0, 1]}),
        ("backend 'annoy'", TWO, {"backend": "annoy"}),
    ],
)
def test_refusals(message, args, kwargs):
    with pytest.raises(VptspError, match=message) as caught:
        retrieval_metrics(*args, **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "message, kwargs",
    [
        ("k: 0", {"k": 0}),
        ("backend 'annoy'", {"backend": "annoy"}),
        ("exclude_self: 2 queries, 3 gallery items", {"exclude_self": True}),
    ],
)
def test_refusals_of_the_search(message, kwargs):
    with pytest.raises(VptspError, match=message):
        nearest_neighbours(torch.ones(2, 2), torch.ones(3, 2), **{"k": 1, **kwargs})


def test_memory_of_a_chunk_is_bounded_however_large_a_class_is():
    x = torch.randn(1200, 4)
    one_class = torch.zeros(1200, dtype=torch.int64)
    mixed = torch.arange(1200) // 2
    mixed[:600] = -1
    unit = neighbours.unit_rows("x", x)
    for labels, longest in ((one_class, 1199), (mixed, 600)):
        _, place, size = labels.unique(return_inverse=True, return_counts=True)
        depth, seen = size[place].clamp(min=8), []
        with mock.patch.dict(neighbours.CHUNK_BYTES, cpu=2**20):
            for rows, best, found in neighbours.search(unit, unit, depth, exclude_self=True):
                seen.append((len(rows), best.shape[1]))
                assert best.shape == found.shape == (len(rows), best.shape[1])
                assert len(rows) * (4 * len(x) + 64 * best.shape[1]) <= 2**20
        assert sum(rows for rows, _ in seen) == 1200
        assert seen[0][1] == longest
        # after the large class, lists get shorter and chunks larger
        assert labels is one_class or (seen[-1][1] == 8 and max(rows for rows, _ in seen) > 2 * seen[0][0])


def _masked(x):
    return np.ma.masked_array(x.numpy(), mask=np.zeros(x.shape, bool))


@pytest.mark.parametrize(
    "given",
    {
        "a table": lambda x: pd.DataFrame(x.numpy(), index=range(900, 900 + len(x))),
        "a table of names": lambda x: pd.DataFrame(x.numpy()).add_prefix("dim_"),
        "rows of tensors": lambda x: list(x),
        "rows of arrays": lambda x: list(x.numpy()),
        "sparse": lambda x: x.to_sparse(),
        "sparse rows": lambda x: x.to_sparse_csr(),
        "of scipy": lambda x: scipy.sparse.csr_matrix(x.numpy()),
        "backwards": lambda x: x.flip(0).numpy()[::-1],
        "sideways": lambda x: x.flip(1).numpy()[:, ::-1],
        "of another byte order": lambda x: x.numpy().astype(">f4"),
        "a table with missing values allowed": lambda x: pd.DataFrame(x.numpy()).convert_dtypes(),
        "masked, with nothing masked": _masked,
        "frozen": lambda x: _frozen(x.numpy()),
        "learning": lambda x: x.clone().requires_grad_(),
    }.values(),
)
def test_kinds_of_embeddings(given):
    x, labels = make(40, 6, 5)
    assert retrieval_metrics(given(x), labels) == retrieval_metrics(x, labels)
    assert retrieval_metrics(x, labels, gallery=given(x), gallery_labels=labels)["R@1"] == 1.0
    assert torch.equal(nearest_neighbours(given(x), x, 3)[1], nearest_neighbours(x, x, 3)[1])


def _frozen(array):
    array = array.copy()
    array.flags.writeable = False
    return array


@pytest.mark.parametrize(
    "given",
    {
        "a Series of some rows": lambda y: pd.Series(np.repeat(y.numpy(), 2), name="class")[::2],
        "whole numbers with missing values allowed": lambda y: pd.Series(y.numpy(), dtype="Int64"),
        "categories' codes": lambda y: pd.Series(y.numpy()).astype("category").cat.codes,
        "backwards": lambda y: y.flip(0).numpy()[::-1],
        "numbers": lambda y: [int(each) for each in y],
        "tensors": lambda y: list(y),
        "of another byte order": lambda y: y.numpy().astype(">i8"),
    }.values(),
)
def test_kinds_of_labels(given):
    x, labels = make(40, 6, 5)
    assert retrieval_metrics(x, given(labels)) == retrieval_metrics(x, labels)


def test_labels_that_are_text_are_refused_with_the_cure():
    names = ["wren", "wren", "lark", "lark"]
    for given in (names, np.array(names)):
        with pytest.raises(VptspError, match=r"^labels are text; number the classes, as numpy.unique\("):
            retrieval_metrics(torch.eye(4), given)
    numbers = np.unique(names, return_inverse=True)[1]
    assert retrieval_metrics(torch.eye(4)[[0, 0, 1, 1]], numbers)["R@1"] == 1


def test_ks_may_be_one_number():
    x, labels = make(40, 6, 5)
    for ks in (4, np.int64(4), [4], np.array([4]), torch.tensor([4]), np.array(4), torch.tensor(4), iter((4,))):
        assert retrieval_metrics(x, labels, ks=ks) == retrieval_metrics(x, labels, ks=(4,))
    for ks in (None, 0, (1, 0), "1", 1.5, np.array(1.5), [[1]], [None]):
        with pytest.raises(VptspError, match="ks: .* is not a whole number of at least 1"):
            retrieval_metrics(x, labels, ks=ks)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, y: (np.ma.masked_less(x.numpy(), 0), y), "embeddings: .* are masked: leave their rows"),
        (lambda x, y: (x, np.ma.masked_equal(y.numpy(), 0)), "labels: .* of its values are masked"),
        (lambda x, y: (pd.DataFrame(x.numpy()).assign(name="a"), y), "embeddings: torch cannot read it"),
        (lambda x, y: (x, pd.Series(["a"] * len(y))), "labels are text; number the classes"),
        (
            lambda x, y: (x, pd.Series(y.numpy(), dtype="Int64").where(np.arange(40) != 7)),
            r"labels: no class is given for 1 of 40 rows \(7\); leave",
        ),
        (lambda x, y: (x, pd.Series(y.numpy(), dtype=object).where(np.arange(40) != 7)), r"labels: no class .* \(7\)"),
        (
            lambda x, y: (pd.DataFrame(x.numpy()).convert_dtypes().drop(index=7).reindex(range(40)), y),
            r"embeddings: NaN or infinity in 1 of 40 rows \(7\)",
        ),
        (lambda x, y: ({"a": 1}, y), "embeddings: torch cannot read it"),
        (lambda x, y: (None, y), "embeddings: torch cannot read it"),
        (lambda x, y: (x.to("meta"), y), "embeddings: .* give one real vector per row"),
        (lambda x, y: ([x[0], x[1, :2]], y), "embeddings: torch cannot read it"),
    ],
)
def test_unreadable_input_is_refused_in_one_line_that_names_it(change, message):
    x, labels = change(*make(40, 6, 5))
    with pytest.raises(VptspError, match=message) as caught:
        retrieval_metrics(x, labels)
    assert "\n" not in str(caught.value)
