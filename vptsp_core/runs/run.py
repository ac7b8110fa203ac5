"""Many runs: each is trained once, found again by its hash, and read into data frames."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vptsp_core.data import OWN, Benchmark, data_folder, load_benchmark
from vptsp_core.data.batches import cache_folder, decoded
from vptsp_core.data.folder import outside_images
from vptsp_core.data.holdout import for_selection
from vptsp_core.data.loading import deaths_named, end_workers
from vptsp_core.errors import ConfigError, DataError, VptspError, check_choice
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.compile import COMPILE
from vptsp_core.runs.curves import Curves
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.runs.folder import METRICS, Run, finished_run, run_folder, write_run
from vptsp_core.runs.memory import check_table_memory, failures_named, place_class_prompts
from vptsp_core.runs.progress import at_work
from vptsp_core.runs.record import close_record, make_record, make_stretch
from vptsp_core.runs.selection import Row, on_held_out, score
from vptsp_core.runs.train import Trainer
from vptsp_core.runs.workers import Workers, check_workers, share_out
from vptsp_core.system.bars import bar, is_log, say
from vptsp_core.system.deterministic import where_asked
from vptsp_core.system.devices import autocast_dtype, pick_device
from vptsp_core.system.distributed import Processes, from_main, is_main, launched, rank, start
from vptsp_core.system.files import writable_folder


@in_torch_defaults
@where_asked
def run(
    config: RunConfig,
    *,
    data: str | Path | None = None,
    results: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
    class_table: str = "auto",
    checkpointing: str = "auto",
    compile: str = "auto",
    deterministic: bool = False,
    progress: bool = True,
    allow_partial: bool = False,
    light: bool = True,
    on_epoch: Callable[[list[Row]], None] | None = None,
    tensorboard: str | Path | None = None,
) -> Run:
    """Train and evaluate, or return the finished run of the same hash; a run that was cut short resumes (`runs.train`).

    Under torchrun all processes call this and share the work; the first writes, where all machines must see it.

    Args:
        config: from `preset` or `RunConfig`.
        data: folder of the data sets; default the environment's VPTSP_DATA. The glyphs need none.
        results: the run goes to ``results/runs/<dataset>-<method>-<hash>``; default VPTSP_RESULTS, else ./results.
        cache: folder of decoded images; default VPTSP_CACHE, else ``.vptsp-cache`` in the data folder; for
            your own images in ``results``.
        device: ``"cpu"``, ``"cuda"``, ...; default a GPU where there is one.
        class_table: where row-wise class prompts are: ``"device"``, ``"host"`` or ``"auto"`` (`place_class_prompts`).
        checkpointing: of gradients, ``"on"``, ``"off"`` or ``"auto"`` (see `Trainer`). Neither changes the numbers.
        compile: the training step, ``"on"``, ``"off"`` or ``"auto"`` (see `compiles`). Sums are then rounded otherwise.
        deterministic: a GPU gives the same numbers twice (`deterministic_algorithms`); on a CPU it changes none.
        allow_partial: accept a data set that is not whole; the run then has its own folder, and its record says so.
        light: whether a finished run whose weights are not kept will do; else it is trained again.
        on_epoch: called after every epoch with the history so far (a finished run that is found trains none).
        tensorboard: after every epoch the history so far is also written there, for TensorBoard, in a folder with the
            run's name.

    Raises:
        VptspError: what the user can fix, in one line; nothing half-written stays behind.
    """
    check_choice("class_table", class_table, ("auto", "device", "host"))
    check_choice("checkpointing", checkpointing, ("auto", "on", "off"))
    check_choice("compile", compile, COMPILE)
    if launched():
        start(pick_device(device))
    config = config.with_whole_path()
    place = data_folder(config.dataset, data)
    if data and not Path(data).expanduser().is_dir():
        raise DataError(f"--data: there is no folder {Path(data).expanduser().absolute()}; check the path")
    path, benchmark = _place(config, place, results, allow_partial)
    if tensorboard is not None:
        on_epoch = Curves(Path(tensorboard).expanduser() / path.name, on_epoch)
    if found := from_main(lambda: finished_run(path, benchmark or _there(config.dataset, place, allow_partial), light)):
        return found
    benchmark = benchmark or _benchmark(config.dataset, place, allow_partial)
    if not len(benchmark.train) and config.method != "frozen":
        raise DataError(f"{benchmark.name}: no images to train on; give some the split train, or take method=frozen")
    target = pick_device(device)
    training, held_out = for_selection(benchmark, config)
    model = build_model(config, training.train.num_classes, target, class_table)
    record = make_record(config, benchmark, model, target)
    if held_out is not None:
        record["held_out"] = {"classes": held_out.test.num_classes, "images": len(held_out.test)}
    first = from_main(lambda: record)
    if (first["data"], first["weights"]) != (record["data"], record["weights"]):
        raise VptspError(f"process {rank()} has other images or weights than the first; give all machines the same")
    from_main(lambda: writable_folder(path))
    try:
        with at_work(path), deaths_named():
            if found := from_main(lambda: finished_run(path, benchmark, light)):  # another process made it meanwhile
                return found
            # Only after all checks: decoding takes minutes.
            stores = cache_folder(config.dataset, place, cache, path.parents[1])
            benchmark = decoded(benchmark, config, stores, progress=progress and is_main())
            begun = time.perf_counter()
            history, stretches, queries, weights = _history(
                config, benchmark, model, path, progress=progress, checkpointing=checkpointing, compile=compile,
                on_epoch=on_epoch,
                stretch=lambda: make_stretch(record, model, time.perf_counter() - begun),
            )  # fmt: skip
            closed = close_record(record, stretches)
            return from_main(lambda: write_run(config, path, pd.DataFrame(history), closed, queries, weights))
    finally:
        end_workers()
        with contextlib.suppress(OSError):
            path.rmdir()  # only where nothing was learned: a checkpoint keeps the folder


def _place(
    config: RunConfig, data: str | None, results: str | Path | None, allow_partial: bool
) -> tuple[Path, Benchmark | None]:
    """A run's folder, and the benchmark if its images are part of the run's identity."""
    images_decide = config.dataset in OWN or allow_partial
    benchmark = _benchmark(config.dataset, data, allow_partial) if images_decide else None
    path = run_folder(config, results, benchmark)
    if config.dataset in OWN and data:
        outside_images(path.parents[1], data, "--results or VPTSP_RESULTS")
    return path, benchmark


def _there(dataset: str, data: str | None, allow_partial: bool) -> Benchmark | None:
    """The images, to compare with a finished run's; None if they are missing: nothing is compared."""
    if data is None:
        return None
    with contextlib.suppress(DataError):
        return _benchmark(dataset, data, allow_partial)
    return None


