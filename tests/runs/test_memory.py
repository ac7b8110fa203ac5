"""The trial step that measures memory changes nothing, and turns gradient checkpointing on if that is needed."""

import warnings
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from vptsp_core import preset
from vptsp_core.errors import VptspError
from vptsp_core.method.model import make_optimizers
from vptsp_core.method.step import TrainStep
from vptsp_core.runs.memory import fit_step, probe_step
from vptsp_core.runs.run import build_model
from vptsp_core.runs.train import Trainer

CPU = torch.device("cpu")


def make(where="auto", **changes):
    settings = dict(weights="random", class_optimizer="rowwise", batch=8, gru_dropout=0.3)
    config = preset("smoke", **settings | changes)
    model = build_model(config, 20, CPU, where)
    return model, make_optimizers(model)


def step(model, optimizers):
    torch.manual_seed(1)
    classes = torch.arange(model.config.batch // model.config.samples_per_class)
    images = torch.randn(model.config.batch, 3, model.config.image_size, model.config.image_size)
    labels = classes.repeat_interleave(model.config.samples_per_class)
    return TrainStep(model.train(), optimizers)(images, labels, classes).item()


def snapshot(model, optimizers):
    state = {name: value.clone() for name, value in model.state_dict().items()}
    return state, [len(optimizer.state) for optimizer in optimizers], model.training, torch.get_rng_state()


@pytest.mark.parametrize("trained", [False, True], ids=["before the first step", "after one"])
@pytest.mark.parametrize(
    ("where", "changes"),
    [("device", {}), ("host", {}), ("auto", dict(class_optimizer="dense")), ("auto", dict(method="vpt"))],
    ids=["device", "host", "dense", "vpt"],
)
def test_a_probe_changes_nothing(where, changes, trained):
    (model, optimizers), (untouched, others) = make(where, **changes), make(where, **changes)
    if trained:
        assert step(model, optimizers) == step(untouched, others)
    model.eval()
    torch.manual_seed(3)
    before = snapshot(model, optimizers)
    probe_step(model, optimizers)
    after = snapshot(model, optimizers)
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:3] == after[1:3] and torch.equal(before[3], after[3])
    assert all(p.grad is None for p in model.parameters())
    assert step(model, optimizers) == step(untouched, others)


def too_large(monkeypatch, model, fits):
    """Make the model's towers run out of memory unless ``fits()``. Return the list of tries."""
    forward, tried = model.vit.forward, []

    def limited(images, class_prompts=None):
        tried.append(model.vit.checkpointing)
        found = forward(images, class_prompts)
        if not fits():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(model.vit, "forward", limited)
    return tried


def test_checkpointing_is_turned_on_only_if_a_step_does_not_fit(monkeypatch):
    model, optimizers = make()
    fit_step(model, optimizers)
    assert not model.vit.checkpointing
    before = snapshot(model, optimizers)
    tried = too_large(monkeypatch, model, lambda: model.vit.checkpointing)
    with pytest.warns(UserWarning, match="gradient checkpointing is turned on") as warned:
        fit_step(model, optimizers)
    assert tried == [False, True] and model.vit.checkpointing and len(warned) == 1
    assert all(torch.equal(before[0][name], value) for name, value in model.state_dict().items())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_step(model, optimizers)


def test_a_step_that_never_fits_is_an_error_in_one_line(monkeypatch):
    model, optimizers = make()
    model.vit.checkpointing = True
    too_large(monkeypatch, model, lambda: False)
    with pytest.raises(VptspError, match="^a training step of batch = 8 does not fit .*; lower batch, or choose --"):
        fit_step(model, optimizers)


@pytest.mark.parametrize("place", ["train_epoch", "evaluate"])
def test_full_memory_during_the_run_is_an_error_in_one_line(monkeypatch, tmp_path, place):
    def full(_):
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    model, _ = make()
    images = SimpleNamespace(labels=np.arange(20).repeat(2))
    trainer = Trainer(model, images, tmp_path, lambda model: {})
    trainer.loop.schedules = []
    monkeypatch.setattr(trainer.loop, "train_epoch", lambda epoch: {})
    monkeypatch.setattr(trainer, "_check_finite", lambda epoch, row: None)
    monkeypatch.setattr(trainer.loop if place == "train_epoch" else trainer, place, full)
    with pytest.raises(VptspError, match="^the GPU's memory is full in epoch 1; lower batch, or .*class prompts$"):
        trainer.run()


@pytest.mark.parametrize("asked", ["auto", "on", "off"])
@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_the_trainer_tries_a_step_only_on_a_gpu_with_auto(monkeypatch, tmp_path, kind, asked):
    probed = []
    monkeypatch.setattr("vptsp_core.runs.train.fit_step", lambda model, optimizers: probed.append(len(optimizers)))
    model, _ = make()
    images = SimpleNamespace(labels=np.arange(20).repeat(2))
    trainer = Trainer(model, images, tmp_path, lambda model: {}, checkpointing=asked)
    trainer.device = torch.device(kind)
    last = model.config.epochs
    trainer.history = [{"epoch": last}]  # all epochs are finished, so no step is tried
    trainer.run()
    assert probed == []
    trainer.history = [{"epoch": last - 1}]
    monkeypatch.setattr(trainer.loop, "train_epoch", Mock(side_effect=EOFError))  # ends at the first step
    with pytest.raises(EOFError):
        trainer.run()
    assert probed == ([2] if kind == "cuda" and asked == "auto" else [])
    assert model.vit.checkpointing is (asked == "on")
