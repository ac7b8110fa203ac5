"""Saved embedders and indexes for tests/bad_inputs.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from desk import Desk
from reseal import rewrite_header

from vptsp_core.embedder_file import HEADER

Do = Callable[[Desk], str]


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def saved(change: Callable[[Path], object], name: str = "bird.safetensors") -> Do:
    """Evaluate an embedder's file that was changed."""

    def do(desk: Desk) -> str:
        path = desk.embedder.save(desk.root / "bird.safetensors")
        change(path)
        path.rename(desk.root / name)
        return desk.refused("evaluate", desk.root / name, "--data", desk.data)

    return do


def header_bit(path: Path) -> None:
    flip(path, path.read_bytes().index(b"resize") + len(b'resize\\": '))


def old_format(path: Path) -> None:
    rewrite_header(path, HEADER, lambda header: header.update(format=1))


def index(at: int) -> Do:
    """Search an index of which one bit was changed."""

    def do(desk: Desk) -> str:
        model = desk.embedder.save(desk.root / "bird.safetensors")
        options = ("--model", model, "--to", desk.root / "index")
        assert desk.command("index", desk.data, *options)[0] == 0
        flip(desk.root / "index" / "index.safetensors", at)
        return desk.refused("search", desk.data / "a" / "0.png", "--index", desk.root / "index", "--to",
                            desk.root / "found")  # fmt: skip

    return do
