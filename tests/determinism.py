"""Check that runs repeat to the last bit: python tests/determinism.py [--pairs N]

Make pairs of short real runs, and compare their histories, metrics, stored weights and the whole state of training
(prompts, proxies, accumulators, optimisers) after the last epoch, bit for bit. The two runs of a pair differ in
something that must not matter:

    again       nothing
    workers     the number of decoding processes (classic pipeline) or of threads (cached pipeline)
    resumed     one was interrupted after its first epoch and resumed
    both        one was interrupted, and its two parts had different numbers of workers
    switch      one with deterministic=True, the other without (on a CPU it changes nothing)

The pairs cover methods, accumulators, tables of class prompts, dropout, both pipelines and seeds. torch uses one thread
and compiling is off, because other thread counts and compiled steps round sums differently. Print the number of pairs
and each difference; exit with 1 if there is one.
"""

from __future__ import annotations

import argparse
import itertools
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vptsp_core import RunConfig, preset, run  # noqa: E402
from vptsp_core.data import cache, cached, loading  # noqa: E402
from vptsp_core.data.glyphs import GlyphSet  # noqa: E402

CLASSES, IMAGES = 24, 3  # half of the classes to train on
EPOCHS, STEPS = 2, 5
SHORT = dict(
    dataset="folder", epochs=EPOCHS, steps_per_epoch=STEPS, batch=8, samples_per_class=2, augmentation="base", resize=44
)
METHODS: dict[str, dict[str, Any]] = {
    "GRU, dense": {},
    "GRU, row-wise": dict(class_optimizer="rowwise"),
    "GRU, dropout": dict(gru_dropout=0.5),
    "GRU, dropout, row-wise, SGD": dict(gru_dropout=0.3, class_optimizer="rowwise", optimizer="sgd", lr=0.01),
    "GRU with tanh": dict(accumulator="gru_tanh"),
    "EMA": dict(accumulator="ema"),
    "EMA, row-wise": dict(accumulator="ema", class_optimizer="rowwise"),
    "LSTM": dict(accumulator="lstm"),
    "RNN": dict(accumulator="rnn"),
    "cross-attention": dict(accumulator="attention"),
    "proxies from samples": dict(proxy_source="sample"),
    "VPT": dict(method="vpt"),
    "adapter": dict(method="adapter", adapter_layers=2, adapter_dim=16),
    "linear": dict(method="linear"),
    "full": dict(method="full", bitfit=False, lr=1e-4),
    "selection by validation": dict(selection="validation"),
}
WAYS = ("again", "workers", "resumed", "both", "switch")


@dataclass(frozen=True)
class Pair:
    """Two runs of one description that must not differ."""

    method: str
    pipeline: str
    way: str
    seed: int

    def config(self) -> RunConfig:
        return preset("demo", **{**SHORT, **METHODS[self.method], "pipeline": self.pipeline, "seed": self.seed})


@dataclass(frozen=True)
class Outcome:
    """All numbers of a run."""

    history: dict[str, list[float]]
    metrics: dict[str, float]
    weights: bytes
    state: dict[str, Any]  # the last checkpoint: learned state and optimisers
    queries: dict[str, np.ndarray]
    parts: int  # the number of calls


class CutShort(Exception):
    """Ends a run after an epoch, like a killed process."""


def pairs(count: int) -> Iterator[Pair]:
    """Yield ``count`` pairs in mixed order. The first 16 x 2 x 5 cover all methods, pipelines and ways."""
    every = list(itertools.product(METHODS, ("classic", "cached"), WAYS))
    random.Random(0).shuffle(every)
    for number, (method, pipeline, way) in zip(range(count), itertools.cycle(every)):
        yield Pair(method, pipeline, way, seed=number % 7 + number // len(every) * 7)


def outcome(config: RunConfig, data: Path, folder: Path, workers: Sequence[int], **options: Any) -> Outcome:
    """Run in an empty folder, with one call per number in ``workers``. All but the last are interrupted."""
    state: dict[str, Any] = {}

    def last(history: list[dict[str, float]]) -> None:
        (path,) = folder.glob("runs/*/checkpoint.pt")
        state.update(torch.load(path, weights_only=True))
        if len(history) == 1 and len(calls) > 0:
            raise CutShort

    calls = list(workers)
    while calls:
        count = calls.pop(0)
        threads = mock.patch.object(cached, "_threads", lambda n=count: max(1, n))
        processes = mock.patch.object(loading, "_workers", lambda images, batches, n=count: n)
        decoding = mock.patch.object(cache, "cores", lambda n=count: max(1, n))
        options |= dict(data=data, results=folder, cache=folder / "cache", device="cpu", compile="off", progress=False)
        with threads, processes, decoding:
            try:
                done = run(config, on_epoch=last, **options)
            except CutShort:
                continue
    history = done.history.drop(columns="seconds").to_dict("list")
    kept = {name: state[name] for name in ("learned", "optimizers", "schedules", "best")}
    weights = (done.path / "model.safetensors").read_bytes()
    return Outcome(history, done.metrics, weights, kept, done.queries or {}, len(done.record["stretches"]))


def differences(one: Outcome, other: Outcome) -> list[str]:
    """Return the names of the parts that are not the same to the last bit."""
    return [
        name for name in ("history", "metrics", "weights", "state", "queries")
        if not same(getattr(one, name), getattr(other, name))
    ]  # fmt: skip


def same(one: Any, other: Any) -> bool:
    """Compare structure, types and bits; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and same(one.numpy(), other.numpy())
    if isinstance(one, np.ndarray):
        return one.shape == other.shape and one.dtype == other.dtype and one.tobytes() == other.tobytes()
    return one == other or (one != one and other != other)


def compare(pair: Pair, data: Path) -> list[str]:
    """Make both runs of a pair, and return their differences."""
    first, second = [0], [0]
    if pair.way in ("workers", "both"):
        first, second = [1], [2]
    if pair.way in ("resumed", "both"):
        second = [second[0], first[0]]
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        a = outcome(pair.config(), data, Path(one), first)
        b = outcome(pair.config(), data, Path(other), second, deterministic=pair.way == "switch")
    assert (a.parts, b.parts) == (1, len(second)), "a run that was to be cut short was not"
    return differences(a, b)


def write_images(folder: Path) -> Path:
    """Write letters as PNG files, one folder per class."""
    letters = GlyphSet("train", images_per_class=IMAGES)
    for index in range(CLASSES * IMAGES):
        path = folder / f"{letters.labels[index]:03d}" / f"{index % IMAGES}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        letters.image(index).resize((56, 48)).save(path)
    return folder


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=160, metavar="N", help="default: 160, every combination once")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    made, different = Counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        data = write_images(Path(folder))
        for number, pair in enumerate(pairs(options.pairs), start=1):
            found = compare(pair, data)
            made.update([pair.way])
            different += bool(found)
            if found or number % 20 == 0 or number == options.pairs:
                print(f"{number}/{options.pairs} {pair}: {', '.join(found) or 'the same'}", flush=True)
    ways = ", ".join(f"{way} {count}" for way, count in sorted(made.items()))
    print(f"{made.total()} pairs ({ways}): {made.total() - different} the same to the last bit, {different} not")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
