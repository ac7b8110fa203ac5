"""Runs end to end on the embedded data: resume, reuse, selection, the embedder, bad input on the command line."""

import json
import os
import shlex
import subprocess
import sys
from functools import lru_cache

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from reseal import reseal_run
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import checkpoint_filter_fn

import vptsp_core
from vptsp_core import load, preset, run
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.deploy import evaluate as evaluate_command  # here, so that no test imports it while it is patched
from vptsp_core.errors import ConfigError, DataError, TrainingError, VptspError, WeightsError
from vptsp_core.method.backbone import load_backbone
from vptsp_core.method.metrics import Scores
from vptsp_core.method.presets import parse_change
from vptsp_core.runs import record
from vptsp_core.runs.checkpoints import CHECKPOINT, write_checkpoint
from vptsp_core.runs.folder import CONFIG, METRICS, WEIGHTS, read_run, run_folder
from vptsp_core.runs.frames import frame, over_seeds
from vptsp_core.runs.run import many
from vptsp_core.runs.train import Trainer


def tiny(**changes):
    return preset("smoke", **{"weights": "random", "steps_per_epoch": 2, "batch": 16, "epochs": 3} | changes)


@lru_cache
def glyphs():
    return load_benchmark("glyphs")


@pytest.fixture(autouse=True)
def benchmark(monkeypatch):
    """The glyphs with only 60 test images, because these tests are not about accuracy."""
    full = glyphs()
    keep = np.flatnonzero(full.test.labels < 12)
    monkeypatch.setattr(full.test, "images", full.test.images[keep])
    monkeypatch.setattr(full.test, "labels", full.test.labels[keep])
    monkeypatch.setattr(full.test, "class_names", full.test.class_names[:12])
    monkeypatch.setattr("vptsp_core.runs.run.load_benchmark", lambda name, data, partial: full)
    monkeypatch.setattr(evaluate_command, "load_benchmark", lambda name, data, partial: full)
    return full


METHODS = {
    "dense": dict(),
    "rowwise": dict(class_optimizer="rowwise"),
    "ema": dict(accumulator="ema", semantics="paper"),
    "dropout": dict(gru_dropout=0.3),
    "sgd": dict(optimizer="sgd", lr=0.01, class_optimizer="rowwise"),
    "vpt": dict(method="vpt"),
    "adapter": dict(method="adapter", adapter_layers=2, adapter_dim=8),
    "rnn": dict(accumulator="rnn", samples_per_class=2),
    "lstm": dict(accumulator="lstm", semantics="paper"),
    "attention": dict(accumulator="attention", proxy_source="sample", samples_per_class=2),
    "encoder": dict(proxy_source="encoder", prompts=0, accumulator="lstm"),
    "fixed encoder": dict(proxy_source="fixed_encoder"),
    "full": dict(method="full", bitfit=False),
    "cached": dict(pipeline="cached"),
    "start": dict(start="all", class_optimizer="rowwise"),
}


class Cut(Exception):
    """Ends a run, like a power failure."""


@pytest.mark.parametrize("changes", METHODS.values(), ids=METHODS.keys())
def test_a_run_cut_short_ends_as_if_it_had_not_been(tmp_path, monkeypatch, changes):
    whole = run(tiny(**changes), results=tmp_path / "whole", progress=False)
    resumed = cut_and_resumed(tiny(**changes), tmp_path, monkeypatch)
    assert_same_run(whole, resumed)
    assert whole.queries["class"].tolist() == [label for label in range(12) for _ in range(5)]
    assert whole.record["class_table"] == ("device" if whole.config.has_class_prompts else None)
    assert vptsp_core.load(whole.path, "cpu").embed(glyphs().test).shape == (60, whole.config.embed_dim)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_class_prompts_in_host_memory_and_checkpointing_change_no_number(tmp_path, monkeypatch, optimizer):
    config = tiny(class_optimizer="rowwise", optimizer=optimizer, steps_per_epoch=5)
    whole = run(config, results=tmp_path / "whole", progress=False)
    other = cut_and_resumed(config, tmp_path, monkeypatch, class_table="host", checkpointing="on")
    assert_same_run(whole, other)
    assert other.record["class_table"] == "host" and other.record["checkpointing"] is True
    assert whole.record["class_table"] == "device" and whole.record["checkpointing"] is False


