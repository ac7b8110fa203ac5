"""The prompted ViT against the textbook form: the loss and all gradients.

Most tests use float64, in which both forms agree to 1e-9, so that rounding cannot hide an error. Some use float32.
"""

import warnings
from unittest.mock import Mock

import pytest
import timm
import torch
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

from vptsp_core.errors import ConfigError
from vptsp_core.method import textbook
from vptsp_core.method.adapters import Adapter
from vptsp_core.method.backbone import check_supported, load_backbone, pooling, shape
from vptsp_core.method.config import RunConfig
from vptsp_core.method.model import MetricModel, count_parameters
from vptsp_core.method.vit import Head, prompt_counts

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=4, num_heads=2, num_classes=0)
CLASSES = 7
BOUND = 1e-9


def tiny(**options):
    """Return a random ViT whose biases, scales and tokens are random too, so that a test can see each of them."""
    family = VisionTransformerDistilled if options.pop("distilled", False) else VisionTransformer
    backbone = family(**TINY | options)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if parameter.dim() <= 1 or "token" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return backbone.eval()


def make(backbone=None, **changes):
    settings = dict(
        embed_dim=16, prompts=4, prompt_layers=4, class_prompts=2, class_layers=4, batch=6, samples_per_class=2,
        adapter_dim=6, adapter_layers=3, adapter_init="bert",  # lora's zeros would hide half of the gradients
    )  # fmt: skip
    config = RunConfig(**settings | changes)
    return MetricModel(config, backbone or tiny(), CLASSES).train().double()


def batch(k=2, dtype=torch.float64):
    labels = torch.randperm(CLASSES)[: 6 // k].repeat_interleave(k)
    return torch.randn(6, 3, 32, 32, dtype=dtype), labels


def both_forms(model, images, labels):
    """Return the loss and the gradients of our form and of the textbook form, from the same state."""
    found = []
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for form in (model.loss, lambda i, t: textbook.loss(model, i, t)):
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        loss = form(images, labels)
        loss.backward()
        learns = {name: p for name, p in model.named_parameters() if p.requires_grad}
        found.append((loss.detach(), {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in learns.items()}))
    return found


def assert_same(model, images, labels, bound):
    (ours, our_grads), (theirs, their_grads) = both_forms(model, images, labels)
    assert torch.allclose(ours, theirs, rtol=bound), (ours, theirs)
    assert our_grads.keys() == their_grads.keys() and len(our_grads) > 3
    for name, gradient in their_grads.items():
        scale = gradient.abs().max().clamp_min(1e-4)  # the exact gradient of the keys' biases is zero
        assert (our_grads[name] - gradient).abs().max() / scale < bound, name


CASES = {
    "plain": {},
    "different counts": dict(prompts=5, class_prompts=3),
    "decreasing": dict(prompts=4, prompt_step=1, class_prompts=3, class_step=2),
    "layers differ": dict(prompt_layers=2, class_layers=3),
    "first layers alike": dict(prompts=0, class_layers=1),
    "no sample prompts": dict(prompts=0, prompt_layers=0),
    "layers without prompts": dict(prompt_layers=1, class_layers=2),
    "no bitfit": dict(bitfit=False),
    "one image a class": dict(samples_per_class=1),
    "three images a class": dict(samples_per_class=3),
    "paper semantics": dict(semantics="paper"),
    "paper ema": dict(semantics="paper", accumulator="ema"),
    "ema": dict(accumulator="ema"),
    "tanh": dict(accumulator="gru_tanh"),
    "rnn": dict(accumulator="rnn"),
    "lstm": dict(accumulator="lstm"),
    "paper lstm": dict(semantics="paper", accumulator="lstm", samples_per_class=3),
    "attention": dict(accumulator="attention"),
    "sample": dict(proxy_source="sample"),
    "encoder": dict(proxy_source="encoder"),
    "encoder, three images a class": dict(proxy_source="encoder", samples_per_class=3, accumulator="ema"),
    "encoder without prompts": dict(proxy_source="encoder", prompts=0),
    "fixed encoder": dict(proxy_source="fixed_encoder"),
    "one tower": dict(method="vpt"),
    "linear probing": dict(method="linear"),
    "adapters": dict(method="adapter"),
    "adapters, no bitfit": dict(method="adapter", bitfit=False),
    "adapters, last block alone": dict(method="adapter", adapter_layers=1),
    "adapters, sequential": dict(method="adapter", adapter_position="sequential"),
    "adapters, norm before": dict(method="adapter", adapter_norm="before"),
    "adapters, sequential, norm before": dict(method="adapter", adapter_position="sequential", adapter_norm="before"),
    "full": dict(method="full", bitfit=False),
    "average pooling of a model with a class token": dict(pool="avg"),
}


def both_ways(model):
    """Yield the model with two towers in one batch and apart; once, if it has one tower."""
    for one_batch in (True, False) if model.vit.proxy_head is not None else (True,):
        model.vit.one_batch = one_batch
        yield model


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES.keys())
def test_same_as_textbook(changes):
    torch.manual_seed(0)
    for model in both_ways(make(**changes)):
        assert_same(model, *batch(changes.get("samples_per_class", 2)), bound=BOUND)


