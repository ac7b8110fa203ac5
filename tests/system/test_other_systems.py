"""Windows and macOS, simulated on Linux: a process without the modules and functions that either of them lacks.

Paths, open files that cannot be replaced (see `test_portable`) and other builds of the libraries are not simulated.
"""

import os
import subprocess
import sys
from pathlib import Path

import determinism

ROOT = Path(__file__).resolve().parents[2]
WITHOUT = """
import os, signal, sys
import distributed, filelock, multiprocessing.resource_tracker, psutil, torch  # these handle each system themselves

multiprocessing.resource_tracker._HAVE_SIGMASK = False
for module in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[module] = None
for name in (
    "sched_getaffinity", "posix_fallocate", "fdatasync", "fork", "register_at_fork", "pread", "pwrite", "getuid",
    "getgid", "killpg", "setsid", "mkfifo", "chown", "getloadavg",
):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGUSR1", "SIGALRM", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
"""
IMPORTS = """
import importlib, pkgutil, vptsp_core
for module in pkgutil.walk_packages(vptsp_core.__path__, "vptsp_core."):
    importlib.import_module(module.name)
"""
RUNS = """
from pathlib import Path
from vptsp_core.__main__ import main

def command(*arguments):
    assert main([str(each) for each in arguments]) == 0, arguments

folder, images = Path(sys.argv[1]), Path(sys.argv[2])
tiny = ["weights=random", "epochs=1", "steps_per_epoch=4", "batch=4", "samples_per_class=2", "eval_start=0"]
command("train", "--preset", "smoke", "--results", folder / "smoke", "--device", "cpu")
own = ["--data-folder", images, "--results", folder / "own", "--device", "cpu"]
command("train", *own, "--set", "backbone=vit_tiny_patch16_224", "image_size=32", "resize=32", *tiny, "pipeline=cached")
trained = next((folder / "own" / "runs").glob("own-vptsp-*"))
command("index", images, "--model", trained, "--to", folder / "index")
query = next(images.rglob("*.png"))
command("search", query, "--index", folder / "index", "--to", folder / "found")
assert (folder / "found.png").exists() and not list(folder.rglob("*.tmp")) and not list(folder.rglob("*lock"))
"""


def test_all_modules_import_and_training_own_images_index_and_search_work(tmp_path):
    """In one process, because importing takes longest."""
    images = determinism.write_images(tmp_path / "ein Ordner ü")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT + IMPORTS + RUNS, str(tmp_path / "out"), str(images)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
