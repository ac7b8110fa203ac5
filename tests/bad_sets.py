"""Data sets for tests/bad_inputs.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
from desk import Desk, picture
from PIL import Image

from vptsp_core.data import load_benchmark
from vptsp_core.data.catalog import CATALOG
from vptsp_core.data.folder import FileSet


def _check(desk: Desk, name: str, data="") -> str:
    status, _, err = desk.command("data", "check", name, "--data", data or desk.root)
    if status == 0:
        (line,) = err.splitlines()
        return line
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


def no_folder(desk: Desk) -> str:
    desk.patch.delenv("VPTSP_DATA", raising=False)
    return desk.refused("data", "check", "cub200")


def absent_folder(desk: Desk) -> str:
    return _check(desk, "cub200")


def unknown_name(desk: Desk) -> str:
    return desk.refused(*desk.train("dataset=cub"))


def no_list(name: str) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        (desk.root / CATALOG[name].folder).mkdir()
        return _check(desk, name)

    return do


def wrong_counts(desk: Desk) -> str:
    for source, label in (("a", "001.a"), ("b", "101.b")):
        shutil.copytree(desk.data / source, desk.root / "cub200" / "images" / label)
    return _check(desk, "cub200")


def empty_class(desk: Desk) -> str:
    (desk.root / "cub200" / "images" / "002.empty").mkdir(parents=True)
    return wrong_counts(desk)


def own_empty_class(desk: Desk) -> str:
    (desk.data / "empty").mkdir()
    return _check(desk, "folder", desk.data)


def class_of_one(desk: Desk) -> str:
    (desk.data / "one").mkdir()
    shutil.copy(desk.data / "a" / "0.png", desk.data / "one")
    return _check(desk, "folder", desk.data)


def split(*lines: str, header: str = "path,class,split") -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        text = "\n".join([header, *lines]) + "\n"
        (desk.data / "split.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
        return _check(desk, "folder", desk.data)

    return do


def own(name: str = "data", *lines: str, write: Callable[[Desk], object] = lambda desk: None) -> Callable[[Desk], str]:
    """Train on DIR/name, with these lines as its ``split.csv``."""

    def do(desk: Desk) -> str:
        if lines:
            (desk.data / "split.csv").write_text("\n".join(lines), encoding="utf-8")
        write(desk)
        said = desk.refused("train", "--data-folder", desk.root / name, "--results", desk.results)
        assert not desk.results.exists()
        return said

    return do


def a_file(desk: Desk) -> None:
    (desk.root / "file").write_text("")


def excel(desk: Desk) -> str:
    rows = [f"{c}/{i}.png;{c};{'train' if c == 'a' else 'test'}" for c in "abc" for i in range(2)]
    (desk.data / "split.csv").write_bytes("\ufeff".encode() + "\r\n".join(["path;class;split", *rows]).encode())
    assert desk.command("data", "check", "folder", "--data", desk.data)[0] == 0
    benchmark = load_benchmark("folder", desk.data)
    assert (benchmark.train.class_names, benchmark.test.class_names) == (("a",), ("b", "c"))
    return ""


def excel_by_hand(desk: Desk) -> str:
    rows = [f"{c}/{i}.png;{c};{'Train' if c == 'a' else 'TEST'}" for c in "abc" for i in range(2)]
    (desk.data / "split.csv").write_text("\r\n".join(["sep=;", "Path;Class;Split", *rows, ";;", ";;"]))
    assert desk.command("data", "check", "folder", "--data", desk.data)[0] == 0
    benchmark = load_benchmark("folder", desk.data)
    assert (benchmark.train.class_names, benchmark.test.class_names) == (("a",), ("b", "c"))
    return ""


def other_case(desk: Desk) -> str:
    (desk.data / "A").mkdir()
    for i in range(2):
        Image.fromarray(picture(i)).save(desk.data / "A" / f"{i}.png")
    return _check(desk, "folder", desk.data)


def nested(desk: Desk) -> str:
    shutil.copytree(desk.data / "b", desk.data / "a" / "more")
    return _check(desk, "folder", desk.data)


def deeper(desk: Desk) -> None:
    for split in ("train", "val"):
        shutil.copytree(desk.data / "a", desk.root / "sets" / split / "a")


def labels(desk: Desk) -> str:
    paths = sorted((desk.data / "a").iterdir())
    return desk.told(lambda: FileSet("mine", paths, np.array([0, 2]), ["a", "b"]))


def large_batch(desk: Desk) -> str:
    return desk.refused(*desk.train("batch=64", "samples_per_class=1"))