BACKBONES = {
    "average pooling": dict(global_pool="avg"),
    "average pooling, final norm first": dict(global_pool="avg", fc_norm=False),
    "average pooling over all tokens": dict(global_pool="avg", pool_include_prefix=True),
    "average pooling without class token": dict(global_pool="avg", class_token=False),
    "registers": dict(reg_tokens=3),
    "registers, average pooling": dict(reg_tokens=3, global_pool="avg"),
    "registers, positions on patches only": dict(reg_tokens=2, no_embed_class=True),
    "distilled": dict(distilled=True),
    "LayerScale": dict(init_values=0.5),
    "q and k norm": dict(qk_norm=True),
    "norm_pre": dict(pre_norm=True),
    "no qkv bias": dict(qkv_bias=False),
    "scaled attention norm": dict(scale_attn_norm=True),
    "no final norm": dict(final_norm=False),
    "dynamic image size": dict(dynamic_img_size=True),
}


@pytest.mark.parametrize("options", BACKBONES.values(), ids=BACKBONES.keys())
@pytest.mark.parametrize("method", ["vptsp", "full", "adapter"])
def test_same_as_textbook_on_every_kind_of_backbone(options, method):
    torch.manual_seed(1)
    for model in both_ways(make(tiny(**options), method=method, bitfit=method != "full", prompt_step=1)):
        assert_same(model, *batch(), bound=BOUND)


def test_float32_agrees_to_rounding():
    torch.manual_seed(3)
    model = make().float()
    assert_same(model, *batch(dtype=torch.float32), bound=5e-5)


def test_bf16_rounds_no_more_than_the_textbook_form():
    torch.manual_seed(4)
    model = make().float()
    images, labels = batch(dtype=torch.float32)
    exact = model.vit(images, model.class_prompts(labels[::2]))
    loss = model.loss(images, labels)
    gradient = torch.autograd.grad(loss, model.vit.prompts)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prompts = [model.vit.prompts[i][None, :n] for i, n in enumerate(model.vit.prompt_counts)]
        pooled = textbook.pooled_tokens(model.vit.backbone, images, prompts, "cls")
        theirs = textbook.embedding(model.vit.sample_head, pooled)
    model.vit.autocast = torch.bfloat16
    ours = model.vit(images, model.class_prompts(labels[::2]))
    for part, whole in zip(ours, exact, strict=True):
        assert part.dtype == torch.float32 and not torch.equal(part, whole)
        assert torch.cosine_similarity(part, whole).min() > 0.998
    assert (ours[0] - exact[0]).norm() < 1.5 * (theirs - exact[0]).norm()
    rounded = torch.autograd.grad(model.loss(images, labels), model.vit.prompts)[0]
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(rounded.flatten(), gradient.flatten(), dim=0) > 0.98


