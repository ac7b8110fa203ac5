"""A start from the data: initial heads, proxies and prompts from the frozen backbone's features of training images.

This is beyond the paper, where all of them start at random. It takes one pass over some training images, without
prompts and without a step of an optimiser:
- heads: in closed form (`vptsp_core.runs.closed_form`);
- proxies: P and O of a class are the mean of its embeddings by that head, normalised. A GRU's gate starts with a bias
  that keeps P, because the candidate's weights are still random (Gers et al. 2000 and Jozefowicz et al. 2015 do so for
  the LSTM's forget gate);
- prompts: tokens of real patches at the input of their block. Class prompts use images of their class.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vptsp_core.data import ImageSet
from vptsp_core.data.batches import eval_batches
from vptsp_core.data.holdout import first_of_each
from vptsp_core.errors import DataError
from vptsp_core.method.accumulators import GRUAccumulator
from vptsp_core.method.backbone import normalisation
from vptsp_core.method.model import MetricModel
from vptsp_core.method.vit import run_block
from vptsp_core.runs.closed_form import PER_CLASS, class_means, discriminant, set_head
from vptsp_core.system.distributed import from_first

KEEP = 3.0  # bias of a GRU's gate between old and new: at first it keeps 95 % of P


@torch.no_grad()
def start_from_data(model: MetricModel, images: ImageSet) -> None:
    """Initialise heads, proxies and prompts of a new model, as far as ``config.start`` says.

    All processes of a group get the first one's numbers.

    Args:
        model: on its device, before its first step.
        images: the training set.

    Raises DataError: all images are alike.
    """
    config, vit = model.config, model.vit
    if config.start == "released":
        return
    some = first_of_each(images, PER_CLASS)
    labels = torch.from_numpy(some.labels)
    features = _features(model, some, _Tokens(model, labels) if config.start == "all" else None)
    if (features - features[:1]).abs().max() <= 1e-4 * features.abs().max():  # equal but for rounding
        raise DataError(
            f"{images.name}: the backbone gives all {len(some)} training images the same features (copies of one?), so "
            "no start can be made of them; look at the images, or set start=released"
        )
    normed = F.layer_norm(features, features.shape[-1:])
    weight, bias = discriminant(normed, labels, config.embed_dim)
    for head in (vit.sample_head, vit.proxy_head):
        if head is not None:
            set_head(head, weight, bias)
    if config.start in ("proxies", "all") and model.proxies is not None:
        embeddings = F.normalize((normed @ weight.T + bias).mean(1), dim=-1)
        means = F.normalize(class_means(embeddings, labels), dim=-1)
        model.proxies.bias.copy_(means)
        if model.proxies.accumulator is not None:
            model.proxies.state.copy_(means)
        if isinstance(gru := model.proxies.accumulator, GRUAccumulator):
            gru.b_z.fill_(KEEP if gru.released else -KEEP)


class _Tokens:
    """Fills a model's prompts with patch tokens, batch by batch. The images' ``labels`` (N,) ascend.

    A separate generator with the run's seed draws the patches. It also draws the images of the sample tower's prompts.
    A prompt has the same patch in all blocks. The tables are filled in place: a copy of In-Shop's takes up to 8.8 GB.
    """

    def __init__(self, model: MetricModel, labels: Tensor) -> None:
        vit, draw = model.vit, torch.Generator().manual_seed(model.config.seed)
        patches, prefix = vit.backbone.patch_embed.num_patches, vit.backbone.num_prefix_tokens
        self.wanted: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []  # prompts (C, L, m, D); row, image, patch of each

        def want(prompts: Tensor, image: Tensor) -> None:
            rows, count = image.shape
            order = torch.rand(rows, max(count, patches), generator=draw).argsort(1)
            place = prefix + order[:, :count] % patches
            self.wanted.append((prompts, torch.arange(rows).repeat_interleave(count), image.flatten(), place.flatten()))

        if vit.prompts is not None:
            want(vit.prompts[None], torch.randint(len(labels), (1, vit.prompts.shape[1]), generator=draw))
        if model.class_prompts is not None:
            table, counts = model.class_prompts.table, torch.bincount(labels)
            nth = torch.arange(table.shape[2]) % counts[:, None]  # the prompts of a class use its images in turn
            want(table, counts.cumsum(0)[:, None] - counts[:, None] + nth)

    def take(self, block: int, tokens: Tensor, begin: int) -> None:
        """Fill in the prompts of a block from its input: tokens (B, T, D) of the images from number ``begin`` on."""
        for prompts, row, image, place in self.wanted:
            here = (image >= begin) & (image < begin + len(tokens))
            if block < prompts.shape[1] and here.any():
                which = torch.nonzero(here)[:, 0]
                taken = from_first(tokens[image[which] - begin, place[which]].float())
                prompts[row[which], block, which % prompts.shape[2]] = taken.to(prompts)


def _features(model: MetricModel, images: ImageSet, tokens: _Tokens | None) -> Tensor:
    """Return the frozen backbone's features, without prompts, (N, pooled tokens, D) float32 on the CPU."""
    vit, config = model.vit, model.config
    device, features, begin = next(model.parameters()).device, [], 0
    for pixels in eval_batches(images, config, normalisation(vit.backbone), config.batch, device):
        with torch.autocast(device.type, dtype=vit.autocast, enabled=vit.autocast is not None):
            x = vit.stem(pixels)
            for i, block in enumerate(vit.backbone.blocks):
                if tokens is not None:
                    tokens.take(i, x, begin)
                x = run_block(block, x, [None])
            features.append(from_first(vit.pool_tokens(x).float()).cpu())
        begin += len(pixels)
    return torch.cat(features)
