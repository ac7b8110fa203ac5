"""Progress of long work: a bar in a terminal or a notebook, plain lines in a log."""

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
    """A tqdm bar; where stderr is a log, the same object writes a line every ten seconds.

    Args:
        show: False shows nothing.
        options: of tqdm, such as ``unit``.
    """
    kind = Lines if is_log() else auto
    return kind(iterable, title, total, disable=not show or sys.stderr is None, **options)


def is_log() -> bool:
    """Whether stderr is a file or a pipe (nohup, Slurm, CI): neither a terminal nor a notebook's output."""
    if sys.stderr is None:  # closed, as by a daemon: there is nobody to write for
        return False
    return not sys.stderr.isatty() and "ipykernel.zmqshell" not in sys.modules


def say(line: str) -> None:
    """One line in a log, at once; silent where there are bars."""
    if is_log():
        print(line, file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """For people.

    >>> duration(5), duration(192), duration(7260)
    ('5 s', '3 min 12 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, hours = whole // 60, whole // 3600
    return f"{hours} h {minutes % 60} min" if hours else f"{minutes} min {whole % 60} s"


def amount(count: float) -> str:
    """Bytes for people.

    >>> amount(1_250_000), amount(1.2e11)
    ('1.2 MB', '120.0 GB')
    """
    return f"{count / 1e9:.1f} GB" if count >= 1e10 else f"{count / 1e6:.1f} MB"


class Lines(tqdm):
    """tqdm that writes whole lines: what is done, of how much, and the time left. Short work writes none."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "mininterval": EVERY, "miniters": 1, "delay": EVERY})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Write the line of this moment; both arguments are tqdm's, for bars."""
        done = self.format_dict
        of, left = f"/{self._count(done['total'])}" if done["total"] else "", ""
        fresh = done["n"] - done["initial"]
        if done["total"] and fresh and done["n"] < done["total"]:
            left = f", {duration(done['elapsed'] * (done['total'] - done['n']) / fresh)} left"
        beside = f" ({done['postfix']})" if done["postfix"] else ""
        unit = done["unit"].strip()
        line = f"{done['prefix']}: {self._count(done['n'])}{of} {unit}, {duration(done['elapsed'])} taken{left}{beside}"
        print(line, file=sys.stderr, flush=True)
        return True

    def clear(self, nolock: bool = False) -> None:
        """Nothing: whole lines need not be wiped before another one is written."""

    @classmethod
    def write(cls, s: str, file: Any = None, end: str = "\n", nolock: bool = False) -> None:
        """Write a line of other text, as tqdm's method does beside bars."""
        print(s, file=file or sys.stdout, end=end, flush=True)

    def close(self) -> None:
        """End without a last line: the command itself says what came of it."""
        if not self.disable:
            self.disable: bool = True
            self._decr_instances(self)

    def _count(self, number: int) -> str:
        return self.format_sizeof(number, divisor=self.unit_divisor) if self.unit_scale else f"{number:,}"