def cut_and_resumed(config, tmp_path, monkeypatch, **options):
    """Cut a run after its second epoch, and resume it."""
    cut(config, tmp_path, monkeypatch, **options)
    torch.rand(11)
    return run(config, results=tmp_path / "cut", progress=False, **options)


def cut(config, tmp_path, monkeypatch, **options):
    """Train a run up to its second checkpoint."""
    save, saved = Trainer._save, []

    def save_then_cut(self):
        save(self)
        saved.append(self.finished)
        if len(saved) == 2:
            raise Cut

    monkeypatch.setattr(Trainer, "_save", save_then_cut)
    with pytest.raises(Cut):
        run(config, results=tmp_path / "cut", progress=False, **options)
    folder = run_folder(config, tmp_path / "cut")
    assert (folder / CHECKPOINT).exists() and not (folder / "metrics.json").exists()
    monkeypatch.setattr(Trainer, "_save", save)


def test_the_record_describes_every_part(tmp_path, monkeypatch):
    """The run is cut after two epochs and resumed elsewhere. Its checkpoint says that the first part took an hour."""
    config, started = tiny(class_optimizer="rowwise"), iter(["monday", "tuesday", "wednesday"])
    monkeypatch.setattr("vptsp_core.runs.record.time.strftime", lambda *_: next(started))
    monkeypatch.setattr("vptsp_core.runs.record._commit", lambda: "old")
    cut(config, tmp_path, monkeypatch)
    folder = run_folder(config, tmp_path / "cut")
    saved = torch.load(folder / CHECKPOINT, weights_only=True)
    assert 0 < saved["stretches"][0]["seconds"] < 3600
    saved["stretches"][0]["seconds"] = 3600.0
    write_checkpoint(folder, saved.pop("config"), saved)
    monkeypatch.setattr("vptsp_core.runs.record._commit", lambda: "new")
    record = run(config, results=tmp_path / "cut", progress=False, class_table="host", checkpointing="on").record
    first, second = record["stretches"]
    keys = ("after_epochs", "started", "commit", "class_table", "checkpointing", "processes")
    assert [first[key] for key in keys] == [0, "monday", "old", "device", False, 1]
    assert [second[key] for key in keys] == [2, "tuesday", "new", "host", True, 1]
    for key in ("device", "versions", "data", "weights"):
        assert first[key] == second[key] == record[key]
    assert record["started"] == "monday" and record["commit"] == "new" and second["seconds"] > 0
    assert record["seconds"] == pytest.approx(3600 + second["seconds"], abs=0.01)
    whole = run(config, results=tmp_path / "whole", progress=False).record
    assert [each["after_epochs"] for each in whole["stretches"]] == [0] and whole["started"] == "wednesday"
    assert whole["seconds"] == whole["stretches"][0]["seconds"] > 0


