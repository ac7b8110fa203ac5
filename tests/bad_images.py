"""Images for tests/test_bad_inputs.py: broken images, and odd images with the pixels that must be read from them."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from desk import SIDE, Desk, picture
from PIL import Image

from vptsp_core.data import load_benchmark
from vptsp_core.data.cache import open_stores

Made = tuple[str | bytes, np.ndarray, int]  # file name, expected pixels (H, W, 3), largest difference in levels
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
    """Check that both pipelines, the check, the cache and the embedder read all of `ODD`; return the only warning."""
    folder, made = desk.data / "b", {}
    for number, make in enumerate(ODD):
        name, expected, off = make(folder)
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        made[path.rename(path.with_name(f"{number} {path.name}"))] = expected, off
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


def empty(folder: Path) -> str:
    return _put(folder, "odd.jpg", b"")


def web_page(folder: Path) -> str:
    return _put(folder, "odd.jpg", b"<html>no such page</html>")


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


def _saved(folder: Path, name: str, image: Image.Image, expected: np.ndarray, off: int = 0, **options) -> Made:
    image.save(folder / name, **options)
    return name, expected, off


def grey(folder: Path) -> Made:
    """Greyscale: the same value in all three channels."""
    return _saved(folder, "odd.png", Image.fromarray(PHOTO[..., 0]), PHOTO[..., [0, 0, 0]])


def one_bit(folder: Path) -> Made:
    """1 bit: black and white."""
    white = PHOTO[..., 0] > 99
    return _saved(folder, "odd.png", Image.fromarray(white), np.where(white, 255, 0)[..., None].repeat(3, 2))


def _indexed() -> tuple[Image.Image, np.ndarray, np.ndarray]:
    colours, index = picture(1, (1, 4))[0], ((X // 7 + Y // 5) % 4).astype(np.uint8)
    image = Image.fromarray(index, "L").convert("P")
    image = Image.frombytes("P", image.size, index.tobytes())
    image.putpalette(colours.tobytes())
    return image, colours, index


def clear_palette(folder: Path) -> Made:
    """Palette with a transparent entry: over white, as a viewer shows it."""
    image, colours, index = _indexed()
    seen = np.where((index == 2)[..., None], 255, colours[index])
    return _saved(folder, "odd.png", image, seen, transparency=2)


def cmyk(folder: Path) -> Made:
    """CMYK: (255 - C)(255 - K) / 255 and so on; colour profiles are not applied."""
    inks = np.dstack([PHOTO, picture(2)[..., 0]]).astype(float)
    expected = np.round((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(np.uint8)
    image = Image.frombytes("CMYK", PHOTO.shape[1::-1], inks.astype(np.uint8).tobytes())
    return _saved(folder, "odd.tif", image, expected, off=1)


def grey16(folder: Path) -> Made:
    """16 bits, greyscale: the upper 8 bits."""
    values = (X * 1171 % 65536).astype(np.uint16)
    return _saved(folder, "odd.png", Image.fromarray(values), (values // 256).astype(np.uint8)[..., None].repeat(3, 2))


def colour16(folder: Path) -> Made:
    """16 bits per channel, colour: the upper 8 bits."""
    values = PHOTO.astype(">u2") * 256 + picture(3)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (folder / "odd.png").write_bytes(_png(SIDE + 16, SIDE, 16, 2, rows))
    return "odd.png", PHOTO, 0


def _over_white(colour: np.ndarray, opacity: np.ndarray) -> np.ndarray:
    share = opacity[..., None] / 255
    return np.round(colour * share + 255 * (1 - share)).astype(np.uint8)


def alpha(folder: Path) -> Made:
    """With alpha: over white, as a viewer shows it (a published benchmark ignores alpha, as the paper's loaders do)."""
    opacity = picture(4)[..., 0]
    return _saved(folder, "odd.png", Image.fromarray(np.dstack([PHOTO, opacity])), _over_white(PHOTO, opacity), 1)


def grey_alpha(folder: Path) -> Made:
    """Greyscale with alpha: over white, as a viewer shows it."""
    both = picture(5)[..., :2]
    image = Image.frombytes("LA", PHOTO.shape[1::-1], both.tobytes())
    return _saved(folder, "odd.png", image, _over_white(both[..., [0, 0, 0]], both[..., 1]), 1)


def animated(folder: Path) -> Made:
    """Animated: its first frame."""
    image, colours, index = _indexed()
    others = [image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image.rotate(180)]
    return _saved(folder, "odd.gif", image, colours[index], save_all=True, append_images=others, duration=40)


def turned(folder: Path) -> Made:
    """Photograph with EXIF orientation 6: upright, as a viewer shows it (a published benchmark ignores it)."""
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by a quarter, clockwise
    (folder / "odd.jpg").write_bytes(_jpeg(exif=exif.tobytes()))
    return "odd.jpg", np.rot90(np.asarray(Image.open(io.BytesIO(_jpeg()))), -1), 0


def broken_exif(folder: Path) -> Made:
    """EXIF that cannot be read: as it is stored, with Pillow's warning."""
    (folder / "odd.jpg").write_bytes(_jpeg(exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12"))
    return "odd.jpg", np.asarray(Image.open(io.BytesIO(_jpeg()))), 0


def misnamed(folder: Path) -> Made:
    """PNG named .jpg: the content decides, not the suffix."""
    Image.fromarray(PHOTO).save(folder / "odd.jpg", "PNG")
    return "odd.jpg", PHOTO, 0


def odd_name(folder: Path) -> Made:
    """Odd name: accents, a snowman, right-to-left, a line end."""
    name = "zo\u00eb \u2603 \u05d0\u05d1\u202e \n \U0001f426.png"
    return _saved(folder, name, Image.fromarray(PHOTO), PHOTO)


def name_of_bytes(folder: Path) -> Made:
    """A name that is not UTF-8."""
    buffer = io.BytesIO()
    Image.fromarray(PHOTO).save(buffer, "PNG")
    with open(os.path.join(os.fsencode(folder), b"\xff\xfe.png"), "wb") as file:
        file.write(buffer.getvalue())
    return b"\xff\xfe.png", PHOTO, 0


ODD: list[Callable[[Path], Made]] = [
    grey, one_bit, clear_palette, cmyk, grey16, colour16, alpha, grey_alpha, animated, turned, broken_exif, misnamed,
    odd_name, name_of_bytes,
]  # fmt: skip
