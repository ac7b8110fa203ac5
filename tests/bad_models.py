"""Saved embedders and indexes for tests/bad_inputs.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from desk import Desk
from reseal import rewrite_header

from vptsp_core.runs.embedder_file import HEADER

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


def old_format(path: Path) -> None:
    rewrite_header(path, HEADER, lambda header: header.update(format=1))


def _index(desk: Desk) -> Path:
    model = desk.embedder.save(desk.root / "bird.safetensors")
    assert desk.command("index", desk.data, "--model", model, "--to", desk.results / "index")[0] == 0
    return model


def damaged_index(desk: Desk) -> str:
    _index(desk)
    flip(desk.results / "index" / "index.safetensors", -1)
    return desk.refused("search", desk.data / "a", "--index", desk.results / "index")


def moved_model(desk: Desk) -> str:
    """To search, and to bring the index up to date."""
    _index(desk).rename(desk.root / "moved.safetensors")
    place = desk.results / "index"
    said = {desk.refused("search", desk.data / "a", "--index", place), desk.refused("index", desk.data, "--to", place)}
    (message,) = said
    again = ("--model", desk.root / "moved.safetensors", "--to", desk.results / "found")
    assert desk.command("search", desk.data / "a", "--index", place, *again)[0] == 0
    return message


def absent_query(desk: Desk) -> str:
    _index(desk)
    return desk.refused("search", desk.root / "none.jpg", "--index", desk.results / "index")


def unreadable_query(desk: Desk) -> str:
    """Of a folder it is left out, with a warning; the other images are answered."""
    _index(desk)
    (desk.root / "asked").mkdir()
    (desk.root / "asked" / "bad.jpg").write_bytes(b"")
    shutil.copy(desk.data / "a" / "0.png", desk.root / "asked")
    place, to = desk.results / "index", desk.results / "found"
    status, out, err = desk.command("search", desk.root / "asked", "-k", "1", "--index", place, "--to", to)
    assert status == 0 and out.startswith("DIR/asked/0.png\n    1  1.0000  a/0.png\n") and "bad.jpg" not in out
    return err.rstrip("\n")


def index_among_images(desk: Desk) -> str:
    model = desk.embedder.save(desk.root / "bird.safetensors")
    said = desk.refused("index", desk.data, "--model", model, "--to", desk.data)
    assert sorted(path.name for path in desk.data.iterdir()) == ["0", "a", "b", "c"]
    return said
