"""Input that nothing reads is an error, or one line on stderr. Presets and tables print no warning."""

import warnings

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.errors import DataError, VptspError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import PRESETS, preset
from vptsp_core.paper import beyond, methods, tables
from vptsp_core.publish import runner
from vptsp_core.runs.run import many, run


@pytest.mark.parametrize(
    "command",
    [["train"], ["train", "--preset", "smoke"], ["tune", "--preset", "smoke"],
     ["data", "check", "glyphs"], ["data", "info", "glyphs"], ["data", "info", "folder"]],
)  # fmt: skip
@pytest.mark.parametrize("there", [True, False])
def test_a_data_folder_that_nothing_reads_is_refused(tmp_path, monkeypatch, capsys, command, there):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path if there else tmp_path / "none"
    assert main([*command, "--data", str(folder)]) == 2
    out, err = capsys.readouterr()
    assert err.startswith(f"error: --data {folder}: ") and err.count("\n") == 1 and out == ""
    assert not list(tmp_path.iterdir()), "nothing was trained"


@pytest.mark.parametrize("command", ["train", "tune"])
def test_the_preset_for_glyphs_is_no_default_for_photographs(tmp_path, monkeypatch, capsys, command):
    monkeypatch.chdir(tmp_path)
    assert main([command, "--data", str(tmp_path), "--set", "dataset=cub200"]) == 2
    assert "dataset=cub200: no preset is named; give --preset" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_python_warns_of_such_a_folder_but_not_of_the_environment(tmp_path, monkeypatch):
    with pytest.warns(UserWarning, match="embedded glyphs, which read no folder"):
        load_benchmark("glyphs", tmp_path)
    with pytest.raises(DataError, match="--data: there is no folder"):
        run(RunConfig(), data=tmp_path / "none", results=tmp_path)
    monkeypatch.setenv("VPTSP_DATA", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_benchmark("glyphs")


def test_many_runs_give_the_folder_to_those_that_read_it(tmp_path, monkeypatch):
    given = {}

    def trained(config, data=None, **options):
        given[config.dataset] = data

    monkeypatch.setattr("vptsp_core.runs.run.run", trained)
    with pytest.warns(UserWarning, match="read no folder"):
        many([preset("smoke"), RunConfig()], data=tmp_path, results=tmp_path, progress=False)
    assert given == {"glyphs": None, "cub200": tmp_path}


UNREAD = {
    "method": (dict(method="linear", prompts=77, accumulator="ema"), "prompts, accumulator with method = 'linear'"),
    "accumulator": (dict(ema_keep=0.3), "ema_keep with accumulator = 'gru'"),
    "proxy_source": (dict(proxy_source="sample", class_prompts=2), "class_prompts with proxy_source = 'sample'"),
    "optimizer": (dict(optimizer="adam", momentum=0.5), "momentum with optimizer = 'adam'"),
    "lora": (dict(method="vpt", lora_rank=2, adapter_dim=3), "lora_rank, adapter_dim with method = 'vpt'"),
    "frozen": (dict(method="frozen", bitfit=False, lr=0.1), "lr with method = 'frozen'"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_keys_that_a_run_does_not_read_are_named_in_one_line(name):
    changes, words = UNREAD[name]
    with pytest.warns(UserWarning) as told:
        config = preset("cub200-vits16", **changes)
    assert [str(each.message) for each in told] == [f"set, but this run does not read {words}"]
    unread = [key for key in changes if key in config.unread()]
    default = RunConfig().to_dict()
    assert config.hash() == config.replace(**{key: default[key] for key in unread}).hash(), "nothing reads them"


def test_unread_keys_of_a_file_are_named_too(tmp_path):
    (tmp_path / "mine.json").write_text('{"method": "linear", "prompts": 77}')
    with pytest.warns(UserWarning, match="set, but this run does not read prompts, alpha with method = 'linear'"):
        preset(str(tmp_path / "mine.json"), alpha=0.1)


def test_the_command_warns_once_and_trains(tmp_path, capsys):
    command = ["train", "--preset", "smoke", "--results", str(tmp_path), "--cache", str(tmp_path), "--allow-partial"]
    changes = ["method=frozen", "bitfit=false", "prompts=7"]
    assert main([*command, "--class-table", "device", "--set", *changes]) == 0
    first, second, *lines = capsys.readouterr().err.splitlines()
    assert all("smoke" not in line and "warning" not in line for line in lines), "the rest is the log"
    assert first == "warning: set, but this run does not read prompts with method = 'frozen'"
    assert second.startswith("warning: --cache, --allow-partial, --class-table: this run does not use it")
    path = next((tmp_path / "runs").iterdir())
    assert main(["evaluate", str(path), "--data", str(tmp_path)]) == 2
    assert "embedded glyphs" in capsys.readouterr().err


def test_presets_and_tables_give_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in PRESETS:
            preset(name, seed=1)
        for profile in methods.BASE:
            changes = {"epochs": 2, "prompts": 3, "ema_keep": 0.5}
            for row in methods.method_rows(profile).values():
                methods.configured(profile, row, changes)
            beyond.cells(profile, epochs=2)
            for table in (tables.sota, tables.components, tables.pretraining, tables.integration):
                table(profile, epochs=2)


def _write(folder, name, parameters, code):
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), folder / f"{name}.ipynb")


def test_an_option_for_no_notebook_is_refused_and_one_for_some_is_reported(tmp_path, capsys):
    plain = 'profile = "smoke"\nresults = "results"\n'
    _write(tmp_path, "alone", plain, "1")
    _write(tmp_path, "declares", plain + "seeds = [0]", "print(seeds)")
    out = tmp_path / "results"
    for only, given, option in [("alone", dict(seeds=[3]), "--seeds"), ("alone", dict(workers=2), "--workers"),
                                ("declares", dict(data=tmp_path), "--data")]:  # fmt: skip
        with pytest.raises(VptspError, match=f"{option}: not a parameter of {only}"):
            runner.run_notebooks("smoke", results=out, only=[only], folder=tmp_path, **given)
    work = [(tmp_path / f"{name}.ipynb", given) for name, given in [("alone", {}), ("declares", {"seeds": [3]})]]
    runner.check_use(work, {"profile": "smoke", "seeds": [3]}, "smoke")
    assert capsys.readouterr().err == "--seeds: not a parameter of alone; the others get it\n"


def test_the_notebooks_refuse_a_key_that_no_run_reads(tmp_path):
    work = [(tmp_path / "a.ipynb", {"changes": {}})]
    with pytest.raises(VptspError, match="--set: no run of profile 'smoke' reads momentum"):
        runner.check_use(work, {"changes": {"momentum": 0.5, "epochs": 2}}, "smoke")
    runner.check_use(work, {"changes": {"ema_keep": 0.5, "prompts": 2}}, "smoke")  # some rows read these


def test_the_home_of_an_unknown_user_is_one_line(capsys):
    assert main(["data", "check", "cub200", "--data", "~no_such_user_here/data"]) == 2
    assert capsys.readouterr().err == "error: a path begins with ~ and an unknown user name; write the path in full\n"
