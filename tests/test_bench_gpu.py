"""Rehearse `python -m tests.bench.gpu` on the CPU, and make the tables of its file."""

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import gpu, table

from vptsp_core.system.portable import processor

ROOT = Path(__file__).parents[1]
EVALUATION = {  # as from an earlier call: measuring its memory takes two processes and ten seconds
    "metrics_s": 0.5, "metrics_mib": 700.0, "bare_s": 0.4, "ratio": 1.25, "items": 60_502, "dim": 384, "k": 1000,
    "released_s": 20.0, "released_ratio": 40.0,
}  # fmt: skip
STEP = {  # of a step; one is measured here, with row-wise class prompts
    "forms": {
        "eager": {"ms": 40.0, "ms 25 %": 39.0, "ms 75 %": 41.5, "images/s": 1600.0, "ratio": 1.0, "memory_MB": 1234.0},
        "textbook": {"ms": 50.0, "ms 25 %": 49.0, "ms 75 %": 52.0, "images/s": 1280.0, "ratio": 1.25,
                     "memory_MB": None},
    },
    "GFLOP": 400.0, "product TFLOP/s": 20.0,
}  # fmt: skip
EARLIER = {
    "evaluation": EVALUATION,
    **dict.fromkeys(("step cub200-vits16", "step sop-vits16", "step cub200-vitb16"), STEP),
}


def test_a_rehearsal_measures_what_is_missing(tmp_path):
    file = tmp_path / "small.json"
    machine = {"device": f"{processor()}, 1 thread", "versions": {"torch": "2", "python": "3"}}
    file.write_text(json.dumps({"machine": machine, "parts": EARLIER, "missing": {}}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.bench.gpu", "--small", "--json", file, "--work", tmp_path / "work"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"evaluation: is in {file} already" in done.stdout and done.stdout.count(": measured in ") == 4
    found = json.loads(file.read_text())
    assert found["parts"].keys() == gpu.PARTS.keys() and not found["missing"]
    assert {name: found["parts"][name] for name in EARLIER} == EARLIER
    forms = found["parts"]["step inshop-vits16"]["forms"]
    assert forms.keys() == {"eager", "textbook"} and all(cost["memory_MB"] > 1 for cost in forms.values())
    assert found["parts"]["deterministic"]["forms"].keys() == {"eager", "eager, deterministic"}
    assert found["parts"]["epoch"]["steps"] == 2 and len(found["parts"]["train"]["history"]) == 1
    text = table.markdown(found)
    assert text.startswith(f"A rehearsal with small sizes on {processor()}, 1 thread")
    assert text.count(" | eager | ") == text.count(" | textbook | ") + 1 == 5
    assert "| sop-vits16 | eager | 40 | 39 to 41.5 | 1,600 | 1.00 | 1,234 | 50 % |" in text
    assert "| sop-vits16 | textbook | 50 | 49 to 52 | 1,280 | 1.25 | - | 40 % |" in text
    for words in ("| deterministic | eager, deterministic |", "| epoch | dataset: folder, epoch s: ", "epochs: 1, "):
        assert text.count(words) == 1
    assert "items: 60,502, dim: 384, k: 1,000, released_s: 20, released_ratio: 40 |" in text
