"""Train on a folder of your own images, and compare with the frozen backbone on classes that were not trained on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vptsp_core.data import Benchmark, load_benchmark
from vptsp_core.data.batches import cache_folder
from vptsp_core.data.folder import refuse_inside_images
from vptsp_core.deploy.own_plan import BITFIT, Machine, Plan, candidates, plan
from vptsp_core.errors import ConfigError, VptspError, check_choice
from vptsp_core.method.backbone import shape
from vptsp_core.method.config import RunConfig, checked_changes
from vptsp_core.method.presets import PRESETS
from vptsp_core.method.torch_state import torch_defaults
from vptsp_core.runs.folder import Run, whole_path
from vptsp_core.runs.memory import CLASS_TABLES
from vptsp_core.runs.run import run
from vptsp_core.runs.selection import HELD_OUT, SCORES
from vptsp_core.runs.significance import compare_paired
from vptsp_core.system.deterministic import fix_cublas
from vptsp_core.system.devices import free_gpu_memory, pick_device
from vptsp_core.system.distributed import from_main, launched, local_size, start, world_size
from vptsp_core.system.files import write_json
from vptsp_core.system.locks import locked
from vptsp_core.system.places import results_folder
from vptsp_core.system.portable import available_memory

METRICS = ("R@1", "MAP@R")
CLOSED = "closed form"  # the name of the state before training, with heads and proxies from the data and no prompts
FEW_QUERIES = 30  # with fewer, the interval means little and the summary gives none
UNCLEAR = "could be chance"  # the interval of a difference includes 0
TOO_LITTLE = "too little tested"  # there is no interval
OUTCOMES = {
    "better": "The model is better than the frozen backbone",
    "worse": "The model is WORSE than the frozen backbone, so use the frozen backbone",
    UNCLEAR: "The model does not clearly differ from the frozen backbone",
    TOO_LITTLE: "Too little is tested to say whether the model is better than the frozen backbone",
}
EXPLAINED = """In percent. R@1: queries whose nearest neighbour is of their own class. MAP@R: 100 if all images of a
query's class are ranked first."""
COVERS = "The 95 % interval covers other classes of the same kind."
FEW_CLASSES = 10
FEW = f"Under {FEW_CLASSES} tested classes say little: add classes, or name more of them as test in a split.csv."


@dataclass(frozen=True)
class Trained:
    """What `train_folder` returns.

    Attributes:
        run: the run of the trained model.
        frozen: the run of the same backbone, untrained.
        choice: one row for the closed form and one per run of `own_plan.candidates`: ``R@1`` and ``MAP@R`` of the
            held-out classes in percent, at the best ``epoch``, and the run's ``minutes``. A run that is best before
            its training (epoch 0) cannot be chosen. Empty if there was one run.
        gain: one row per metric: ``frozen`` and ``trained`` in percent, ``difference`` in percentage points, ``low``
            and ``high`` of its 95 % interval (NaN without one), ``queries`` (the number of queries that have a value;
            MAP@R has none for a class of one image), and ``verdict``: "better", "worse", "could be chance" or "too
            little tested".
        summary: the comparison as text.
    """

    run: Run
    frozen: Run
    choice: pd.DataFrame
    gain: pd.DataFrame
    summary: str


