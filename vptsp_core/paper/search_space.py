"""The paper's search space, table 9, as values of `RunConfig` keys.

The only list is the table as printed (paper/table9_search_space.csv); `fitting_space` leaves out what a backbone or a
data set cannot take. How the paper's words are read:

- "ratio semantic/bias" is ``alpha``, the share of the ordinary proxy (the paper's "proxy bias") in Q. Read as the
  share of the semantic proxy it would give the same space, since 0.1, ..., 0.9 is symmetric.
- "1|4|...|512" is 1 and the powers of two from 4 to 512; the table does not say what the dots stand for.
- The adapter's "kaiming uniform" is ``"lora"`` (LoRA starts its down projection so), "uniform" is the other start
  that the paper names, ``"bert"``; "layer_norm pre | post" is before or after the adapter.
- An adapter's layers are the last ones, a prompt's the first.
"""

from __future__ import annotations

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
GROUPS = {"adapter": ["adapter"], "vpt": ["vpt"], "vptsp": ["vpt", "vptsp"]}  # beside the global ones


def paper_space(method: str) -> Space:
    """{key: values} of all that table 9 varies for a method, in its order. Raises ConfigError for the frozen backbone.

    >>> paper_space("vpt")["prompt_step"], paper_space("linear")["batch"]
    ([0, 2, 5, 10], [32, 64])
    """
    if method == "frozen":
        raise ConfigError("method = 'frozen' trains nothing, so there is nothing to search for; choose another method")
    rows = paper_table("table9_search_space").to_dict("records")
    groups = ["global", *GROUPS.get(method, [])]
    return {KEYS[row["group"]][row["attribute"]]: values(row["values"]) for row in rows if row["group"] in groups}


def values(text: str) -> list[Any]:
    """What one cell of table 9 lists.

    >>> values("1|4|...|16"), values("1..4"), values("0.1..0.3"), values("SGD|Adam")
    ([1, 4, 8, 16], [1, 2, 3, 4], [0.1, 0.2, 0.3], ['sgd', 'adam'])
    """
    if "|" in text:
        out: list[Any] = []
        parts = text.split("|")
        for part, following in zip(parts, [*parts[1:], ""]):
            if part != "...":
                out.append(_value(part))
                continue
            while 2 * out[-1] < _value(following):
                out.append(2 * out[-1])
        return out
    first, last = map(_value, text.split(".."))
    tenths = [round(at / 10, 1) for at in range(round(10 * first), round(10 * last) + 1)]
    return tenths if isinstance(first, float) else list(range(first, last + 1))


def fitting_space(config: RunConfig, classes: int) -> Space:
    """`paper_space` of the config's method without what its backbone or data set cannot take: layers beyond the last
    block, more prompts than the image itself has tokens, batches of more than the ``classes`` of the training set.

    Raises:
        ConfigError: no value is left for a key.
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
            raise ConfigError(f"{key}: nothing of table 9 is left up to {most[key]}, which is all that fits here")
    return space


def _value(word: str) -> Any:
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            pass
    return WORDS.get(word, word)
