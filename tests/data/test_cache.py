"""The decoded cache: its pixels, its key, and failures while it is made."""

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import InterpolationMode, Resize

from vptsp_core.__main__ import main
from vptsp_core.data import cache as module
from vptsp_core.data.batches import cache_folder
from vptsp_core.data.cache import open_stores
from vptsp_core.data.folder import FileSet, read_image
from vptsp_core.errors import DataError

MODES = ["RGB", "L", "P", "CMYK", "RGBA", "LA", "1"]


def make_images(folder, count=14):
    """Write files of many colour modes and shapes, some smaller than the store's side."""
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
    """Return a list that grows by the number of each image that is decoded."""
    seen, image = [], FileSet.image

    def counted(self, index):
        seen.append(index)
        return image(self, index)

    monkeypatch.setattr(FileSet, "image", counted)
    return seen


def build(images, folder, **options):
    return open_stores([images], folder, **{"side": 32, "progress": False} | options)[0]


def suffixes(folder):
    return sorted(path.suffix for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_store_holds_the_pixels_that_torchvision_resizes(images, tmp_path, interpolation):
    store = build(images, tmp_path / "cache", interpolation=interpolation)
    resize = Resize(32, InterpolationMode(interpolation))
    assert len(store) == len(images) and (store.sizes.min(1) == 32).all()
    for i, path in enumerate(images.paths):
        assert np.array_equal(store.image(i), np.asarray(resize(read_image(path))))


def test_images_are_decoded_once_for_the_same_options(images, tmp_path, decodings):
    first, again = (build(images, tmp_path / "cache") for _ in "12")
    assert sorted(decodings) == list(range(14)) and np.array_equal(first.pixels, again.pixels)
    assert suffixes(tmp_path / "cache") == [""]
    for i, change in enumerate((dict(side=33), dict(interpolation="bicubic"))):
        build(images, tmp_path / "cache", **change)
        assert len(decodings) == 14 * (i + 2)


def write_reds(folder, colours):
    folder.mkdir(parents=True)
    for i, colour in enumerate(colours):
        Image.new("RGB", (20, 30), (colour, 0, 0)).save(folder / f"{i}.bmp")
    return [folder / f"{i}.bmp" for i in range(len(colours))]


def read_reds(paths, folder):
    labels = np.arange(len(paths)) % 2
    store = build(FileSet("red train", paths, labels, ["a", "b"]), folder)
    return [int(store.image(i)[0, 0, 0]) for i in range(len(store))]


def swap(one, other):
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def test_no_stale_pixels_are_read(tmp_path):
    """Files are edited, swapped, moved and dated back with equal names, lengths and times; folders share one cache."""
    paths, cache = write_reds(tmp_path / "v1", range(10, 50, 10)), tmp_path / "cache"
    assert read_reds(paths, cache) == [10, 20, 30, 40]
    stat = paths[1].stat()
    Image.new("RGB", (20, 30), (99, 0, 0)).save(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert read_reds(paths, cache) == [10, 99, 30, 40]
    swap(paths[2], paths[3])
    assert read_reds(paths, cache) == [10, 99, 40, 30]
    others = write_reds(tmp_path / "v2", range(1, 5))
    for path in (*paths, *others):  # as an archive does
        os.utime(path, (1, 1))
    both = [paths[0], others[0]]
    assert read_reds(both, cache) == [10, 1]
    swap(tmp_path / "v1", tmp_path / "v2")  # no file is written
    assert read_reds(both, cache) == [1, 10]
    swap(tmp_path / "v1", tmp_path / "v2")
    assert read_reds([paths[0], others[1], paths[2], others[3]], cache) == [10, 2, 40, 4]


def cut_after(monkeypatch, images, cache, count):
    """Interrupt the build after ``count`` images, decoded two at a time, and return its folder."""
    monkeypatch.setattr(module, "CHUNK", 2)
    image, seen = FileSet.image, []

    def until_cut(self, index):
        if len(seen) >= count:
            raise KeyboardInterrupt
        seen.append(index)
        return image(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FileSet, "image", until_cut)
        patch.setattr(module, "cores", lambda: 1)
        build(images, cache)
    (partial,) = cache.glob("*.partial")
    return partial


def holds_all(store, images):
    return all(
        np.array_equal(store.image(i), np.asarray(Resize(32)(read_image(path)))) for i, path in enumerate(images.paths)
    )


@pytest.mark.parametrize("cut", [0, 5, 13])
def test_an_interrupted_build_is_resumed(images, tmp_path, monkeypatch, decodings, cut):
    cut_after(monkeypatch, images, tmp_path / "cache", cut)
    decodings.clear()
    assert holds_all(build(images, tmp_path / "cache"), images)
    assert sorted(decodings) == list(range(cut // 2 * 2, 14)) and suffixes(tmp_path / "cache") == [""]


@pytest.mark.parametrize("file", [module.PIXELS, module.DONE])
def test_a_partial_store_that_lost_bytes_is_resumed(images, tmp_path, monkeypatch, file):
    """As after a power failure."""
    os.truncate(cut_after(monkeypatch, images, tmp_path / "cache", 9) / file, 100)
    assert holds_all(build(images, tmp_path / "cache"), images)


def test_an_unreadable_image_is_named(images, tmp_path):
    path = images.paths[8]
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with pytest.raises(DataError, match="08.png: unreadable .*; replace the file") as caught:
        build(images, tmp_path / "cache")
    assert "\n" not in str(caught.value) and suffixes(tmp_path / "cache") == [], "it would never be resumed"
    path.write_bytes(good)
    assert len(build(images, tmp_path / "cache")) == 14


def test_the_disk_is_compared_with_all_sets_together(tmp_path, monkeypatch, decodings):
    sets = [make_images(tmp_path / name, 6) for name in "ab"]
    usage, least = shutil.disk_usage(tmp_path), 3 * 12 * 64**2  # if all were squares
    another = tmp_path / "cache" / "c.partial" / module.PIXELS  # of another data set: makes no room for these
    another.parent.mkdir(parents=True)
    another.write_bytes(bytes(100))
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=least - 1))
    with pytest.raises(DataError, match="needs at least .*, .* are free; .* VPTSP_CACHE, or set pipeline=classic"):
        open_stores(sets, tmp_path / "cache", side=64, progress=False)
    assert not decodings, "the check comes before the decoding"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=least))
    open_stores(sets, tmp_path / "cache", side=64, progress=False)


