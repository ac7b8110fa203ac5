"""A caller's settings of torch do not change the numbers, and are the same afterwards."""

import contextlib
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from vptsp_core import load, preset, retrieval_metrics, run
from vptsp_core.data import load_benchmark
from vptsp_core.data.batches import decoded, train_batches
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.loop import Loop
from vptsp_core.method.neighbours import nearest_neighbours
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.runs.folder import learned_weights
from vptsp_core.runs.run import build_model


@contextlib.contextmanager
def setting(change, value, default):
    change(value)
    try:
        yield
    finally:
        change(default)


STATES = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "float64": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "set_default_device": lambda: setting(torch.set_default_device, "meta", None),
    "with device": lambda: torch.device("meta"),
    "matmul precision": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
}


def random_state():
    _, numbers, place, *_ = np.random.get_state()
    return torch.get_rng_state().tolist(), (numbers.tolist(), place), random.getstate()


def state():
    return (
        torch.is_autocast_enabled("cpu"), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(), torch.get_default_device(), torch.get_float32_matmul_precision(),
    )  # fmt: skip


def test_a_run_is_the_same_under_all_settings(tmp_path):
    config = preset("smoke", steps_per_epoch=2)
    before = random_state()
    plain = run(config, results=tmp_path / "plain", progress=False)
    assert random_state() == before
    for names in (["autocast", "no_grad"], ["float64", "inference_mode", "set_default_device"]):
        with contextlib.ExitStack() as stack:
            for name in names:
                stack.enter_context(STATES[name]())
            before = state()
            made = run(config, results=tmp_path / names[0], progress=False)
            assert state() == before
        assert made.metrics == plain.metrics
        assert made.history["loss"].tolist() == plain.history["loss"].tolist(), names


def test_mixed_precision_takes_the_steps_of_a_plain_loop(tmp_path):
    """Autocast caches the casts of weights. Inside a guarded function every step must still cast the weights it has."""
    config = preset("smoke", method="linear", precision="bf16", steps_per_epoch=5, lr=0.05)
    done = run(config, results=tmp_path, progress=False)
    images = decoded(load_benchmark("glyphs"), config, tmp_path).train
    model = build_model(config, images.num_classes, torch.device("cpu"))
    model.vit.autocast = torch.bfloat16
    sampler = ClassBalancedSampler(images.labels, config.batch, config.samples_per_class, config.seed, 5)
    given = (images, config, normalisation(model.vit.backbone), sampler, 0, torch.device("cpu"), slice(0, config.batch))
    loop = Loop(model, sampler, images.labels, lambda epoch: train_batches(*given))
    assert done.history["loss"].tolist() == [row["loss"] for row in loop.rows()]
    learned = learned_weights(done.path, done.record)
    assert any("mlp.fc1.bias" in name for name in learned)
    for name, value in model.learned_state(for_retrieval=True).items():
        assert torch.equal(learned[name], value), name


def test_the_random_numbers_of_the_caller_are_not_used_up():
    before = random_state()
    with torch_defaults():
        torch.rand(1)
        with torch_defaults():  # a nested call continues them
            pass
        assert random_state() != before
    assert random_state() == before


@pytest.fixture(scope="module")
def frozen(tmp_path_factory):
    config = preset("smoke", method="frozen", bitfit=False)
    return run(config, results=tmp_path_factory.mktemp("frozen"), progress=False).path


@pytest.mark.parametrize("name", STATES)
def test_embeddings_and_metrics_are_the_same(frozen, name):
    images = torch.rand(8, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    embedder: Embedder = load(frozen, "cpu")
    vectors = embedder.embed(images)
    scores, checksum = retrieval_metrics(torch.from_numpy(vectors), labels, ks=(1,)), embedder.checksum()
    with STATES[name]():
        before = state()
        again = load(frozen, "cpu")
        assert np.array_equal(again.embed(images), vectors) and again.embed(images).dtype == np.float32
        assert again.checksum() == checksum
        assert retrieval_metrics(torch.from_numpy(vectors), labels, ks=(1,)) == scores
        found, places = again.index(images).search(images, k=2)
        assert state() == before
    assert places[:, 0].tolist() == list(range(8)) and found.dtype == np.float32


def test_an_evaluation_is_the_same(frozen):
    embedder, benchmark = load(frozen, "cpu"), load_benchmark("glyphs")
    plain = evaluate(embedder.model, benchmark)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), STATES["matmul precision"]():
        assert evaluate(embedder.model, benchmark) == plain


SETTINGS = (
    "pass", "torch.backends.fp32_precision = 'tf32'", "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'; torch.backends.fp32_precision = 'tf32'",
    "torch.backends.cudnn.fp32_precision = 'tf32'", "torch.backends.mkldnn.conv.fp32_precision = 'bf16'",
    "torch.set_float32_matmul_precision('medium')", "torch.backends.mkldnn.set_flags(_fp32_precision='bf16')",
)  # fmt: skip


@pytest.mark.posix("needs forks")
def test_precision_by_torchs_newer_names():
    """After one of these settings, torch raises if it is asked by the older name. Each is made in a new process."""
    code = f"""if True:
        import os, torch
        from vptsp_core.method.torch_state import torch_defaults
        b = torch.backends
        switches = (b, b.cuda.matmul, b.cudnn, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv)
        settings = lambda: [switch.fp32_precision for switch in switches]
        for setting in {SETTINGS!r}:
            if os.fork() == 0:
                exec(setting)
                before = settings()
                inside = torch_defaults()(settings)()
                print({{*inside}} == {{"ieee"}}, settings() == before, flush=True)
                os._exit(0)
            os.wait()
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["True True"] * len(SETTINGS), done.stderr


@pytest.mark.parametrize("name", STATES)
def test_neighbours_are_the_same_in_every_state(name):
    x = torch.randn(20, 64, generator=torch.Generator().manual_seed(0))
    wanted = nearest_neighbours(x, x, 3)
    with STATES[name]():
        found = nearest_neighbours(x, x, 3)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])
