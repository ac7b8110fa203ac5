"""The distribution of boxes against torchvision's, and pixels against its resized_crop of a PIL image."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import hflip, resized_crop

from vptsp_core.data.crops import random_boxes, resize_one, resize_together
from vptsp_core.data.store import PixelStore

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def photographs(sizes, seed=0):
    """Return pictures with soft and hard edges, like photographs."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)
        picture = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        picture[height // 3 : height // 2, width // 4 : width // 2] = rng.integers(0, 256, 3)
        noise = rng.integers(-6, 7, picture.shape)
        pictures.append(np.clip(picture + noise, 0, 255).astype(np.uint8))
    return pictures


def stored(pictures):
    sizes = np.array([picture.shape[:2] for picture in pictures], np.int64)
    return PixelStore(np.concatenate([picture.reshape(-1) for picture in pictures]), sizes, 0, "bilinear")


SIZES = [(64, 64), (48, 90), (130, 40), (33, 31), (200, 75), (60, 161)]
BOXES = [(0, 0, 64, 64), (5, 11, 40, 60), (3, 1, 120, 20), (4, 2, 20, 27), (50, 0, 150, 75), (0, 0, 60, 161)]
FLIPS = [False, True, False, True, True, False]


@pytest.mark.parametrize("size", [32, 64, 224])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_a_box_gives_the_pixels_of_torchvision(mode, size):
    pictures = photographs(SIZES)
    store = stored(pictures)
    boxes, flips = np.array(BOXES), np.array(FLIPS)
    expected = []
    for picture, box, flip in zip(pictures, BOXES, FLIPS, strict=True):
        square = resized_crop(Image.fromarray(picture), *box, [size, size], InterpolationMode(mode))
        expected.append(np.array(hflip(square) if flip else square))
    expected = torch.from_numpy(np.stack(expected)).permute(0, 3, 1, 2).int()
    pixels, widths = torch.from_numpy(store.pixels), store.sizes[:, 1]
    one_by_one = torch.stack([
        resize_one(pixels, int(start), int(width), tuple(box), flip, size, mode)
        for start, width, box, flip in zip(store.starts, widths, BOXES, FLIPS, strict=True)
    ])  # fmt: skip
    together = resize_together(pixels, store.starts, widths, boxes, flips, size, mode)
    for found in (one_by_one, together):
        assert found.dtype == torch.uint8 and found.shape == (6, 3, size, size)
        apart = (found.int() - expected).abs()
        if mode == "bilinear":
            assert apart.max() <= 2
        assert (apart > 1).float().mean() < 2e-3 and (apart > 0).float().mean() < 0.2


def test_a_picture_shrunk_by_hand():
    """Bilinear from 4 pixels to 2: the hat, widened and cut off at the edge, has the weights 3/7, 3/7 and 1/7."""
    row = np.array([0, 70, 140, 210], np.uint8)
    picture = np.repeat(np.repeat(row[None, :, None], 4, 0), 3, 2)
    expected = [(3 * 0 + 3 * 70 + 1 * 140) / 7, (1 * 70 + 3 * 140 + 3 * 210) / 7]
    found = resize_together(
        torch.from_numpy(picture.reshape(-1).copy()), np.array([0]), np.array([4]), np.array([[0, 0, 4, 4]]),
        np.array([False]), 2, "bilinear",
    )  # fmt: skip
    assert found[0, :, 0].tolist() == [expected] * 3 and found[0, :, 1].tolist() == [expected] * 3


@pytest.mark.parametrize(
    "height, width, scale, ratio",
    [(256, 256, SCALE, RATIO), (256, 700, SCALE, RATIO), (340, 256, (0.85, 1.0), (0.85, 1 / 0.85))],
)
def test_boxes_are_distributed_as_those_of_torchvision(height, width, scale, ratio):
    """Kolmogorov-Smirnov tests of area, shape and place, with fixed seeds."""
    count = 4000
    ours = random_boxes(np.tile([height, width], (count, 1)), scale, ratio, np.random.default_rng(1))
    torch.manual_seed(1)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(count)])
    for boxes in (ours, theirs):
        assert (boxes[:, :2] >= 0).all() and (boxes[:, 0] + boxes[:, 2] <= height).all()
        assert (boxes[:, 1] + boxes[:, 3] <= width).all() and (boxes[:, 2:] >= 1).all()
    features = {
        "area": lambda b: b[:, 2] * b[:, 3],
        "shape": lambda b: b[:, 3] / b[:, 2],
        "top": lambda b: b[:, 0],
        "left": lambda b: b[:, 1],
        "place": lambda b: b[:, 1] / np.maximum(width - b[:, 3], 1),
    }
    for name, feature in features.items():
        assert ks_2samp(feature(ours), feature(theirs)).pvalue > 1e-3, name


def test_the_middle_is_taken_if_no_box_fits_as_torchvision_does():
    for height, width in ((10, 400), (400, 10), (1, 1), (3, 900)):
        ours = random_boxes(np.array([[height, width]] * 5), (0.9, 1.0), RATIO, np.random.default_rng(0))
        theirs = RandomResizedCrop.get_params(torch.empty(3, height, width), [0.9, 1.0], list(RATIO))
        assert (ours == np.array(theirs)).all()
