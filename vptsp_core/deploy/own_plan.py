"""From one's own classes and the machine at hand to a run: a preset, what is changed in it, and why.

Nothing here looks at a disk, a GPU or an image: the same numbers give the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vptsp_core.data.holdout import held_out_classes
from vptsp_core.errors import ConfigError
from vptsp_core.method.class_prompts import MOMENTS
from vptsp_core.method.config import RunConfig, checked_changes
from vptsp_core.method.presets import PRESETS
from vptsp_core.system.bars import amount

DENSE_CLASSES = 1_000  # most of them; the released presets are dense up to 100 classes, row-wise from 3,997 on
# In place of the CUB preset's SGD and GRU, which start slowly: ahead after one epoch of CUB at 112 px (README).
QUICK: dict[str, Any] = dict(optimizer="adamw", lr=1e-3, lr_proxy=0.05, accumulator="ema")
EPOCHS = 10  # so often the model is judged and saved, whatever the number of images
PASSES = 15  # over the training images, as in the CUB preset, within these bounds:
STEPS = {True: (600, 20_000), False: (200, 600)}  # fewest and most, with a GPU and without
MOST_PASSES = 100  # whatever the fewest steps: a handful of images is only learned by heart
MOST_SAMPLES = 8  # images of a class in a batch, where there are too few classes to fill it
STEP_BYTES = 100  # an image, token, channel and block, both towers in float32 (99 measured: ViT-Ti/16, 224 px)


@dataclass(frozen=True)
class Machine:
    """What a run may use: bytes where each process computes, of host memory, of disk; the number of processes."""

    gpu: bool
    memory: float
    host: float
    disk: float
    processes: int = 1


@dataclass(frozen=True)
class Plan:
    """A run, and why it is so, one line each."""

    config: RunConfig
    reasons: tuple[str, ...]


@dataclass
class _Draft:
    """A plan in the making: what the user gave stays."""

    given: dict[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)

    def settle(self, **values: Any) -> None:
        self.values |= {**values, **self.given}

    def free(self, *keys: str) -> bool:
        return not self.given.keys() & set(keys)


def plan(
    classes: np.ndarray, tested: int, machine: Machine, shape: tuple[int, int, int], changes: dict[str, Any]
) -> Plan:
    """The run for these images; what ``changes`` says holds, and the rest is chosen to fit it.

    Args:
        classes: (C,) images of each class that is not tested on, in the order of the labels.
        tested: images that are.
        shape: blocks, width and pixels a side of a patch (`method.backbone.shape`) of the backbone.
        changes: keys of `RunConfig`.

    Raises:
        ConfigError: fewer than two classes to train on, or changes that cannot run.
    """
    given = checked_changes(changes)
    if "dataset" in given or given.get("method") == "frozen":
        key = "dataset" if "dataset" in given else "method"
        raise ConfigError(f"{key} = {given[key]!r} cannot be set for one's own images; leave it out")
    if len(classes) < 2:
        raise ConfigError(f"own images: {len(classes)} class(es) to train on, at least 2 are needed; add classes")
    draft = _Draft(given)
    kept = _choose_selection(draft, classes)
    _choose_preset(draft, len(kept), machine, shape)
    _choose_batch(draft, kept, machine, shape)
    _choose_steps(draft, kept, machine)
    _choose_pipeline(draft, int(classes.sum()) + tested, machine)
    if given:
        draft.reasons.append(f"as you set: {', '.join(f'{key}={value}' for key, value in given.items())}")
    return Plan(RunConfig(**draft.values), tuple(draft.reasons))


def _choose_selection(draft: _Draft, classes: np.ndarray) -> np.ndarray:
    """The classes that remain to be trained on."""
    held_out = held_out_classes(classes)
    draft.settle(dataset="own", selection="validation" if held_out.any() else "last")
    selection = draft.values["selection"]
    kept = classes[~held_out] if selection == "validation" else classes
    few = "" if held_out.any() else ", too few classes of two or more images to choose by others"
    how = {
        "validation": f"{held_out.sum():,} others choose the epoch",
        "last": f"the last epoch is taken{few}",
        "released": "the tested classes choose the epoch, so that the gain looks larger than it is",
    }
    if draft.given.get("epochs") == 0:
        draft.reasons.append(f"the start is made of {len(kept):,} classes")
    else:
        draft.reasons.append(f"{len(kept):,} classes are trained on; {how[selection]} (selection={selection})")
    return kept


def _choose_preset(draft: _Draft, count: int, machine: Machine, shape: tuple[int, int, int]) -> None:
    depth, width, _ = shape
    small = draft.given.get("backbone") == "demo_vit"
    name = "demo" if small else "cub200-vits16"
    fixed = {"dataset": "own", "selection": draft.values["selection"]}
    draft.settle(**RunConfig().to_dict() | PRESETS[name] | ({} if small else QUICK) | fixed)
    per_class = min(depth, draft.values["class_layers"]) * draft.values["class_prompts"] * width * 4
    kind = {key: draft.values[key] for key in ("method", "proxy_source")}
    table = RunConfig(**kind, bitfit=False).has_class_prompts
    large = table and 4 * count * per_class > machine.memory / 8  # the table, its gradient and two moments
    if count > DENSE_CLASSES or large:
        name = name if small else "sop-vits16"
        draft.settle(**RunConfig().to_dict() | PRESETS[name] | {"class_optimizer": "rowwise"} | fixed)
    for key in ("prompt_layers", "class_layers", "adapter_layers"):
        draft.settle(**{key: min(depth, draft.values[key])})
    draft.settle(embed_dim=min(width, 512))
    draft.settle(start="proxies" if draft.values["embed_dim"] <= width else "released")
    image_size = draft.values["image_size"]
    draft.settle(resize=image_size if small else round(image_size * 8 / 7))
    draft.settle(bitfit=draft.values["method"] != "full")
    text = []
    if table and draft.values["class_optimizer"] == "rowwise":
        reason = f" (more than {DENSE_CLASSES:,} classes)" if count > DENSE_CLASSES else " (little memory)"
        reason *= draft.free("class_optimizer")
        text += [f"class prompts learn row by row{reason}, {amount(_fit_table(draft, count, machine, width))} of them, "
                 f"{draft.values['class_prompts']} a class in {draft.values['class_layers']} blocks"]  # fmt: skip
    elif table:
        text += [f"class prompts learn as one table of {amount(count * per_class)}"]
    elif count > DENSE_CLASSES and not small:
        text += [f"for more than {DENSE_CLASSES:,} classes"]
    if name == "cub200-vits16" and draft.free("optimizer", "accumulator"):
        semantic = draft.values["method"] == "vptsp"  # the others have no accumulator
        text += ["AdamW and a running average in place of SGD and GRU, which start slowly" if semantic else
                 "AdamW in place of SGD, which starts slowly"]  # fmt: skip
    draft.reasons.append(f"preset {name}{': ' * bool(text)}{'; '.join(text)}")
    if draft.values["start"] != "released":
        chosen = "; where no epoch is better than that, it is kept" * (draft.values["selection"] != "last")
        draft.reasons.append(f"learning begins from what the frozen backbone makes of your images "
                             f"(start={draft.values['start']}){chosen}")  # fmt: skip


def _fit_table(draft: _Draft, count: int, machine: Machine, width: int) -> int:
    """Fewer class prompts, then fewer blocks that have them, until half the memory holds them; the bytes they take."""
    most = max(machine.memory, machine.host) / 2 / machine.processes
    tables = 1 + len(MOMENTS[draft.values["optimizer"]])

    def size() -> int:
        return tables * count * draft.values["class_layers"] * draft.values["class_prompts"] * width * 4

    for key in ("class_prompts", "class_layers"):
        while draft.free(key) and draft.values[key] > 1 and size() > most:
            draft.settle(**{key: draft.values[key] - 1})
    return size()


def _choose_batch(draft: _Draft, kept: np.ndarray, machine: Machine, shape: tuple[int, int, int]) -> None:
    depth, width, patch = shape
    wanted, samples = draft.values["batch"], draft.values["samples_per_class"]
    median = int(np.median(kept))
    if draft.free("batch"):
        image = STEP_BYTES * (draft.values["image_size"] // patch) ** 2 * width * depth
        room = int(machine.memory / 2 // image) * machine.processes if image else wanted
        wanted = max(min(wanted, room), 2)
        if draft.free("samples_per_class"):
            samples = min(samples, median)
        classes = max(min(len(kept), wanted // max(samples, 1)), 1)
        classes -= classes % machine.processes if classes > machine.processes else 0
        if draft.free("samples_per_class"):
            samples = max(samples, min(wanted // classes, median, MOST_SAMPLES))
        draft.settle(batch=classes * samples, samples_per_class=samples)
    elif draft.free("samples_per_class"):
        fitting = [k for k in range(1, wanted + 1) if wanted % k == 0 and wanted // k <= len(kept)]
        draft.settle(samples_per_class=min(fitting, key=lambda k: abs(k - samples), default=1))
    batch, samples = draft.values["batch"], draft.values["samples_per_class"]
    if draft.given.get("epochs") == 0:
        return
    draft.reasons.append(
        f"batch={batch}: {samples} image(s) of each of {batch // max(samples, 1)} classes; classes have "
        f"{int(kept.min()):,} to {int(kept.max()):,} images, {median:,} in the middle"
    )


def _choose_steps(draft: _Draft, kept: np.ndarray, machine: Machine) -> None:
    batch, images = max(draft.values["batch"], 1), int(kept.sum())
    fewest, most = STEPS[machine.gpu]
    wanted = -(-min(max(PASSES * images // batch, fewest), most) // EPOCHS)  # an epoch
    by_heart = MOST_PASSES * images // batch // EPOCHS
    draft.settle(epochs=EPOCHS, steps_per_epoch=max(min(wanted, by_heart), 1), eval_start=0)
    draft.settle(cosine_T=max(draft.values["epochs"], 1))
    epochs, a_step = draft.values["epochs"], draft.values["steps_per_epoch"] or images // batch
    if not epochs:
        draft.reasons.append("epochs=0 (as you set): nothing is trained, the model is its start")
        return
    drawn = epochs * a_step * batch / len(kept)  # images of each class
    often, rarely = (f"{drawn / size:.3g}" for size in (kept.min(), kept.max()))
    why = f"{fewest:,} to {most:,} steps with {'a GPU' if machine.gpu else 'no GPU'}"
    if wanted > by_heart:
        why = f"at most {MOST_PASSES} passes" if by_heart else "one step an epoch at least"
    if set_by_user := [key for key in ("epochs", "steps_per_epoch") if not draft.free(key)]:
        why = f"{' and '.join(set_by_user)} as you set"
    turns = f"each image comes {often} times" if often == rarely else (
        f"an image of the largest class comes {rarely} times, of the smallest {often} times"
    )  # fmt: skip
    draft.reasons.append(f"epochs={epochs} of {a_step:,} step{'s' * (a_step != 1)} ({why}): classes are drawn equally "
                         f"often, so {turns} on average")  # fmt: skip


def _choose_pipeline(draft: _Draft, images: int, machine: Machine) -> None:
    need = images * 3 * draft.values["resize"] ** 2 * 4 // 3  # photographs are 4 : 3 more often than not
    plain = draft.values["augmentation"] in ("base", "gentle")
    draft.settle(pipeline="cached" if plain and need <= 0.8 * machine.disk else "classic")
    does = {"cached": "are decoded once", "classic": "are decoded each time they are drawn"}[draft.values["pipeline"]]
    draft.reasons.append(f"the images {does} (pipeline={draft.values['pipeline']}); decoded they take some "
                         f"{amount(need)}, {amount(machine.disk)} of disk are free")  # fmt: skip
