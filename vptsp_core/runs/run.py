"""Runs: each is trained once, and found by its hash afterwards."""

from __future__ import annotations

import contextlib
import functools
import os
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from vptsp_core.data import OWN, Benchmark, data_folder, load_benchmark
from vptsp_core.data.batches import cache_folder, decoded
from vptsp_core.data.folder import refuse_inside_images
from vptsp_core.data.holdout import for_selection
from vptsp_core.data.loading import end_workers, worker_errors
from vptsp_core.errors import ConfigError, DataError, VptspError, check_choice
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.config import RunConfig
from vptsp_core.method.loop import Row
from vptsp_core.method.metrics import Scores
from vptsp_core.method.model import MetricModel
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.compile import COMPILE
from vptsp_core.runs.curves import Curves
from vptsp_core.runs.evaluate import evaluate
from vptsp_core.runs.folder import CLASS, METRICS, Run, finished_run, run_folder, whole_path, write_run
from vptsp_core.runs.memory import CLASS_TABLES, check_table_memory, memory_errors, place_class_prompts
from vptsp_core.runs.progress import locked_run
from vptsp_core.runs.record import close_record, make_record, part_of_run
from vptsp_core.runs.selection import HELD_OUT, score
from vptsp_core.runs.train import Trainer, make_sampler
from vptsp_core.runs.workers import Workers, attempt, check_workers, run_in_workers
from vptsp_core.system.bars import bar, is_log, say
from vptsp_core.system.deterministic import deterministic_algorithms, fix_cublas
from vptsp_core.system.devices import choose_precision, pick_device, trunk_dtype
from vptsp_core.system.distributed import Processes, from_main, is_main, launched, rank, start
from vptsp_core.system.files import writable_folder


@torch_defaults()
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
    """Train and evaluate a run, or return it if it is finished. A run that was cut short resumes (`runs.train`).

    Under torchrun all processes call this and share the work. The first one writes the results, to a folder that all
    machines must see.

    Args:
        config: from `preset` or `RunConfig`. Its hash identifies the run.
        data: folder of the data sets; default: the environment variable VPTSP_DATA. The glyphs need none.
        results: the run's folder is ``results/runs/<dataset>-<method>-<hash>``; default: VPTSP_RESULTS or ./results.
        cache: folder of decoded images; default: VPTSP_CACHE or ``.vptsp-cache`` in the data folder. For your own
            images, the default is in ``results``.
        device: ``"cpu"``, ``"cuda"``, ...; default: a GPU if there is one.
        class_table: where row-wise class prompts are kept: ``"device"``, ``"host"`` or ``"auto"``
            (`place_class_prompts`). It does not change the numbers.
        checkpointing: gradient checkpointing ``"on"``, ``"off"`` or ``"auto"`` (`Trainer`). It does not change the
            numbers.
        compile: compile the training step: ``"on"``, ``"off"`` or ``"auto"`` (`compiles`). Compiled steps round sums
            differently.
        deterministic: make a GPU give the same numbers twice (`deterministic_algorithms`). A CPU always does.
        progress: show bars, or write lines in a log.
        allow_partial: accept an incomplete data set. The run then has another folder, and its record says so.
        light: accept a finished run without weights. Otherwise it is trained again.
        on_epoch: called after every epoch with the history so far. If the run is finished already, it is not called.
        tensorboard: a folder. After every epoch the history is written for TensorBoard, to the run's subfolder. What
            is known only at the end (a frozen backbone, test metrics after held-out selection) and finished runs are
            written only by the command ``train --tensorboard``.

    Raises:
        VptspError: something that the user can fix, in one line. No half-written files stay.
    """
    check_choice("class_table", class_table, CLASS_TABLES)
    check_choice("checkpointing", checkpointing, ("auto", "on", "off"))
    check_choice("compile", compile, COMPILE)
    if deterministic:
        fix_cublas(device)  # before CUDA starts
    if launched():
        start(pick_device(device))
    config = config.replace(weights=whole_path(config.weights))
    folder = data_folder(config.dataset, data)
    if data and not Path(data).expanduser().is_dir():
        raise DataError(f"--data: there is no folder {Path(data).expanduser().absolute()}; check the path")
    path, benchmark = _path_and_images(config, folder, results, allow_partial)
    curves = None if tensorboard is None else Curves(Path(tensorboard).expanduser() / path.name, on_epoch)
    if benchmark is None and (path / METRICS).exists():
        benchmark = _images_to_compare(config.dataset, folder, allow_partial)
    if finished := from_main(lambda: finished_run(path, benchmark, light)):
        return finished
    benchmark = benchmark or load_benchmark(config.dataset, folder, allow_partial)
    if not len(benchmark.train) and config.method != "frozen":
        raise DataError(f"{benchmark.name}: no images to train on; give some the split train, or take method=frozen")
    if config.epochs == 0 and config.start == "released" and config.method != "frozen":
        raise ConfigError("epochs = 0 trains nothing; take method = 'frozen', or start = 'heads', 'proxies' or 'all'")
    target = pick_device(device)
    training, held_out = for_selection(benchmark, config)
    if config.method != "frozen" and config.epochs:
        make_sampler(config, training.train)  # refuses now what would fail after the images are decoded
    model = build_model(config, training.train.num_classes, target, class_table)
    record = make_record(config, benchmark, model, target, deterministic)
    if held_out is not None:
        record["held_out"] = {"classes": held_out.test.num_classes, "images": len(held_out.test)}
    first = from_main(lambda: record)
    if (first["data"], first["weights"]) != (record["data"], record["weights"]):
        raise VptspError(f"process {rank()} has other images or weights than the first; give all machines the same")
    from_main(lambda: writable_folder(path))
    settings = deterministic_algorithms(device) if deterministic else contextlib.nullcontext()
    try:
        with settings, locked_run(path), worker_errors():
            if finished := from_main(lambda: finished_run(path, benchmark, light)):  # by another process meanwhile
                return finished
            # As late as possible, because decoding takes minutes.
            stores = cache_folder(config.dataset, folder, cache, results)
            benchmark = decoded(benchmark, config, stores, progress=progress and is_main())
            begun = time.perf_counter()
            history, parts, queries, weights = _train_and_evaluate(
                config, benchmark, model, path, progress=progress, checkpointing=checkpointing, compile=compile,
                on_epoch=curves or on_epoch, part=lambda: part_of_run(record, model, time.perf_counter() - begun),
            )  # fmt: skip
            closed = close_record(record, parts)
            queries = {CLASS: benchmark.test.labels, **queries}
            return from_main(lambda: write_run(config, path, pd.DataFrame(history), closed, queries, weights))
    finally:
        end_workers()
        if curves is not None:
            curves.close()
        with contextlib.suppress(OSError):
            path.rmdir()  # does nothing if there is a checkpoint


