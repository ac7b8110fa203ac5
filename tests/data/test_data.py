"""Samplers, image files and the CUB layout; stand-ins are made here, in the real folder structure."""

import os
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode

from vptsp_core import preset
from vptsp_core.data import load_benchmark
from vptsp_core.data.base import ImageSet
from vptsp_core.data.folder import FileSet
from vptsp_core.data.loading import eval_batches, eval_transform, train_batches, train_transform
from vptsp_core.errors import DataError
from vptsp_core.method.sampler import ClassBalancedSampler


@pytest.fixture(scope="module")
def cub(tmp_path_factory):
    """A folder with CUB's layout and counts; one small picture under 11,788 names."""
    root = tmp_path_factory.mktemp("data")
    picture = root / "picture.jpg"
    Image.new("RGB", (40, 32), (200, 30, 30)).save(picture)
    for c in range(200):
        folder = root / "cub200" / "images" / f"{c + 1:03}.Bird_{c}"
        folder.mkdir(parents=True)
        images, classes = (5864, 100) if c < 100 else (5924, 100)
        count = images // classes + (c % 100 < images % classes)
        for i in range(count):
            os.link(picture, folder / f"Bird_{i:04}.jpg")
    return root


def test_cub_is_split_by_class(cub):
    benchmark = load_benchmark("cub200", cub)
    assert (len(benchmark.train), len(benchmark.test)) == (5864, 5924)
    assert benchmark.train.num_classes == benchmark.test.num_classes == 100
    assert benchmark.train.class_names[0] == "001.Bird_0" and benchmark.test.class_names[0] == "101.Bird_100"
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    assert benchmark.test.image(0).size == (40, 32) and benchmark.gallery is None
    assert benchmark.train.fingerprint() != benchmark.test.fingerprint()


def test_absent_data_is_refused_with_the_mend(tmp_path):
    with pytest.raises(DataError, match="--data"):
        load_benchmark("cub200")
    with pytest.raises(DataError, match="no folder .*cub200"):
        load_benchmark("cub200", tmp_path)
    with pytest.raises(DataError, match="is not known; known: glyphs, cub200"):
        load_benchmark("cars")


class Plain(ImageSet):
    """Pictures of one brightness each, so that a batch tells which images it holds."""

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
        assert len(set(batch)) == 12, "enough images: none twice"


def test_small_classes_repeat_evenly_and_epochs_differ():
    labels = np.array([0, 1, 1, 1, 1, 1, 2, 2])
    sampler = ClassBalancedSampler(labels, 15, 5, seed=3, steps=4)
    for batch in sampler.epoch(1):
        counts = Counter(batch.tolist())
        assert counts[0] == 5 and sorted(counts[i] for i in (6, 7)) == [2, 3]
    first, again, other = (list(map(list, sampler.epoch(e))) for e in (1, 1, 2))
    assert first == again != other


def test_all_images_come_up():
    labels = np.repeat(np.arange(5), 4)
    sampler = ClassBalancedSampler(labels, 4, 2, seed=0, steps=200)
    assert set(np.concatenate(list(sampler.epoch(0)))) == set(range(20))


def test_in_turn_no_image_comes_again_before_all_of_its_class_came():
    sizes = [2, 3, 40, 300]
    labels = np.repeat(np.arange(4), sizes)
    sampler = ClassBalancedSampler(labels, 8, 4, seed=1, steps=20, in_turn=True)
    counts = np.zeros(len(labels), int)
    for epoch in range(10):
        batches = list(sampler.epoch(epoch))
        assert [list(batch) for batch in batches] == [list(batch) for batch in sampler.epoch(epoch)]  # as after a kill
        for batch in batches:
            drawn = labels[batch].reshape(2, 4)
            assert (drawn == drawn[:, :1]).all() and drawn[0, 0] != drawn[1, 0]
            np.add.at(counts, batch, 1)
            for label in range(4):
                assert np.ptp(counts[labels == label]) <= 1
    assert counts.min() > 0


def test_impossible_batches_are_refused():
    with pytest.raises(DataError, match="draws 4 classes, the training set has 2"):
        ClassBalancedSampler(np.array([0, 0, 1, 1]), 4, 1, 0, None)
    with pytest.raises(DataError, match="larger than the training set"):
        ClassBalancedSampler(np.arange(3), 2, 1, 0, 0)


CONFIG = preset("demo", image_size=24, resize=32, batch=4, samples_per_class=2, augmentation="base")
MEAN = STD = (0.5, 0.5, 0.5)


def test_augmentation_is_the_runs_own():
    """The same (seed, epoch) gives the same pixels, whatever else drew random numbers; another epoch does not."""
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


def test_workers_do_not_change_the_pixels(tmp_path):
    paths = []
    for i in range(32):
        paths.append(tmp_path / f"{i}.png")
        Plain([0] * 32).image(i).save(paths[-1])
    labels = np.repeat(np.arange(8), 4)
    files = FileSet("files", paths, labels, [str(c) for c in range(8)])
    memory = Plain(labels)
    sampler = ClassBalancedSampler(labels, 4, 2, seed=0, steps=6)
    transform = train_transform(CONFIG, MEAN, STD)
    cpu = torch.device("cpu")
    for (a, la), (b, lb) in zip(
        train_batches(files, sampler, transform, 0, cpu), train_batches(memory, sampler, transform, 0, cpu), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(la, lb)


def test_a_broken_image_stops_the_batch_with_its_name(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    files = FileSet("files", [tmp_path / "bad.jpg"] * 40, np.arange(40) % 2, ["a", "b"])
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


def test_labels_without_gaps_are_required():
    with pytest.raises(DataError, match="without gaps"):
        FileSet("gap", [], np.array([0, 2]), ["a", "b", "c"])
