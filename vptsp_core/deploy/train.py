"""python -m vptsp_core train: train a run, or plan and train one for a folder of your own images."""

from __future__ import annotations

import argparse
import functools
import time
import warnings
from collections.abc import Sequence

from vptsp_core.data import refuse_unread
from vptsp_core.deploy.own_images import train_folder
from vptsp_core.errors import ConfigError, refuse_empty
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS, parse_change, preset_or_demo
from vptsp_core.runs.folder import METRICS, Run
from vptsp_core.runs.run import run
from vptsp_core.system.deterministic import fix_cublas
from vptsp_core.system.devices import pick_device
from vptsp_core.system.distributed import launched, start

EXAMPLES = """\
example:
  python -m vptsp_core train --preset cub200-vits16 --data DIR --set seed=1
several GPUs, one process each:
  torchrun --nproc-per-node 4 -m vptsp_core train ...
two machines: the same command on both, and results in a folder that both see:
  torchrun --nnodes 2 --nproc-per-node 4 --rdzv-backend c10d --rdzv-endpoint FIRST_MACHINE:29500 \\
    -m vptsp_core train ... --results SHARED_DIR
"""


def main(argv: Sequence[str]) -> int:
    """Train what the command line asks for, print its metrics, and return the exit status.

    Raises ConfigError if an option or a key cannot be used, and the errors of `run` and `train_folder`.
    """
    parser = argparse.ArgumentParser(
        "python -m vptsp_core train",
        usage="%(prog)s [--preset NAME | --data-folder DIR] [--set KEY=VALUE ...] [--data DIR] [option ...]",
        description="train one run, or show it if it is finished; a run that was cut short resumes",
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
    files.add_argument("--allow-partial", action="store_true", help="accept an incomplete data set, with a warning")
    files.add_argument("--results", metavar="DIR", help="default: VPTSP_RESULTS, or else ./results")
    files.add_argument("--cache", metavar="DIR", help="decoded images (default: VPTSP_CACHE, or else .vptsp-cache in "
                       "--data; for your own images in --results)")  # fmt: skip
    files.add_argument("--tensorboard", metavar="DIR", help="curves after every epoch and a retrieval grid at the end")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    machine.add_argument("--class-table", default="auto", metavar="WHERE", help="class prompts: auto, device or host")
    machine.add_argument("--checkpointing", default="auto", metavar="WHEN", help="of gradients: auto, on or off")
    machine.add_argument("--compile", default="auto", metavar="WHEN", help="steps: auto (long runs on a GPU), on, off")
    machine.add_argument("--deterministic", action="store_true", help="the same numbers twice on a GPU, more slowly")
    args = parser.parse_args(argv)
    if args.deterministic:
        fix_cublas(args.device)  # before the group starts CUDA
    if launched():  # before anything can fail: the group knows which process failed
        start(pick_device(args.device))
    begun = time.time()
    changes = dict(parse_change(change) for change in args.changes)
    others = ("preset", "data_folder", "changes", "data")
    options = {name: value for name, value in vars(args).items() if name not in others}
    refuse_empty(vars(args))
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


def _say_if_finished_before(done: Run, begun: float) -> None:
    if (done.path / METRICS).stat().st_mtime < begun:
        print(f"This run was finished before, so it was not trained. To train it again, delete {done.path}.")


def _show_in_tensorboard(done: Run, folder: str | None, data: str | None, device: str | None) -> None:
    if folder is not None:
        from vptsp_core.figures.board import show_finished  # tensorboard is optional

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
        what = f"dataset = {config.dataset!r}, method = {config.method!r}, pipeline = {config.pipeline!r}"
        warnings.warn(f"{', '.join(options)}: this run does not use it ({what})", stacklevel=2)
