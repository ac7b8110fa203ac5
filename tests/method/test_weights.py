"""Files of weights in many layouts: each gives exactly its tensors, and a warning of the changes, or is refused."""

import argparse
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from timm.layers import SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from vptsp_core.errors import WeightsError
from vptsp_core.method.weights import load_weights

SMALL = dict(img_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=0)


def vit(**changes):
    torch.manual_seed(3)
    model = VisionTransformer(**SMALL | changes)
    with torch.no_grad():
        for value in model.parameters():
            value.normal_()
    return model.eval()


def under(prefix, state):
    return {prefix + key: value for key, value in state.items()}


def loaded(path, **changes):
    """Return the tensors that a new model gets from a file, and the warnings."""
    model = VisionTransformer(**SMALL | changes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_weights(model, path)
    return model.state_dict(), " | ".join(str(warning.message) for warning in caught)


def same(found, wanted):
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


HEAD = {"head.weight": torch.ones(5, 24), "head.bias": torch.ones(5)}
DINO_HEAD = {"mlp.0.weight": torch.ones(2, 2), "last_layer.weight_g": torch.ones(2), "bn.num": torch.ones(1).long()}


LOSS = {"criterion.proxies": torch.ones(2), "logit_scale": torch.ones(()), "logit_bias": torch.ones(())}


def changed(state):
    return {key: value + 1 for key, value in state.items()}


@pytest.mark.parametrize(
    "make, said",
    {
        "timm's own": (lambda s: s, ""),
        "with a classifier": (lambda s: s | HEAD, ""),
        "module.": (lambda s: under("module.", s | HEAD), "'module.' is stripped"),
        "compiled": (lambda s: under("_orig_mod.", s), ""),
        "sharded": (lambda s: {k.replace("attn.", "_fsdp_wrapped_module.attn."): v for k, v in s.items()}, ""),
        "training state": (
            lambda s: {"model_state_dict": under("model.", s), "epoch": 3, "best_acc1": torch.tensor(1.0),
                       "args": argparse.Namespace(lr=1), "optimizer": {"state": {0: {"step": torch.ones(1)}}}},
            "'model_state_dict.model.' is stripped from the keys; 2 tensors beside",
        ),
        "two levels": (lambda s: {"teacher": {"backbone": s}}, "'teacher.backbone.'"),
        "a head of DINO": (
            lambda s: {"teacher": under("backbone.", s) | under("dino_head.", DINO_HEAD)},
            "3 tensors beside the backbone's are not used (such as teacher.dino_head.bn.num)",
        ),
        "a decoder of MAE": (lambda s: {"model": s | {"mask_token": torch.ones(1), "decoder_norm.bias": torch.ones(3)}},
                             "1 tensors"),
        "an average, its loss and its scale": (
            lambda s: {"n_averaged": torch.tensor(7), "loss.W": torch.ones(2)} | under("module.", s | LOSS),
            "5 tensors beside the backbone's are not used (such as criterion.proxies)",
        ),
        "another part of a model": (lambda s: under("backbone.", s) | {"neck.bias": torch.ones(2)}, "as neck.bias"),
        "a list in a dict": (lambda s: {"models": [s]}, "'models.0.' is stripped"),
    }.values(),
)  # fmt: skip
def test_a_clear_file_is_loaded_and_a_warning_names_the_changes(make, said, tmp_path):
    state = vit().state_dict()
    torch.save(make(state), tmp_path / "w.pth")
    found, told = loaded(tmp_path / "w.pth")
    same(found, state)
    assert said in told and bool(told) == bool(said)


@pytest.mark.parametrize("name", ["model_best.pth.tar", "w"])
@pytest.mark.parametrize("kind", ["torch", "torch of old", "safetensors"])
def test_the_kind_of_a_file_is_recognised_by_its_content(name, kind, tmp_path):
    state, path = vit().state_dict(), tmp_path / name
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "torch")
    same(loaded(path)[0], state)