def assert_same_run(whole, resumed):
    pd.testing.assert_frame_equal(
        whole.history.drop(columns="seconds"), resumed.history.drop(columns="seconds"), check_exact=True
    )
    assert whole.queries.keys() == resumed.queries.keys() == {"class", "R@1", "MAP@R", "MAP@R released", "R-precision"}
    for name, values in whole.queries.items():
        np.testing.assert_array_equal(values, resumed.queries[name])
        if name != "class":
            assert np.nanmean(values, dtype=np.float64) == pytest.approx(whole.metrics[name], rel=1e-6)
    ours, theirs = (load_file(r.path / "model.safetensors") for r in (whole, resumed))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_finished_run_is_returned_and_not_repeated(tmp_path, monkeypatch):
    config = tiny()
    first = run(config, results=tmp_path, progress=False)
    monkeypatch.setattr(Trainer, "run", lambda self: pytest.fail("trained again"))
    again = run(config, results=tmp_path, progress=False)
    assert again.metrics == first.metrics and again.path == first.path
    assert sorted(p.name for p in first.path.iterdir()) == [
        "config.json", "history.csv", "metrics.json", "model.safetensors", "queries.npz", "record.json",
    ]  # fmt: skip
    table = frame([again])
    assert table.loc[0, "alpha"] == 0.5 and 0 <= table.loc[0, "R@1"] <= 1 and table.loc[0, "tunable"] > 0
    record = first.record
    assert record["hash"] == config.hash() and record["versions"]["torch"] == torch.__version__
    assert {"commit", "device", "data", "weights", "parameters", "seconds"} <= record.keys()


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    """As `data info | head -n 1`; the pipe is closed before the command writes to it."""
    command = [sys.executable, "-m", "vptsp_core", "data", "info"]
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, check=False)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_closed_stdout_is_no_error(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)  # as Python starts with it after `>&-`
    assert main(["data", "info"]) == 0


SELECTED = {"released": ({"R@1": 2 / 3, "MAP@R": 0.45, "epoch": 2}, (1, 0)),
            "last": ({"R@1": 1 / 3, "MAP@R": 0.2, "epoch": 3}, (2, 2))}  # fmt: skip


@pytest.mark.parametrize("selection", SELECTED)
def test_metrics_and_queries_are_of_the_selected_epochs(tmp_path, monkeypatch, selection):
    """released: each metric at its own best epoch; last: the last epoch."""
    values = {"R@1": [[1, 0, 0], [1, 1, 0], [0, 1, 0]], "MAP@R": [[0.9, np.nan, 0], [0.1, np.nan, 0], [0.4, np.nan, 0]]}
    epochs = iter(range(3))

    def scores(model, benchmark):
        epoch = next(epochs)
        queries = {name: np.array(each[epoch], np.float32) for name, each in values.items()}
        return Scores({name: float(np.nanmean(each)) for name, each in queries.items()}, queries)

    monkeypatch.setattr("vptsp_core.runs.run.evaluate", scores)
    done = run(tiny(selection=selection), results=tmp_path, progress=False)
    metrics, epochs_of = SELECTED[selection]
    assert done.metrics == pytest.approx(metrics)
    for name, epoch in zip(("R@1", "MAP@R"), epochs_of, strict=True):
        np.testing.assert_array_equal(done.queries[name], np.array(values[name][epoch], np.float32))


def test_queries_of_older_and_damaged_runs(tmp_path):
    done = run(tiny(epochs=1), results=tmp_path, progress=False)
    file = done.path / "queries.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WeightsError, match="queries.npz: does not have the checksum in record.json .*run it again"):
        _ = read_run(done.path).queries
    reseal_run(done.path)
    with pytest.raises(WeightsError, match="queries.npz: unreadable .*run it again"):
        _ = read_run(done.path).queries
    file.unlink()
    with pytest.raises(WeightsError, match="queries.npz: missing; delete the folder and run it again"):
        _ = read_run(done.path).queries


def test_metrics_come_from_the_saved_weights(tmp_path, benchmark):
    """The embedder has the metrics that the run reports. It also takes pictures and paths, and searches."""
    config = tiny(selection="last")
    done = run(config, results=tmp_path, progress=False)
    embedder = vptsp_core.load(done.path, "cpu")
    test = benchmark.test
    embeddings = embedder.embed(test)
    assert embeddings.shape == (60, config.embed_dim) and embeddings.dtype == np.float32
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    metrics = vptsp_core.retrieval_metrics(embeddings, test.labels)
    assert metrics["R@1"] == pytest.approx(done.metrics["R@1"], abs=1e-9)
    pictures = [test.image(i) for i in range(5)]
    assert np.allclose(embedder.embed(pictures), embeddings[:5], atol=1e-5)
    pictures[0].save(tmp_path / "one.png")
    assert np.allclose(embedder.embed(tmp_path / "one.png"), embedder.embed(pictures[:1]), atol=1e-6)
    with pytest.raises(VptspError, match="call index"):
        embedder.search(pictures)
    scores, places = embedder.index(test).search(pictures, k=3)
    assert (places[:, 0] == np.arange(5)).all() and scores.shape == (5, 3)
    assert (done.path / "model.safetensors").stat().st_size < 400_000, "only what was learned"


