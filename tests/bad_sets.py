"""Data sets for tests/bad_inputs.py."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import numpy as np
from desk import Desk

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


def no_list(desk: Desk) -> str:
    (desk.root / CATALOG["sop"].folder).mkdir()
    return _check(desk, "sop")


def wrong_counts(desk: Desk) -> str:
    for source, label in (("a", "001.a"), ("b", "101.b")):
        shutil.copytree(desk.data / source, desk.root / "cub200" / "images" / label)
    return _check(desk, "cub200")


def own_empty_class(desk: Desk) -> str:
    (desk.data / "empty").mkdir()
    return _check(desk, "folder", desk.data)


def split(*lines: str) -> Callable[[Desk], str]:
    def do(desk: Desk) -> str:
        text = "\n".join(["path,class,split", *lines]) + "\n"
        (desk.data / "split.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
        return _check(desk, "folder", desk.data)

    return do


def labels(desk: Desk) -> str:
    paths = sorted((desk.data / "a").iterdir())
    return desk.told(lambda: FileSet("mine", paths, np.array([0, 2]), ["a", "b"]))


def large_batch(desk: Desk) -> str:
    return desk.refused(*desk.train("batch=64", "samples_per_class=1"))
