"""The start from the data (`runs.start_from_data`), against timm's own forward pass and plain loops."""

import determinism
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vptsp_core import load, preset, retrieval_metrics, run
from vptsp_core.data import load_benchmark
from vptsp_core.data.batches import eval_batches
from vptsp_core.data.holdout import first_of_each, of_classes
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.config import RunConfig
from vptsp_core.method.loop import Loop
from vptsp_core.method.model import MetricModel
from vptsp_core.runs.closed_form import class_means, discriminant
from vptsp_core.runs.run import build_model
from vptsp_core.runs.start_from_data import KEEP, start_from_data

CLASSES = 12
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images():
    few = of_classes(load_benchmark("glyphs").train, range(CLASSES), "few glyphs")
    return first_of_each(few, 5)


def tiny(**changes) -> RunConfig:
    return preset("demo", batch=8, class_layers=4, prompt_layers=3, class_prompts=3, **changes)


def started(images, **changes) -> MetricModel:
    model = build_model(tiny(**changes), images.num_classes, CPU)
    start_from_data(model, images)
    return model


def trunk(model: MetricModel, images) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Run timm's own forward pass: LayerNormed pooled tokens (N, D), and the input of each block (N, T, D)."""
    backbone, inputs = model.vit.backbone, []
    hooks = [b.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for b in backbone.blocks]
    with torch.no_grad():
        pixels = torch.cat(list(eval_batches(images, model.config, normalisation(backbone), 64, CPU)))
        pooled = backbone(pixels)
    for hook in hooks:
        hook.remove()
    return F.layer_norm(pooled, pooled.shape[-1:]), inputs


def test_heads_proxies_and_gate(images):
    model = started(images, start="proxies")
    normed, _ = trunk(model, images)
    labels = torch.from_numpy(images.labels)
    weight, bias = discriminant(normed[:, None], labels, 96)
    for head in (model.vit.sample_head, model.vit.proxy_head):
        torch.testing.assert_close((head.fc.weight, head.fc.bias), (weight, bias), rtol=1e-3, atol=1e-4)
    embeddings = F.normalize(normed @ weight.T + bias, dim=-1)
    expected = F.normalize(torch.stack([embeddings[labels == c].mean(0) for c in range(CLASSES)]), dim=-1)
    for found in (model.proxies.bias, model.proxies.state):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(class_means(embeddings, labels)[3], embeddings[labels == 3].mean(0))
    p = F.normalize(torch.randn(4, 1, 96), dim=-1)
    moved = F.normalize(model.proxies.accumulator(p, expected[:4]), dim=-1)
    assert (moved * expected[:4]).sum(1).min() > 0.95  # the GRU keeps its state
    assert started(images, start="proxies", semantics="paper").proxies.accumulator.b_z[0] == -KEEP


@pytest.mark.parametrize("table", ["dense", "rowwise", "host"])
def test_prompts_are_patch_tokens_of_their_block_and_class(images, table):
    config = tiny(start="all", class_optimizer="dense" if table == "dense" else "rowwise")
    model = build_model(config, CLASSES, CPU, "host" if table == "host" else "device")
    start_from_data(model, images)
    _, inputs = trunk(model, images)
    labels, prefix = torch.from_numpy(images.labels), model.vit.backbone.num_prefix_tokens
    for block in range(4):
        patches = inputs[block][:, prefix:]
        for c in range(CLASSES):
            own = patches[labels == c].flatten(0, 1)
            distance = torch.cdist(model.class_prompts.table[c, block].detach(), own)
            assert distance.min(1).values.max() < 1e-2, (block, c)
            others = torch.cdist(model.class_prompts.table[c, block].detach(), patches[labels != c].flatten(0, 1))
            assert block == 0 or others.min() > distance.min()  # empty patches are equal there
        if block < 3:
            distance = torch.cdist(model.vit.prompts[block].detach(), patches.flatten(0, 1))
            assert distance.min(1).values.max() < 1e-2


def test_each_start_changes_only_its_tensors(images):
    plain = dict(started(images).named_parameters()) | dict(started(images).named_buffers())
    moved = {}
    for stage in ("heads", "proxies", "all"):
        model = started(images, start=stage)
        tensors = dict(model.named_parameters()) | dict(model.named_buffers())
        moved[stage] = {name for name in tensors if not torch.equal(tensors[name], plain[name])}
    heads = {f"vit.{which}_head.fc.{part}" for which in ("sample", "proxy") for part in ("weight", "bias")}
    proxies = {"proxies.bias", "proxies.state", "proxies.accumulator.b_z"}
    assert moved == {
        "heads": heads, "proxies": heads | proxies, "all": heads | proxies | {"vit.prompts", "class_prompts.table"},
    }  # fmt: skip


