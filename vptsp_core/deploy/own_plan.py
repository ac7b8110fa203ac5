"""Plan a run on your own images: choose a preset, and change it to fit the classes and the machine.

Nothing here reads a disk, a GPU or an image: the same numbers give the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vptsp_core.data.holdout import held_out_classes
from vptsp_core.errors import ConfigError
from vptsp_core.method.class_prompts import MOMENTS
from vptsp_core.method.config import RunConfig, checked_changes
from vptsp_core.method.presets import PRESETS
from vptsp_core.system.bars import amount

# With more classes, class prompts are row-wise. The released presets are dense up to 100, row-wise from 3,997 on.
DENSE_CLASSES = 1_000
# These replace the CUB preset's SGD and GRU, which learn slowly at first. After one epoch of CUB at 112 px, a run with
# these settings has a higher R@1 than one with the preset's.
QUICK: dict[str, Any] = dict(optimizer="adamw", lr=1e-3, lr_proxy=0.05, accumulator="ema")
BITFIT = "BitFit"  # the name of a candidate
EPOCHS = 10  # each is evaluated and saved, so their number does not depend on the number of images
PASSES = 15  # over the training images, as in the CUB preset, within these bounds:
STEPS = {True: (600, 20_000), False: (200, 600)}  # fewest and most, with a GPU and without
MOST_PASSES = 100  # this limit overrides the fewest steps: more passes only memorise a handful of images
MOST_SAMPLES = 8  # images of one class in a batch, if there are too few classes to fill it
STEP_BYTES = 100  # per image, token, channel and block, both towers in float32 (99 measured: ViT-Ti/16, 224 px)


@dataclass(frozen=True)
class Machine:
    """The parts of a machine that a run may use.

    Attributes:
        gpu: whether the run computes on a GPU.
        memory: free bytes where each process computes: on its GPU, or its share of the host's memory.
        host: free bytes of the host's memory.
        disk: free bytes for the decoded images.
        processes: the number of processes.
    """

    gpu: bool
    memory: float
    host: float
    disk: float
    processes: int = 1


@dataclass(frozen=True)
class Plan:
    """A run, and what was chosen for it as lines of text."""

    config: RunConfig
    reasons: tuple[str, ...]


def plan(
    classes: np.ndarray, tested: int, machine: Machine, shape: tuple[int, int, int], changes: dict[str, Any]
) -> Plan:
    """Choose the run for these images. Keys in ``changes`` keep their values, and the others are chosen to fit them.

    Args:
        classes: (C,) number of images of each class that is not tested, in the order of the labels.
        tested: the number of tested images.
        shape: blocks, width and patch side in pixels (`method.backbone.shape`) of the backbone.

    Raises:
        ConfigError: there are fewer than two classes to train on, or the changes cannot run.
    """
    given = checked_changes(changes)
    if "dataset" in given or given.get("method") == "frozen":
        key = "dataset" if "dataset" in given else "method"
        raise ConfigError(f"{key} = {given[key]!r} cannot be set for your own images; leave it out")
    if len(classes) < 2:
        raise ConfigError(f"own images: {len(classes)} class(es) to train on, at least 2 are needed; add classes")
    held_out = held_out_classes(classes)
    fixed = {"dataset": "own", "selection": "validation_map" if held_out.any() else "last"} | given
    if not RunConfig(selection=fixed["selection"]).holds_out:
        held_out[:] = False
    trained = classes[~held_out]
    name, keys = _choose_preset(fixed, len(trained), machine, shape)
    keys |= _choose_batch(keys, given, trained, machine, shape) | given
    keys |= _choose_steps(keys, trained, machine) | given
    keys |= {"cosine_T": max(keys["epochs"], 1)} | given
    decoded = (int(classes.sum()) + tested) * 3 * keys["resize"] ** 2 * 4 // 3  # most photographs are 4 : 3
    plain = keys["augmentation"] in ("base", "gentle")
    keys |= {"pipeline": "cached" if plain and decoded <= 0.8 * machine.disk else "classic"} | given
    config = RunConfig(**keys)
    steps, samples = config.steps_per_epoch or int(trained.sum()) // config.batch, config.samples_per_class
    of_vptsp = f", class_prompts={config.class_prompts}, class_optimizer={config.class_optimizer}"
    has_vptsp = any(each.has_class_prompts for each in candidates(config, given).values())
    reasons = [
        f"{len(trained):,} classes to learn from, {held_out.sum():,} held out (selection={config.selection})",
        f"preset {name}, optimizer={config.optimizer}, start={config.start}{of_vptsp if has_vptsp else ''}",
        f"epochs={config.epochs} of {steps:,} step(s), batch={config.batch}: {samples} image(s) of each of "
        f"{config.batch // samples} classes",
        f"pipeline={config.pipeline}: the decoded images take {amount(decoded)}, {amount(machine.disk)} of disk are "
        "free",
    ]
    if given:
        reasons.append(f"as you set: {', '.join(f'{key}={value}' for key, value in given.items())}")
    return Plan(config, tuple(reasons))


def candidates(config: RunConfig, changes: Mapping[str, Any]) -> dict[str, RunConfig]:
    """Return the runs, by name, among which the held-out classes choose: BitFit and the plan's VPTSP.

    Both have the same start, epochs and steps. If no classes are held out, BitFit is the only one: on small folders
    both were equally good, and it is cheaper (docs/measured.md). If ``changes`` (what the user set) name the method, a
    key that only VPTSP reads, or ``bitfit=False``, the plan's own run is the only one.
    """
    bitfit = config.replace(method="linear", bitfit=True)
    settled = not config.bitfit or changes.keys() & ({"method"} | (bitfit.unread().keys() - config.unread().keys()))
    if config.method != "vptsp" or settled:
        return {config.method: config}
    return {BITFIT: bitfit, "VPTSP": config} if config.holds_out else {BITFIT: bitfit}


def _choose_preset(
    fixed: dict[str, Any], count: int, machine: Machine, shape: tuple[int, int, int]
) -> tuple[str, dict[str, Any]]:
    """Return a preset's name, and its keys with those that depend on the backbone; ``fixed`` keys keep their values."""
    depth, width, _ = shape
    small = fixed.get("backbone") == "demo_vit"
    name = "demo" if small else "cub200-vits16"
    keys = RunConfig().to_dict() | PRESETS[name] | ({} if small else QUICK) | fixed
    kind = {key: keys[key] for key in ("method", "proxy_source")}
    has_table = RunConfig(**kind, bitfit=False).has_class_prompts
    table = count * min(depth, keys["class_layers"]) * keys["class_prompts"] * width * 4
    too_large = has_table and 4 * table > machine.memory / 8  # the table, its gradient and two moments
    if count > DENSE_CLASSES or too_large:
        name = name if small else "sop-vits16"
        keys = RunConfig().to_dict() | PRESETS[name] | {"class_optimizer": "rowwise"} | fixed
    layers = {key: min(depth, keys[key]) for key in ("prompt_layers", "class_layers", "adapter_layers")}
    resize = keys["image_size"] if small else round(keys["image_size"] * 8 / 7)
    keys |= layers | dict(embed_dim=min(width, 512), resize=resize, bitfit=keys["method"] != "full") | fixed
    keys |= {"start": "proxies" if keys["embed_dim"] <= width else "released"} | fixed
    if has_table and keys["class_optimizer"] == "rowwise":
        # fewer class prompts, then fewer blocks that have them, until half the memory holds them
        most = max(machine.memory, machine.host) / 2 / machine.processes
        a_prompt = (1 + len(MOMENTS[keys["optimizer"]])) * count * width * 4  # in one block
        for key in ("class_prompts", "class_layers"):
            while key not in fixed and keys[key] > 1 and a_prompt * keys["class_layers"] * keys["class_prompts"] > most:
                keys[key] -= 1
    return name, keys


