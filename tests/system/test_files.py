"""Files are whole or absent."""

import pytest

from vptsp_core.errors import VptspError
from vptsp_core.system.files import remove_temporaries, replacing, temporary_name, write_bytes


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the file size stands in for a full disk: it raises the same kind of error while writing."""
    resource = pytest.importorskip("resource", reason="Windows limits no file's size")
    (tmp_path / "file").write_bytes(b"as it was")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(VptspError, match=r"^cannot write .*File too large.*choose another folder$"):
            write_bytes(tmp_path / "file", b"0" * 8**7)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_only_the_temporary_files_of_killed_writers_are_deleted(tmp_path):
    for name in (temporary_name(tmp_path / "file").name, "file", "file.tmp", ".file"):
        (tmp_path / name).touch()
    remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "file.tmp", ".file"}


def test_two_writers_of_one_file_never_share_a_temporary_name(tmp_path):
    """Two containers can have the same process id, and the threads of a process share one."""
    path = tmp_path / "file"
    with replacing(path) as first, replacing(path) as second:
        assert first.name != second.name
        first.write(b"first")
        second.write(b"second")
    assert path.read_bytes() == b"first" and [each.name for each in tmp_path.iterdir()] == ["file"]
