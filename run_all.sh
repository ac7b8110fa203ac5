#!/usr/bin/env bash
# Makes all results of this project with one command; see usage() below or ./run_all.sh --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [--profile demo|smoke|tiny|paper] [--data DIR] [--results DIR] [--only table1,fig3d] [--seeds 0,1,2]
                    [--workers N|gpus | --cluster tcp://HOST:PORT] [--set KEY=VALUE]... [--dry-run]
       ./run_all.sh test

Executes the notebooks. Writes executed copies, HTML, figures and tables to the results folder, and a page that shows
all results: index.html.

  --profile   demo (default): embedded data, no download, no GPU needed
              smoke: the demo with a few steps per run
              tiny: tables 1, 4, 5 and 7, figures 3 and 4, and what_holds and why_behind, on CUB-200 with a ViT-Ti, without
                a GPU
              paper: the real benchmarks and weights
  --data      folder of the real data sets (profiles tiny and paper)
  --results   folder to write to (default: results/ in this checkout)
  --only      the notebooks to run, by the beginnings of their names; fig3d is panel d of figure 3
  --seeds     seeds for the notebooks that have seeds (default: 0; profile tiny: those of its protocol, docs/tiny.md)
  --workers   train runs in parallel on this machine: in N processes, or gpus for one process per GPU
              default: one run after another, but the demo on a CPU uses one process per core (at most 8)
  --cluster   train runs in parallel on a running Dask cluster; every machine must see the folders of results and data
  --set       change a key of RunConfig for every run, for example epochs=2; may be repeated
  --dry-run   list each notebook's finished and missing runs, and estimate the time of the missing runs from finished
              ones; nothing is trained or installed
  test        run the linter, the type checker and the tests

A second call does only what is missing. A finished run is found by the hash of its settings. A notebook is not executed
again if its source, its parameters, the package and its results are unchanged; to execute it again, delete its copy in
<results>/<profile>/notebooks/. Ctrl-C and SIGTERM stop the call within seconds, and the same command resumes it. Two
calls at the same time share the work, once the environment is installed.

Exit status: 0: everything is finished; 1: a notebook or the installation failed, and the end of the output says which;
2: an option is wrong, or no environment can be made; 130 or 143: stopped.

Uses the active environment (virtualenv, conda or the python on PATH) if it has the packages that pyproject.toml asks
for. Otherwise makes .venv in this checkout, with Python 3.11 to 3.14, and installs the pinned requirements once. If no
such Python is installed, uv provides one, if uv is installed.
TEXT
}

