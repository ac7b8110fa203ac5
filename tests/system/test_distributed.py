"""Two processes on the CPU against one: gradients, twenty steps, embeddings, whole runs, and failures.

torchrun starts the two as a user does. They run tests/two_processes.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from desk import without_progress
from two_processes import (
    CASES,
    IMAGES,
    coupled,
    embeddings,
    gather_inputs,
    noise_benchmark,
    smoke_config,
    train,
    validated,
)

from vptsp_core import preset, run
from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.system import distributed
from vptsp_core.system.devices import pick_device

ROOT = Path(__file__).resolve().parents[2]


def torchrun(*arguments):
    """Start two processes; with --standalone they connect over the loopback, on a free port."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *map(str, arguments)],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Return the results of each of the two."""
    folder = tmp_path_factory.mktemp("pair")
    done = torchrun("tests/two_processes.py", folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Warning" not in done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def relative(ours, one):
    ours, one = ours.double(), one.double()
    return float((ours - one).norm() / one.norm().clamp_min(1e-30))


def without_key_bias(name, tensor):
    """Return the query and value parts of a bias.

    Softmax does not depend on the bias of the keys, so its gradient is only rounding. Adam scales that up to full steps
    of random sign (see replay.py).
    """
    if "attn.qkv.bias" not in name or tensor.dim() == 0:
        return tensor
    query, _, value = tensor.chunk(3)
    return torch.cat([query, value])


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_are_those_of_one_process(pair, case):
    one = train(case)
    assert len(one["losses"]) == 20 and one["losses"][-1] < one["losses"][0]
    first, second = (found[case] for found in pair)
    assert first.keys() == second.keys() == one.keys()
    apart = [name for name in one if not torch.equal(first[name], second[name])]
    assert not apart, "the processes hold the same bits"
    errors = {}
    for name, tensor in one.items():
        ours, tensor = first[name], tensor.detach()
        if "adamw" in case:
            ours, tensor = without_key_bias(name, ours), without_key_bias(name, tensor)
        errors[name] = relative(ours, tensor)
    errors["each loss"] = float((first["losses"] / one["losses"] - 1).abs().max())
    worst = max(errors, key=errors.get)
    print(f"{case}: losses {errors['each loss']:.1e}, worst {errors[worst]:.1e} ({worst})")
    assert errors[worst] < (1e-12 if "float64" in case else 1e-5), worst


def test_gathered_rows_have_the_gradient_of_one_process(pair):
    x, weight, bias = (t.requires_grad_() for t in gather_inputs())
    loss = coupled(x @ weight + bias)
    loss.backward()
    for rank, found in enumerate(pair):
        got = found["gather"]
        torch.testing.assert_close(got["loss"], loss.detach())
        torch.testing.assert_close(got["x"], x.grad[3 * rank : 3 * rank + 3])
        torch.testing.assert_close(got["weight"], weight.grad)
        torch.testing.assert_close(got["bias"], bias.grad)


def test_every_image_is_embedded_once(pair):
    one = embeddings()
    decoded = [found["embeddings"]["decoded"] for found in pair]
    assert decoded[0] + decoded[1] == list(range(IMAGES)) and len(decoded[1]) == 35
    assert [found["embeddings"]["decoded one"] for found in pair] == [[0], []]
    for found in pair:
        for name in ("many", "one"):
            torch.testing.assert_close(found["embeddings"][name], one[name], rtol=0, atol=1e-6)
        assert found["embeddings"]["metrics"] == pytest.approx(one["metrics"])


def test_a_run_that_one_process_could_not_save_resumes(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("vptsp_core.runs.run.load_benchmark", noise_benchmark)
    one = run(smoke_config(), results=tmp_path, progress=False)
    first, second = (found["resumed"] for found in pair)
    assert first["raised"] == second["raised"] == "the disk is full", "raised in both"
    assert second["writes"] == [] and first["writes"].count("metrics.json") == 1
    assert first["writes"].count("checkpoint.pt") == 3, "one per epoch, the second at the second call"
    for found in (first, second):
        np.testing.assert_allclose(found["loss"], one.history["loss"], rtol=1e-5)
        assert found["metrics"] == pytest.approx(one.metrics, abs=0.02), "71 queries: neighbours may change places"
        assert found["files"] == sorted(path.name for path in one.path.iterdir())
        assert (found["processes"], one.record["processes"]) == (2, 1)
        assert len(found["found"]) == IMAGES and found["found"].mean().item() == pytest.approx(found["metrics"]["R@1"])


def test_all_processes_choose_the_same_epoch_on_held_out_classes(pair, tmp_path, monkeypatch):
    monkeypatch.setattr("vptsp_core.runs.run.load_benchmark", noise_benchmark)
    one = validated(tmp_path)
    first, second = (found["validated"] for found in pair)
    assert first["history"] == second["history"] and torch.equal(first["queries"], second["queries"])
    assert first["history"].keys() == one["history"].keys() and len(first["queries"]) == IMAGES
    np.testing.assert_allclose(first["history"]["loss"], one["history"]["loss"], rtol=1e-5)
    assert sum(value >= 0 for value in first["history"]["R@1"]) == 1


def test_all_processes_refuse_a_bad_command_and_one_reports_it(pair):
    message = "batch = 9 holds 9 classes, which 2 processes cannot share evenly; start 1, 3, 9 of them, "
    assert [found["odd batch"] for found in pair] == [message + "or choose batch = 8 or 10"] * 2
    assert [found["bad command"]["status"] for found in pair] == [2, 2]
    said = [line for found in pair for line in found["bad command"]["said"]]
    assert said == ["error: unknown key 'alhpa'; did you mean alpha?"]


def test_the_command_line_under_torchrun(letters, tmp_path):
    changes = dict(dataset="folder", pipeline="classic", batch=8)
    command = ["--preset", "smoke", "--data", letters, "--results", tmp_path / "two", "--set"]
    done = torchrun("-m", "vptsp_core", "train", *command, *(f"{key}={value}" for key, value in changes.items()))
    assert done.returncode == 0 and without_progress(done.stderr) == "", done.stderr[-3000:]
    one = run(preset("smoke", **changes), data=letters, results=tmp_path / "one", progress=False)
    lines = done.stdout.strip().splitlines()
    two = Path(lines[-2])
    assert two == tmp_path / "two" / "runs" / one.path.name and sum(line.startswith("R@1") for line in lines) == 1
    history = pd.read_csv(two / "history.csv")
    np.testing.assert_allclose(history["loss"], one.history["loss"], rtol=1e-5)
    assert json.loads((two / "metrics.json").read_text()) == pytest.approx(one.metrics, abs=1e-3)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.path.iterdir())


def test_a_process_that_fails_alone_reports_it_and_ends_all(tmp_path):
    done = torchrun("tests/two_processes.py", tmp_path, "fail")
    assert done.returncode != 0 and "exitcode  : 2" in done.stderr
    ours = done.stderr.split("torch/distributed/elastic")[0]
    assert [line for line in ours.splitlines() if "rror" in line] == ["error: no such image; unpack it again"]
    left = {path.name for path in tmp_path.rglob("*.*")}
    assert "Connection closed" not in done.stderr and left <= {"progress.json"}, "torchrun may kill the first process"


def test_without_torchrun_nothing_changes():
    distributed.start(torch.device("cpu"))
    assert not distributed.joined() and distributed.world_size() == 1 and distributed.is_main()
    rows = torch.ones(3, 2, requires_grad=True)
    group = distributed.Processes()
    assert group.gather(rows) is rows is group.share(rows)
    assert distributed.own_share(7) == slice(0, 7)
    rows.grad = torch.ones(3, 2)
    group.sum_gradients([rows], [rows])
    assert (rows.grad == 1).all() and distributed.from_main(lambda: 5) == 5


def test_shares_and_batches(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append([list(range(n)[distributed.own_share(n)]) for n in (6, 7, 4)])
    assert shares == [[[0, 1], [0, 1, 2], [0, 1]], [[2, 3], [3, 4, 5], [2, 3]], [[4, 5], [6], []]]
    distributed.check_batch(18, 2)
    with pytest.raises(ConfigError, match="start 1, 2, 4, 8 of them, or choose batch = 12 or 18"):
        distributed.check_batch(16, 2)


def test_each_process_has_its_own_gpu(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    with pytest.raises(VptspError, match="'cuda:1': each process has its own GPU; use cuda"):
        pick_device("cuda:1")
