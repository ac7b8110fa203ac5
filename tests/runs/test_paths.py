"""Relative paths become absolute at once, so that results can be used from another working directory."""

import shutil
from pathlib import Path

import optuna
import pytest
from PIL import Image
from safetensors.torch import save_file

from vptsp_core import load, preset
from vptsp_core.__main__ import main
from vptsp_core.method.backbone import load_backbone
from vptsp_core.paper import search
from vptsp_core.publish import runner
from vptsp_core.runs.folder import read_run, run_folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Return the working directory, which has a file of weights."""
    (tmp_path / "here" / "w").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    save_file(load_backbone("demo_vit").state_dict(), tmp_path / "here" / "w" / "plain.safetensors")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_a_run_with_relative_paths_can_be_used_from_another_directory(here, monkeypatch, capsys):
    changes = ["method=frozen", "bitfit=false", "weights=w/plain.safetensors"]
    assert main(["train", "--preset", "smoke", "--results", "out", "--set", *changes]) == 0
    path = Path(capsys.readouterr().out.splitlines()[-2])
    assert path.is_absolute() and path.parent == here / "out" / "runs"
    assert read_run(path).config.weights == str(here / "w" / "plain.safetensors")
    config = preset("smoke", method="frozen", bitfit=False, weights="w/plain.safetensors")
    assert run_folder(config, "out") == path, "the file's content decides"

    monkeypatch.chdir(here.parent / "elsewhere")
    assert main(["evaluate", str(path)]) == 0
    assert main(["export", str(path), "--to", "model.safetensors"]) == 0
    assert str(here.parent / "elsewhere" / "model.safetensors") in capsys.readouterr().out

    shutil.move(here / "w", here.parent / "moved")
    assert main(["evaluate", str(path)]) == 2
    assert "--weights FILE" in capsys.readouterr().err
    moved = Path("..", "moved", "plain.safetensors")
    assert main(["evaluate", str(path), "--weights", str(moved)]) == 0
    assert load(path, weights=moved).config.weights == str(moved.absolute()), "the next saved file has this path"


def test_errors_and_reports_name_absolute_paths(here, capsys):
    (here / "own" / "a").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(here / "own" / "a" / "0.png")
    for command in (
        ["data", "check", "folder", "--data", "own"], ["data", "check", "cub200", "--data", "own"],
        ["data", "check", "own", "--data", "none"], ["train", "--data-folder", "own"], ["search", "own"],
        ["evaluate", "own"], ["index", "own", "--model", "none"],
        ["train", "--preset", "cub200-vits16", "--data", "none"],
    ):  # fmt: skip
        assert main(command) == 2
        said = capsys.readouterr().err
        assert f"{here}/" in said, said
    assert main(["data", "info", "cub200", "--data", "own"]) == 0
    assert f"  in {here}/own: cub200: no folder {here}/own/cub200/images" in capsys.readouterr().out


def test_the_notebooks_get_absolute_paths(here, monkeypatch):
    given = {}

    def execute(path, out, values, made, kernel):
        given.update(values)
        return out, ""

    monkeypatch.setattr(runner, "_execute", execute)
    runner.run_notebooks("smoke", results="out", only=["table1"], changes={"weights": "w/plain.safetensors"})
    assert given["changes"] == {"weights": str(here / "w" / "plain.safetensors")}
    assert given["results"] == str(here / "out")


def test_a_search_keeps_the_absolute_path(here, monkeypatch):
    monkeypatch.setattr(search, "run", lambda config, **options: pytest.fail(config.weights))
    with pytest.raises(pytest.fail.Exception, match=str(here / "w" / "plain.safetensors")):
        search.tune(preset("smoke", weights="w/plain.safetensors"), 1, results="out")
    url = f"sqlite:///{here}/out/search.db"
    study = optuna.load_study(study_name=search.study_name(preset("smoke")), storage=url)
    assert study.user_attrs["base"]["weights"] == str(here / "w" / "plain.safetensors")