fail() { echo "error: $1" >&2; exit 2; }
note() { echo "run_all.sh: $1" >&2; }

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
mode=notebooks dry=''
[[ " $* " != *" --help "* && " $* " != *" -h "* ]] || { usage; exit 0; }
case ${1-} in
  test) (($# == 1)) || fail "test takes no options, but there is $2"; mode=test ;;
esac
[[ " $* " != *" --dry-run "* ]] || dry=--dry-run # then nothing is installed

# ---- environment -----------------------------------------------------------------------------------------------
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

# fits PYTHON: whether it is supported and has every package that pyproject.toml asks for, at an accepted version (for
# `test` also those of the extra `dev`). Reads metadata only, so it takes a fraction of a second. It prints a line only
# if an installed torch has another version.
fits() {
  supported "$1" || return 1
  "$1" - "$root/pyproject.toml" "$mode" 3>&2 2>/dev/null >&3 <<'PYTHON' # its stdout becomes stderr
import importlib.metadata as metadata
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.version import Version

with open(sys.argv[1], "rb") as file:
    project = tomllib.load(file)["project"]
wanted = project["dependencies"] + (project["optional-dependencies"]["dev"] if sys.argv[2] == "test" else [])
fitting = True
for requirement in map(Requirement, wanted):
    try:
        have = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        fitting = False
        continue
    if not requirement.specifier.contains(Version(have), prereleases=True):
        fitting = False
        if requirement.name == "torch":
            print(f"torch {have} of {sys.executable} is not {requirement.specifier}: not using that environment")
sys.exit(not fitting)
PYTHON
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; }

# Sets `python` to that of .venv, after making or updating .venv if necessary. The stamp says what was installed. While
# it says "unfinished", .venv is made again.
own_environment() {
  local venv=$root/.venv stamp=$root/.venv/.vptsp-stamp
  local pins=requirements.txt wanted have='' candidate
  [[ $mode != test ]] || pins=requirements-dev.txt
  wanted="$(cat -- "$root"/requirements*.txt | cksum)"
  python=$venv/bin/python
  [[ ! -f $stamp ]] || have=$(<"$stamp")
  if [[ -z $have ]] && fits "$python"; then return; fi  # a .venv that somebody else made
  [[ -n $have ]] || ! supported "$python" ||
    fail "$venv was not made by this script and lacks packages; activate an environment that has them, or delete it"
  if [[ $have == "$wanted requirements-dev.txt" || $have == "$wanted $pins" ]] && supported "$python"; then return; fi
  [[ -z $dry ]] || fail "--dry-run needs an environment, and none is here; run the command without it to install one"

  if [[ $have == unfinished ]] || ! supported "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    PATH=${PATH//"$venv/bin:"/} # if .venv is active, its own python cannot make it again
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11 uv ''; do
      [[ -n $candidate ]] ||
        fail "no Python 3.11, 3.12, 3.13 or 3.14 on PATH, and no uv; install one of them, or use environment.yml"
      if [[ $candidate == uv ]]; then ! command -v uv >/dev/null || break; else ! supported "$candidate" || break; fi
    done
    rm -f -- "$venv"/bin/python* # first, so that a half-emptied folder is not mistaken for an environment
    if [[ $candidate == uv ]]; then
      note "making $venv with uv, which brings Python 3.12"
      uv venv --quiet --clear --seed --python 3.12 "$venv" || fail "uv could not make $venv (see above)"
    else
      note "making $venv with $("$candidate" --version)"
      "$candidate" -m venv --clear "$venv" || fail "could not make $venv (is the package python3-venv installed?)"
    fi
  fi
  echo unfinished >"$stamp"
  note "installing $pins into $venv (once; a few minutes)"
  for candidate in requirements.txt requirements-dev.txt; do
    have=$(<"$root/$candidate")
    # faiss-cpu and faiss-gpu have the same module, so only one may be installed; faiss-gpu is for Linux on x86_64 only
    if [[ $OSTYPE$HOSTTYPE == linux*x86_64 ]] && has_gpu; then have=${have/faiss-cpu==/faiss-gpu==}; fi
    printf '%s\n' "$have" >"$venv/$candidate"
  done
  "$python" -m pip install --quiet --disable-pip-version-check -r "$venv/$pins" ||
    { echo "error: pip could not install $pins (see above); the next call starts over" >&2; exit 1; }
  # so that notebooks opened by hand in this environment find the package
  "$python" - "$root" <<'PYTHON'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "vptsp_checkout.pth").write_text(sys.argv[1] + "\n", encoding="utf-8")
PYTHON
  printf '%s\n' "$wanted $pins" >"$stamp"
}

if [[ -n ${VIRTUAL_ENV:-} ]]; then python=$VIRTUAL_ENV/bin/python
elif [[ -n ${CONDA_PREFIX:-} ]]; then python=$CONDA_PREFIX/bin/python
else python=$(command -v python3 || command -v python || true); fi
fits "$python" || own_environment

if has_gpu; then
  "$python" - <<'PYTHON' >&2
import importlib.metadata
version = importlib.metadata.version("torch")
if version.endswith("+cpu"):
    print(f"run_all.sh: this machine has a GPU, but torch {version} is a CPU build: the GPU stays unused")
PYTHON
fi

# ---- run ---------------------------------------------------------------------------------------------------------
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ $mode == test ]]; then
  cd -- "$root"
  status=0
  "$python" -m ruff check . || status=1
  "$python" -m mypy vptsp_core || status=1
  # two processes with one test file each: tests use one thread, and the tests of a file share fixtures. The order is
  # that of tests/conftest.py.
  "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder || status=$?
  exit "$status"
fi
# exec replaces this shell, so that a SIGTERM arrives. -P: the package of this checkout, not one in the current folder
exec "$python" -P -m vptsp_core notebooks "$@"
