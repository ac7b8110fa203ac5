"""Weights, checkpoints, configurations, results, devices and notebooks for tests/bad_inputs.py."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from desk import Desk
from reseal import reseal_run
from safetensors.torch import save_file

from vptsp_core.method.backbone import DEMO_VIT, load_backbone
from vptsp_core.runs.checkpoints import write_checkpoint
from vptsp_core.runs.folder import read_run

ROOT = Path(__file__).resolve().parents[1]
Do = Callable[[Desk], str]


class Bomb:
    """Code that touches a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return open, (str(self.mark), "w")


# ---- weights -------------------------------------------------------------------------------------


def weights(name: str, make: Callable[[Path, dict], None] | None) -> Do:
    """Train with weights in DIR/name; nothing of the run stays, and nothing was executed."""

    def do(desk: Desk) -> str:
        if make is not None:
            make(desk.root / name, dict(load_backbone("demo_vit").state_dict()))
        said = desk.refused(*desk.train(f"weights={desk.root / name}"))
        assert not desk.results.exists() and not (desk.root / "ran").exists()
        return said

    return do


def no_name_of_weights(desk: Desk) -> str:
    return desk.refused(*desk.train("weights="))


def _save(path: Path, state: dict) -> None:
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def junk(path: Path, state: dict) -> None:
    path.write_bytes(b"no weights")


def cut(path: Path, state: dict) -> None:
    _save(path, state)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bomb(path: Path, state: dict) -> None:
    torch.save({**state, "norm.bias": Bomb(path.with_name("ran"))}, path)


def no_table(path: Path, state: dict) -> None:
    torch.save([1, 2], path)


def whole_numbers(path: Path, state: dict) -> None:
    _save(path, state | {"norm.bias": torch.zeros(96, dtype=torch.int64)})


def infinite(path: Path, state: dict) -> None:
    _save(path, state | {"norm.bias": torch.full((96,), float("inf"))})


def other_shape(path: Path, state: dict) -> None:
    _save(path, state | {"norm.bias": torch.zeros(7)})


def too_few(path: Path, state: dict) -> None:
    del state["norm.bias"]
    _save(path, state)


def other_backbone(path: Path, state: dict) -> None:
    from timm.models.vision_transformer import VisionTransformer

    _save(path, VisionTransformer(**DEMO_VIT | {"depth": 7}).state_dict())


def no_network(desk: Desk) -> str:
    def connect(*arguments):
        raise OSError("Name or service not known")

    desk.patch.setattr("vptsp_core.method.hub.socket.create_connection", connect)
    desk.patch.setattr("vptsp_core.method.hub.getproxies", dict)
    desk.patch.setattr("vptsp_core.method.hub.constants.HF_HUB_CACHE", str(desk.root / "hub"))
    desk.patch.setattr("vptsp_core.method.hub.constants.ENDPOINT", "https://huggingface.co")
    said = desk.refused(*desk.train("weights=pretrained", "backbone=vit_tiny_patch16_224.augreg_in21k",
                                    "image_size=48", "resize=48"))  # fmt: skip
    assert not desk.results.exists()
    return said


# ---- checkpoints ---------------------------------------------------------------------------------


def _begun(desk: Desk, *changes: str) -> Path:
    """The folder of a run that was stopped after its first epoch of two."""
    from vptsp_core.method.loop import Loop

    class Stop(Exception):
        pass

    def stop(self, epoch, train=Loop.train_epoch):
        if epoch == 1:
            raise Stop
        return train(self, epoch)

    before = set((desk.results / "runs").iterdir()) if desk.results.exists() else set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Loop, "train_epoch", stop)
        with pytest.raises(Stop):
            desk.command(*desk.train("epochs=2", *changes))
    (folder,) = set((desk.results / "runs").iterdir()) - before
    return folder


def checkpoint(spoil: Callable[[Desk, Path], None]) -> Do:
    """Go on with a run whose checkpoint was spoilt; the file stays as it is, for whoever may want it."""

    def do(desk: Desk) -> str:
        path = _begun(desk) / "checkpoint.pt"
        spoil(desk, path)
        before = path.read_bytes()
        said = desk.refused(*desk.train("epochs=2"))
        assert path.read_bytes() == before and not (desk.root / "ran").exists()
        return said

    return do