@torch_defaults()
def train_folder(
    folder: str | Path,
    changes: dict[str, Any] | None = None,
    *,
    results: str | Path | None = None,
    cache: str | Path | None = None,
    device: str | None = None,
    allow_partial: bool = False,
    say: Callable[[str], object] = print,
    **options: Any,
) -> Trained:
    """Train on the images of a folder, and measure how much that improves on the frozen backbone.

    BitFit and VPTSP are both trained. The MAP@R of held-out classes chooses one of them, or the closed form, which is
    BitFit before its first step. `own_plan.candidates` says when only one run is trained. The first call stores its
    plan in ``results/plans``. The same call then resumes the same run, even if the free memory has changed.

    Args:
        folder: holds ``<class>/<image>`` or ``split.csv`` (see `data.own.list_own_images`).
        changes: keys of `RunConfig` that override the plan.
        say: called with the plan before training and with the summary after it.
        options: passed to `run`, like the other arguments.

    Raises:
        ConfigError: ``class_table="host"``, and no planned run has row-wise class prompts.
        VptspError: something else that the user can fix, in one line (see `run` and `own_plan.plan`).
    """
    check_choice("class_table", options.get("class_table", "auto"), CLASS_TABLES)
    if options.get("deterministic"):
        fix_cublas(device)  # before the plan, which starts CUDA
    folder, changes = Path(folder).expanduser().absolute(), checked_changes(changes or {})
    if "weights" in changes:
        changes["weights"] = whole_path(changes["weights"])
    if launched():
        start(pick_device(device))  # the first process plans for all
    benchmark = load_benchmark("own", folder, allow_partial)
    planned = from_main(lambda: _read_or_make_plan(benchmark, folder, changes, results, cache, device))
    rivals = candidates(planned.config, changes)
    rowwise = any(each.has_class_prompts and each.class_optimizer == "rowwise" for each in rivals.values())
    if options.get("class_table") == "host" and not rowwise:
        raise ConfigError(
            "class table on the host: no planned run has row-wise class prompts; leave --class-table out, or add --set "
            "class_optimizer=rowwise, which trains VPTSP alone"
        )
    kept = f"{benchmark.test.num_classes:,} classes ({len(benchmark.test):,} images) are kept for testing"
    say("\n".join([kept, *planned.reasons, f"to train: {' and '.join(rivals)}"]))
    planned.config.warn_unread(changes)
    # A light run is trained again, because the summary says how to load the model.
    options |= dict(data=folder, results=results, cache=cache, device=device, allow_partial=allow_partial, light=False)
    without_table = options | dict(class_table="auto")  # frozen and BitFit would refuse a place for class prompts
    frozen = run(planned.config.replace(method="frozen", bitfit=False), **without_table)
    runs = {
        name: run(config, **(options if config.has_class_prompts else without_table)) for name, config in rivals.items()
    }
    choice = compare_candidates(runs) if len(runs) > 1 else pd.DataFrame()
    chosen = str(eligible(choice)["MAP@R"].idxmax()) if len(choice) else next(iter(runs))
    trained = runs[BITFIT if chosen == CLOSED else chosen]
    gain = compare(frozen, trained)
    text = summary(frozen, trained, gain, benchmark.test.num_classes)
    if len(choice):
        table = choice.to_string(float_format="{:.1f}".format, na_rep="")
        held_out = trained.record["held_out"]["classes"]
        text = f"The held-out classes choose {chosen}: {lead(choice, held_out)}\n{table}\n\n{text}"
    say(text)
    return Trained(trained, frozen, choice, gain, text)


def compare_candidates(runs: Mapping[str, Run]) -> pd.DataFrame:
    """Return `Trained.choice` of these runs, by name, the cheapest first.

    Without prompts, a start from the data is the closed form: a row of its own, in place of BitFit's epoch 0. If R@1
    chooses the epochs, BitFit has one row, which is the closed form if epoch 0 is the best.
    """
    rows = {}
    for name, each in runs.items():
        chosen_by, history = SCORES[each.config.selection], each.history
        parts = [(name, history, each.record["seconds"] / 60)]
        if name == BITFIT and each.config.selection == "validation_map":
            untrained = history["epoch"] == 0
            parts = [(name, history[untrained], np.nan), (name, history[~untrained], parts[0][2])]
        for row, epochs, minutes in parts:
            if epochs[chosen_by].notna().any():
                best = epochs.iloc[int(np.nanargmax(epochs[chosen_by]))]  # the first of equals, as the run chose
                metrics = {metric: 100 * best[HELD_OUT + metric] for metric in METRICS}
                label = CLOSED if row == BITFIT and best["epoch"] == 0 else row
                rows[label] = metrics | {"epoch": round(best["epoch"]), "minutes": minutes}
    return pd.DataFrame.from_dict(rows, orient="index")


