"""A trained model in one file: its content, the same embeddings as before, and the errors of bad files."""

import json

import numpy as np
import pytest
import safetensors
import torch
from reseal import rewrite_header
from safetensors.torch import load_file, save_file

import vptsp_core
from vptsp_core import preset, run
from vptsp_core.__main__ import main
from vptsp_core.data.glyphs import GlyphSet
from vptsp_core.errors import DataError, VptspError, WeightsError
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.step import cast_frozen_weights
from vptsp_core.runs import evaluate
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.embedder_file import HEADER
from vptsp_core.runs.run import build_model

METRICS = {"R@1": 0.5, "MAP@R": 0.25}


def learned(noise=0, **changes) -> Embedder:
    """Return a model whose learned tensors were all changed, as after training."""
    model = build_model(preset("smoke", **changes), 7, torch.device("cpu"))
    torch.manual_seed(100 + noise)
    with torch.no_grad():
        for parameter in filter(lambda p: p.requires_grad, model.parameters()):
            parameter.add_(0.05 * torch.randn_like(parameter))
    return Embedder(model, run="0123456789ab", metrics=METRICS)


@pytest.fixture(scope="module")
def pictures():
    images = GlyphSet("test", images_per_class=1)
    return [images.image(i) for i in range(3)]


def test_places_beyond_the_gallery_are_minus_one(pictures):
    embedder = learned(method="vpt").index(pictures[:2])
    scores, places = embedder.search(pictures, k=4)
    assert scores.shape == places.shape == (3, 4)
    assert np.isneginf(scores[:, 2:]).all() and (places[:, 2:] == -1).all()
    assert np.isfinite(scores[:, :2]).all() and places[:2, 0].tolist() == [0, 1]


def header_of(path) -> dict:
    with safetensors.safe_open(path, "np") as file:
        return json.loads(file.metadata()[HEADER])


METHODS = {
    "vptsp": dict(),
    "vptsp without prompts": dict(prompts=0),
    "vptsp, no bitfit": dict(bitfit=False),
    "proxies of the samples": dict(proxy_source="sample"),
    "vpt": dict(method="vpt"),
    "linear": dict(method="linear"),
    "adapter": dict(method="adapter", adapter_layers=2, adapter_dim=8, adapter_init="bert"),
    "frozen": dict(method="frozen", bitfit=False),
    "full": dict(method="full", bitfit=False),
    "average": dict(method="vpt", pool="avg"),
    "random backbone": dict(method="vpt", weights="random", seed=3),
    "another size": dict(method="vpt", image_size=32),
}


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS.keys())
def test_a_saved_embedder_embeds_as_before_and_has_the_learned_tensors(tmp_path, pictures, changes):
    before = learned(**changes)
    path = before.save(tmp_path / "bird.safetensors")
    torch.manual_seed(12345)
    state = torch.get_rng_state()
    after = vptsp_core.load(path, "cpu")
    assert torch.equal(torch.get_rng_state(), state), "loading draws nothing from the caller's generator"
    np.testing.assert_array_equal(after.embed(pictures), before.embed(pictures))
    assert (after.config, after.run, after.metrics) == (before.config, "0123456789ab", METRICS)
    assert after.checksum() == before.checksum() != learned(noise=1, **changes).checksum() or (
        changes.get("method") == "frozen"  # it has learned nothing
    )
    model = before.model
    used = [*model.vit.backbone.parameters(), *model.vit.adapters.parameters()]
    used += [] if model.vit.sample_head is None else model.vit.sample_head.parameters()
    used += [] if model.vit.prompts is None else [model.vit.prompts]
    assert sum(t.numel() for t in load_file(path).values()) == sum(p.numel() for p in used if p.requires_grad)
    again = after.save(tmp_path / "again.safetensors")
    assert again.read_bytes() == path.read_bytes()


