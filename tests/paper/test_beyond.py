"""The table "beyond the paper": its rows and its presets."""

import pytest
import torch

from vptsp_core import preset
from vptsp_core.errors import ConfigError
from vptsp_core.method.backbone import load_backbone, normalisation, pooling
from vptsp_core.method.config import RunConfig
from vptsp_core.method.lora import has_peft
from vptsp_core.paper import beyond
from vptsp_core.paper.methods import BASE, BEST, LORA, base_config, method_rows

BUDGET = ("dataset", "backbone", "weights", "epochs", "steps_per_epoch", "batch", "samples_per_class", "image_size",
          "augmentation", "prompts", "class_prompts", "embed_dim")  # fmt: skip
UNTRAINED = "... without training"
RECIPES = {"demo": "demo-recipe", "smoke": "demo-recipe", "paper": "cub200-vits16-recipe"}


@pytest.mark.parametrize("profile", BASE)
def test_rows_have_one_budget_and_are_distinct_and_chosen_by_validation(profile):
    rows = beyond.rows(profile)
    configs = {label: base_config(profile, **row) for label, row in rows.items()}
    for key in BUDGET:
        assert len({getattr(config, key) for label, config in configs.items() if label != UNTRAINED}) == 1, key
    assert len({config.hash() for config in configs.values()}) == len(configs)
    assert (LORA in rows) == has_peft()
    assert {config.selection for config in beyond.cells(profile).values()} == {"validation_map"}
    assert configs[beyond.REFERENCE] == base_config(profile, **method_rows(profile)[BEST])


def test_the_recipe_is_its_preset_and_its_other_rows_lack_one_part_each():
    for profile, name in RECIPES.items():
        configs = {row: config.to_dict() for (row, _), config in beyond.cells(profile).items()}
        recipe = configs[beyond.RECIPE]
        assert recipe["cosine_T"] == recipe["epochs"] and recipe["eval_start"] == 0
        length = {key: recipe[key] for key in ("epochs", "steps_per_epoch")}
        assert recipe == preset(name, **length, cosine_T=recipe["epochs"]).to_dict()
        full = preset(name)
        assert (full.cosine_T, full.eval_start) == (full.epochs, 0)
        parts = {
            "... with the final head in closed form": {"final_head": "closed_form"},
            "... with a GRU": {"accumulator": "gru"},
            "... with prompts from the data": {"start": "all"},
            "... without proxies from the data": {"start": "heads"},
            "... without a start from the data": {"start": "released"},
            "... without prompts (BitFit)": {"method": "linear"},
            UNTRAINED: {"method": "linear", "bitfit": False, "start": "heads", "epochs": 0},
        }
        assert {row: configs[row] for row in parts} == {row: recipe | part for row, part in parts.items()}


def test_the_profile_paper_has_newer_backbones_unless_changes_set_the_backbone():
    labels = [row for row, _ in beyond.cells("paper")]
    assert all(name in labels and f"{name}, the recipe" in labels for name in beyond.NEWER)
    assert not any(name in row for row, _ in beyond.cells("paper", backbone="demo_vit") for name in beyond.NEWER)
    assert not any(name in row for row, _ in beyond.cells("demo") for name in beyond.NEWER)
    with pytest.raises(ConfigError, match="contain start"):
        beyond.cells("demo", start="all")


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
# timm's own data: pooled token or mean, tokens before the patches, mean and spread of the input's channels.
NEWER = {
    "cub200-dinov2-vits14": ("cls", 1, IMAGENET),
    "cub200-dinov2reg-vits14": ("cls", 5, IMAGENET),
    "cub200-dinov2reg-vitb14": ("cls", 5, IMAGENET),
    "cub200-siglip2-vitb16": ("avg", 0, ((0.5,) * 3, (0.5,) * 3)),
    "cub200-tipsv2-vitb14": ("cls", 2, ((0.0,) * 3, (1.0,) * 3)),
}


def test_newer_backbones_are_supported_with_their_pooling_and_normalisation():
    assert list(NEWER) == beyond.NEWER
    for name, expected in NEWER.items():
        config: RunConfig = preset(name)
        with torch.device("meta"):  # their kind and shape, without the memory
            model = load_backbone(config.backbone, "random", config.image_size)
        config.check_backbone(len(model.blocks), model.embed_dim)
        assert (pooling(model, config.pool), model.num_prefix_tokens, normalisation(model)) == expected
        assert config.embed_dim <= model.embed_dim
