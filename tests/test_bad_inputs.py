"""Every line of the table of bad and odd input."""

import numpy as np
import pytest
import torch
from bad_inputs import TABLE, WORKS
from desk import Desk, picture
from PIL import Image

from vptsp_core import preset
from vptsp_core.data.folder import FileSet, read_image
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.run import build_model

CASES = [
    pytest.param(case, id=f"{group}: {case.given}, {case.call}") for group, cases in TABLE.items() for case in cases
]


@pytest.fixture(scope="module")
def embedder():
    return Embedder(build_model(preset("smoke", weights="random", method="linear"), 2, torch.device("cpu")))


@pytest.mark.parametrize("case", CASES)
def test_what_the_table_says_is_what_happens(case, tmp_path, monkeypatch, embedder):
    desk = Desk(tmp_path, monkeypatch, embedder)
    before = desk.untouched()
    said = case.do(desk)
    assert said == (case.warning if case.message.startswith(WORKS) else case.message)
    after = desk.untouched()
    assert all(after.get(path) == content for path, content in before.items()), "a user's file was changed"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_orientations_are_undone_for_ones_own_images_alone(tmp_path, orientation, suffix):
    """A photograph as the camera stores it, against NumPy's turns; a benchmark's stays as it is stored."""
    shown = np.zeros((48, 64, 3), np.uint8)  # edges where JPEG's blocks end
    shown[:16, :32], shown[16:, :32], shown[:16, 32:] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    store = {
        1: shown, 2: shown[:, ::-1], 3: np.rot90(shown, 2), 4: shown[::-1], 5: shown.transpose(1, 0, 2),
        6: np.rot90(shown), 7: np.rot90(shown, 2).transpose(1, 0, 2), 8: np.rot90(shown, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(np.ascontiguousarray(store)).save(path, exif=exif, quality=95, subsampling=0, lossless=True)
    np.testing.assert_allclose(np.asarray(read_image(path, as_shown=True)).astype(int), shown, atol=40)
    if suffix == "jpg":  # what the published benchmarks are made of
        raw = np.asarray(Image.open(path).convert("RGB"))
        np.testing.assert_array_equal(np.asarray(read_image(path)), raw)
        assert raw.shape == store.shape


def test_published_benchmarks_are_read_as_before(tmp_path):
    """FileSet, which their splits are, gives what Pillow's convert("RGB") gives, alpha and orientation left aside."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.dstack([picture(1), picture(2)[..., :1]])).save(tmp_path / "0.png", exif=exif)
    Image.fromarray(picture(3)).save(tmp_path / "1.jpg", exif=exif)
    images = FileSet("cub200 test", [tmp_path / "0.png", tmp_path / "1.jpg"], np.array([0, 0]), ["a"])
    for index, path in enumerate(images.paths):
        np.testing.assert_array_equal(np.asarray(images.image(index)), np.asarray(Image.open(path).convert("RGB")))
