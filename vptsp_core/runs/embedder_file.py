"""A trained model in files: the folder of its run, or one safetensors file with only the learned tensors.

The file has the tensors of `MetricModel.learned_state`, without those that only training uses. Its header has JSON
under one key: the run's config, hash and metrics, the backbone's timm name, a checksum of its frozen weights, and how
images are prepared. Reading a file executes nothing and checks everything: header and tensors by their checksums
(`vptsp_core.system.seals`), the config by `RunConfig`, names and shapes by the model, and the backbone by its checksum.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from vptsp_core.data.loading import interpolation_name
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.method.backbone import load_backbone, normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel
from vptsp_core.method.weights_file import read_weights
from vptsp_core.runs.folder import WEIGHTS, identity, learned_weights, read_run, whole_path
from vptsp_core.runs.record import checksum
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import VERSION
from vptsp_core.system.seals import sealed, unsealed

FORMAT, HEADER = 2, "vptsp_embedder"  # version of the header, and its key
ONLY_TRAINING = ("proxies.", "class_prompts.", "vit.proxy_head.")


@dataclass(eq=False)
class TrainedModel:
    """A trained model, and the facts about its run that are saved with it.

    Attributes:
        model: in eval mode. A model from `load` has no proxy tower, so ``model.config.method`` can differ from
            ``config.method``.
        config: of the run that made the model.
        run: the hash of that run, or None if no run made the model.
        metrics: of that run (`Run.metrics`).
        data: the images of that run, as in its record (`Benchmark.record`).
        path: the run's folder or the file from which the model was loaded, if any.
    """

    model: MetricModel = field(repr=False)
    config: RunConfig
    run: str | None
    metrics: Mapping[str, float]
    data: Mapping[str, Any] | None
    path: Path | None


@dataclass(frozen=True)
class Saved:
    """A trained model as it was read.

    If it comes from a run's folder, ``frozen`` and ``preprocessing`` are None, and ``backbone`` is the checksum of the
    backbone before training. Otherwise ``backbone`` is None.
    """

    path: Path
    config: RunConfig
    learned: dict[str, Tensor]
    run: str | None
    metrics: dict[str, float]
    data: dict[str, Any] | None
    frozen: str | None = None
    preprocessing: dict[str, Any] | None = None
    backbone: str | None = None


def preprocessing(model: MetricModel) -> dict[str, Any]:
    """Return the parameters of `data.loading.eval_transform`, which makes images into the model's input."""
    config, (mean, std) = model.config, normalisation(model.vit.backbone)
    return {
        "resize": config.resize, "interpolation": interpolation_name(config), "crop": config.image_size,
        "mean": list(mean), "std": list(std),
    }  # fmt: skip


def exact_names(model: MetricModel) -> set[str]:
    """Return the names of the tensors that decide the embeddings and are the same bits on every machine.

    Position embeddings that were resampled to another image size are left out, because machines round them differently.
    """
    rounded = "vit.backbone.pos_embed" if _resampled(model) else None
    return {name for name in model.state_dict() if not name.startswith(ONLY_TRAINING) and name != rounded}


def _resampled(model: MetricModel) -> bool:
    """Return whether position embeddings were resampled to another image size."""
    own = (getattr(model.vit.backbone, "pretrained_cfg", None) or {}).get("input_size")
    return own is not None and own[-1] != model.config.image_size and model.config.method != "full"


def write_embedder(path: Path, trained: TrainedModel, config: RunConfig) -> None:
    """Write the learned tensors of ``trained``, with ``config`` in the header.
    Raises VptspError: the suffix is not .safetensors, the file cannot be written, or `TrainStep` has rounded the frozen
    weights of the model.
    """
    if path.suffix != ".safetensors":
        raise VptspError(f"{path}: an embedder is a .safetensors file; give the file that suffix")
    model = trained.model
    if any(each.dtype in (torch.float16, torch.bfloat16) for each in model.vit.backbone.parameters()):
        raise VptspError(
            f"{path}: TrainStep has rounded the frozen weights of this model; load its learned_state() into a new "
            "MetricModel, and save that"
        )
    learned = {
        name: value.detach().cpu().contiguous()
        for name, value in model.learned_state(for_retrieval=True).items()
        if not name.startswith(ONLY_TRAINING)
    }
    header = {
        "format": FORMAT,
        "vptsp_core": VERSION,
        "config": config.to_dict(),
        "run": trained.run,
        "metrics": trained.metrics,
        "data": trained.data,
        "backbone": config.backbone,
        "frozen": _frozen(model),
        "preprocessing": preprocessing(model),
    }
    write_bytes(path, safetensors.torch.save(learned, {HEADER: json.dumps(sealed(header, learned))}))


def read_saved(path: Path) -> Saved:
    """Read a run's folder or an embedder's file. Raises WeightsError: it is neither, or it is damaged."""
    if path.is_file():
        return _read_file(path)
    run = read_run(path)
    learned = learned_weights(path, run.record)
    record = run.record
    return Saved(path, run.config, learned, record["hash"], run.metrics, record["data"], backbone=record["weights"])


