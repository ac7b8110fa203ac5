"""Weight files of many layouts, read into timm's keys.

The backbone is the one state dict with a patch embedding; the prefix of its keys is stripped. Layouts that timm maps
(Meta's DINOv2, OpenAI's and OpenCLIP's CLIP, Google's .npz) are mapped by timm. A warning says what was done; an
ambiguous file is refused.
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
from vptsp_core.method.weights_file import ProjectTensors, check_tensor, content_of, file_kind

Table = dict[str, Any]
# Keys of the patch embedding: OpenCLIP's, OpenAI's, and that of timm and Meta.
PATCH_EMBED_KEYS = ("visual.trunk.patch_embed.proj.weight", "visual.conv1.weight", "patch_embed.proj.weight")
WRAPPERS = re.compile(r"(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")  # torch's own, in any place
# What a file may hold beside an encoder: heads, decoders, mask tokens, the state of losses and averages.
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
    """Fill ``model`` from a file of weights; anything that does not fit is an error.

    Source of the key names: timm's ``VisionTransformer``. Position embeddings of another image size are resampled, as
    timm does with the weights it downloads. A classifier in the file is not used.
    Raises WeightsError: no such file, unreadable, two backbones in it, missing or unknown keys, another shape, values
    that are not finite numbers.
    """
    content = _from_npz(path, model) if file_kind(path) == "npz" else content_of(path)
    stored = dict(_tables(content))
    tables = {name: _unwrapped(table) for name, table in stored.items()}
    _refuse_other_files(path, tables)
    places = [(name, prefix) for name, table in tables.items() for prefix in _prefixes(table)]
    if len(places) > 1 and not _all_same(path, [_part(tables[name], prefix) for name, prefix in places]):
        names = " and ".join(f"{name}.{prefix}".strip(".") or "the top" for name, prefix in places)
        raise WeightsError(f"weights {path}: holds {len(places)} backbones, {names}; save one of them in its own file")
    largest = max(tables, key=lambda name: len(tables[name]))
    name, prefix = places[0] if places else (largest, "")
    state, notes = _of_backbone(path, tables[name], prefix, model)
    own = model.state_dict()
    missing, unknown = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    if missing or unknown:
        what = f"lacks {missing[0]}" if missing else f"has {unknown[0]}, which the model does not"
        raise WeightsError(f"weights {path}: {what} ({len(missing)} missing, {len(unknown)} unknown keys); "
                           f"give a file saved for this backbone{_common_prefix(tables[name], prefix)}")  # fmt: skip
    for key, value in state.items():
        check_tensor(path, key, value)
    if "pos_embed" in state and isinstance(model, VisionTransformer):
        state["pos_embed"] = _resampled(state["pos_embed"], model)
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise WeightsError(_other_shape(path, key, value, own[key]))
    if tables[name] is not stored[name]:
        notes.insert(0, "the names of torch's wrappers are stripped from the keys")
    if name:
        notes.insert(0, f"the weights under {name!r} are used")
    if notes:
        warnings.warn(f"weights {path}: {'; '.join(notes)}", stacklevel=2)
    model.load_state_dict(state)


def _tables(content: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Table]]:
    """Every table of tensors in what a file holds, with its name: ("", ...) at the top, ("teacher.backbone", ...);
    what is in a list or a tuple is named by its place.
    """
    if isinstance(content, (list, tuple)):
        content = {str(place): value for place, value in enumerate(content)}
    if not isinstance(content, dict) or depth > 3 or not all(isinstance(key, str) for key in content):
        return
    if any(isinstance(value, Tensor) for value in content.values()) or isinstance(content, ProjectTensors):
        yield name, content
    for key, value in content.items():
        yield from _tables(value, f"{name}.{key}".strip("."), depth + 1)


def _unwrapped(table: Table) -> Table:
    """The table without torch's wrapper names, unless two keys would become one."""
    plain = {WRAPPERS.sub("", key): value for key, value in table.items()}
    return plain if len(plain) == len(table) and plain.keys() != table.keys() else table


def _prefixes(table: Table) -> list[str]:
    """The key prefix of each backbone in a table."""
    ends = [(key, next((end for end in PATCH_EMBED_KEYS if f".{key}".endswith("." + end)), None)) for key in table]
    return [key.removesuffix(end) for key, end in ends if end is not None]


def _part(table: Table, prefix: str) -> Table:
    """The tensors that have a prefix, under their names without it."""
    return {key.removeprefix(prefix): value
            for key, value in table.items() if key.startswith(prefix) and isinstance(value, Tensor)}  # fmt: skip


def _all_same(path: Path, parts: list[Table]) -> bool:
    """Whether several backbones hold the same tensors."""
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