@pytest.mark.parametrize("changes", [dict(method="vpt"), dict(method="linear"), dict(embed_dim=40, accumulator="lstm")])
def test_other_methods_and_widths_start_too(images, changes):
    model = started(images, start="all", **changes)
    normed, _ = trunk(model, images)
    with torch.no_grad():
        embeddings = F.normalize(model.vit.sample_head(normed[:, None]), dim=-1)
        means = class_means(embeddings, torch.from_numpy(images.labels))
    torch.testing.assert_close(model.proxies.bias, F.normalize(means, dim=-1), rtol=1e-3, atol=1e-4)


def test_a_run_without_a_step_is_its_start(tmp_path):
    config = preset("demo", method="linear", bitfit=False, start="heads", epochs=0)
    done = run(config, results=tmp_path, progress=False)
    assert done.metrics["epoch"] == 0 and done.queries["R@1"].shape == (500,)
    assert "validation R@1" not in done.history
    test = load_benchmark("glyphs").test
    found = retrieval_metrics(torch.from_numpy(load(done.path, "cpu").embed(test)), torch.from_numpy(test.labels))
    assert found["MAP@R"] == pytest.approx(done.metrics["MAP@R"], abs=1e-6)
    frozen = run(config.replace(method="frozen"), results=tmp_path, progress=False)
    assert done.metrics["R@1"] > frozen.metrics["R@1"] + 0.05  # for classes that were not in the training set


def short(letters, folder, **changes):
    config = preset("demo", **determinism.SHORT | dict(epochs=2, eval_start=0) | changes)
    return run(config, data=letters, results=folder, progress=False)


def test_the_start_is_epoch_0_and_can_be_the_best(letters, tmp_path):
    """A too high learning rate ruins the training, so the run reports the start, with its weights and queries."""
    started = dict(start="heads", selection="validation")
    ruined = short(letters, tmp_path, **started, lr=5.0, lr_proxy=5.0)
    assert ruined.history["epoch"].tolist() == [0, 1, 2] and ruined.metrics["epoch"] == 0
    assert ruined.history.loc[0, ["loss", "lr", "seconds"]].isna().all()
    alone = short(letters, tmp_path, **started, epochs=0)
    assert alone.metrics["epoch"] == 0 and "validation R@1" in alone.history
    for name, value in alone.metrics.items():
        assert ruined.metrics[name] == value, name
    assert np.array_equal(ruined.queries["R@1"], alone.queries["R@1"])
    kept, head = load(ruined.path, "cpu"), load(alone.path, "cpu")
    image = load_benchmark("glyphs").test.image(0)
    assert np.array_equal(kept.embed([image]), head.embed([image]))
    released = short(letters, tmp_path)
    assert released.history["epoch"].tolist() == [1, 2], "the paper's start has no such row"


def test_a_run_cut_before_its_first_step_starts_from_the_data_once(letters, tmp_path, monkeypatch):
    changes = dict(start="all", class_optimizer="rowwise")
    whole = short(letters, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        patch.setattr(Loop, "train_epoch", lambda self, epoch: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            short(letters, tmp_path / "cut", **changes)
    monkeypatch.setattr("vptsp_core.runs.train.start_from_data", lambda *given: pytest.fail("started again"))
    again = short(letters, tmp_path / "cut", **changes)
    assert again.metrics == whole.metrics and [s["after_epochs"] for s in again.record["stretches"]] == [0, 0]
    timeless = [history.drop(columns="seconds") for history in (again.history, whole.history)]
    assert timeless[0].equals(timeless[1])


def test_the_prompts_of_a_class_are_tokens_of_its_images_in_turn_and_differ_by_seed(images):
    model = started(images, start="all")
    _, inputs = trunk(model, images)
    labels, prefix = torch.from_numpy(images.labels), model.vit.backbone.num_prefix_tokens
    own = inputs[3][labels == 2][:, prefix:]
    nearest = torch.cdist(model.class_prompts.table[2, 3].detach(), own.flatten(0, 1)).argmin(1)
    assert (nearest // own.shape[1]).tolist() == [0, 1, 2]
    other = started(images, start="all", seed=1)
    assert not torch.equal(model.vit.prompts, other.vit.prompts)
    assert not torch.equal(model.class_prompts.table, other.class_prompts.table)