def eligible(choice: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `Trained.choice` that can be chosen: the closed form, and what training has improved."""
    return choice[(choice["epoch"] > 0) | (choice.index == CLOSED)]


def lead(choice: pd.DataFrame, classes: int) -> str:
    """Say how far the best row of `Trained.choice` is above the second best. Both are rounded first, as in the table.

    ``classes`` is the number of held-out classes.
    """
    ranked = eligible(choice)["MAP@R"].sort_values(ascending=False, kind="stable").round(1)
    if len(ranked) == 1:
        compared = "training improves nothing"
    elif ranked.iloc[0] == ranked.iloc[1]:
        compared = f"its MAP@R equals that of {ranked.index[1]} to 0.1"
    else:
        ahead = ranked.iloc[0] - ranked.iloc[1]
        compared = f"its MAP@R is {ahead:.1f} above that of {ranked.index[1]}, the second best"
    few = ", so few that this can be chance" if classes < FEW_CLASSES else ""
    left_out = "".join(
        f" {name} is best before its training, so it is not chosen." for name in choice.index.difference(ranked.index)
    )
    return f"{compared} ({classes} held-out classes{few}).{left_out}"


def _read_or_make_plan(
    benchmark: Benchmark, folder: Path, changes: dict[str, Any], results: Any, cache: Any, device: str | None
) -> Plan:
    """Return the stored plan of these images, changes, kind of device and number of processes; make it if missing."""
    target, several = pick_device(device), [world_size()] if world_size() > 1 else []
    known = json.dumps([benchmark.fingerprint(), changes, target.type, *several], sort_keys=True)
    root = results_folder(results)
    refuse_inside_images(root, folder, "--results or VPTSP_RESULTS")
    path = root / "plans" / f"own-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"
    with locked(path.with_name(f".{path.stem}.lock")):  # processes that start at the same time get one plan
        if not path.exists():
            backbone = changes.get("backbone", PRESETS["cub200-vits16"]["backbone"])
            free = machine(target, cache_folder("own", folder, cache, root))
            made = plan(np.bincount(benchmark.train.labels), len(benchmark.test), free, shape(backbone), changes)
            write_json(path, {"config": made.config.to_dict(), "reasons": made.reasons})
    try:
        kept = dict(json.loads(path.read_text("utf-8")))
        return Plan(RunConfig.from_dict(kept["config"]), tuple(map(str, kept["reasons"])))
    except (OSError, ValueError, KeyError, TypeError, VptspError) as error:
        raise VptspError(f"{path}: no plan can be read ({error}); delete the file") from error


def machine(device: torch.device, cache: Path) -> Machine:
    """Return what is free now on this machine, for a run on ``device`` that decodes images into ``cache``."""
    host = available_memory()
    existing = next((place for place in (cache, *cache.parents) if place.exists()), Path.cwd())
    memory = float(free_gpu_memory(device)) if device.type == "cuda" else host / local_size()
    disk = shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
    return Machine(device.type != "cpu", memory, host, disk, world_size())


def compare(frozen: Run, trained: Run) -> pd.DataFrame:
    """Return `Trained.gain` of two runs on the same queries."""
    paired = compare_paired([frozen, trained], ["frozen", "trained"], "frozen", METRICS)
    rows = {}
    for metric in METRICS:
        low, high = paired[metric].loc["trained", ["low", "high"]].tolist()
        queries = int(np.isfinite(trained.queries[metric]).sum())
        verdict = "better" if low > 0 else "worse" if high < 0 else UNCLEAR
        before, after = (100 * each.metrics[metric] for each in (frozen, trained))
        rows[metric] = {
            "frozen": before, "trained": after, "difference": after - before, "low": low, "high": high,
            "queries": queries, "verdict": TOO_LITTLE if queries < FEW_QUERIES or np.isnan(low) else verdict,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def _interval(queries: int, low: float, high: float) -> str:
    """Return the interval of a row of `Trained.gain` as text, or why it has none."""
    if queries < FEW_QUERIES:
        return f"none: under {FEW_QUERIES} queries"
    return "none: one class" if np.isnan(low) else f"[{low:+.2f}, {high:+.2f}]"


def summary(frozen: Run, trained: Run, gain: pd.DataFrame, classes: int) -> str:
    """Return the comparison as a table, a sentence that says whether the model is better, and how to use the model."""
    shown = gain[["frozen", "trained", "difference", "verdict"]].copy()
    limits = zip(gain["queries"], gain["low"], gain["high"], strict=True)
    shown.insert(3, "95 % interval", [_interval(*each) for each in limits])
    formats = {"frozen": "{:.1f}".format, "trained": "{:.1f}".format, "difference": "{:+.2f}".format}
    decisive = gain.to_dict("index")["MAP@R"]
    kept = f"epoch {round(trained.metrics['epoch'])} of {trained.config.epochs} is kept"
    kept += "" if trained.config.start == "released" else ", epoch 0 is the start"
    lines = [
        f"{gain['queries'].max():,} queries of {classes:,} classes, none of them trained on:",
        shown.to_string(formatters=formats),
        EXPLAINED,
        *([COVERS] if shown["95 % interval"].str.startswith("[").any() else []),
        *([FEW] if classes < FEW_CLASSES else []),
        f"{OUTCOMES[decisive['verdict']]}: MAP@R {decisive['difference']:+.2f} ({kept}).",
    ]
    if trained.config.selection == "released" and trained.config.epochs:
        lines.append("The epoch was chosen on these very queries, so the trained numbers are optimistic.")
    lines += [
        f"The frozen backbone is in {frozen.path}.",
        f"The model is in {trained.path}. To use it:",
        "  from vptsp_core import load",
        f'  embeddings = load({str(trained.path)!r}).embed(["image.jpg"])',
    ]
    return "\n".join(lines)