def halve(desk: Desk, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def explode(desk: Desk, path: Path) -> None:
    saved = torch.load(path, weights_only=True)
    path.unlink()
    write_checkpoint(path.parent, saved.pop("config"), {**saved, "best": Bomb(desk.root / "ran")})  # its checksum fits


def foreign(**changes) -> Callable[[Desk, Path], None]:
    def spoil(desk: Desk, path: Path) -> None:
        other = _begun(desk, *(f"{key}={value}" for key, value in changes.items()))
        shutil.copy(other / "checkpoint.pt", path)

    return spoil


# ---- configurations ------------------------------------------------------------------------------


def config(*changes: str) -> Do:
    def do(desk: Desk) -> str:
        said = desk.refused(*desk.train(*changes))
        assert not desk.results.exists()
        return said

    return do


def preset(name: str, content: str | None) -> Do:
    def do(desk: Desk) -> str:
        place = desk.root / name if content is not None else name
        if content is not None:
            (desk.root / name).write_text(content)
        return desk.refused("train", "--preset", place, "--results", desk.results)

    return do


# ---- results -------------------------------------------------------------------------------------


def _finished(desk: Desk, *changes: str) -> Path:
    status, _, err = desk.command(*desk.train(*changes))
    assert status == 0, err
    return desk.run_folder()


def no_run(desk: Desk) -> str:
    desk.results.mkdir()
    return desk.refused("evaluate", desk.results)


def results(name: str, change: Callable[[dict], dict | None]) -> Do:
    """Ask once more for a finished run whose file was changed; nothing is trained, nothing deleted."""

    def do(desk: Desk) -> str:
        path = _finished(desk)
        _change(path / name, change)
        before = sorted(p.name for p in path.iterdir())
        said = desk.refused(*desk.train())
        assert sorted(p.name for p in path.iterdir()) == before
        return said

    return do


def evaluated(name: str, change: Callable[[dict], dict | None]) -> Do:
    def do(desk: Desk) -> str:
        path = _finished(desk)
        _change(path / name, change)
        return desk.refused("evaluate", path, "--data", desk.data)

    return do


def _change(path: Path, change: Callable[[dict], dict | None]) -> None:
    values = change(json.loads(path.read_text()))
    path.write_text(path.read_text()[:20] if values is None else json.dumps(values))


def without(name: str) -> Do:
    def do(desk: Desk) -> str:
        (_finished(desk) / name).unlink()
        return desk.refused(*desk.train())

    return do


def queries(desk: Desk) -> str:
    path = _finished(desk)
    content = np.array([Bomb(desk.root / "ran")], dtype=object)
    np.savez(path / "queries.npz", **{"R@1": content})
    reseal_run(path)  # by somebody who means it
    said = desk.told(lambda: read_run(path).queries)
    assert not (desk.root / "ran").exists()
    return said


def changed_model(desk: Desk) -> str:
    path = _finished(desk)
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1  # of the last number: nothing else would notice
    (path / "model.safetensors").write_bytes(content)
    return desk.refused("evaluate", path, "--data", desk.data)


def other_model(desk: Desk, *files: str) -> str:
    path = _finished(desk)
    shutil.move(path, desk.root / "first")
    other = _finished(desk, "prompts=3")
    for name in ("model.safetensors", *files):
        shutil.copy(desk.root / "first" / name, other)
    return desk.refused("evaluate", other, "--data", desk.data)


def other_model_resealed(desk: Desk) -> str:
    other_model(desk, "record.json")
    reseal_run(desk.run_folder())
    return desk.refused("evaluate", desk.run_folder(), "--data", desk.data)


def record_bit(desk: Desk) -> str:
    """One bit of the record is another, so that all of it is still valid."""
    path = _finished(desk)
    content, before = bytearray((path / "record.json").read_bytes()), b'"torch": "'
    content[content.index(before) + len(before)] ^= 1  # a digit is the next one, or the one before
    (path / "record.json").write_bytes(content)
    return desk.refused(*desk.train())


def cache(desk: Desk) -> str:
    _finished(desk, "pipeline=cached")
    for path in desk.cache.glob("folder-test-*/sizes.npy"):
        np.save(path, np.array([Bomb(desk.root / "ran")], dtype=object), allow_pickle=True)
    said = desk.refused(*desk.train("pipeline=cached", "seed=1"))
    assert not (desk.root / "ran").exists()
    return said


# ---- devices and disks ---------------------------------------------------------------------------


def device(*options: str) -> Do:
    def do(desk: Desk) -> str:
        return desk.refused(*desk.train(options=options))

    return do


def half(desk: Desk) -> str:
    return desk.refused(*desk.train("precision=fp16", options=("--device", "cpu")))


def full_gpu() -> Exception:
    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")


def lost_gpu() -> Exception:
    return torch.AcceleratorError("CUDA error: unspecified launch failure\nCUDA kernel errors might be reported later")


def full_machine() -> Exception:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you")


def failing(error: Callable[[], Exception]) -> Do:
    """A run of three epochs whose second fails; the first is kept, and the same command ends as if nothing was."""

    def do(desk: Desk) -> str:
        from vptsp_core.method.step import TrainStep

        good, calls = TrainStep.__call__, []

        def bad(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise error()
            return good(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(TrainStep, "__call__", bad)
            said = desk.refused(*desk.train("epochs=3"))
        _same_in_the_end(desk, ["checkpoint.pt"])
        return said

    return do


def _same_in_the_end(desk: Desk, kept: list[str]) -> None:
    folder = desk.run_folder()
    assert sorted(p.name for p in folder.iterdir()) == kept, "the last good checkpoint, and no half-written file"
    assert desk.command(*desk.train("epochs=3"))[0] == 0
    resumed = read_run(folder)
    assert [each["after_epochs"] for each in resumed.record["stretches"]] == [0, 1]
    shutil.move(folder, desk.root / "resumed")
    assert desk.command(*desk.train("epochs=3"))[0] == 0
    whole = read_run(desk.run_folder())
    assert whole.metrics == resumed.metrics and whole.history["loss"].equals(resumed.history["loss"])


def full_disk(desk: Desk) -> str:
    """The disk is full when the second checkpoint is brought to it."""
    synced = []

    def fsync(handle, good=os.fsync):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        if sum(".checkpoint.pt." in name for name in synced) == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return good(handle)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vptsp_core.system.files.os.fsync", fsync)
        said = desk.refused(*desk.train("epochs=3"))
    _same_in_the_end(desk, ["checkpoint.pt"])
    return said


def full_cache(desk: Desk) -> str:
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vptsp_core.data.cache._fill", full)
        said = desk.refused(*desk.train("pipeline=cached"))
    assert desk.command(*desk.train("pipeline=cached"))[0] == 0
    return said


def read_only(desk: Desk) -> str:
    desk.results.mkdir(mode=0o555)
    if os.access(desk.results, os.W_OK):  # root may write everywhere: what the system says to others is put in its way

        def mkdir(self, *arguments, good=Path.mkdir, **options):
            if self.is_relative_to(desk.results):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))
            return good(self, *arguments, **options)

        desk.patch.setattr(Path, "mkdir", mkdir)
    return desk.refused(*desk.train())


# ---- notebooks -----------------------------------------------------------------------------------


def notebooks(*options: str) -> Do:
    def do(desk: Desk) -> str:
        said = desk.refused("notebooks", "--results", desk.results, *options)
        assert not desk.results.exists()
        return said

    return do


def papermill(**given) -> Do:
    """The tour's check, with the cell that papermill puts behind its parameters in the shell's history.

    tests/publish/test_notebooks_runner.py has papermill itself run such a notebook.
    """

    def do(desk: Desk) -> str:
        from papermill.iorw import load_notebook_node
        from papermill.parameterize import parameterize_notebook

        from vptsp_core.publish.parameters import FOLDER, check_given

        notebook = parameterize_notebook(load_notebook_node(str(FOLDER / "tour.ipynb")), given)
        cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
        assert cells[1].startswith("# Parameters") and "\nsession = Session(" in cells[2]
        shell = SimpleNamespace(user_ns={**given, "In": ["", *cells]})
        desk.patch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
        return desk.told(check_given)

    return do
