"""python -m vptsp_core COMMAND: the command line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib
import os
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn

import vptsp_core
from vptsp_core.errors import ConfigError, VptspError, printable
from vptsp_core.system.signals import Terminated, sigterm_as_ctrl_c

if TYPE_CHECKING:
    from vptsp_core.method.config import RunConfig
    from vptsp_core.runs.folder import Run

COMMANDS = {
    "train": "train one run, or show it if it is finished",
    "evaluate": "compute the metrics of a finished run",
    "export": "export a trained model as one file: its learned weights, ONNX or torch.export",
    "index": "embed a folder of images, or update its index",
    "search": "find the nearest images of an index",
    "tune": "search the space of the paper's table 9",
    "data": "get, check, describe or cache a data set",
    "bench": "measure a training step",
    "light": "copy finished runs without their weights",
    "notebooks": "execute the notebooks (run_all.sh calls this)",
    "report": "build the results page",
}
MODULES = {  # the module whose ``main`` is the command; the other commands are here
    "data": "data.command", "bench": "paper.step_cost", "tune": "paper.search", "light": "runs.light",
    "notebooks": "publish.runner", "report": "publish.page", "export": "deploy.export", "index": "deploy.update",
    "search": "deploy.search",
}  # fmt: skip
EXAMPLES = """\
example:
  python -m vptsp_core train --preset cub200-vits16 --data DIR --set seed=1
several GPUs, one process each:
  torchrun --nproc-per-node 4 -m vptsp_core train ...
two machines: the same command on both, and results in a folder that both see:
  torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \\
    -m vptsp_core train ... --results SHARED_DIR
"""
ALLOW_PARTIAL = "accept, with a warning, a data set that is not the whole published one"


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
        listing = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        print(f"usage: python -m vptsp_core COMMAND [--help], or --version\n\n{listing}")
        return 0 if asked else 2
    with contextlib.suppress(AttributeError):  # a file name can hold invalid text; some streams cannot reconfigure
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        # torchrun ends its processes itself; one that waits for the others would not handle the signal
        stop = contextlib.nullcontext() if "LOCAL_RANK" in os.environ else sigterm_as_ctrl_c()
        with stop, warnings.catch_warnings():
            warnings.showwarning = _warning_printer()  # type: ignore[assignment]  # ignores the other arguments
            if argv[0] in MODULES:
                module = importlib.import_module(f"vptsp_core.{MODULES[argv[0]]}")
                status = int(module.main(argv[1:]) or 0)
            else:
                command = _train if argv[0] == "train" else _evaluate
                status = _together(command, argv[1:]) if "LOCAL_RANK" in os.environ else command(argv[1:])
            sys.stdout.flush()
            return status
    except VptspError as error:
        print("error:", printable(" ".join(str(error).splitlines())), file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail again when it ends
        return 141  # as of a process that SIGPIPE ends
    except OSError as error:
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}; fix it, or name another place", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if "home directory" not in str(error):
            raise
        print("error: a path begins with ~ and an unknown user name; write the path in full", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print(error.args[0] if error.args else "stopped; the same command resumes", file=sys.stderr)
        return 143 if isinstance(error, Terminated) else 130


def _together(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command under torchrun. Only rank 0 prints its output; warnings come from every process. If processes fail,
    only the first to fail reports its error.
    """
    from vptsp_core.system import distributed

    if not distributed.launched():
        return command(argv)
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


def _join(device: str | None) -> None:
    """Under torchrun, join the process group. Do it before anything can fail: the group knows which process failed."""
    if "LOCAL_RANK" in os.environ:
        from vptsp_core.system.devices import pick_device
        from vptsp_core.system.distributed import start

        start(pick_device(device))


def _warning_printer() -> Callable[..., None]:
    """Return a function that prints each warning as one line, and the same line only once."""
    printed: set[str] = set()

    def show(message: Warning | str, *place: object) -> None:
        line = printable(" ".join(str(message).splitlines()))
        if line not in printed:
            printed.add(line)
            print("warning:", line, file=sys.stderr)

    return show


