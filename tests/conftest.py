"""Shared by all tests: one thread, so that small tensors are quick and results do not depend on the machine."""

import torch

import vptsp_core  # noqa: F401  (before any test imports timm: it lets timm import torchvision)

torch.set_num_threads(1)

# The longest, up to two minutes each: first, so that neither of two processes is left with one of them in the end.
LONG = (
    "test_notebooks", "test_run_all", "test_train_step", "test_workers",
    "test_kill_resume", "test_tune", "test_beyond", "test_distributed", "test_notebooks_runner", "test_soak",
    "test_gallery",
)  # fmt: skip


def pytest_collection_modifyitems(items: list) -> None:
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
