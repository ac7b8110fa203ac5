#!/usr/bin/env bash
# Everything this project shows, in one command; see usage() below or ./run_all.sh --help.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: ./run_all.sh [--profile demo|smoke|tiny|paper] [--data DIR] [--results DIR] [--only table1,fig3d] [--seeds 0,1,2]
                    [--workers N|gpus | --cluster tcp://HOST:PORT] [--set KEY=VALUE]... [--dry-run]
       ./run_all.sh test

Executes the notebooks and writes executed copies, HTML, figures and tables below the results folder, and a page that
shows all of it: index.html.
  --profile   demo (default): embedded data, no download, no GPU needed; smoke: the same, a handful of steps;
              tiny: tables 1, 4, 5 and 7 and figures 3 and 4 on CUB-200 with a ViT-Ti, without a GPU;
              paper: the real benchmarks and weights
  --data      folder with the real data sets (profiles tiny and paper)
  --results   where to write (default: results/ in this checkout)
  --only      notebooks to run, by the beginnings of their names; fig3d: panel d of figure 3
  --seeds     seeds for the notebooks that take them
  --workers   runs side by side on this machine: N processes, or gpus: one a GPU; default: one run after another
  --cluster   runs side by side on a Dask cluster that is there already; results and data in folders that all see
  --set       a key of RunConfig for every run, such as epochs=2; may be given several times
  --dry-run   list each notebook's runs, what is there, what is missing, and how long it takes on this machine, as far
              as finished runs tell; nothing is trained, executed or installed
  test        lint, types and tests

A second call does only what is missing: runs are found by the hash of their description, and a notebook that was
finished with the same source, parameters and package, and whose results are all there, is not executed again; delete
its copy in <results>/<profile>/notebooks/ to have it again. Ctrl-C and SIGTERM stop within seconds, and the same call
resumes. Two calls at once share the work. Status: 0; 1: a notebook failed (the end says which, and where its copy is);
2: wrong options; 130 and 143: stopped.

Uses the active environment (virtualenv, conda, python on PATH) where it has what pyproject.toml asks for; otherwise
makes .venv in this checkout with Python 3.11 to 3.14 (by uv, where only another Python is there and uv is) and
installs the pinned requirements once.
TEXT
}

fail() { echo "error: $1" >&2; exit 2; }
note() { echo "run_all.sh: $1" >&2; }

