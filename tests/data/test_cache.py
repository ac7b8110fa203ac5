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
from vptsp_core.data.cache import open_stores
from vptsp_core.data.folder import FileSet, read_image
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
    return open_stores([images], folder, **{"side": 32, "workers": 2, "progress": False} | options)[0]


def shown(folder):
    return sorted(path.suffix for path in folder.iterdir() if not path.name.startswith("."))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_a_store_holds_what_torchvision_resizes(images, tmp_path, interpolation):
    store = build(images, tmp_path / "cache", interpolation=interpolation)
    resize = Resize(32, InterpolationMode(interpolation))
    assert len(store) == len(images) and (store.sizes.min(1) == 32).all()
    for i, path in enumerate(images.paths):
        assert np.array_equal(store.image(i), np.asarray(resize(read_image(path))))


def test_images_are_decoded_once(images, tmp_path, decodings):
    first = build(images, tmp_path / "cache")
    assert sorted(decodings) == list(range(14))
    again = build(images, tmp_path / "cache")
    assert len(decodings) == 14 and np.array_equal(first.pixels, again.pixels)
    assert shown(tmp_path / "cache") == [""]


def test_the_key_is_the_content_of_the_file_list(images, tmp_path, decodings):
    build(images, tmp_path / "cache")
    for i, change in enumerate((dict(side=33), dict(interpolation="bicubic"))):
        build(images, tmp_path / "cache", **change)
        assert len(decodings) == 14 * (i + 2)
    decodings.clear()
    fewer = FileSet("things train", images.paths[:-2], images.labels[:-2], ["a", "b"])
    assert len(build(fewer, tmp_path / "cache")) == 12


def pictures_of_equal_size(folder, colours):
    folder.mkdir(parents=True)
    for i, colour in enumerate(colours):
        Image.new("RGB", (20, 30), (colour, 0, 0)).save(folder / f"{i}.bmp")
    return [folder / f"{i}.bmp" for i in range(len(colours))]


def reds(paths, folder):
    labels = np.arange(len(paths)) % 2
    store = build(FileSet("red train", paths, labels, ["a", "b"]), folder)
    return [int(store.image(i)[0, 0, 0]) for i in range(len(store))]