def test_weights_file_counts_by_content_not_by_place(tmp_path):
    state = load_backbone("demo_vit").state_dict()
    for place in ("a", "b"):
        save_file(state, tmp_path / f"{place}.safetensors")
    torch.save(state, tmp_path / "c.pth")
    folders = [run_folder(tiny(weights=str(tmp_path / n)), tmp_path) for n in ("a.safetensors", "b.safetensors")]
    assert folders[0] == folders[1] != run_folder(tiny(), tmp_path)
    for name in ("a.safetensors", "c.pth"):
        loaded = load_backbone("demo_vit", str(tmp_path / name)).state_dict()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_seeds_are_averaged_with_students_interval():
    table = pd.DataFrame({"method": ["a", "a", "a", "b"], "R@1": [0.5, 0.6, 0.7, 0.4]})
    lacking = over_seeds(table.assign(**{"R@1": table["R@1"].where(table.index > 0)}), ["method"], ["R@1"])
    assert lacking.loc[0, ["R@1", "R@1 ±"]].isna().all(), "not the mean of some of its seeds"
    out = over_seeds(table, ["method"], ["R@1"])
    assert out["R@1"].tolist() == pytest.approx([0.6, 0.4]) and out["seeds"].tolist() == [3, 1]
    assert out["R@1 ±"][0] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5) and np.isnan(out["R@1 ±"][1])


def test_a_damaged_run_is_named_in_one_line(tmp_path):
    done = run(tiny(epochs=1), results=tmp_path, progress=False)
    weights = load_file(done.path / "model.safetensors")
    save_file(weights | {"proxies.bias": torch.zeros(3, 3)}, done.path / "model.safetensors")
    with pytest.raises(WeightsError, match="does not have the checksum"):
        vptsp_core.load(done.path, "cpu")
    reseal_run(done.path)
    with pytest.raises(WeightsError, match="proxies.bias does not fit"):
        vptsp_core.load(done.path, "cpu")
    (done.path / "config.json").write_text("[1")
    with pytest.raises(WeightsError, match="config.json: unreadable"):
        vptsp_core.load(done.path, "cpu")
    (done.path / "config.json").write_text('{"alhpa": 0.5}')
    with pytest.raises(WeightsError, match="config.json: unknown key 'alhpa'; did you mean alpha"):
        run(tiny(epochs=1), results=tmp_path, progress=False)


def test_set_may_be_given_several_times(tmp_path):
    command = ["train", "--preset", "smoke", "--results", str(tmp_path), "--set", "method=frozen", "bitfit=false"]
    assert main([*command, "--set", "seed=3", "image_size=36", "--set", "seed=4"]) == 0
    (path,) = (tmp_path / "runs").iterdir()
    config = read_run(path).config
    assert (config.method, config.image_size, config.seed) == ("frozen", 36, 4)


