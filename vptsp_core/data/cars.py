"""Cars196 as it was distributed: one folder of numbered images, and a MATLAB file that says which class each is."""

from __future__ import annotations

from pathlib import Path

from vptsp_core.data.unpack import Renaming
from vptsp_core.errors import DataError

ANNOTATIONS = "cars_annos.mat"


def renaming(downloads: Path) -> Renaming:
    """Where each image of ``car_ims.tgz`` goes: ``images/<NNN.Class name>/<image>``, NNN from 001 on.

    Numbers in front make the order of the names the order of the classes, on which the split rests; ``/`` in a
    class name (Ram C/V) becomes ``-``.

    Raises:
        DataError: the annotations are missing or unreadable.
    """
    import scipy.io

    path = downloads / ANNOTATIONS
    try:
        content = scipy.io.loadmat(path, squeeze_me=True)
        names = [str(name).strip().replace("/", "-") for name in content["class_names"]]
        classes = {
            str(image): int(number)
            for image, number in zip(content["annotations"]["relative_im_path"], content["annotations"]["class"])
        }
        places = {
            image: f"images/{number:03}.{names[number - 1]}/{image.rpartition('/')[2]}"
            for image, number in classes.items()
            if number > 0
        }
    except Exception as error:  # scipy raises what it meets: ValueError, TypeError, KeyError, NotImplementedError
        raise DataError(f"cars196: {path} is no {ANNOTATIONS} ({error}); get it again") from error
    return places.get
