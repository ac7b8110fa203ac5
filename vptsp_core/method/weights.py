"""Files of weights in many layouts, loaded into a timm model.

A file can hold more than a backbone: a teacher and a student, heads, decoders, an optimiser's state. The backbone is
the part that has a patch embedding. timm maps the layouts that it knows to its own keys: Meta's DINOv2, OpenAI's and
OpenCLIP's CLIP, and Google's .npz. A warning says what was changed. A file with two different backbones is refused.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from vptsp_core.errors import WeightsError
from vptsp_core.method.weights_file import ProjectTensors, check_tensor, file_kind, read_content

State = dict[str, Any]  # a state dict: tensors by key, and perhaps other values
# The key of the patch embedding: OpenCLIP's, OpenAI's, and the one of timm and Meta.
PATCH_EMBED_KEYS = ("visual.trunk.patch_embed.proj.weight", "visual.conv1.weight", "patch_embed.proj.weight")
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # at any place in a key
# Tensors that are not part of a backbone: heads, decoders, mask tokens, the state of losses and averages.
IGNORED_KEYS = re.compile(
    r"(.*\.)?(\w*head\w*|pre_logits|fc|classifier|decoder\w*|projector|predictor|mask_token|masked_embed|"
    r"\w*(loss|criterion|prox(y|ies))\w*|logit_(scale|bias)|n_averaged)(\..*)?"
)
RUN_KEYS = ("vit.sample_head.", "vit.proxy_head.", "vit.prompts", "vit.backbone.", "proxies.", "class_prompts.")
FOREIGN = {
    "patch_embeddings.projection.weight": "Hugging Face transformers",
    "conv_proj.weight": "torchvision",
    "transformer.layers.0.0.norm.weight": "vit-pytorch",
}


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill ``model`` from a file of weights.

    The keys may be timm's, or in a layout that timm maps. The prefix of the backbone's keys is stripped, and other
    tensors, such as a classifier, are not used. Position embeddings for another image size are resampled, as timm does
    with the weights that it downloads.

    Raises:
        WeightsError: the file is missing or unreadable, or has two different backbones. Or a key is missing or unknown.
            Or a tensor has another shape, or values that are not finite.
    """
    content = _from_npz(path, model) if file_kind(path) == "npz" else read_content(path)
    stored = dict(_state_dicts(content))
    states = {name: _without_wrappers(state) for name, state in stored.items()}
    _refuse_other_files(path, states)
    name, prefix = _choose_backbone(path, states)
    state, notes = _backbone_state(path, states[name], prefix, model)
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model does not"
        raise WeightsError(f"weights {path}: {what} ({len(missing)} missing, {len(unknown)} unknown keys); "
                           f"give a file saved for this backbone{_common_prefix(states[name], prefix)}")  # fmt: skip
    for key, value in state.items():
        check_tensor(path, key, value)
    if "pos_embed" in state and isinstance(model, VisionTransformer):
        state["pos_embed"] = _resampled(state["pos_embed"], model)
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise WeightsError(_other_shape(path, key, value, own[key]))
    if states[name] is not stored[name]:
        notes.insert(0, "the names of torch's wrappers are stripped from the keys")
    if name:
        notes.insert(0, f"the weights under {name!r} are used")
    if notes:
        warnings.warn(f"weights {path}: {'; '.join(notes)}", stacklevel=2)
    model.load_state_dict(state)


def _state_dicts(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, State]]:
    """Yield every state dict in the content of a file, with its name: "" at the top, "teacher.backbone" below.

    An entry of a list or a tuple is named by its index.
    """
    if isinstance(content, (list, tuple)):
        content = {str(index): value for index, value in enumerate(content)}
    if not isinstance(content, dict) or depth > 3 or not all(isinstance(key, str) for key in content):
        return
    if any(isinstance(value, Tensor) for value in content.values()) or isinstance(content, ProjectTensors):
        yield name, content
    for key, value in content.items():
        yield from _state_dicts(value, f"{name}.{key}".strip("."), depth + 1)


