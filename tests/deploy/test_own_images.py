"""Your own images: how they are split, what is planned for them, and what is reported."""

import functools
import random
import re
import shutil
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw, features

import vptsp_core
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.data.holdout import held_out_classes, hold_out
from vptsp_core.deploy import own_images
from vptsp_core.deploy.own_plan import DENSE_CLASSES, Machine, candidates, plan
from vptsp_core.errors import ConfigError, DataError
from vptsp_core.method.config import RunConfig
from vptsp_core.method.presets import parse_change, preset
from vptsp_core.method.sampler import ClassBalancedSampler
from vptsp_core.runs.folder import read_run
from vptsp_core.runs.light import copy_light

VIT_S = (12, 384, 16)
GB = 1e9


def machine(gpu=True, memory=80 * GB, host=128 * GB, disk=1e13, processes=1):
    return Machine(gpu, memory, host, disk, processes)


def put(root, sizes, side=24):
    """Write folders of drawn shapes: the class decides colour and shape, the image decides the place."""
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
TABLE = [(f"{label}/{i}.png", label, "test" if label > "class 08" else "train") for label in TWELVE for i in range(3)]


def written(folder, rows=TABLE, *, header="path,class,split", delimiter=",", encoding="utf-8", first=""):
    """Write ``split.csv`` of these rows without quotes."""
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (folder / "split.csv").write_text(first + "\n".join(lines) + "\n", encoding)


def files(benchmark):
    sets = (benchmark.train, benchmark.test)
    return {(path, images.class_names[label])
            for images in sets for path, label in zip(images.paths, images.labels, strict=True)}  # fmt: skip


def training(folder) -> list[str]:
    """Return the command for the images in ``folder / "images"``."""
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


def test_ignored_files_and_folders_are_named(tmp_path):
    put(tmp_path, TWELVE)
    (tmp_path / "empty").mkdir()
    put(tmp_path / "class 03" / "more", {"x": 4, "x/y": 2, ".hidden": 5})
    for name in ("a.heic", "b.HEIC", "sub/c.heic", "d.dng"):
        (tmp_path / "class 00" / "sub").mkdir(exist_ok=True)
        (tmp_path / "class 00" / name).write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert load_benchmark("own", tmp_path).test.class_names == ("class 04", "class 09")
    (said,) = [str(each.message) for each in caught]
    assert f"6 file(s) or folder(s) in {tmp_path} are ignored, the first class 00/" in said
    assert "; 6 image(s) in sub-folders of class folders are not used" in said
    assert said.endswith("; 3 .heic and 1 .dng are not read; convert them to JPEG or PNG")


@pytest.mark.parametrize("way", [
    dict(delimiter="\t"), dict(delimiter="|"), dict(delimiter=";"),
    dict(first="\n\n"), dict(first="sep=|\n", delimiter="|"), dict(first=",,\n"),
    dict(rows=[(path, label, split.upper()) for path, label, split in TABLE], header="Path,CLASS, Split"),
    dict(rows=[*TABLE, ("", "", ""), (" ", "", " ")], first='"sep=;"\n', delimiter=";", encoding="utf-8-sig"),  # Excel
    dict(rows=[(*row, "", "") for row in TABLE]),  # delimiters without values
    dict(rows=[(str(i), *row) for i, row in enumerate(TABLE)], header=",path,class,split"),  # pandas
    dict(rows=[(path, f' "{label}"', split) for path, label, split in TABLE]),
], ids=str)  # fmt: skip
def test_a_table_as_programs_write_it(way, tmp_path):
    put(tmp_path, TWELVE)
    written(tmp_path)
    wanted = files(load_benchmark("folder", tmp_path))
    written(tmp_path, **way)
    assert files(load_benchmark("own", tmp_path)) == wanted and len(wanted) == 36


@pytest.mark.parametrize(("header", "delimiter"), [("path,class,split", ";"), ("path,class,,", "|")])
def test_a_value_without_a_column_is_refused(header, delimiter, tmp_path):
    """A name holds an unquoted delimiter. If the rest of the name were ignored, two classes would become one."""
    put(tmp_path, TWELVE)
    rows = [list(row)[: header.rstrip(",").count(",") + 1] for row in TABLE]
    rows[4][1] += f"{delimiter} kind a"
    written(tmp_path, rows, header=header, delimiter=delimiter)
    column = "'train'" if "split" in header else "'kind a'"
    with pytest.raises(DataError, match=f"line 6: the header has no column for {column}; put a name that holds .* in "):
        load_benchmark("own", tmp_path)
    rows[4][1] = f'"{rows[4][1]}"'
    written(tmp_path, rows, header=header, delimiter=delimiter)
    assert f"class 01{delimiter} kind a" in load_benchmark("own", tmp_path).train.class_names