def test_a_run_and_its_file_give_the_same_model(tmp_path, pictures, capsys):
    config = preset("smoke", weights="random", steps_per_epoch=2, batch=16, epochs=1)
    done = run(config, results=tmp_path, progress=False, device="cpu")
    file = tmp_path / "bird.safetensors"
    assert main(["export", str(done.path), "--to", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}  {file.stat().st_size / 1e6:.2f} MB\n"
    run_, kept = vptsp_core.load(done.path, "cpu"), vptsp_core.load(file, "cpu")
    np.testing.assert_array_equal(run_.embed(pictures), kept.embed(pictures))
    assert run_.checksum() == kept.checksum() and run_.metrics == kept.metrics == dict(done.metrics)
    header = header_of(file)
    assert header["run"] == done.record["hash"] == run_.run and header["config"] == config.to_dict()
    assert header["vptsp_core"] == vptsp_core.__version__ and header["backbone"] == "demo_vit"
    expected = {"resize": 44, "interpolation": "bilinear", "crop": 40, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert header["preprocessing"] == expected | {"resize": config.resize}
    assert not any("proxies" in name or "class_prompts" in name or "proxy_head" in name for name in load_file(file))


def test_a_file_of_weights_is_identified_by_its_content(tmp_path, pictures):
    places = {name: tmp_path / name / "vit.safetensors" for name in ("first", "moved", "other")}
    for path in places.values():
        path.parent.mkdir()
    state = load_backbone("demo_vit").state_dict()
    save_file(state, places["first"])
    before = learned(method="vpt", weights=str(places["first"]))
    file, wanted = before.save(tmp_path / "kept" / "bird.safetensors"), before.embed(pictures)
    np.testing.assert_array_equal(vptsp_core.load(file, "cpu").embed(pictures), wanted)
    save_file(state | {"norm.weight": state["norm.weight"] * 1.001}, places["other"])
    with pytest.raises(WeightsError, match=r"bird.safetensors: the weights of demo_vit .* weights=FILE"):
        vptsp_core.load(file, "cpu", weights=places["other"])
    places["first"].rename(places["moved"])
    with pytest.raises(WeightsError, match="say where they are with weights=FILE"):
        vptsp_core.load(file, "cpu")
    np.testing.assert_array_equal(vptsp_core.load(file, "cpu", weights=places["moved"]).embed(pictures), wanted)
    places["moved"].rename(file.parent / "vit.safetensors")  # a file beside the embedder is found
    np.testing.assert_array_equal(vptsp_core.load(file, "cpu").embed(pictures), wanted)
    rewrite_header(file, HEADER, lambda header: header["config"].update(weights=r"D:\birds\vit.safetensors"))
    np.testing.assert_array_equal(vptsp_core.load(file, "cpu").embed(pictures), wanted)  # also with a path of Windows


def test_a_run_accepts_a_moved_file_of_weights(tmp_path):
    state = load_backbone("demo_vit").state_dict()
    save_file(state, tmp_path / "own.safetensors")
    config = preset("smoke", method="frozen", bitfit=False, weights=str(tmp_path / "own.safetensors"))
    done = run(config, results=tmp_path, progress=False, device="cpu")
    (tmp_path / "own.safetensors").rename(tmp_path / "moved.safetensors")
    save_file(state | {"norm.weight": state["norm.weight"] * 1.001}, tmp_path / "other.safetensors")
    vptsp_core.load(done.path, "cpu", weights=tmp_path / "moved.safetensors")
    with pytest.raises(WeightsError, match="other.safetensors is not the file it was trained on"):
        vptsp_core.load(done.path, "cpu", weights=tmp_path / "other.safetensors")
    (tmp_path / "other.safetensors").rename(tmp_path / "own.safetensors")  # the file that the config names has changed
    with pytest.raises(WeightsError, match="own.safetensors is not the file it was trained on"):
        vptsp_core.load(done.path, "cpu")


def test_a_run_with_pretrained_weights_accepts_their_file_and_no_other_weights(tmp_path, pictures, monkeypatch):
    config = preset("smoke", batch=16)
    done = run(config, results=tmp_path, progress=False, device="cpu")
    wanted, state = vptsp_core.load(done.path, "cpu").embed(pictures), load_backbone("demo_vit").state_dict()
    save_file(state, tmp_path / "same.safetensors")
    save_file(state | {"norm.weight": state["norm.weight"] * 1.001}, tmp_path / "other.safetensors")
    same = vptsp_core.load(done.path, "cpu", weights=tmp_path / "same.safetensors")
    np.testing.assert_array_equal(same.embed(pictures), wanted)
    with pytest.raises(WeightsError, match="the weights of demo_vit .* are not those it was trained on"):
        vptsp_core.load(done.path, "cpu", weights=tmp_path / "other.safetensors")

    def newer(*given):
        return load_backbone("demo_vit", str(tmp_path / "other.safetensors"))

    monkeypatch.setattr("vptsp_core.runs.embedder_file.load_backbone", newer)  # of another version of timm or the Hub
    with pytest.raises(WeightsError, match=r"the weights of demo_vit \(pretrained\) are not those it was trained on"):
        vptsp_core.load(done.path, "cpu")


def test_a_model_trained_with_fp16_is_loaded_without_a_gpu(tmp_path, pictures):
    before = learned()
    before.config = before.config.replace(precision="fp16")
    with pytest.warns(UserWarning, match="trained with fp16, computes in float32 on cpu"):
        after = vptsp_core.load(before.save(tmp_path / "bird.safetensors"), "cpu")
    np.testing.assert_array_equal(after.embed(pictures), before.embed(pictures))


def test_full_fine_tuning_needs_no_other_file(tmp_path, pictures):
    weights = tmp_path / "vit.safetensors"
    save_file(load_backbone("demo_vit").state_dict(), weights)
    before = learned(method="full", bitfit=False, weights=str(weights))
    path = before.save(tmp_path / "bird.safetensors")
    weights.unlink()
    np.testing.assert_array_equal(vptsp_core.load(path, "cpu").embed(pictures), before.embed(pictures))


DAMAGE = {
    "format": (lambda h: h.update(format=99), "format 99 is not known here"),
    "another backbone": (lambda h: h["config"].update(embed_dim=32), "does not fit"),
    "normalisation": (lambda h: h["preprocessing"].update(mean=[0, 0, 0]), "prepares images differently"),
    "checksum": (lambda h: h.update(frozen="0" * 16), "not those it was trained on"),
}


@pytest.mark.parametrize(("change", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_a_header_that_does_not_fit_is_refused(tmp_path, capsys, change, message):
    path = learned(method="vpt").save(tmp_path / "bird.safetensors")
    rewrite_header(path, HEADER, change)
    with pytest.raises(WeightsError, match=message) as caught:
        vptsp_core.load(path, "cpu")
    assert "bird.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_damaged_and_foreign_files_are_named_in_one_line(tmp_path, capsys):
    path = learned(method="vpt").save(tmp_path / "bird.safetensors")
    whole = path.read_bytes()
    for content in (whole[:-100], whole[:50], b"", b"PK\x03\x04 a pickle", b"\xff" * 4000):
        path.write_bytes(content)
        assert main(["export", str(path), "--to", str(tmp_path / "out.onnx")]) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"error: weights {path}: ") and error.count("\n") == 1
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match="is not a saved embedder"):
        vptsp_core.load(path)
    with pytest.raises(WeightsError, match="holds no finished run"):
        vptsp_core.load(tmp_path / "nowhere")
    (tmp_path / "bird.onnx").write_bytes(whole)
    with pytest.raises(WeightsError, match="bird.onnx is not a saved embedder; give a run's folder"):
        vptsp_core.load(tmp_path / "bird.onnx")
    for to, message in (("bird.pkl", "unknown kind '.pkl'"), ("bird", "unknown kind ''")):
        assert main(["export", str(tmp_path), "--to", to]) == 2
        assert message in capsys.readouterr().err


def test_tensors_of_every_floating_point_type_are_embedded():
    made, images = learned(), torch.rand(2, 3, 40, 40)
    np.testing.assert_array_equal(made.embed(images.double()), made.embed(images))
    np.testing.assert_array_equal(made.embed(images.half()), made.embed(images.half().float()))
    with pytest.raises(VptspError, match="no images to embed"):
        made.embed(images[:0])


@pytest.mark.parametrize("given", [None, 7, [float("nan")]])
def test_a_value_that_is_not_an_image_is_an_error(given):
    with pytest.raises(DataError, match="a (NoneType|int|float) is not an image; give paths, PIL images"):
        learned().embed(given)


def test_the_checksum_depends_on_preprocessing_and_pooling():
    others = ({}, dict(resize=48), dict(pool="avg"))
    assert len({learned(method="vpt", **changes).checksum() for changes in others}) == 3


def test_a_saved_embedder_keeps_its_precision(tmp_path):
    path = learned(precision="bf16").save(tmp_path / "bird.safetensors")
    assert vptsp_core.load(path, "cpu").model.vit.autocast is torch.bfloat16


def test_more_images_than_one_batch_give_the_same_embeddings(monkeypatch):
    made, glyphs = learned(), GlyphSet("test", images_per_class=1)
    given = [torch.rand(5, 3, 40, 40), [glyphs.image(index) for index in range(5)]]
    whole = [made.embed(images) for images in given]
    monkeypatch.setattr(evaluate, "TOKENS_AT_ONCE", 50)
    for images, wanted in zip(given, whole, strict=True):
        np.testing.assert_allclose(made.embed(images), wanted, atol=1e-5)


def test_a_model_whose_frozen_weights_were_rounded_is_not_saved(tmp_path):
    """Its checksum would not be that of the backbone, so the file could not be loaded."""
    made = learned(method="vpt")
    made.model.vit.autocast = torch.bfloat16
    cast_frozen_weights(made.model.vit)
    with pytest.raises(VptspError, match="TrainStep has rounded the frozen weights of this model; load its learned_st"):
        made.save(tmp_path / "rounded.safetensors")
    assert not list(tmp_path.iterdir())
