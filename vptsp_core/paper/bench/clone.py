"""A user's clone of the released implementation, imported from where it lies.

Nothing of it is part of this project. Its modules have names that others have too (``metrics``, ``datasets``, ...), so
they are imported apart: afterwards the interpreter's module table and search path are as they were, and nothing is
written into the clone.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import timm
import torch
from torch import nn

from vptsp_core.errors import VptspError

NEEDED = ("params.py", "architectures/peft_vit.py", "criteria/dml_proxy_peft.py", "metrics/__init__.py")
PACKAGES = {"faiss": "faiss-cpu", "sklearn": "scikit-learn", "yaml": "pyyaml"}  # imported name -> what to install


def clone_folder(folder: str | Path) -> Path:
    """The clone's folder, whole.

    Raises:
        VptspError: it is none, or what is needed of it is missing.
    """
    path = Path(folder).expanduser().resolve()
    if not path.is_dir():
        raise VptspError(f"reference {folder}: no such folder; give the clone of the released implementation")
    missing = [name for name in NEEDED if not (path / name).is_file()]
    if missing:
        raise VptspError(
            f"reference {folder}: {missing[0]} is missing, so this is no whole clone of the released implementation; "
            "give the folder that git clone made"
        )
    return path


def clone_modules(folder: str | Path, names: Sequence[str]) -> list[ModuleType]:
    """Modules of the clone by name (``"architectures.peft_vit"``).

    Raises:
        VptspError: no whole clone, a package that it needs is not installed, or it cannot be imported.
    """
    path = clone_folder(folder)
    own = {each.stem for each in path.glob("*.py")} | {each.parent.name for each in path.glob("*/__init__.py")}
    aside = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in own}
    search, no_bytecode = list(sys.path), sys.dont_write_bytecode
    try:
        sys.path[:0], sys.dont_write_bytecode = [str(path)], True
        importlib.invalidate_caches()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports timm by names that have moved
            return [importlib.import_module(name) for name in names]
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if not package or package in own or sys.modules.get(package) is not None:
            raise _unusable(folder, error) from error
        install = PACKAGES.get(package, package)
        raise VptspError(
            f"reference {folder}: it imports {package}, which is not installed; pip install {install}"
        ) from error
    except Exception as error:  # whatever its modules do when they are imported
        raise _unusable(folder, error) from error
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] in own]:
            del sys.modules[name]
        sys.modules.update(aside)
        sys.path[:], sys.dont_write_bytecode = search, no_bytecode


def _unusable(folder: str | Path, error: Exception) -> VptspError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return VptspError(f"reference {folder}: it cannot be imported ({reason}); give a clone as it was released")


def clone_options(params: ModuleType, values: dict[str, Any]) -> SimpleNamespace:
    """Its options at their own defaults (its module ``params``), but for ``values``."""
    import argparse

    parser = argparse.ArgumentParser()
    for name in ("basic_training", "scale_optimizing", "batch_creation", "batchmining_specific", "loss_specific"):
        parser = getattr(params, f"{name}_parameters")(parser)
    return SimpleNamespace(**{**vars(parser.parse_args([])), **values})


@contextlib.contextmanager
def at_home(device: torch.device, backbone: nn.Module | None = None) -> Iterator[None]:
    """Inside, what the clone sends to "cuda" goes to ``device``, and where it asks timm for a pretrained model it gets
    ``backbone``: it has one GPU in mind and downloads weights."""
    create, module_cuda, tensor_cuda = timm.create_model, nn.Module.cuda, torch.Tensor.cuda
    try:
        nn.Module.cuda = lambda self, *_: self.to(device)  # type: ignore[assignment, method-assign]
        torch.Tensor.cuda = lambda self, *_, **__: self.to(device)  # type: ignore[assignment, method-assign]
        if backbone is not None:
            timm.create_model = lambda *_, **__: backbone
        yield
    finally:
        timm.create_model, nn.Module.cuda, torch.Tensor.cuda = create, module_cuda, tensor_cuda  # type: ignore
