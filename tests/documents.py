"""Help to test README.md and docs/*.md: find code blocks, record what they call, and parse it with the real parsers."""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import torch.distributed.run

from vptsp_core import __main__ as command_line
from vptsp_core.data import DATASETS
from vptsp_core.method.presets import parse_change, preset_or_demo
from vptsp_core.paper.methods import configured
from vptsp_core.publish.parameters import discover, panels_of, taken_parameters
from vptsp_core.publish.runner import check_use

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = {"conda", "jupyter", "srun", "scontrol", "hostname", "sleep", "pip"}  # programs whose options are not checked
STUBS = ("python", "python3", "torchrun", "dask", "conda", "jupyter", "srun", "scontrol", "hostname", "sleep", "pip")
# Python code that stands in for a program: it notes its call, and answers like Slurm.
STUB = """
import json, os, sys
name, *words = sys.argv[1:]
with open(os.environ["CALLS"], "a") as calls:
    calls.write(json.dumps([name, *words]) + "\\n")
if name == "hostname":
    print("n1")
elif name == "scontrol" and "hostnames" in words:
    print("n1\\nn2")
elif name == "srun":
    command = [at for at, word in enumerate(words) if not word.startswith("--")][0]
    os.execvp(words[command], words[command:])
"""


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text("utf-8"), re.S | re.M)
    return [code for language, code in found if language in languages]


def spans(text: str) -> list[str]:
    """Return inline code outside of blocks, each on one line."""
    text = re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]


class Parsed(Exception):
    """Stops a command after parsing; holds its options."""

    def __init__(self, options):
        self.options = options


def parse_ours(monkeypatch, words: list[str]) -> argparse.Namespace:
    """Return the options of `python -m vptsp_core WORDS`, parsed by its own parser and checked."""
    original = argparse.ArgumentParser.parse_args

    def parse_args(parser, *given, **named):
        raise Parsed(original(parser, *given, **named))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.delenv("LOCAL_RANK", raising=False)
        try:
            status = command_line.main(words)
        except SystemExit as ended:
            assert ended.code == 0 and {"-h", "--help"} & set(words), f"{shlex.join(words)} is refused"
            return argparse.Namespace()
        except Parsed as parsed:
            options = parsed.options
        else:
            raise AssertionError(f"{shlex.join(words)} parses nothing: status {status}")
    check(words[0], options)
    return options


def check(command: str, options: argparse.Namespace) -> None:
    """Check the values that argparse does not check."""
    changes = dict(map(parse_change, getattr(options, "changes", [])))
    if command == "notebooks":
        only = panels_of(options.only or [])[0]
        given = {name: value for name in ("data", "seeds", "workers") if (value := getattr(options, name))}
        values = {"profile": options.profile, "results": "results", "changes": changes, **given}
        configured(options.profile, {}, changes)
        notebooks = discover(only, profile=options.profile)
        check_use([(path, taken_parameters(path, values)) for path in notebooks], values, options.profile)
    elif hasattr(options, "preset"):
        if getattr(options, "method", None):
            changes["method"] = options.method
        name = options.preset
        preset_or_demo("cub200-vits16" if name and name.endswith(".json") else name, changes)
    for name in ("class_table", "checkpointing", "compile"):
        allowed = ("auto", "device", "host") if name == "class_table" else ("auto", "on", "off")
        assert getattr(options, name, "auto") in allowed
    if command == "data" and options.name not in (None, "NAME"):
        assert options.name in DATASETS


def called(monkeypatch, words: list[str]) -> argparse.Namespace | None:
    """Return the options of a whole command, by its own parser, or None if it has none."""
    program, *rest = words
    if program in ("python", "python3") and rest[:2] == ["-m", "vptsp_core"]:
        return parse_ours(monkeypatch, rest[2:])
    if program in ("python", "python3") and rest[0] == "-m":
        assert importlib.util.find_spec(rest[1]), f"no module {rest[1]}"
        return None
    if program in ("python", "python3"):
        assert (ROOT / rest[0]).is_file(), f"no script {rest[0]}"
        return None
    if program == "torchrun":
        options = torch.distributed.run.get_args_parser().parse_args(rest)
        assert options.module and options.training_script == "vptsp_core"
        return parse_ours(monkeypatch, options.training_script_args)
    if program == "dask":
        from distributed.cli import dask_scheduler, dask_worker

        main = {"scheduler": dask_scheduler.main, "worker": dask_worker.main}[rest[0]]
        context = main.make_context(f"dask {rest[0]}", rest[1:])
        assert not [word for word in main.make_parser(context).parse_args(rest[1:])[1] if word.startswith("-")]
        return None
    assert program in OTHERS, f"unknown program {program}"
    files = [word for word in rest if word.endswith((".yml", ".ipynb"))]
    assert all((ROOT / word).is_file() for word in files)
    return None


def calls_of(script: str, folder: Path) -> list[list[str]]:
    """Run a block in a checkout that has only run_all.sh, with stand-ins for all programs.

    Returns:
        The words of each call, after the shell's expansion. A call of `./run_all.sh` appears as its call of python.
    """
    bash = shutil.which("bash")
    assert bash, "needs bash"
    checkout, record = folder / "vptsp", folder / "calls"
    (checkout / "vptsp_core").mkdir(parents=True)
    for name in ("run_all.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, checkout)
    for place in ("DIR", "SHARED/data", "SHARED/results"):
        (checkout / place).mkdir(parents=True)
    (folder / "data").mkdir()
    stubs = folder / "stubs" / "bin"
    stubs.mkdir(parents=True)
    for name in STUBS:
        command = shlex.join([sys.executable, "-IS", "-c", STUB, name])
        (stubs / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (stubs / name).chmod(0o755)
    record.touch()
    environment = {
        "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder),
        "VIRTUAL_ENV": str(folder / "stubs"), "CALLS": str(record), "SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_PER_TASK": "8",
    }  # fmt: skip
    subprocess.run([bash, "-n"], input=script, text=True, check=True)
    done = subprocess.run(
        [bash, "-euo", "pipefail"], input=script + "\nwait\n", cwd=checkout, env=environment, text=True,
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, f"status {done.returncode}: {done.stdout}{done.stderr}"
    lines = record.read_text().splitlines()
    own = (["-"], ["-c"])  # run_all.sh's own checks
    calls = [words for words in map(json.loads, lines) if words[1:2] not in own]
    return [[word for word in words if word != "-P"] for words in calls]
