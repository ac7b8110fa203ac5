"""The decoded cache: what is in it, what it costs to make again, and what happens when making it goes wrong."""

import errno
import os
import shutil
import threading

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from vptsp_core.__main__ import main
from vptsp_core.data import cache as module
from vptsp_core.data.cache import open_store
from vptsp_core.data.folder import FileSet, read_image
from vptsp_core.data.store import resized
from vptsp_core.errors import DataError

MODES = ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1"]


def make_images(folder, count=14):
    """Files of many colour modes and shapes, some smaller than the store's side."""
    folder.mkdir(parents=True)
    paths = []
    rng = np.random.default_rng(0)
    for i in range(count):
        mode, size = MODES[i % len(MODES)], (int(rng.integers(20, 90)), int(rng.integers(20, 90)))
        picture = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
        paths.append(folder / (f"{i:02}.tif" if mode == "CMYK" else f"{i:02}.png"))
        picture.save(paths[-1])
    return FileSet("things train", paths, np.arange(count) % 2, ["a", "b"])


@pytest.fixture
def images(tmp_path):
    return make_images(tmp_path / "images")


@pytest.fixture
def decodings(monkeypatch):
    """Numbers of the images that are decoded."""
    seen, image = [], FileSet.image

    def counted(self, index):
        seen.append(index)
        return image(self, index)

    monkeypatch.setattr(FileSet, "image", counted)
    return seen


def build(images, folder, **options):
    return open_store(images, folder, **{"side": 32, "workers": 2, "progress": False} | options)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_store_holds_what_torchvision_resizes(images, tmp_path, interpolation):
    store = build(images, tmp_path / "cache", interpolation=interpolation)
    resize = Resize(32, InterpolationMode(interpolation))
    assert len(store) == len(images) and (store.sizes.min(1) == 32).all()
    for i, path in enumerate(images.paths):
        assert np.array_equal(store.image(i), np.asarray(resize(read_image(path))))


def test_sizes_follow_torchvisions_rule():
    sizes = np.array([(h, w) for h in range(1, 40, 3) for w in range(1, 60, 7)])
    for side in (16, 31):
        found = [Resize(side)(Image.new("L", (w, h))).size[::-1] for h, w in sizes]
        assert (resized(sizes, side) == np.array(found)).all()


def test_images_are_decoded_once(images, tmp_path, decodings):
    first = build(images, tmp_path / "cache")
    assert sorted(decodings) == list(range(14))
    again = build(images, tmp_path / "cache")
    assert len(decodings) == 14 and np.array_equal(first.pixels, again.pixels)
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_key_is_the_content_of_the_file_list(images, tmp_path, decodings):
    build(images, tmp_path / "cache")
    for i, change in enumerate((dict(side=33), dict(interpolation="bicubic"))):
        build(images, tmp_path / "cache", **change)
        assert len(decodings) == 14 * (i + 2)
    decodings.clear()
    path = images.paths[3]  # another picture of as many bytes
    content = bytearray(path.read_bytes())
    changed = path.stat().st_mtime + 10
    path.write_bytes(bytes(content))
    os.utime(path, (changed, changed))
    build(images, tmp_path / "cache")
    assert len(decodings) == 14, "an edited image makes a new store"
    fewer = FileSet("things train", images.paths[:-2], images.labels[:-2], ["a", "b"])
    assert len(build(fewer, tmp_path / "cache")) == 12
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "images", moved / "images")
    same = FileSet("things train", [moved / "images" / p.name for p in images.paths], images.labels, ["a", "b"])
    decodings.clear()
    build(same, tmp_path / "cache")
    assert not decodings, "the same files elsewhere find the store"