def _train(argv: Sequence[str]) -> int:
    from vptsp_core.data import refuse_unread
    from vptsp_core.deploy.own_images import train_folder
    from vptsp_core.method.presets import PRESETS, parse_change, preset_or_demo
    from vptsp_core.runs.run import run
    from vptsp_core.system.deterministic import fix_cublas

    parser = argparse.ArgumentParser(
        "python -m vptsp_core train",
        usage="%(prog)s [--preset NAME | --data-folder DIR] [--set KEY=VALUE ...] [--data DIR] [option ...]",
        description=f"{COMMANDS['train']}; a run that was cut short resumes",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_argument_group("what to train")
    which = what.add_mutually_exclusive_group()
    which.add_argument("--preset", metavar="NAME",
                       help=f"{', '.join(PRESETS)}, or a .json file (default: demo)")  # fmt: skip
    which.add_argument("--data-folder", metavar="DIR", help="your own images, <class>/<image> or split.csv: plan a "
                       "run for them, and compare it with the frozen backbone")  # fmt: skip
    what.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        dest="changes",
        help="keys of RunConfig, such as alpha=0.2 seed=1; the last value of a key is used",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--data", metavar="DIR", help="folder of the data sets: DIR/cub200/images/... (default: the "
                       "environment's VPTSP_DATA)")  # fmt: skip
    files.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    files.add_argument("--results", metavar="DIR", help="default: results")
    files.add_argument("--cache", metavar="DIR", help="decoded images (default: .vptsp-cache in --data, for your own "
                       "images in --results)")  # fmt: skip
    files.add_argument("--tensorboard", metavar="DIR", help="curves after every epoch and a retrieval grid at the end")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    machine.add_argument("--class-table", default="auto", metavar="WHERE", help="class prompts: auto, device or host")
    machine.add_argument("--checkpointing", default="auto", metavar="WHEN", help="of gradients: auto, on or off")
    machine.add_argument("--compile", default="auto", metavar="WHEN", help="steps: auto (long runs on a GPU), on, off")
    machine.add_argument("--deterministic", action="store_true", help="the same numbers twice on a GPU, more slowly")
    args = parser.parse_args(argv)
    if args.deterministic:
        fix_cublas(args.device)  # before _join, which starts CUDA
    _join(args.device)
    begun = time.time()
    changes = dict(parse_change(change) for change in args.changes)
    others = ("preset", "data_folder", "changes", "data")
    options = {name: value for name, value in vars(args).items() if name not in others}
    _refuse_empty(args)
    if args.data_folder is not None:
        if args.data:
            raise ConfigError(f"--data {args.data} cannot be used with --data-folder {args.data_folder}; leave it out")
        own = train_folder(args.data_folder, changes, say=functools.partial(print, flush=True), **options)
        _show_in_tensorboard(own.run, args.tensorboard, args.data_folder, args.device)
        _say_if_finished_before(own.run, begun)
        return 0
    config = preset_or_demo(args.preset, changes)
    refuse_unread(config.dataset, args.data)
    _warn_unused(args, config)
    done = run(config, data=args.data, light=False, **options)
    _show_in_tensorboard(done, args.tensorboard, args.data, args.device)
    _say_if_finished_before(done, begun)
    print(done.history.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"{done.path}\n" + "  ".join(f"{k} {v:.4f}" for k, v in done.metrics.items() if k != "epoch"))
    return 0


def _refuse_empty(args: argparse.Namespace) -> None:
    """Refuse an option whose value is empty, for example an unset shell variable. Raises ConfigError."""
    for option, value in vars(args).items():
        if value == "":
            raise ConfigError(f"--{option.replace('_', '-')} is empty; give a value, or leave it out")


def _say_if_finished_before(done: Run, begun: float) -> None:
    from vptsp_core.runs.folder import METRICS

    if (done.path / METRICS).stat().st_mtime < begun:
        print(f"This run was finished before, so it was not trained. To train it again, delete {done.path}.")


def _show_in_tensorboard(done: Run, folder: str | None, data: str | None, device: str | None) -> None:
    if folder is not None:
        from vptsp_core.figures.board import show_finished

        show_finished(done, folder, data, device)


def _warn_unused(args: argparse.Namespace, config: RunConfig) -> None:
    """Warn, in one line, of options of `train` that this run does not use."""
    glyphs, frozen = config.dataset == "glyphs", config.method == "frozen"
    unused = {
        "--cache": args.cache and (glyphs or config.pipeline == "classic"),
        "--allow-partial": args.allow_partial and glyphs,
        "--class-table": args.class_table != "auto" and not config.has_class_prompts,
        "--checkpointing": args.checkpointing == "on" and frozen,
        "--compile": args.compile == "on" and frozen,
    }
    if options := [name for name, given in unused.items() if given]:
        run = f"dataset = {config.dataset!r}, method = {config.method!r}, pipeline = {config.pipeline!r}"
        warnings.warn(f"{', '.join(options)}: this run does not use it ({run})", stacklevel=2)


def _evaluate(argv: Sequence[str]) -> int:
    from vptsp_core.data import load_benchmark, refuse_unread
    from vptsp_core.method.faiss_index import BACKENDS, installed
    from vptsp_core.runs.embedder import load
    from vptsp_core.runs.evaluate import evaluate
    from vptsp_core.system.distributed import is_main

    parser = argparse.ArgumentParser("python -m vptsp_core evaluate", description=COMMANDS["evaluate"])
    parser.add_argument("run", help="folder of a finished run, a saved embedder, or hf://ORG/NAME")
    parser.add_argument("--weights", metavar="FILE", help="the backbone's weights, if they have moved since")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets (default: VPTSP_DATA)")
    parser.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    parser.add_argument("--backend", choices=BACKENDS, default="torch", help="library that searches (default: torch)")
    args = parser.parse_args(argv)
    _refuse_empty(args)
    _join(args.device)
    embedder = load(args.run, args.device, weights=args.weights)
    refuse_unread(embedder.model.config.dataset, args.data)
    benchmark = load_benchmark(embedder.model.config.dataset, args.data, args.allow_partial)
    if embedder.data is not None:
        _warn_of_other_images(embedder.data, benchmark.record())
    metrics = evaluate(embedder.model, benchmark, args.backend, progress=is_main())
    print("  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    if args.backend == "faiss":
        print(f"searched by {installed()}")
    return 0


def _warn_of_other_images(of_run: Mapping[str, object], now: Mapping[str, object]) -> None:
    """Warn if these are not the images that the run was tested on: the run may have been trained on their classes."""
    other = [split for split in ("test", "gallery") if of_run.get(split) != now.get(split)]
    if other:
        warnings.warn(
            f"these are not the {' and '.join(other)} images that the run was tested on: the run may have been trained "
            "on some of their classes, and then the numbers are too high",
            stacklevel=2,
        )


def leave(status: int) -> NoReturn:
    """End the process. After a failure under torchrun, skip Python's clean-up: the group of processes still exists
    then (`_together`), and torch sometimes aborts while it is cleaned up.
    """
    if status and "LOCAL_RANK" in os.environ:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


if __name__ == "__main__":
    leave(main())