def _choose_batch(
    keys: dict[str, Any], given: dict[str, Any], trained: np.ndarray, machine: Machine, shape: tuple[int, int, int]
) -> dict[str, int]:
    """Return the preset's batch and images per class, or fewer if the memory or the classes require it."""
    depth, width, patch = shape
    batch, samples = keys["batch"], keys["samples_per_class"]
    adapts = "samples_per_class" not in given
    if "batch" in given:
        fitting = [k for k in range(1, batch + 1) if batch % k == 0 and batch // k <= len(trained)]
        return {"samples_per_class": min(fitting, key=lambda k: abs(k - samples), default=1)}
    image = STEP_BYTES * (keys["image_size"] // patch) ** 2 * width * depth
    room = int(machine.memory / 2 // image) * machine.processes if image else batch
    batch = max(min(batch, room), 2)
    median = int(np.median(trained))
    if adapts:
        samples = min(samples, median)
    classes = max(min(len(trained), batch // max(samples, 1)), 1)
    if classes > machine.processes:
        classes -= classes % machine.processes
    if adapts:
        samples = max(samples, min(batch // classes, median, MOST_SAMPLES))
    return {"batch": classes * samples, "samples_per_class": samples}


def _choose_steps(keys: dict[str, Any], trained: np.ndarray, machine: Machine) -> dict[str, int]:
    batch, images = max(keys["batch"], 1), int(trained.sum())
    fewest, most = STEPS[machine.gpu]
    wanted = -(-min(max(PASSES * images // batch, fewest), most) // EPOCHS)  # per epoch
    memorised = MOST_PASSES * images // batch // EPOCHS
    return {"epochs": EPOCHS, "steps_per_epoch": max(min(wanted, memorised), 1), "eval_start": 0}