@pytest.mark.parametrize("cut", [1, 5, 13])
def test_a_build_cut_short_goes_on_where_it_was(images, tmp_path, monkeypatch, decodings, cut):
    monkeypatch.setattr(module, "CHUNK", 2)
    image = FileSet.image

    def until_cut(self, index):
        if len(decodings) >= cut:
            raise KeyboardInterrupt
        return image(self, index)

    monkeypatch.setattr(FileSet, "image", until_cut)
    with pytest.raises(KeyboardInterrupt):
        build(images, tmp_path / "cache", workers=1)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [".partial"]
    monkeypatch.setattr(FileSet, "image", image)
    before = len(decodings)
    store = build(images, tmp_path / "cache")
    finished = before // 2 * 2  # images of whole chunks, unless the last was not yet marked
    assert 14 - finished <= len(decodings) - before <= 14 - max(finished - 2, 0)
    resize = Resize(32)
    for i, path in enumerate(images.paths):
        assert np.array_equal(store.image(i), np.asarray(resize(read_image(path))))
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [""]


def test_an_unreadable_image_is_named_and_the_rest_is_kept(images, tmp_path, monkeypatch, decodings):
    monkeypatch.setattr(module, "CHUNK", 1)
    path, stat = images.paths[8], images.paths[8].stat()
    good = path.read_bytes()
    pixels = good.index(b"IDAT") + 8

    def put(content):  # of the same length and time: the same store
        path.write_bytes(content)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    put(good[:pixels] + bytes(len(good) - pixels))  # the header is whole
    with pytest.raises(DataError, match="08.png: unreadable .*; replace the file") as caught:
        build(images, tmp_path / "cache", workers=1)
    assert "\n" not in str(caught.value)
    put(good)
    decodings.clear()
    assert len(build(images, tmp_path / "cache")) == 14 and 8 in decodings and len(decodings) <= 14 - 7


def test_too_little_disk_is_said_before_anything_is_decoded(images, tmp_path, monkeypatch, decodings):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=1000))
    with pytest.raises(DataError, match="GB are free; give another folder with VPTSP_CACHE, or set pipeline=classic"):
        build(images, tmp_path / "cache")
    assert not decodings


def test_a_disk_that_runs_full_is_one_line_and_the_build_goes_on_later(images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "posix_fallocate", full)
        with pytest.raises(DataError, match="No space left on device; give another folder") as caught:
            build(images, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(module.os, "pwrite", full)
        with pytest.raises(DataError, match="No space left on device; give another folder"):
            build(images, tmp_path / "cache")
    assert len(build(images, tmp_path / "cache")) == 14


def test_two_at_once_decode_once(images, tmp_path, monkeypatch, decodings):
    monkeypatch.setattr(module, "CHUNK", 2)
    stores = [None, None]

    def work(i):
        stores[i] = build(images, tmp_path / "cache")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(decodings) == list(range(14))
    assert np.array_equal(stores[0].pixels, stores[1].pixels)
    assert [p.suffix for p in (tmp_path / "cache").iterdir()] == [""]


def test_a_damaged_store_is_refused(images, tmp_path):
    build(images, tmp_path / "cache")
    (store,) = (tmp_path / "cache").iterdir()
    os.truncate(store / module.PIXELS, 100)
    with pytest.raises(DataError, match="not whole; delete the folder"):
        build(images, tmp_path / "cache")


def test_the_command_makes_the_cache_that_a_run_reads(tmp_path, capsys, decodings):
    for label in "abcd":
        make_images(tmp_path / "data" / label, 4)
    assert main(["data", "cache", "folder", "--data", str(tmp_path / "data"), "--side", "40"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in out] == [["train", "8", "images"], ["test", "8", "images"]]
    decodings.clear()
    run = [
        "train",
        "--preset",
        "smoke",
        "--data",
        str(tmp_path / "data"),
        "--results",
        str(tmp_path / "r"),
        "--set",
        "dataset=folder",
        "pipeline=cached",
        "batch=4",
        "samples_per_class=2",
        "weights=random",
    ]
    assert main(run) == 0
    assert not decodings, "nothing was decoded again"
    assert main(["data", "cache", "glyphs"]) == 2
    assert main(["data", "cache", "folder", "--data", str(tmp_path / "data"), "--side", "0"]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 2 and "nothing to cache" in errors[0] and "--side 0" in errors[1]