FROZEN = ("--preset", "smoke", "--set", "method=frozen", "bitfit=false")
BAD_COMMANDS = {
    "unknown command": (["pretrain"], "unknown command 'pretrain'"),
    "unknown preset": (["train", "--preset", "cub"], "unknown preset 'cub'"),
    "not key=value": (["train", "--set", "alpha"], "write KEY=VALUE"),
    "no data folder": (["train", "--preset", "cub200-vits16"], "--data DIR"),
    "unknown backbone": (["train", "--set", "backbone=vit_smal"], "backbone 'vit_smal' is not a timm model"),
    "no such weights": (["train", "--set", "weights=nowhere.pth"], "nowhere.pth: no such file"),
    "no run": (["evaluate", "nowhere"], "holds no finished run"),
    "no epochs": (["train", "--set", "epochs=0"], "take method = 'frozen'"),
    "more classes than there are": (["train", "--set", "batch=128", "samples_per_class=1"], "lower batch"),
    "dense table on the host": (["train", "--class-table", "host"], "needs method = 'vptsp' with class_optimizer"),
    "no such place": (["train", "--class-table", "disk"], "class_table = 'disk' must be one of auto, device, host"),
    "nothing to measure": (["bench", "step", *FROZEN], "method = 'frozen' trains nothing"),
    "bench on no device": (["bench", "step", "--device", "banana"], "device 'banana' cannot be used here"),
    "fp16 on the CPU": (["train", "--set", "precision=fp16", "--device", "cpu"], "needs an NVIDIA GPU"),
}


@pytest.mark.parametrize(("command", "message"), BAD_COMMANDS.values(), ids=BAD_COMMANDS.keys())
def test_bad_input_is_one_line_and_status_2(command, message, tmp_path, capsys, monkeypatch):
    monkeypatch.undo()  # the real data set look-up
    monkeypatch.chdir(tmp_path)
    if command[0] == "train":
        command = [*command, "--results", str(tmp_path / "results")]
    assert main(command) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file() or path.parent.name == "runs"]


def test_pickled_code_in_a_weights_file_is_not_run(tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"norm.weight": Bomb()}, tmp_path / "bomb.pth")
    assert main(["train", "--set", f"weights={tmp_path}/bomb.pth", "--results", str(tmp_path)]) == 2
    assert "no code of a file is executed" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_results_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["train", "--preset", "smoke", "--results", str(tmp_path / "file" / "results")]) == 2
    error = capsys.readouterr().err
    assert "cannot write" in error and "choose another folder" in error and len(error.strip().splitlines()) == 1


def test_command_line_trains_evaluates_and_finds_again(tmp_path, capsys):
    command = ["train", "--preset", "smoke", "--set", "weights=random", "batch=16", "--results", str(tmp_path)]
    assert main(command) == 0
    path = capsys.readouterr().out.strip().splitlines()[-2]
    metrics = json.loads((vptsp_core.runs.run.Path(path) / "metrics.json").read_text())
    assert main(["evaluate", path]) == 0
    assert f"R@1 {metrics['R@1']:.4f}" in capsys.readouterr().out
    assert main(["--help"]) == 0 and main(["nonsense"]) == 2


def test_parse_change():
    assert [parse_change(f"a={v}")[1] for v in ("1", "0.5", "ema", "True", "None", "false")] == [
        1, 0.5, "ema", True, None, False,
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_medium_patch16_reg1_gap_256"])
def test_weights_of_another_image_size_are_resampled_as_timm_resamples_them(tmp_path, name):
    small = timm.create_model(name, img_size=64)
    save_file(small.state_dict(), tmp_path / "small.safetensors")
    ours = load_backbone(name, str(tmp_path / "small.safetensors"), 96)
    theirs = checkpoint_filter_fn(small.state_dict(), timm.create_model(name, img_size=96))["pos_embed"]
    assert ours.pos_embed.shape != small.pos_embed.shape
    torch.testing.assert_close(ours.pos_embed.detach(), theirs.detach(), rtol=0, atol=0)


def test_on_epoch_sees_every_epoch_and_changes_nothing(tmp_path):
    seen = []

    def watch(rows):
        seen.append([dict(row) for row in rows])

    watched = run(tiny(), results=tmp_path / "watched", progress=False, on_epoch=watch)
    assert [[row["epoch"] for row in rows] for rows in seen] == [[1], [1, 2], [1, 2, 3]]
    assert [row["loss"] for row in seen[-1]] == list(watched.history["loss"]) and "R@1" in seen[0][0]
    assert_same_run(run(tiny(), results=tmp_path / "alone", progress=False), watched)
    run(tiny(), results=tmp_path / "watched", progress=False, on_epoch=seen.append)  # finished: not trained again
    assert len(seen) == 3


@pytest.mark.parametrize("option", ["compile", "checkpointing", "class_table"])
def test_unknown_values_of_options_are_refused_before_anything_is_read(option, tmp_path):
    with pytest.raises(ConfigError, match=f"{option} = 'always' must be one of auto, "):
        run(preset("smoke"), results=tmp_path / "results", **{option: "always"})
    assert not (tmp_path / "results").exists()


def test_the_commit_is_that_of_this_project_only(tmp_path, monkeypatch):
    """The package can be installed in an environment inside the repository of another project."""
    package = tmp_path / ".venv" / "vptsp_core"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr("vptsp_core.runs.record.PACKAGE", package)
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # a hook's repository would be used
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *words], check=True)
    assert record._commit.__wrapped__() == "unknown"
    for words in (["add", "."], ["commit", "-q", "-m", "ours"]):
        subprocess.run([*git, *words], check=True)
    assert len(record._commit.__wrapped__()) == 12


