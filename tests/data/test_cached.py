"""Batches from decoded images, against the classic pipeline and torchvision."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, Normalize, ToTensor
from torchvision.transforms.functional import hflip, resized_crop

from vptsp_core import preset
from vptsp_core.data import Benchmark
from vptsp_core.data.base import ImageSet
from vptsp_core.data.batches import decoded, eval_batches, train_batches
from vptsp_core.data.crops import random_boxes
from vptsp_core.data.store import PixelStore
from vptsp_core.errors import ConfigError, DataError
from vptsp_core.method.sampler import ClassBalancedSampler

CPU = torch.device("cpu")
CONFIG = preset("demo", image_size=24, resize=32, batch=6, samples_per_class=2, augmentation="base", pipeline="cached")
STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Pictures(ImageSet):
    """Twenty pictures of different shapes, with odd and even sides."""

    def __init__(self, name="pictures train"):
        super().__init__(name, np.arange(20) % 5, list("abcde"))
        self.images = np.arange(20)  # in memory: no worker processes

    def image(self, index):
        rng = np.random.default_rng(index)
        height, width = 30 + index, 61 - 2 * index
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def fingerprint(self):
        return "pictures"


def benchmark(config=CONFIG, tmp_path=None):
    return decoded(Benchmark("pictures", Pictures(), Pictures("pictures test")), config, tmp_path, progress=False)


def sampler(steps=4, config=CONFIG):
    return ClassBalancedSampler(Pictures().labels, config.batch, config.samples_per_class, config.seed, steps)


def epoch(number=0, config=CONFIG, images=None, **options):
    images = images or benchmark(config).train
    return list(train_batches(images, config, STATISTICS, sampler(config=config), number, CPU, **options))


@pytest.mark.parametrize("semantics", ["released", "paper"])
@pytest.mark.parametrize("size", [24, 25, 32])
def test_evaluation_pixels_are_those_of_the_classic_pipeline_to_the_bit(semantics, size):
    config = CONFIG.replace(semantics=semantics, image_size=size)
    test = benchmark(config).test
    cached = list(eval_batches(test, config, STATISTICS, 7, CPU))
    classic = list(eval_batches(Pictures(), config.replace(pipeline="classic"), STATISTICS, 7, CPU))
    assert [len(part) for part in cached] == [7, 7, 6]
    assert all(torch.equal(a, b) for a, b in zip(cached, classic, strict=True))
    part = torch.cat(list(eval_batches(test, config, STATISTICS, 4, CPU, slice(5, 14))))
    assert torch.equal(part, torch.cat(cached)[5:14])


def test_a_store_of_another_side_is_not_used_for_evaluation():
    images = benchmark(CONFIG.replace(resize=40)).test
    found = torch.cat(list(eval_batches(images, CONFIG, STATISTICS, 20, CPU)))
    expected = torch.cat(list(eval_batches(Pictures(), CONFIG, STATISTICS, 20, CPU)))
    assert images.store.side == 40 and torch.equal(found, expected)


@pytest.mark.parametrize("semantics", ["released", "paper"])
def test_training_pixels_are_those_of_torchvision_for_the_same_boxes(semantics):
    """The reference is made by hand: the stored image, PIL's crop and flip, ToTensor, Normalize."""
    config = CONFIG.replace(semantics=semantics)
    images = benchmark(config).train
    mode = InterpolationMode.BILINEAR if semantics == "released" else InterpolationMode.BICUBIC
    for step, (batch, (pixels, labels)) in enumerate(zip(sampler().epoch(3), epoch(3, config), strict=True)):
        assert labels.tolist() == images.labels[batch].tolist()
        rng = np.random.default_rng([config.seed, 3, 3, step])
        boxes = random_boxes(images.store.sizes[batch], (0.08, 1.0), (3 / 4, 4 / 3), rng)
        flips = rng.random(6) < 0.5
        for index, box, flip, found in zip(batch, boxes.tolist(), flips, pixels, strict=True):
            square = resized_crop(Image.fromarray(images.store.image(index).copy()), *box, [24, 24], mode)
            expected = Normalize(*STATISTICS)(ToTensor()(hflip(square) if flip else square))
            levels = ((found - expected) * torch.tensor(STATISTICS[1])[:, None, None] * 255).abs()
            # White noise is the hardest picture: every pixel is an edge.
            assert levels.max() < (2.5 if semantics == "released" else 40) and levels.mean() < 0.5


