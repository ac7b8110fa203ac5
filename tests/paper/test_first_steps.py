"""The recorded first steps are those of the run itself, and what is recorded is checked by hand."""

import json

import numpy as np
import pytest
import torch

from vptsp_core.method.presets import preset
from vptsp_core.paper.first_steps import batch_cosines, facts, mean_cosine, record_first_steps, stored_at
from vptsp_core.runs.run import run


@pytest.mark.parametrize("start", ["released", "all"])
def test_the_steps_are_those_of_the_run(tmp_path, start):
    config = preset("smoke", epochs=1, samples_per_class=2, start=start)
    done = run(config, results=tmp_path, progress=False)
    steps, made = record_first_steps(config, results=tmp_path, progress=False)
    assert list(steps["step"]) == list(range(1, config.steps_per_epoch + 1))
    assert steps["loss"].mean() == pytest.approx(done.history["loss"].iloc[-1], abs=2e-5)  # stored with five decimals
    assert {"other classes", "same class", "R@1 in the batch", "O", "P"} <= set(steps)
    assert (made["commit"], made["device"]) == (done.record["commit"], done.record["device"])


def test_a_recording_is_stored_and_read(tmp_path):
    config = preset("smoke", method="linear", bitfit=True, epochs=1)
    steps, _ = record_first_steps(config, results=tmp_path, progress=False)
    assert not {"P", "same class"} & set(steps)  # no semantic proxies, and one image per class in a batch
    path = stored_at(config, tmp_path)
    stored = json.loads(path.read_text("utf-8"))
    stored["steps"]["loss"][0] = 7.0
    path.write_text(json.dumps(stored), "utf-8")
    again = record_first_steps(config, results=tmp_path, progress=False)
    assert again.steps.loc[0, "loss"] == 7.0
    table = facts({"one": again, "two": again}, {"one": config, "two": config.replace(seed=1)})
    assert table.loc["seed", "value"] == "0, 1" and table.loc["trunk", "value"] == "float32"


def test_cosines_by_hand():
    embeddings = torch.tensor([[1.0, 0], [0.6, 0.8], [0, 1], [0, -1]])
    # pairs of one class: 0.6 and -1; of two classes: 0, 0, 0.8 and -0.8; only the first image's nearest has its class
    found = batch_cosines(embeddings, torch.tensor([0, 0, 1, 1]))
    assert found == pytest.approx({"same class": -0.2, "other classes": 0.0, "R@1 in the batch": 0.25})
    assert batch_cosines(embeddings, torch.arange(4)) == pytest.approx(
        {"other classes": np.mean([0.6, 0, 0, 0.8, -0.8, -1])}
    )
    assert mean_cosine(torch.tensor([[1.0, 0], [0, 2], [-3, 0]])) == pytest.approx(-1 / 3)
