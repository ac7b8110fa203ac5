"""Progress: bars in a terminal, whole lines in a log."""

import os
import sys
import types
from pathlib import Path

import pytest

from vptsp_core.__main__ import main
from vptsp_core.runs import evaluate as evaluation
from vptsp_core.runs.train import epoch_line
from vptsp_core.system import bars
from vptsp_core.system.bars import bar, duration, is_log, say

TRAIN = ["train", "--preset", "smoke", "--set"]


@pytest.mark.parametrize(
    "seconds, words", [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (7260, "2 h 1 min")]
)
def test_durations_are_readable(seconds, words):
    assert duration(seconds) == words


def counted(capfd, monkeypatch, *, every, **options):
    monkeypatch.setattr(bars, "EVERY", every)
    assert is_log()  # pytest captures stderr in a file
    assert list(bar(range(30), "counting", 30, unit="images", **options)) == list(range(30))
    return capfd.readouterr().err


def test_a_log_gets_whole_lines(capfd, monkeypatch):
    monkeypatch.setattr("tqdm.std.time", iter(range(1_000_000)).__next__)  # a second passes whenever tqdm looks
    said = counted(capfd, monkeypatch, every=10.0, show=True)
    lines = said.splitlines()
    assert 2 <= len(lines) <= 4 and "\r" not in said and "\x1b" not in said
    assert lines[0].startswith("counting: ") and "/30 images, " in lines[0] and lines[0].endswith(" left")
    assert len(set(lines)) == len(lines)


def test_short_work_and_hidden_work_print_nothing(capfd, monkeypatch):
    assert counted(capfd, monkeypatch, every=10.0, show=True) == ""
    assert counted(capfd, monkeypatch, every=0.0, show=False) == ""


def test_other_text_between_lines_has_no_control_characters(capfd, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 0.0)
    with bar(title="runs", total=2, unit="runs", show=True) as first, bar(title="images", total=9, show=True):
        capfd.readouterr()
        first.write("a run failed", file=sys.stderr)
        assert capfd.readouterr() == ("", "a run failed\n")


def test_a_notebook_is_not_a_log(capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel.zmqshell", types.ModuleType("zmqshell"))
    say("training")
    assert not is_log() and capfd.readouterr().err == ""


def test_a_closed_stderr_gets_nothing(capfd, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    say("training")
    assert list(bar(range(3), show=True)) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


def test_an_epoch_is_a_line():
    row = {"epoch": 3, "loss": 1.23456, "seconds": 61.2}
    assert epoch_line(row, 15, 734.0) == "epoch 3/15: loss 1.235, 61 s, 12 min 14 s left"
    assert epoch_line({**row, "R@1": 0.7061}, 3, 0.0) == "epoch 3/3: loss 1.235, R@1 70.6, 61 s"
    held_out = {"validation R@1": 0.7061, "validation MAP@R": 0.4}
    assert ", validation R@1 70.6, validation MAP@R 40.0, 61 s" in epoch_line({**row, **held_out}, 15, 1.0)


def test_the_log_of_a_run(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(bars, "EVERY", 1e9)  # no progress line, however long it takes
    command = [*TRAIN, "epochs=2", "--results", str(tmp_path)]
    assert main(command) == 0
    done = capfd.readouterr()
    first, *epochs = done.err.splitlines()
    name = Path(done.out.splitlines()[-2]).name
    assert first == f"{name}: training vptsp on 500 images, epochs 1 to 2 of 3 steps"
    assert [line.split(":")[:2] for line in epochs] == [[name, " epoch 1/2"], [name, " epoch 2/2"]]
    assert " left" in epochs[0] and "R@1" in epochs[0] and " left" not in epochs[1]
    assert main(command) == 0
    again = capfd.readouterr()
    finished, *shown = again.out.splitlines()
    assert finished.startswith("This run was finished before") and name in finished
    assert shown == done.out.splitlines() and again.err == ""


FROZEN, CLOSED_FORM = "method=frozen", "method=linear start=heads epochs=0"


@pytest.mark.parametrize(
    "changes, said",
    [
        (FROZEN, ["evaluating the frozen backbone", "finding the nearest images of 500 queries"]),
        (CLOSED_FORM, ["starting linear from its 500 images", "started from the data, R@1 "]),
    ],
)
def test_runs_without_epochs_are_in_the_log_too(tmp_path, capfd, monkeypatch, changes, said):
    monkeypatch.setattr(bars, "EVERY", 1e9)
    monkeypatch.setattr(evaluation, "LONG_SEARCH", 500 * 500)  # the images of the test split, with each other
    command = ["train", "--preset", "smoke", "--results", str(tmp_path), "--set", "bitfit=false"]
    assert main([*command, *changes.split()]) == 0
    captured = capfd.readouterr()
    name, lines = Path(captured.out.splitlines()[-2]).name, captured.err.splitlines()
    assert len(lines) == len(said) and lines[0] == f"{name}: {said[0]}" and said[1] in lines[1]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_has_bars_and_none_of_these_lines(tmp_path, capsys, monkeypatch):
    ours, terminal = os.openpty()
    import termios

    termios.tcsetwinsize(terminal, (24, 80))  # without columns tqdm draws nothing
    os.set_blocking(ours, False)  # without bars the test fails instead of waiting
    with os.fdopen(terminal, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        assert main([*TRAIN, "epochs=1", "--results", str(tmp_path)]) == 0
        shown = os.read(ours, 65536).decode()  # before the other end closes: then reading fails
    os.close(ours)
    assert "epoch 1/1: " in shown and "\r" in shown
    assert "training" not in shown and "loss" not in shown and "loss" in capsys.readouterr().out
