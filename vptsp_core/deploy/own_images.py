"""A folder of your own images: planned, trained, and compared with the frozen backbone on classes not trained on."""

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
from vptsp_core.data.folder import outside_images
from vptsp_core.deploy.own_plan import Machine, Plan, candidates, plan
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.method.backbone import shape
from vptsp_core.method.config import RunConfig, whole_path
from vptsp_core.method.presets import PRESETS
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.folder import Run, run_folder
from vptsp_core.runs.progress import LOCK
from vptsp_core.runs.run import run
from vptsp_core.runs.selection import HELD_OUT
from vptsp_core.runs.significance import bootstrap, compare_paired
from vptsp_core.system.devices import pick_device
from vptsp_core.system.distributed import from_main, launched, local_size, start, world_size
from vptsp_core.system.files import write_json
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import available_memory

SUMMARY = "own_images.json"  # in the run's folder: the plan's reasons, the comparison, the text
METRICS = ("R@1", "MAP@R")
FEW_QUERIES = 30  # with fewer, the interval means little and none is given
UNCLEAR = "not told apart by chance"  # a difference whose interval holds 0, or that rests on few queries
EXPLAINED = """R@1: of 100 query images, how many have a picture of their own class as nearest neighbour.
MAP@R: how far up all pictures of a query's class are ranked; 100 if they all come first.
[]: the middle 95 % over queries drawn anew; other images of these classes could show that."""


@dataclass(frozen=True)
class Trained:
    """What `train_folder` made.

    Attributes:
        run: the trained model's; ``frozen``: that of the same backbone, untrained.
        choice: a row a candidate (`own_plan.candidates`): ``R@1`` and ``MAP@R`` of the held-out classes in percent, at
            the ``epoch`` that they chose, and ``minutes``; empty where there was one candidate.
        gain: a row a metric, in percent points: ``frozen``, ``trained``, ``difference``, ``low`` and ``high`` of its
            95 % interval over the queries, ``queries``, how many have something to be found, and ``verdict``, "better",
            "worse" or "not told apart by chance", where the interval holds 0 or rests on few queries.
        summary: all that as text.
    """

    run: Run
    frozen: Run
    choice: pd.DataFrame
    gain: pd.DataFrame
    summary: str


@in_torch_defaults
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
    """Train on the images of a folder what suits them best, and measure what that gained.

    BitFit and VPTSP are trained alike, and the MAP@R of held-out classes chooses between them (`own_plan.candidates`).

    The first call writes its plan to ``results/plans``, so that the same call resumes the same run although another
    amount of memory is free by then.

    Args:
        folder: ``<class>/<image>`` or ``split.csv`` (see `data.own.own_images`).
        changes: keys of `RunConfig` that hold whatever is planned.
        say: is given the plan before, and the summary after the training.
        options: as all others, go to `run`.
    """
    folder, changes = Path(folder).expanduser().absolute(), dict(changes or {})
    if isinstance(weights := changes.get("weights"), str):
        changes["weights"] = whole_path(weights)
    if launched():
        start(pick_device(device))  # the first process plans for all
    benchmark = load_benchmark("own", folder, allow_partial)
    planned = from_main(lambda: _planned(benchmark, folder, changes, results, cache, device))
    tested = benchmark.test.num_classes
    config = planned.config
    rivals = candidates(config, changes)
    both = [f"{' and '.join(rivals)} are trained alike, and the held-out classes choose one"] * (len(rivals) > 1)
    kept = f"{tested:,} classes ({len(benchmark.test):,} images) are kept for testing"
    say("\n".join([kept, *planned.reasons, *both]))
    config.warn_unread(changes)
    options |= dict(data=folder, results=results, cache=cache, device=device, allow_partial=allow_partial)
    frozen = run(config.replace(method="frozen", bitfit=False), **options)
    runs = {name: run(each, **options) for name, each in rivals.items()}
    choice = compare_candidates(runs)
    chosen = str(choice["MAP@R"].idxmax()) if len(choice) else next(iter(runs))
    trained = runs[chosen]
    gain = compare(frozen, trained)
    text = summary(frozen, trained, gain, tested)
    if len(choice):
        text = f"{choice_text(choice, trained.record['held_out'])}\n\n{text}"
    record = {
        "reasons": planned.reasons, "frozen": frozen.path.name, "choice": choice.to_dict("index"),
        "gain": gain.to_dict("index"), "summary": text,
    }  # fmt: skip
    from_main(lambda: _write_summary(trained.path, record))
    say(text)
    return Trained(trained, frozen, choice, gain, text)


