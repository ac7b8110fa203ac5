"""Set up all tests: one thread on the CPU, so that small tensors are fast and no result depends on the machine."""

import os
import sys
from pathlib import Path

import pytest
import torch

import vptsp_core  # noqa: F401  (before any test imports timm: it lets timm import torchvision)

# isort: split
from vptsp_core.data.glyphs import load_glyphs

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # torch reads it at the first use of CUDA; the tests expect a CPU's numbers
# The last two are read when timm is imported, which is later.
for name in ("VPTSP_DATA", "VPTSP_CACHE", "VPTSP_RESULTS", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
    os.environ.pop(name, None)
torch.set_num_threads(1)
load_glyphs.__defaults__ = (5, 40, 0)  # 5 images per class, not 20: a small run mostly draws and embeds them


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Path:
    """Letters as image files, one folder per class. Tests only read them."""
    import determinism

    return determinism.write_images(tmp_path_factory.mktemp("letters"))


# The longest files, up to two minutes each. They run first, so that no process ends with one of them alone.
LONG = (
    "test_notebooks", "test_workers", "test_run_all", "test_train_step", "test_run", "test_distributed", "test_search",
    "test_determinism", "test_kill_resume", "test_notebooks_runner",
)  # fmt: skip


def pytest_collection_modifyitems(items: list) -> None:
    for item in items:
        for system, here in (("linux", sys.platform == "linux"), ("posix", os.name == "posix")):
            if not here and (mark := item.get_closest_marker(system)):
                item.add_marker(pytest.mark.skip(reason=mark.args[0]))
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
