"""A user at work, for tests/test_bad_inputs.py: a folder with four classes of two images, and the public commands."""

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

SIDE = 40  # of the demo ViT's input, and of the images' shorter side: nothing is resized
SMALL = ("dataset=folder", "weights=random", "batch=2", "samples_per_class=2", "steps_per_epoch=1")


class Desk:
    """What every case gets.

    Args:
        root: the user's folder, called DIR in messages.
        patch: pytest's MonkeyPatch.
        embedder: a model to embed with.
    """

    def __init__(self, root: Path, patch, embedder: Embedder) -> None:
        self.root, self.patch, self.embedder = root, patch, embedder
        self.data, self.results, self.cache = root / "data", root / "results", root / "cache"
        for c in "0abc":  # in name order: two classes to train on, two to test on
            (self.data / c).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(picture(10 * ord(c) + i)).save(self.data / c / f"{i}.png")

    def command(self, *argv: str) -> tuple[int, str, str]:
        """Exit status, output, and what was said on stderr, with DIR, RUN and STORE for what differs each time."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("default")
            status = main([str(word) for word in argv])
        return status, self.named(out.getvalue()), self.named(without_progress(err.getvalue()))

    def refused(self, *argv: str) -> str:
        """The one line that a command ends with."""
        status, _, err = self.command(*argv)
        assert status == 2 and err.startswith("error: ") and err.count("\n") == 1, (status, err)
        return err.removeprefix("error: ").rstrip("\n")

    def train(self, *changes: str, options: tuple = ()) -> tuple[str, ...]:
        """The command that trains one step an epoch on the folder's images."""
        settings = [*SMALL, "pipeline=classic", *changes]
        cache = ("--cache", self.cache) if "pipeline=cached" in changes else ()
        places = ("--data", self.data, "--results", self.results, *cache)
        return ("train", "--preset", "smoke", "--set", *settings, *places, *options)

    def told(self, call) -> str:
        """The message of the error that a Python call raises."""
        try:
            call()
        except VptspError as error:
            assert "\n" not in str(error)
            return self.named(str(error))
        raise AssertionError("nothing was refused")

    def run_folder(self) -> Path:
        (folder,) = (self.results / "runs").iterdir()
        return folder

    def named(self, text: str) -> str:
        text = text.replace(str(self.root), "DIR")
        text = re.sub(r"folder-[a-z]+-[0-9a-f]{12}-[0-9a-f]{8}", "RUN", text)
        return re.sub(r"folder-(train|test)-\d+-bilinear-[0-9a-f]{12}", "STORE", text)

    def untouched(self) -> dict[Path, bytes]:
        """Everything but results and caches."""
        mine = (p for p in self.root.rglob("*") if p.is_file())
        return {p: p.read_bytes() for p in mine if not p.is_relative_to(self.results) and ".vptsp" not in str(p)
                and not p.is_relative_to(self.cache)}  # fmt: skip


def without_progress(log: str) -> str:
    """What a command says beside how far it is."""
    progress = r"^(\S+: training .* steps|\S+: epoch \d+/.*|cache: .* to write in .*)\n"
    return re.sub(progress, "", log, flags=re.MULTILINE)


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE + 16)) -> np.ndarray:
    """(H, W, 3) uint8, no two pixels of a kind, not symmetric."""
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
