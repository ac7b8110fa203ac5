"""Measure speed and memory on a GPU in a few minutes.

    python -m tests.bench.gpu --data DIR --weights FILE --reference DIR    # at most 9 minutes
    python -m tests.bench.table gpu.json                                   # prints tables of the file
    python -m tests.bench.gpu --small --json small.json                    # a rehearsal on the CPU

The JSON file is written after every part. A second call with the same file measures what is missing. Each part runs in
its own process, so if one fails, the others still run. When the time is up, the part that runs is stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image

from vptsp_core import RunConfig, preset
from vptsp_core.data import load_benchmark
from vptsp_core.errors import VptspError
from vptsp_core.paper.released import clone_folder
from vptsp_core.paper.step_bench import StepBench
from vptsp_core.paper.step_cost import compare_forms, measure_steps
from vptsp_core.runs.record import made_with
from vptsp_core.runs.run import run
from vptsp_core.system.deterministic import deterministic_algorithms, fix_cublas
from vptsp_core.system.devices import pick_device
from vptsp_core.system.files import write_json

from .epoch import measure_epoch
from .metrics import SIZES, Size, benchmark_metrics
from .product import product_rate

Args = argparse.Namespace
Found = dict[str, Any]
Part = Callable[[Args], Found]

TINY = dict(backbone="vit_tiny_patch16_224.augreg_in21k_ft_in1k", embed_dim=192)
SMALL = dict(
    backbone="demo_vit", image_size=40, resize=40, prompts=2, prompt_layers=6, class_prompts=2, class_layers=6,
    class_step=0, batch=8, precision="fp32",
)  # fmt: skip
SMALL_SIZE = Size(items=300, dim=16, classes=40, ks=(1, 10))


def step(name: str, args: Args) -> Found:
    """Measure a preset's training step in every form, with its peak memory, and the rate of a matrix product."""
    found = compare_forms(
        config(name, args), device=args.device, steps=3 if args.small else 60, forms=(*own_forms(args), "textbook"),
        reference=args.reference,
    )  # fmt: skip
    return {**found, **product_rate(config(name, args), args.device)}


def epoch(args: Args) -> Found:
    """Measure an epoch from cached images, and its steps alone."""
    name, folder = images(args)
    found = measure_epoch(
        config("cub200-vits16", args, dataset=name), load_benchmark(name, folder), args.work / "cache",
        device=args.device,
    )  # fmt: skip
    return {"dataset": name, **found}


def train(args: Args) -> Found:
    """Train 15 epochs of CUB with a ViT-Ti. If the run was stopped, the next call resumes it from its last epoch."""
    name, folder = images(args)
    changes = dict(epochs=1) if args.small else {**TINY, "weights": str(args.weights)}
    done = run(
        config("cub200-vits16", args, dataset=name, **changes), data=folder, results=args.work,
        cache=args.work / "cache", device=args.device, progress=False,
    )  # fmt: skip
    return {
        "dataset": name, "backbone": done.config.backbone, "epochs": done.config.epochs, "metrics": done.metrics,
        "history": json.loads(done.history.to_json(orient="records")), "run s": done.record["seconds"],
        "memory_MB": torch.cuda.max_memory_allocated() / 1e6 if args.device == "cuda" else None,
    }  # fmt: skip


def evaluation(args: Args) -> Found:
    """Measure our retrieval metrics at the size of SOP, a bare search and, with faiss, the released metrics."""
    size, repeats = (SMALL_SIZE, 1) if args.small else (SIZES["sop"], 3)
    reference = args.reference if importlib.util.find_spec("faiss") else None
    return benchmark_metrics(size, args.device, repeats=repeats, reference=reference)


def deterministic(args: Args) -> Found:
    """Measure our step with and without deterministic algorithms."""
    fix_cublas(args.device)  # before CUDA starts in this process
    benches = {}
    for form in own_forms(args):
        for name, bench in ((form, StepBench), (f"{form}, deterministic", DeterministicBench)):
            benches[name] = partial(bench, config("cub200-vits16", args), form, args.device)
    steps = 3 if args.small else 60
    return {"forms": measure_steps(benches, device=args.device, steps=steps, progress=False, base="eager")}


class DeterministicBench(StepBench):
    """A `StepBench` whose steps use deterministic algorithms, as `run(deterministic=True)` does."""

    def step(self) -> None:
        """Take one step."""
        with deterministic_algorithms(str(self.device)):
            super().step()