def compare_candidates(runs: Mapping[str, Run]) -> pd.DataFrame:
    """`Trained.choice` of these runs, by name."""
    if len(runs) < 2:
        return pd.DataFrame()
    rows = {}
    for name, each in runs.items():
        place = int(each.history[f"{HELD_OUT}R@1"].to_numpy().argmax())  # the first of equals, as the run chose
        best = each.history.iloc[place]
        metrics = {metric: 100 * best[HELD_OUT + metric] for metric in METRICS}
        rows[name] = metrics | {"epoch": round(best["epoch"]), "minutes": each.record["seconds"] / 60}
    return pd.DataFrame.from_dict(rows, orient="index")


def choice_text(choice: pd.DataFrame, held_out: Mapping[str, int]) -> str:
    """The candidates as a table, and one sentence that says which is taken, and by how much it is ahead."""
    first, second = choice["MAP@R"].sort_values(ascending=False, kind="stable").index[:2]
    ahead = choice["MAP@R"][first] - choice["MAP@R"][second]
    why = f"its MAP@R is {ahead:.1f} above that of {second}" if ahead else f"its MAP@R is that of {second}"
    shown = choice.to_string(formatters={"R@1": "{:.1f}".format, "MAP@R": "{:.1f}".format, "minutes": "{:.1f}".format})
    return (
        f"{held_out['images']:,} images of {held_out['classes']:,} held-out classes choose the method by MAP@R "
        f"(epoch 0 is the start):\n{shown}\n{first} is taken: {why}."
    )


def _write_summary(path: Path, record: dict[str, Any]) -> None:
    """Under the run's lock: who gets that deletes temporary files, those of a living writer too."""
    with locked(path / LOCK):
        write_json(path / SUMMARY, record)


def _planned(
    benchmark: Benchmark, folder: Path, changes: dict[str, Any], results: Any, cache: Any, device: str | None
) -> Plan:
    """The plan of an earlier call with these images, changes and kind of device, or a new one, which is stored."""
    target = pick_device(device)
    known = json.dumps([benchmark.fingerprint(), changes, target.type], sort_keys=True)
    root = run_folder(RunConfig(dataset="own"), results, benchmark).parents[1]
    outside_images(root, folder, "--results or VPTSP_RESULTS")
    path = root / "plans" / f"own-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"
    with locked(path.with_name(f".{path.stem}.lock")):  # processes that begin at once get one plan
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
    """What is free now, on this machine, for a run on ``device`` that decodes images into the folder ``cache``."""
    host = available_memory()
    nvidia = device.type == "cuda"
    existing = next((place for place in (cache, *cache.parents) if place.exists()), Path.cwd())
    memory = float(torch.cuda.mem_get_info(device)[0]) if nvidia else host / local_size()
    disk = shutil.disk_usage(existing).free if os.access(existing, os.W_OK) else 0
    return Machine(device.type != "cpu", memory, host, disk, world_size())


