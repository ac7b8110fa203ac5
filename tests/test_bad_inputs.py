"""Bad input is reported in one line, word for word. Odd input is read correctly. A user's files never change.

Data sets are in tests/data/test_data_layouts.py and tests/deploy/test_own_images.py, options in tests/runs/test_run.py.
"""

import errno
import os
import shutil
from pathlib import Path

import bad_images as images
import numpy as np
import pytest
import torch
from desk import Desk, picture
from PIL import Image
from reseal import reseal_run
from safetensors.torch import save_file

from vptsp_core import preset
from vptsp_core.data.folder import FileSet
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.loop import Loop
from vptsp_core.method.step import TrainStep
from vptsp_core.runs.checkpoints import write_checkpoint
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.folder import read_run
from vptsp_core.runs.run import build_model


@pytest.fixture(scope="module")
def embedder():
    return Embedder(build_model(preset("smoke", weights="random", method="linear"), 2, torch.device("cpu")))


@pytest.fixture
def desk(tmp_path, monkeypatch, embedder):
    made = Desk(tmp_path, monkeypatch, embedder)
    before = made.untouched()
    yield made
    after = made.untouched()
    assert all(after.get(path) == content for path, content in before.items()), "a user's file was changed"


class Bomb:
    """Code that touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# ---- images: by both pipelines, by `data check --decode` and by `embed` --------------------------

BROKEN = {
    "JPEG cut short": (images.truncated_jpeg, "odd.jpg: unreadable (image file is truncated (267 bytes not "
                       "processed)); replace the file"),
    "1 kB of PNG that says 60,000 x 60,000 pixels": (
        images.bomb, "odd.png: unreadable (Image size (3600000000 pixels) exceeds limit of 178956970 pixels, could be "
        "decompression bomb DOS attack.); replace the file"),
    "floating-point TIFF": (images.floats, "odd.tif: floating-point pixels have no known range; convert it to 8 bits a "
                            "channel"),
    "32 bits, values above 65,535": (images.large_numbers, "odd.tif: its values do not fit into 16 bits; convert it to "
                                     "8 bits a channel"),
    "32 bits, values of 8 bits": (
        images.small_numbers, f"odd.tif: its values end at {images.PHOTO[..., 0].max()} of 65,535; spread them over "
        "the range, or convert it to 8 bits a channel"),
    "a strip": (images.strip, "odd.png: 60000 x 1 pixels, more than 256 times as long as wide; leave it out"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_every_reader_names_a_broken_image(desk, make, message):
    assert images.refused_everywhere(desk, make) == f"image DIR/data/b/{message}"


def test_odd_images_are_read_as_a_viewer_shows_them(desk):
    assert images.all_read(desk) == "warning: Corrupt EXIF data.  Expecting to read 12 bytes but only got 2."


def test_folders_and_missing_files_in_place_of_images(desk):
    (desk.data / "b" / "odd.jpg").mkdir()
    embedded = {
        "image DIR/data/b/odd.jpg: unreadable (Is a directory); replace the file": desk.data / "b" / "odd.jpg",
        "image DIR/none.jpg: no such file; check the path": [desk.data / "a" / "0.png", desk.root / "none.jpg"],
        "no images to embed; give at least one": [],
        "images of shape (1, 3, 8, 8) and type float32; the model takes (N, 3, 40, 40) floating point, normalised":
            torch.zeros(1, 3, 8, 8),
    }  # fmt: skip
    for message, given in embedded.items():
        assert desk.told(lambda given=given: desk.embedder.embed(given)) == message
    status, _, err = desk.command(*desk.train())
    assert status == 0 and set(err.splitlines()) == {
        "warning: folder: 1 file(s) or folder(s) in DIR/data are ignored, the first b/odd.jpg; "
        "1 image(s) in sub-folders of class folders are not used"
    }  # fmt: skip


# ---- weights (their layouts: tests/method/test_weights.py) ---------------------------------------


def test_files_that_are_not_weights(desk):
    (desk.root / "w.onnx").write_bytes(b"no weights")
    state = load_backbone("demo_vit").state_dict()
    save_file(state | {"norm.bias": torch.zeros(96, dtype=torch.int64)}, desk.root / "whole.safetensors")
    save_file(state | {"norm.bias": torch.full((96,), float("inf"))}, desk.root / "infinite.safetensors")
    for given, message in {
        desk.data: "weights DIR/data: a folder, no file; give a .safetensors or .pth file",
        "": "weights is empty; give a .safetensors or .pth file, or leave it out",
        desk.root / "w.onnx": "weights DIR/w.onnx: unreadable (damaged, or not a .safetensors, .pth, "
        ".pt, .bin, .ckpt or .npz file); get the file again",
        desk.root / "whole.safetensors": "weights DIR/whole.safetensors: norm.bias is not a floating-point tensor; "
        "save model.state_dict()",
        desk.root / "infinite.safetensors": "weights DIR/infinite.safetensors: norm.bias holds values that are not "
        "finite numbers; get the file again",
    }.items():
        assert desk.refused(*desk.train(f"weights={given}")) == message
        assert not desk.results.exists()


# ---- files of runs that contain code, or are missing ---------------------------------------------


def test_pickled_code_in_a_checkpoint_is_not_run(desk):
    """Its checksum fits. The file is not changed."""

    class Stop(Exception):
        pass

    def stop(self, epoch, train=Loop.train_epoch):
        if epoch == 1:
            raise Stop
        return train(self, epoch)

    with desk.patch.context() as patch, pytest.raises(Stop):
        patch.setattr(Loop, "train_epoch", stop)
        desk.command(*desk.train("epochs=2"))
    path = desk.run_folder() / "checkpoint.pt"
    saved = torch.load(path, weights_only=True)
    path.unlink()
    write_checkpoint(path.parent, saved.pop("config"), {**saved, "best": Bomb(desk.root / "ran")})
    before = path.read_bytes()
    refused = desk.refused(*desk.train("epochs=2"))
    assert refused.startswith("checkpoint DIR/results/runs/RUN/checkpoint.pt: unreadable here (Weights only")
    assert refused.endswith("); use the versions that wrote it, or delete it to start this run again")
    assert path.read_bytes() == before and not (desk.root / "ran").exists()


def test_pickled_code_in_a_finished_run_is_not_run_and_a_run_without_its_record_is_not_finished(desk):
    assert desk.command(*desk.train())[0] == 0
    path, content = desk.run_folder(), np.array([Bomb(desk.root / "ran")], dtype=object)
    np.savez(path / "queries.npz", **{"R@1": content})
    reseal_run(path)  # on purpose
    assert desk.told(lambda: read_run(path).queries) == (
        "DIR/results/runs/RUN/queries.npz: unreadable (Object arrays cannot be loaded when allow_pickle=False); delete "
        "the folder and run it again"
    )
    assert not (desk.root / "ran").exists()
    (path / "record.json").unlink()
    assert desk.refused(*desk.train()) == (
        "DIR/results/runs/RUN holds no finished run (record.json is missing); give the folder of one"
    )


def test_pickled_code_in_the_cache_of_decoded_images_is_not_run(desk):
    assert desk.command(*desk.train("pipeline=cached"))[0] == 0
    for path in desk.cache.glob("folder-test-*/sizes.npy"):
        np.save(path, np.array([Bomb(desk.root / "ran")], dtype=object), allow_pickle=True)
    assert desk.refused(*desk.train("pipeline=cached", "seed=1")) == (
        "cache DIR/cache/STORE: incomplete; delete the folder, and it is made again"
    )
    assert not (desk.root / "ran").exists()


# ---- devices and disks that fail in the second of three epochs -----------------------------------

FAILURES = {
    "GPU memory full": (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation"),
        "the GPU's memory is full in epoch 2; lower batch, or choose --checkpointing on, --compile off, "
        "--device cpu, or --class-table host for row-wise class prompts"),
    "GPU gone": (
        torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later"),
        "the GPU failed in epoch 2 (CUDA error: unspecified launch failure); the same command resumes after the last "
        "finished epoch: start it again, or with --device cpu"),
    "memory of the machine full": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you"),
        "the memory of this machine is full in epoch 2; lower batch, or make the model smaller"),
}  # fmt: skip


def resumes_to_the_same_numbers(desk):
    """Check that the first epoch is kept, and that the same command gives the numbers of an uninterrupted run."""
    folder = desk.run_folder()
    assert [path.name for path in folder.iterdir()] == ["checkpoint.pt"], "whole, and no temporary file"
    assert desk.command(*desk.train("epochs=3"))[0] == 0
    resumed = read_run(folder)
    assert [each["after_epochs"] for each in resumed.record["stretches"]] == [0, 1]
    shutil.move(folder, desk.root / "resumed")
    assert desk.command(*desk.train("epochs=3"))[0] == 0
    whole = read_run(desk.run_folder())
    assert whole.metrics == resumed.metrics and whole.history["loss"].equals(resumed.history["loss"])


@pytest.mark.parametrize(("error", "message"), FAILURES.values(), ids=FAILURES.keys())
def test_a_step_that_fails_is_one_line_and_the_run_resumes(desk, error, message):
    good, calls = TrainStep.__call__, []

    def bad(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise error
        return good(*arguments)

    with desk.patch.context() as patch:
        patch.setattr(TrainStep, "__call__", bad)
        assert desk.refused(*desk.train("epochs=3")) == message
    resumes_to_the_same_numbers(desk)


@pytest.mark.linux("needs /proc")
def test_a_disk_that_is_full_at_a_checkpoint_is_one_line_and_the_run_resumes(desk):
    synced = []

    def fsync(handle, good=os.fsync):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        if sum(".checkpoint.pt." in name for name in synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return good(handle)

    with desk.patch.context() as patch:
        patch.setattr("vptsp_core.system.files.os.fsync", fsync)
        assert desk.refused(*desk.train("epochs=3")) == (
            "cannot write DIR/results/runs/RUN/checkpoint.pt (No space left on device); make room there and call again"
        )
    resumes_to_the_same_numbers(desk)


# ---- published benchmarks -------------------------------------------------------------------------


def test_published_benchmarks_are_read_as_before(tmp_path):
    """FileSet returns the same as Pillow's convert("RGB"), and ignores alpha and orientation."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(np.dstack([picture(1), picture(2)[..., :1]])).save(tmp_path / "0.png", exif=exif)
    Image.fromarray(picture(3)).save(tmp_path / "1.jpg", exif=exif)
    images = FileSet("cub200 test", [tmp_path / "0.png", tmp_path / "1.jpg"], np.array([0, 0]), ["a"])
    for index, path in enumerate(images.paths):
        np.testing.assert_array_equal(np.asarray(images.image(index)), np.asarray(Image.open(path).convert("RGB")))