def _choose_backbone(path: Path, states: dict[str, State]) -> tuple[str, str]:
    """Return the name of the state dict with the backbone, and the prefix of its keys. If none has one: the largest.
    Raises WeightsError if there are several backbones with different tensors.
    """
    backbones = [(name, prefix) for name, state in states.items() for prefix in _prefixes(state)]
    if not backbones:
        return max(states, key=lambda name: len(states[name])), ""
    if len(backbones) > 1 and not _all_equal(path, [_part(states[name], prefix) for name, prefix in backbones]):
        names = " and ".join(f"{name}.{prefix}".strip(".") or "the top" for name, prefix in backbones)
        count = len(backbones)
        raise WeightsError(f"weights {path}: holds {count} backbones, {names}; save one of them in its own file")
    return backbones[0]


def _without_wrappers(state: State) -> State:
    """Return the state without the names of torch's wrappers, or unchanged if two keys would become equal."""
    plain = {WRAPPERS.sub("", key): value for key, value in state.items()}
    return plain if len(plain) == len(state) and plain.keys() != state.keys() else state


def _prefixes(state: State) -> list[str]:
    """Return the prefix of the keys of each backbone in a state: what precedes the key of its patch embedding."""
    ends = [(key, next((end for end in PATCH_EMBED_KEYS if f".{key}".endswith("." + end)), None)) for key in state]
    return [key.removesuffix(end) for key, end in ends if end is not None]


def _part(state: State, prefix: str) -> State:
    """Return the tensors whose keys have the prefix, by their keys without it."""
    return {key.removeprefix(prefix): value
            for key, value in state.items() if key.startswith(prefix) and isinstance(value, Tensor)}  # fmt: skip


def _all_equal(path: Path, parts: list[State]) -> bool:
    """Return whether several backbones have equal tensors. Raises WeightsError if a tensor is invalid."""
    plain = [{key: value for key, value in part.items() if not IGNORED_KEYS.fullmatch(key)} for part in parts]
    for part in plain:
        for key, value in part.items():
            check_tensor(path, key, value)
    first, *others = plain
    return all(
        part.keys() == first.keys()
        and all(value.dtype == part[key].dtype and torch.equal(value, part[key]) for key, value in first.items())
        for part in others
    )


def _refuse_other_files(path: Path, states: dict[str, State]) -> None:
    """Raise WeightsError for a file without tensors, of a run of this project, or of another library."""
    if not states:
        raise WeightsError(f"weights {path}: holds no table of tensors; save model.state_dict()")
    for state in states.values():
        if isinstance(state, ProjectTensors) or any(key.startswith(RUN_KEYS) for key in state):
            raise WeightsError(f"weights {path}: written by a run of this project, not a backbone; load it with "
                               "vptsp_core.load, or give the weights that the run started from")  # fmt: skip
        for key in state:
            for ending, library in FOREIGN.items():
                if key == ending or key.endswith("." + ending):
                    raise WeightsError(f"weights {path}: in the layout of {library} ({key}); give a file with timm's "
                                       "keys, or weights=pretrained and the backbone's timm name")  # fmt: skip


def _backbone_state(path: Path, state: State, prefix: str, model: nn.Module) -> tuple[State, list[str]]:
    """Return the tensors of the backbone under timm's keys, and a note on each change."""
    own, notes = model.state_dict(), []
    part = _part(state, prefix)
    mapped = _mapped_by_timm(path, part, model) if isinstance(model, VisionTransformer) else part
    if prefix:
        notes.append(f"{prefix!r} is stripped from the keys")
    if mapped is not part:
        notes.append("timm maps their layout to its own")
    kept = {key: value for key, value in mapped.items() if key in own or not IGNORED_KEYS.fullmatch(key)}
    unused = [key for key in state if not key.startswith(prefix)] + sorted(mapped.keys() - kept.keys())
    if unused := [key for key in unused if not key.startswith(("head.", "head_dist.", "pre_logits."))]:
        notes.append(f"{len(unused)} tensors beside the backbone's are not used (such as {min(unused)})")
    return kept, notes


