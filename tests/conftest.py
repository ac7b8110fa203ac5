"""Shared by all tests: one thread, so that small tensors are quick and results do not depend on the machine."""

from pathlib import Path

import pytest
import torch

import vptsp_core  # noqa: F401  (before any test imports timm: it lets timm import torchvision)

# isort: split
from vptsp_core.data.glyphs import load_glyphs

torch.set_num_threads(1)
load_glyphs.__defaults__ = (5, 40, 0)  # images a class in place of 20: most of a small run is to draw and embed them


@pytest.fixture(scope="session")
def letters(tmp_path_factory) -> Path:
    """Letters as image files, a folder a class, to be read only."""
    import determinism

    return determinism.write_images(tmp_path_factory.mktemp("letters"))


# The longest, up to two minutes each: first, so that neither of two processes is left with one of them in the end.
LONG = (
    "test_notebooks", "test_workers", "test_run_all", "test_train_step", "test_run", "test_distributed", "test_tune",
    "test_determinism", "test_kill_resume", "test_notebooks_runner",
)  # fmt: skip


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
