"""From your own classes and the machine at hand to a run: a preset, what is changed in it, and why.

Nothing here reads a disk, a GPU or an image: the same numbers give the same plan.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from vptsp_core.data.holdout import held_out_classes
from vptsp_core.errors import ConfigError
from vptsp_core.method.class_prompts import MOMENTS
from vptsp_core.method.config import RunConfig, checked_changes
from vptsp_core.method.presets import PRESETS
from vptsp_core.system.bars import amount

DENSE_CLASSES = 1_000  # at most; the released presets are dense up to 100 classes, row-wise from 3,997 on
# In place of the CUB preset's SGD and GRU, which start slowly: ahead after one epoch of CUB at 112 px (README).
QUICK: dict[str, Any] = dict(optimizer="adamw", lr=1e-3, lr_proxy=0.05, accumulator="ema")
EPOCHS = 10  # the model is evaluated and saved so often, whatever the number of images
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
    """A run, and the reasons for it, one line each."""

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
    """The run for these images; what ``changes`` sets holds, and the rest is chosen to fit it.

    Args:
        classes: (C,) images of each class that is not tested, in the order of the labels.
        tested: the number of tested images.
        shape: blocks, width and pixels a side of a patch (`method.backbone.shape`) of the backbone.
        changes: keys of `RunConfig`.

    Raises:
        ConfigError: fewer than two classes to train on, or changes that cannot run.
    """
    given = checked_changes(changes)
    if "dataset" in given or given.get("method") == "frozen":
        key = "dataset" if "dataset" in given else "method"
        raise ConfigError(f"{key} = {given[key]!r} cannot be set for your own images; leave it out")
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


def candidates(config: RunConfig, changes: Mapping[str, Any]) -> dict[str, RunConfig]:
    """The runs among which held-out classes choose, by name: BitFit, the simplest rival, and the plan's VPTSP, with the
    same start, epochs and steps. Epoch 0 of BitFit is the head in closed form.

    Only the plan's own run where a change names the method or a key that BitFit does not read, and where no classes
    are held out.

    Args:
        config: of the plan.
        changes: what the user set.
    """
    bitfit = config.replace(method="linear", bitfit=True)
    settled = changes.keys() & {"method", "bitfit", *bitfit.unread()}
    if config.method != "vptsp" or config.selection != "validation" or settled:
        return {config.method: config}
    return {"BitFit": bitfit, "VPTSP": config}


def _choose_selection(draft: _Draft, classes: np.ndarray) -> np.ndarray:
    """The classes that remain to be trained on."""
    held_out = held_out_classes(classes)
    draft.settle(dataset="own", selection="validation" if held_out.any() else "last")
    selection = draft.values["selection"]
    kept = classes[~held_out] if selection == "validation" else classes
    how = {
        "validation": f"{held_out.sum():,} others choose the epoch",
        "last": "the last epoch is taken",
        "released": "the tested classes choose the epoch, so that the gain looks larger than it is",
    }
    if draft.given.get("epochs") == 0:
        how = {"validation": f"{held_out.sum():,} others are held out"}
    chosen = f"; {how[selection]}" if selection in how else ""
    draft.reasons.append(f"{len(kept):,} classes to learn from{chosen} (selection={selection})")
    return kept


def _choose_preset(draft: _Draft, count: int, machine: Machine, shape: tuple[int, int, int]) -> None:
    depth, width, _ = shape
    small = draft.given.get("backbone") == "demo_vit"
    name = "demo" if small else "cub200-vits16"
    fixed = {"dataset": "own", "selection": draft.values["selection"]}
    draft.settle(**RunConfig().to_dict() | PRESETS[name] | ({} if small else QUICK) | fixed)
    per_class = min(depth, draft.values["class_layers"]) * draft.values["class_prompts"] * width * 4
    kind = {key: draft.values[key] for key in ("method", "proxy_source")}
    has_table = RunConfig(**kind, bitfit=False).has_class_prompts
    large = has_table and 4 * count * per_class > machine.memory / 8  # the table, its gradient and two moments
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
    text = f"preset {name} with optimizer={draft.values['optimizer']}"
    if has_table:
        if draft.values["class_optimizer"] == "rowwise":
            _fit_table(draft, count, machine, width)
        size = amount(count * draft.values["class_layers"] * draft.values["class_prompts"] * width * 4)
        text += f"; class prompts of {size} (class_optimizer={draft.values['class_optimizer']})"
    draft.reasons.append(text)
    if draft.values["start"] != "released":
        some = draft.values["selection"] != "last" and draft.values["epochs"] > 0
        kept = "; where no epoch is better than that, it is kept" * some
        draft.reasons.append(f"learning begins from the frozen backbone's embeddings of your images "
                             f"(start={draft.values['start']}){kept}")  # fmt: skip


def _fit_table(draft: _Draft, count: int, machine: Machine, width: int) -> None:
    """Fewer class prompts, then fewer blocks that have them, until half the memory holds them."""
    most = max(machine.memory, machine.host) / 2 / machine.processes
    a_prompt = (1 + len(MOMENTS[draft.values["optimizer"]])) * count * width * 4  # in one block
    for key in ("class_prompts", "class_layers"):
        while (
            draft.free(key)
            and draft.values[key] > 1
            and a_prompt * draft.values["class_layers"] * draft.values["class_prompts"] > most
        ):
            draft.settle(**{key: draft.values[key] - 1})


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


def _choose_steps(draft: _Draft, kept: np.ndarray, machine: Machine) -> None:
    batch, samples, images = max(draft.values["batch"], 1), draft.values["samples_per_class"], int(kept.sum())
    fewest, most = STEPS[machine.gpu]
    wanted = -(-min(max(PASSES * images // batch, fewest), most) // EPOCHS)  # an epoch
    by_heart = MOST_PASSES * images // batch // EPOCHS
    draft.settle(epochs=EPOCHS, steps_per_epoch=max(min(wanted, by_heart), 1), eval_start=0)
    draft.settle(cosine_T=max(draft.values["epochs"], 1))
    epochs, steps = draft.values["epochs"], draft.values["steps_per_epoch"] or images // batch
    if not epochs:
        if draft.values["start"] == "released":
            raise ConfigError("epochs = 0 with start = 'released' makes no model; set one of them otherwise")
        draft.reasons.append("epochs=0: nothing is trained, the model is its start")
        return
    drawn = epochs * steps * batch / len(kept)  # images of each class
    times = (drawn / kept.max(), drawn / kept.min())
    low, high = (f"{each:.3g}" if each < 1000 else f"{each:,.0f}" for each in times)
    never = f", {kept.max() - drawn:,.0f} of the largest class's {kept.max():,} never" if drawn < kept.max() else ""
    draft.reasons.append(
        f"epochs={epochs} of {steps:,} step(s), batch={batch}: {samples} image(s) of each of "
        f"{batch // max(samples, 1)} classes; classes are drawn equally often, so an image is seen "
        f"{low}{f' to {high}' * (high != low)} times{never}"
    )


def _choose_pipeline(draft: _Draft, images: int, machine: Machine) -> None:
    need = images * 3 * draft.values["resize"] ** 2 * 4 // 3  # photographs are 4 : 3 more often than not
    plain = draft.values["augmentation"] in ("base", "gentle")
    draft.settle(pipeline="cached" if plain and need <= 0.8 * machine.disk else "classic")
    draft.reasons.append(f"pipeline={draft.values['pipeline']}: the decoded images take some {amount(need)}, "
                         f"{amount(machine.disk)} of disk are free")  # fmt: skip
