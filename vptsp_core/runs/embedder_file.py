"""A trained model as files: the folder of its run, or one safetensors file with only what was learned.

The file's tensors are what `MetricModel.learned_state` gives, without what only training uses. Everything else is JSON
in its header, under one key: the run's description, its hash and metrics, the backbone's timm name with a checksum of
the part that stayed frozen, and how images are prepared. Nothing is executed on reading, and all is checked: header and
tensors by their checksums (`vptsp_core.system.seals`), the description by `RunConfig`, names and shapes by the model
that is built, and the backbone by the checksum of its weights.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import TYPE_CHECKING, Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

import vptsp_core
from vptsp_core.data.loading import interpolation_name
from vptsp_core.errors import ConfigError, VptspError, WeightsError
from vptsp_core.method.backbone import checksum, identity, load_backbone, normalisation
from vptsp_core.method.config import RunConfig, whole_path
from vptsp_core.method.model import MetricModel
from vptsp_core.method.weights_file import read_weights
from vptsp_core.runs.folder import WEIGHTS, learned_weights, read_run
from vptsp_core.system.files import write_bytes
from vptsp_core.system.seals import sealed, unsealed

if TYPE_CHECKING:
    from vptsp_core.runs.embedder import Embedder

FORMAT, HEADER = 2, "vptsp_embedder"  # version of the header, and its key
ONLY_TRAINING = ("proxies.", "class_prompts.", "vit.proxy_head.")


@dataclass(frozen=True)
class Saved:
    """A trained model as read. A run's folder has no ``frozen`` and no ``preprocessing``; ``data`` comes from its
    record.
    """

    path: Path
    config: RunConfig
    learned: dict[str, Tensor]
    run: str | None
    metrics: dict[str, float]
    data: dict[str, Any] | None
    frozen: str | None = None
    preprocessing: dict[str, Any] | None = None


def preprocessing(model: MetricModel) -> dict[str, Any]:
    """What images are made into the model's input by, as plain values (`data.loading.eval_transform`)."""
    config, (mean, std) = model.config, normalisation(model.vit.backbone)
    return {
        "resize": config.resize, "interpolation": interpolation_name(config), "crop": config.image_size,
        "mean": list(mean), "std": list(std),
    }  # fmt: skip


def exact_names(model: MetricModel) -> set[str]:
    """Tensors that embeddings come from and that are the same bits wherever they are loaded.

    Position embeddings that were resampled to another image size are not: machines round them otherwise.
    """
    own = (getattr(model.vit.backbone, "pretrained_cfg", None) or {}).get("input_size")
    resampled = own is not None and own[-1] != model.config.image_size and model.config.method != "full"
    return {
        name
        for name in model.state_dict()
        if not name.startswith(ONLY_TRAINING) and not (resampled and name == "vit.backbone.pos_embed")
    }


def write_embedder(path: Path, embedder: Embedder, config: RunConfig) -> None:
    """Write what ``embedder`` has learned; ``config`` is the description that the header gets.
    Raises VptspError: another suffix than .safetensors, or the place cannot be written.
    """
    if path.suffix != ".safetensors":
        raise VptspError(f"{path}: an embedder is a .safetensors file; give the file that suffix")
    model = embedder.model
    learned = {
        name: value.detach().cpu().contiguous()
        for name, value in model.learned_state(for_retrieval=True).items()
        if not name.startswith(ONLY_TRAINING)
    }
    header = {
        "format": FORMAT,
        "vptsp_core": vptsp_core.__version__,
        "config": config.to_dict(),
        "run": embedder.run,
        "metrics": embedder.metrics,
        "data": embedder.data,
        "backbone": config.backbone,
        "frozen": _frozen(model),
        "preprocessing": preprocessing(model),
    }
    write_bytes(path, safetensors.torch.save(learned, {HEADER: json.dumps(sealed(header, learned))}))