here=$PWD
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd -P)
absolute() { case $1 in /*) printf '%s' "$1" ;; *) printf '%s' "$here/$1" ;; esac; }

# ---- options ---------------------------------------------------------------------------------------------------
mode=notebooks dry='' profile=demo data='' results=$root/results only='' seeds='' workers='' cluster=''
changes=() seen=' '
while (($#)); do
  option=$1 value=''
  shift
  case $option in
    -h | --help) usage; exit 0 ;;
    test) mode=test; continue ;;
    --dry-run) dry=$option given=$option; continue ;;
    --profile=* | --data=* | --results=* | --only=* | --seeds=* | --workers=* | --cluster=* | --set=*)
      value=${option#*=} option=${option%%=*} ;;
    --profile | --data | --results | --only | --seeds | --workers | --cluster | --set)
      (($#)) || fail "$option needs a value (see --help)"
      value=$1
      shift ;;
    *) fail "unknown option '$option' (see --help)" ;;
  esac
  [[ -n $value ]] || fail "$option needs a value (see --help)"
  if [[ $option != --set && $seen == *" $option "* ]]; then
    case $option in --only | --seeds) fail "$option is given twice; join with commas" ;; esac
    fail "$option is given twice"
  fi
  seen+="$option " given=$option
  case $option in
    --profile) [[ $value =~ ^(demo|smoke|tiny|paper)$ ]] || fail "--profile is demo, smoke, tiny or paper, not '$value'"
      profile=$value ;;
    --data) [[ -d $value ]] || fail "--data: there is no folder '$value'"
      data=$(absolute "$value") ;;
    --results) results=$(absolute "$value") ;;
    --only) only=$value ;;
    --seeds) [[ $value =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--seeds takes numbers such as 0,1,2, not '$value'"
      seeds=$value ;;
    --workers) [[ $value =~ ^([1-9][0-9]*|gpus)$ ]] || fail "--workers is a number from 1 or gpus, not '$value'"
      workers=$value ;;
    --cluster) [[ $value =~ ^tcp://.+:[0-9]+$ ]] || fail "--cluster takes tcp://HOST:PORT, not '$value'"
      cluster=$value ;;
    --set) [[ $value == ?*=* ]] || fail "--set takes KEY=VALUE, not '$value'"
      changes+=("$value") ;;
  esac
done
[[ -z $workers || -z $cluster ]] || fail "--workers and --cluster exclude each other"
[[ $mode != test || -z ${given:-} ]] || fail "test takes no options, but there is $given"

# ---- environment -----------------------------------------------------------------------------------------------
# fits PYTHON: 3.11 to 3.14, and every distribution that pyproject.toml asks for (for `test`: also those of the extra
# `dev`) at an acceptable version. Reads metadata only, so it takes a fraction of a second. Silent, but for a torch
# that is there and does not fit.
fits() {
  [[ -x $1 ]] || return 1
  "$1" - "$root/pyproject.toml" "$mode" 3>&2 2>/dev/null >&3 <<'PYTHON' # its stdout is for people
import sys
if not (3, 11) <= sys.version_info[:2] <= (3, 14):
    sys.exit(1)
try:
    import importlib.metadata as metadata
    import tomllib
    from packaging.requirements import Requirement
    from packaging.version import Version
except ImportError:
    sys.exit(1)
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
supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' 2>/dev/null; }

# Sets `python` to that of .venv, which is made or brought up to date first if need be. The stamp says what was
# installed and is written last; a .venv begun here and not finished is made anew.
own_environment() {
  local venv=$root/.venv stamp=$root/.venv/.vptsp-stamp begun=$root/.venv/.vptsp-begun
  local pins=requirements.txt wanted have='' candidate
  [[ $mode != test ]] || pins=requirements-dev.txt
  wanted="$(cat -- "$root"/requirements*.txt | cksum)"
  python=$venv/bin/python
  [[ ! -f $stamp ]] || have=$(<"$stamp")
  if [[ ! -e $begun && ! -f $stamp ]] && fits "$python"; then return; fi  # somebody else made it, and made it well
  if [[ ! -e $begun && ($have == "$wanted requirements-dev.txt" || $have == "$wanted $pins") ]] &&
    supported "$python"; then return; fi
  [[ -z $dry ]] || fail "--dry-run needs an environment, and none is here yet; the call without it installs .venv first"

  if [[ -e $begun ]] || ! supported "$python" || ! "$python" -m pip --version >/dev/null 2>&1; then
    PATH=${PATH//"$venv/bin:"/} # it may be active, and cannot make itself
    for candidate in python3 python python3.14 python3.13 python3.12 python3.11 uv ''; do
      [[ -n $candidate ]] ||
        fail "no Python 3.11, 3.12, 3.13 or 3.14 on PATH, and no uv; install one of them, or use environment.yml"
      if [[ $candidate == uv ]]; then ! command -v uv >/dev/null || break; else ! supported "$candidate" || break; fi
    done
    rm -f -- "$venv"/bin/python* # first, lest a half emptied folder pass for an environment
    if [[ $candidate == uv ]]; then
      note "making $venv with uv, which brings Python 3.12"
      uv venv --quiet --clear --seed --python 3.12 "$venv" || fail "uv could not make $venv (see above)"
    else
      note "making $venv with $("$candidate" --version)"
      "$candidate" -m venv --clear "$venv" || fail "could not make $venv (is the package python3-venv installed?)"
    fi
  fi
  : >"$begun"
  rm -f -- "$stamp"
  note "installing $pins into $venv (once; a few minutes)"
  for candidate in requirements.txt requirements-dev.txt; do
    have=$(<"$root/$candidate")
    # both bring the module faiss, so that only one may be there; that for a GPU is built for Linux on x86_64 alone
    if [[ $OSTYPE$HOSTTYPE == linux*x86_64 ]] && has_gpu; then have=${have/faiss-cpu==/faiss-gpu==}; fi
    printf '%s\n' "$have" >"$venv/$candidate"
  done
  "$python" -m pip install --quiet --disable-pip-version-check -r "$venv/$pins" ||
    { echo "error: pip could not install $pins (see above); the next call starts over" >&2; exit 1; }
  # notebooks opened by hand in this environment find the package too
  "$python" - "$root" <<'PYTHON'
import pathlib, sys, sysconfig
pathlib.Path(sysconfig.get_path("purelib"), "vptsp_checkout.pth").write_text(sys.argv[1] + "\n", encoding="utf-8")
PYTHON
  printf '%s\n' "$wanted $pins" >"$stamp"
  rm -f -- "$begun"
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
cd -- "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

if [[ $mode == test ]]; then
  status=0
  "$python" -m ruff check . || status=1
  "$python" -m mypy vptsp_core || status=1
  # a file at a time to each of two processes: tests use one thread, and some share what their file made; in the order
  # of tests/conftest.py
  "$python" -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder || status=$?
  exit "$status"
fi

set -- --profile "$profile" --results "$results"
[[ -z $data ]] || set -- "$@" --data "$data"
[[ -z $only ]] || set -- "$@" --only "$only"
[[ -z $seeds ]] || set -- "$@" --seeds "$seeds"
[[ -z $workers ]] || set -- "$@" --workers "$workers"
[[ -z $cluster ]] || set -- "$@" --cluster "$cluster"
[[ -z $dry ]] || set -- "$@" "$dry"
for change in ${changes[@]+"${changes[@]}"}; do set -- "$@" --set "$change"; done
exec "$python" -m vptsp_core notebooks "$@" # in this shell's place: a SIGTERM sent to it has to arrive