def _history(
    config: RunConfig, benchmark: Benchmark, model: MetricModel, path: Path, **options: Any
) -> tuple[list[Row], list[dict[str, Any]], dict[str, np.ndarray], dict[str, Tensor]]:
    """A run's history, stretches, per-query values and weights (see `Trainer`)."""
    lines = bool(options["progress"]) and is_main() and is_log()  # in a terminal the bars are of training alone
    if config.method == "frozen":
        if lines:
            say(f"{path.name}: evaluating the frozen backbone")
        model.vit.autocast = autocast_dtype(
            config.precision, next(model.parameters()).device, model.vit.backbone.embed_dim
        )
        with failures_named(model, "the evaluation"):
            metrics = evaluate(model, benchmark, progress=lines)
        return [{"epoch": 0, **metrics}], [{"after_epochs": 0, **options["stretch"]()}], metrics.queries, {}
    if config.epochs == 0 and config.start == "released":
        raise ConfigError("epochs = 0 trains nothing; use method = 'frozen' for the backbone as it is, or a start")
    benchmark, held_out = for_selection(benchmark, config)
    if held_out is None:
        trainer = Trainer(model, benchmark.train, path, lambda m: evaluate(m, benchmark), **options)
        return trainer.run(), trainer.stretches, trainer.queries, trainer.weights
    trainer = Trainer(model, benchmark.train, path, lambda m: on_held_out(evaluate(m, held_out)), **options)
    history = trainer.run()
    model.load_state_dict(trainer.weights, strict=False)  # of the chosen epoch
    with failures_named(model, "the evaluation"):
        found = evaluate(model, benchmark, progress=lines)
    max(history, key=lambda row: score(row, config.selection)).update(found)  # the first of equals, as in `Trainer`
    trainer.stretches[-1] |= options["stretch"]()
    return history, trainer.stretches, found.queries, trainer.weights


