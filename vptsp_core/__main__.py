"""python -m vptsp_core COMMAND: the command line."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NoReturn

import vptsp_core
from vptsp_core.errors import VptspError, printable
from vptsp_core.system import distributed
from vptsp_core.system.signals import Terminated, sigterm_as_ctrl_c

COMMANDS = {  # the module whose ``main`` is the command, and what it does
    "train": ("deploy.train", "train one run, or show it if it is finished"),
    "evaluate": ("deploy.evaluate", "compute the metrics of a finished run"),
    "export": ("deploy.export", "export a trained model as one file: its learned weights, ONNX or torch.export"),
    "index": ("deploy.update", "embed a folder of images, or update its index"),
    "search": ("deploy.search", "find the nearest images of an index"),
    "tune": ("paper.search", "search the space of the paper's table 9"),
    "data": ("data.command", "get, check, describe or cache a data set"),
    "bench": ("paper.step_cost", "measure a training step"),
    "light": ("runs.light", "copy finished runs without their weights"),
    "notebooks": ("publish.runner", "execute the notebooks (run_all.sh calls this)"),
    "report": ("publish.page", "build the results page"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status. For an error that the user can fix, print one line and return 2.

    The status is 130 after Ctrl-C, 143 after SIGTERM, and 141 if the reader of the output has gone.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] == ["--version"]:
        print(f"vptsp-core {vptsp_core.__version__}")
        return 0
    if not argv or argv[0] not in COMMANDS:
        asked = argv[:1] in (["-h"], ["--help"])
        if argv and not asked:
            print(f"error: unknown command {printable(argv[0])!r}; the commands are listed here", file=sys.stderr)
        listing = "\n".join(f"  {name:10} {text}" for name, (_, text) in COMMANDS.items())
        print(f"usage: python -m vptsp_core COMMAND [--help], or --version\n\n{listing}")
        return 0 if asked else 2
    with contextlib.suppress(AttributeError):  # a file name can hold invalid text; some streams cannot reconfigure
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        # torchrun ends its processes itself; one that waits for the others would not handle the signal
        stop = contextlib.nullcontext() if "LOCAL_RANK" in os.environ else sigterm_as_ctrl_c()
        with stop, warnings.catch_warnings():
            warnings.showwarning = _warning_printer()  # type: ignore[assignment]  # ignores the other arguments
            command = importlib.import_module(f"vptsp_core.{COMMANDS[argv[0]][0]}").main
            shared = distributed.launched() and argv[0] in ("train", "evaluate")
            status = int((_together(command, argv[1:]) if shared else command(argv[1:])) or 0)
            print(end="", flush=True)  # stdout is None if it was closed
            return status
    except VptspError as error:
        print("error:", printable(" ".join(str(error).splitlines())), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again when it ends
        return 141  # the status of a process that SIGPIPE has ended
    except OSError as error:
        if error.filename is None:
            raise
        name = printable(str(error.filename))
        print(f"error: {name}: {error.strerror}; fix it, or name another place", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # of torch, which takes a second to import
            print("error: the GPU's memory is full; end what else uses it, or choose --device cpu", file=sys.stderr)
        elif "home directory" in str(error):
            print("error: a path begins with ~ and an unknown user name; write the path in full", file=sys.stderr)
        else:
            raise
        return 2
    except KeyboardInterrupt as error:
        print(error.args[0] if error.args else "stopped; run the same command again", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def _together(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command under torchrun. Only rank 0 prints its output; warnings come from every process. If processes fail,
    only the first to fail reports its error.
    """
    joined_before = distributed.joined()
    with contextlib.ExitStack() as stack:
        if os.environ["RANK"] != "0":
            nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            status = command(argv)
        except VptspError:
            if distributed.first_to_fail():
                raise
            return 2
        except RuntimeError:
            if not distributed.another_failed():
                raise
            return 2
    if not joined_before:  # not after a failure: the others may still wait for this process, so torchrun ends them all
        distributed.stop()
    return status


def _warning_printer() -> Callable[..., None]:
    """Return a function that prints each warning as one line, and the same line only once."""
    printed: set[str] = set()

    def show(message: Warning | str, *place: object) -> None:
        line = printable(" ".join(str(message).splitlines()))
        if line not in printed:
            printed.add(line)
            print("warning:", line, file=sys.stderr)

    return show


def leave(status: int) -> NoReturn:
    """End the process. After a failure under torchrun, skip Python's clean-up: the group of processes still exists
    (`_together`), and torch sometimes aborts when it cleans up such a group.
    """
    if status and "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
