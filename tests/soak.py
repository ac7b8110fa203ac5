"""Check that a long run does not grow: python tests/soak.py [--steps 20000] [--files]

Train the demo preset with the real Trainer, with an evaluation and a checkpoint every hundred steps. Sample the memory,
open files, threads and processes of this process and its children. The first quarter is the warm-up. Over the rest, fit
the growth: the median slope (Theil and Sen) with its 95 % interval. Print a table, and exit with 1 if an interval lies
above its bound in 1,000 steps: 0.25 MiB, and no file, thread or process. With --files the images are PNG files, decoded
by two worker processes that are started again for every epoch.
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
    """Return the memory, files, threads and processes of this process and its children, from /proc.

    Shared memory counts once. Free memory that the C library keeps does not count, if the library can return it.
    """
    gc.collect()
    getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)(0)
    own, every = Path("/proc/self").resolve(), {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has just ended
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
    """Train for ``steps`` steps and return samples by step. Images come from the folder ``data``, or are glyphs.

    ``leak`` is called after each step, so that a test can add growth.
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
    """Return, by quantity, the growth in 1,000 steps after the first quarter, its 95 % interval, and the bound."""
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
