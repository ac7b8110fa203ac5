"""The layouts of Cars196 that people have, and the MATLAB files that hold the class of each image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vptsp_core.data.layouts import Listing, Rows, split_by_class
from vptsp_core.errors import DataError

TRAIN_CLASSES = 98
# Per folder of images: the key of the file names in the annotations, and the possible names of the annotation file.
WHOLE = {"car_ims": ("relative_im_path", "cars_annos.mat")}
# The official halves are not the benchmark's: it puts their images together and splits them by class.
HALVES = {
    "cars_train": ("fname", "cars_train_annos.mat"),
    "cars_test": ("fname", "cars_test_annos_withlabels.mat", "cars_test_annos_withlabels_eval.mat",
                  "cars_test_annos.mat"),
}  # fmt: skip


def list_cars(folder: Path, name: str) -> Listing:
    """List Cars196 in one of the layouts that people have: the first 98 of 196 classes are for training.

    The layouts are ``images/<class>/``; ``car_ims/`` with ``cars_annos.mat``; and ``cars_train/``, ``cars_test/`` with
    their annotation files (for the test images, "with labels"). Unpacking may have added a folder of the same name
    around each folder, and a folder like ``devkit/`` around the .mat files.
    Raises DataError: annotations are missing or unreadable.
    """
    layouts = (WHOLE, HALVES)
    parts = next((each for each in layouts if all((folder / part).is_dir() for part in each)), None)
    if (folder / "images").is_dir() or parts is None:
        return split_by_class(folder, name, TRAIN_CLASSES)
    places = {part: f"{part}/{part}" if (folder / part / part).is_dir() else part for part in parts}
    numbers: dict[str, int] = {}
    names: list[str] = []
    for part, (key, *files) in parts.items():
        path = _find_annotations(folder, name, part, files)
        annotated, names = _read_annotations(path, key)
        numbers |= {f"{places[part]}/{Path(image).name}": number for image, number in annotated.items()}
    labels = {number: ".".join([f"{number:03}", *names[number - 1 : number]]) for number in numbers.values()}
    rows = sorted((number, image) for image, number in numbers.items())
    train: Rows = [(image, labels[number]) for number, image in rows if number <= TRAIN_CLASSES]
    test: Rows = [(image, labels[number]) for number, image in rows if number > TRAIN_CLASSES]
    return Listing(path, folder, {"train": train, "test": test})


def _find_annotations(folder: Path, name: str, images: str, files: list[str]) -> Path:
    for file in files:
        for pattern in (file, f"*/{file}", f"*/*/{file}"):
            if path := next(folder.glob(pattern), None):
                return path
    raise DataError(f"{name}: {folder / images} needs {files[0]}, which holds the class of each image; put it into "
                    f"{folder}")  # fmt: skip


def _read_annotations(path: Path, key: str) -> tuple[dict[str, int], list[str]]:
    """Return the class of each image, from 1 on, and the names of the classes if the file holds them.
    ``key`` is the field of the images' names.
    """
    import scipy.io

    try:
        content: dict[str, Any] = scipy.io.loadmat(path, squeeze_me=True)
        table = content["annotations"]
        if "class" not in table.dtype.names:
            raise DataError(f"cars196: {path} has no labels; get cars_test_annos_withlabels.mat in its place")
        classes = {str(image): int(number) for image, number in zip(table[key], table["class"], strict=True)}
        return classes, [str(each).strip().replace("/", "-") for each in content.get("class_names", ())]
    except DataError:
        raise
    except Exception as error:  # scipy raises errors of many types for a damaged file
        raise DataError(f"cars196: {path} is unreadable ({error!r}); get it again") from error
