"""Test the measurements for developers (`python -m tests.bench`). No test checks a time."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from unittest import mock

import pytest
import torch
from bench import __main__ as command
from bench import epoch
from bench import metrics as bench_metrics
from bench.data import compare_pipelines
from bench.epoch import measure_epoch
from bench.heads import compare_heads
from bench.product import PRODUCTS, product, step_flops
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from vptsp_core.data import load_benchmark
from vptsp_core.data.holdout import first_of_each
from vptsp_core.errors import ConfigError
from vptsp_core.method.metrics import retrieval_metrics
from vptsp_core.method.presets import preset
from vptsp_core.paper.step_bench import StepBench
from vptsp_core.runs import compile as compiling
from vptsp_core.runs import evaluate
from vptsp_core.runs.run import build_model


@pytest.fixture(scope="module")
def few():
    """The glyphs, with two images per training class and three per test class."""
    whole = load_benchmark("glyphs")
    return dataclasses.replace(whole, train=first_of_each(whole.train, 2), test=first_of_each(whole.test, 3))


def hand(config, classes: int, *, full: bool) -> int:
    """Count the operations of a ViT, its head and Proxy-Anchor by hand.

    A block takes 24 T D^2 + 4 T^2 D per image, and twice that backward if its weights learn. Frozen blocks with nothing
    to learn before them have no backward pass.
    """
    width, depth, side, tokens, patch = 96, 6, 40, 26, 8
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    stem = 2 * (side // patch) ** 2 * (3 * patch**2) * width
    head, loss = 2 * width * config.embed_dim, 2 * classes * config.embed_dim
    trunk = 3 * depth * block + 2 * stem if full else depth * block + stem  # images need no gradient
    return config.batch * (trunk + 3 * head + 3 * loss)


@pytest.mark.parametrize("method", ["linear", "full"])
def test_operations_are_those_of_the_formula(method):
    config = preset("smoke", method=method, bitfit=False, pool="avg", batch=4)
    made = StepBench(config, device="cpu", classes=7)
    assert step_flops(made.model, made.images, made.labels) == hand(config, 7, full=method == "full")
    assert all(parameter.grad is None for parameter in made.model.parameters())


def test_prompts_count_as_keys_and_values_and_shared_work_of_both_towers_counts_once():
    def forward(**changes) -> int:
        config = preset("smoke", bitfit=False, pool="avg", batch=4, **changes)
        model = StepBench(config, device="cpu", classes=7).model
        with FlopCounterMode(display=False) as counter, written_out():
            model.towers(torch.zeros(4, 3, 40, 40), torch.arange(4))
        return counter.get_total_flops()

    written_out = partial(sdpa_kernel, SDPBackend.MATH)  # the counter does not see the CPU's own attention
    width, tokens, depth, n, m = 96, 26, 6, 3, 2
    plain, vpt = forward(method="linear"), forward(method="vpt", prompts=n)
    assert vpt - plain == depth * (4 * n * width**2 + 4 * 4 * tokens * n * width)  # shared: projected once per batch
    both = forward(method="vptsp", prompts=n, class_prompts=m)
    block = 24 * tokens * width**2 + 4 * tokens**2 * width
    head, own = 2 * width * 96, depth * (4 * m * width**2 + 4 * tokens * m * width)
    shared = 6 * tokens * width**2  # QKV of the first block; both towers share it and the stem
    assert both - vpt == 4 * (depth * block - shared + head + own)


def test_the_product_has_the_shape_of_the_mlp():
    made = StepBench(preset("smoke", batch=4), device="cpu", classes=7)
    multiply, operations = product(made.model, made.images)
    assert operations == 2 * (4 * 26) * 96 * 384 * PRODUCTS
    with FlopCounterMode(display=False) as counter:
        multiply()
    assert counter.get_total_flops() == operations


def test_the_parts_of_an_epoch(few, tmp_path, monkeypatch):
    # As in a long run on a GPU, but without compiling, which takes a minute.
    monkeypatch.setattr(epoch, "compiles", lambda *run: True)
    monkeypatch.setattr(compiling, "compiled_loss", lambda model: model.loss)
    taken = iter([9.0, 3.0, 4.0, 2.0])  # first steps, steps alone, epoch, evaluation
    monkeypatch.setattr(epoch, "seconds", lambda task, device: (task(), next(taken))[1])
    found = measure_epoch(preset("smoke"), few, tmp_path, device="cpu")
    assert (found["epoch s"], found["steps s"], found["data s"], found["evaluation s"]) == (6, 3, 1, 2)
    assert found["compiled"] and found["compile s"] == 9 - epoch.FIRST * 1
    assert found["images/s"] == 3 * 16 / 4 and found["steps"] == 3
    assert found["evaluated images/s"] == len(few.test) / 2


def test_both_pipelines_are_loaded(few, tmp_path):
    found = compare_pipelines(preset("smoke"), few, tmp_path, device="cpu", steps=1, turns=1)
    assert found["ratio"] > 0 and found["turns"] == 1 and found["classic images/s"] > 0
    with pytest.raises(ConfigError, match="augmentation = 'adv': both pipelines have only base and gentle"):
        compare_pipelines(preset("smoke", pipeline="classic", augmentation="adv"), few, tmp_path)


@pytest.mark.parametrize("queries, backend", [(0, "torch"), (300, "torch"), (0, "faiss")])
def test_the_metrics_benchmark_reports_ours_and_a_bare_search(queries, backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    size = bench_metrics.Size(600, 8, 120, (1, 4), queries, tail=1.0)
    threads = lambda max_workers, mp_context: ThreadPoolExecutor(max_workers)  # noqa: E731  (no torch to start)
    with mock.patch.object(bench_metrics, "ProcessPoolExecutor", threads):
        result = bench_metrics.benchmark_metrics(size, backend=backend, repeats=2)
    data = bench_metrics.clustered(size)
    assert data.owned.bincount().max() == result["k"] == result["largest_class"] > 4
    assert len(data.labels) == (queries or 600) and data.embeddings.shape[1] == 8
    assert result["R@1"] == round(retrieval_metrics(**data._asdict(), ks=(1,))["R@1"], 4)
    assert result["ratio"] > 0 and len(result["ratios"]) == 2
    assert all(result[f"{name}_peak_mib"] >= result[f"{name}_mib"] >= 0 for name in ("bare", "metrics"))


def test_the_command_prints_json_and_errors_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(command, "measure_epoch", lambda *given, device: {"epoch s": 6.0})
    assert command.main(["epoch", "--preset", "smoke", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out) == {"epoch s": 6.0}
    assert command.main(["eval", "--repeats", "0", "--size", "inshop", "--device", "banana"]) == 2
    assert capsys.readouterr().err.startswith("error: device 'banana' cannot be used here")


def test_the_trained_head_with_prompts_retrieves_as_the_run_and_other_heads_differ(few):
    model = build_model(preset("smoke", method="vpt"), 100, torch.device("cpu"))
    rows = compare_heads(model, few)
    embeddings = evaluate.embed(model, few.test)
    expected = retrieval_metrics(embeddings, few.test.labels, ks=(1,))
    for metric in ("R@1", "MAP@R"):
        assert rows["trained head"][metric] == pytest.approx(100 * expected[metric])
        assert rows["trained head"][f"{metric} difference"] == [0, 0, 0]
    assert len(rows) == 6 and len({row["MAP@R"] for row in rows.values()}) == 6
    other = rows["no head, without prompts"]
    difference, low, high = other["MAP@R difference"]
    assert difference == pytest.approx(other["MAP@R"] - rows["trained head"]["MAP@R"], abs=1e-4)
    assert low < difference < high