CHECKPOINTED = {
    "dropout in the accumulator": dict(gru_dropout=0.5),
    "decreasing": dict(prompt_step=1, class_step=1),
    "one tower": dict(method="vpt"),
    "linear probing": dict(method="linear", bitfit=False),
    "full": dict(method="full", bitfit=False),
    "adapters": dict(method="adapter", adapter_position="sequential"),
    "encoder": dict(proxy_source="encoder"),
}


@pytest.mark.parametrize("changes", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
@pytest.mark.parametrize("one_batch", [True, False], ids=["one batch", "apart"])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16], ids=["fp32", "bf16"])
def test_checkpointing_changes_nothing_and_keeps_less(changes, one_batch, autocast):
    torch.manual_seed(6)
    model = make(**changes).float()
    model.vit.one_batch, model.vit.autocast = one_batch, autocast
    images, labels = batch(dtype=torch.float32)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found, drawn, kept = [], [], []
    for model.vit.checkpointing in (False, True):
        model.load_state_dict(state)
        model.zero_grad(set_to_none=True)
        storages = {}
        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, seen=storages: seen.update({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()}) or t,
            lambda t: t,
        ):
            loss = model.loss(images, labels)
        loss.backward()
        drawn.append(torch.rand(1))
        kept.append(sum(storages.values()))
        found.append({"loss": loss.detach()} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    plain, checkpointed = found
    assert plain.keys() == checkpointed.keys() and len(plain) > 3 and torch.equal(*drawn)
    for name, value in plain.items():
        scale = value.abs().max().clamp_min(1e-4)
        assert (checkpointed[name] - value).abs().max() / scale < 1e-6, name
    assert kept[1] < kept[0] or changes.get("method") == "linear"  # it keeps nothing of the blocks in any case


def test_without_prompts_embeddings_equal_those_of_the_frozen_model():
    torch.manual_seed(5)
    model = make(method="frozen", bitfit=False)
    backbone, images = model.vit.backbone, torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = torch.nn.functional.normalize(backbone.forward_head(backbone.forward_features(images), pre_logits=True))
    assert torch.allclose(model(images), expected, atol=1e-6)
    assert not any(p.requires_grad for p in model.parameters())


def test_adapters_that_start_as_lora_change_nothing_at_first():
    torch.manual_seed(8)
    backbone, images = tiny(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    for changes in ({}, dict(adapter_position="sequential"), dict(adapter_norm="before")):
        torch.manual_seed(9)
        plain = make(backbone, method="linear")
        model = make(backbone, method="adapter", adapter_init="lora", **changes)
        model.vit.sample_head = plain.vit.sample_head
        assert torch.equal(model(images), plain(images))
        last = model.vit.adapters[-1]
        torch.nn.init.normal_(last.up.bias if "adapter_norm" in changes else last.norm.bias)
        assert not torch.allclose(model(images), plain(images))


def test_an_adapter_by_hand():
    adapter = Adapter(2, 1, position="parallel", norm="before", init="lora").double()
    with torch.no_grad():
        adapter.down.weight.copy_(torch.tensor([[1.0, -2.0]]))
        adapter.up.weight.copy_(torch.tensor([[3.0], [4.0]]))
        adapter.up.bias.copy_(torch.tensor([0.5, 0.0]))
    x, mlp = torch.tensor([[[9.0, 1.0]]]).double(), torch.tensor([[[1.0, 3.0]]]).double()
    # LayerNorm of (9, 1) is (1, -1): down 3, up (9.5, 12), scale 0.1; that of (1, 3) is (-1, 1): down -3, ReLU 0.
    assert torch.allclose(adapter(x, mlp), torch.tensor([[[0.95, 1.2]]]).double(), atol=1e-5)
    adapter.parallel = False
    assert torch.allclose(adapter(x, mlp), torch.tensor([[[0.05, 0.0]]]).double(), atol=1e-5)
    adapter.parallel, adapter.norm_first = True, False  # down 7, up (21.5, 28): LayerNorm (-1, 1)
    assert torch.allclose(adapter(x, mlp), torch.tensor([[[-0.1, 0.1]]]).double(), atol=1e-5)


def test_no_gradient_reaches_the_fixed_encoder_through_the_proxies():
    torch.manual_seed(10)
    images, labels = batch()
    for source, reached in (("encoder", True), ("fixed_encoder", False)):
        model = make(proxy_source=source)
        model.zero_grad(set_to_none=True)
        _, p = model.towers(images, labels[::2])
        (p * torch.randn_like(p)).sum().backward()
        assert (model.vit.prompts.grad is not None) == reached
        assert model.vit.proxy_head.fc.weight.grad.abs().sum() > 0 and model.vit.sample_head.fc.weight.grad is None
    sample = make(proxy_source="sample")
    embeddings, p = sample.towers(images, labels[::2])
    assert p is embeddings and sample.vit.proxy_head is None


def test_prompt_counts():
    assert prompt_counts(10, 12, 0) == [10] * 12
    assert prompt_counts(80, 11, 2) == [80 - 2 * i for i in range(11)]
    assert prompt_counts(5, 4, 5) == [5] and prompt_counts(0, 4, 0) == []


def test_frozen_weights_get_no_gradient_and_bitfit_only_biases():
    model = make()
    images, labels = batch()
    model.loss(images, labels).backward()
    for name, parameter in model.vit.backbone.named_parameters():
        assert (parameter.grad is not None) == ("bias" in name), name


@pytest.mark.parametrize(
    ("options", "word"),
    [(dict(block_fn=__import__("timm").models.vision_transformer.ParallelScalingBlock), "ParallelScalingBlock"),
     (dict(attn_layer="diff"), "is built of DiffAttention;")],
)  # fmt: skip
def test_unsupported_backbones_are_refused_by_name(options, word):
    with pytest.raises(ConfigError, match=word):
        check_supported(VisionTransformer(**TINY | options), "custom")


def test_a_backbone_whose_statistics_would_change_in_training_is_refused():
    with pytest.raises(ConfigError, match="backbone vit_base_mci_224 has BatchNorm, .*; choose another"):
        shape("vit_base_mci_224")


def test_other_families_are_refused_by_class(monkeypatch):
    for weights in ("random", "pretrained"):  # pretrained: before anything is downloaded
        with monkeypatch.context() as offline, pytest.raises(ConfigError, match="ResNet"):
            offline.setattr("socket.socket.connect", Mock(side_effect=AssertionError("a download")))
            load_backbone("resnet18", weights)
    with pytest.raises(ConfigError, match="not a timm model; known: .*vit_small_patch16_224"):
        load_backbone("vit_smal_patch16_224", "random")
    with pytest.raises(ConfigError, match="not a timm model"):  # an old name, without a place of its own
        load_backbone("vit_base_patch16_224_in21k", "random")
    with pytest.raises(ConfigError, match="no pretrained weights of it; give a file with weights=FILE"):
        load_backbone("vit_base_patch16_gap_224")
    with pytest.raises(ConfigError, match="no such pretrained tag"):
        load_backbone("vit_small_patch16_224.nothing", "random")


def test_pooling_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match="class token"):
        pooling(VisionTransformer(**TINY | dict(class_token=False, global_pool="avg")), "cls")
    with pytest.raises(ConfigError, match="'map'"):
        pooling(VisionTransformer(**TINY | dict(global_pool="map")))


def test_more_prompt_layers_than_blocks_is_refused():
    with pytest.raises(ConfigError, match="prompt_layers = 5 must be at most 4"):
        make(prompt_layers=5)
    with pytest.raises(ConfigError, match="adapter_layers = 5 must be at most 4"):
        make(method="adapter", adapter_layers=5)
    with pytest.raises(ConfigError, match="class_layers = 5 must be at most 4"):
        make(class_layers=5)
    assert make(class_layers=5, proxy_source="sample").class_prompts is None  # "sample" reads none


def test_parameter_counts_equal_table_1_of_the_paper():
    """For a ViT-S/16 on CUB."""
    backbone = load_backbone("vit_small_patch16_224.augreg_in21k", "random")
    printed = {
        (("method", "linear"), ("bitfit", False)): 0.19,
        (("method", "linear"), ("bitfit", True)): 0.26,
        (("method", "adapter"), ("adapter_layers", 7), ("adapter_dim", 256), ("bitfit", False)): 1.57,
        (("method", "adapter"), ("adapter_layers", 1), ("adapter_dim", 256), ("bitfit", True)): 0.46,
        (("method", "vpt"), ("bitfit", False)): 0.23,
        (("method", "vpt"), ("bitfit", True)): 0.30,
        (("method", "vptsp"), ("accumulator", "ema"), ("bitfit", False), ("batch", 32)): 0.60,
        (("method", "vptsp"), ("accumulator", "gru"), ("bitfit", False), ("batch", 32)): 1.48,
        (("method", "vptsp"), ("accumulator", "gru"), ("bitfit", True), ("batch", 32)): 1.56,
    }
    for changes, millions in printed.items():
        model = MetricModel(RunConfig(**dict(changes)), backbone, 100)
        assert count_parameters(model)["tunable released"] / 1e6 == pytest.approx(millions, abs=0.0101), changes


@pytest.mark.parametrize("weights", ["random", "pretrained"])
def test_image_sizes_that_are_no_multiple_of_a_patch(weights):
    """demo_vit has patches of 8 pixels."""
    for side in (1, 7):
        with pytest.raises(
            ConfigError, match=f"image_size = {side} must be at least 8, the side of a patch of demo_vit"
        ):
            load_backbone("demo_vit", weights, side)
    with pytest.warns(UserWarning, match="does not see the last 4 on the right and .*; with 40 or 48 it sees all"):
        load_backbone("demo_vit", weights, 44)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_backbone("demo_vit", weights, 48)


def test_a_rowwise_table_has_the_counts_of_a_dense_one():
    dense, rowwise = (count_parameters(make(class_optimizer=each)) for each in ("dense", "rowwise"))
    assert dense == rowwise and dense["tunable released"] < dense["tunable"]


@pytest.mark.parametrize(("method", "bitfit"), [("linear", True), ("full", False)])
def test_an_unused_pooling_is_not_counted(method, bitfit):
    """Every parameter that counts as tunable gets a gradient. With pool=avg, SigLIP's own pooling gets none."""
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, depth=1, class_token=False,
                                 global_pool="map", fc_norm=False)  # fmt: skip
    config = RunConfig(method=method, bitfit=bitfit, pool="avg", batch=4, image_size=32, resize=32)
    model = MetricModel(config, backbone, 3)
    model.loss(torch.randn(4, 3, 32, 32), torch.tensor([0, 0, 1, 1])).backward()
    learning = sum(p.numel() for p in model.parameters() if p.grad is not None)
    assert count_parameters(model)["tunable"] == learning > 0
    untrained = count_parameters(MetricModel(config.replace(epochs=0), backbone, 3))
    assert untrained == {"tunable": 0, "tunable released": 0, "total": count_parameters(model)["total"]}


def test_the_starts_of_adapters_and_heads():
    torch.manual_seed(0)
    adapter = Adapter(96, 96, position="parallel", norm="after", init="bert")
    assert [each.weight.std().item() for each in (adapter.down, adapter.up)] == pytest.approx([0.02, 0.02], rel=0.05)
    bound, head = (6 / (96 + 64)) ** 0.5, Head(96, 64)  # Xavier
    assert 0.95 * bound < head.fc.weight.abs().max() <= bound and not head.fc.bias.any()


def test_prompts_start_with_the_released_spread():
    """Xavier's normal distribution for a matrix of n + 1 rows, as the released code draws them."""
    backbone = VisionTransformer(img_size=16, patch_size=8, embed_dim=192, depth=2, num_heads=3, num_classes=0)
    torch.manual_seed(0)
    vit = MetricModel(RunConfig(method="vpt", prompts=8, prompt_layers=2, embed_dim=8), backbone, 4).vit
    assert vit.prompts.std().item() == pytest.approx((2 / (9 * 192)) ** 0.5, rel=0.05)
