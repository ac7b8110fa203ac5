"""Settings of runs: which are refused, which are the same run, and the presets against the released values."""

import csv
import json
from importlib import resources

import numpy as np
import pytest

from vptsp_core import RunConfig, preset
from vptsp_core.errors import ConfigError
from vptsp_core.method.config import _BEFORE

BAD = [
    ({"prompt": 3}, "unknown key 'prompt'; did you mean prompts"),
    ({"qqq": 3}, "unknown key 'qqq'; the keys are dataset, backbone, "),
    ({"alpha": 1.5}, "alpha = 1.5 must be in [0, 1]"),
    ({"ema_keep": 1.5}, "ema_keep = 1.5 must be in [0, 1]"),
    ({"loss_scale": 0.0}, "loss_scale = 0.0 must be positive"),
    ({"steps_per_epoch": 0}, "steps_per_epoch = 0 must be at least 1"),
    ({"alpha": float("nan")}, "alpha = nan must be a finite number"),
    ({"batch": 63}, "batch = 63 must be a multiple of samples_per_class = 2"),
    ({"batch": 64.0}, "batch = 64.0 must be of type int, not float"),
    ({"batch": True}, "batch = True must be of type int, not bool"),
    ({"lr": -1}, "lr = -1.0 must not be negative"),
    ({"epochs": None}, "epochs = None must be of type int, not NoneType"),
    (
        {"method": "dora"},
        "method = 'dora' must be one of 'frozen', 'full', 'linear', 'adapter', 'lora', 'vpt', 'vptsp'",
    ),
    ({"class_prompts": 0}, "class_prompts = 0 must be at least 1 for method = 'vptsp'"),
    ({"method": "adapter", "adapter_layers": 0}, "adapter_layers = 0 must be at least 1 for method = 'adapter'"),
    ({"method": "full"}, "bitfit must be False for method = 'full'"),
    ({"resize": 200}, "resize = 200 must be at least image_size = 224"),
    ({"gru_dropout": 1.0}, "gru_dropout = 1.0 must be in [0, 1)"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[str(b[0]) for b in BAD])
def test_refused_with_the_key_named(changes, message):
    with pytest.raises(ConfigError) as caught:
        preset("cub200-vits16", **changes)
    text = str(caught.value)
    assert message.replace("bitfit must", "bitfit = True must") in text and "\n" not in text


def test_the_number_types_of_numpy():
    config = preset("cub200-vits16", alpha=np.float32(0.5), prompts=np.arange(3)[2], bitfit=np.True_)
    assert config == preset("cub200-vits16", alpha=0.5, prompts=2, bitfit=True)
    assert {type(config.alpha), type(config.prompts), type(config.bitfit)} == {float, int, bool}
    with pytest.raises(ConfigError, match="prompts = 2.5 must be of type int"):
        preset("cub200-vits16", prompts=np.float64(2.5))


def test_the_config_of_an_older_run_keeps_its_values(tmp_path):
    written = {key: value for key, value in preset("cub200-vits16").to_dict().items() if key not in _BEFORE}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "record.json").write_text("{}")
    assert preset(tmp_path / "config.json", seed=3) == RunConfig.from_dict(written).replace(seed=3)


def test_unknown_preset_lists_the_known():
    with pytest.raises(ConfigError, match="cub200-vits16"):
        preset("cub")


