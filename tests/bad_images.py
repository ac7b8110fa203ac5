"""Images for tests/test_bad_inputs.py: broken images, and odd images with the pixels that must be read from them."""

from __future__ import annotations

import io
import os
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from desk import SIDE, Desk, picture
from PIL import Image

from vptsp_core.data import load_benchmark
from vptsp_core.data.cache import open_stores

PHOTO = picture(0)
ALL_SUCH = "; all such files: python -m vptsp_core data check folder --data DIR --decode"  # ends a message
Y, X = np.mgrid[:SIDE, : SIDE + 16]


def refused_everywhere(desk: Desk, make: Callable[[Path], str]) -> str:
    """Return the message about a file, which both pipelines, the check and the embedder must share."""
    path = desk.data / "b" / make(desk.data / "b")
    pipelines = ("classic", "cached")
    messages = {desk.refused(*desk.train("method=linear", f"pipeline={pipeline}")) for pipeline in pipelines}
    assert all(each.endswith(ALL_SUCH) for each in messages), messages
    messages = {each.removesuffix(ALL_SUCH) for each in messages}
    assert not desk.results.exists() or not [p for p in desk.results.rglob("*") if p.is_file()]
    status, out, err = desk.command("data", "check", "folder", "--decode", "--data", desk.data)
    assert (status, err) == (2, "error: folder: 1 image(s) cannot be read, as listed above; replace the files\n")
    messages.add(out.splitlines()[-1])
    messages.add(desk.told(lambda: desk.embedder.embed(path)))
    (message,) = messages
    return message


def all_read(desk: Desk) -> str:
    """Check that pipelines, check, cache and embedder read all `odd_images` as expected; return the only warning."""
    made = {}
    for name, content, expected, off in odd_images():
        path = desk.data / "b" / os.fsdecode(name)
        path.write_bytes(content)
        made[path] = expected, off
    warned: set[str] = set()
    for command in (desk.train("method=linear"), desk.train("method=linear", "pipeline=cached"),
                    ("data", "check", "folder", "--decode", "--data", desk.data)):  # fmt: skip
        status, _, err = desk.command(*command)
        assert status == 0, err
        warned.update(line.rstrip() for line in err.splitlines())
    test = load_benchmark("folder", desk.data).test
    (store,) = open_stores([test], desk.cache, side=SIDE, progress=False)
    for path, (expected, off) in made.items():
        place = test.paths.index(path)
        found = np.asarray(test.image(place))
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=off, err_msg=path.name, strict=True)
        np.testing.assert_array_equal(store.image(place), found)
        with Image.open(path) as opened:
            taken = desk.embedder.embed([path, opened, test.image(place)])
        np.testing.assert_allclose(taken, desk.embedder.embed([Image.fromarray(found)] * 3), atol=1e-6)
    (warning,) = warned
    return warning


# ---- broken --------------------------------------------------------------------------------------


def _jpeg(**options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


def _put(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return name


def truncated_jpeg(folder: Path) -> str:
    return _put(folder, "odd.jpg", _jpeg()[:1500])


def _png(width: int, height: int, depth: int, colour: int, rows: bytes, header: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bomb(folder: Path) -> str:
    return _put(folder, "odd.png", _png(60_000, 60_000, 8, 2, bytes(1_000_000)))


def floats(folder: Path) -> str:
    Image.fromarray(PHOTO[..., 0].astype(np.float32) / 255).save(folder / "odd.tif")
    return "odd.tif"


def large_numbers(folder: Path) -> str:
    Image.fromarray(PHOTO[..., 0].astype(np.int32) * 1000).save(folder / "odd.tif")
    return "odd.tif"


def small_numbers(folder: Path) -> str:
    """32-bit pixels with values of 8 bits: the upper 8 of 16 bits would all be 0."""
    Image.fromarray(PHOTO[..., 0].astype(np.int32)).save(folder / "odd.tif")
    return "odd.tif"


def strip(folder: Path) -> str:
    Image.new("RGB", (60_000, 1)).save(folder / "odd.png")
    return "odd.png"


# ---- odd -----------------------------------------------------------------------------------------


def _over_white(colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def odd_images() -> Iterator[tuple[str | bytes, bytes, np.ndarray, int]]:
    """Yield file name, content, the expected pixels (H, W, 3), and how many levels they may differ by."""

    def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    grey, photo, shape = PHOTO[..., 0], Image.fromarray(PHOTO), PHOTO.shape[1::-1]
    yield "grey.png", saved(Image.fromarray(grey)), PHOTO[..., [0, 0, 0]], 0
    white = grey > 99
    yield "1 bit.png", saved(Image.fromarray(white)), np.where(white, 255, 0)[..., None].repeat(3, 2), 0

    colours, index = picture(1, (1, 4))[0], ((X // 7 + Y // 5) % 4).astype(np.uint8)
    palette = Image.frombytes("P", shape, index.tobytes())
    palette.putpalette(colours.tobytes())
    seen = np.where((index == 2)[..., None], 255, colours[index])
    yield "transparent palette.png", saved(palette, transparency=2), seen, 0
    frames = [palette.transpose(Image.Transpose.FLIP_LEFT_RIGHT), palette.rotate(180)]
    animation = saved(palette, "GIF", save_all=True, append_images=frames, duration=40)
    yield "animation, of which the first frame counts.gif", animation, colours[index], 0

    inks = np.dstack([PHOTO, picture(2)[..., 0]]).astype(float)
    cmyk = Image.frombytes("CMYK", shape, inks.astype(np.uint8).tobytes())
    yield "cmyk.tif", saved(cmyk, "TIFF"), np.round((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255), 1

    values = (X * 1171 % 65536).astype(np.uint16)
    for name, kind in (("16 bits.png", "PNG"), ("16 bits.pgm", "PPM"), ("16 bits.tif", "TIFF")):
        yield name, saved(Image.fromarray(values), kind), (values // 256)[..., None].repeat(3, 2), 0
    rows = b"".join(b"\0" + row.tobytes() for row in (PHOTO.astype(">u2") * 256 + picture(3)).astype(">u2"))
    yield "16 bits per channel.png", _png(*shape, 16, 2, rows), PHOTO, 0

    opacity, grey_alpha = picture(4)[..., 0], picture(5)[..., :2]
    yield "alpha.png", saved(Image.fromarray(np.dstack([PHOTO, opacity]))), _over_white(PHOTO, opacity), 1
    expected = _over_white(grey_alpha[..., [0, 0, 0]], grey_alpha[..., 1])
    yield "grey with alpha.png", saved(Image.frombytes("LA", shape, grey_alpha.tobytes())), expected, 1

    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter, clockwise
    decoded = np.asarray(Image.open(io.BytesIO(_jpeg())))
    yield "turned.jpg", _jpeg(exif=exif.tobytes()), np.rot90(decoded, -1), 0
    yield "broken exif.jpg", _jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"), decoded, 0

    yield "a png.jpg", saved(photo), PHOTO, 0
    yield "zo\u00eb \u2603 \u05d0\u05d1\u202e \n \U0001f426.png", saved(photo), PHOTO, 0
    if sys.platform == "linux":  # other systems have no such names
        yield b"\xff\xfe, which is not UTF-8.png", saved(photo), PHOTO, 0
