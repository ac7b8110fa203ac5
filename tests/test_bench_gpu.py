"""`python -m tests.bench.gpu` and the table of its file: a rehearsal on the CPU, and what happens when parts fail."""

import importlib.util
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from bench import gpu
from bench.apart import apart
from bench.table import markdown

from vptsp_core.errors import VptspError

ROOT = Path(__file__).parents[1]
ABSENT = "papermill", "faiss", "umap", "optuna", "distributed"  # not installed on the machine with a GPU
HOOK = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError("No module named " + name, name=name)
sys.meta_path.insert(0, Absent())
"""
EVALUATION = {  # measured in an earlier call: two more processes for memory would take this test ten seconds longer
    "metrics_s": 0.5, "metrics_mib": 700.0, "bare_s": 0.4, "ratio": 1.25, "items": 60_502, "dim": 384, "k": 1000,
    "released_s": 20.0, "released_ratio": 40.0, "released search": "torch in place of faiss",
}  # fmt: skip
COST = {"ms": 20.0, "ms 25 %": 19.5, "ms 75 %": 21.0, "images/s": 3200.0, "ratio": 1.0}


def document(**parts) -> dict:
    device = "cpu, 1 threads"
    return {"machine": {"device": device, "versions": {"torch": "2", "python": "3"}}, "parts": parts, "missing": {}}


def test_a_rehearsal_measures_what_is_missing(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HOOK)
    file = tmp_path / "small.json"
    file.write_text(json.dumps(document(evaluation=EVALUATION)))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.bench.gpu", "--small", "--json", file, "--work", tmp_path / "work"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"evaluation: is in {file} already" in done.stdout and done.stdout.count(": measured in ") == 7
    found = json.loads(file.read_text())
    assert found["parts"].keys() == gpu.PARTS.keys() and not found["missing"]
    assert found["parts"]["evaluation"] == EVALUATION
    for name in ("cub200-vits16", "sop-vits16", "inshop-vits16", "cub200-vitb16"):
        forms = found["parts"][f"step {name}"]["forms"]
        assert forms.keys() == {"eager", "textbook"} and all(cost["memory_MB"] > 1 for cost in forms.values())
    assert found["parts"]["deterministic"]["forms"].keys() == {"eager", "eager, deterministic"}
    assert found["parts"]["epoch"]["steps"] == 2 and len(found["parts"]["train"]["history"]) == 1
    command = [sys.executable, "-m", "tests.bench.table", file]
    text = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    assert text.startswith("A rehearsal with small sizes on cpu, 1 threads")
    assert text.count("| ours, as written |") == text.count("| textbook |") == 4
    for words in ("an epoch from cached images", "1 epoch of folder", "60,502 x 384, k = 1,000", "`deterministic`"):
        assert text.count(words) == 1
    assert "released 20 s, 40.0 times ours (it searches with torch in place of faiss)" in text


def test_parts_that_do_not_fit_are_skipped_with_a_line(tmp_path, capsys):
    file = tmp_path / "small.json"
    assert gpu.main(["--small", "--minutes", "0", "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert not found["parts"] and found["missing"].keys() == gpu.PARTS.keys()
    assert "train: skipped: it takes about 90 s, 0 s are left" in capsys.readouterr().out
    assert "| train | not measured: skipped: it takes about 90 s, 0 s are left |" in markdown(found)


def test_a_part_that_fails_costs_no_other(tmp_path, monkeypatch):
    def fails(args):
        raise RuntimeError("CUDA error:\n  misaligned address")

    monkeypatch.setattr(gpu, "PARTS", {"first": (0, fails), "second": (0, lambda args: {"ms": 3})})
    file = tmp_path / "small.json"
    assert gpu.main(["--small", "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert found["missing"] == {"first": "failed: RuntimeError: CUDA error: misaligned address"}
    assert found["parts"]["second"]["ms"] == 3
    monkeypatch.setitem(gpu.PARTS, "first", (0, lambda args: {"ms": 4}))
    assert gpu.main(["--small", "--json", str(file)]) == 0
    found = json.loads(file.read_text())
    assert not found["missing"] and found["parts"]["first"]["ms"] == 4


def test_a_part_is_stopped_with_what_it_started(tmp_path):
    def waits(args):
        child = subprocess.Popen(["sleep", "60"])
        (tmp_path / "pid").write_text(str(child.pid))
        time.sleep(60)

    with pytest.raises(VptspError, match="stopped after 1 s, because the time was up"):
        apart(waits, Namespace(), 1)
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):  # a killed process is a zombie until its new parent has noticed
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process that the part started still runs")


def test_a_part_whose_process_dies_is_reported():
    with pytest.raises(VptspError, match="failed: its process ended with status 3"):
        apart(lambda args: os._exit(3), Namespace(), 60)


@pytest.mark.parametrize(
    ("held", "options", "message"),
    [
        ('{"parts": ', (), "unreadable .*; choose another --json"),
        ('{"parts": {}, "missing": {}}', (), r"unreadable \(KeyError\('machine'\)\)"),
        ('{"machine": {"device": "H100"}, "parts": {}, "missing": {}}', (), "measured on H100, this is cpu"),
        (None, ("--weights", "nowhere.pth"), "nowhere.pth: no such file or folder"),
        (None, ("--reference", "."), "params.py is missing; give a whole clone"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, capsys, held, options, message):
    file = tmp_path / "small.json"
    if held is not None:
        file.write_text(held)
    assert gpu.main(["--small", "--json", str(file), *options]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said) and said.startswith("error: ") and said.count("\n") == 1
    assert (file.read_text() if file.exists() else None) == held


def test_archives_are_unpacked_once_and_beside_one_another(tmp_path):
    archives = []
    for name in ("001.A", "002.B"):
        (tmp_path / name).write_text(name)
        archives.append(tmp_path / f"{name}.tar")
        with tarfile.open(archives[-1], "w") as archive:
            archive.add(tmp_path / name, f"cub200/images/{name}/1.jpg")
    args = Namespace(data=archives, work=tmp_path / "work", small=False)
    assert gpu.images(args) == ("cub200", tmp_path / "work/data")
    found = sorted(path.parent.name for path in (tmp_path / "work/data/cub200/images").glob("*/*"))
    assert found == ["001.A", "002.B"]
    for path in archives:
        path.unlink()
    assert gpu.images(args) == ("cub200", tmp_path / "work/data")
    args.data = [tmp_path]
    assert gpu.images(args) == ("cub200", tmp_path)


def test_the_table_of_a_gpu():
    forms = {
        "eager": {**COST, "ratio": 1.5, "memory_MB": 1234.6},
        "compiled": {**COST, "memory_MB": 999.4},
        "released, no checkpointing": {**COST, "ms": 50.0, "ratio": 2.5, "memory_MB": None},
    }
    fixed = {"ms": 22.0, "memory_MB": 1300.0}
    found = document(**{
        "step sop-vits16": {"forms": forms, "GFLOP": 80.0, "product TFLOP/s": 10.0},
        "epoch": {"dataset": "cub200", "epoch s": 12.0, "evaluation s": 2.0, "steps s": 8.0, "steps": 91,
                  "images/s": 580.0, "compile s": 41.7},
        "train": {"dataset": "cub200", "backbone": "vit", "epochs": 15, "run s": 99.6, "memory_MB": 2048.0,
                  "metrics": {"R@1": 0.7651, "MAP@R": 0.351}},
        "deterministic": {"forms": {**forms, "eager, deterministic": fixed, "compiled, deterministic": fixed}},
    })  # fmt: skip
    found["machine"]["device"] = "NVIDIA H100"
    assert markdown(found).splitlines() == [
        "Measured on NVIDIA H100, torch 2, Python 3, with `python -m tests.bench.gpu`.",
        "",
        "| preset | form | ms a step | quartiles | images/s | times eager | peak MB | of the product's rate |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        "| sop-vits16 | ours, as written | 20 | 19.5 to 21 | 3,200 | 1.50 | 1,235 | 40 % |",
        "| sop-vits16 | ours, compiled | 20 | 19.5 to 21 | 3,200 | 1.00 | 999 | 40 % |",
        "| sop-vits16 | released, no checkpointing | 50 | 19.5 to 21 | 3,200 | 2.50 | - | 16 % |",
        "",
        "| what | measured |",
        "| --- | --- |",
        "| an epoch from cached images (cub200) | training 10.0 s, 1.25 times its 91 steps (580 images/s); evaluation "
        "2.0 s; compiling once: 42 s |",
        "| 15 epochs of cub200, vit | R@1 76.5, MAP@R 35.1 in 100 s, peak 2,048 MB |",
        "| `deterministic`, cub200-vits16 | ours, as written: 1.10 times the step (22 for 20 ms, 1,300 for 1,235 MB); "
        "ours, compiled: 1.10 times the step (22 for 20 ms) |",
    ]


def test_the_stand_in_for_faiss_searches_exactly():
    spec = importlib.util.spec_from_file_location("standin", ROOT / "tests/bench/standin/faiss.py")
    standin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(standin)
    rng = np.random.default_rng(0)
    rows, queries = (rng.normal(size=(n, 5)).astype(np.float32) for n in (50, 600))
    index = standin.IndexFlatL2(5)
    index.add(rows[:20])
    index.add(rows[20:])
    distances, indices = index.search(queries, 7)
    exact = ((queries[:, None].astype(float) - rows[None]) ** 2).sum(2)
    assert (indices == exact.argsort(1)[:, :7]).all() and indices.dtype == np.int64
    np.testing.assert_allclose(distances, np.sort(exact, 1)[:, :7], atol=1e-4)