def test_the_size_and_old_stores_are_printed(images, tmp_path, capsys):
    build(images, tmp_path / "cache")
    os.utime(images.paths[0])
    capsys.readouterr()
    build(images, tmp_path / "cache", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("cache: things train 14 images; at least 0.0 MB to write in ")
    assert "has other images of that name; delete it" in lines[1] and len(lines) == 2


def test_a_full_disk_is_one_line_and_the_build_is_resumed(images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device; give another folder") as caught:
            build(images, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert len(build(images, tmp_path / "cache")) == 14


def test_two_threads_decode_once(images, tmp_path, decodings):
    with ThreadPoolExecutor(2) as pool:
        stores = list(pool.map(lambda _: build(images, tmp_path / "cache"), range(2)))
    assert sorted(decodings) == list(range(14)) and np.array_equal(stores[0].pixels, stores[1].pixels)


def test_a_damaged_store_is_refused(images, tmp_path):
    build(images, tmp_path / "cache")
    (store,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    for damage in (
        lambda: os.truncate(store / module.PIXELS, 100),
        lambda: (store / module.SIZES).write_bytes(b"garbage"),
    ):
        damage()
        with pytest.raises(DataError, match="incomplete; delete the folder"):
            build(images, tmp_path / "cache")
    shutil.rmtree(store)
    assert len(build(images, tmp_path / "cache")) == 14


def test_the_command_makes_the_cache_that_a_run_reads(tmp_path, capsys, decodings):
    for label in "abcd":
        make_images(tmp_path / "data" / label, 4)
    cache = ["--cache", str(tmp_path / "cache")]
    assert main(["data", "cache", "folder", "--data", str(tmp_path / "data"), "--side", "40", *cache]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in out] == [["train", "8", "images"], ["test", "8", "images"]]
    decodings.clear()
    run = ["train", "--preset", "smoke", "--data", str(tmp_path / "data"), "--results", str(tmp_path / "r"), *cache]
    run += ["--set", "dataset=folder", "pipeline=cached", "batch=4", "samples_per_class=2", "weights=random"]
    assert main(run) == 0
    assert not decodings, "the run reads the cache"
    capsys.readouterr()
    assert main(["data", "cache", "glyphs"]) == 2
    assert main(["data", "cache", "folder", "--data", str(tmp_path / "data"), "--side", "0"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and "nothing to cache" in errors[0] and "--side 0" in errors[1]


def test_a_given_folder_goes_before_that_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("VPTSP_CACHE", str(tmp_path / "environment"))
    assert cache_folder("cub200", tmp_path, tmp_path / "given") == tmp_path / "given"
    assert cache_folder("cub200", tmp_path) == tmp_path / "environment"
