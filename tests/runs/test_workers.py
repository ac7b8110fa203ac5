"""Runs in several processes, and on a real Dask cluster of two workers on this machine."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import determinism
import psutil
import pytest
import shared_work
import torch
from distributed import Client

from vptsp_core import preset
from vptsp_core.errors import ConfigError, VptspError
from vptsp_core.runs import workers
from vptsp_core.runs.cluster import connected
from vptsp_core.runs.progress import PROGRESS, training_line, write_progress
from vptsp_core.runs.run import many
from vptsp_core.runs.workers import check_workers, run_in_workers
from vptsp_core.system.devices import device_name
from vptsp_core.system.portable import physical_cores

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
SHARE = max(1, min(torch.get_num_threads(), physical_cores() // 2))  # threads of each of two processes
ON_CPU = f"{device_name(torch.device('cpu'))}, {SHARE} thread{'s' * (SHARE > 1)}"  # as a record says it
LONG = 300.0  # seconds to wait for something that takes a few: the machine may be busy


def until(true, what: str, patience: float = LONG) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"waited for {what}"
        time.sleep(0.02)


def config(seed: int):
    """Return the config of a short run on `letters`."""
    changes = dict(pipeline="classic", weights="random", epochs=3, eval_start=2, steps_per_epoch=8, seed=seed)
    return preset("smoke", **determinism.SHORT | changes)


def same(run, other) -> bool:
    """Return whether metrics, history (without seconds) and weights of two runs are the same to the last bit."""
    weights = [(each.path / "model.safetensors").read_bytes() for each in (run, other)]
    history = [each.history.drop(columns="seconds") for each in (run, other)]
    return run.metrics == other.metrics and history[0].equals(history[1]) and weights[0] == weights[1]


@pytest.fixture(scope="module")
def reference(letters, tmp_path_factory):
    """Train two runs in this process, with the threads that each of two processes would have."""
    before = torch.get_num_threads()
    torch.set_num_threads(SHARE)
    try:
        results = tmp_path_factory.mktemp("reference")
        yield many([config(0), config(1)], data=letters, results=results, progress=False)
    finally:
        torch.set_num_threads(before)


class Cluster:
    """A scheduler and workers, each in its own process, as users start them."""

    def __init__(self, **environment: str) -> None:
        self.environment = ENVIRONMENT | environment
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self.processes = [self.start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show")]
        until(self.answers, "the scheduler")

    def start(self, *arguments: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        return subprocess.Popen(command, env=self.environment, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)

    def answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def workers(self, count: int, *options: str) -> list[subprocess.Popen]:
        options = options or ("--nthreads", "1")
        more = ["--no-nanny", "--memory-limit", "0", "--host", "127.0.0.1"]
        begun = [self.start("worker", self.address, *options, *more) for _ in range(count)]
        self.processes += begun
        with Client(self.address, timeout=LONG, set_as_default=False) as client:
            client.wait_for_workers(count, LONG)
        return begun

    def close(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait()


@pytest.fixture
def cluster(request):
    made = Cluster(**getattr(request, "param", {}))
    try:
        yield made
    finally:
        made.close()


# ---- a Dask cluster ------------------------------------------------------------------------------


def test_if_a_worker_dies_another_resumes_its_run(cluster, letters, reference, tmp_path, monkeypatch, capsys):
    """Also: the same numbers as in one process, equal configs once, progress, and finished runs without a cluster."""
    two = cluster.workers(2)
    monkeypatch.chdir(tmp_path)  # the folder is relative, and the workers have another working directory
    often = workers.every
    monkeypatch.setattr(workers, "every", lambda seconds, show: often(0.02, show))  # a fast machine needs no second
    monkeypatch.setattr(workers, "is_log", lambda: False)  # a log has a line every ten seconds only
    configs = [config(0), config(1), config(0)]
    options = dict(workers=cluster.address, data=letters, results="results")
    shown, runs = [], []
    thread = threading.Thread(target=lambda: runs.extend(many(configs, progress=True, **options)))
    thread.start()

    def past_its_first_epoch() -> bool:
        """Return whether the first worker's run, whose lock it has open, has finished an epoch."""
        locks = [Path(file.path) for file in psutil.Process(two[0].pid).open_files() if Path(file.path).name == "lock"]
        with contextlib.suppress(OSError, ValueError):
            if any(json.loads(lock.with_name(PROGRESS).read_text())["done"] >= 1 for lock in locks):
                shown.append(training_line((tmp_path / "results" / "runs").glob("folder-*")))
                return True
        return False

    until(lambda: past_its_first_epoch() or not thread.is_alive(), "the first worker's run to learn")
    two[0].kill()
    thread.join(LONG)

    assert [run.path for run in runs] == [runs[0].path, runs[1].path, runs[0].path]
    assert runs[0].path.is_absolute()
    assert same(runs[0], reference[0]) and same(runs[1], reference[1])
    parts = sorted(len(run.record["stretches"]) for run in runs[:2])
    assert parts == [1, 2]  # one run was resumed
    resumed = max(runs[:2], key=lambda run: len(run.record["stretches"]))
    assert resumed.record["stretches"][1]["after_epochs"] >= 1
    assert {run.record["device"] for run in runs} == {ON_CPU}
    assert any(" epoch 2/3" in line or " epoch 3/3" in line for line in shown), shown
    assert " epoch " in capsys.readouterr().err  # also beside the bar
    left = {path.name for run in runs for path in run.path.iterdir()}
    assert PROGRESS not in left and "lock" not in left
    cluster.close()
    again = many(configs, progress=False, **options)  # without the cluster
    assert [run.record["started"] for run in again] == [run.record["started"] for run in runs]


