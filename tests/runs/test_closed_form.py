"""The head in closed form (`runs.closed_form`), against scikit-learn, timm's own forward pass and plain loops."""

import determinism
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from vptsp_core import load, preset, retrieval_metrics, run
from vptsp_core.data import load_benchmark
from vptsp_core.data.batches import eval_batches
from vptsp_core.data.holdout import first_of_each, of_classes
from vptsp_core.errors import ConfigError
from vptsp_core.method import textbook
from vptsp_core.method.backbone import normalisation
from vptsp_core.runs.closed_form import closed_form_head, discriminant
from vptsp_core.runs.run import build_model

CPU = torch.device("cpu")


def test_without_shrinkage_the_discriminant_is_that_of_scikit_learn(monkeypatch):
    """All directions are kept, so distances are those in scikit-learn's projection."""
    monkeypatch.setattr("vptsp_core.runs.closed_form.SHRINK", 0.0)
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(9).repeat(40)
    features = (torch.randn(9, 6, generator=draw)[labels] + torch.randn(360, 6, generator=draw)) @ torch.randn(
        6, 6, generator=draw
    )
    weight, bias = discriminant(features[:, None], labels, 6)
    ours = features @ weight.T + bias
    theirs = LinearDiscriminantAnalysis(solver="svd").fit_transform(features.numpy(), labels.numpy())
    ours, theirs = torch.cdist(ours, ours), torch.cdist(*[torch.from_numpy(theirs).float()] * 2)
    scale = ours.norm() / theirs.norm()
    torch.testing.assert_close(ours, theirs * scale, rtol=1e-3, atol=1e-3 * float(ours.max()))
    assert weight.square().mean().sqrt().item() == pytest.approx((2 / 12) ** 0.5)
    assert torch.cat([features @ weight.T + bias]).mean(0).abs().max() < 1e-4


def test_a_narrow_discriminant_keeps_the_directions_that_tell_classes_apart():
    draw = torch.Generator().manual_seed(1)
    labels = torch.arange(20).repeat(30)
    apart = torch.randn(20, 2, generator=draw)[labels]
    noise = torch.randn(600, 8, generator=draw) * torch.tensor([0.2, 0.2, 2, 2, 2, 2, 2, 2])
    noise[:, :2] += apart
    weight, _ = discriminant(noise[:, None], labels, 2)
    share = weight.square() / weight.square().sum(1, keepdim=True)
    assert share[:, :2].sum(1).min() > 0.8  # the six others vary four times as much


def test_a_trained_head_is_replaced_only_within_the_context():
    images = first_of_each(of_classes(load_benchmark("glyphs").train, range(12), "few glyphs"), 5)
    model = build_model(preset("demo", method="linear"), 12, CPU)
    with torch.no_grad():
        for parameter in model.vit.sample_head.parameters():  # as if it had been trained, its LayerNorm too
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    trained = {name: value.clone() for name, value in model.state_dict().items()}
    pixels = torch.cat(list(eval_batches(images, model.config, normalisation(model.vit.backbone), 64, CPU)))
    with torch.no_grad(), closed_form_head(model, images):
        found = model(pixels)
        pooled = model.vit.backbone(pixels)  # timm's own forward pass
    normed = F.layer_norm(pooled, pooled.shape[-1:])
    weight, bias = discriminant(normed[:, None], torch.from_numpy(images.labels), 96)
    torch.testing.assert_close(found, F.normalize(normed @ weight.T + bias, dim=-1), rtol=1e-3, atol=1e-4)
    assert all(torch.equal(value, trained[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", ["linear", "vptsp"])
def test_a_run_trains_as_usual_and_ends_with_the_closed_form(letters, tmp_path, method):
    def trained(**changes):
        config = preset("demo", **determinism.SHORT | dict(method=method, epochs=2, eval_start=0) | changes)
        return run(config, data=letters, results=tmp_path, progress=False)

    usual, closed = trained(), trained(final_head="closed_form")
    assert closed.history["loss"].tolist() == usual.history["loss"].tolist()  # the second epoch's too
    assert closed.config.hash() != usual.config.hash() and closed.metrics["MAP@R"] != usual.metrics["MAP@R"]
    test = load_benchmark(closed.config.dataset, letters).test
    found = retrieval_metrics(torch.from_numpy(load(closed.path, "cpu").embed(test)), torch.from_numpy(test.labels))
    assert found["R@1"] == pytest.approx(closed.metrics["R@1"], abs=1e-6)


@pytest.mark.parametrize("changes", [dict(final_head="closed_form"), dict(start="heads")], ids=str)
def test_a_head_wider_than_the_tokens_is_refused_before_training(tmp_path, changes):
    config = preset("smoke", embed_dim=97, **changes)
    (key,) = changes
    with pytest.raises(ConfigError, match=f"embed_dim = 97 must be at most 96, the width of demo_vit, for {key}"):
        run(config, results=tmp_path, progress=False)


def test_the_first_images_of_each_class():
    labels = np.array([2, 0, 1, 0, 2, 0, 2])

    class Labelled:
        name, class_names, store = "some", ("a", "b", "c"), None

    Labelled.labels = labels
    found = first_of_each(Labelled(), 2)
    assert found.rows.tolist() == [1, 3, 2, 0, 4] and found.labels.tolist() == [0, 0, 1, 2, 2]


def test_two_pooled_tokens_count_as_two_samples_of_their_class():
    torch.manual_seed(0)
    features, labels = torch.randn(30, 2, 6), torch.arange(5).repeat(6)
    found = discriminant(features, labels, 3)
    wanted = discriminant(features.flatten(0, 1)[:, None], labels.repeat_interleave(2), 3)
    torch.testing.assert_close(found, wanted)


def test_the_closed_form_reads_the_tokens_that_the_prompts_have_changed():
    images = first_of_each(of_classes(load_benchmark("glyphs").train, range(12), "few"), 5)
    model = build_model(preset("demo", method="vpt"), 12, CPU)
    pixels = torch.cat(list(eval_batches(images, model.config, normalisation(model.vit.backbone), 64, CPU)))
    with torch.no_grad():
        model.vit.prompts.normal_()
        prompts = [model.vit.prompts[i][None, :n] for i, n in enumerate(model.vit.prompt_counts)]
        (pooled,) = textbook.pooled_tokens(model.vit.backbone, pixels, prompts, "cls")
        normed = F.layer_norm(pooled, pooled.shape[-1:])
        weight, bias = discriminant(normed[:, None], torch.from_numpy(images.labels), 96)
        expected = F.normalize(normed @ weight.T + bias, dim=-1)
        with closed_form_head(model, images):
            torch.testing.assert_close(model(pixels), expected, rtol=1e-3, atol=1e-3)
