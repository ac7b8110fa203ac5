"""The exported sample tower against the textbook form of its model: prompts put before every block."""

import json

import numpy as np
import pytest
import torch

import vptsp_core.deploy.export as export
from tests.method.test_vit import make, tiny
from tests.runs.test_embedder import learned
from vptsp_core.__main__ import main
from vptsp_core.errors import VptspError
from vptsp_core.method import textbook
from vptsp_core.runs.embedder import Embedder

BOUND = 1e-4


def embedder(backbone: dict, **changes) -> Embedder:
    short = dict(image_size=32, resize=32, prompt_layers=2, class_layers=2, adapter_layers=1)
    model = make(tiny(depth=2, **backbone), **short | changes).float()
    return Embedder(model, run="0123456789ab", metrics={"R@1": 0.5})


def reference(made: Embedder, images: torch.Tensor) -> torch.Tensor:
    """Concatenate the prompts, run timm's blocks, and drop the prompts' outputs."""
    vit = made.model.vit
    prompts = [vit.prompts[i][None, :n] for i, n in enumerate(vit.prompt_counts)] if vit.prompts is not None else []
    with torch.inference_mode():
        tokens = textbook.pooled_tokens(vit.backbone, (images - 0.5) / 0.5, prompts, vit.pool, list(vit.adapters))
        out = sum(tokens) / len(tokens) if vit.sample_head is None else textbook.embedding(vit.sample_head, tokens)
    return torch.nn.functional.normalize(out, dim=-1)


KINDS = {
    "vptsp, fewer prompts a block": (dict(), dict(prompts=4, prompt_step=1)),
    "a block without prompts": (dict(), dict(prompt_layers=1)),
    "vpt, average": (dict(global_pool="avg"), dict(method="vpt", pool="avg")),
    "registers, norms of q and k, scales": (dict(reg_tokens=2, qk_norm=True, init_values=0.1), dict(method="vpt")),
    "two tokens": (dict(distilled=True), dict(method="vpt")),
    "first norm": (dict(pre_norm=True), dict(method="vpt")),
    "adapter": (dict(), dict(method="adapter")),
    "linear": (dict(), dict(method="linear", bitfit=False)),
    "full": (dict(), dict(method="full", bitfit=False)),
    "frozen": (dict(), dict(method="frozen", bitfit=False)),
}


@pytest.mark.parametrize(("backbone", "changes"), KINDS.values(), ids=KINDS.keys())
def test_tower_and_program_are_the_model(backbone, changes):
    made = embedder(backbone, **changes)
    program = export.export_program(made)
    assert len(program.graph_signature.user_inputs) == 1
    assert not [name for name in program.state_dict if "prompts" in name and not name.startswith("prompts_")]
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        with torch.inference_mode():
            found = program.module()(images)
        assert found.shape[0] == count and found.dtype == torch.float32
        torch.testing.assert_close(found, reference(made, images), atol=BOUND, rtol=0)


@pytest.mark.parametrize("kind", ["vptsp, fewer prompts a block", "adapter"])
def test_onnx_is_the_model(tmp_path, kind):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (extra: export)")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed (extra: export)")
    backbone, changes = KINDS[kind]
    made = embedder(backbone, **changes)
    export.write_onnx(tmp_path / "bird.onnx", made)
    session = onnxruntime.InferenceSession(str(tmp_path / "bird.onnx"), providers=["CPUExecutionProvider"])
    assert [(i.name, i.type, i.shape[1:]) for i in session.get_inputs()] == [("images", "tensor(float)", [3, 32, 32])]
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        (found,) = session.run(["embeddings"], {"images": images.numpy()})
        np.testing.assert_allclose(found, reference(made, images).numpy(), atol=BOUND, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    told = session.get_modelmeta().custom_metadata_map
    assert told["run"] == "0123456789ab" and told["backbone"] == made.config.backbone
    prepared = json.loads(told["preprocessing"])
    assert (prepared["resize"], prepared["crop"], prepared["mean"], prepared["std"]) == (32, 32, [0.5] * 3, [0.5] * 3)
    assert [path.name for path in tmp_path.iterdir()] == ["bird.onnx"]


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(VptspError, match="ONNX needs onnx; pip install"):
        export.write_onnx(tmp_path / "bird.onnx", embedder({}))
    assert not list(tmp_path.iterdir())


def test_the_command_exports_a_saved_embedder(tmp_path, capsys):
    """`torch.export.load` reads the file without this package."""
    made = learned(method="vpt")
    file = made.save(tmp_path / "bird.safetensors")
    assert main(["export", str(file), "--to", str(tmp_path / "bird.pt2")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'bird.pt2'}  ")
    kept = file.read_bytes()
    assert main(["export", str(file), "--to", str(file)]) == 2 and file.read_bytes() == kept
    assert capsys.readouterr().err.endswith("which must not change; name another place\n")
    images, about = torch.rand(2, 3, 40, 40), {"about.json": ""}
    found = torch.export.load(tmp_path / "bird.pt2", extra_files=about).module()(images)
    torch.testing.assert_close(found, reference(made, images), atol=BOUND, rtol=0)
    assert json.loads(about["about.json"])["backbone"] == made.config.backbone
