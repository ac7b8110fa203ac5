"""Show the progress of long work: a bar in a terminal or a notebook, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm as auto
from tqdm.std import tqdm

EVERY = 10.0  # seconds between two lines of a log


def bar(
    iterable: Iterable[Any] | None = None, title: str = "", total: int | None = None, *, show: bool, **options: Any
) -> Any:
    """Return a tqdm bar with tqdm's ``options``. If stderr is a log, it writes a line every ten seconds instead.

    With ``show=False`` it shows nothing.
    """
    hidden = not show or sys.stderr is None
    if not is_log():
        return auto(iterable, title, total, disable=hidden, **options)
    form = "{desc}: {n_fmt}/{total_fmt} {unit}, {elapsed} taken, {remaining} left{postfix}"
    return tqdm(
        iterable, title, total, disable=hidden, file=_Lines(), bar_format=form, mininterval=EVERY, miniters=1,
        delay=EVERY, **{**options, "leave": False},
    )  # fmt: skip


def is_log() -> bool:
    """Return whether stderr is a file or a pipe (nohup, Slurm, CI), not a terminal or a notebook's output."""
    if sys.stderr is None:  # closed, for example by a daemon
        return False
    return not sys.stderr.isatty() and "ipykernel.zmqshell" not in sys.modules


def say(line: str) -> None:
    """Print a line at once if stderr is a log; otherwise the bars are enough."""
    if is_log():
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Format a duration for people.

    >>> duration(5), duration(192), duration(7260)
    ('5 s', '3 min 12 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {whole % 60} s"


def amount(count: float) -> str:
    """Format a number of bytes for people.

    >>> amount(1_250_000), amount(9.4e9)
    ('1.2 MB', '9.4 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


class _Lines:
    """A stream that prints tqdm's output on stderr as whole lines."""

    def write(self, text: str) -> None:
        for line in text.replace("\r", "\n").splitlines():
            if line.strip():
                print(line.rstrip(), file=sys.stderr, flush=True)

    def flush(self) -> None:
        """Do nothing: each line is already flushed."""