def _read_file(path: Path) -> Saved:
    text, learned = None, {}
    if path.suffix == ".safetensors":
        learned = read_weights(path)
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    if text is None:
        raise WeightsError(f"{path} is not a saved embedder; give a run's folder, or a file from `Embedder.save`")
    try:
        header = unsealed(json.loads(text), learned)
        if header["format"] != FORMAT:
            raise ValueError(f"format {header['format']} is not known here")
        config = RunConfig.from_dict(header["config"])
    except (ConfigError, KeyError, ValueError, TypeError, RecursionError) as error:
        fault = f"damaged, or of another version ({error})"
        raise WeightsError(f"{path}: {fault}; get the file again, or save it again from its run") from error
    kept = {key: header[key] for key in ("run", "metrics", "data", "frozen", "preprocessing")}
    return Saved(path, config, learned, **kept)


def rebuild(saved: Saved, weights: str | Path | None = None) -> MetricModel:
    """Build the model on the CPU, in eval mode, without the tensors that only training uses.

    ``weights`` is the backbone's file, if it was moved.
    Raises WeightsError: the backbone is missing or is another one, or the tensors do not fit the config.
    """
    config = saved.config
    if config.method == "full":  # the file has the whole backbone
        if weights is not None:
            warnings.warn(f"weights {weights}: not read, because {saved.path} has its whole backbone", stacklevel=3)
        config = config.replace(weights="random")
    elif weights is not None or config.weights not in ("pretrained", "random"):
        config = config.replace(weights=str(_weights_file(saved, weights)))
    # The method is changed so that no class prompts and no proxy tower are built.
    slim = config
    if config.method == "vptsp":
        slim = config.replace(method="vpt" if config.prompts and config.prompt_layers else "linear")
    classes = len(saved.learned["proxies.bias"]) if "proxies.bias" in saved.learned else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # weights = "random" are drawn from the run's seed
        model = MetricModel(slim, load_backbone(config.backbone, config.weights, config.image_size), classes)
    _check_tensors(saved, model)
    if _other_backbone(saved, model, given=weights is not None):
        raise WeightsError(
            f"{saved.path}: the weights of {config.backbone} ({config.weights}) are not those it was trained on; "
            "give their file with weights=FILE"
        )
    if saved.preprocessing is not None and saved.preprocessing != preprocessing(model):
        raise WeightsError(
            f"{saved.path}: this version of timm or vptsp_core prepares images differently ({preprocessing(model)}) "
            f"than the version that saved it ({saved.preprocessing}); use that version"
        )
    model.load_state_dict(saved.learned, strict=False)
    return model.eval()


def _other_backbone(saved: Saved, model: MetricModel, given: bool) -> bool:
    """Return whether the backbone is not that of the training. ``given`` says whether the caller named its file."""
    if saved.frozen is not None:
        return saved.frozen != _frozen(model)
    if model.config.method == "full":  # the folder has the whole backbone
        return False
    return (given or not _resampled(model)) and saved.backbone != checksum(model.vit.backbone)


def _check_tensors(saved: Saved, model: MetricModel) -> None:
    """Raise WeightsError if names or shapes of the tensors do not fit the model."""
    wanted, learned = model.learned_state(), saved.learned
    if saved.frozen is not None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith(ONLY_TRAINING)}
    wrong = sorted(wanted.keys() ^ (learned.keys() - {"proxies.state"}))
    wrong += [key for key in sorted(wanted.keys() & learned.keys()) if wanted[key].shape != learned[key].shape]
    if wrong:
        where = saved.path / WEIGHTS if saved.frozen is None else saved.path
        raise WeightsError(f"{where}: {wrong[0]} does not fit the config; get the file again, or train the run again")


def _weights_file(saved: Saved, weights: str | Path | None) -> Path:
    """Return the backbone's file: the given one, the path in the config, or a file of that name beside the model."""
    named = Path(whole_path(saved.config.weights))
    beside = saved.path.parent / PureWindowsPath(saved.config.weights).name  # understands paths of any system
    places = [named, beside] if weights is None else [Path(whole_path(str(weights)))]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise WeightsError(
            f"{saved.path}: its backbone's weights are not at {places[0]}; say where they are with weights=FILE, "
            "in a command with --weights FILE"
        )
    named_file = saved.config.weights not in ("pretrained", "random")
    if saved.frozen is None and named_file and saved.run != identity(saved.config.replace(weights=str(file))):
        raise WeightsError(f"{saved.path}: {file} is not the file it was trained on; give that with weights=FILE")
    return file


def _frozen(model: MetricModel) -> str:
    """Return the checksum of the tensors that the file does not have."""
    learned = model.learned_state().keys()
    return checksum(model, exact_names(model) - learned)
