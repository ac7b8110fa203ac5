"""Test the installation: requirements, environment, shell scripts, and the content of tracked files."""

import ast
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import vptsp_core
from vptsp_core import __main__ as command_line
from vptsp_core import preset
from vptsp_core.method.presets import PRESETS
from vptsp_core.runs.folder import run_folder

ROOT = Path(__file__).resolve().parents[1]
BASH = shutil.which("bash")
# conda's name -> PyPI's, where they differ
CONDA = {
    "huggingface_hub": "huggingface-hub", "jupyter_client": "jupyter-client", "pytorch-gpu": "torch",
    "faiss-gpu": "faiss-cpu",
}  # fmt: skip
# imported name -> distribution, where they differ
IMPORTED = {
    "huggingface_hub": "huggingface-hub",
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "umap": "umap-learn",
    "faiss": "faiss-cpu",
    "jupyter_client": "jupyter-client",
}


def pins(name: str) -> dict[str, Version]:
    lines = [line.split("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = {}
    for line in filter(None, lines):
        if not line.startswith("-r "):
            pin = re.fullmatch(r"([a-z0-9-]+)==([0-9.]+)(; sys_platform .*)?", line)
            assert pin, f"{name}: {line!r} is not name==version, with or without a system after it"
            assert pin[1] not in found, f"{name}: {pin[1]} is listed twice"
            found[pin[1]] = Version(pin[2])
    return found


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def ranges() -> dict[str, Requirement]:
    extras = [line for extra in project()["optional-dependencies"].values() for line in extra]
    return {Requirement(line).name: Requirement(line) for line in project()["dependencies"] + extras}


def tracked() -> list[Path]:
    """Return the files that git tracks or would track. Skip the test in an unpacked archive without git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def test_requirements_pin_what_pyproject_asks_for():
    run, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    extras = project()["optional-dependencies"]
    users = [line for name, lines in extras.items() if name not in ("dev", "export", "browser") for line in lines]
    for extra in ("cluster", "export"):  # tests need these extras
        assert set(extras[extra]) <= set(extras["dev"])
    extra = {Requirement(line).name for line in extras["dev"] + extras["browser"]}
    extra -= {Requirement(line).name for line in users}
    assert set(run) == set(ranges()) - extra - {"faiss-gpu"}  # run_all.sh installs it instead of faiss-cpu
    assert ranges()["faiss-gpu"].specifier.contains(run["faiss-cpu"])
    assert set(dev) == extra
    for name, version in (run | dev).items():
        assert ranges()[name].specifier.contains(version), f"{name} {version}"


def test_an_installed_torch_stays():
    """On Colab and Kaggle, neither this project nor its requirements ask for another torch or torchvision."""
    there = {"torch": "2.11.0+cu128", "torchvision": "0.26.0+cu128"}  # the two belong together
    waiting, seen = [*map(Requirement, project()["dependencies"])], set()
    while waiting:
        needed = waiting.pop()
        if needed.name in there:
            assert needed.specifier.contains(there[needed.name])
        elif needed.name not in seen and needs_here(needed):
            seen.add(needed.name)
            waiting += map(Requirement, metadata.requires(needed.name) or ())
    assert {"timm", "safetensors"} <= seen


def needs_here(needed: Requirement) -> bool:
    return needed.marker is None or needed.marker.evaluate({"extra": ""})


def test_conda_environment_agrees_with_the_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment["channels"]) <= {"conda-forge", "pytorch", "nodefaults"}
    every = pins("requirements.txt") | pins("requirements-dev.txt")
    seen = set()
    for entry in environment["dependencies"]:
        name, spec = re.fullmatch(r"([a-z0-9_-]+)(.*)", entry).groups()
        if name == "pip":
            continue
        if name == "python":
            assert spec == "=3.12" and SpecifierSet(project()["requires-python"]).contains("3.12")
            continue
        pinned = every[CONDA.get(name, name)]
        assert CONDA.get(name, name) not in seen, f"environment.yml: {name} is listed twice"
        seen.add(CONDA.get(name, name))
        if name == "faiss-gpu":  # conda has other versions than PyPI
            assert Requirement(f"faiss{spec}").specifier == ranges()["faiss-cpu"].specifier
        else:
            assert spec == f"={pinned.major}.{pinned.minor}", f"{entry}, but the pin is {pinned}"
    assert seen == set(every)


def test_version_is_that_of_the_package(capsys):
    assert project()["scripts"] == {"vptsp": "vptsp_core.__main__:main"}
    assert command_line.main(["--version"]) == 0
    assert capsys.readouterr().out == f"vptsp-core {vptsp_core.__version__}\n"
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == vptsp_core.__version__ and citation["license"] == project()["license"]


def test_every_import_is_a_declared_dependency():
    declared = {*map(str.lower, ranges()), "vptsp_core"}
    undeclared = set()
    for path in (ROOT / "vptsp_core").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            for top in {name.split(".")[0] for name in names} - sys.stdlib_module_names:
                if IMPORTED.get(top, top).lower() not in declared:
                    undeclared.add(f"{path.relative_to(ROOT)}: {top}")
    assert not undeclared


def test_package_data_patterns_cover_the_data_files():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    package = ROOT / "vptsp_core"
    covered = {path for pattern in patterns["vptsp_core"] for path in package.glob(pattern)}
    others = {path for path in tracked() if path.is_relative_to(package) and path.suffix != ".py"}
    assert others <= covered


def test_tracked_files_name_no_machine_paths_and_no_registries():
    # joined here, so that this file does not contain them
    hosts = ("py" + "pi", "python" + "hosted", "ana" + "conda", "download.py" + "torch")
    folders = ("work/main", "work/shared", "root/", "home/[a-z]", "Users/[A-Za-z]", "tmp/")
    wrong = re.compile(rf"(?<![\w.~])/(?:{'|'.join(folders)})|://[\w.-]*(?:{'|'.join(hosts)})\.")
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {text[hit.start() :][:60]}" for hit in wrong.finditer(text)]
    assert not found


FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.I)  # on Windows


def test_windows_can_hold_every_tracked_file_and_run_folder():
    """The committed demo stands for the names of notebooks, figures and tables."""
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    names += [run_folder(preset(name), "results").relative_to(Path.cwd()).as_posix() for name in PRESETS]
    assert not [name for name in names if any(map(FORBIDDEN.search, name.split("/"))) or len(name) > 120]
    assert len({name.lower() for name in names}) == len(names)
    assert not [path for path in tracked() if path.is_symlink()]
    assert "* -text" in (ROOT / ".gitattributes").read_text("utf-8").splitlines()  # or git changes line ends


def test_text_files_are_opened_with_an_encoding():
    """Without one, Windows uses its own."""
    rule = [sys.executable, "-m", "ruff", "check", "--preview", "--isolated", "--select", "PLW1514", "vptsp_core"]
    done = subprocess.run(rule, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- torchvision beside a CPU-only torch ---------------------------------------------------------


def test_timm_and_torchvision_are_imported_after_the_package():
    code = "import gc, vptsp_core; gc.collect(); import timm, torchvision"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- shell ---------------------------------------------------------------------------------------

needs_bash = pytest.mark.skipif(BASH is None, reason="no bash")


def test_scripts_are_executable():
    assert all((ROOT / script).stat().st_mode & 0o111 for script in ("run_all.sh", ".ci/run"))


@needs_bash
def test_run_all_test_takes_no_options(tmp_path):
    command = [BASH, ROOT / "run_all.sh", "test", "--profile", "demo"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: test takes no options, but there is --profile\n"


@needs_bash
def test_run_all_prints_its_usage_wherever_help_stands(tmp_path):
    done = subprocess.run(
        [BASH, ROOT / "run_all.sh", "--profile", "tiny", "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: ./run_all.sh [--profile demo|")


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of run_all.sh in a folder with a space, and a package that prints its arguments."""
    root = tmp_path / "a checkout"
    (root / "vptsp_core").mkdir(parents=True)
    for name in ("run_all.sh", "pyproject.toml", "requirements.txt", "requirements-dev.txt"):
        shutil.copy(ROOT / name, root)
    (root / "vptsp_core" / "__init__.py").write_text("")
    (root / "vptsp_core" / "__main__.py").write_text(
        "import os, sys\nprint(os.getcwd(), sys.argv[1:], sep='\\n')\nsys.exit(int(os.environ['STATUS']))"
    )
    return root


def fits_this_python() -> bool:
    try:
        return all(Requirement(line).specifier.contains(Version(metadata.version(Requirement(line).name)))
                   for line in project()["dependencies"])  # fmt: skip
    except metadata.PackageNotFoundError:
        return False


needs_fitting_python = pytest.mark.skipif(not fits_this_python(), reason="run_all.sh would not use this environment")


@needs_bash
@needs_fitting_python
def test_run_all_uses_the_active_environment_and_passes_options_and_the_status_on(checkout, tmp_path, monkeypatch):
    """A file named like the package, in the folder of the call, is not imported."""
    (tmp_path / "vptsp_core.py").write_text("raise SystemExit(9)")
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix)
    monkeypatch.setenv("STATUS", "130")
    options = ["--profile", "smoke", "--data=my data", "--set=weights=my weights.pth", "--set", "epochs=2", "--dry-run"]
    done = subprocess.run([BASH, checkout / "run_all.sh", *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 130, done.stderr
    assert done.stdout.splitlines() == [str(tmp_path), str(["notebooks", *options])]
    assert not (checkout / ".venv").exists()


@pytest.fixture
def old_python(tmp_path) -> Path:
    """A PATH with the tools that run_all.sh calls and an unsupported Python."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "cksum", "env", "rm", "mkdir", "chmod"):
        (tools / tool).symlink_to(shutil.which(tool))
    executable(tools / "python3", "exit 1")
    return tools


def executable(path: Path, script: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{script}\n")
    path.chmod(0o755)


@needs_bash
def test_run_all_without_a_supported_python_says_so(checkout, old_python):
    environment = {"PATH": str(old_python)}
    done = subprocess.run([BASH, checkout / "run_all.sh"], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    dry = subprocess.run([BASH, checkout / "run_all.sh", "--dry-run"], env=environment, capture_output=True, text=True)
    assert (dry.returncode, dry.stdout) == (2, "") and "--dry-run needs an environment" in dry.stderr
    assert "no Python 3.11, 3.12, 3.13 or 3.14 on PATH, and no uv" in done.stderr


@needs_bash
@pytest.mark.parametrize("gpu", [False, True])
def test_run_all_lets_uv_bring_a_python(checkout, old_python, gpu):
    """A stand-in for uv makes an environment whose python prints its arguments."""
    asked = old_python.parent / "asked"
    executable(old_python / "uv", f"""
        echo "$@" >{asked}
        mkdir -p "${{@: -1}}/bin"
        printf '#!/usr/bin/env bash\necho "$@"\n' >"${{@: -1}}/bin/python"
        chmod +x "${{@: -1}}/bin/python"
    """)  # fmt: skip
    if gpu:
        executable(old_python / "nvidia-smi", "")
    environment = {"PATH": str(old_python)}
    done = subprocess.run([BASH, checkout / "run_all.sh"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    installed = (checkout / ".venv" / "requirements.txt").read_text()
    of_gpu = f"faiss-gpu=={pins('requirements.txt')['faiss-cpu']}" in installed
    assert of_gpu == (gpu and sys.platform == "linux" and platform.machine() == "x86_64")
    assert installed.count("faiss-gpu==") + installed.count("faiss-cpu==") == 1
    assert f"-r {checkout / '.venv' / 'requirements.txt'}" in done.stdout
    assert asked.read_text().split()[:-2] == ["venv", "--quiet", "--clear", "--seed", "--python", "3.12"]
    assert "with uv, which brings Python 3.12" in done.stderr and "pip install" in done.stdout
    assert "-P -m vptsp_core notebooks" in done.stdout


def test_all_files_name_the_same_range_of_pythons():
    spec = SpecifierSet(project()["requires-python"])
    versions = [f"3.{minor}" for minor in range(8, 18) if spec.contains(f"3.{minor}")]
    assert versions == ["3.11", "3.12", "3.13", "3.14"]
    named = [line.rpartition(":: ")[2] for line in project()["classifiers"] if ":: Python ::" in line]
    assert named == versions
    script = (ROOT / "run_all.sh").read_text()
    assert script.count("(3, 11) <= sys.version_info[:2] <= (3, 14)") == 1
    assert "3.11 to 3.14" in script and "3.11 to 3.14" in (ROOT / "README.md").read_text()