def _path_and_images(
    config: RunConfig, data: str | None, results: str | Path | None, allow_partial: bool
) -> tuple[Path, Benchmark | None]:
    """Return a run's folder, and the benchmark if the folder's name depends on the images."""
    needed = config.dataset in OWN or allow_partial
    benchmark = load_benchmark(config.dataset, data, allow_partial) if needed else None
    path = run_folder(config, results, benchmark)
    if config.dataset in OWN and data:
        refuse_inside_images(path.parents[1], data, "--results or VPTSP_RESULTS")
    return path, benchmark


def _images_to_compare(dataset: str, data: str | None, allow_partial: bool) -> Benchmark | None:
    """Return the images, to compare them with those of a finished run; warn and return None if they cannot be used."""
    if data is None:
        return None
    try:
        return load_benchmark(dataset, data, allow_partial)
    except DataError as error:
        warnings.warn(f"finished runs are not compared with these images: {error}", stacklevel=3)
        return None


def _train_and_evaluate(
    config: RunConfig, benchmark: Benchmark, model: MetricModel, path: Path, **options: Any
) -> tuple[list[Row], list[dict[str, Any]], dict[str, np.ndarray], dict[str, Tensor]]:
    """Return a run's history, the descriptions of its parts, per-query values and weights (see `Trainer`)."""
    lines = bool(options["progress"]) and is_main() and is_log()  # in a terminal only the training has bars

    def test_scores() -> Scores:
        with memory_errors("the evaluation"):
            return evaluate(model, benchmark, progress=lines)

    if config.method == "frozen":
        if lines:
            say(f"{path.name}: evaluating the frozen backbone")
        device, width = next(model.parameters()).device, model.vit.backbone.embed_dim
        precision = from_main(lambda: choose_precision(config.precision, device, width))
        model.vit.autocast = trunk_dtype(precision)
        metrics = test_scores()
        part = {"after_epochs": 0, "precision": precision, **options["part"]()}
        return [{"epoch": 0, **metrics}], [part], metrics.queries, {}
    training, held_out = for_selection(benchmark, config)
    if held_out is None:
        trainer = Trainer(model, training.train, path, lambda m: evaluate(m, benchmark), **options)
        return trainer.run(), trainer.parts, trainer.queries, trainer.weights

    def on_held_out(model: MetricModel) -> Row:
        return {HELD_OUT + name: value for name, value in evaluate(model, held_out).items()}

    trainer = Trainer(model, training.train, path, on_held_out, **options)
    history = trainer.run()
    model.load_state_dict(trainer.weights, strict=False)  # of the chosen epoch
    metrics = test_scores()
    max(history, key=lambda row: score(row, config.selection)).update(metrics)  # the first of equals, as in `Trainer`
    trainer.parts[-1] |= options["part"]()
    return history, trainer.parts, metrics.queries, trainer.weights


