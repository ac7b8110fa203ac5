"""A flipped bit or an edit by hand is reported, and such a file is never used."""

import json
import os
import shutil

import numpy as np
import pytest
import torch
from reseal import reseal_run

import vptsp_core
from tests.deploy.test_own_images import TWELVE, put
from tests.runs.test_embedder import learned
from vptsp_core import preset, run
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.deploy.index import read_index
from vptsp_core.deploy.update import update
from vptsp_core.errors import DataError, VptspError, WeightsError
from vptsp_core.runs.embedder_file import read_saved
from vptsp_core.runs.folder import read_run
from vptsp_core.runs.run import many
from vptsp_core.system import seals


def flipped(content: bytes, at: int, bit: int) -> bytes:
    out = bytearray(content)
    out[at] ^= 1 << bit
    return bytes(out)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(preset("smoke", epochs=1), results=tmp_path_factory.mktemp("results"), progress=False)


def test_a_checksum_covers_values_types_and_tensors():
    values = {"a": 1, "b": [1.5, None, {"c": "ü"}], 3: (1, 2)}
    kept = json.loads(json.dumps(seals.sealed(values)))
    assert seals.unsealed(kept) == {"a": 1, "b": [1.5, None, {"c": "ü"}], "3": [1, 2]}
    for other in ({**kept, "a": 2}, {**kept, "new": 0}, {k: v for k, v in kept.items() if k != "checksum"}):
        with pytest.raises(ValueError, match="does not fit its checksum"):
            seals.unsealed(other)
    tensors = {"x": torch.arange(6.0).reshape(2, 3), "y": torch.tensor(1.0)}
    header = seals.sealed({}, tensors)
    seals.unsealed(header, dict(reversed(tensors.items())))
    for other in (
        {**tensors, "x": tensors["x"].T.contiguous()},
        {**tensors, "x": tensors["x"].double()},
        {"x": tensors["x"]},
        {"x": tensors["x"], "z": tensors["y"]},
    ):
        with pytest.raises(ValueError, match="do not fit their checksum"):
            seals.unsealed(header, other)


@pytest.mark.parametrize(
    "name", ["config.json", "history.csv", "metrics.json", "record.json", "queries.npz", "model.safetensors"]
)
def test_no_flipped_bit_of_a_run_goes_unnoticed(finished, tmp_path, name):
    folder = tmp_path / finished.path.name
    shutil.copytree(finished.path, folder)
    whole, rng = (folder / name).read_bytes(), np.random.default_rng(0)

    def read():
        saved, again = read_saved(folder), read_run(folder)
        return saved.config, saved.metrics, saved.data, again.record, again.history.to_csv(), str(again.queries)

    clean, reported = read(), 0
    for at in rng.integers(0, len(whole), 10):
        (folder / name).write_bytes(flipped(whole, at, int(rng.integers(8))))
        try:
            assert read() == clean, "only another spelling of a number, such as 1E5 for 1e5, may pass"
        except WeightsError as error:
            assert name in str(error) and "\n" not in str(error)
            reported += 1
    assert reported >= 8


def test_each_command_reports_an_edit_and_accepts_one_with_new_checksums(finished, tmp_path, capsys):
    folder = tmp_path / "runs" / finished.path.name
    shutil.copytree(finished.path, folder)
    text = (folder / "config.json").read_text()
    edited = text.replace(f'"resize": {finished.config.resize}', f'"resize": {finished.config.resize + 1}')
    assert edited != text
    (folder / "config.json").write_text(edited)
    for command in (["evaluate", str(folder)], ["export", str(folder), "--to", str(tmp_path / "x.onnx")],
                    ["index", str(tmp_path), "--model", str(folder), "--to", str(tmp_path / "index")],
                    ["train", "--preset", "smoke", "--set", "epochs=1", "--results", str(tmp_path)]):  # fmt: skip
        assert main(command) == 2
        error = capsys.readouterr().err
        assert f"{folder}/config.json: does not have the checksum in record.json" in error and error.count("\n") == 1
    reseal_run(folder)
    assert vptsp_core.load(folder, "cpu").config.resize == finished.config.resize + 1