@in_torch_defaults
def build_model(config: RunConfig, num_classes: int, device: torch.device, class_table: str = "auto") -> MetricModel:
    """The model of a run at its start, every random tensor drawn from the run's seed."""
    torch.manual_seed(config.seed)
    backbone = load_backbone(config.backbone, config.weights, config.image_size)
    torch.manual_seed(config.seed)  # again: what starts beside the backbone is the same whatever its weights are
    check_table_memory(config, num_classes, backbone.embed_dim)
    model = MetricModel(config, backbone, num_classes, Processes())
    place_class_prompts(model, device, class_table)
    with failures_named(model, "moving the model there"):
        return model.to(device)


def many(configs: Iterable[RunConfig], *, workers: Workers = None, progress: bool = True, **options: Any) -> list[Run]:
    """`run` of each, side by side where ``workers`` says so; finished ones are found, and none is trained twice.

    A run that fails stops no other. What is cut short resumes by the same call. Numbers are the same to the last bit
    with the same threads a process; another number of threads rounds sums differently.

    Args:
        workers: None: in this process. A number: so many processes of this machine, each with its share of the cores.
            ``"gpus"``: one process a GPU. ``"tcp://HOST:PORT"``: the workers of that Dask cluster, for which data and
            results have the same paths as here.
        options: go to `run`.

    Returns:
        One run a config, in their order.

    Raises:
        VptspError: naming the runs that failed, and why the first did; or the workers cannot be had.
    """
    check_workers(workers)
    configs = list(configs)
    if launched():  # all its processes take the same steps, so that the first failure ends them all
        shown = bar(configs, "runs", show=progress and is_main(), unit="runs")
        return [_one_of_many(config, progress=progress, **options) for config in shown]
    light = bool(options.get("light", True))
    data, results, partial = (options.get(key) for key in ("data", "results", "allow_partial"))
    paths = [_place(each, data_folder(each.dataset, data), results, bool(partial))[0] for each in configs]
    there = functools.cache(lambda dataset: _there(dataset, data_folder(dataset, data), bool(partial)))
    done: dict[Path, Run | VptspError] = {
        path: found
        for path, config in zip(paths, configs, strict=True)
        if (path / METRICS).exists() and (found := finished_run(path, there(config.dataset), light))
    }
    todo = {path: config for path, config in zip(paths, configs, strict=True) if path not in done}
    if workers is not None:  # other processes may have another environment and working directory
        place = data or os.environ.get("VPTSP_DATA") or None
        root = paths[0].parents[1].absolute() if paths else None
        cache = cache_folder(configs[0].dataset if configs else "", place, options.get("cache"), root)
        options |= {"results": root, "cache": cache}
        options |= {"data": Path(place).expanduser().absolute()} if place else {}
        todo = {path: config.with_whole_path() for path, config in todo.items()}
    of_each = progress and (workers is None or is_log())  # bars of several processes would overwrite one another
    work = functools.partial(_one_of_many, progress=of_each, **options)
    done |= share_out(work, todo, workers, progress, already=len(done))
    failed = {path.name: each for path in paths if isinstance(each := done[path], VptspError)}
    if failed:
        name, first = next(iter(failed.items()))
        raise VptspError(f"{len(failed)} of {len(done)} runs failed; the first, {name}: {first}") from first
    return [dataclasses.replace(each, path=path) for path in paths if isinstance(each := done[path], Run)]


def _one_of_many(config: RunConfig, *, data: str | Path | None = None, **options: Any) -> Run:
    """`run`; ``data`` is ignored for the glyphs."""
    return run(config, data=None if config.dataset == "glyphs" else data, **options)


def frame(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a run: every key of its config, every metric, tunable parameters, seconds."""
    rows = []
    for each in runs:
        of_run = {"seconds": each.record["seconds"], "path": str(each.path)}
        rows.append({**each.config.to_dict(), **each.metrics, **each.record["parameters"], **of_run})
    return pd.DataFrame(rows)


def over_seeds(table: pd.DataFrame, by: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    """Mean and half-width of the 95 % interval (Student's t) of ``columns`` over the rows alike in ``by``: a row a
    group, in order of appearance, with each column and ``<column> ±`` (NaN for one seed).
    """
    from scipy.stats import t

    groups = table.groupby(list(by), sort=False)
    out = groups[list(columns)].mean()
    for column in columns:
        count = groups[column].count()
        out[f"{column} ±"] = groups[column].sem() * t.ppf(0.975, (count - 1).clip(lower=1)).reshape(-1)
    out["seeds"] = groups.size()
    return out.reset_index()


def _benchmark(name: str, data: str | None, allow_partial: bool) -> Benchmark:
    return load_benchmark(name, data, allow_partial)
