"""Checkpoints: if the last one is cut short or changed, a warning says so, and the one before it is used."""

import random
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.runs.test_run import assert_same_run, benchmark, cut, tiny  # noqa: F401  (a fixture is found by its name)
from vptsp_core import run
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.runs.checkpoints import CHECKPOINT, PREVIOUS, find_checkpoint, read_checkpoint, write_checkpoint
from vptsp_core.runs.folder import run_folder

MAPS = Path("/proc/self/maps")
USED = "checkpoint.previous.pt beside it is used instead"


@pytest.fixture
def two(tmp_path):
    """A folder with two small checkpoints."""
    for epoch in (1, 2):
        write_checkpoint(tmp_path, "mine", {"history": [{"epoch": epoch}], "table": torch.arange(50.0) * epoch})
    return tmp_path


def epoch_of(folder):
    found = find_checkpoint(folder)
    return read_checkpoint(folder, found, "mine", {})["history"][0]["epoch"]


def test_the_last_two_are_kept_and_no_third(two):
    write_checkpoint(two, "mine", {"history": [{"epoch": 3}]})
    assert sorted(path.name for path in two.iterdir()) == [PREVIOUS, CHECKPOINT] and epoch_of(two) == 3
    (two / CHECKPOINT).unlink()
    with pytest.warns(UserWarning, match=f"checkpoint.pt: missing or damaged; {USED}"):
        assert epoch_of(two) == 2


def test_a_changed_byte_and_a_file_cut_short_at_any_place_are_noticed(two):
    path, content, kept = two / CHECKPOINT, (two / CHECKPOINT).read_bytes(), (two / PREVIOUS).read_bytes()
    rng, end = random.Random(0), len(content)
    spoilt = [content[:cut] for cut in (0, 1, 71, 72, 73, end - 73, end - 72, end - 71, end - 1)] + [content + b"\0"]
    for place in [*rng.sample(range(end), 100), *range(end - 73, end)]:
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        spoilt.append(bytes(changed))
    for each in spoilt:
        path.write_bytes(each)
        with pytest.warns(UserWarning, match=f"missing or damaged; {USED}"):
            assert find_checkpoint(two).name == PREVIOUS
        assert not path.exists() and (two / PREVIOUS).read_bytes() == kept
    path.write_bytes(content)
    assert epoch_of(two) == 2


def test_if_none_is_whole_the_error_says_what_to_do(two):
    (two / CHECKPOINT).write_bytes(b"")
    (two / PREVIOUS).write_bytes((two / PREVIOUS).read_bytes()[:-5])
    with pytest.raises(WeightsError, match="checkpoint.pt and .*previous.pt: damaged, .* delete them to start"):
        find_checkpoint(two)
    (two / CHECKPOINT).unlink()
    (two / PREVIOUS).unlink()
    assert find_checkpoint(two) is None


def test_another_file_than_the_first_process_found_is_refused(two):
    found = find_checkpoint(two)
    shutil.copyfile(two / PREVIOUS, two / CHECKPOINT)  # a whole file, but not the one that was found
    with pytest.raises(VptspError, match="not the file that the first process sees; choose a results folder"):
        read_checkpoint(two, found, "mine", {})
    (two / CHECKPOINT).unlink()
    with pytest.raises(VptspError, match="not the file that the first process"):
        read_checkpoint(two, found, "mine", {})


def test_a_checkpoint_of_another_run_is_refused(two):
    with pytest.raises(WeightsError, match="checkpoint.pt: of another run; delete it, or choose another results"):
        read_checkpoint(two, find_checkpoint(two), "yours", {})


def test_a_checkpoint_with_other_learned_tensors_is_refused(tmp_path, monkeypatch):
    config = tiny()
    cut(config, tmp_path, monkeypatch)
    folder = run_folder(config, tmp_path / "cut")
    saved = torch.load(folder / CHECKPOINT, weights_only=True)
    del saved["learned"]["proxies.bias"]
    write_checkpoint(folder, saved.pop("config"), saved)
    with pytest.raises(WeightsError, match="lacks proxies.bias; use the version of vptsp_core that wrote it"):
        run(config, results=tmp_path / "cut", progress=False)


