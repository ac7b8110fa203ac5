"""One module handles the differences between systems."""

import os
import re
from pathlib import Path

import pytest

from vptsp_core.data.own import _inside
from vptsp_core.errors import VptspError
from vptsp_core.system import portable
from vptsp_core.system.files import write_bytes
from vptsp_core.system.places import PACKAGE

DIFFERS = re.compile(
    r"\bfcntl\b|\bresource\b\.|import resource\b|/proc|\bsched_|\bposix_|os\.fork|['\"]fork|pwrite|fdatasync|SIGKILL|"
    r"killpg|sys\.platform|os\.name\b|platform\.system"
)
ELSEWHERE = {"vptsp_core/system/portable.py"}


def test_no_other_module_asks_which_system_this_is():
    found = {
        path.relative_to(PACKAGE.parent).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if (lines := [line for line in path.read_text("utf-8").splitlines() if DIFFERS.search(line)])
    }
    assert set(found) == ELSEWHERE, found


def test_a_file_that_is_open_elsewhere_is_replaced_once_it_is_closed(tmp_path, monkeypatch):
    """Windows refuses to replace an open file."""
    refused, replace = [], os.replace

    def open_elsewhere(source, target):
        if len(refused) < 2:
            refused.append(source)
            error = PermissionError(13, "The process cannot access the file")
            error.winerror = 32
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", open_elsewhere)
    write_bytes(tmp_path / "file", b"1")
    assert (tmp_path / "file").read_bytes() == b"1" and len(refused) == 2
    refused.clear()
    monkeypatch.setattr(portable, "PATIENCE", -1)
    with pytest.raises(VptspError, match="^cannot write .*another program has it open: close it there") as caught:
        write_bytes(tmp_path / "file", b"2")
    assert "\n" not in str(caught.value) and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_cores_and_memory_are_plausible():
    assert 1 <= portable.physical_cores() <= portable.cores() <= os.cpu_count()
    assert 2**20 < portable.available_memory() < 2**50


def test_a_containers_limit_of_memory_applies(tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "CGROUP", tmp_path)
    free = portable.available_memory()
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert portable.available_memory() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert portable.available_memory() > free / 2


def test_a_containers_limit_of_cores_applies(monkeypatch):
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "150000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    assert portable.cores() == 2
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "max 100000")
    assert portable.cores() == 8


def test_a_table_of_images_may_be_from_windows(tmp_path, monkeypatch):
    """Backslashes separate folders, and absolute paths become relative."""
    (tmp_path / "ein Vogel ü").mkdir()
    (tmp_path / "ein Vogel ü" / "0.png").touch()
    monkeypatch.setattr(os, "sep", "\\")
    for path in ("ein Vogel ü\\0.png", ".\\ein Vogel ü\\0.png", f"{tmp_path}\\ein Vogel ü\\0.png"):
        assert _inside(tmp_path, path) == "ein Vogel ü/0.png"
