"""Cars196 as it was distributed: folders of numbered images, and MATLAB files that say which class each is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vptsp_core.data.class_folders import class_folders
from vptsp_core.data.layouts import Listing, Rows, class_split
from vptsp_core.data.unpack import Renaming
from vptsp_core.errors import DataError

ANNOTATIONS = "cars_annos.mat"
TRAIN_CLASSES = 98
# Folder of images and the files that may say of which class each is. The benchmark splits them anew, by class.
HALVES = {
    "cars_train": ("cars_train_annos.mat",),
    "cars_test": ("cars_test_annos_withlabels.mat", "cars_test_annos_withlabels_eval.mat", "cars_test_annos.mat"),
}


def renaming(downloads: Path) -> Renaming:
    """Where each image of ``car_ims.tgz`` goes: ``images/<NNN.Class name>/<image>``, NNN from 001 on.

    Numbers in front make the order of the names the order of the classes, on which the split rests; ``/`` in a
    class name (Ram C/V) becomes ``-``.

    Raises:
        DataError: the annotations are missing or unreadable.
    """
    path = downloads / ANNOTATIONS
    names, classes = _class_names(path), _classes(path, "relative_im_path")
    try:
        places = {
            image: f"images/{number:03}.{names[number - 1]}/{image.rpartition('/')[2]}"
            for image, number in classes.items()
            if number > 0
        }
    except IndexError as error:
        raise _unreadable(path, error) from error
    return places.get


def cars(folder: Path, name: str) -> Listing:
    """Cars196 in one of the layouts that people have: the first 98 of 196 classes are for training.

    ``images/<class>/``; or ``car_ims/`` with ``cars_annos.mat``; or ``cars_train/`` and ``cars_test/``, with their
    annotations (those of the test images "with labels") or with a folder a class. Archives may have put each into a
    folder of its own name, and the .mat files into another one, such as ``devkit/``.

    Raises:
        DataError: annotations are missing or unreadable.
    """
    if (folder / "images").is_dir():
        return class_split(folder, name, TRAIN_CLASSES)
    if (folder / "car_ims").is_dir():
        path = _annotations(folder, name, "car_ims", (ANNOTATIONS,))
        place = _images(folder, "car_ims")
        return _listing(folder, path, {f"{place}/{Path(image).name}": number
                                       for image, number in _classes(path, "relative_im_path").items()})  # fmt: skip
    if not all((folder / half).is_dir() for half in HALVES):
        return class_split(folder, name, TRAIN_CLASSES)  # says that there is nothing
    if any(each.is_dir() for half in HALVES for each in (folder / _images(folder, half)).iterdir()):
        return _merged(folder, name)
    numbers: dict[str, int] = {}
    for half, files in HALVES.items():
        path, place = _annotations(folder, name, half, files), _images(folder, half)
        numbers |= {f"{place}/{image}": number for image, number in _classes(path, "fname").items()}
    return _listing(folder, path, numbers)


def _listing(folder: Path, source: Path, numbers: dict[str, int]) -> Listing:
    """From the class of each image, a number from 1 on."""
    rows: Rows = [(image, f"{number:03}") for image, number in sorted(numbers.items(), key=lambda item: item[::-1])]
    train = [row for row in rows if int(row[1]) <= TRAIN_CLASSES]
    return Listing(source, folder, {"train": train, "test": [row for row in rows if int(row[1]) > TRAIN_CLASSES]})


def _merged(folder: Path, name: str) -> Listing:
    """``cars_train/<class>/`` and ``cars_test/<class>/``: the order of the names is the order of the classes."""
    classes: dict[str, list[str]] = {}
    for half in HALVES:
        place = _images(folder, half)
        for label, files in class_folders(folder / place, name)[0].items():
            classes.setdefault(label, []).extend(f"{place}/{label}/{file}" for file in files)
    ordered = sorted(classes)
    rows: list[Rows] = [[(image, label) for label in some for image in classes[label]]
                        for some in (ordered[:TRAIN_CLASSES], ordered[TRAIN_CLASSES:])]  # fmt: skip
    return Listing(folder, folder, {"train": rows[0], "test": rows[1]}, uncertain=True, classes_of_one="refused")


def _images(folder: Path, name: str) -> str:
    """The folder of images, which may be in a folder of its own name."""
    return f"{name}/{name}" if (folder / name / name).is_dir() else name


def _annotations(folder: Path, name: str, images: str, files: tuple[str, ...]) -> Path:
    for file in files:
        for pattern in (file, f"*/{file}", f"*/*/{file}"):
            if found := next(folder.glob(pattern), None):
                return found
    raise DataError(f"{name}: {folder / images} needs {files[0]}, which says of which class each image is; put it "
                    f"into {folder}")  # fmt: skip


def _content(path: Path) -> dict[str, Any]:
    import scipy.io

    return dict(scipy.io.loadmat(path, squeeze_me=True))


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"cars196: {path} is no {path.name} ({error!r}); get it again")


def _classes(path: Path, key: str) -> dict[str, int]:
    """The class of each image, from 1 on, of a file of annotations whose images are under ``key``."""
    try:
        table = _content(path)["annotations"]
        if "class" not in table.dtype.names:
            raise DataError(f"cars196: {path} has no labels; get cars_test_annos_withlabels.mat in its place")
        return {str(image): int(number) for image, number in zip(table[key], table["class"], strict=True)}
    except DataError:
        raise
    except Exception as error:  # scipy raises what it meets: ValueError, TypeError, KeyError, NotImplementedError
        raise _unreadable(path, error) from error


def _class_names(path: Path) -> list[str]:
    try:
        return [str(name).strip().replace("/", "-") for name in _content(path)["class_names"]]
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
