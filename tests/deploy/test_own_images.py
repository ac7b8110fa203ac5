"""One's own images: how they are split, what is planned for them, what is told in the end."""

import json
import random
import re
import unicodedata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw

import vptsp_core
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.data.holdout import held_out_classes, hold_out
from vptsp_core.deploy import own_images
from vptsp_core.deploy.own_plan import DENSE_CLASSES, Machine, plan
from vptsp_core.errors import ConfigError, DataError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import preset
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.runs.folder import read_run

VIT_S = (12, 384, 16)
GB = 1e9


def machine(gpu=True, memory=80 * GB, host=128 * GB, disk=1e13, processes=1):
    return Machine(gpu, memory, host, disk, processes)


def put(root, sizes, side=24):
    """Folders of drawn shapes; the class decides colour and shape, the image where it lies."""
    draw = random.Random(0)
    for number, (label, count) in enumerate(sizes.items()):
        (root / label).mkdir(parents=True)
        colour = tuple(int(40 + 50 * (number // 4**digit % 4)) for digit in range(3))
        for i in range(count):
            image = Image.new("RGB", (side, side), "white")
            x, y = draw.randrange(10), draw.randrange(10)
            shape = ImageDraw.Draw(image).ellipse if number % 2 else ImageDraw.Draw(image).rectangle
            shape((x, y, x + 12, y + 12), fill=colour)
            image.save(root / label / f"{i}.png")
    return root


TWELVE = {f"class {i:02}": 3 for i in range(12)}


def training(folder) -> list[str]:
    """The command on the images in ``folder / "images"``."""
    return ["train", "--data-folder", str(folder / "images"), "--results", str(folder / "out"), "--device", "cpu"]


# ---- the split -----------------------------------------------------------------------------------


def test_every_fifth_class_is_tested_and_the_fifth_of_the_rest_chooses(tmp_path):
    benchmark = load_benchmark("own", put(tmp_path, TWELVE))
    assert benchmark.test.class_names == ("class 04", "class 09")
    training, validation = hold_out(benchmark)
    assert validation.test.class_names == ("class 05", "class 11")
    sets = [set(each.class_names) for each in (training.train, validation.test, benchmark.test)]
    assert sum(map(len, sets)) == 12 == len(set.union(*sets)), "three groups that share no class"


def test_classes_of_one_image_are_trained_on_and_never_tested(tmp_path):
    put(tmp_path, {f"{i:02}": 1 if i == 4 else 2 for i in range(11)})
    with pytest.warns(UserWarning, match="1 class.es. of one image are trained on and never tested"):
        benchmark = load_benchmark("own", tmp_path)
    assert benchmark.test.class_names == ("05", "10") and "04" in benchmark.train.class_names


def test_a_table_of_paths_and_classes_is_split_like_folders(tmp_path):
    folders = load_benchmark("own", put(tmp_path, TWELVE))
    rows = [f"{label}/{i}.png,{label}" for label in reversed(TWELVE) for i in range(3)]
    (tmp_path / "split.csv").write_text("\n".join(["path,class", *rows]))
    table = load_benchmark("own", tmp_path)
    assert table.test.class_names == folders.test.class_names and table.train.paths == folders.train.paths


def test_a_table_with_a_split_decides(tmp_path):
    put(tmp_path, {"a": 2, "b": 2, "c": 2, "d": 2})
    rows = [f"{label}/{i}.png,{label},{'test' if label in 'ad' else 'train'}" for label in "abcd" for i in range(2)]
    (tmp_path / "split.csv").write_text("\n".join(["path,class,split", *rows]))
    benchmark = load_benchmark("own", tmp_path)
    assert benchmark.test.class_names == ("a", "d") and benchmark.train.class_names == ("b", "c")
    rows = [row.replace("a/1.png,a,test", "a/1.png,a,gallery").replace(",test", ",query") for row in rows]
    (tmp_path / "split.csv").write_text("\n".join(["path,class,split", *rows]))
    with pytest.raises(DataError, match="1 class to test on"):  # a gallery of one class
        load_benchmark("own", tmp_path)


TABLE = [(f"{label}/{i}.png", label, "test" if label > "class 08" else "train") for label in TWELVE for i in range(3)]


def written(folder, rows=TABLE, *, header="path,class,split", delimiter=",", end="\n", encoding="utf-8"):
    """``split.csv`` of these rows, in which nothing is quoted."""
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (folder / "split.csv").write_bytes((end.join(lines) + end).encode(encoding))


def files(benchmark):
    sets = (benchmark.train, benchmark.test)
    return {(path, images.class_names[label])
            for images in sets for path, label in zip(images.paths, images.labels, strict=True)}  # fmt: skip


@pytest.mark.parametrize("way", [
    dict(delimiter="\t"), dict(delimiter="|"), dict(delimiter=";", end="\r\n", encoding="utf-8-sig"),
    dict(header="Path, CLASS,Split", rows=[(path, label, f" {split.upper()}") for path, label, split in TABLE]),
    dict(header="path,class,split,,", rows=[(*row, "", "") for row in [*TABLE, ("", "", "")]]),
    dict(rows=[(str(i), *row) for i, row in enumerate(TABLE)], header=",path,class,split"),  # pandas
    dict(rows=[(path.replace("/", "\\"), f' "{label}"', split) for path, label, split in TABLE]),
    dict(rows=[(f"./{path}", label, split) for path, label, split in TABLE]),
], ids=str)  # fmt: skip
def test_a_table_as_programs_and_people_write_it(way, tmp_path):
    put(tmp_path, TWELVE)
    written(tmp_path)
    wanted = files(load_benchmark("own", tmp_path))
    written(tmp_path, **way)
    assert files(load_benchmark("own", tmp_path)) == wanted and len(wanted) == 36
    written(tmp_path, [(str(tmp_path / path), label, split) for path, label, split in TABLE])
    assert files(load_benchmark("own", tmp_path)) == wanted, "absolute paths"


def test_classes_that_look_alike(tmp_path):
    put(tmp_path, TWELVE | {"C0": 2, "c0": 2})
    with pytest.warns(UserWarning, match="the classes C0 and c0 differ only in case or spaces; if they are one class"):
        load_benchmark("own", tmp_path)
    rows = [*TABLE, *((f"class 09/{i}.png", unicodedata.normalize(form, "Möwe"), "test")
                      for i, form in ((0, "NFC"), (1, "NFD")))]  # fmt: skip
    written(tmp_path, [row for row in rows if row[1] != "class 09"])
    assert load_benchmark("own", tmp_path).test.class_names.count("Möwe") == 1, "however the accent is stored"


def test_rows_to_test_on_alone(tmp_path, capsys):
    """Frozen needs nothing else, nor does the evaluation of a model that is trained."""
    folder = put(tmp_path / "images", TWELVE)
    written(folder, [row for row in TABLE if row[2] == "test"])
    command = ["train", "--preset", "demo", "--data", str(folder), "--results", str(tmp_path / "out")]
    settings = ["--set", "dataset=own", "image_size=24", "resize=24"]
    assert main([*command, *settings]) == 2
    assert "no images to train on; give some the split train, or take method=frozen" in capsys.readouterr().err
    assert main([*command, *settings, "method=frozen", "bitfit=False"]) == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert main(["evaluate", str(run), "--data", str(folder), "--device", "cpu"]) == 0
    assert main(["data", "check", "own", "--data", str(folder), "--decode"]) == 0
    assert main(["train", "--data-folder", str(folder), "--results", str(tmp_path / "own")]) == 2
    assert "0 class(es) to train on, at least 2 are needed" in capsys.readouterr().err


MISTAKES = {
    "too few": (lambda root: put(root, {f"{i}": 2 for i in range(9)} | {"single": 1}),
                "holds 9 class(es) of two or more images, at least 10 are needed"),
    "no folders": (lambda root: Image.new("RGB", (8, 8)).save(root / "a.png"), "no class folders with images, "),
    "deeper": (lambda root: [put(root / each, TWELVE) for each in ("train", "val")],
               "no class folders with images, <class>/<image>.jpg, in {0}; name the folder that holds the classes, or "
               "write split.csv"),
    "row": (lambda root: (root / "split.csv").write_text("path,class\na.png,\n"), "line 2: each line is path,class"),
    "no folder": (lambda root: root.rmdir(), "own: no folder {0}; name the one that holds your images"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(make, message, tmp_path, capsys):
    folder = tmp_path / "images"
    folder.mkdir()
    make(folder)
    assert main(["train", "--data-folder", str(folder), "--results", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(folder) in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_warning_is_told_once_a_command(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    (tmp_path / "images" / "notes.txt").write_text("")
    (tmp_path / "images" / "empty").mkdir()
    command = training(tmp_path)
    for _ in range(2):  # the second command tells it again
        assert main([*command, "--set", *SHORT, "epochs=0"]) == 0
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line.startswith("warning")]
        assert len(lines) == 1 and all(line.startswith("warning: own: ") for line in lines), lines
        assert "(nothing was trained, epochs=0)" in told.out and "Trained in" not in told.out


def test_nothing_is_written_among_the_images(tmp_path):
    put(tmp_path / "images", TWELVE)
    before = sorted(tmp_path.joinpath("images").rglob("*"))
    assert main([*training(tmp_path), "--set", *SHORT, "epochs=0", "pipeline=cached"]) == 0
    assert sorted(tmp_path.joinpath("images").rglob("*")) == before
    assert [*tmp_path.joinpath("out", ".vptsp-cache").glob("own-*")], "the decoded images are with the results"


@pytest.mark.parametrize("words", [
    ["train", "--data-folder", "."],  # ./results
    ["train", "--data-folder", ".", "--results", "../out", "--cache", "cache"],
    ["train", "--preset", "demo", "--set", "dataset=folder", "--data", "."],
    ["data", "cache", "own", "--data", "."],
], ids=" ".join)  # fmt: skip
def test_a_place_among_the_images_is_refused(words, tmp_path, capsys, monkeypatch):
    """The folder is a user's: whatever is written there is a class to the next program that reads it."""
    put(tmp_path / "images", TWELVE)
    monkeypatch.chdir(tmp_path / "images")
    before = sorted(Path().rglob("*"))
    settings = ["--set", "backbone=demo_vit", "image_size=24", "resize=24"] if words[0] == "train" else []
    assert main([*words, *settings]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f" is in {tmp_path / 'images'}, the folder of your images, where nothing is written; " in error, error
    assert ("--cache or VPTSP_CACHE" if "cache" in words else "--results or VPTSP") in error
    assert sorted(Path().rglob("*")) == before


def test_training_images_that_are_all_alike(tmp_path):
    for label in TWELVE:
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            colour = (90, 90, 90) if label <= "class 08" else (i * 40, 0, 99)
            Image.new("RGB", (24, 24), colour).save(tmp_path / "images" / label / f"{i}.png")
    written(tmp_path / "images")
    changes = dict(dataset="folder", backbone="demo_vit", image_size=24, resize=24, start="proxies", pipeline="classic")
    config = preset("demo", **changes, epochs=1, steps_per_epoch=1, batch=4, selection="last")
    with pytest.raises(DataError, match="sees no difference between the 27 training images"):
        vptsp_core.run(config, data=tmp_path / "images", results=tmp_path / "out", device="cpu")


# ---- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("memory", [4, 16, 80])
@pytest.mark.parametrize("count", [10, 50, 1_000, 100_000])
def test_plans_fit_classes_and_memory(count, memory, gpu):
    remaining = count - count // 5
    found = plan(np.full(remaining, 6), 2, machine(gpu, memory * GB, memory * GB), VIT_S, {})
    config = found.config
    trained = remaining - remaining // 5 if config.selection == "validation" else remaining
    assert config.selection == ("validation" if count > 10 else "last")
    assert f"{trained:,} classes to learn from" in found.reasons[0]
    assert config.class_optimizer == ("rowwise" if count == 100_000 else "dense")
    table = trained * config.class_layers * config.class_prompts * 384 * 4
    assert table * 3 <= memory * GB / 2
    assert config.batch // config.samples_per_class <= trained and 2 <= config.batch <= 64
    assert 100 * 196 * 384 * 12 * config.batch <= memory * GB / 2, "a step takes half of the memory at most"
    assert config.epochs * config.steps_per_epoch <= (20_000 if gpu else 600)
    assert config.pipeline == "cached"


def test_few_images_are_not_learned_by_heart_and_many_end():
    few = plan(np.full(8, 5), 10, machine(), VIT_S, {}).config
    assert few.epochs * few.steps_per_epoch == 100 and few.batch == 40
    many = plan(np.full(500_000, 20), 10, machine(disk=100 * GB), VIT_S, {}).config
    assert many.epochs * many.steps_per_epoch == 20_000 and many.pipeline == "classic"


def test_any_sizes_make_a_run_whose_batches_can_be_drawn():
    rng = np.random.default_rng(0)
    for _ in range(150):
        count = int(np.exp(rng.uniform(np.log(8), np.log(3_000))))
        classes = rng.integers(1, int(np.exp(rng.uniform(0.7, 4))) + 1, count)
        processes = int(rng.integers(1, 9))
        here = machine(bool(rng.integers(2)), rng.uniform(1, 80) * GB, rng.uniform(1, 200) * GB, 1e11, processes)
        small = bool(rng.integers(2))
        changes = {"backbone": "demo_vit"} if small else {}
        found = plan(classes, 10, here, (6, 96, 8) if small else VIT_S, changes)
        assert found == plan(classes.copy(), 10, here, (6, 96, 8) if small else VIT_S, changes)
        config = found.config
        config.check_depth(6 if small else 12)
        kept = classes[~held_out_classes(classes)] if config.selection == "validation" else classes
        labels = np.repeat(np.arange(len(kept)), kept)
        sampler = ClassBalancedSampler(labels, config.batch, config.samples_per_class, 0, 1)
        assert len(next(sampler.epoch(0))) == config.batch
        drawn = config.batch // config.samples_per_class
        assert drawn % processes == 0 or drawn < processes
        assert (config.class_optimizer == "rowwise") >= (len(kept) > DENSE_CLASSES)


def test_what_is_set_stays_set():
    for changes in (
        {"batch": 24}, {"batch": 30, "samples_per_class": 3}, {"image_size": 320}, {"method": "full"}, {"epochs": 3},
        {"augmentation": "adv"}, {"selection": "released"}, {"alpha": 0.1, "lr": 0.01, "optimizer": "sgd"},
        {"class_prompts": 7}, {"samples_per_class": 4},
    ):  # fmt: skip
        found = plan(np.full(40, 10), 10, machine(), VIT_S, changes)
        assert {key: getattr(found.config, key) for key in changes} == changes
        assert all(f"{key}={value}" in found.reasons[-1] for key, value in changes.items())


def test_the_plan_names_what_it_chose():
    def said(count=40, here=None, **changes):
        return "\n".join(plan(np.full(count, 10), 10, here or machine(), VIT_S, changes).reasons)

    assert "preset cub200-vits16 with optimizer=adamw; class prompts of " in said()
    assert "class prompts" not in said(method="linear") and "(class_optimizer=rowwise)" in said(2_000)
    assert "(class_optimizer=rowwise)" in said(here=machine(memory=5e7)), "little memory"
    drawn = said(epochs=3, steps_per_epoch=7, batch=32, samples_per_class=4)
    assert "batch=32: 4 image(s) of each of 8 classes; of each class 21 images are drawn" in drawn
    assert "epochs=0: nothing is trained" in said(epochs=0)
    with pytest.raises(ConfigError, match="epochs = 0 with start = 'released' makes no model"):
        said(epochs=0, start="released")


def test_learning_begins_from_the_images_where_the_head_is_no_wider_than_the_backbone():
    def start(**changes):
        found = plan(np.full(40, 10), 10, machine(), VIT_S, changes)
        return found.config.start, [line for line in found.reasons if line.startswith("learning begins")]

    told = "learning begins from the frozen backbone's embeddings of your images (start=proxies)"
    assert start() == ("proxies", [told])
    assert start(embed_dim=385) == ("released", []) and start(start="released") == ("released", [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dataset": "sop"}, "leave it out"), ({"method": "frozen"}, "leave it out"), ({"batch": "x"}, "batch = 'x'"),
     ({"bathc": 3}, "did you mean batch"), ({"batch": 0}, "batch = 0"), ({"samples_per_class": 0}, "must be at least"),
     ({"image_size": 0}, "image_size = 0")],
)  # fmt: skip
def test_what_cannot_be_set_is_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(np.full(40, 10), 10, machine(), VIT_S, changes)


def test_one_class_cannot_be_trained_on():
    with pytest.raises(ConfigError, match="at least 2"):
        plan(np.full(1, 10), 10, machine(), VIT_S, {})


# ---- a whole run ---------------------------------------------------------------------------------

SHORT = ["backbone=demo_vit", "epochs=2", "steps_per_epoch=3"]


def test_a_folder_is_trained_compared_and_used(tmp_path, capsys, monkeypatch):
    put(tmp_path / "images", TWELVE)
    command = training(tmp_path)
    assert main([*command, "--set", *SHORT]) == 0
    said = capsys.readouterr().out
    assert "2 classes (6 images) are kept for testing\n8 classes to learn from; 2 others choose the epoch" in said
    assert "6 queries (classes: 2, none of them trained on; under 30, so no intervals are given):" in said
    path = re.search(r"The model is in (.*)\. To use it", said)[1]
    trained, record = read_run(path), json.loads((tmp_path / path / own_images.SUMMARY).read_text())
    frozen = read_run(trained.path.with_name(record["frozen"]))
    assert frozen.config.method == "frozen" and trained.config.selection == "validation"
    assert "validation R@1" in trained.history and trained.record["held_out"]["classes"] == 2
    for metric, row in record["gain"].items():
        ours, theirs = trained.queries[metric], frozen.queries[metric]
        assert row["difference"] == pytest.approx(100 * (ours.mean(dtype=float) - theirs.mean(dtype=float)), abs=1e-4)
        assert row["difference"] == pytest.approx(row["trained"] - row["frozen"], abs=1e-3)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["queries"] == 6 and row["verdict"] == own_images.UNCLEAR, "so few tell no more"
    (tmp_path / "images" / "class 00" / "0.png").rename(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(said.split("To use it:\n")[1].split("\n")[i].strip() for i in range(2)), names)
    assert names["embeddings"].shape == (1, 96)
    (tmp_path / "image.jpg").rename(tmp_path / "images" / "class 00" / "0.png")
    before = (trained.path / "metrics.json").stat().st_mtime_ns
    monkeypatch.setattr(own_images, "machine", lambda *_: machine(memory=1.0))  # the plan of the first call is kept
    assert main([*command, "--set", *SHORT]) == 0
    assert capsys.readouterr().out == said and (trained.path / "metrics.json").stat().st_mtime_ns == before
    (plan_file,) = (tmp_path / "out" / "plans").iterdir()
    assert main([*command, "--data", str(tmp_path)]) == 2
    assert "leave it out" in capsys.readouterr().err
    plan_file.write_text("{")
    assert main([*command, "--set", *SHORT]) == 2
    assert f"{plan_file}: no plan can be read" in capsys.readouterr().err


BETTER, WORSE, UNCLEAR = "better", "worse", own_images.UNCLEAR


def one_run(folder, values, **changes):
    """A run whose queries have these values of R@1; by MAP@R the first has nothing to be found."""
    values = np.asarray(values, np.float32)
    queries = {"R@1": values, "MAP@R": np.append(np.nan, values[1:]).astype(np.float32)}
    metrics = {name: float(np.nanmean(each)) for name, each in queries.items()}
    config = {"dataset": "own", "selection": "validation", "epochs": 10, "start": "released"} | changes
    return SimpleNamespace(
        path=folder, metrics=metrics | {"epoch": config.pop("epoch", 3)}, config=RunConfig(**config), queries=queries,
        record={"data": {"name": "own", "test": "x"}},
    )  # fmt: skip


def told(tmp_path, before, after, **changes):
    """The summary of a comparison of two such runs."""
    frozen, trained = one_run(tmp_path / "frozen", before), one_run(tmp_path / "trained", after, **changes)
    return own_images.summary(frozen, trained, own_images.compare(frozen, trained), 7)


ZEROS, ONES, MIXED = np.zeros(40), np.ones(40), np.arange(40) % 2


@pytest.mark.parametrize(
    ("before", "after", "verdict", "sentence"),
    [(ZEROS, ONES, BETTER, "Training helped (epoch 3 of 10 is kept). Beside the frozen backbone, R@1 is better; "),
     (ONES, ZEROS, WORSE, "Training HARMED: use the frozen backbone (epoch 3 of 10 is kept). "),
     (MIXED, 1 - MIXED, UNCLEAR, "Training made no difference that can be told from chance (epoch 3 of 10 is kept)."),
     (ONES, ONES, UNCLEAR, "R@1 is not told apart by chance; MAP@R is not told apart by chance."),
     (ZEROS[:29], ONES[:29], UNCLEAR, "Training made no difference that can be told from chance")],
)  # fmt: skip
def test_one_sentence_says_whether_training_helped(before, after, verdict, sentence, tmp_path):
    gain = own_images.compare(one_run(tmp_path, before), one_run(tmp_path, after))
    assert gain["verdict"]["R@1"] == verdict
    assert gain["queries"].tolist() == [len(before), len(before) - 1], "one of a class with nothing else to be found"
    text = told(tmp_path, before, after)
    assert sentence in text and f"{len(before)} queries (classes: 7, none of them trained on" in text
    assert ("under 30, so no intervals are given" in text) == (len(before) < 30) == (" [" not in text)


def test_the_table_has_intervals(tmp_path):
    text = told(tmp_path, np.repeat([0, 1], 20), np.repeat([0, 1], [10, 30]))
    assert re.search(r"frozen +50\.0 \[35\.0, 65\.0\] +51\.3 \[", text)
    assert re.search(r"trained - frozen +\+25\.00 \[\+12\.50, \+40\.00\]", text)


def test_what_was_not_trained_is_not_said_to_be_trained(tmp_path):
    text = told(tmp_path, ZEROS, ONES, epoch=0, start="proxies")
    assert "The start from your images helped (epoch 0 of 10 is kept). Beside" in text
    text = told(tmp_path, ONES, ZEROS, epoch=0, epochs=0, start="proxies", selection="released")
    assert "The start from your images HARMED: use the frozen backbone (nothing was trained, epochs=0). " in text
    assert "optimistic" not in text and "optimistic" in told(tmp_path, ZEROS, ONES, selection="released")