@torch_defaults()
def build_model(config: RunConfig, num_classes: int, device: torch.device, class_table: str = "auto") -> MetricModel:
    """Return a run's model before training, with all random tensors drawn from the run's seed.

    Raises:
        WeightsError: the backbone's weights are missing, cannot be read, or do not fit.
        ConfigError: the config does not fit the backbone, or ``class_table`` is "host" without a row-wise table.
        TrainingError: the model does not fit into the device's memory.
        VptspError: this machine's memory cannot hold the class prompts.
    """
    with memory_errors("making the model"):
        torch.manual_seed(config.seed)
        backbone = load_backbone(config.backbone, config.weights, config.image_size)
        torch.manual_seed(config.seed)  # again, so that the other tensors do not depend on the backbone's weights
        check_table_memory(config, num_classes, backbone.embed_dim)
        model = MetricModel(config, backbone, num_classes, Processes())
        place_class_prompts(model, device, class_table)
        return model.to(device)


def many(configs: Iterable[RunConfig], *, workers: Workers = None, progress: bool = True, **options: Any) -> list[Run]:
    """Call `run` for each config, and return the runs in this order. Equal configs are trained once.

    If a run fails, the others continue; but a missing file of weights or folder of your own images is an error before
    any of them. The same call resumes runs that were cut short. Processes with the same number of threads give the
    same numbers to the last bit; another number of threads rounds sums differently.

    Args:
        workers: None: train in this process, one run after another. A number: train in this many processes of this
            machine, each with its share of the cores. ``"gpus"``: one process per GPU. ``"tcp://HOST:PORT"``: the
            workers of this Dask cluster, where data and results must have the same paths as here.
        progress: show a bar of the runs.
        options: for `run`.

    Raises:
        VptspError: runs failed, and the message says how many and why the first one did; or the workers cannot be used.
    """
    workers = check_workers(workers)
    configs = list(configs)
    if launched():  # torchrun's processes share each run, and the first failure ends them all
        if options.get("deterministic"):
            fix_cublas(options.get("device"))  # before the group starts CUDA
        start(pick_device(options.get("device")))  # before `is_main`
        shown = bar(configs, "runs", show=progress and is_main(), unit="runs")
        return [_one_of_many(config, progress=progress, **options) for config in shown]
    light = bool(options.get("light", True))
    data, results, partial = (options.get(key) for key in ("data", "results", "allow_partial"))
    paths = [_path_and_images(each, data_folder(each.dataset, data), results, bool(partial))[0] for each in configs]
    images = functools.cache(lambda name: _images_to_compare(name, data_folder(name, data), bool(partial)))
    done: dict[Path, Run | VptspError] = {}
    for path, config in zip(paths, configs, strict=True):
        if path not in done and (path / METRICS).exists():
            found = attempt(functools.partial(finished_run, path, light=light), images(config.dataset))
            if found:
                done[path] = found
    todo = {path: config for path, config in zip(paths, configs, strict=True) if path not in done}
    if todo and workers is not None:  # other processes may have another environment and working directory
        folder = data or os.environ.get("VPTSP_DATA") or None
        root = paths[0].parents[1]
        options |= {"results": root, "cache": cache_folder(configs[0].dataset, folder, options.get("cache"), root)}
        options |= {"data": Path(folder).expanduser().absolute()} if folder else {}
        todo = {path: config.replace(weights=whole_path(config.weights)) for path, config in todo.items()}
    of_each = progress and (workers is None or is_log())  # bars of several processes would overwrite each other
    work = functools.partial(_one_of_many, progress=of_each, **options)
    done |= run_in_workers(work, todo, workers, progress, already=len(done))
    failed = {path.name: each for path in paths if isinstance(each := done[path], VptspError)}
    if failed:
        name, first = next(iter(failed.items()))
        raise VptspError(f"{len(failed)} of {len(done)} runs failed; the first, {name}: {first}") from first
    return [each for path in paths if isinstance(each := done[path], Run)]


def _one_of_many(config: RunConfig, *, data: str | Path | None = None, **options: Any) -> Run:
    """Call `run`, without ``data`` for the glyphs."""
    return run(config, data=None if config.dataset == "glyphs" else data, **options)
