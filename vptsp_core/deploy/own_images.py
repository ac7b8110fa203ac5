"""A folder of one's own images: planned, trained, and compared with the frozen backbone on unseen classes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from vptsp_core.data import Benchmark, load_benchmark
from vptsp_core.data.batches import cache_folder
from vptsp_core.data.folder import outside_images
from vptsp_core.deploy.own_plan import Machine, Plan, plan
from vptsp_core.deploy.own_words import EQUAL, FEW_QUERIES, UNCLEAR, counted, summary
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.method.backbone import shape
from vptsp_core.method.config import RunConfig, whole_path
from vptsp_core.method.presets import PRESETS
from vptsp_core.method.torch_state import in_torch_defaults
from vptsp_core.runs.folder import Run, run_folder
from vptsp_core.runs.run import run
from vptsp_core.runs.significance import against
from vptsp_core.system.devices import pick_device
from vptsp_core.system.distributed import from_main, launched, local_size, start, world_size
from vptsp_core.system.files import write_json
from vptsp_core.system.locks import locked
from vptsp_core.system.portable import available_memory
from vptsp_core.system.seals import sealed, unsealed

SUMMARY = "own_images.json"  # in the run's folder: the plan's reasons, the comparison, the text
METRICS = ("R@1", "MAP@R")


@dataclass(frozen=True)
class Trained:
    """What `train_folder` made.

    Attributes:
        run: the trained model's; ``frozen``: the same backbone as it came.
        gain: a row a metric, in percent points: ``frozen``, ``trained``, ``difference``, ``low`` and ``high`` of its
            95 % interval over the queries, ``queries``, how many have something to be found, and ``verdict``, "better",
            "worse", "equal" on every query, or "cannot be told", where the interval holds 0 or rests on few queries.
        summary: all that in words.
    """

    run: Run
    frozen: Run
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
    """Train on the images of a folder, and find out what that gained.

    The first call writes its plan to ``results/plans``, so that the same call goes on with the same run although the
    memory that is free is another by then.

    Args:
        folder: ``<class>/<image>`` or ``split.csv`` (see `data.own.own_images`).
        changes: keys of `RunConfig` that hold whatever is planned.
        say: told the plan before, and the summary after the training.
        options: as all others, go to `run`.

    Raises:
        VptspError: whatever the user can mend, in one line.
    """
    folder, changes = Path(folder).expanduser(), dict(changes or {})
    if isinstance(weights := changes.get("weights"), str):
        changes["weights"] = whole_path(weights)
    if launched():
        start(pick_device(device))  # the first process plans for all
    benchmark = load_benchmark("own", folder, allow_partial)
    planned = from_main(lambda: _planned(benchmark, folder, changes, results, cache, device))
    kept = f"{counted(benchmark.test.num_classes, 'class')} of {counted(len(benchmark.test), 'image')}"
    say("\n".join([f"{kept} are kept for testing", *planned.reasons]))
    config = planned.config
    config.warn_unread(changes)
    options |= dict(data=folder, results=results, cache=cache, device=device, allow_partial=allow_partial)
    frozen = run(config.replace(method="frozen", bitfit=False), **options)
    trained = run(config, **options)
    gain = compare(frozen, trained)
    text = summary(frozen, trained, gain, benchmark.test.num_classes)
    record = {"reasons": planned.reasons, "frozen": frozen.path.name, "gain": gain.to_dict("index"), "summary": text}
    from_main(lambda: write_json(trained.path / SUMMARY, record))
    say(text)
    return Trained(trained, frozen, gain, text)


def _planned(
    benchmark: Benchmark, folder: Path, changes: dict[str, Any], results: Any, cache: Any, device: str | None
) -> Plan:
    """The plan of an earlier call with these images, changes and kind of device, or a new one, which is kept."""
    target = pick_device(device)
    known = json.dumps([benchmark.fingerprint(), changes, target.type], sort_keys=True)
    root = run_folder(RunConfig(dataset="own"), results, benchmark).parents[1]
    outside_images(root, folder, "--results or VPTSP_RESULTS")
    path = root / "plans" / f"own-{hashlib.sha256(known.encode()).hexdigest()[:12]}.json"
    if not path.exists():
        with locked(path.with_name(f".{path.stem}.lock")):  # processes that begin at once get one plan
            if not path.exists():
                return _new_plan(benchmark, cache_folder("own", folder, cache, root), path, changes, target)
    try:
        kept = unsealed(dict(json.loads(path.read_text())))
        return Plan(RunConfig.from_dict(kept["config"]), tuple(map(str, kept["reasons"])))
    except (OSError, ValueError, KeyError, TypeError, RecursionError, ConfigError) as error:
        raise VptspError(f"{path}: no plan can be read ({error}); delete the file") from error


def _new_plan(benchmark: Benchmark, cache: Path, path: Path, changes: dict[str, Any], target: torch.device) -> Plan:
    """A plan from what is free now, which is written to ``path``."""
    backbone = changes.get("backbone", PRESETS["cub200-vits16"]["backbone"])
    classes = np.bincount(benchmark.train.labels)
    made = plan(classes, len(benchmark.test), machine(target, cache), shape(backbone), changes)
    write_json(path, sealed({"config": made.config.to_dict(), "reasons": made.reasons}))
    return made


def machine(device: torch.device, cache: Path) -> Machine:
    """What is free now, on this machine, for a run on ``device`` that decodes images into the folder ``cache``."""
    host = available_memory()
    gpu = device.type == "cuda"
    there = next((place for place in (cache.absolute(), *cache.absolute().parents) if place.exists()), Path.cwd())
    memory = float(torch.cuda.mem_get_info(device)[0]) if gpu else host / local_size()
    disk = shutil.disk_usage(there).free if os.access(there, os.W_OK) else 0
    return Machine(gpu, memory, host, disk, world_size())


def compare(frozen: Run, trained: Run) -> pd.DataFrame:
    """`Trained.gain` of two runs on the same queries.

    Raises:
        DataError: they were tested on other queries.
        WeightsError: one lacks a metric.
    """
    for each in (frozen, trained):
        if missing := [metric for metric in METRICS if metric not in each.metrics]:
            fault = f"{missing[0]!r} is missing; delete the folder and run it again"
            raise WeightsError(f"{each.path / 'metrics.json'}: {fault}")
    found = against([frozen, trained], ["frozen", "trained"], "frozen", METRICS)
    rows = {}
    for metric in METRICS:
        columns = found[metric][["difference", "low", "high"]]
        # rounded, so that a sum's error is no difference; - 0 is 0
        difference, low, high = (columns.loc["trained"].to_numpy(dtype=np.float64).round(9) + 0.0).tolist()
        queries = int(np.isfinite((trained.queries or {}).get(metric, ())).sum())
        verdict = "better" if low > 0 else "worse" if high < 0 else UNCLEAR
        verdict = EQUAL if low == high == 0 else UNCLEAR if queries < FEW_QUERIES else verdict
        before = {name: 100 * each.metrics[metric] for name, each in (("frozen", frozen), ("trained", trained))}
        rows[metric] = {**before, "difference": difference, "low": low, "high": high}
        rows[metric] |= {"queries": queries, "verdict": verdict}
    return pd.DataFrame.from_dict(rows, orient="index")