def _mapped_by_timm(path: Path, state: State, model: VisionTransformer) -> State:
    """Return the state as timm maps its layout, or unchanged if this does not give the model's keys.
    Raises WeightsError if a tensor is invalid, or the patches have another size, which timm would resample.
    """
    own = model.state_dict()
    if own.keys() <= state.keys():
        return state
    floating = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    for key, value in floating.items():
        check_tensor(path, key, value)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            mapped = checkpoint_filter_fn(dict(floating), model, adapt_layer_scale=True)
    except Exception:  # timm took the layout for another one; `load_weights` reports the keys in the file
        return state
    if not own.keys() <= mapped.keys():
        return state
    patches = next((state[key] for key in PATCH_EMBED_KEYS if key in state), None)
    wanted = own[PATCH_EMBED_KEYS[-1]]
    if patches is not None and patches.dim() == 4 and patches.shape[2:] != wanted.shape[2:]:
        raise WeightsError(_other_shape(path, PATCH_EMBED_KEYS[-1], patches, wanted))
    return mapped


def _from_npz(path: Path, model: nn.Module) -> State:
    """Return the tensors of one of Google's files (AugReg, big_vision) under timm's keys. timm reads the file.

    Position embeddings keep the size that they have in the file.
    Raises WeightsError if the file has another layout, or does not fit the model.
    """
    if not isinstance(model, VisionTransformer):
        raise WeightsError(f"weights {path}: an .npz file fits a VisionTransformer only; give timm's keys")
    filled = copy.deepcopy(model)
    try:
        with np.load(path, allow_pickle=False) as file, torch.no_grad():
            positions = torch.from_numpy(next(file[name] for name in file.files if name.endswith("pos_embedding")))
            patches = next(file[name] for name in file.files if re.fullmatch(r"(.*/)?embedding/kernel", name))
            blocks = {block[1] for name in file.files if (block := re.search(r"encoderblock_(\d+)/", name))}
            stacked = [name for name in file.files if name.endswith("Transformer/encoderblock/LayerNorm_0/scale")]
            count = len(file[stacked[0]]) if stacked else len(blocks)
        if positions.dim() == 3 and model.pos_embed is not None:
            filled.pos_embed = nn.Parameter(torch.empty_like(positions, dtype=torch.float32))
        with torch.no_grad():
            for value in filled.parameters():
                value.fill_(torch.nan)  # what stays NaN is not in the file
            if count == len(model.blocks) and patches.shape[:2] == model.patch_embed.proj.weight.shape[2:]:
                with contextlib.redirect_stdout(io.StringIO()):
                    filled.load_pretrained(str(path))
    except (StopIteration, KeyError) as error:
        raise WeightsError(f"weights {path}: not in the layout of Google's vision transformers; "
                           "give a file with timm's keys") from error  # fmt: skip
    except Exception as error:  # of zipfile, numpy or timm
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"weights {path}: does not fit this backbone ({reason}); give its own file") from error
    if count != len(model.blocks):
        raise WeightsError(f"weights {path}: has {count} blocks, the model {len(model.blocks)}; "
                           "give a file saved for this backbone")  # fmt: skip
    if patches.shape[:2] != model.patch_embed.proj.weight.shape[2:]:
        kernel = torch.from_numpy(patches).permute(3, 2, 0, 1)
        raise WeightsError(_other_shape(path, PATCH_EMBED_KEYS[-1], kernel, model.patch_embed.proj.weight))
    return {key: value for key, value in filled.state_dict().items() if not value.isnan().all()}


def _resampled(positions: Tensor, model: VisionTransformer) -> Tensor:
    """Return position embeddings (1, T', D) for the model's grid: (1, T, D). They stay as they are if the grid in the
    file is not square, or has another width.
    """
    tokens, prefix = model.pos_embed.shape[1], 0 if model.no_embed_class else model.num_prefix_tokens
    patches = positions.shape[1] - prefix if positions.dim() == 3 else -1
    square = patches > 0 and math.isqrt(patches) ** 2 == patches
    if not square or positions.shape[1] == tokens or positions.shape[2] != model.pos_embed.shape[2]:
        return positions
    return resample_abs_pos_embed(positions, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def _common_prefix(state: State, prefix: str) -> str:
    """Return the end of a message about the common start of all keys; "" if there is none, or it was stripped."""
    starts = {key.split(".")[0] + "." for key in state}
    common = len(starts) == 1 and len(state) > 1 and not prefix
    return f"; all its keys begin with {starts.pop()!r}" if common else ""


def _other_shape(path: Path, key: str, value: Tensor, wanted: Tensor) -> str:
    return (f"weights {path}: {key} has shape {tuple(value.shape)}, the model needs {tuple(wanted.shape)}; "
            "give a file saved for this backbone and image size")  # fmt: skip
