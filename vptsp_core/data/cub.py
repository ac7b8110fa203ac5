"""CUB-200-2011 (Wah et al., 2011), split by class as in all of deep metric learning: first 100 classes, last 100."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vptsp_core.data.base import Benchmark
from vptsp_core.data.folder import FileSet, class_folders, refuse_singletons
from vptsp_core.errors import DataError

CLASSES, TRAIN_CLASSES = 200, 100
TRAIN_IMAGES, TEST_IMAGES = 5_864, 5_924  # shared by every paper that uses the split


def load_cub200(root: Path) -> Benchmark:
    """CUB-200 from ``root/cub200/images/<class>/<image>.jpg``.

    Raises:
        DataError: no such folder, or counts other than the published ones (all differences in one line).
    """
    folder = root / "cub200" / "images"
    classes = class_folders(folder, "cub200")
    names = list(classes)
    counts = {
        "classes": (len(names), CLASSES),
        "training images": (sum(len(classes[name]) for name in names[:TRAIN_CLASSES]), TRAIN_IMAGES),
        "test images": (sum(len(classes[name]) for name in names[TRAIN_CLASSES:]), TEST_IMAGES),
    }
    wrong = [
        f"{found} {what} instead of {published}" for what, (found, published) in counts.items() if found != published
    ]
    if wrong:
        raise DataError(f"cub200: {folder} holds {', '.join(wrong)}; unpack CUB_200_2011 again, whole")
    refuse_singletons(folder, classes)
    return Benchmark("cub200", _subset("train", names[:TRAIN_CLASSES], classes),
                     _subset("test", names[TRAIN_CLASSES:], classes))  # fmt: skip


def _subset(split: str, names: list[str], classes: dict[str, list[Path]]) -> FileSet:
    paths = [path for name in names for path in classes[name]]
    labels = np.repeat(np.arange(len(names)), [len(classes[name]) for name in names])
    return FileSet(f"cub200 {split}", paths, labels, names)
