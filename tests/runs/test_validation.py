"""The choice of an epoch on held-out training classes: which are held out, and one evaluation of the test set."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import vptsp_core
from tests.runs.test_run import Cut, assert_same_run, cut
from vptsp_core import preset, run
from vptsp_core.data import Benchmark, ImageSet
from vptsp_core.data.batches import decoded, eval_batches
from vptsp_core.data.holdout import held_out_classes, hold_out
from vptsp_core.deploy import evaluate as evaluate_command  # here, so that no test imports it while it is patched
from vptsp_core.errors import DataError
from vptsp_core.method.metrics import Scores
from vptsp_core.paper.report import record_table, selection_note, with_last_epoch
from vptsp_core.runs.checkpoints import CHECKPOINT
from vptsp_core.runs.folder import run_folder
from vptsp_core.runs.selection import keep_queries
from vptsp_core.runs.train import Trainer

CLASSES, EACH, SIDE = 21, 4, 40
NAMES = ("R@1", "MAP@R", "MAP@R released", "R-precision")


class Blots(ImageSet):
    """Noise around a colour per class, in a random order. Logs every image that is read."""

    def __init__(self, name="train", classes=CLASSES, seed=0, log=None):
        rng = np.random.default_rng(seed)
        labels = rng.permutation(np.repeat(np.arange(classes), EACH))
        super().__init__(name, labels, [f"{name} {i}" for i in range(classes)])
        colours = rng.integers(60, 200, (classes, 3))[self.labels, None, None]
        self.images = (colours + rng.integers(-50, 50, (len(self), SIDE, SIDE, 3))).astype(np.uint8)
        self.log = [] if log is None else log

    def image(self, index):
        self.log.append((self.name, index))
        return Image.fromarray(self.images[index])

    def fingerprint(self):
        return self.name


@pytest.fixture
def benchmark(monkeypatch):
    log = []
    made = Benchmark("glyphs", Blots("train", log=log), Blots("test", 8, 1, log))
    monkeypatch.setattr("vptsp_core.runs.run.load_benchmark", lambda name, data, partial: made)
    monkeypatch.setattr(evaluate_command, "load_benchmark", lambda name, data, partial: made)
    return made


def config(**changes):
    settings = dict(weights="random", steps_per_epoch=2, batch=16, epochs=3, selection="validation", lr=3e-3)
    return preset("smoke", **settings | changes)


def test_every_fifth_class_is_held_out():
    whole = Benchmark("some", Blots(), Blots("test", 3), gallery=Blots("gallery", 3))
    training, held_out = hold_out(whole)
    assert held_out.test.class_names == ("train 4", "train 9", "train 14", "train 19")
    assert training.train.num_classes == 17 and set(training.train.class_names).isdisjoint(held_out.test.class_names)
    assert training.test is whole.test and training.gallery is whole.gallery and held_out.gallery is None
    for part in (training.train, held_out.test):
        rows = [i for i, label in enumerate(whole.train.labels) if f"train {label}" in part.class_names]
        assert len(part) == len(rows) == EACH * part.num_classes and part.in_memory
        for own, row in enumerate(rows):
            assert part.class_names[part.labels[own]] == f"train {whole.train.labels[row]}"
            assert np.array_equal(np.asarray(part.image(own)), whole.train.images[row])
            assert part.describe(own) == f"train image {row}"
    prints = {images.fingerprint() for images in (whole.train, training.train, held_out.test)}
    assert len(prints) == 3 and hold_out(whole)[0].train.fingerprint() in prints
    with pytest.raises(DataError, match="train: too few of 9 classes can be held out, at least 10 of two"):
        hold_out(Benchmark("some", Blots(classes=9), Blots("test", 3)))


def test_a_class_of_one_image_is_never_held_out():
    """Its query can never hit. If all classes were like this, every epoch would score zero."""
    images = np.array([3, 1, 3, 1, 1, 3, 3, 2, 3, 1, 3, 3, 3, 3, 1, 3, 3])
    found = held_out_classes(images)
    assert np.flatnonzero(found).tolist() == [7, 13] and (images[found] > 1).all()
    assert not held_out_classes(np.array([1] * 40 + [2] * 9)).any() and held_out_classes(np.array([2] * 10)).sum() == 2


def test_both_parts_use_the_decoded_images(tmp_path):
    settings = config(pipeline="cached")
    whole = decoded(Benchmark("glyphs", Blots(), Blots("test", 3)), settings, tmp_path, progress=False)
    statistics = ((0.5,) * 3, (0.25,) * 3)
    for part in (hold_out(whole)[0].train, hold_out(whole)[1].test):
        assert part.store.pixels is whole.train.store.pixels and len(part.store) == len(part)
        found, classic = (
            torch.cat(list(eval_batches(part, each, statistics, 7, torch.device("cpu"))))
            for each in (settings, config(pipeline="classic"))
        )
        assert torch.equal(found, classic)


@pytest.mark.parametrize("pipeline", ["classic", "cached"])
def test_the_test_set_is_embedded_once_and_last(tmp_path, monkeypatch, benchmark, pipeline):
    embedded, log, real = [], benchmark.test.log, vptsp_core.runs.evaluate.embed

    def embed(model, images, *rest, **options):
        embedded.append(images.name)
        return real(model, images, *rest, **options)

    monkeypatch.setattr("vptsp_core.runs.evaluate.embed", embed)
    done = run(config(pipeline=pipeline), results=tmp_path, progress=False)
    assert embedded == ["glyphs validation"] * 3 + ["test"]
    if pipeline == "classic":
        asked = [name for name, _ in log]
        assert asked.index("test") == len(asked) - len(benchmark.test), "nothing before, and each image once"
    held_out = {i for i, label in enumerate(benchmark.train.labels) if label % 5 == 4}
    history = done.history
    assert {f"validation {name}" for name in NAMES} <= set(history) and history["validation R@1"].notna().all()
    chosen = int(history["validation R@1"].to_numpy().argmax())
    assert list(history["R@1"].notna()) == [epoch == chosen for epoch in range(3)]
    assert done.metrics["epoch"] == chosen + 1 and done.metrics["R@1"] == history["R@1"][chosen]
    assert done.metrics["validation R@1"] == history["validation R@1"].max()
    assert done.record["held_out"] == {"classes": 4, "images": len(held_out)}
    assert done.record["data"]["train"] == "train", "of the whole set"
    assert all(np.nanmean(done.queries[name]) == pytest.approx(done.metrics[name], abs=1e-6) for name in NAMES)
    assert record_table([done], {})["value"]["training classes held out"] == "4"
    assert "only this epoch was searched" in selection_note([done])
    last = with_last_epoch([done])[0].metrics["R@1 (last epoch)"]
    assert last == done.metrics["R@1"] if chosen == 2 else np.isnan(last), "the last epoch was not searched"


def test_training_never_sees_the_held_out_classes(tmp_path, monkeypatch, benchmark):
    seen, real = set(), Trainer._batches

    def batches(self, epoch):
        for images, labels in real(self, epoch):
            seen.update(self.images.class_names[label] for label in labels.tolist())
            yield images, labels

    monkeypatch.setattr(Trainer, "_batches", batches)
    done = run(config(steps_per_epoch=6), results=tmp_path, progress=False)
    assert seen == {f"train {i}" for i in range(CLASSES) if i % 5 != 4}
    model = vptsp_core.load(done.path, "cpu").model
    assert model.proxies.bias.shape[0] == 17


def scripted(monkeypatch, validation, test):
    """Replace the evaluation by given R@1: of each epoch on the held-out classes, and on the test set."""
    scores = iter(validation)

    def evaluate(model, benchmark, **options):
        if benchmark.test.name == "test":
            tested.append(learned(model))
            return Scores({"R@1": test}, {"R@1": np.array([test], np.float32)})
        return {"R@1": next(scores)}

    tested = []
    monkeypatch.setattr("vptsp_core.runs.run.evaluate", evaluate)
    return tested


def learned(model):
    """Return the tensors that retrieval needs, which are all that `load` builds."""
    return {name: value.clone() for name, value in model.learned_state(for_retrieval=True).items()}


def test_the_first_of_the_best_epochs_on_held_out_classes_is_chosen(tmp_path, monkeypatch, benchmark):
    weights = []
    real = Trainer._keep_weights

    def keep(self, row):
        real(self, row)
        weights.append(learned(self.model))

    monkeypatch.setattr(Trainer, "_keep_weights", keep)
    tested = scripted(monkeypatch, [0.2, 0.6, 0.6, 0.1], 0.3)
    done = run(config(epochs=4), results=tmp_path, progress=False)
    assert done.metrics == {"validation R@1": 0.6, "R@1": 0.3, "epoch": 2} and done.queries["R@1"] == np.float32(0.3)
    kept = load_file(done.path / "model.safetensors")
    for found in (kept, *tested):
        assert found.keys() == weights[1].keys() and all(torch.equal(found[name], weights[1][name]) for name in found)
    assert len(tested) == 1 and any(not torch.equal(kept[name], weights[2][name]) for name in kept)


def test_the_best_epoch_by_map_at_r(tmp_path, monkeypatch, benchmark):
    found = iter([(0.9, 0.2), (0.7, 0.5), (0.9, 0.4), (0.3, 0.1)])  # the last one is of the test set

    def evaluate(*_, **__):
        r_at_1, map_at_r = next(found)
        return Scores({"R@1": r_at_1, "MAP@R": map_at_r}, {"R@1": np.array([r_at_1], np.float32)})

    monkeypatch.setattr("vptsp_core.runs.run.evaluate", evaluate)
    done = run(config(selection="validation_map"), results=tmp_path, progress=False)
    assert done.metrics["epoch"] == 2 and done.metrics["validation MAP@R"] == 0.5 and done.metrics["R@1"] == 0.3
    assert "the best MAP@R on held-out" in selection_note([done])


@pytest.mark.parametrize("when", ["after the second epoch", "while the test set is searched"])
@pytest.mark.parametrize("changes", [dict(), dict(pipeline="cached", class_optimizer="rowwise")], ids=str)
def test_a_run_cut_short_ends_as_if_it_had_not_been(tmp_path, monkeypatch, benchmark, when, changes):
    whole = run(config(**changes), results=tmp_path / "whole", progress=False)
    evaluate = vptsp_core.runs.run.evaluate

    def cut_in_test(model, benchmark, **options):
        if benchmark.test.name == "test":
            raise Cut
        return evaluate(model, benchmark, **options)

    if when == "after the second epoch":
        cut(config(**changes), tmp_path, monkeypatch)
    else:
        with monkeypatch.context() as patch, pytest.raises(Cut):
            patch.setattr("vptsp_core.runs.run.evaluate", cut_in_test)
            run(config(**changes), results=tmp_path / "cut", progress=False)
    assert (run_folder(config(**changes), tmp_path / "cut") / CHECKPOINT).exists()
    torch.rand(7)
    resumed = run(config(**changes), results=tmp_path / "cut", progress=False)
    assert_same_run(whole, resumed)
    assert whole.metrics == resumed.metrics


def test_a_frozen_run_holds_nothing_out(tmp_path, benchmark):
    frozen = config(method="frozen", bitfit=False)
    done = run(frozen, results=tmp_path, progress=False)
    assert frozen.hash() == frozen.replace(selection="released").hash()
    assert "held_out" not in done.record and "validation R@1" not in done.history and len(done.history) == 1


def test_of_equal_epochs_the_first_ones_queries_are_kept():
    kept, history = {}, []
    for right in ([1, 0], [0, 1]):
        scores = Scores({"R@1": 0.5}, {"R@1": np.array(right, np.float32)})
        keep_queries(kept, scores, history, "released")
        history.append(scores)
    assert kept["R@1"].tolist() == [1, 0]


def test_the_last_epoch_is_evaluated_even_before_eval_start(tmp_path):
    config = preset("smoke", weights="random", steps_per_epoch=1, batch=16, epochs=3, eval_start=9)
    assert run(config, results=tmp_path, progress=False).history["R@1"].notna().tolist() == [False, False, True]
