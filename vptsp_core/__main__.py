"""python -m vptsp_core train|evaluate|data|bench|pretrain|notebooks: the command line."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
import warnings
from collections.abc import Sequence

from vptsp_core.errors import ConfigError, VptspError

COMMANDS = {
    "train": "train one run, or find it finished",
    "evaluate": "metrics of a finished run",
    "data": "get, check, describe or cache a data set",
    "bench": "measure the step or the metrics",
    "pretrain": "make the embedded demo ViT again",
    "notebooks": "execute the notebooks (what run_all.sh calls)",
}
ALLOW_PARTIAL = "go on, with a warning, where the data set is not the whole published one"


def main(argv: Sequence[str] | None = None) -> int:
    """Dispatch; errors that the user can mend are one line and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help") or argv[0] not in COMMANDS:
        listing = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
        print(f"usage: python -m vptsp_core COMMAND [--help]\n\n{listing}")
        return 0 if argv and argv[0] in ("-h", "--help") else 2
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _one_line  # type: ignore[assignment]  # takes whatever comes
            if argv[0] in ("train", "evaluate"):
                return {"train": _train, "evaluate": _evaluate}[argv[0]](argv[1:])
            module = {"data": "data.command"}.get(argv[0], argv[0])
            return int(importlib.import_module(f"vptsp_core.{module}").main(argv[1:]) or 0)
    except VptspError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on where it was", file=sys.stderr)
        return 130


def _one_line(message: Warning | str, *place: object) -> None:
    print(f"warning: {message}", file=sys.stderr)


def _train(argv: Sequence[str]) -> int:
    from vptsp_core.presets import PRESETS, preset
    from vptsp_core.study import run

    parser = argparse.ArgumentParser("python -m vptsp_core train", description=COMMANDS["train"])
    parser.add_argument("--preset", default="demo", help=f"one of {', '.join(PRESETS)} (default: demo)")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", dest="changes", help="e.g. alpha=0.2 seed=1"
    )
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets, e.g. cub200/images/...")
    parser.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    parser.add_argument("--results", metavar="DIR", default=None, help="default: ./results")
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    config = preset(args.preset, **dict(parse_change(change) for change in args.changes))
    places = {"data": args.data, "results": args.results, "device": args.device}
    done = run(config, **places, allow_partial=args.allow_partial, progress=sys.stderr.isatty())
    print(done.history.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
    print(f"{done.path}\n" + "  ".join(f"{k} {v:.4f}" for k, v in done.metrics.items() if k != "epoch"))
    return 0


def parse_change(text: str) -> tuple[str, object]:
    """``key=value``, the value as JSON where it is JSON, else as the string it is.

    >>> parse_change("alpha=0.2"), parse_change("accumulator=ema")
    (('alpha', 0.2), ('accumulator', 'ema'))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set {text}: write KEY=VALUE")
    try:
        return key, {"True": True, "False": False, "None": None}[value] if value in (
            "True",
            "False",
            "None",
        ) else json.loads(value)
    except ValueError:
        return key, value


def _evaluate(argv: Sequence[str]) -> int:
    from vptsp_core.data import load_benchmark
    from vptsp_core.evaluate import evaluate, load

    parser = argparse.ArgumentParser("python -m vptsp_core evaluate", description=COMMANDS["evaluate"])
    parser.add_argument("run", help="folder of a finished run")
    parser.add_argument("--data", metavar="DIR", help="folder that holds the data sets")
    parser.add_argument("--allow-partial", action="store_true", help=ALLOW_PARTIAL)
    parser.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    args = parser.parse_args(argv)
    embedder = load(args.run, args.device)
    benchmark = load_benchmark(embedder.model.config.dataset, args.data, args.allow_partial)
    metrics = evaluate(embedder.model, benchmark)
    print("  ".join(f"{key} {value:.4f}" for key, value in metrics.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
