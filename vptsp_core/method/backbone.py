"""The frozen vision transformer: which models fit, where their weights come from, and how images are normalised.

Every timm ``VisionTransformer`` of plain blocks fits. It may have class, register and distillation tokens,
``norm_pre``, LayerScale, q/k norm, ``fc_norm``, and average pooling.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import warnings
from importlib import resources
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.vision_transformer import Attention, Block, VisionTransformer
from torch import nn

from vptsp_core.errors import ConfigError, WeightsError
from vptsp_core.method.hub import reachable_hub
from vptsp_core.method.weights import load_weights

# The ViT in this package, pretrained by tests/bench/pretrain.py. Prompts for it train in seconds on two cores.
DEMO_VIT: dict[str, Any] = dict(img_size=40, patch_size=8, embed_dim=96, depth=6, num_heads=3, num_classes=0)
DEMO_WEIGHTS = "demo_vit.safetensors"


def load_backbone(name: str, weights: str = "pretrained", image_size: int | None = None) -> VisionTransformer:
    """Load a timm ``VisionTransformer`` without its classifier, in eval mode, with all parameters frozen.

    Args:
        name: full timm name (``vit_small_patch16_224.augreg_in21k``) or ``"demo_vit"``.
        weights: ``"pretrained"`` (from the hub, or from this package for demo_vit), ``"random"``, or the path of a
            file of weights (see `load_weights`).
        image_size: side of the images in pixels; None for the model's own.

    Raises:
        ConfigError: the name or its tag is unknown, the model is not supported, or an image is smaller than a patch.
        WeightsError: the weights cannot be downloaded or read, or do not fit the model.
    """
    _, _, patch = shape(name)  # also checks the name and the kind of model, before anything is downloaded
    if image_size is not None:
        _check_size(name, image_size, patch)
    model = _create(name, pretrained=weights == "pretrained", image_size=image_size)
    if name == "demo_vit" and weights == "pretrained":
        with resources.as_file(resources.files("vptsp_core") / "assets" / DEMO_WEIGHTS) as path:
            load_weights(model, path)
    elif weights not in ("pretrained", "random"):
        load_weights(model, Path(weights).expanduser())
    return model.eval().requires_grad_(False)


def _check_size(name: str, image_size: int, patch: int) -> None:
    """Raise ConfigError if images are smaller than a patch, and warn if patches leave a border uncovered."""
    if image_size < patch:
        raise ConfigError(f"image_size = {image_size} must be at least {patch}, the side of a patch of {name}")
    if rest := image_size % patch:
        warnings.warn(
            f"image_size = {image_size}: {name} has patches of {patch} pixels and does not see the last {rest} on the "
            f"right and at the bottom; with {image_size - rest} or {image_size - rest + patch} it sees all",
            stacklevel=3,
        )


def _create(name: str, *, pretrained: bool, image_size: int | None) -> VisionTransformer:
    if name == "demo_vit":
        return VisionTransformer(**DEMO_VIT | ({"img_size": image_size} if image_size else {}))
    architecture = name.split(".")[0]
    if not timm.list_models(architecture):  # old names, which timm.is_model knows, would be looked up as they are
        near = timm.list_models(f"*{architecture}*")[:4] or difflib.get_close_matches(architecture, timm.list_models())
        near = near or ["see timm.list_models('vit_*')"]
        raise ConfigError(f"backbone {name!r} is not a timm model; known: {', '.join(near)}")
    tags = timm.list_pretrained(f"{architecture}.*")
    if "." in name and name not in tags:
        raise ConfigError(f"backbone {name!r}: no such pretrained tag; known: {', '.join(tags) or 'none'}")
    if pretrained and not tags:
        raise ConfigError(f"backbone {name!r}: timm has no pretrained weights of it; give a file with weights=FILE")
    options: dict[str, Any] = dict(num_classes=0) | ({"img_size": image_size} if image_size else {})
    try:
        with reachable_hub(name) if pretrained else contextlib.nullcontext():
            return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # of the hub, the network or the disk: many libraries can raise here
        if not pretrained:
            raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"pretrained weights of {name} cannot be downloaded or read ({reason}); give the file with "
            "weights=FILE, allow the download, or take the one in the package, backbone=demo_vit"
        ) from error


def shape(name: str) -> tuple[int, int, int]:
    """Return the number of blocks, the width D, and the side of a patch in pixels. No weights are loaded.
    Raises ConfigError if the name or its tag is unknown, or the model is not supported.
    """
    if name == "demo_vit":
        return DEMO_VIT["depth"], DEMO_VIT["embed_dim"], DEMO_VIT["patch_size"]
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        model = _create(name, pretrained=False, image_size=None)
    check_supported(model, name)
    return len(model.blocks), model.embed_dim, model.patch_embed.feat_ratio()


def check_supported(model: nn.Module, name: str) -> None:
    """Check that `vptsp_core.method.vit.run_block` computes exactly what the model's blocks do.
    Raises ConfigError, with the name of the part that is not supported.
    """
    if not isinstance(model, VisionTransformer):
        raise ConfigError(f"backbone {name} is a {type(model).__name__}; prompts need a timm VisionTransformer")
    for block in model.blocks:
        attention = getattr(block, "attn", None)
        if type(block) is not Block or type(attention) is not Attention or getattr(attention, "gate", None):
            part = type(block) if type(block) is not Block else type(attention)
            kind = "gated Attention" if part is Attention else part.__name__
            raise ConfigError(f"backbone {name} is built of {kind}; only timm's plain Block and Attention are known")
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):  # in the patch embedding of some
        raise ConfigError(f"backbone {name} has BatchNorm, whose statistics training would change; choose another")


def pooling(model: VisionTransformer, wanted: str = "auto") -> str:
    """Return the pooling, ``"cls"`` or ``"avg"``: ``wanted``, or for ``"auto"`` the one the model was trained with.
    Raises ConfigError if the result is "cls" and the model has no class token, or if "auto" finds neither of the two.
    """
    own = {"token": "cls", "avg": "avg"}.get(model.global_pool)
    if wanted == "auto" and own is None:
        raise ConfigError(f"the backbone pools by {model.global_pool!r}; choose pool = 'cls' or 'avg'")
    pool = own if wanted == "auto" else wanted
    if pool == "cls" and not model.has_class_token:
        raise ConfigError("pool = 'cls' needs a class token, which this backbone does not have; use pool = 'avg'")
    assert pool is not None
    return pool


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of images in [0, 1], per channel, from timm's data config."""
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("mean"):
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # demo_vit, and timm's own default for ViTs
    return tuple(config["mean"]), tuple(config["std"])