def read_saved(path: Path) -> Saved:
    """A run's folder or an embedder's file. Raises WeightsError: it is neither, or damaged; the message names it."""
    if path.is_file():
        return _read_file(path)
    run = read_run(path)
    learned = learned_weights(path, run.record)
    return Saved(path, run.config, learned, run.record["hash"], run.metrics, run.record["data"])


def _read_file(path: Path) -> Saved:
    text, learned = None, {}
    if path.suffix == ".safetensors":
        learned = read_weights(path)
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(HEADER)
    if text is None:
        raise WeightsError(f"{path} is no saved embedder; give a run's folder, or what `Embedder.save` has written")
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
    """The model on the CPU, in eval mode, without what only training uses. ``weights``: where the backbone's file is
    now; its content decides.
    Raises WeightsError: the backbone cannot be had or is another one, or the tensors do not fit the description.
    """
    config = saved.config
    if config.method == "full":  # all of the backbone is in the file: nothing to fetch
        if weights is not None:
            warnings.warn(f"weights {weights}: not read, as {saved.path} holds all of its backbone", stacklevel=3)
        config = config.replace(weights="random")
    elif weights is not None or config.weights not in ("pretrained", "random"):
        config = config.replace(weights=str(_weights_file(saved, weights)))
    # What only training needs is built small or not at all: one proxy, no class prompts, no proxy tower.
    slim = config
    if config.method == "vptsp":
        slim = config.replace(method="vpt" if config.prompts and config.prompt_layers else "linear")
    classes = len(saved.learned["proxies.bias"]) if "proxies.bias" in saved.learned else 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)  # for weights = "random", which are drawn from the run's seed
        model = MetricModel(slim, load_backbone(config.backbone, config.weights, config.image_size), classes)
    _check_tensors(saved, model)
    if saved.frozen is not None and saved.frozen != _frozen(model):
        raise WeightsError(
            f"{saved.path}: the weights of {config.backbone} ({config.weights}) are not those it was trained on; "
            "give their file with weights=FILE"
        )
    if saved.preprocessing is not None and saved.preprocessing != preprocessing(model):
        raise WeightsError(
            f"{saved.path}: images are prepared otherwise by this version of timm or vptsp_core "
            f"({preprocessing(model)}) than where it was saved ({saved.preprocessing}); use the versions of then"
        )
    model.load_state_dict(saved.learned, strict=False)
    return model.eval()


def _check_tensors(saved: Saved, model: MetricModel) -> None:
    """Compare names and shapes with what such a model has learned."""
    wanted, learned = model.learned_state(), saved.learned
    if saved.frozen is not None:
        wanted = {name: value for name, value in wanted.items() if not name.startswith(ONLY_TRAINING)}
    wrong = sorted(wanted.keys() ^ (learned.keys() - {"proxies.state"}))
    wrong += [key for key in sorted(wanted.keys() & learned.keys()) if wanted[key].shape != learned[key].shape]
    if wrong:
        where = saved.path / WEIGHTS if saved.frozen is None else saved.path
        raise WeightsError(f"{where}: {wrong[0]} does not fit the config beside it; run it again, or get it again")


def _weights_file(saved: Saved, weights: str | Path | None) -> Path:
    """The backbone's file: as given, as the run named it, or of that name beside what was saved."""
    named = Path(whole_path(saved.config.weights))
    beside = saved.path.parent / PureWindowsPath(saved.config.weights).name  # of a path of any system
    places = [named, beside] if weights is None else [Path(whole_path(str(weights)))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise WeightsError(
            f"{saved.path}: its backbone's weights are not at {places[0]}; say where they are with weights=FILE, "
            "in a command with --weights FILE"
        )
    if saved.frozen is None and saved.run is not None and weights is not None:
        if saved.run != identity(saved.config.replace(weights=str(found))):
            raise WeightsError(f"{saved.path}: {found} is not the file it was trained on; give that with weights=FILE")
    return found


def _frozen(model: MetricModel) -> str:
    """Checksum of what the file does not hold."""
    learned = model.learned_state().keys()
    return checksum(model, exact_names(model) - learned)
