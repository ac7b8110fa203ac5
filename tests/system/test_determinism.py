"""The same seed gives the same numbers with any number of workers and after interruptions; `deterministic`."""

import functools
import json
import multiprocessing
import os
import signal

import determinism
import pytest
import torch
from determinism import Pair, compare, differences, outcome

from vptsp_core import __main__, preset, run
from vptsp_core.data import cached, loading
from vptsp_core.data.folder import FileSet
from vptsp_core.errors import DataError, TrainingError, VptspError
from vptsp_core.system.deterministic import deterministic_algorithms, fix_cublas

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


def state() -> tuple:
    from torch._inductor import config as inductor
    from torch.backends import cuda, cudnn

    attention = (cuda.flash_sdp_enabled(), cuda.math_sdp_enabled())
    attention += (cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled())
    filled = torch.utils.deterministic.fill_uninitialized_memory
    mode = torch.get_deterministic_debug_mode()
    return mode, cudnn.deterministic, cudnn.benchmark, filled, attention, inductor.deterministic


# ---- pairs of runs -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pair",
    [
        Pair("GRU, dropout, row-wise, SGD", "classic", "both", 3),
        Pair("LSTM", "cached", "both", 1),
        Pair("EMA", "classic", "switch", 2),
    ],
    ids=lambda pair: f"{pair.method}-{pair.pipeline}-{pair.way}",
)
def test_pairs_are_the_same_to_the_last_bit(pair, letters):
    assert compare(pair, letters) == []


def test_another_seed_differs_in_everything_that_is_compared(letters, tmp_path):
    first, other = (Pair("GRU, dense", "cached", "again", seed).config() for seed in (0, 1))
    one, two = (outcome(config, letters, tmp_path / str(config.seed), [0]) for config in (first, other))
    assert differences(one, two) == ["history", "metrics", "weights", "state", "queries"]
    assert not determinism.same(torch.tensor([0.0]), torch.tensor([-0.0]))
    assert determinism.same({"a": [float("nan")]}, {"a": [float("nan")]})


# ---- deterministic=True --------------------------------------------------------------------------


def test_settings_are_changed_and_restored(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    before = state()
    with pytest.raises(KeyError), deterministic_algorithms():
        assert state() == (2, True, False, False, (True, True, False, False), True)
        assert os.environ[VARIABLE] == ":4096:8"
        with deterministic_algorithms():
            pass
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError
    assert state() == before and before[0] == 0
    assert os.environ[VARIABLE] == ":4096:8"


def test_cuda_started_without_the_variable_is_one_line(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    before = state()
    with pytest.raises(VptspError, match=f"CUDA was started in this process without {VARIABLE}; set it to") as told:
        run(preset("smoke"), deterministic=True)
    assert "\n" not in str(told.value) and state() == before
    fix_cublas("cpu")  # a run on the CPU needs none
    assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, ":16:8")
    fix_cublas("cuda")
    monkeypatch.setenv(VARIABLE, ":0:0")
    with pytest.raises(VptspError, match=f"{VARIABLE}=:0:0 is not :4096:8 or :16:8"):
        fix_cublas("cuda:1")


def test_the_option_is_in_the_record(letters, tmp_path):
    short = ["dataset=folder", "steps_per_epoch=1", "batch=4", "weights=random"]
    options = ["--preset", "smoke", "--data", str(letters), "--results", str(tmp_path), "--device", "cpu"]
    options += ["--set", *short]
    assert __main__.main(["train", *options, "--deterministic"]) == 0
    (path,) = tmp_path.glob("runs/*/record.json")
    record = json.loads(path.read_text())
    assert record["deterministic"] is True and record["stretches"][0]["deterministic"] is True
    assert __main__.main(["train", *options]) == 0  # it is not part of the description, so the same run is returned
    assert json.loads(path.read_text()) == record


# ---- workers that die, threads that fail ---------------------------------------------------------


def killed_if(flag, read):
    """Read an image; but if ``flag`` exists, end this data worker by SIGKILL.

    Between two images it could hold a lock for which torch would then wait for ever.
    """
    if flag.exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return read()


def test_a_killed_data_worker_is_reported_at_once_and_the_run_resumes(letters, tmp_path, monkeypatch):
    """Without a clock: if the run hung, the test would hang."""
    monkeypatch.setattr(loading, "_workers", lambda images, batches: 1)
    config = Pair("EMA", "classic", "again", 0).config().replace(steps_per_epoch=12, eval_start=0)
    options = dict(data=letters, results=tmp_path, device="cpu", progress=False)
    reader, second = FileSet.reader, tmp_path / "second epoch"

    words = "(is killed by signal: Killed|exited unexpectedly).*resumes"  # its handler or its queue sees it first
    with monkeypatch.context() as patch, pytest.raises(DataError, match=words) as told:
        patch.setattr(FileSet, "reader", lambda self, i: functools.partial(killed_if, second, reader(self, i)))
        run(config, on_epoch=lambda history: second.touch(), **options)
    assert "\n" not in str(told.value)
    (folder,) = tmp_path.glob("runs/*")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.pt"]
    assert not multiprocessing.active_children()
    second.unlink()
    done = run(config, **options)
    assert [part["after_epochs"] for part in done.record["stretches"]] == [0, 1]


def test_a_thread_that_fails_ends_the_run(letters, tmp_path, monkeypatch):
    def broken(*args):
        raise MemoryError("no room for a crop")

    monkeypatch.setattr(cached, "_threads", lambda: 2)
    monkeypatch.setattr(cached, "resize_one", broken)
    config = Pair("EMA", "cached", "again", 0).config()
    with pytest.raises(TrainingError, match="the memory of this machine is full in epoch 1; lower batch") as caught:
        run(config, data=letters, results=tmp_path, cache=tmp_path / "cache", device="cpu", progress=False)
    assert str(caught.value.__cause__) == "no room for a crop"