@pytest.mark.parametrize("registers", [0, 4])
def test_metas_own_dinov2_files(registers, tmp_path):
    """In the layout of github.com/facebookresearch/dinov2: one more position, mask_token, register_tokens."""
    size = dict(init_values=1e-5, reg_tokens=registers, no_embed_class=registers > 0)
    model = vit(**size)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    if registers:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), state["pos_embed"]], 1)
    state["mask_token"] = torch.zeros(1, 24)
    torch.save(state, tmp_path / "dinov2.pth")
    wanted = dict(model.state_dict())
    if registers:
        wanted["cls_token"] = wanted["cls_token"] + 0.5
    found, told = loaded(tmp_path / "dinov2.pth", **size)
    same(found, wanted)
    torch.save({"teacher": under("backbone.", state) | under("dino_head.", DINO_HEAD)}, tmp_path / "dinov2.pth")
    same(loaded(tmp_path / "dinov2.pth", **size)[0], wanted)
    larger, _ = loaded(tmp_path / "dinov2.pth", **size | {"img_size": 32})
    theirs = checkpoint_filter_fn(dict(state), VisionTransformer(**SMALL | size | {"img_size": 32}))
    same(larger, {key: theirs[key] for key in larger})


def test_metas_giant_with_its_gated_mlp(tmp_path):
    size = dict(mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=2)
    state = vit(**size).state_dict()
    theirs = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in state.items()}
    torch.save(theirs | {"mask_token": torch.zeros(1, 24)}, tmp_path / "w.pth")
    same(loaded(tmp_path / "w.pth", **size)[0], state)


def test_clip_of_openai(tmp_path):
    size = dict(pre_norm=True)
    state = vit(**size).state_dict()
    swaps = {"blocks.": "transformer.resblocks.", "norm_pre": "ln_pre", "attn.qkv.": "attn.in_proj_",
             "attn.proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "norm1": "ln_1",
             "norm2": "ln_2", "patch_embed.proj": "conv1", "pos_embed": "positional_embedding"}  # fmt: skip
    theirs = {"logit_scale": torch.ones(()), "token_embedding.weight": torch.ones(9, 24)}
    for key, value in state.items():
        if key == "cls_token":
            key, value = "class_embedding", value[0, 0]
        for ours, name in swaps.items():
            key = key.replace(ours, name)
        key = "ln_post" + key.removeprefix("norm") if key.startswith("norm.") else key
        theirs["visual." + key] = value[0] if key == "positional_embedding" else value
    torch.save(theirs, tmp_path / "w.pth")
    same(loaded(tmp_path / "w.pth", **size)[0], state)
    torch.save(under("visual.trunk.", state) | {"logit_scale": torch.ones(())}, tmp_path / "open.pth")
    same(loaded(tmp_path / "open.pth", **size)[0], state)


def google(state, heads=3):
    """Return a state in the layout of google-research/vision_transformer, for an .npz file (AugReg)."""
    width = state["cls_token"].shape[-1]
    out = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": torch.ones(width, 5),
        "head/bias": torch.ones(5),
    }
    for i in range(len({key.split(".")[1] for key in state if key.startswith("blocks.")})):
        block, place = f"blocks.{i}.", f"Transformer/encoderblock_{i}/"
        for norm, name in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            out[f"{place}{name}/scale"], out[f"{place}{name}/bias"] = (
                state[f"{block}{norm}.weight"], state[f"{block}{norm}.bias"],
            )  # fmt: skip
        attention = place + "MultiHeadDotProductAttention_1/"
        for name, weight, bias in zip(("query", "key", "value"), state[f"{block}attn.qkv.weight"].chunk(3),
                                      state[f"{block}attn.qkv.bias"].chunk(3)):  # fmt: skip
            out[f"{attention}{name}/kernel"] = weight.T.reshape(width, heads, -1)
            out[f"{attention}{name}/bias"] = bias.reshape(heads, -1)
        out[f"{attention}out/kernel"] = state[f"{block}attn.proj.weight"].T.reshape(heads, -1, width)
        out[f"{attention}out/bias"] = state[f"{block}attn.proj.bias"]
        for r in (1, 2):
            out[f"{place}MlpBlock_3/Dense_{r - 1}/kernel"] = state[f"{block}mlp.fc{r}.weight"].T
            out[f"{place}MlpBlock_3/Dense_{r - 1}/bias"] = state[f"{block}mlp.fc{r}.bias"]
    return {key: value.numpy() for key, value in out.items()}


