"""Images for tests/bad_inputs.py: broken ones, and odd ones with the pixels that they are to be read as."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from desk import SIDE, Desk, picture
from PIL import Image

from vptsp_core.data import load_benchmark
from vptsp_core.data.cache import open_stores

Made = tuple[str | bytes, np.ndarray | None, int]  # file name, (H, W, 3) expected, levels that it may be off by
PHOTO = picture(0)
Y, X = np.mgrid[:SIDE, : SIDE + 16]


def everywhere(desk: Desk, make: Callable[[Path], Made]) -> str:
    """What the file gives in both pipelines, the check and the embedder: refused alike, or read alike."""
    folder = desk.data / "b"
    name, expected, off = make(folder)
    path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
    if expected is None:
        said = {
            desk.refused(*desk.train("method=linear", f"pipeline={pipeline}")) for pipeline in ("classic", "cached")
        }
        assert not list(desk.results.rglob("metrics.json"))
        status, out, err = desk.command("data", "check", "folder", "--decode", "--data", desk.data)
        assert (status, err) == (2, "error: folder: 1 image(s) cannot be read, as listed above; replace the files\n")
        said.add(out.splitlines()[-1])
        said.add(desk.told(lambda: desk.embedder.embed(path)))
        (message,) = said
        return message
    warned: set[str] = set()
    for command in (desk.train("method=linear"), desk.train("method=linear", "pipeline=cached"),
                    ("data", "check", "folder", "--decode", "--data", desk.data)):  # fmt: skip
        status, _, err = desk.command(*command)
        assert status == 0, err
        warned.update(line.rstrip() for line in err.splitlines())
    test = load_benchmark("folder", desk.data).test
    place = test.paths.index(path)
    found = np.asarray(test.image(place))
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=off)
    (store,) = open_stores([test], desk.cache, side=SIDE, progress=False)
    np.testing.assert_array_equal(store.image(place), found)
    with Image.open(path) as opened:
        taken = desk.embedder.embed([path, opened, test.image(place)])
    np.testing.assert_allclose(taken, desk.embedder.embed([Image.fromarray(found)] * 3), atol=1e-6)
    assert len(warned) <= 1
    return "".join(warned)


# ---- broken --------------------------------------------------------------------------------------


def _jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def _put(folder: Path, name: str, content: bytes) -> Made:
    (folder / name).write_bytes(content)
    return name, None, 0


def truncated_jpeg(folder: Path) -> Made:
    return _put(folder, "odd.jpg", _jpeg()[:1500])


def web_page(folder: Path) -> Made:
    return _put(folder, "odd.jpg", b"<html>no such page</html>")


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, header: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(folder: Path) -> Made:
    return _put(folder, "odd.png", _png(60_000, 60_000, 8, 2, bytes(1_000_000)))


def floats(folder: Path) -> Made:
    Image.fromarray(PHOTO[..., 0].astype(np.float32) / 255).save(folder / "odd.tif")
    return "odd.tif", None, 0


def small_numbers(folder: Path) -> Made:
    """What eight bits hold, in 32 of them: the upper eight of sixteen would all be 0."""
    Image.fromarray(PHOTO[..., 0].astype(np.int32)).save(folder / "odd.tif")
    return "odd.tif", None, 0


def strip(folder: Path) -> Made:
    Image.new("RGB", (60_000, 1)).save(folder / "odd.png")
    return "odd.png", None, 0


def folder_embedded(desk: Desk) -> str:
    (desk.data / "b" / "odd.jpg").mkdir()
    return desk.told(lambda: desk.embedder.embed(desk.data / "b" / "odd.jpg"))


def folder_trained(desk: Desk) -> str:
    (desk.data / "b" / "odd.jpg").mkdir()
    status, _, err = desk.command(*desk.train())
    assert status == 0 and len(set(err.splitlines())) == 1
    return err.splitlines()[0]


def absent(desk: Desk) -> str:
    return desk.told(lambda: desk.embedder.embed([desk.data / "a" / "0.png", desk.root / "none.jpg"]))


def number(desk: Desk) -> str:
    return desk.told(lambda: desk.embedder.embed([3]))


def none(desk: Desk) -> str:
    (said,) = {desk.told(lambda given=given: desk.embedder.embed(given)) for given in (None, [None])}
    return said


def nothing(desk: Desk) -> str:
    return desk.told(lambda: desk.embedder.embed([]))


def wrong_tensor(desk: Desk) -> str:
    return desk.told(lambda: desk.embedder.embed(torch.zeros(1, 3, 8, 8)))


# ---- odd -----------------------------------------------------------------------------------------


def _saved(folder: Path, name: str, image: Image.Image, expected: np.ndarray, off: int = 0, **options) -> Made:
    image.save(folder / name, **options)
    return name, expected, off


def _indexed() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    colours, index = picture(1, (1, 4))[0], ((X // 7 + Y // 5) % 4).astype(np.uint8)
    image = Image.fromarray(index, "L").convert("P")
    image = Image.frombytes("P", image.size, index.tobytes())
    image.putpalette(colours.tobytes())
    return image, colours, index


def clear_palette(folder: Path) -> Made:
    image, colours, index = _indexed()
    seen = np.where((index == 2)[..., None], 255, colours[index])
    return _saved(folder, "odd.png", image, seen, transparency=2)


def cmyk(folder: Path) -> Made:
    inks = np.dstack([PHOTO, picture(2)[..., 0]]).astype(float)
    expected = np.round((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    image = Image.frombytes("CMYK", PHOTO.shape[1::-1], inks.astype(np.uint8).tobytes())
    return _saved(folder, "odd.tif", image, expected, off=1)


def colour16(folder: Path) -> Made:
    values = PHOTO.astype(">u2") * 256 + picture(3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (folder / "odd.png").write_bytes(_png(SIDE + 16, SIDE, 16, 2, rows))
    return "odd.png", PHOTO, 0


def _over_white(colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def alpha(folder: Path) -> Made:
    opacity = picture(4)[..., 0]
    return _saved(folder, "odd.png", Image.fromarray(np.dstack([PHOTO, opacity])), _over_white(PHOTO, opacity), 1)


def animated(folder: Path) -> Made:
    image, colours, index = _indexed()
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.rotate(180)]
    return _saved(folder, "odd.gif", image, colours[index], save_all=True, append_images=others, duration=40)


def turned(folder: Path) -> Made:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter, clockwise
    (folder / "odd.jpg").write_bytes(_jpeg(exif=exif.tobytes()))
    return "odd.jpg", np.rot90(np.asarray(Image.open(io.BytesIO(_jpeg()))), -1), 0


def broken_exif(folder: Path) -> Made:
    (folder / "odd.jpg").write_bytes(_jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    return "odd.jpg", np.asarray(Image.open(io.BytesIO(_jpeg()))), 0


def odd_name(folder: Path) -> Made:
    name = "zo\u00eb \u2603 \u05d0\u05d1\u202e \n \U0001f426.png"
    return _saved(folder, name, Image.fromarray(PHOTO), PHOTO)


def name_of_bytes(folder: Path) -> Made:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")
    with open(os.path.join(os.fsencode(folder), b"\xff\xfe.png"), "wb") as file:
        file.write(buffer.getvalue())
    return b"\xff\xfe.png", PHOTO, 0
