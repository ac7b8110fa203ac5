"""`train --tensorboard`: the curves show every epoch of the history once, also if the run was cut short."""

import sys

import numpy as np
import pytest

from tests.deploy.test_own_images import TWELVE, put
from vptsp_core import __main__ as command_line
from vptsp_core import preset, run
from vptsp_core.errors import DataError
from vptsp_core.figures.board import show_finished
from vptsp_core.runs.curves import tag
from vptsp_core.runs.folder import read_run


def events(folder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def assert_holds(found, history):
    assert {tag(name) for name in history.columns if name != "epoch"} == set(found.Tags()["scalars"])
    for name in history.columns.drop("epoch"):
        rows = history[["epoch", name]].dropna()
        points = found.Scalars(tag(name))
        assert [point.step for point in points] == rows["epoch"].tolist(), name
        np.testing.assert_allclose([point.value for point in points], rows[name], rtol=1e-6)


def test_a_run_that_resumes_has_every_epoch_once(tmp_path):
    pytest.importorskip("tensorboard")
    config = preset("smoke", epochs=4, eval_start=1, steps_per_epoch=1)

    def stop(history):
        raise KeyboardInterrupt

    options = dict(results=tmp_path / "results", device="cpu", progress=False)
    with pytest.raises(KeyboardInterrupt):
        run(config, on_epoch=stop, **options)  # epoch 1 is in no curve
    with pytest.raises(KeyboardInterrupt):
        run(config, on_epoch=stop, tensorboard=tmp_path / "board", **options)  # epoch 2 is in an earlier file
    done = run(config, tensorboard=tmp_path / "board", **options)
    folder = tmp_path / "board" / done.path.name
    assert len(list(folder.iterdir())) == 2
    assert_holds(events(folder), done.history)


def test_the_command_ends_with_a_retrieval_grid_and_a_second_call_repeats_nothing(tmp_path, capsys):
    pytest.importorskip("tensorboard")
    board = tmp_path / "board"
    command = ["train", "--preset", "smoke", "--results", str(tmp_path), "--device", "cpu", "--tensorboard", str(board)]
    for _ in range(2):
        assert command_line.main(command) == 0
        (path,) = (tmp_path / "runs").iterdir()
        found = events(board / path.name)
        assert_holds(found, read_run(path).history)
        (grid,) = found.Images("retrieval")
        assert grid.width > 500 and grid.step == 1


def test_without_its_images_a_finished_run_still_writes_its_history(tmp_path):
    pytest.importorskip("tensorboard")
    images = put(tmp_path / "images", TWELVE)
    config = preset("smoke", dataset="own", epochs=1, batch=4, steps_per_epoch=1)
    done = run(config, data=images, results=tmp_path, device="cpu", progress=False)
    with pytest.raises(DataError, match="own: no folder is given"):
        show_finished(done, tmp_path / "board")
    assert_holds(events(tmp_path / "board" / done.path.name), done.history)


def test_without_tensorboard_the_command_ends_with_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    command = ["train", "--preset", "smoke", "--results", str(tmp_path), "--tensorboard", str(tmp_path / "board")]
    assert command_line.main(command) == 2
    assert capsys.readouterr().err == (
        "error: tensorboard is not installed: pip install tensorboard, or leave --tensorboard out\n"
    )
    assert not (tmp_path / "runs").exists()