def compare(frozen: Run, trained: Run) -> pd.DataFrame:
    """`Trained.gain` of two runs on the same queries. Raises WeightsError where one lacks a metric."""
    for each in (frozen, trained):
        if missing := [metric for metric in METRICS if metric not in each.metrics]:
            fault = f"{missing[0]!r} is missing; delete the folder and run it again"
            raise WeightsError(f"{each.path / 'metrics.json'}: {fault}")
    paired = compare_paired([frozen, trained], ["frozen", "trained"], "frozen", METRICS)
    rows = {}
    for metric in METRICS:
        columns = paired[metric][["difference", "low", "high"]]
        difference, low, high = (columns.loc["trained"].to_numpy(np.float64).round(9) + 0.0).tolist()  # -0 is 0
        queries = int(np.isfinite((trained.queries or {}).get(metric, ())).sum())
        clear = queries >= FEW_QUERIES and (low > 0 or high < 0)
        rows[metric] = {
            "frozen": 100 * frozen.metrics[metric], "trained": 100 * trained.metrics[metric],
            "difference": difference, "low": low, "high": high, "queries": queries,
            "verdict": UNCLEAR if not clear else "better" if low > 0 else "worse",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def summary(frozen: Run, trained: Run, gain: pd.DataFrame, classes: int) -> str:
    """The comparison as a table, one sentence that says whether training helped, and how to use the model."""
    queries = len((trained.queries or {}).get("R@1", ()))
    rows = {"frozen": {metric: _value(frozen, metric) for metric in METRICS}}
    for _, row in trained.history.query("epoch == 0").reindex(columns=list(METRICS)).dropna().iterrows():
        rows["start, from your images"] = {metric: f"{100 * row[metric]:.1f}" for metric in METRICS}
    rows["trained"] = {metric: _value(trained, metric) for metric in METRICS}
    rows["trained - frozen"] = {
        str(metric): f"{row['difference']:+.2f}" + f" [{row['low']:+.2f}, {row['high']:+.2f}]" * _enough(row["queries"])
        for metric, row in gain.iterrows()
    }
    few = "" if _enough(queries) else f"; under {FEW_QUERIES}, so no intervals are given"
    lines = [
        f"{queries:,} queries (classes: {classes:,}, none of them trained on{few}):",
        pd.DataFrame.from_dict(rows, orient="index").to_string(),
        EXPLAINED,
        _sentence(trained, gain["verdict"]),
    ]
    if trained.config.selection == "released" and trained.config.epochs:
        lines.append("The epoch was chosen on these very queries, so the trained numbers are optimistic.")
    lines += [
        f"The frozen backbone is in {frozen.path}.",
        f"The model is in {trained.path}. To use it:",
        "  from vptsp_core import load",
        f'  embeddings = load("{trained.path}").embed(["image.jpg"])',
    ]
    return "\n".join(lines)


def _enough(queries: float) -> bool:
    return queries >= FEW_QUERIES


def _value(one: Run, metric: str) -> str:
    """A metric in percent, with its interval over the queries."""
    values = np.asarray((one.queries or {}).get(metric, ()), np.float64)
    values = values[np.isfinite(values)]
    text = f"{100 * one.metrics[metric]:.1f}"
    if not _enough(len(values)):
        return text
    low, high = (float(bound[0]) for bound in bootstrap(100 * values[:, None]))
    return f"{text} [{low:.1f}, {high:.1f}]"


def _sentence(trained: Run, verdicts: pd.Series) -> str:
    """Whether training helped."""
    epoch, epochs = round(trained.metrics["epoch"]), trained.config.epochs
    better, worse = "better" in set(verdicts), "worse" in set(verdicts)
    if not epochs:
        what = "Nothing was trained (epochs=0): the model is its start"
    elif epoch == 0:
        what = "Training did not help: no epoch was better than the start from your images, which is kept"
    else:
        who = "Training" if trained.config.start == "released" else "The start from your images and training"
        does = "helped" if better else "HARMED" if worse else "made no difference that can be told from chance"
        what = f"{who} {does}{' and HARMED' * (better and worse)} (epoch {epoch} of {epochs} is kept)"
    by = "; ".join(f"{metric} is {verdict}" for metric, verdict in verdicts.items())
    return f"{what}. Beside the frozen backbone, {by}{': use the frozen one' * (worse and not better)}."