def test_paths_that_name_a_file_of_the_folder(tmp_path):
    """Absolute paths, paths from the parent folder, and paths through a link to the folder."""
    folder = put(tmp_path / "images", TWELVE)
    (tmp_path / "link").symlink_to(folder)
    written(folder)
    wanted = files(load_benchmark("folder", folder))
    for start in (f"{folder}/", f"{folder}/../images/", "images/", "../images/", "./", f"{tmp_path}/link/", "../link/"):
        written(folder, [(start + path, label, split) for path, label, split in TABLE])
        assert files(load_benchmark("folder", folder)) == wanted, start
    outside = put(tmp_path / "other", {"a": 1}) / "a" / "0.png"
    for path in (outside, "../other/a/0.png"):
        written(folder, [*TABLE, (str(path), "class 00", "train")])
        with pytest.raises(DataError, match=f"lists {path} .line 38., which is not inside {folder}; write"):
            load_benchmark("folder", folder)


@pytest.mark.linux("needs a file system that tells case and forms of accents apart")
def test_paths_in_another_case_or_with_accents_stored_otherwise(tmp_path):
    """The table is from macOS and the images are from Linux, or the reverse. Both forms of a name look the same."""
    decompose, compose = (functools.partial(unicodedata.normalize, form) for form in ("NFD", "NFC"))
    put(tmp_path, TWELVE | {compose("Möwe"): 3, decompose("Krähe"): 3})
    more = [(f"{label}/{i}.{suffix}", label, "test")
            for label, suffix in ((decompose("Möwe"), "png"), (compose("Krähe"), "PNG")) for i in range(3)]  # fmt: skip
    written(tmp_path, [*TABLE, *more])
    with pytest.warns(UserWarning, match="6 path.s. in .*split.csv are written in another case than on the disk, or"):
        test = load_benchmark("folder", tmp_path).test
    assert {"Möwe", "Krähe"} <= {*test.class_names} and all(path.is_file() for path in test.paths)
    written(tmp_path, [*TABLE, *more, (f"{compose('Möwe')}/0.png", "Möwe", "test")])
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"lists .*/0.png twice \(line 38, 44\)"):
        load_benchmark("folder", tmp_path)
    put(tmp_path, {"x": 1, "X": 1})  # either may be meant
    (tmp_path / "x" / "0.png").rename(tmp_path / "x" / "a.png")
    (tmp_path / "X" / "0.png").rename(tmp_path / "X" / "A.png")
    written(tmp_path, [*TABLE, ("x/A.png", "x", "test")])
    with pytest.warns(UserWarning, match="x/A.png .line 38., which is read from x/a.png"):
        load_benchmark("folder", tmp_path)


@pytest.mark.linux("needs a file system that tells case and forms of accents apart")
def test_classes_that_look_alike(tmp_path):
    put(tmp_path, TWELVE | {unicodedata.normalize(form, "Möwe"): 2 for form in ("NFC", "NFD")})
    with pytest.warns(UserWarning, match="differ only in case, spaces or how letters are stored; if they are one"):
        load_benchmark("own", tmp_path)
    rows = [*TABLE, *((f"{unicodedata.normalize(form, 'Möwe')}/0.png",) * 2 + ("test",) for form in ("NFC", "NFD"))]
    written(tmp_path, [(path, path.partition("/")[0], split) for path, _, split in rows])
    assert load_benchmark("own", tmp_path).test.class_names.count("Möwe") == 1
    put(tmp_path, {"C0": 1, "c0": 1})
    written(tmp_path, [*TABLE, ("C0/0.png", "C0", "test"), ("c0/0.png", "c0", "test")])
    with pytest.warns(UserWarning, match="the classes C0 and c0 differ only in case"):
        load_benchmark("folder", tmp_path)


def test_a_table_with_only_tested_rows(tmp_path, capsys):
    """A frozen backbone needs no other rows, nor does the evaluation of a trained model."""
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


def nine(root):
    put(root, {f"{i}": 2 for i in range(9)} | {"single": 1})


def loose(root):
    Image.new("RGB", (8, 8)).save(root / "a.png")


def one_tested(root):
    put(root, TWELVE)
    written(root, [row for row in TABLE if row[2] == "train" or row[1] == "class 10"])


