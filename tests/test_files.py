"""Files are whole or absent, and a checkpoint is not copied on its way to the disk."""

import resource
import tracemalloc

import pytest
import torch

from vptsp_core.errors import VptspError
from vptsp_core.files import write_bytes, write_torch


def test_a_checkpoint_goes_straight_to_the_file(tmp_path):
    values = {"table": torch.arange(4_000_000.0), "history": [{"epoch": 1}]}
    tracemalloc.start()  # sees Python's buffers, not tensors
    write_torch(tmp_path / "new" / "checkpoint.pt", values)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000, "less than a quarter of what was written"
    found = torch.load(tmp_path / "new" / "checkpoint.pt", weights_only=True)
    assert torch.equal(found["table"], values["table"]) and found["history"] == values["history"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize(
    "write",
    [lambda path: write_torch(path, {"a": torch.zeros(2_000_000)}), lambda path: write_bytes(path, b"0" * 8**7)],
)
def test_a_full_disk_leaves_what_was_there(tmp_path, write):
    """The limit on a file's size stands for a full disk: the same kind of error in the middle of writing."""
    (tmp_path / "file").write_bytes(b"as it was")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(VptspError, match=r"^cannot write .*File too large.*choose another folder$"):
            write(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / "file").read_bytes() == b"as it was"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
