"""Files of weights in many layouts, loaded into a timm model.

A file can hold more than a backbone: a teacher and a student, heads, decoders, an optimiser's state. The backbone is
the part that has a patch embedding. timm maps the layouts that it knows to its own keys: Meta's DINOv2, OpenAI's and
OpenCLIP's CLIP, and Google's .npz. A warning says what was left out. A file with two backbones is refused.
"""

from __future__ import annotations

import contextlib
import copy
import io
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vptsp_core.errors import WeightsError
from vptsp_core.method.weights_file import check_file, check_tensor, read_content

PATCH_EMBED_KEYS = ("visual.conv1.weight", "patch_embed.proj.weight")  # OpenAI's, and the key of timm and Meta
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # at any place in a key
# Tensors that are not part of a backbone: heads, decoders, mask tokens, the state of losses and averages.
IGNORED_KEYS = re.compile(
    r"(.*\.)?(\w*head\w*|pre_logits|fc|classifier|decoder\w*|projector|predictor|mask_token|masked_embed|"
    r"\w*(loss|criterion|prox(y|ies))\w*|logit_(scale|bias)|n_averaged)(\..*)?"
)
RUN_KEYS = ("vit.sample_head.", "vit.proxy_head.", "vit.prompts", "vit.backbone.", "proxies.", "class_prompts.")


def load_weights(model: VisionTransformer, path: Path) -> None:
    """Fill ``model`` from a file of weights.

    The keys may be timm's, or in a layout that timm maps. The prefix of the backbone's keys is stripped, and other
    tensors, such as a classifier, are not used. Position embeddings for another image size are resampled, as timm does
    with the weights that it downloads.

    Raises:
        WeightsError: the file is missing or unreadable, or has two backbones; a key is missing or unknown; or a tensor
            has another shape, or values that are not finite.
    """
    content = _from_npz(path, model) if path.suffix.lower() == ".npz" else read_content(path)
    stored = {WRAPPERS.sub("", key): value for key, value in _tensors(content)}
    prefix = _find_backbone(path, stored)
    own = model.state_dict()
    part = {key.removeprefix(prefix): value for key, value in stored.items() if key.startswith(prefix)}
    part = {key: value for key, value in part.items() if key in own or value.is_floating_point()}
    mapped = _mapped_by_timm(path, part, model)
    state = {key: value for key, value in mapped.items() if key in own or not IGNORED_KEYS.fullmatch(key)}
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model does not"
        raise WeightsError(f"weights {path}: {what} ({len(missing)} missing, {len(unknown)} unknown keys); "
                           "give a file saved for this backbone, with timm's keys")  # fmt: skip
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise WeightsError(_other_shape(path, key, value, own[key]))
    unused = [key for key in stored if not key.startswith(prefix)] + sorted(mapped.keys() - state.keys())
    unused = [key for key in unused if not key.startswith(("head.", "head_dist.", "pre_logits."))]
    notes = [f"{prefix!r} is stripped from the keys"] if prefix else []
    if unused:
        notes.append(f"{len(unused)} tensors beside the backbone's are not used (such as {min(unused)})")
    if notes:
        warnings.warn(f"weights {path}: {'; '.join(notes)}", stacklevel=2)
    model.load_state_dict(state)


def _tensors(content: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor in the content of a file with its keys, joined by dots. The key in a list is the index."""
    if isinstance(content, Tensor):
        yield name, content
    if isinstance(content, (list, tuple)):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _find_backbone(path: Path, stored: dict[str, Tensor]) -> str:
    """Return the prefix of the backbone's keys: what precedes the key of the patch embedding; "" if there is none.
    Raises WeightsError for a file with several backbones, without tensors, or of a run of this project.
    """
    if not stored:
        raise WeightsError(f"weights {path}: holds no dict of tensors; save model.state_dict()")
    if any(key.startswith(RUN_KEYS) for key in stored):
        raise WeightsError(f"weights {path}: written by a run of this project, not a backbone; load it with "
                           "vptsp_core.load, or give the weights that the run started from")  # fmt: skip
    prefixes = [key.removesuffix(end) for key in stored for end in PATCH_EMBED_KEYS if f".{key}".endswith(f".{end}")]
    if len(prefixes) > 1:
        names = " and ".join(prefix.strip(".") or "the top" for prefix in prefixes)
        raise WeightsError(
            f"weights {path}: holds {len(prefixes)} backbones, {names}; save one of them in its own file"
        )
    return next(iter(prefixes), "")


def _mapped_by_timm(path: Path, part: dict[str, Tensor], model: VisionTransformer) -> dict[str, Tensor]:
    """Return the tensors under timm's keys, with position embeddings for the model's grid.
    Raises WeightsError if a tensor is invalid, or the patches have another size, which timm would resample.
    """
    for key, value in part.items():
        check_tensor(path, key, value)
    for key, wanted in ((key, model.patch_embed.proj.weight) for key in PATCH_EMBED_KEYS if key in part):
        if part[key].shape[2:] != wanted.shape[2:]:
            raise WeightsError(_other_shape(path, key, part[key], wanted))
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return checkpoint_filter_fn(dict(part), model, adapt_layer_scale=True)
    except Exception:  # timm took the layout for another one; `load_weights` reports the keys in the file
        return part


def _from_npz(path: Path, model: VisionTransformer) -> dict[str, Tensor]:
    """Return the tensors of one of Google's files (AugReg, big_vision) under timm's keys. timm reads the file.

    Position embeddings keep the size that they have in the file.
    Raises WeightsError if the file is missing, has another layout, or does not fit the model.
    """
    check_file(path, str(path))
    filled, depth, sides = copy.deepcopy(model), len(model.blocks), model.patch_embed.proj.weight.shape[2:]
    try:
        with np.load(path) as file:
            for name in file.files:
                stacked = name.endswith("Transformer/encoderblock/LayerNorm_0/scale") and len(file[name]) > depth
                if stacked or f"encoderblock_{depth}/" in name:
                    raise ValueError("it has more blocks")
                if re.fullmatch(r"(.*/)?embedding/kernel", name) and file[name].shape[:2] != sides:
                    raise ValueError("its patches have another size")
                if name.endswith("pos_embedding"):
                    filled.pos_embed = nn.Parameter(torch.empty(file[name].shape))
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
            for value in filled.parameters():
                value.fill_(torch.nan)  # what stays NaN is not in the file
            filled.load_pretrained(str(path))
    except Exception as error:  # of zipfile, numpy or timm
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"weights {path}: does not fit this backbone ({reason}); give its own file") from error
    return {key: value for key, value in filled.state_dict().items() if not value.isnan().all()}


def _other_shape(path: Path, key: str, value: Tensor, wanted: Tensor) -> str:
    return (f"weights {path}: {key} has shape {tuple(value.shape)}, the model needs {tuple(wanted.shape)}; "
            "give a file saved for this backbone and image size")  # fmt: skip