def table(text):
    return lambda root: (root / "split.csv").write_text(text)


MISTAKES = {
    "too few": (nine, "holds 9 class(es) of two or more images, at least 10 are needed"),
    "no folders": (loose, "1 image(s) are in"),
    "deeper": (lambda root: [put(root / each, TWELVE) for each in ("train", "val")],
               "no class folders with images in {0}, but in {0}/train and {0}/val; name the folder that holds the "
               "classes, or write split.csv"),
    "validation": (table("path,class,split\na.png,a,Val\n"), "line 2: split 'val' is not allowed, "
                   "because the classes that choose the epoch are held out of train; write train or test"),
    "column twice": (table("path,class,Class\n"), "has the column 'class' twice; keep one"),
    "unknown column": (table("path,class,Splits\n"),  # its classes would be trained on
                       "has an unknown column 'splits'; remove it, or name it path, class, split"),
    "one class": (one_tested, "has 1 class to test on, "),
    "no path": (table("sep=;\npath;class\n;a\n"), "line 3: each line is path,class"),  # as an editor counts
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(make, message, tmp_path, capsys):
    make(tmp_path)
    assert main(["train", "--data-folder", str(tmp_path), "--results", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_folder_is_named_with_its_fix(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name, message in (("nosuch", "no folder {}; "), ("file", "{} is not a folder; ")):
        assert main(["train", "--data-folder", str(tmp_path / name), "--results", str(tmp_path / "out")]) == 2
        wanted = message.format(tmp_path / name) + "name the folder that holds your images"
        assert capsys.readouterr().err == f"error: own: {wanted}\n", "the message does not name --data"


def test_a_warning_is_printed_once_per_command_and_nothing_is_written_among_the_images(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    (tmp_path / "images" / "notes.txt").write_text("")
    (tmp_path / "images" / "empty").mkdir()
    before = sorted(tmp_path.joinpath("images").rglob("*"))
    for _ in range(2):
        assert main([*training(tmp_path), "--set", *SHORT, "epochs=0", "pipeline=cached"]) == 0
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("warning")]
        assert len(lines) == 1 and lines[0].startswith("warning: own: "), lines
        assert "(epoch 0 of 0 is kept, epoch 0 is the start)" in printed.out
    assert sorted(tmp_path.joinpath("images").rglob("*")) == before
    assert [*tmp_path.joinpath("out", ".vptsp-cache").glob("own-*")], "the decoded images are with the results"


@pytest.mark.parametrize("words", [
    ["train", "--data-folder", "."],  # ./results
    ["train", "--preset", "demo", "--set", "dataset=folder", "--data", "."],
    ["train", "--preset", "demo", "--set", "dataset=folder", "--data", ".", "--results", "../out", "--cache", "c"],
    ["data", "cache", "own", "--data", "."],
], ids=" ".join)  # fmt: skip
def test_a_place_among_the_images_is_refused(words, tmp_path, capsys, monkeypatch):
    """If something were written among the images, the next reader would take it for a class."""
    put(tmp_path / "images", TWELVE)
    monkeypatch.chdir(tmp_path / "images")
    before = sorted(Path().rglob("*"))
    settings = ["--set", "backbone=demo_vit", "image_size=24", "resize=24", "batch=4"] if words[0] == "train" else []
    assert main([*words, *settings]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f" is in {tmp_path / 'images'}, the folder of your images, where nothing is written; " in error, error
    assert ("--cache or VPTSP_CACHE" if "cache" in str(words) or "c" in words else "--results or VPTSP") in error
    assert sorted(Path().rglob("*")) == before


def test_images_are_decoded_for_all_commands_in_one_place(tmp_path, capsys, monkeypatch):
    put(tmp_path / "images", TWELVE)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "cache", "own", "--data", "images", "--side", "24"]) == 0
    assert [*tmp_path.joinpath("results", ".vptsp-cache").glob("own-*")]
    assert sorted(Path("images").glob("*")) == [Path("images", label) for label in TWELVE]


def test_more_suffixes(tmp_path):
    put(tmp_path, TWELVE)
    kinds = {".jfif": "JPEG", ".jpe": "JPEG", ".JIF": "JPEG", ".pgm": "PPM", ".apng": "PNG"}
    if features.check("avif"):
        kinds |= {".avif": "AVIF", ".jpg": "AVIF"}
    for suffix, kind in kinds.items():
        Image.new("RGB", (24, 24), (200, 30, 60)).save(tmp_path / "class 00" / f"x{suffix}", kind)
    train = load_benchmark("own", tmp_path).train
    for suffix in kinds:
        place = train.paths.index(tmp_path / "class 00" / f"x{suffix}")
        np.testing.assert_allclose(np.asarray(train.image(place))[5, 5], (200, 30, 60), atol=9)


@pytest.mark.parametrize(("begin", "message"), [
    (b"\0\0\0\x18ftypheic\0\0", "its content is HEIC); convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL \r\n", "its content is JPEG XL); convert it to JPEG or PNG"),
    (b"\r\n<!DOCTYPE html>", "its content is a web page, a failed download?); replace the file"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS, which git lfs pull follows); replace the file"),
    (b"", "the file is empty); replace the file"), (b"what", "not an image of a known kind); replace the file"),
])  # fmt: skip
def test_the_message_says_what_a_file_is_instead_of_an_image(begin, message, tmp_path):
    path = put(tmp_path, TWELVE) / "class 00" / "0.png"
    path.write_bytes(begin)
    with pytest.raises(DataError) as caught:
        load_benchmark("own", tmp_path).train.image(0)
    assert str(caught.value) == (
        f"image {path}: unreadable ({message.replace('Git', 'its content is a pointer of Git')}; all such files: "
        "python -m vptsp_core data check own --data DIR --decode"
    )


def test_one_file_in_two_classes_is_named(tmp_path):
    put(tmp_path, TWELVE)
    load_benchmark("own", tmp_path)  # copies within a class are no mistake of the labels
    shutil.copy(tmp_path / "class 03" / "1.png", tmp_path / "class 07" / "copy.png")
    for name in ("own", "folder"):
        with pytest.warns(
            UserWarning, match="1 image.s. are in two classes or more, the first .* and .*; delete the w"
        ):
            load_benchmark(name, tmp_path)


def test_training_images_that_are_all_alike(tmp_path):
    for label in TWELVE:
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            colour = (90, 90, 90) if label <= "class 08" else (i * 40, 0, 99)
            Image.new("RGB", (24, 24), colour).save(tmp_path / "images" / label / f"{i}.png")
    written(tmp_path / "images")
    changes = dict(dataset="folder", backbone="demo_vit", image_size=24, resize=24, start="proxies", pipeline="cached")
    config = preset("demo", **changes, epochs=1, steps_per_epoch=1, batch=4, selection="last")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="gives all 27 training images the same"):
        vptsp_core.run(config, data=tmp_path / "images", results=tmp_path / "out", device="cpu")


# ---- the plan ------------------------------------------------------------------------------------


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("memory", [4, 16, 80])
@pytest.mark.parametrize("count", [10, 50, 1_000, 100_000])
def test_plans_fit_classes_and_memory(count, memory, gpu):
    remaining = count - count // 5
    found = plan(np.full(remaining, 6), 2, machine(gpu, memory * GB, memory * GB), VIT_S, {})
    config = found.config
    trained = remaining - remaining // 5 if config.holds_out else remaining
    assert config.selection == ("validation_map" if count > 10 else "last")
    assert f"{trained:,} classes to learn from, {remaining - trained:,} held out" in found.reasons[0]
    assert config.class_optimizer == ("rowwise" if count == 100_000 else "dense")
    table = trained * config.class_layers * config.class_prompts * 384 * 4
    assert table * 3 <= memory * GB / 2
    assert config.batch // config.samples_per_class <= trained and 2 <= config.batch <= 64
    assert 100 * 196 * 384 * 12 * config.batch <= memory * GB / 2, "a step takes half of the memory at most"
    assert config.epochs * config.steps_per_epoch <= (20_000 if gpu else 600)
    assert config.pipeline == "cached"


def test_few_images_get_few_steps_and_many_images_a_limit():
    few = plan(np.full(8, 5), 10, machine(), VIT_S, {}).config
    assert few.epochs * few.steps_per_epoch == 100 and few.batch == 40
    many = plan(np.full(500_000, 20), 10, machine(disk=100 * GB), VIT_S, {}).config
    assert many.epochs * many.steps_per_epoch == 20_000 and many.pipeline == "classic"


def test_batches_can_be_drawn_for_classes_of_any_sizes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        count = int(np.exp(rng.uniform(np.log(8), np.log(3_000))))
        classes = rng.integers(1, int(np.exp(rng.uniform(0.7, 4))) + 1, count)
        processes = int(rng.integers(1, 9))
        here = machine(bool(rng.integers(2)), rng.uniform(1, 80) * GB, rng.uniform(1, 200) * GB, 1e11, processes)
        small = bool(rng.integers(2))
        changes = {"backbone": "demo_vit"} if small else {}
        found = plan(classes, 10, here, (6, 96, 8) if small else VIT_S, changes)
        assert found == plan(classes.copy(), 10, here, (6, 96, 8) if small else VIT_S, changes)
        config = found.config
        config.check_backbone(6 if small else 12, config.embed_dim)
        kept = classes[~held_out_classes(classes)] if config.holds_out else classes
        labels = np.repeat(np.arange(len(kept)), kept)
        sampler = ClassBalancedSampler(labels, config.batch, config.samples_per_class, 0, 1)
        assert len(next(sampler.epoch(0))) == config.batch
        drawn = config.batch // config.samples_per_class
        assert drawn % processes == 0 or drawn < processes
        assert (config.class_optimizer == "rowwise") >= (len(kept) > DENSE_CLASSES)


def test_the_plan_keeps_given_keys():
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

    assert "preset cub200-vits16, optimizer=adamw, start=proxies, class_prompts=3, class_optimizer=dense\n" in said()
    assert "class_optimizer=rowwise" in said(2_000) and "class_optimizer=rowwise" in said(here=machine(memory=5e7))
    steps = said(epochs=3, steps_per_epoch=7, batch=32, samples_per_class=4)
    assert "epochs=3 of 7 step(s), batch=32: 4 image(s) of each of 8 classes" in steps


def test_a_run_starts_from_the_images_if_the_head_is_no_wider_than_the_backbone():
    def start(**changes):
        return plan(np.full(40, 10), 10, machine(), VIT_S, changes).config.start

    assert start() == start(selection="last") == "proxies"
    assert start(embed_dim=385) == start(start="released") == "released"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dataset": "sop"}, "leave it out"), ({"method": "frozen"}, "leave it out"), ({"batch": "x"}, "batch = 'x'"),
     ({"bathc": 3}, "did you mean batch"), ({"batch": 0}, "batch = 0"),
     ({"samples_per_class": 0}, "samples_per_class = 0 must be at least"),
     ({"image_size": 0}, "image_size = 0")],
)  # fmt: skip
def test_keys_that_cannot_be_set_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        plan(np.full(40, 10), 10, machine(), VIT_S, changes)