def test_evaluate_warns_of_images_that_the_run_was_not_tested_on(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    config = preset("smoke", **{**CUB, "dataset": "own", "epochs": 1})
    path = run(config, data=tmp_path / "images", results=tmp_path / "out", device="cpu", progress=False).path
    saved = str(vptsp_core.load(path, "cpu").save(tmp_path / "own.safetensors"))
    for model in (str(path), saved):
        assert main(["evaluate", model, "--data", str(tmp_path / "images"), "--device", "cpu"]) == 0
        assert capsys.readouterr().err == ""
    (tmp_path / "images" / "class 00").rename(tmp_path / "images" / "class 99")  # another fifth is tested
    for model in (str(path), saved):
        assert main(["evaluate", model, "--data", str(tmp_path / "images"), "--device", "cpu"]) == 0
        error = capsys.readouterr().err
        assert error.startswith("warning: these are not the test images that the run was tested on")


CUB = dict(dataset="cub200", weights="random", method="linear", bitfit=False, batch=4, samples_per_class=2,
           steps_per_epoch=1, image_size=40, resize=40, pipeline="classic", epochs=2)  # fmt: skip


def bird_folder(root, side):
    put(root / "cub200" / "images", {f"{i:03}.bird": 2 for i in (1, 2, 3, 101, 102)}, side)
    return root


def test_a_run_on_other_images_is_neither_returned_nor_resumed(tmp_path, monkeypatch):
    """A description names a data set, but only a fingerprint identifies its images."""
    one, other = (bird_folder(tmp_path / name, side) for name, side in (("one", 24), ("other", 48)))
    config, options = preset("smoke", **CUB), dict(results=tmp_path / "out", progress=False)
    monkeypatch.setattr("vptsp_core.data.assemble._miscounts", lambda *_: [])  # five classes count as a whole data set

    def stop(history):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(config, data=one, on_epoch=stop, **options)
    with pytest.raises(WeightsError, match="checkpoint .*: begun with other images; give those, or delete it"):
        run(config, data=other, **options)
    done = run(config, data=one, **options)
    assert len(done.record["stretches"]) == 2
    for call in (lambda data: run(config, data=data, **options), lambda data: many([config], data=data, **options)[0]):
        assert call(one).metrics == done.metrics == call(None).metrics
        with pytest.warns(UserWarning, match="finished runs are not compared with these images: cub200: no folder "):
            assert call(tmp_path).metrics == done.metrics
        with pytest.raises(VptspError, match="made with other images of cub200 than these; give those, or another"):
            call(other)


def test_own_images_are_identified_by_their_content(tmp_path):
    put(tmp_path / "images", TWELVE)
    before = load_benchmark("own", tmp_path / "images")
    path, first = before.train.paths[0], before.fingerprint()
    content, stat = path.read_bytes(), path.stat()
    path.write_bytes(flipped(content, len(content) // 2, 0))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size and load_benchmark("own", tmp_path / "images").fingerprint() != first
    shutil.copytree(tmp_path / "images", tmp_path / "copy")
    (tmp_path / "copy" / path.relative_to(tmp_path / "images")).write_bytes(content)
    assert load_benchmark("own", tmp_path / "copy").fingerprint() == first, "the same images in another folder"


def test_no_flipped_bit_of_an_index_goes_unnoticed(tmp_path):
    put(tmp_path / "images", {"a": 6})
    model = learned(method="vpt").save(tmp_path / "bird.safetensors")
    update(tmp_path / "images", tmp_path / "index", vptsp_core.load(model, "cpu"), model=model)
    path, rng = tmp_path / "index" / "index.safetensors", np.random.default_rng(0)
    whole = path.read_bytes()
    for at in rng.integers(0, len(whole), 30):
        path.write_bytes(flipped(whole, at, int(rng.integers(8))))
        with pytest.raises(DataError, match=r"index.safetensors: .*delete that file and call index again"):
            read_index(tmp_path / "index")
    with pytest.raises(VptspError, match="call index again"):
        update(tmp_path / "images", tmp_path / "index", vptsp_core.load(model, "cpu"), model=model)
    path.unlink()
    assert update(tmp_path / "images", tmp_path / "index", vptsp_core.load(model, "cpu"), model=model)[1].embedded == 6
