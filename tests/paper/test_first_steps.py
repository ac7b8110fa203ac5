"""The recorded first steps are those of the run itself, and what is recorded is checked by hand."""

import numpy as np
import pytest
import torch

from vptsp_core.data import load_benchmark
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.method.loop import Loop
from vptsp_core.method.presets import preset
from vptsp_core.paper import first_steps
from vptsp_core.paper.first_steps import batch_cosines, facts, mean_cosine, record_first_steps, stored_at
from vptsp_core.runs.run import build_model, run
from vptsp_core.runs.start_from_data import start_from_data

PAIRS = dict(epochs=1, samples_per_class=2)


@pytest.mark.parametrize(
    "changes",
    [
        dict(seed=3, precision="bf16"),
        dict(start="all", selection="validation_map"),
        dict(class_optimizer="rowwise", optimizer="adamw", lr=1e-3, seed=1),
        dict(method="linear", bitfit=True, pipeline="classic"),
    ],
    ids=str,
)
def test_the_steps_are_those_of_the_run(tmp_path, monkeypatch, changes):
    config = preset("smoke", **PAIRS, **changes)
    train, taken = Loop.train_epoch, []

    def keep(self, epoch):
        row = train(self, epoch)
        taken.append(self.losses.tolist())
        return row

    monkeypatch.setattr(Loop, "train_epoch", keep)
    done = run(config, results=tmp_path, progress=False)
    steps, made = record_first_steps(config, results=tmp_path, progress=False)
    of_the_run, recorded = taken
    assert recorded == of_the_run and steps["loss"].tolist() == pytest.approx(of_the_run, abs=6e-6)
    assert list(steps["step"]) == list(range(1, config.steps_per_epoch + 1))
    for key in ("commit", "device", "data", "weights", "precision"):
        assert made[key] == done.record[key]
    assert stored_at(config, tmp_path).stem == done.record["hash"]


def test_the_proxies_are_those_before_the_step(tmp_path):
    config = preset("smoke", **PAIRS, start="proxies")
    images = load_benchmark("glyphs").train
    model = build_model(config, images.num_classes, torch.device("cpu"))
    start_from_data(model, images)
    model.proxies.state.copy_(torch.nn.functional.normalize(torch.randn_like(model.proxies.state) + 1, dim=1))
    expected = mean_cosine(model.proxies.bias.detach()), mean_cosine(model.proxies.state)
    assert abs(expected[0] - expected[1]) > 0.1
    step = first_steps.RecordedStep(model, [torch.optim.SGD([model.proxies.bias], 0.1)] * 2)
    labels = torch.arange(4).repeat_interleave(2)
    step(torch.randn(8, 3, config.image_size, config.image_size), labels)
    (row,) = step.rows
    assert (row["O"], row["P"]) == pytest.approx(expected, abs=1e-6)


def test_a_recording_is_stored_and_read_and_a_damaged_or_foreign_one_is_refused(tmp_path, monkeypatch):
    config = preset("smoke", method="linear", bitfit=True, epochs=1)
    first = record_first_steps(config, results=tmp_path, progress=False)
    assert not {"P", "same class"} & set(first.steps)  # no semantic proxies, and one image per class in a batch
    path = stored_at(config, tmp_path)
    monkeypatch.setattr(first_steps, "build_model", None)  # nothing is recorded again
    again = record_first_steps(config, results=tmp_path, progress=False)
    assert again.steps.equals(first.steps) and again.made == first.made
    table = facts({"one": again, "two": again}, {"one": config, "two": config.replace(seed=1)})
    assert table.loc["seed", "value"] == "0, 1" and table.loc["weights checksum", "value"] == first.made["weights"]
    content = path.read_text("utf-8")
    for damaged in ("", content[:-9], "{}", content.replace('"step"', '"stop"')):
        path.write_text(damaged, "utf-8")
        with pytest.raises(WeightsError, match="damaged .*; delete it and record again") as error:
            record_first_steps(config, results=tmp_path, progress=False)
        assert "\n" not in str(error.value)
    path.write_text(content, "utf-8")
    monkeypatch.setattr(first_steps, "data_folder", lambda *_: "here")
    monkeypatch.setattr(first_steps, "load_benchmark", lambda *_: np.ma)  # its record() is another one
    monkeypatch.setattr(np.ma, "record", lambda: {}, raising=False)
    with pytest.raises(WeightsError, match="recorded from other images than those in here"):
        record_first_steps(config, results=tmp_path, progress=False)


@pytest.mark.parametrize("changes", [dict(dataset="own"), dict(method="frozen", bitfit=False)], ids=str)
def test_own_images_and_the_frozen_backbone_are_refused(tmp_path, changes):
    with pytest.raises(VptspError, match="first steps are recorded only on benchmarks"):
        record_first_steps(preset("smoke").replace(**changes), results=tmp_path)


def test_cosines_by_hand():
    embeddings = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [0, -1]])
    # pairs of one class: 0.6 and -1; of two classes: 0, 0, 0.8 and -0.8; only the first image's nearest has its class
    found = batch_cosines(embeddings, torch.tensor([0, 0, 1, 1]))
    assert found == pytest.approx({"same class": -0.2, "other classes": 0.0, "R@1 in the batch": 0.25})
    cosines = [0.6, 0, 0, 0.8, -0.8, -1]
    assert batch_cosines(embeddings, torch.arange(4)) == pytest.approx({"other classes": np.mean(cosines)})
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 2], [-3, 0]])) == pytest.approx(-1 / 3)
