"""A number that is not finite ends the run before it is saved. The error names step, images and rates."""

import pytest
import torch

from tests.runs.test_run import benchmark, glyphs, tiny  # noqa: F401  (a fixture is found by its name)
from vptsp_core import run
from vptsp_core.errors import TrainingError
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.method.step import TrainStep
from vptsp_core.runs.checkpoints import CHECKPOINT, find_checkpoint, read_checkpoint
from vptsp_core.runs.folder import run_folder
from vptsp_core.runs.numerics import first_bad_tensor

BAD = (float("nan"), float("inf"), -float("inf"))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("place", [0, 4999, -1])
def test_one_bad_number_among_many(bad, place):
    tensors = {"counts": torch.arange(3), "none": torch.zeros(0), "good": torch.full((3,), 3e38),
               "half": torch.ones(2, dtype=torch.bfloat16), "table": torch.randn(100, 100)}  # fmt: skip
    assert first_bad_tensor(tensors) is None
    tensors["table"].view(-1)[place] = bad
    assert first_bad_tensor(tensors) == "table"


def drawn(config, epoch):
    images = glyphs().train
    sampler = ClassBalancedSampler(
        images.labels, config.batch, config.samples_per_class, config.seed, config.steps_per_epoch
    )
    return list(sampler.epoch(epoch))


def test_the_error_of_a_loss_names_step_images_and_rates(tmp_path, monkeypatch):
    config, step, taken = tiny(), TrainStep.__call__, []

    def poisoned(self, *args):
        taken.append(args)
        loss = step(self, *args)
        return loss * torch.nan if len(taken) == 4 else loss  # the second of the second epoch

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    names = ", ".join(f"glyphs train image {i}" for i in dict.fromkeys(drawn(config, 1)[1]))
    with pytest.raises(TrainingError) as caught:
        run(config, results=tmp_path, progress=False)
    said = str(caught.value)
    assert said.startswith("the loss is not finite from step 2 of epoch 2 on (lr = ") and "\n" not in said
    assert said.endswith(f", images: {names}); lower the learning rates")
    folder = run_folder(config, tmp_path)
    assert [path.name for path in folder.iterdir()] == [CHECKPOINT]
    saved = read_checkpoint(folder, find_checkpoint(folder), config.hash(), {})
    assert len(saved["history"]) == 1 and first_bad_tensor(saved["learned"]) is None
    rates = saved["schedules"][0]["_last_lr"][0], saved["schedules"][1]["_last_lr"][0]
    assert f"(lr = {rates[0]:g}, lr_proxy = {rates[1]:g}, " in said


CASES = {
    "weight": (dict(), "vit.sample_head.fc.weight", lambda self: self.model.vit.sample_head.fc.weight),
    "state of an optimiser": (
        dict(),
        "proxies.bias (exp_avg_sq)",
        lambda self: self.optimizers[1].state[self.model.proxies.bias]["exp_avg_sq"],
    ),
    "row of a class": (
        dict(class_optimizer="rowwise"),
        "class_prompts.table",
        lambda self: self.model.class_prompts.table,
    ),
}


@pytest.mark.parametrize(("changes", "name", "find"), CASES.values(), ids=CASES.keys())
def test_a_bad_tensor_with_finite_losses_is_found_before_it_is_saved(tmp_path, monkeypatch, changes, name, find):
    """A row of the table breaks in the first step of the second epoch, the other tensors in the last step."""
    config, step, taken = tiny(**changes), TrainStep.__call__, []
    rowwise, first, last = "class_optimizer" in changes, *drawn(config, 1)
    labels = glyphs().train.labels
    row = next(iter(set(labels[first].tolist()) - set(labels[last].tolist())))

    def poisoned(self, *args):
        taken.append(args)
        loss = step(self, *args)
        if len(taken) == (3 if rowwise else 4):
            with torch.no_grad():
                find(self).view(-1)[0 if not rowwise else find(self)[0].numel() * row] = torch.nan
        return loss

    monkeypatch.setattr(TrainStep, "__call__", poisoned)
    monkeypatch.setattr(
        "vptsp_core.runs.run.evaluate", lambda model, data: {"R@1": 0.5} if len(taken) < 3 else pytest.fail()
    )
    with pytest.raises(TrainingError) as caught:
        run(config, results=tmp_path, progress=False)
    said = str(caught.value)
    assert said.startswith(f"{name} is not finite after epoch 2, though the losses are (lr = ")
    assert said.endswith("; lower the learning rates")
    folder = run_folder(config, tmp_path)
    assert len(read_checkpoint(folder, find_checkpoint(folder), config.hash(), {})["history"]) == 1


def test_too_high_rates_end_the_run(tmp_path):
    with pytest.raises(TrainingError, match=r"^the loss is not finite from step 2 of epoch 1 on .*learning rates$"):
        run(tiny(optimizer="sgd", lr=1e30, lr_proxy=1e30), results=tmp_path, progress=False)
    assert not list((tmp_path / "runs").iterdir()), "nothing was learned, and nothing is left"