# ---- a whole run ---------------------------------------------------------------------------------

SHORT = ["backbone=demo_vit", "epochs=2", "steps_per_epoch=3"]


def test_with_few_classes_only_bitfit_is_trained(tmp_path, capsys):
    put(tmp_path / "images", dict(list(TWELVE.items())[:10]))
    assert main([*training(tmp_path), "--set", *SHORT]) == 0
    said = capsys.readouterr().out
    assert "8 classes to learn from, 0 held out (selection=last)" in said and "\nto train: BitFit\n" in said
    assert "class_prompts" not in said and "The held-out classes choose" not in said
    trained = read_run(re.search(r"The model is in (.*)\. To use it", said)[1])
    assert trained.config.method == "linear" and trained.config.bitfit and trained.metrics["epoch"] == 2


def test_a_folder_is_trained_compared_and_used(tmp_path, capsys, monkeypatch):
    put(tmp_path / "images", TWELVE)
    command = training(tmp_path)
    assert main([*command, "--set", *SHORT]) == 0
    said = capsys.readouterr().out
    assert "2 classes (6 images) are kept for testing\n8 classes to learn from, 2 held out (" in said
    assert "6 queries of 2 classes, none of them trained on:" in said and "none: under 30 queries" in said
    assert "\nto train: BitFit and VPTSP\n" in said
    path = re.search(r"The model is in (.*)\. To use it", said)[1]
    changes, told = dict(map(parse_change, SHORT)), []
    own = own_images.train_folder(
        tmp_path / "images", changes, results=tmp_path / "out", device="cpu", say=told.append
    )  # finished, so nothing is trained
    trained, frozen, choice = own.run, own.frozen, own.choice
    assert str(trained.path) == path and said == "".join(f"{text}\n" for text in told) and told[-1] == own.summary
    taken = choice["MAP@R"].idxmax()
    assert trained.config.method == {"closed form": "linear", "BitFit": "linear", "VPTSP": "vptsp"}[taken]
    assert list(choice.index) == ["closed form", "BitFit", "VPTSP"]
    assert f"The held-out classes choose {taken}: " in said
    if taken != "VPTSP":
        assert (trained.metrics["epoch"] == 0) == (taken == "closed form")
    assert frozen.config.method == "frozen" and trained.config.selection == "validation_map"
    assert "validation R@1" in trained.history and trained.record["held_out"]["classes"] == 2
    for metric, row in own.gain.iterrows():
        ours, theirs = trained.queries[metric], frozen.queries[metric]
        assert row["difference"] == pytest.approx(100 * (ours.mean(dtype=float) - theirs.mean(dtype=float)), abs=1e-4)
        assert row["difference"] == pytest.approx(row["trained"] - row["frozen"], abs=1e-3)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["queries"] == 6 and row["verdict"] == own_images.TOO_LITTLE
    (tmp_path / "images" / "class 00" / "0.png").rename(tmp_path / "image.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec("\n".join(said.split("To use it:\n")[1].split("\n")[i].strip() for i in range(2)), names)
    assert names["embeddings"].shape == (1, 96)
    (tmp_path / "image.jpg").rename(tmp_path / "images" / "class 00" / "0.png")
    before = (trained.path / "metrics.json").stat().st_mtime_ns
    monkeypatch.setattr(own_images, "machine", lambda *_: machine(memory=1.0))  # the plan of the first call is kept
    assert main([*command, "--set", *SHORT]) == 0
    again = f"This run was finished before, so it was not trained. To train it again, delete {path}.\n"
    assert capsys.readouterr().out == said + again and (trained.path / "metrics.json").stat().st_mtime_ns == before
    (plan_file,) = (tmp_path / "out" / "plans").iterdir()
    assert main([*command, "--data", str(tmp_path)]) == 2
    assert "leave it out" in capsys.readouterr().err
    plan_file.write_text("{")
    assert main([*command, "--set", *SHORT]) == 2
    assert f"{plan_file}: no plan can be read" in capsys.readouterr().err


def test_class_prompts_in_host_memory_beside_runs_that_have_none(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    command = [*training(tmp_path), "--class-table", "host", "--set", "backbone=demo_vit", "epochs=1"]
    assert main(command) == 2
    assert "class table on the host: no planned run has row-wise class prompts" in capsys.readouterr().err
    assert main([*training(tmp_path), "--class-table", "hosst"]) == 2
    assert "class_table = 'hosst' must be one of auto, device, host" in capsys.readouterr().err
    assert not (tmp_path / "out" / "runs").exists()
    assert main([*command, "class_optimizer=rowwise"]) == 0
    kept = {run.config.method: run.record["class_table"] for run in map(read_run, (tmp_path / "out/runs").iterdir())}
    assert kept == {"frozen": None, "vptsp": "host"}


def test_held_out_classes_choose_between_bitfit_and_vptsp():
    planned = plan(np.full(20, 10), 50, machine(), VIT_S, {}).config
    both = candidates(planned, {"epochs": 3})
    assert list(both) == ["BitFit", "VPTSP"] and both["VPTSP"] == planned
    assert (both["BitFit"].method, both["BitFit"].bitfit, both["BitFit"].start) == ("linear", True, "proxies")
    assert {**both["BitFit"].to_dict(), "method": "vptsp"} == planned.to_dict()
    for other in (dict(adapter_dim=8), dict(lora_rank=4), dict(bitfit=True)):  # no choice between the two
        assert list(candidates(planned, other)) == ["BitFit", "VPTSP"]
    for settled in (dict(method="vptsp"), dict(bitfit=False), dict(alpha=0.2), dict(prompts=3)):
        config = planned.replace(**settled)
        assert list(candidates(config, settled).values()) == [config]
    none_held_out = planned.replace(selection="last")
    assert list(candidates(none_held_out, {})) == ["BitFit"]
    assert list(candidates(none_held_out, dict(method="vptsp")).values()) == [none_held_out]

    def of(*epochs):
        history = pd.DataFrame([{"epoch": i, "validation R@1": r, "validation MAP@R": m} for i, r, m in epochs])
        return SimpleNamespace(history=history, record={"seconds": 90}, config=planned)

    bitfit = of((0, 0.75, 0.2), (1, 0.5, 0.3), (2, 0.6, 0.3))
    choice = own_images.compare_candidates({"BitFit": bitfit, "VPTSP": of((0, 0.8, 0.25))})
    assert choice.index.tolist() == ["closed form", "BitFit", "VPTSP"]
    np.testing.assert_array_equal(choice, [[75, 20, 0, np.nan], [50, 30, 1, 1.5], [80, 25, 0, 1.5]])
    assert own_images.eligible(choice)["MAP@R"].idxmax() == "BitFit"
    assert own_images.lead(choice, 10) == (
        "its MAP@R is 10.0 above that of closed form, the second best (10 held-out classes). VPTSP is best before its "
        "training, so it is not chosen."
    )
    level = own_images.compare_candidates({"BitFit": of((0, 0.9, 0.3)), "VPTSP": of((0, 0.9, 0.1), (1, 0.9, 0.3))})
    assert level["MAP@R"].idxmax() == "closed form" and list(level.index) == ["closed form", "VPTSP"]
    few = "(9 held-out classes, so few that this can be chance)."
    assert own_images.lead(level, 9) == f"its MAP@R equals that of VPTSP to 0.1 {few}"
    nothing = own_images.compare_candidates({"BitFit": of((0, 0.9, 0.3)), "VPTSP": of((0, 0.9, 0.4))})
    assert own_images.lead(nothing, 9).startswith(f"training improves nothing {few} VPTSP is best before its training")
    rounded = own_images.compare_candidates({"BitFit": of((1, 0.9, 0.5526)), "VPTSP": of((1, 0.9, 0.5734))})
    assert own_images.lead(rounded, 9) == f"its MAP@R is 2.0 above that of BitFit, the second best {few}"
    skipped = (1, np.nan, np.nan)  # before eval_start
    late = own_images.compare_candidates({"BitFit": of((0, 0.9, 0.2), skipped, (2, 0.9, 0.4), (3, 0.9, 0.3))})
    assert list(late["epoch"]) == [0, 2]
    assert list(own_images.compare_candidates({"VPTSP": of(skipped, (2, 0.9, 0.4))})["epoch"]) == [2]
    by_recall = SimpleNamespace(**{**vars(bitfit), "config": planned.replace(selection="validation")})
    assert own_images.compare_candidates({"BitFit": by_recall})["epoch"].to_dict() == {"closed form": 0}
    random = SimpleNamespace(
        history=bitfit.history[1:], record={"seconds": 90}, config=planned.replace(start="released")
    )
    assert list(own_images.compare_candidates({"BitFit": random, "VPTSP": of((1, 0.1, 0.1))}).index) == [
        "BitFit",
        "VPTSP",
    ]


def one_run(folder, values, classes=None, **changes):
    """Return a run whose queries have these values of R@1; the class of the first has no other image (MAP@R).

    Without ``classes``, each query has its own class.
    """
    values = np.asarray(values, np.float32)
    queries = {"R@1": values, "MAP@R": np.append(np.nan, values[1:]).astype(np.float32)}
    metrics = {name: float(np.nanmean(each)) for name, each in queries.items()}
    queries["class"] = np.arange(len(values)) if classes is None else np.asarray(classes)
    config = {"dataset": "own", "selection": "validation", "epochs": 10, "start": "released"} | changes
    return SimpleNamespace(
        path=folder, metrics=metrics | {"epoch": config.pop("epoch", 3)}, config=RunConfig(**config), queries=queries,
        record={"data": {"name": "own", "test": "x"}},
    )  # fmt: skip


def told(tmp_path, before, after, classes=None, **changes):
    """Return the summary of a comparison of two such runs."""
    frozen, trained = (
        one_run(tmp_path / "frozen", before, classes),
        one_run(tmp_path / "trained", after, classes, **changes),
    )
    return own_images.summary(frozen, trained, own_images.compare(frozen, trained), 7)


ZEROS, ONES, MIXED = np.zeros(40), np.ones(40), np.arange(40) % 2


@pytest.mark.parametrize(
    ("before", "after", "verdict", "sentence"),
    [(ZEROS, ONES, "better", "is better than the frozen backbone: MAP@R +100.00 (epoch 3 of 10 is kept)."),
     (ONES, ZEROS, "worse", "is WORSE than the frozen backbone, so use the frozen backbone: MAP@R -100.00 (epoch 3"),
     (MIXED, 1 - MIXED, own_images.UNCLEAR, "does not clearly differ from the frozen backbone: MAP@R -2.56 (epoch 3"),
     (ZEROS[:30], ONES[:30], own_images.TOO_LITTLE, "Too little is tested to say whether the model is better")],
)  # fmt: skip
def test_one_sentence_says_whether_training_helped(before, after, verdict, sentence, tmp_path):
    gain = own_images.compare(one_run(tmp_path, before), one_run(tmp_path, after))
    assert gain["verdict"]["MAP@R"] == verdict
    assert gain["queries"].tolist() == [len(before), len(before) - 1], "the class of one query has no other image"
    text = told(tmp_path, before, after)
    assert sentence in text and f"{len(before)} queries of 7 classes, none of them trained on" in text
    assert ("none: under 30 queries" in text) == (len(before) == 30)


@pytest.mark.parametrize(
    ("classes", "end"),
    [
        (None, r"\[\+10\.98, \+39\.02\] +better"),  # 25 +- 2.0227 (Student, 39) * 6.934
        (np.repeat(range(4), 10), r"\[-54\.56, \+104\.56\] +could be chance"),  # 0, 100, 0, 0: 25 +- 3.1824 * 25
        (np.zeros(40), r"none: one class +too little tested"),
    ],
)
def test_the_table_has_the_interval_of_the_difference(classes, end, tmp_path):
    text = told(tmp_path, np.repeat([0, 1], 20), np.repeat([0, 1], [10, 30]), classes)
    assert re.search(rf"R@1 +50\.0 +75\.0 +\+25\.00 +{end}", text), text
    assert (own_images.COVERS in text) == ("none" not in end)


@pytest.mark.parametrize(("classes", "few"), [(9, True), (10, False)])
def test_few_tested_classes_are_named(classes, few, tmp_path):
    frozen, trained = one_run(tmp_path, ZEROS), one_run(tmp_path, ONES)
    text = own_images.summary(frozen, trained, own_images.compare(frozen, trained), classes)
    assert ("Under 10 tested classes say little: add classes" in text) == few


def test_epoch_0_is_explained_if_the_run_has_one(tmp_path):
    assert "(epoch 0 of 10 is kept, epoch 0 is the start)" in told(tmp_path, ZEROS, ONES, epoch=0, start="proxies")


def test_an_epoch_chosen_on_the_queries_is_called_optimistic(tmp_path):
    assert "optimistic" not in told(tmp_path, ZEROS, ONES)
    assert "optimistic" in told(tmp_path, ZEROS, ONES, selection="released")


def test_calls_that_start_together_get_one_plan(tmp_path, monkeypatch):
    """The free memory differs at each look, so the second call must find the plan of the first."""
    benchmark, looks = load_benchmark("own", put(tmp_path / "images", TWELVE)), iter([1e9, 64e9, 1e8])

    def looked(device, cache):
        memory = next(looks)
        time.sleep(0.2)
        return Machine(False, memory, memory, 1e12, 1)

    monkeypatch.setattr(own_images, "machine", looked)
    changes = {"backbone": "demo_vit", "image_size": 40, "resize": 40}
    with ThreadPoolExecutor(3) as pool:
        given = (benchmark, tmp_path / "images", changes, tmp_path, None, "cpu")
        calls = [pool.submit(own_images._read_or_make_plan, *given) for _ in "abc"]
        plans = [call.result() for call in calls]
    assert len({made.config for made in plans}) == 1 and next(looks) == 64e9, "one looked"
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_a_backbone_that_is_no_name_is_one_line(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    assert main([*training(tmp_path), "--set", "backbone=5"]) == 2
    assert capsys.readouterr().err.startswith("error: backbone = 5 must be ")


def test_a_light_model_is_trained_again_so_that_it_can_be_loaded(tmp_path):
    put(tmp_path / "images", TWELVE)
    options = dict(device="cpu", progress=False, say=lambda _: None)
    changes = dict(backbone="demo_vit", image_size=40, resize=40, epochs=1, steps_per_epoch=1, method="linear")
    made = own_images.train_folder(tmp_path / "images", changes, results=tmp_path / "whole", **options)
    copy_light(tmp_path / "whole", tmp_path / "light")
    again = own_images.train_folder(tmp_path / "images", changes, results=tmp_path / "light", **options)
    assert made.run.path.name == again.run.path.name and not again.run.light


def test_another_number_of_processes_gets_its_own_plan(tmp_path, monkeypatch):
    benchmark = load_benchmark("own", put(tmp_path / "images", TWELVE))
    asked = (benchmark, tmp_path / "images", {"backbone": "demo_vit"}, tmp_path / "out", None, "cpu")
    for count in (1, 3):
        monkeypatch.setattr(own_images, "world_size", lambda count=count: count)
        assert own_images._read_or_make_plan(*asked).config.batch % count == 0
    assert len(list((tmp_path / "out" / "plans").glob("*.json"))) == 2