def test_no_stale_pixels_are_read(tmp_path):
    """Same names, same lengths, same second: edited, swapped, moved, dated back, another folder under one cache."""
    paths, cache = pictures_of_equal_size(tmp_path / "v1", range(10, 50, 10)), tmp_path / "cache"
    assert reds(paths, cache) == [10, 20, 30, 40]
    stat = paths[1].stat()
    Image.new("RGB", (20, 30), (99, 0, 0)).save(paths[1])
    os.utime(paths[1], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert reds(paths, cache) == [10, 99, 30, 40]
    paths[2].rename(tmp_path / "aside")
    paths[3].rename(paths[2])
    (tmp_path / "aside").rename(paths[3])
    assert reds(paths, cache) == [10, 99, 40, 30]
    others = pictures_of_equal_size(tmp_path / "v2", range(1, 5))
    for path in (*paths, *others):  # as an archive leaves them
        os.utime(path, (1, 1))
    both = [tmp_path / "v1" / "0.bmp", tmp_path / "v2" / "0.bmp"]
    assert reds(both, cache) == [10, 1]
    (tmp_path / "v1").rename(tmp_path / "aside")  # whole folders change names: no file is touched
    (tmp_path / "v2").rename(tmp_path / "v1")
    (tmp_path / "aside").rename(tmp_path / "v2")
    assert reds(both, cache) == [1, 10]
    (tmp_path / "v1").rename(tmp_path / "aside")
    (tmp_path / "v2").rename(tmp_path / "v1")
    (tmp_path / "aside").rename(tmp_path / "v2")
    assert reds(others, cache) == [1, 2, 3, 4]
    mixed = [paths[0], others[1], paths[2], others[3]]
    assert reds(mixed, cache) == [10, 2, 40, 4]


def cut_after(monkeypatch, images, cache, count):
    """Make the cache until ``count`` images are decoded; they are decoded two at a time."""
    monkeypatch.setattr(module, "CHUNK", 2)
    image, seen = FileSet.image, []

    def until_cut(self, index):
        if len(seen) >= count:
            raise KeyboardInterrupt
        seen.append(index)
        return image(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FileSet, "image", until_cut)
        build(images, cache, workers=1)
    (partial,) = cache.glob("*.partial")
    return partial


def holds_all(store, images):
    return all(np.array_equal(store.image(i), np.asarray(Resize(32)(read_image(path))))
               for i, path in enumerate(images.paths))  # fmt: skip


@pytest.mark.parametrize("cut", [0, 1, 5, 13])
def test_a_build_cut_short_is_resumed(images, tmp_path, monkeypatch, decodings, cut):
    cut_after(monkeypatch, images, tmp_path / "cache", cut)
    decodings.clear()
    assert holds_all(build(images, tmp_path / "cache"), images)
    assert sorted(decodings) == list(range(cut // 2 * 2, 14)) and shown(tmp_path / "cache") == [""]


@pytest.mark.parametrize("file", [module.PIXELS, module.DONE])
@pytest.mark.parametrize("length", [None, 0, 100])
def test_pixels_and_sizes_that_do_not_fit_are_decoded_again(images, tmp_path, monkeypatch, file, length):
    """kill -9 or a power failure, and then somebody tidies up."""
    path = cut_after(monkeypatch, images, tmp_path / "cache", 9) / file
    path.unlink() if length is None else os.truncate(path, length)
    assert holds_all(build(images, tmp_path / "cache"), images)


def test_an_unreadable_image_is_named(images, tmp_path):
    path = images.paths[8]
    good = path.read_bytes()
    pixels = good.index(b"IDAT") + 8
    path.write_bytes(good[:pixels] + bytes(len(good) - pixels))  # the header is whole
    with pytest.raises(DataError, match="08.png: unreadable .*; replace the file") as caught:
        build(images, tmp_path / "cache")
    assert "\n" not in str(caught.value) and shown(tmp_path / "cache") == [".partial"]
    path.write_bytes(good)
    assert len(build(images, tmp_path / "cache")) == 14


def test_sixteen_bits_keep_their_shades(tmp_path):
    ramp = np.tile(np.linspace(0, 65535, 64, dtype=np.uint16), (64, 1))
    for name in ("ramp.png", "ramp.pgm", "ramp.tif"):
        Image.fromarray(ramp).save(tmp_path / name)
        found = np.asarray(read_image(tmp_path / name))[..., 0]
        assert np.array_equal(found, ramp >> 8), name


def test_the_disk_is_compared_with_all_sets_together(tmp_path, monkeypatch, decodings):
    sets = [make_images(tmp_path / name, 6) for name in "ab"]
    usage = shutil.disk_usage(tmp_path)
    sizes = [int(open_stores([each], tmp_path / "other", side=64, progress=False)[0].pixels.nbytes) for each in sets]
    decodings.clear()
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=sum(sizes) - 1))
    with pytest.raises(DataError, match="needs .*, .* are free; .* VPTSP_CACHE, or set pipeline=classic"):
        open_stores(sets, tmp_path / "cache", side=64, progress=False)
    assert not decodings, "it is said before anything is decoded"
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: usage._replace(free=sum(sizes)))
    open_stores(sets, tmp_path / "cache", side=64, progress=False)


def test_what_will_be_written_and_what_is_left_over_is_said(images, tmp_path, capsys):
    build(images, tmp_path / "cache")
    os.utime(images.paths[0])
    capsys.readouterr()
    build(images, tmp_path / "cache", progress=True)
    lines = capsys.readouterr().err.splitlines()
    assert "things train 14 images; " in lines[0] and "MB to write in" in lines[0] and "free)" in lines[0]
    assert "other files of a set of that name; delete it" in lines[1] and len(lines) == 2


def test_a_disk_that_runs_full_is_one_line_and_the_build_is_resumed(images, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "fsync", full)
        with pytest.raises(DataError, match="No space left on device; give another folder") as caught:
            build(images, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert len(build(images, tmp_path / "cache")) == 14


def test_two_at_once_decode_once(images, tmp_path, decodings):
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
    assert shown(tmp_path / "cache") == [""]


def test_a_damaged_store_is_refused(images, tmp_path):
    build(images, tmp_path / "cache")
    (store,) = (path for path in (tmp_path / "cache").iterdir() if path.is_dir())
    for damage in (
        lambda: os.truncate(store / module.PIXELS, 100),
        lambda: (store / module.PIXELS).unlink(),
        lambda: (store / module.SIZES).write_bytes(b"garbage"),
    ):
        damage()
        with pytest.raises(DataError, match="not whole; delete the folder"):
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
    run = [
        "train",
        "--preset",
        "smoke",
        "--data",
        str(tmp_path / "data"),
        "--results",
        str(tmp_path / "r"),
        *cache,
        "--set",
        "dataset=folder",
        "pipeline=cached",
        "batch=4",
        "samples_per_class=2",
        "weights=random",
    ]
    assert main(run) == 0
    assert not decodings, "nothing was decoded again"
    capsys.readouterr()
    assert main(["data", "cache", "glyphs"]) == 2
    assert main(["data", "cache", "folder", "--data", str(tmp_path / "data"), "--side", "0"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 2 and "nothing to cache" in errors[0] and "--side 0" in errors[1]
