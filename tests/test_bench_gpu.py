"""A rehearsal of `python -m tests.bench.gpu` on the CPU, and the table of its file."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import gpu

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
EVALUATION = {  # given as already measured, which saves this test two processes and ten seconds
    "metrics_s": 0.5, "metrics_mib": 700.0, "bare_s": 0.4, "ratio": 1.25, "items": 60_502, "dim": 384, "k": 1000,
    "released_s": 20.0, "released_ratio": 40.0, "released search": "torch in place of faiss",
}  # fmt: skip
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