@pytest.mark.parametrize("cluster", [{"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}], indirect=True)
def test_a_cluster_that_cannot_be_used_is_an_error_in_one_line(cluster, tmp_path):
    runs = {tmp_path / "die": ("die", str(tmp_path))}
    with pytest.raises(VptspError, match="has no workers; start some with: dask worker"):
        with connected(cluster.address, patience=0.5):
            pass
    several = cluster.workers(1, "--nthreads", "2")
    with pytest.raises(VptspError, match="has 2 threads, runs need one"):
        run_in_workers(shared_work.work, runs, cluster.address, progress=False)
    several[0].kill()
    with Client(cluster.address, timeout=LONG, set_as_default=False) as client:
        until(lambda: not client.nthreads(), "the scheduler to miss it")
    cluster.workers(1)
    with pytest.raises(VptspError, match="lost one worker after another .*with fewer workers") as caught:
        run_in_workers(shared_work.work, runs, cluster.address, progress=False)
    assert "\n" not in str(caught.value)
    cluster.workers(1)

    def kill_the_scheduler():
        until(lambda: any(path.name.isdigit() for path in tmp_path.iterdir()), "the work to begin")
        cluster.processes[0].kill()

    killer = threading.Thread(target=kill_the_scheduler)
    killer.start()
    with pytest.raises(VptspError, match="the cluster at tcp://127.0.0.1:.* went away") as caught:
        run_in_workers(shared_work.work, {tmp_path / "run": ("sleep", str(tmp_path))}, cluster.address, progress=False)
    killer.join()
    assert "\n" not in str(caught.value)
    with pytest.raises(VptspError, match="no Dask scheduler answers at tcp://127.0.0.1:.*dask scheduler --port"):
        run_in_workers(shared_work.work, runs, cluster.address, progress=False)


# ---- processes of this machine -------------------------------------------------------------------


def test_two_processes_give_the_same_numbers_and_a_log_has_a_line_per_epoch(letters, reference, tmp_path, capfd):
    first, second, again = many([config(0), config(1), config(0)], workers=2, data=letters, results=tmp_path)
    assert again.path == first.path
    assert same(first, reference[0]) and same(second, reference[1])
    assert first.record["device"] == ON_CPU
    said = capfd.readouterr().err
    lines = sorted(line.split(",")[0].split(": loss")[0] for line in said.splitlines() if "folder-" in line)
    expected = [": epoch 1/3", ": epoch 2/3", ": epoch 3/3", ": training vptsp on 36 images"]
    assert lines == sorted(run.path.name + line for run in (first, second) for line in expected)
    assert "\r" not in said and "\x1b" not in said


def test_a_failing_run_does_not_stop_the_others_but_a_dying_process_does(tmp_path):
    items = {tmp_path / name: (name, str(tmp_path)) for name in ("fail", "a", "b")}
    came = run_in_workers(shared_work.work, items, 2, progress=False)
    assert isinstance(came.pop(tmp_path / "fail"), VptspError)
    assert came == {folder: item for folder, item in items.items() if item[0] != "fail"}
    with pytest.raises(VptspError, match="^a process died .*; the same command resumes the runs"):
        items = {tmp_path / name: (name, str(tmp_path)) for name in ("sleep", "die")}  # as many as processes
        run_in_workers(shared_work.work, items, 2, progress=False)


SCRIPT = """
import pathlib, signal, sys, shared_work
signal.signal(signal.SIGINT, signal.default_int_handler)
from vptsp_core.runs.workers import run_in_workers
folder = pathlib.Path(sys.argv[1])
run_in_workers(shared_work.work, {folder / name: ("sleep", folder) for name in "ab"}, 2, progress=False)
"""


@pytest.mark.posix("sends signals to groups of processes")
@pytest.mark.parametrize("how", ["ctrl-c", "kill -9"])
def test_the_processes_end_with_the_one_that_started_them(tmp_path, how):
    """The script has no ``if __name__ == "__main__"``, but it must not run again in each process."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen(
        [sys.executable, script, str(tmp_path)], env=ENVIRONMENT, start_new_session=True, stderr=subprocess.PIPE
    )
    until(lambda: len([*tmp_path.glob("[0-9]*")]) == 2, "both to begin")
    pids = [int(path.name) for path in tmp_path.glob("[0-9]*")]
    if how == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)  # like a terminal
    else:
        process.kill()
    printed = process.communicate(timeout=60)[1].decode()  # they sleep for 300
    assert process.returncode != 0 and printed.count("Traceback") == (how == "ctrl-c"), printed
    until(lambda: not any(map(psutil.pid_exists, pids)), "the processes to end", 60)


def test_each_process_takes_a_gpu_of_its_own(tmp_path, monkeypatch):
    """The test needs no GPU, because a process only sets a variable of CUDA."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,3")
    came = run_in_workers(shared_work.tell, {tmp_path / str(n): n for n in range(6)}, "gpus", progress=False)
    taken = {(pid, gpu) for _, pid, _, gpu in came.values()}
    assert {threads for _, _, threads, _ in came.values()} == {SHARE}
    assert len(taken) == len({pid for pid, _ in taken}) == len({gpu for _, gpu in taken})
    assert {gpu for _, gpu in taken} <= {"5", "3"}


# ---- one process ---------------------------------------------------------------------------------


def test_a_failing_run_is_named_when_the_others_are_done(letters, tmp_path, monkeypatch):
    tried = []

    def run(config, **options):
        tried.append(config.seed)
        raise VptspError(f"seed {config.seed} is unlucky")

    monkeypatch.setattr("vptsp_core.runs.run.run", run)
    with pytest.raises(VptspError, match="2 of 2 runs failed; the first, folder-vptsp-.*: seed 0 is unlucky"):
        many([config(0), config(1), config(0)], data=letters, results=tmp_path, progress=False)
    assert tried == [0, 1]
    assert many([], results=tmp_path, progress=False) == []


@pytest.mark.parametrize(
    ("value", "message"),
    [
        *((value, "must be a number from 1") for value in (0, True, 1.5, "4")),
        *((value, "tcp://HOST:PORT") for value in ("tcp://host", "tcp://a:b:1")),
        ("gpus", "torch sees no GPU"),
    ],
)
def test_invalid_workers(value, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=message) as caught:
        check_workers(value)
    assert "\n" not in str(caught.value)


def test_torchrun_and_workers_exclude_each_other(monkeypatch):
    monkeypatch.setattr(workers, "launched", lambda: True)
    with pytest.raises(ConfigError, match="under torchrun"):
        many([config(0)], workers=2)
    assert check_workers(None) is None


def test_one_worker_is_this_process(tmp_path):
    assert run_in_workers(shared_work.tell, {tmp_path / "a": 1}, 1, progress=False)[tmp_path / "a"][1] == os.getpid()
    good = [check_workers(value) for value in (1, 2, "tcp://a.b-c:8786", "tcp://[::1]:80")]
    assert good == [None, 2, "tcp://a.b-c:8786", "tcp://[::1]:80"]


# ---- progress, and two that want the same run ----------------------------------------------------


def test_the_line_about_runs_that_are_training(tmp_path):
    one, other, bare = (tmp_path / f"glyphs-{name}" for name in ("vptsp-1a2b3c", "linear-77cdef", "frozen-0123ab"))
    assert training_line([one, other]) == ""
    write_progress(one, 2, 4)
    write_progress(other, 4, 4)
    write_progress(bare, 0, 0)
    assert training_line([bare, other, one]) == "frozen-0123, linear-77cd epoch 4/4, vptsp-1a2b epoch 3/4"
    (other / PROGRESS).write_text("{")
    assert training_line([bare, other, one]) == "frozen-0123, vptsp-1a2b epoch 3/4"


def test_a_second_process_waits_for_the_run_and_finds_it_finished(letters, tmp_path, monkeypatch):
    """Two threads stand for two processes. One trains, and the other says that it waits."""
    said, trained = [], []
    monkeypatch.setattr("vptsp_core.system.locks.print", lambda text, file: said.append(text), raising=False)

    def history(config, benchmark, model, path, **options):
        trained.append(path)
        until(lambda: said, "the other to wait")
        assert {PROGRESS, "lock"} <= {file.name for file in path.iterdir()}
        return real(config, benchmark, model, path, **options)

    from vptsp_core.runs import run as study

    real, runs = study._train_and_evaluate, []
    monkeypatch.setattr(study, "_train_and_evaluate", history)
    one = config(0).replace(method="frozen", bitfit=False, epochs=1)
    options = dict(data=letters, results=tmp_path, progress=False)
    threads = [threading.Thread(target=lambda: runs.append(study.run(one, **options))) for _ in "12"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert len(runs) == 2 and len(trained) == 1 and runs[0].metrics == runs[1].metrics
    assert len(said) == 1 and "another process trains it; waiting" in said[0]
    assert {PROGRESS, "lock"}.isdisjoint(file.name for file in trained[0].iterdir())
