"""A long run without growth: python tests/soak.py [--steps 20000] [--files]

Trains the demo preset with the real Trainer, an evaluation and a checkpoint every hundred steps. Every so many steps it
looks at what the system says of this process and its children: memory, open files, threads, processes. Of what
comes after the warm-up (a quarter) it fits the growth (the median slope, Theil and Sen, with its 95 % interval), prints
a table, and exits with 1 where the interval lies above the bound: 0.25 MiB, no file, thread or process in 1,000
steps. With --files the images are PNG files, decoded by two worker processes, which are made anew for every epoch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from scipy.stats import theilslopes

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import determinism  # noqa: E402

from vptsp_core import preset  # noqa: E402
from vptsp_core.data import load_benchmark, loading  # noqa: E402
from vptsp_core.method.step import TrainStep  # noqa: E402
from vptsp_core.runs.evaluate import evaluate  # noqa: E402
from vptsp_core.runs.run import build_model  # noqa: E402
from vptsp_core.runs.train import Trainer  # noqa: E402

EPOCH = 100  # steps
BOUNDS = {"memory, MiB": 0.25, "open files": 0.0, "threads": 0.0, "processes": 0.0}  # in 1,000 steps
SHOWN = 12  # rows of the table of samples


def sample() -> dict[str, float]:
    """This process and its children now, by /proc: memory that they share counts once, and what the C library only
    keeps for the next allocation not at all (where it can give that back, as glibc's can)."""
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    own, every = Path("/proc/self").resolve(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended just now
            every[process] = (process / "stat").read_text().rpartition(")")[2].split()
    found = dict.fromkeys(BOUNDS, 0.0)
    for process, fields in every.items():
        if process == own or fields[1] == own.name:  # its parent
            with contextlib.suppress(OSError):
                shares = re.search(r"^Pss: +(\d+) kB", (process / "smaps_rollup").read_text(), re.MULTILINE)
                one = int(shares[1]) / 1024, len(list((process / "fd").iterdir())), int(fields[17]), 1
                found = {name: value + more for (name, value), more in zip(found.items(), one, strict=True)}
    return found


def train(
    steps: int, every: int, data: Path | None = None, epoch: int = EPOCH, leak: Callable[[], object] = lambda: None
) -> pd.DataFrame:
    """Samples by step, of a run of so many steps, on image files where ``data`` is their folder, else on the glyphs.

    ``leak`` is called after each step: what a test has to see noticed.
    """
    changes = determinism.SHORT if data else {}
    changes = changes | dict(pipeline="classic", epochs=-(-steps // epoch), steps_per_epoch=epoch, eval_start=0)
    config = preset("demo", **changes)
    benchmark = load_benchmark(config.dataset, data)
    rows: dict[int, dict[str, float]] = {}
    step, taken = TrainStep.__call__, 0

    def counted(self: TrainStep, *batch: torch.Tensor) -> torch.Tensor:
        nonlocal taken
        taken += 1
        loss = step(self, *batch)
        leak()
        if taken % every == 0:
            rows[taken] = sample()
        return loss

    with tempfile.TemporaryDirectory() as folder, mock.patch.object(TrainStep, "__call__", counted):
        with mock.patch.object(loading, "_workers", lambda images, batches: 2 if data and batches >= 4 else 0):
            model = build_model(config, benchmark.train.num_classes, torch.device("cpu"))
            trainer = Trainer(model, benchmark.train, Path(folder), lambda m: evaluate(m, benchmark), progress=False)
            trainer.run()
    return pd.DataFrame.from_dict(rows, orient="index")


def growth(samples: pd.DataFrame) -> pd.DataFrame:
    """By quantity: growth in 1,000 steps after the first quarter, the ends of its 95 % interval, and the bound."""
    steady = samples[samples.index > samples.index.max() / 4]
    rows = {}
    for name, bound in BOUNDS.items():
        slope, _, low, high = theilslopes(steady[name], np.asarray(steady.index) / 1000)
        rows[name] = {"in 1,000 steps": slope, "low": low, "high": high, "bound": bound, "grows": low > bound}
    return pd.DataFrame.from_dict(rows, orient="index")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000, help="default: 20000")
    parser.add_argument("--files", action="store_true", help="decode image files in worker processes")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    start, every = time.perf_counter(), max(1, options.steps // 400)
    with tempfile.TemporaryDirectory() as folder:
        data = determinism.write_images(Path(folder)) if options.files else None
        samples = train(options.steps, every, data)
    found = growth(samples)
    shown = samples.iloc[np.linspace(0, len(samples) - 1, min(SHOWN, len(samples))).astype(int)]
    print(shown.rename_axis("step").to_string(float_format=lambda value: f"{value:.1f}"))
    print(found.to_string(float_format=lambda value: f"{value:.3f}"))
    grown = ", ".join(found.index[found["grows"].astype(bool)])
    seconds = time.perf_counter() - start
    print(f"{samples.index.max()} steps in {seconds:.0f} s: {f'{grown} grow' if grown else 'nothing grows'}")
    return int(bool(grown))


if __name__ == "__main__":
    sys.exit(main())
