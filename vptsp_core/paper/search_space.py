"""The search space of table 9, as values of `RunConfig` keys.

The space is read from the table as printed (paper/table9_search_space.csv). We read the paper's words as follows:

- "ratio semantic/bias" is ``alpha``, the weight of the ordinary proxy (the paper's "proxy bias") in Q. The weight of
  the semantic proxy would give the same space, because 0.1, ..., 0.9 is symmetric.
- "1|4|...|512" is 1 and the powers of two from 4 to 512. The table does not explain the dots.
- The adapter's "kaiming uniform" is ``"lora"``, because LoRA initialises its down projection with it. "uniform" is
  ``"bert"``, the released code's other initialisation, which is normal and not uniform.
- "layer_norm pre | post" puts the LayerNorm before or after the adapter.
- An adapter's layers are the last blocks, a prompt's layers are the first blocks.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from vptsp_core.errors import ConfigError
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.report import paper_table

Space = dict[str, list[Any]]

# group -> attribute as printed -> key of RunConfig
KEYS = {
    "global": {
        "optimizer": "optimizer", "batch_size": "batch", "samples_per_class": "samples_per_class", "lr": "lr",
        "lr_proxy_bias": "lr_proxy",
    },
    "adapter": {
        "layers": "adapter_layers", "mid_dim": "adapter_dim", "position": "adapter_position",
        "initialisation": "adapter_init", "layer_norm": "adapter_norm",
    },
    "vpt": {"layers": "prompt_layers", "prompts": "prompts", "decreasing_step": "prompt_step"},
    "vptsp": {
        "class_prompt_layers": "class_layers", "class_prompts": "class_prompts", "ratio semantic/bias": "alpha",
    },
}  # fmt: skip
WORDS = {
    "SGD": "sgd", "Adam": "adam", "AdamW": "adamw", "kaiming uniform": "lora", "uniform": "bert", "pre": "before",
    "post": "after",
}  # fmt: skip
GROUPS = {"adapter": ["adapter"], "vpt": ["vpt"], "vptsp": ["vpt", "vptsp"]}  # each method also has "global"


def paper_space(method: str) -> Space:
    """Return {key: values} of everything that table 9 varies for a method, in the table's order.

    Raises ConfigError for the frozen backbone.

    >>> paper_space("vpt")["prompt_step"], paper_space("linear")["batch"]
    ([0, 2, 5, 10], [32, 64])
    """
    if method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is nothing to search for; choose another method")
    rows = paper_table("table9_search_space").to_dict("records")
    groups = ["global", *GROUPS.get(method, [])]
    return {KEYS[row["group"]][row["attribute"]]: values(row["values"]) for row in rows if row["group"] in groups}


def values(text: str) -> list[Any]:
    """Return the values that one cell of table 9 lists.

    >>> values("1|4|...|16"), values("1..4"), values("0.1..0.3"), values("SGD|Adam")
    ([1, 4, 8, 16], [1, 2, 3, 4], [0.1, 0.2, 0.3], ['sgd', 'adam'])
    """
    if "|...|" in text:
        listed, last = text.split("|...|")
        out = values(listed)
        while out[-1] < _value(last):
            out.append(2 * out[-1])
        return out
    if "|" in text:
        return [_value(word) for word in text.split("|")]
    first, last = map(_value, text.split(".."))
    if isinstance(first, int):
        return list(range(first, last + 1))
    return [tenths / 10 for tenths in range(round(10 * first), round(10 * last) + 1)]


def fitting_space(config: RunConfig, classes: int) -> Space:
    """Return the `paper_space` of the config's method, without values that its backbone or data set cannot take.

    These are layers beyond the last block, more prompts than the image has tokens, and batches that draw more classes
    than the ``classes`` of the training set. Raises ConfigError if no value is left for a key.
    """
    with torch.device("meta"):  # only its shape is needed
        backbone = load_backbone(config.backbone, "random", config.image_size)
    tokens = backbone.patch_embed.num_patches + backbone.num_prefix_tokens
    space = paper_space(config.method)
    most = dict.fromkeys(["adapter_layers", "prompt_layers", "class_layers"], len(backbone.blocks))
    most |= {"prompts": tokens, "class_prompts": tokens, "batch": classes * max(space["samples_per_class"])}
    for key in most.keys() & space.keys():
        space[key] = [value for value in space[key] if value <= most[key]]
        if not space[key]:
            raise ConfigError(f"{key}: no value of table 9 is {most[key]} or less, the most that fits here; "
                              "choose another backbone or data set")  # fmt: skip
    return space


def _value(word: str) -> Any:
    """Return the number that is written, or the word as `RunConfig` spells it."""
    try:
        return json.loads(word)
    except json.JSONDecodeError:
        return WORDS.get(word, word)
