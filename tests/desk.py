"""A user's folder with four classes of two images, and the public commands, for tests/test_bad_inputs.py."""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from vptsp_core.__main__ import main
from vptsp_core.errors import VptspError
from vptsp_core.runs.embedder import Embedder

SIDE = 40  # pixels of the demo ViT's input and of the images' shorter side, so that nothing is resized
SMALL = ("dataset=folder", "weights=random", "batch=2", "samples_per_class=2", "steps_per_epoch=1")


class Desk:
    """The user's folder and the calls that a test makes in it.

    Args:
        root: the user's folder, called DIR in the returned messages.
        patch: pytest's MonkeyPatch.
        embedder: a model to embed images with.
    """

    def __init__(self, root: Path, patch, embedder: Embedder) -> None:
        self.root, self.patch, self.embedder = root, patch, embedder
        self.data, self.results, self.cache = root / "data", root / "results", root / "cache"
        for c in "0abc":  # the first two in name order are trained on, the others tested on
            (self.data / c).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(picture(10 * ord(c) + i)).save(self.data / c / f"{i}.png")

    def command(self, *argv: str) -> tuple[int, str, str]:
        """Run a command. Return its exit status, stdout and stderr, with DIR, RUN and STORE for names that vary."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            status = main([str(word) for word in argv])
        return status, self.named(out.getvalue()), self.named(without_progress(err.getvalue()))

    def refused(self, *argv: str) -> str:
        """Run a command that must fail. Return its one line of error."""
        status, _, err = self.command(*argv)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (status, err)
        return err.removeprefix("error: ").rstrip("\n")

    def train(self, *changes: str, options: tuple = ()) -> tuple[str, ...]:
        """Return the command that trains one step per epoch on the folder's images."""
        settings = [*SMALL, "pipeline=classic", *changes]
        cache = ("--cache", self.cache) if "pipeline=cached" in changes else ()
        places = ("--data", self.data, "--results", self.results, *cache)
        return ("train", "--preset", "smoke", "--set", *settings, *places, *options)

    def told(self, call) -> str:
        """Return the message of the VptspError that a Python call raises."""
        try:
            call()
        except VptspError as error:
            assert "\n" not in str(error)
            return self.named(str(error))
        raise AssertionError("the call raised no error")

    def run_folder(self) -> Path:
        (folder,) = (self.results / "runs").iterdir()
        return folder

    def named(self, text: str) -> str:
        text = text.replace(str(self.root), "DIR")
        text = re.sub(r"folder-[a-z]+-[0-9a-f]{12}-[0-9a-f]{8}", "RUN", text)
        return re.sub(r"folder-(train|test)-\d+-bilinear-[0-9a-f]{12}", "STORE", text)

    def untouched(self) -> dict[Path, bytes]:
        """Return the contents of all files except results and caches."""
        made = (self.results, self.cache, self.data / ".vptsp-cache")
        files = (path for path in self.root.rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if not any(map(path.is_relative_to, made))}


def without_progress(log: str) -> str:
    """Return a command's messages without its progress."""
    progress = r"^(\S+: training .* steps|\S+: epoch \d+/.*|cache: .* to write in .*)\n"
    return re.sub(progress, "", log, flags=re.MULTILINE)


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE + 16)) -> np.ndarray:
    """Return random pixels, (H, W, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