def test_tensors_are_mapped_when_read_and_not_copied_when_written(tmp_path):
    values = {"table": torch.arange(4_000_000.0)}
    tracemalloc.start()  # counts Python's buffers, not tensors
    write_checkpoint(tmp_path, "mine", values)
    found = find_checkpoint(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4_000_000, "less than a quarter of what was written"
    saved = read_checkpoint(tmp_path, found, "mine", {})
    assert torch.equal(saved["table"], values["table"])
    if MAPS.exists():
        assert str(tmp_path / CHECKPOINT) in MAPS.read_text()


@pytest.mark.skipif(not MAPS.exists(), reason="only Linux says what is mapped")
def test_a_resumed_run_does_not_map_its_checkpoint(tmp_path, monkeypatch):
    """Windows cannot replace a file that is mapped."""
    config, mapped = tiny(class_optimizer="rowwise"), []
    cut(config, tmp_path, monkeypatch)
    run(config, results=tmp_path / "cut", progress=False, on_epoch=lambda _: mapped.append(MAPS.read_text()))
    assert len(mapped) == 1 and "checkpoint" not in mapped[0]


@pytest.mark.parametrize("changes", [dict(class_optimizer="rowwise"), dict(selection="last")])
def test_a_run_resumes_from_the_checkpoint_before_a_damaged_one(tmp_path, monkeypatch, changes):
    """The result is the same bit for bit, because the best weights are in the same file as the history."""
    config = tiny(**changes)
    whole = run(config, results=tmp_path / "whole", progress=False)
    cut(config, tmp_path, monkeypatch)
    folder = run_folder(config, tmp_path / "cut")
    content = bytearray((folder / CHECKPOINT).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.warns(UserWarning, match=USED):
        resumed = run(config, results=tmp_path / "cut", progress=False)
    assert_same_run(whole, resumed)
    assert [each["after_epochs"] for each in resumed.record["stretches"]] == [0, 1]
    assert sorted(p.name for p in resumed.path.iterdir()) == sorted(p.name for p in whole.path.iterdir())


def test_the_weights_are_of_the_best_epoch_in_the_history(tmp_path, monkeypatch):
    """The run is cut after the second epoch, its best, and loses the checkpoint of it. It resumes on a machine that
    rounds otherwise, where the second epoch is worse: now the first epoch is the best, and its weights are kept."""
    scores = iter([0.3, 0.5, 0.2, 0.1])
    monkeypatch.setattr("vptsp_core.runs.run.evaluate", lambda *_: {"R@1": next(scores), "MAP@R": 0.1})
    cut(tiny(), tmp_path, monkeypatch)
    folder = run_folder(tiny(), tmp_path / "cut")
    first = torch.load(folder / PREVIOUS, weights_only=True)["weights"]
    (folder / CHECKPOINT).write_bytes(b"")
    with pytest.warns(UserWarning, match=USED):
        done = run(tiny(), results=tmp_path / "cut", progress=False)
    assert done.metrics["R@1"] == 0.3 and done.metrics["epoch"] == 1
    kept = load_file(done.path / "model.safetensors")
    assert kept.keys() == first.keys() and all(torch.equal(kept[name], first[name]) for name in kept)


def test_files_that_a_killed_process_left_are_deleted(tmp_path):
    done = run(tiny(epochs=1), results=tmp_path, progress=False)
    whole = sorted(path.name for path in done.path.iterdir())
    for name in (CHECKPOINT, PREVIOUS, "progress.json", "lock"):
        (done.path / name).write_bytes(b"{")
    again = run(tiny(epochs=1), results=tmp_path, progress=False)
    assert again.metrics == done.metrics and sorted(path.name for path in done.path.iterdir()) == whole


def test_a_checkpoint_of_other_backbone_weights_is_refused(tmp_path):
    write_checkpoint(tmp_path, "mine", {"stretches": [{"data": {}, "weights": "a"}]})
    with pytest.raises(WeightsError, match="begun with other weights of the backbone"):
        read_checkpoint(tmp_path, find_checkpoint(tmp_path), "mine", {"data": {}, "weights": "b"})
