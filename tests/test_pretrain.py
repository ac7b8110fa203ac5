"""Test the embedded ViT: the shipped file is as good as documented, and the command that makes it works."""

import numpy as np
import pytest
import torch
from bench import pretrain
from safetensors.torch import load_file

from vptsp_core.data.glyphs import render
from vptsp_core.method.backbone import DEMO_VIT, load_backbone


@pytest.fixture
def few_base_images(monkeypatch):
    """Draw 16 of the 746 classes once, which is enough for runs of two steps."""
    letters = pretrain.classes()["base"][:16]
    drawn = render("train", 2)
    monkeypatch.setattr(pretrain, "render", lambda *_: (drawn[0][:32], drawn[1][:32], ()))
    monkeypatch.setattr(pretrain, "template_anchors", lambda width: torch.randn(len(letters), width))


def test_shipped_weights_retrieve_as_documented():
    model = load_backbone("demo_vit")
    images, labels, _ = render("test", 20)
    x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).float() / 127.5 - 1
    with torch.no_grad():
        tokens = torch.cat([model.forward_features(part)[:, 0] for part in x.split(500)])
    unit = torch.nn.functional.normalize(tokens)
    near = (unit @ unit.T).fill_diagonal_(-1).argmax(1).numpy()
    assert np.mean(labels[near] == labels) == pytest.approx(pretrain.RECORD["R@1"], abs=0.005)


def test_shipped_file_is_small_and_has_no_classifier():
    path = pretrain.SHIPPED
    assert path.stat().st_size < 4e6
    state = load_file(path)
    assert all(value.dtype == torch.float16 for value in state.values())
    assert state["patch_embed.proj.weight"].shape[0] == DEMO_VIT["embed_dim"]
    assert not any(key.startswith("head") for key in state)


def test_two_steps_write_a_whole_file_and_repeat(few_base_images, tmp_path):
    run = {"steps": 2, "batch_size": 8, "images_per_class": 1}
    one = pretrain.pretrain(tmp_path / "new" / "a.safetensors", **run)
    two = pretrain.pretrain(tmp_path / "b.safetensors", **run)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == ["a.safetensors", "b.safetensors"]
    assert one.read_bytes() == two.read_bytes()
    load_backbone("demo_vit", weights=str(one))


def test_template_anchors_put_look_alikes_together(monkeypatch):
    base = pretrain.classes()["base"]
    letters = "CwÇ" + "".join(sorted(set(base[:100]) - set("CwÇ")))
    assert set(letters) <= set(base)
    monkeypatch.setattr(pretrain, "classes", lambda: {"base": letters})
    anchors = torch.nn.functional.normalize(pretrain.template_anchors(96))
    assert anchors.shape == (len(letters), 96) and anchors.isfinite().all()
    cosine = anchors @ anchors.T
    assert cosine[letters.index("Ç"), letters.index("C")] > cosine[letters.index("Ç"), letters.index("w")]