def test_a_light_run_of_glyphs_is_trained_again_by_the_command_that_its_error_names(tmp_path, capsys, recwarn):
    done = run(preset("smoke", batch=16), results=tmp_path, progress=False)
    weights = (done.path / WEIGHTS).read_bytes()
    (done.path / WEIGHTS).unlink()
    with pytest.raises(WeightsError, match="a light run") as told:
        load(done.path)
    words = shlex.split(str(told.value).partition("python -m vptsp_core ")[2])
    (done.path / METRICS).unlink()
    settings = json.loads((done.path / CONFIG).read_text())
    del settings["lora_alpha"]  # as if an earlier version had written it
    (done.path / CONFIG).write_text(json.dumps(settings))
    assert main(words) == 0 and not recwarn.list and "warning" not in capsys.readouterr().err
    assert (done.path / WEIGHTS).read_bytes() == weights


def test_weights_after_a_dip_are_those_of_the_best_epoch(tmp_path, monkeypatch):
    """R@1 falls and then rises, but not above the first epoch."""
    reached = iter([0.5, 0.1, 0.3, 0.5])
    monkeypatch.setattr("vptsp_core.runs.run.evaluate", lambda *_: Scores({"R@1": next(reached)}, {}))
    whole, short = (run(tiny(epochs=n, cosine_T=3), results=tmp_path, progress=False) for n in (3, 1))
    ours, theirs = (load_file(each.path / WEIGHTS) for each in (whole, short))
    assert whole.metrics["epoch"] == 1 and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_damaged_finished_run_does_not_stop_the_others(tmp_path):
    config = tiny(epochs=1, steps_per_epoch=1)
    damaged = run(config, results=tmp_path, progress=False).path
    (damaged / METRICS).write_text("{}")
    with pytest.raises(VptspError, match=f"^1 of 2 runs failed; the first, {damaged.name}: .*not have the checksum"):
        many([config, config.replace(seed=1)], results=tmp_path, progress=False)
    assert run_folder(config.replace(seed=1), tmp_path).is_dir()


def test_a_model_larger_than_the_memory_is_one_line(tmp_path):
    with pytest.raises(TrainingError, match="full in making the model; lower batch, or make the model smaller"):
        run(tiny(prompts=10**14), results=tmp_path, progress=False)


def test_an_empty_option_of_evaluate_is_refused(tmp_path, capsys):
    assert main(["evaluate", str(tmp_path), "--data", ""]) == 2
    assert capsys.readouterr().err == "error: --data is empty; give a value, or leave it out\n"


def test_a_batch_that_cannot_be_filled_is_refused_before_images_are_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr("vptsp_core.runs.run.decoded", None)
    with pytest.raises(DataError, match="a batch draws 128 classes, the training set has 100; lower batch"):
        run(tiny(batch=128), results=tmp_path)
    assert not list(tmp_path.rglob("*.*"))