PARTS: dict[str, Part] = {  # the most valuable first
    "step cub200-vits16": partial(step, "cub200-vits16"),
    "step sop-vits16": partial(step, "sop-vits16"),
    "train": train,
    "epoch": epoch,
    "evaluation": evaluation,
    "step cub200-vitb16": partial(step, "cub200-vitb16"),
    "deterministic": deterministic,
    "step inshop-vits16": partial(step, "inshop-vits16"),
}


def own_forms(args: Args) -> tuple[str, ...]:
    """Return the names of our forms of a step. A rehearsal does not compile, which takes a minute on a CPU."""
    return ("eager",) if args.small else ("eager", "compiled")


def config(name: str, args: Args, **changes: Any) -> RunConfig:
    """Return the run of a preset with changes; a rehearsal makes it small."""
    return preset(name, **{**(SMALL if args.small else {}), **changes})


def images(args: Args) -> tuple[str, Path]:
    """Return a data set and its folder: CUB if it is given, otherwise plain images, which are made once."""
    if args.data:
        return "cub200", args.data
    folder, making = args.work / "plain", args.work / "plain.unfinished"
    if not folder.exists():
        classes, each, side = (16, 2, 48) if args.small else (200, 59, 256)
        for label in range(classes):
            (making / f"{label:03}").mkdir(parents=True, exist_ok=True)
            for at in range(each):
                Image.new("RGB", (side, side), (label, at, 0)).save(making / f"{label:03}" / f"{at}.jpg")
        making.rename(folder)
    return "folder", folder


def here(args: Args) -> Found:
    """Return the machine and its versions."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise VptspError("there is no GPU here; --small rehearses on the CPU")
    return made_with(pick_device(args.device))


def apart(part: Part, args: Args, seconds: float) -> Found:
    """Run ``part`` in a fork and return its result. CUDA must not start in the calling process.

    Raises VptspError, one line, if the part fails or is not finished after ``seconds``.
    """
    pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))
    try:
        return pool.submit(part, args).result(seconds)
    except TimeoutError:
        message = f"stopped after {seconds:.0f} s, because the time was up; call again with the same file"
        raise VptspError(message) from None
    except VptspError:
        raise
    except Exception as error:  # GPUs and drivers that nobody has tried may fail in any way
        traceback.print_exc()
        raise VptspError(f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from error
    finally:
        for process in psutil.Process().children(recursive=True):  # also those that the part started
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        pool.shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the file does not have yet. Return the exit status, 1 if something is still missing."""
    args = arguments(argv)
    end = time.monotonic() + 60 * args.minutes
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that `apart` ends its fork
    try:
        if args.reference:
            clone_folder(args.reference)
        machine = apart(here, args, 120)
        document = {"machine": machine, "parts": {}, "missing": {}}
        if args.json.exists():
            document = json.loads(args.json.read_text())
        if document["machine"]["device"] != machine["device"]:
            raise VptspError(f"{args.json}: measured on another device; choose another --json")
    except VptspError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, part in PARTS.items():
        begun = time.monotonic()
        if name in document["parts"]:
            print(f"{name}: is in {args.json} already", flush=True)
            continue
        try:
            if name == "train" and not (args.small or (args.data and args.weights)):
                raise VptspError("skipped: it needs --data and --weights")
            found = apart(part, args, max(end - begun, 0))
            took = round(time.monotonic() - begun, 1)
            document["parts"][name] = {**found, "part s": took, "commit": machine["commit"]}
            document["missing"].pop(name, None)
            print(f"{name}: measured in {took} s", flush=True)
        except VptspError as error:
            document["missing"][name] = str(error)
            print(f"{name}: {error}", flush=True)
        write_json(args.json, document)
    return 1 if document["missing"] else 0


def arguments(argv: Sequence[str] | None) -> Args:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.gpu", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE", help="default: gpu.json")
    parser.add_argument("--minutes", type=float, default=9, help="for all parts together (default: 9)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder that holds cub200/")
    parser.add_argument("--weights", type=Path, metavar="FILE", help=f"of {TINY['backbone']}")
    parser.add_argument("--reference", type=Path, metavar="DIR", help="your clone of the released implementation")
    parser.add_argument("--work", type=Path, default=Path("results/gpu"), metavar="DIR",
                        help="for runs and decoded images (default: results/gpu)")  # fmt: skip
    parser.add_argument("--small", action="store_true", help="rehearse on the CPU with small sizes")
    args = parser.parse_args(argv)
    args.device = "cpu" if args.small else "cuda"
    return args


if __name__ == "__main__":
    sys.exit(main())
