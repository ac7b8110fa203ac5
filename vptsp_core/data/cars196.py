"""Cars196 on disk: the layouts that people have, and MATLAB's files that hold the class of each image."""

from __future__ import annotations

from pathlib import Path

from vptsp_core.data.layouts import Listing, class_split, listed
from vptsp_core.errors import DataError

TRAIN_CLASSES = 98
# Each folder of images, the file with the class of each image, and the key in it of an image's name.
WHOLE = {"car_ims": ("cars_annos.mat", "relative_im_path")}
# The benchmark splits the images of both halves anew, by class.
HALVES = {
    "cars_train": ("cars_train_annos.mat", "fname"),
    "cars_test": ("cars_test_annos_withlabels.mat", "fname"),
}


def cars(folder: Path, name: str) -> Listing:
    """Cars196 in one of the layouts that people have: the first 98 of 196 classes are for training.

    ``images/<class>/``; or ``car_ims/`` with ``cars_annos.mat``; or ``cars_train/`` and ``cars_test/`` with their
    annotations, those of the test images "with labels". The .mat files may be in a folder such as ``devkit/``.

    Raises:
        DataError: annotations are missing or unreadable.
    """
    layouts = (WHOLE, HALVES)
    parts = next((each for each in layouts if all((folder / part).is_dir() for part in each)), None)
    if (folder / "images").is_dir() or parts is None:
        return class_split(folder, name, TRAIN_CLASSES)
    numbers: dict[str, int] = {}
    names: list[str] = []
    for part, (file, key) in parts.items():
        path = next(folder.rglob(file), None)
        if path is None:
            raise DataError(f"{name}: {folder / part} needs {file}, the class of each image; put it into {folder}")
        found, names = _annotations(path, key)
        numbers |= {f"{part}/{Path(image).name}": number for image, number in found.items()}
    rows = []
    for image, number in sorted(numbers.items(), key=lambda item: (item[1], item[0])):
        label = ".".join([f"{number:03}", *names[number - 1 : number]])
        rows.append((image, label, "train" if number <= TRAIN_CLASSES else "test"))
    return Listing(folder, folder, listed(rows))


def _annotations(path: Path, key: str) -> tuple[dict[str, int], list[str]]:
    """The class of each image, from 1 on, where images are under ``key``; and the names of the classes, if any."""
    import scipy.io

    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
        table = content["annotations"]
        classes = {str(image): int(number) for image, number in zip(table[key], table["class"], strict=True)}
    except Exception as error:  # scipy raises whatever it meets in a damaged file
        raise DataError(f"cars196: {path}: unreadable ({error!r}); get {path.name} again") from error
    return classes, [str(each).strip().replace("/", "-") for each in content.get("class_names", ())]