def _refuse_other_files(path: Path, tables: dict[str, Table]) -> None:
    """Refuse a file without tensors, of a run, or of another library."""
    if not tables:
        raise WeightsError(f"weights {path}: holds no table of tensors; save model.state_dict()")
    for table in tables.values():
        if isinstance(table, ProjectTensors) or any(key.startswith(RUN_KEYS) for key in table):
            raise WeightsError(f"weights {path}: what a run of this project wrote, not a backbone; load it with "
                               "vptsp_core.load, or give the weights that the run began from")  # fmt: skip
        for key in table:
            for ending, library in FOREIGN.items():
                if key == ending or key.endswith("." + ending):
                    raise WeightsError(f"weights {path}: in the layout of {library} ({key}); give a file with timm's "
                                       "keys, or weights=pretrained and the backbone's timm name")  # fmt: skip


def _of_backbone(path: Path, table: Table, prefix: str, model: nn.Module) -> tuple[Table, list[str]]:
    """The backbone's part of a table under timm's keys, and notes on what was changed."""
    own, notes = model.state_dict(), []
    state = _part(table, prefix)
    beside = [key for key in table if not key.startswith(prefix)]
    mapped = _mapped(path, state, model) if isinstance(model, VisionTransformer) else state
    if prefix:
        notes.append(f"{prefix!r} is stripped from the keys")
    if mapped is not state:
        notes.append("timm maps their layout to its own")
    kept = {key: value for key, value in mapped.items() if key in own or not IGNORED_KEYS.fullmatch(key)}
    usual = ("head.", "head_dist.", "pre_logits.")
    if other := [key for key in (*beside, *(mapped.keys() - kept.keys())) if not key.startswith(usual)]:
        notes.append(f"{len(other)} tensors beside the backbone's are not used (such as {min(other)})")
    return kept, notes


def _mapped(path: Path, state: Table, model: VisionTransformer) -> Table:
    """``state`` mapped by timm if that gives the model's keys, else ``state`` itself."""
    own = model.state_dict()
    if own.keys() <= state.keys():
        return state
    floating = {key: value for key, value in state.items() if isinstance(value, Tensor) and value.is_floating_point()}
    for key, value in floating.items():
        check_tensor(path, key, value)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            mapped = checkpoint_filter_fn(dict(floating), model, adapt_layer_scale=True)
    except Exception:  # timm misjudged the layout: the file's own keys are reported
        return state
    if not own.keys() <= mapped.keys():
        return state
    patches = next((state[key] for key in PATCH_EMBED_KEYS if key in state), None)
    wanted = own[PATCH_EMBED_KEYS[-1]]
    if patches is not None and patches.dim() == 4 and patches.shape[2:] != wanted.shape[2:]:  # timm would resample them
        raise WeightsError(_other_shape(path, PATCH_EMBED_KEYS[-1], patches, wanted))
    return mapped


def _from_npz(path: Path, model: nn.Module) -> Table:
    """A file of Google's vision transformers (AugReg, big_vision), as timm reads it; position embeddings as stored."""
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
                value.fill_(torch.nan)  # NaN marks what the file lacks
            if count == len(model.blocks) and patches.shape[:2] == model.patch_embed.proj.weight.shape[2:]:
                with contextlib.redirect_stdout(io.StringIO()):
                    filled.load_pretrained(str(path))
    except (StopIteration, KeyError) as error:
        raise WeightsError(f"weights {path}: not in the layout of Google's vision transformers; "
                           "give a file with timm's keys") from error  # fmt: skip
    except Exception as error:  # zip, numpy, torch
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
    """Position embeddings (1, T', D) for the model's grid; unchanged if the width or the old grid does not fit."""
    tokens, prefix = model.pos_embed.shape[1], 0 if model.no_embed_class else model.num_prefix_tokens
    patches = positions.shape[1] - prefix if positions.dim() == 3 else -1
    square = patches > 0 and math.isqrt(patches) ** 2 == patches
    if not square or positions.shape[1] == tokens or positions.shape[2] != model.pos_embed.shape[2]:
        return positions
    return resample_abs_pos_embed(positions, list(model.patch_embed.grid_size), num_prefix_tokens=prefix)


def _common_prefix(table: Table, prefix: str) -> str:
    """The common start of all keys, for a message; "" if there is none, or it was stripped."""
    firsts = {key.split(".")[0] for key in table}
    one = next(iter(firsts)) + "." if len(firsts) == 1 else ""
    return f"; all its keys begin with {one!r}" if one and len(table) > 1 and not prefix else ""


def _other_shape(path: Path, key: str, value: Tensor, wanted: Tensor) -> str:
    return (f"weights {path}: {key} has shape {tuple(value.shape)}, the model needs {tuple(wanted.shape)}; "
            "give a file saved for this backbone and image size")  # fmt: skip
