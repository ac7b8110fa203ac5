"""The sampler, the classic pipeline, and errors of loading."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from vptsp_core import preset
from vptsp_core.data import load_benchmark, loading
from vptsp_core.data.base import ImageSet
from vptsp_core.data.folder import FileSet
from vptsp_core.data.loading import eval_batches, eval_transform, train_batches, train_transform
from vptsp_core.errors import DataError
from vptsp_core.method.sampler import ClassBalancedSampler


def test_missing_data_is_refused_with_a_cure():
    with pytest.raises(DataError, match="cub200: no folder is given.*with --data DIR or VPTSP_DATA"):
        load_benchmark("cub200")


class Plain(ImageSet):
    """Pictures of random noise, in memory."""

    def __init__(self, labels):
        super().__init__("plain", np.asarray(labels), [str(c) for c in range(max(labels) + 1)])
        self.images = np.arange(len(labels))  # in memory: no worker processes

    def image(self, index):
        noise = np.random.default_rng(index).integers(0, 256, (48, 60, 3))
        return Image.fromarray(noise.astype(np.uint8))

    def fingerprint(self):
        return "plain"


def test_batches_hold_k_adjacent_images_of_distinct_classes():
    labels = np.repeat(np.arange(10), 7)
    sampler = ClassBalancedSampler(labels, 12, 3, seed=0, steps=None)
    assert len(sampler) == 70 // 12
    for batch in sampler.epoch(0):
        drawn = labels[batch].reshape(4, 3)
        assert (drawn == drawn[:, :1]).all() and len(set(drawn[:, 0])) == 4
        assert len(set(batch)) == 12, "no image twice, since there are enough"


def test_small_classes_repeat_evenly_and_epochs_differ():
    labels = np.array([0, 1, 1, 1, 1, 1, 2, 2])
    sampler = ClassBalancedSampler(labels, 15, 5, seed=3, steps=4)
    for batch in sampler.epoch(1):
        counts = Counter(batch.tolist())
        assert counts[0] == 5 and sorted(counts[i] for i in (6, 7)) == [2, 3]
    first, again, other = (list(map(list, sampler.epoch(e))) for e in (1, 1, 2))
    assert first == again != other


def test_every_image_is_drawn():
    labels = np.repeat(np.arange(5), 4)
    sampler = ClassBalancedSampler(labels, 4, 2, seed=0, steps=200)
    assert set(np.concatenate(list(sampler.epoch(0)))) == set(range(20))


def test_in_turn_an_image_is_drawn_again_only_after_all_others_of_its_class():
    sizes = [2, 3, 5, 7, 40, 200]
    labels = np.repeat(np.arange(6), sizes)
    sampler = ClassBalancedSampler(labels, 8, 4, seed=1, steps=20, in_turn=True)
    counts = np.zeros(len(labels), int)
    for epoch in range(10):
        batches = list(sampler.epoch(epoch))
        assert [list(batch) for batch in batches] == [list(batch) for batch in sampler.epoch(epoch)]  # as after a kill
        for batch in batches:
            drawn = labels[batch].reshape(2, 4)
            assert (drawn == drawn[:, :1]).all() and drawn[0, 0] != drawn[1, 0]
            np.add.at(counts, batch, 1)
            for label in range(6):
                assert np.ptp(counts[labels == label]) <= 1
                if sizes[label] >= 4 and label in drawn:
                    assert len(set(batch[labels[batch] == label])) == 4, "no image twice in one draw"
    assert counts.min() > 0


def test_impossible_batches_are_refused():
    with pytest.raises(DataError, match="draws 4 classes, the training set has 2"):
        ClassBalancedSampler(np.array([0, 0, 1, 1]), 4, 1, 0, None)
    with pytest.raises(DataError, match="larger than the training set"):
        ClassBalancedSampler(np.arange(3), 2, 1, 0, 0)


CONFIG = preset("demo", image_size=24, resize=32, batch=4, samples_per_class=2, augmentation="base")
MEAN = STD = (0.5, 0.5, 0.5)


def test_augmentation_depends_only_on_seed_and_epoch():
    """Other code may draw random numbers in between."""
    images = Plain(np.repeat(np.arange(4), 3))
    sampler = ClassBalancedSampler(images.labels, 4, 2, seed=0, steps=2)
    transform = train_transform(CONFIG, MEAN, STD)

    def epoch(number):
        torch.rand(7)
        return [pixels for pixels, _ in train_batches(images, sampler, transform, number, torch.device("cpu"))]

    first, again, other = epoch(0), epoch(0), epoch(1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert first[0].shape == (4, 3, 24, 24) and first[0].dtype == torch.float32


def test_files_and_images_in_memory_give_the_same_pixels(tmp_path):
    labels = np.repeat(np.arange(8), 4)
    memory = Plain(labels)
    paths = [tmp_path / f"{i}.png" for i in range(32)]
    for i, path in enumerate(paths):
        memory.image(i).save(path)
    files = FileSet("files", paths, labels, memory.class_names)
    sampler = ClassBalancedSampler(labels, 4, 2, seed=0, steps=6)
    transform = train_transform(CONFIG, MEAN, STD)
    found, expected = (train_batches(images, sampler, transform, 0, torch.device("cpu")) for images in (files, memory))
    for (a, la), (b, lb) in zip(found, expected, strict=True):
        assert torch.equal(a, b) and torch.equal(la, lb)


def test_the_error_of_a_worker_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "_workers", lambda images, count: 1)
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    files = FileSet("files", [tmp_path / "bad.jpg"], np.array([0]), ["a"])
    with pytest.raises(DataError) as caught:
        list(eval_batches(files, eval_transform(CONFIG, MEAN, STD), 4, torch.device("cpu")))
    assert str(caught.value).startswith(f"image {tmp_path / 'bad.jpg'}: unreadable") and "\n" not in str(caught.value)


def test_evaluation_crops_the_centre_in_order():
    images = Plain([0, 1, 2])
    batches = list(eval_batches(images, eval_transform(CONFIG, MEAN, STD), 2, torch.device("cpu")))
    assert [len(b) for b in batches] == [2, 1]
    resized = images.image(2).resize((40, 32), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.array(resized.crop((8, 4, 32, 28)))).permute(2, 0, 1) / 255 * 2 - 1
    assert torch.allclose(batches[1][0], expected, atol=1e-5)


def test_paper_semantics_interpolates_bicubic():
    for semantics, mode in (("released", InterpolationMode.BILINEAR), ("paper", InterpolationMode.BICUBIC)):
        config = CONFIG.replace(semantics=semantics)
        for transform in (train_transform(config, MEAN, STD), eval_transform(config, MEAN, STD)):
            assert transform.transforms[0].interpolation == mode


@pytest.mark.parametrize(
    "in_turn, drawn",
    [
        (False, [[12, 13, 21, 22, 6, 4], [21, 22, 15, 13, 9, 11]]),
        (True, [[15, 14, 22, 20, 4, 5], [5, 6, 0, 2, 11, 9]]),
    ],
)
def test_the_images_of_a_seed_stay_the_same_in_all_versions(in_turn, drawn):
    """Otherwise a run with the same hash would have other numbers."""
    sampler = ClassBalancedSampler(np.arange(6).repeat(4), 6, 2, seed=3, steps=2, in_turn=in_turn)
    assert [batch.tolist() for batch in sampler.epoch(1)] == drawn


@pytest.mark.parametrize("in_turn", [False, True])
def test_the_sampler_draws_other_images_with_another_seed(in_turn):
    labels = np.repeat(np.arange(2), 50)
    one, other = ([b.tolist() for b in ClassBalancedSampler(labels, 8, 4, s, 5, in_turn).epoch(0)] for s in (0, 1))
    assert {frozenset(batch) for batch in one} != {frozenset(batch) for batch in other}


def test_the_steps_of_each_augmentation():
    crop, flip, both = "RandomResizedCrop", "RandomHorizontalFlip", ["RandomGrayscale", "ColorJitter"]
    kinds = {
        "base": [crop, flip], "gentle": [crop], "adv": [crop, *both, flip],
        "v2": [crop, "RandomPerspective", *both, flip], "auto": ["AutoAugment", crop, flip],
    }  # fmt: skip
    for name, steps in kinds.items():
        made = train_transform(preset("demo", augmentation=name, pipeline="classic"), (0.5,) * 3, (0.5,) * 3)
        assert [type(step).__name__ for step in made.transforms] == [*steps, "ToTensor", "Normalize"], name


def classic(seed):
    sampler = ClassBalancedSampler(np.array([0]), 1, 1, seed, 3)
    batches = train_batches(Plain([0]), sampler, train_transform(CONFIG, MEAN, STD), 0, torch.device("cpu"))
    return [pixels for pixels, _ in batches]


def test_the_classic_pipeline_augments_each_draw_and_each_seed_anew():
    one, other = classic(0), classic(1)
    assert not torch.equal(one[0], one[1]) and not torch.equal(one[0], other[0])