def test_nine_released_presets_hold_the_released_values():
    ours = {
        "timm_name": "backbone", "dim": "embed_dim", "optim": "optimizer", "lr": "lr", "lr_proxy": "lr_proxy",
        "weight_decay": "weight_decay", "epochs": "epochs", "eval_start": "eval_start", "cosine_T": "cosine_T",
        "cosine_min": "cosine_min", "batch": "batch", "k": "samples_per_class", "prompts": "prompts",
        "prompt_layers": "prompt_layers", "prompt_step": "prompt_step", "class_prompts": "class_prompts",
        "class_layers": "class_layers", "class_step": "class_step", "alpha": "alpha", "gru_dropout": "gru_dropout",
        "augmentation": "augmentation",
    }  # fmt: skip
    text = (resources.files("vptsp_core") / "paper" / "released_presets.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 9
    for row in rows:
        config = preset(row["preset"])
        assert config.dataset == row["preset"].split("-")[0]
        assert config.class_optimizer == ("rowwise" if row["rowwise_bank"] == "yes" else "dense")
        for column, key in ours.items():
            value = getattr(config, key)
            assert value == (row[column] if isinstance(value, str) else float(row[column])), (row["preset"], key)


def test_same_numbers_same_hash():
    base = preset("cub200-vits16")
    assert base.hash() == preset("cub200-vits16", alpha=0.5).hash() == RunConfig.from_dict(base.to_dict()).hash()
    assert base.hash() != base.replace(seed=1).hash()
    assert base.hash() != base.replace(semantics="paper").hash()
    vpt = base.replace(method="vpt")
    assert vpt.hash() == vpt.replace(alpha=0.1, class_prompts=7, accumulator="ema").hash() != base.hash()
    assert vpt.hash() != vpt.replace(prompts=11).hash()
    assert base.hash() == base.replace(ema_keep=0.7).hash(), "the GRU does not read it"
    frozen = base.replace(method="frozen", bitfit=False)
    assert frozen.hash() == frozen.replace(lr=1.0, epochs=3, batch=8).hash() != frozen.replace(resize=300).hash()
    adapter = base.replace(method="adapter")
    assert adapter.hash() == adapter.replace(prompts=3, accumulator="rnn").hash() != base.hash()
    for key, value in dict(dim=8, layers=3, position="sequential", norm="before", init="bert").items():
        assert adapter.hash() != adapter.replace(**{f"adapter_{key}": value}).hash()
        assert base.hash() == base.replace(**{f"adapter_{key}": value}).hash()
    sample = base.replace(proxy_source="sample")
    unread = dict(class_prompts=0, class_layers=0, class_step=2, class_optimizer="rowwise")
    assert sample.hash() == sample.replace(**unread).hash() != sample.replace(prompts=3).hash()
    assert len({sample.hash(), base.hash(), *(base.replace(accumulator=a).hash() for a in ("lstm", "rnn"))}) == 4
    lstm = base.replace(accumulator="lstm")
    assert lstm.hash() == lstm.replace(gru_dropout=0.5, ema_keep=0.1).hash()
    assert base.hash() != base.replace(gru_dropout=0.5).hash()
    ema = base.replace(accumulator="ema")
    assert ema.hash() != ema.replace(ema_keep=0.7).hash()


HASHES = {
    "cub200-vits16": "4c54db03ef64", "cub200-vitb16": "5b74f574a89f", "cars196-vits16": "a25ef4ff22a9",
    "cars196-vitb16": "71700706ce4e", "sop-vits16": "d56bb17c5c1c", "sop-vitb16": "c33a62a4d0ac",
    "inshop-vits16": "bc39482ca80f", "inshop-vitb16": "75fd4b0c061d", "inaturalist-vitb16": "5fd40814eadf",
    "demo": "a6e43ebf4c97", "smoke": "ed8d8cdc4101",
}  # fmt: skip


def test_a_run_that_is_older_than_a_key_has_the_value_that_it_used():
    base = preset("cub200-vits16", alpha=0.2)
    before = {key: value for key, value in base.to_dict().items() if key not in ("pipeline", "start")}
    older = base.replace(pipeline="classic")  # not today's default
    assert base.pipeline == "cached" and RunConfig.from_dict(before) == older
    assert RunConfig.from_dict(before).hash() == older.hash() != base.hash()
    older = {key: value for key, value in base.to_dict().items() if key != "lora_rank"}
    assert RunConfig.from_dict(older) == base and RunConfig.from_dict(older).hash() == base.hash()


def test_hash_is_stable_across_versions_of_the_project():
    """Finished runs are found by their hash. Change it only if the numbers of runs change."""
    assert preset("cub200-vits16", pipeline="classic").hash() == "064c051e2806"
    assert {name: preset(name).hash() for name in HASHES} == HASHES
    assert preset("cub200-vits16", selection="last").hash() == "77b1247fde32"


def test_a_key_that_gru_with_tanh_reads_is_part_of_its_hash():
    tanh = preset("cub200-vits16", accumulator="gru_tanh")
    assert tanh.hash() != tanh.replace(gru_dropout=0.5).hash()


def test_the_recipes_have_the_documented_settings():
    """docs/beyond.md, "The recipe"."""
    keys = ("optimizer", "lr", "lr_proxy", "accumulator", "start", "selection")
    for name in ("demo-recipe", "cub200-vits16-recipe"):
        found = [getattr(preset(name), key) for key in keys]
        assert found == ["adamw", 1e-3, 0.05, "ema", "proxies", "validation_map"]