def test_an_epoch_depends_only_on_seed_and_epoch():
    first = epoch(0)
    torch.rand(3)
    again, other = epoch(0), epoch(1)
    reseeded = epoch(0, CONFIG.replace(seed=1))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, again, strict=True))
    assert not torch.equal(first[0][0], other[0][0]) and not torch.equal(first[0][0], reseeded[0][0])
    assert first[0][0].shape == (6, 3, 24, 24) and first[0][0].dtype == torch.float32


def test_the_number_of_threads_changes_no_pixel_and_is_restored():
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(epoch(0))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(*found, strict=True))


def test_a_part_of_the_batch_has_the_pixels_of_the_whole_batch():
    whole = epoch(2)
    for part in (slice(0, 2), slice(2, 6)):
        for (pixels, labels), (own, every) in zip(whole, epoch(2, part=part), strict=True):
            assert torch.equal(own, pixels[part]) and torch.equal(every, labels)


def test_streamed_boxes_have_the_pixels_of_a_resident_store(monkeypatch):
    """If a store does not fit on the GPU, only the boxes are copied there."""
    resident = epoch(1)
    monkeypatch.setattr(PixelStore, "resident", lambda self, device: None)
    streamed = epoch(1)
    assert all(torch.equal(a, b) and torch.equal(c, d) for (a, c), (b, d) in zip(resident, streamed, strict=True))


def test_gentle_is_never_mirrored():
    """A picture that is dark on the left stays dark on the left; with `base`, some do not."""

    class Halves(Pictures):
        def image(self, index):
            picture = np.zeros((40, 40, 3), np.uint8)
            picture[:, 20:] = 255
            return Image.fromarray(picture)

    sides = {}
    for augmentation in ("gentle", "base"):
        config = CONFIG.replace(augmentation=augmentation)
        images = decoded(Benchmark("halves", Halves(), Halves()), config, None, progress=False).train
        pixels = torch.cat([pixels for pixels, _ in epoch(0, config, images)])
        sides[augmentation] = pixels[..., 0].mean((1, 2)), pixels[..., -1].mean((1, 2))  # left, right
    (left, right), (left_of_base, right_of_base) = sides.values()
    assert (left < right).all() and (left_of_base > right_of_base).any()


def test_the_cached_pipeline_needs_a_store_and_its_own_augmentations():
    with pytest.raises(DataError, match="needs decoded images"):
        epoch(0, images=Pictures())
    for augmentation in ("adv", "v2", "auto"):
        with pytest.raises(ConfigError, match="set pipeline=classic too"):
            CONFIG.replace(augmentation=augmentation)
        CONFIG.replace(augmentation=augmentation, pipeline="classic")  # is accepted


def test_decoding_does_not_change_the_benchmark(tmp_path):
    plain = Benchmark("pictures", Pictures(), Pictures("pictures test"), Pictures("pictures gallery"))
    frozen = CONFIG.replace(method="frozen", bitfit=False)
    with_stores, without_training = (decoded(plain, each, tmp_path, progress=False) for each in (CONFIG, frozen))
    assert all(images.store is None for images in (plain.train, plain.test, plain.gallery))
    assert all(images.store for images in (with_stores.train, with_stores.test, with_stores.gallery))
    assert without_training.train.store is None and without_training.gallery.store is not None
    assert decoded(plain, CONFIG.replace(pipeline="classic"), tmp_path) is plain