def test_npz_files_of_google(tmp_path):
    state = vit().state_dict()
    table = google(state)
    np.savez(tmp_path / "augreg.npz", **table)
    same(loaded(tmp_path / "augreg.npz")[0], state)
    save_file(state, tmp_path / "w.safetensors")
    same(loaded(tmp_path / "augreg.npz", img_size=32)[0], loaded(tmp_path / "w.safetensors", img_size=32)[0])
    for changes, message in (({"depth": 1}, "it has more blocks"), ({"depth": 3}, "does not fit"),
                             ({"patch_size": 8}, "its patches have another size"),
                             ({"reg_tokens": 1}, "lacks reg_token"), ({"embed_dim": 48}, "does not fit")):  # fmt: skip
        with pytest.raises(WeightsError, match=message):
            loaded(tmp_path / "augreg.npz", **changes)
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    with pytest.raises(WeightsError, match="other.npz: does not fit this backbone"):
        loaded(tmp_path / "other.npz")
    np.savez(tmp_path / "bad.npz", **table | {"cls": table["cls"] * np.nan})
    with pytest.raises(WeightsError, match="lacks cls_token"):
        loaded(tmp_path / "bad.npz")


@pytest.mark.parametrize(
    "make, message",
    {
        "student and teacher": (lambda s: {"student": s, "teacher": changed(s)},
                                "holds 2 backbones, student and teacher; save"),
        "an average beside it": (lambda s: {"state_dict": s, "state_dict_ema": changed(s)},
                                 "state_dict and state_dict_ema"),
        "both in one table": (
            lambda s: under("teacher.backbone.", s) | under("student.backbone.", changed(s)),
            "2 backbones, teacher.backbone and student.backbone",
        ),
        "the top and below": (lambda s: {**s, "ema": changed(s)}, "2 backbones, the top and ema"),
        "half stripped": (lambda s: under("module.", dict(list(s.items())[:-1])) | dict(list(s.items())[-1:]),
                          "lacks norm.bias"),
        "adapted": (lambda s: under("model.", s | {"blocks.0.lora_a": torch.ones(2)}), "has blocks.0.lora_a"),
        "no backbone": (lambda s: {"net.conv.weight": torch.ones(2)}, "lacks blocks.0.attn.proj.bias"),
        "other numbers of blocks": (lambda s: under("model.", vit(depth=3).state_dict()), "has blocks.2.attn"),
        "other patches": (
            lambda s: vit(patch_size=8).state_dict() | {"mask_token": torch.ones(1)},
            r"patch_embed.proj.weight has shape \(24, 3, 8, 8\), the model needs",
        ),
        "a run": (lambda s: {"proxies.bias": torch.ones(2), "vit.head.fc.bias": torch.ones(2)}, "written by a run"),
        "another library": (
            lambda s: {"vit.embeddings.patch_embeddings.projection.weight": s["patch_embed.proj.weight"]},
            "lacks blocks.0",
        ),
        "nothing": (lambda s: {"epoch": 3}, "holds no dict of tensors"),
    }.values(),
)  # fmt: skip
def test_an_unclear_or_wrong_file_is_refused_with_the_reason(make, message, tmp_path):
    torch.save(make(vit().state_dict()), tmp_path / "w.pth")
    with pytest.raises(WeightsError, match=message) as caught:
        loaded(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


def test_a_file_of_another_kind_is_refused_by_its_kind(tmp_path):
    (tmp_path / "pointer.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>")
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "script.pt")
    (tmp_path / "torch.safetensors").write_bytes((tmp_path / "script.pt").read_bytes())
    for name, message in {"pointer.pth": "Git LFS pointer", "page.pth": "web page", "script.pt": "TorchScript program",
                          "torch.safetensors": "damaged, or not a .safetensors"}.items():  # fmt: skip
        with pytest.raises(WeightsError, match=message):
            loaded(tmp_path / name)
