"""LoRA: our blocks against timm's with the modules that peft wrapped; what learns, against the count of peft."""

import sys

import pytest
import torch

from vptsp_core import load, preset, run
from vptsp_core.errors import VptspError
from vptsp_core.method import textbook
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel, count_parameters
from vptsp_core.runs.record import checksum


def lora(**changes) -> RunConfig:
    return preset("smoke", method="lora", weights="random", lora_rank=3, batch=8, **changes)


def test_without_peft_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(VptspError, match="^method = 'lora' needs the package peft .*; pip install peft$"):
        model(lora())


def test_only_lora_reads_rank_and_alpha():
    assert preset("smoke", lora_rank=3).hash() == preset("smoke").hash()
    assert lora().hash() != lora().replace(lora_rank=4).hash() != lora().replace(lora_alpha=4).hash()
    with pytest.raises(VptspError, match="lora_rank = 0 must be at least 1"):
        preset("smoke", lora_rank=0)


peft = pytest.importorskip("peft", reason="LoRA is peft's, which is not installed: pip install peft")


def model(config: RunConfig, *, moved: bool = False) -> MetricModel:
    torch.manual_seed(0)
    backbone = load_backbone(config.backbone, config.weights, config.image_size)
    made = MetricModel(config, backbone, 6)
    if moved:  # B starts at zero, which would hide errors
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    return torch.randn(6, 3, 40, 40, generator=draw), torch.arange(6)


@pytest.mark.parametrize("bitfit", [False, True])
def test_loss_and_gradients_equal_those_of_timm_and_peft(bitfit):
    config = lora(bitfit=bitfit)
    ours = model(config, moved=True).double()
    images, labels = torch.randn(6, 3, 40, 40, dtype=torch.double), torch.arange(6)
    found = {}
    for name, loss in (("ours", ours.loss), ("theirs", lambda *of: textbook.loss(ours, *of))):
        ours.zero_grad()
        value = loss(images, labels)
        value.backward()
        found[name] = value.detach(), {n: p.grad.clone() for n, p in ours.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found["ours"][0], found["theirs"][0], rtol=1e-9, atol=0)
    (_, got), (_, wanted) = found["ours"], found["theirs"]
    assert got.keys() == wanted.keys()
    assert {n.rsplit(".", 3)[1] for n in got if ".lora_" in n} == {"lora_A", "lora_B"}
    for name in got:
        torch.testing.assert_close(got[name], wanted[name], rtol=1e-6, atol=1e-9)


def test_peft_counts_the_same_parameters_and_the_factors_change_the_embedding():
    config = lora(bitfit=False)
    ours = model(config)
    twin = peft.get_peft_model(
        load_backbone("demo_vit", "random", 40), peft.LoraConfig(r=3, target_modules=r".*attn\.qkv")
    )
    learns, _ = twin.get_nb_trainable_parameters()
    beside = sum(p.numel() for n, p in ours.named_parameters() if p.requires_grad and "lora" not in n)
    assert count_parameters(ours)["tunable"] == learns + beside
    images, _ = batch()
    plain = model(config.replace(method="linear"))
    plain.load_state_dict({n: v for n, v in ours.state_dict().items() if "head" in n}, strict=False)
    torch.testing.assert_close(ours(images), plain(images))  # B = 0 changes nothing
    assert checksum(ours.vit.backbone) == checksum(plain.vit.backbone)
    assert (model(config, moved=True)(images) - ours(images)).abs().max() > 1e-2


def test_a_run_learns_and_is_loaded(tmp_path):
    done = run(lora(steps_per_epoch=2), results=tmp_path, progress=False)
    embedder = load(done.path, "cpu")
    state = embedder.model.learned_state()
    assert sum(".lora_" in name for name in state) == 12
    assert not any("base_layer.weight" in name for name in state)
    assert any(value.abs().max() > 0 for name, value in state.items() if "lora_B" in name)


def test_a_step_is_one_graph():
    """With the options of `compiled_loss`, but without machine code, which would take minutes."""
    ours = model(lora(), moved=True)
    images, labels = batch()
    compiled = torch.compile(ours.loss, fullgraph=True, dynamic=False, backend="eager")
    torch.testing.assert_close(compiled(images, labels), ours.loss(images, labels), rtol=1e-5, atol=1e-5)


def test_lora_is_scaled_by_alpha_over_rank():
    config = lora(lora_alpha=6)
    assert model(config).vit.backbone.blocks[0].attn.qkv.scaling["default"] == 6 / config.lora_rank
