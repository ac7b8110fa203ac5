"""One's own images: how they are split, what is planned for them, what is told in the end."""

import functools
import json
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
import timm
from PIL import Image, ImageDraw, features

import vptsp_core
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.data.holdout import held_out_classes, hold_out
from vptsp_core.deploy import own_images
from vptsp_core.deploy.own_plan import DENSE_CLASSES, Machine, plan
from vptsp_core.errors import ConfigError, DataError, VptspError
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


def test_images_are_read_as_a_viewer_shows_them(tmp_path):
    put(tmp_path, TWELVE)
    Image.new("RGBA", (8, 8), (200, 0, 0, 0)).save(tmp_path / "class 00" / "0.png")
    assert load_benchmark("own", tmp_path).train.image(0).getpixel((3, 3)) == (255, 255, 255), "over white"


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


@pytest.mark.parametrize("split", [False, True])
def test_a_table_as_excel_writes_it(tmp_path, split):
    put(tmp_path, TWELVE)
    rows = [
        f'"{label}/{i}.png";"{label}, so called"' + (f";{'test' if label > 'class 08' else 'train'}" if split else "")
        for label in TWELVE
        for i in range(3)
    ]
    text = "\r\n".join(["path;class" + ";split" * split, *rows, ""])
    (tmp_path / "split.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    tested = ["09", "10", "11"] if split else ["04", "09"]
    assert load_benchmark("own", tmp_path).test.class_names == tuple(f"class {i}, so called" for i in tested)


@pytest.mark.parametrize("column", ["Splits", "set"])
def test_a_column_that_is_not_known_is_refused(tmp_path, column):
    """A mis-spelt `split` would be passed over, and the classes that were to be tested trained on."""
    put(tmp_path, TWELVE)
    rows = [f"{label}/{i}.png,{label},train" for label in TWELVE for i in range(3)]
    (tmp_path / "split.csv").write_text("\n".join([f"path,class,{column}", *rows]))
    with pytest.raises(DataError, match=f"has an unknown column '{column.lower()}'; it holds path, class, split"):
        load_benchmark("own", tmp_path)


def test_what_is_left_out_is_named(tmp_path):
    put(tmp_path, TWELVE)
    for name in "abcd":
        (tmp_path / f"empty {name}").mkdir()
    (tmp_path / "notes.txt").write_text("")
    with pytest.warns(UserWarning) as caught:
        assert load_benchmark("own", tmp_path).test.class_names == ("class 04", "class 09")
    told = "\n".join(str(each.message) for each in caught)
    assert "5 thing(s) in" in told and "are ignored, being no images or folders of them, the first notes.txt" in told


def test_images_in_sub_folders_of_class_folders_are_counted(tmp_path):
    put(tmp_path, TWELVE)
    put(tmp_path / "class 03" / "more", {"x": 4, "x/y": 2, ".hidden": 5})
    put(tmp_path, {"only below/x": 3})
    with pytest.warns(UserWarning) as caught:
        load_benchmark("own", tmp_path)
    (told,) = [str(each.message) for each in caught]
    assert "3 thing(s) in" in told and "the first class 03/more; 9 image(s) in sub-folders of class folders" in told


@pytest.mark.parametrize("split", [False, True])
def test_a_table_as_people_write_it(split, tmp_path):
    """Names of columns and splits in any case, Excel's first line, empty rows."""
    put(tmp_path, TWELVE)
    rows = [f"{label}/{i}.png;{label}" + f";{'Test' if label > 'class 08' else ' TRAIN'}" * split
            for label in TWELVE for i in range(3)]  # fmt: skip
    header, tested = "Path; CLASS" + ";Split" * split, ("09", "10", "11") if split else ("04", "09")
    for first in ("", "sep=;\n", "SEP=;;\r\n", "\ufeffsep=;\r\n", '"sep=;"\n'):
        text = first + "\n".join([header, *rows, ";", ";;", " ; ;", ""])
        for each in (text, text.replace(";", ",")):
            (tmp_path / "split.csv").write_text(each)
            assert load_benchmark("own", tmp_path).test.class_names == tuple(f"class {i}" for i in tested)
    (tmp_path / "split.csv").write_text(f"sep=;\n{header}\n;a{';train' * split}\n")
    with pytest.raises(DataError, match="line 3: each line is path,class"):  # as an editor counts
        load_benchmark("own", tmp_path)


TABLE = [(f"{label}/{i}.png", label, "test" if label > "class 08" else "train") for label in TWELVE for i in range(3)]


def written(folder, rows=TABLE, *, header="path,class,split", delimiter=",", encoding="utf-8", first=""):
    """``split.csv`` of these rows, in which nothing is quoted."""
    lines = [header.replace(",", delimiter), *(delimiter.join(row) for row in rows)]
    (folder / "split.csv").write_text(first + "\n".join(lines) + "\n", encoding)


def files(benchmark):
    sets = (benchmark.train, benchmark.test)
    return {(path, images.class_names[label])
            for images in sets for path, label in zip(images.paths, images.labels, strict=True)}  # fmt: skip


@pytest.mark.parametrize("name", ["own", "folder"])
@pytest.mark.parametrize("way", [
    dict(delimiter="\t"), dict(delimiter="|"), dict(delimiter="\t", encoding="utf-16"), dict(delimiter=";"),
    dict(first="\n\n"), dict(first="sep=|\n", delimiter="|"), dict(first=",,\n"),
    dict(rows=[(*row, "", "") for row in TABLE]),  # delimiters without values
    dict(rows=[(str(i), *row) for i, row in enumerate(TABLE)], header=",path,class,split"),  # pandas
    dict(rows=[(path, f' "{label}"', split) for path, label, split in TABLE]),
], ids=str)  # fmt: skip
def test_a_table_as_programs_write_it(way, name, tmp_path):
    put(tmp_path, TWELVE)
    written(tmp_path)
    wanted = files(load_benchmark(name, tmp_path))
    written(tmp_path, **way)
    assert files(load_benchmark(name, tmp_path)) == wanted and len(wanted) == 36


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("header", ["path,class", "path,class,split", "path,class,", "path,class,,"])
def test_a_value_without_a_column_is_refused(header, delimiter, tmp_path):
    """An unquoted delimiter in a name: what is behind it must not vanish, or classes become one."""
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


@pytest.mark.parametrize("start", ["{0}/", "{0}/../images/", "images/", "../images/", "./", "{1}/", "../link/"])
def test_paths_that_name_a_file_of_the_folder(start, tmp_path):
    """Absolute, or as seen from the parent, or by way of a link to the folder."""
    folder = put(tmp_path / "images", TWELVE)
    (tmp_path / "link").symlink_to(folder)
    written(folder)
    wanted = files(load_benchmark("folder", folder))
    begin = start.format(folder, tmp_path / "link")
    written(folder, [(begin + path, label, split) for path, label, split in TABLE])
    assert files(load_benchmark("folder", folder)) == wanted
    outside = put(tmp_path / "other", {"a": 1}) / "a" / "0.png"
    for path in (outside, "../other/a/0.png"):
        written(folder, [*TABLE, (str(path), "class 00", "train")])
        with pytest.raises(DataError, match=f"lists {path}, which is not inside {folder}; write it so"):
            load_benchmark("folder", folder)


def test_paths_in_another_case_or_with_accents_stored_otherwise(tmp_path):
    """A table of macOS, images of Linux, and the other way round; both forms look the same."""
    decompose, compose = (functools.partial(unicodedata.normalize, form) for form in ("NFD", "NFC"))
    put(tmp_path, TWELVE | {compose("Möwe"): 3, decompose("Krähe"): 3})
    more = [(f"{label}/{i}.{suffix}", label, "test")
            for label, suffix in ((decompose("Möwe"), "png"), (compose("Krähe"), "PNG")) for i in range(3)]  # fmt: skip
    written(tmp_path, [*TABLE, *more])
    with pytest.warns(UserWarning, match="6 path.s. in .*split.csv are written in another case than on the disk, or"):
        test = load_benchmark("folder", tmp_path).test
    assert {"Möwe", "Krähe"} <= {*test.class_names} and all(path.is_file() for path in test.paths)
    written(tmp_path, [*TABLE, *more, (f"{compose('Möwe')}/0.png", "Möwe", "test")])
    with pytest.warns(UserWarning), pytest.raises(DataError, match="lists .*/0.png twice"):
        load_benchmark("folder", tmp_path)
    put(tmp_path, {"x": 1, "X": 1})  # either may be meant
    (tmp_path / "x" / "0.png").rename(tmp_path / "x" / "a.png")
    (tmp_path / "X" / "0.png").rename(tmp_path / "X" / "A.png")
    written(tmp_path, [*TABLE, ("x/A.png", "x", "test")])
    with pytest.warns(UserWarning, match="x/A.png, which is read from x/a.png"):
        load_benchmark("folder", tmp_path)


def test_classes_that_look_alike(tmp_path):
    put(tmp_path, TWELVE | {unicodedata.normalize(form, "Möwe"): 2 for form in ("NFC", "NFD")})
    with pytest.warns(UserWarning, match="differ only in case, spaces or how letters are stored; if they are one"):
        load_benchmark("own", tmp_path)
    rows = [*TABLE, *((f"{unicodedata.normalize(form, 'Möwe')}/0.png",) * 2 + ("test",) for form in ("NFC", "NFD"))]
    written(tmp_path, [(path, path.partition("/")[0], split) for path, _, split in rows])
    assert load_benchmark("own", tmp_path).test.class_names.count("Möwe") == 1


@pytest.mark.parametrize("name", ["own", "folder"])
def test_rows_to_test_on_alone(name, tmp_path, capsys):
    """Frozen needs nothing else, nor does the evaluation of a model that is trained."""
    folder = put(tmp_path / "images", TWELVE)
    written(folder, [row for row in TABLE if row[2] == "test"])
    command = ["train", "--preset", "demo", "--data", str(folder), "--results", str(tmp_path / "out")]
    settings = ["--set", f"dataset={name}", "image_size=24", "resize=24"]
    assert main([*command, *settings]) == 2
    assert "no images to train on; give some the split train, or take method=frozen" in capsys.readouterr().err
    assert main([*command, *settings, "method=frozen", "bitfit=False"]) == 0
    (run,) = (tmp_path / "out" / "runs").iterdir()
    assert main(["evaluate", str(run), "--data", str(folder), "--device", "cpu"]) == 0
    assert main(["data", "check", name, "--data", str(folder), "--decode"]) == 0
    assert main(["train", "--data-folder", str(folder), "--results", str(tmp_path / "own")]) == 2
    assert "0 class(es) to train on, at least 2 are needed" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folders", "classes", "splits"])
@pytest.mark.parametrize("name", ["own", "folder"])
def test_classes_that_differ_only_in_case_are_named(kind, name, tmp_path):
    put(tmp_path, TWELVE | {"C0": 2, "c0": 2, "É": 2, "é": 2})
    if kind != "folders":
        split = kind == "splits" or name == "folder"
        rows = [f"{label}/{i}.png,{label}" + f",{'test' if label > 'class 08' else 'train'}" * split
                for label in (*TWELVE, "C0", "c0", "É", "é") for i in range(2)]  # fmt: skip
        (tmp_path / "split.csv").write_text("\n".join(["path,class" + ",split" * split, *rows]))
    with pytest.warns(UserWarning) as caught:
        load_benchmark(name, tmp_path)
    (told,) = [str(each.message) for each in caught]
    assert "the classes C0 and c0 differ only in case, spaces or how letters are stored (and 1 more such); if" in told


def nine(root):
    put(root, {f"{i}": 2 for i in range(9)} | {"single": 1})


def loose(root):
    Image.new("RGB", (8, 8)).save(root / "a.png")


def table(text, encoding="utf-8"):
    return lambda root: (root / "split.csv").write_text(text, encoding)


MISTAKES = {
    "too few": (nine, "holds 9 class(es) of two or more images, at least 10 are needed"),
    "no folders": (loose, "1 image(s) are in"),
    "deeper": (lambda root: [put(root / each, TWELVE) for each in ("train", "val")],
               "no class folders with images in {0}, but in {0}/train and {0}/val; name the folder that holds the "
               "classes, or write split.csv"),
    "deeper, of many": (lambda root: [put(root / each, {"x": 2}) for each in "abcd"] and loose(root),
                        "but in {0}/a and {0}/b and 2 more; name the folder"),
    "validation": (table("path,class,split\na.png,a,Val\n"), "line 2: there is no split 'val', classes that choose the "
                   "epoch are held out of train; write train or test"),
    "column twice": (table("path,class,Class\n"), "has the column 'class' twice; keep one"),
    "nothing": (lambda root: None, "no class folders with images"),
    "header": (table("file,class\n"), "must begin with the header path,class; a third column, split, is optional"),
    "header with a split": (table("file,class,split\n"), "header path,class; a third column, split, is optional"),
    "backslashes": (table("path,class\na\\b.png,a\n"), "line 2: write a\\b.png with / instead of \\"),
    "no UTF-8": (table("path,class\nä.png,ä\n", "latin-1"), "is not in UTF-8"),
    "one class tested": (lambda root: [put(root, {"a": 2, "c": 1}),
                                       table("path,class,split\na/0.png,a,test\na/1.png,a,test\nc/0.png,c,train")(root)],
                         "has 1 class to test on, and among its images alone nothing can be confused; give at least 2"),
    "row": (table("path,class\na.png,\n"), "line 2: each line is path,class"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_are_one_line(make, message, tmp_path, capsys):
    make(tmp_path)
    assert main(["train", "--data-folder", str(tmp_path), "--results", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message.format(tmp_path) in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_none_is_named_with_a_mend_that_fits(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for name, message in (("nosuch", "no folder {}; "), ("file", "{} is no folder; ")):
        assert main(["train", "--data-folder", str(tmp_path / name), "--results", str(tmp_path / "out")]) == 2
        wanted = message.format(tmp_path / name) + "name the one that holds your images"
        assert capsys.readouterr().err == f"error: own: {wanted}\n", "--data has no part in it"


def test_a_warning_is_told_once_a_command(tmp_path, capsys):
    put(tmp_path / "images", TWELVE)
    (tmp_path / "images" / "notes.txt").write_text("")
    (tmp_path / "images" / "empty").mkdir()
    command = training(tmp_path)
    for _ in range(2):  # the second command tells it again
        assert main([*command, "--set", *SHORT, "epochs=0"]) == 0
        told = capsys.readouterr()
        lines = [line for line in told.err.splitlines() if line.startswith("warning")]
        assert len(lines) == len(set(lines)) == 2 and all(line.startswith("warning: own: ") for line in lines), lines
        assert "Nothing was trained (epochs=0)" in told.out and "Trained in" not in told.out


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
    ["train", "--preset", "demo", "--set", "dataset=folder", "--data", ".", "--results", "../out", "--cache", "c"],
    ["data", "cache", "own", "--data", "."],
    ["data", "cache", "folder", "--data", ".", "--cache", "../images/cache"],
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
    assert ("--cache or VPTSP_CACHE" if "cache" in str(words) or "c" in words else "--results or VPTSP") in error
    assert sorted(Path().rglob("*")) == before


def test_images_are_decoded_for_all_commands_in_one_place(tmp_path, capsys, monkeypatch):
    put(tmp_path / "images", TWELVE)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "cache", "own", "--data", "images", "--side", "24"]) == 0
    assert [*tmp_path.joinpath("results", ".vptsp-cache").glob("own-*")]
    assert sorted(Path("images").glob("*")) == [Path("images", label) for label in TWELVE]


@pytest.mark.parametrize("name", ["own", "folder"])
def test_kinds_that_are_not_read_are_counted(name, tmp_path, capsys):
    put(tmp_path, TWELVE)
    for label, file in (
        ("class 00", "a.heic"),
        ("class 01", "b.HEIC"),
        ("class 01", "sub/c.heic"),
        ("class 02", "d.dng"),
    ):
        path = tmp_path / label / file
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    assert main(["data", "check", name, "--data", str(tmp_path)]) == 0
    assert "; 3 .heic and 1 .dng are not read; convert them to JPEG or PNG" in capsys.readouterr().err
    empty = tmp_path / "all" / "phone"
    empty.mkdir(parents=True)
    (empty / "x.heic").write_bytes(b"")
    assert main(["data", "check", name, "--data", str(empty.parent)]) == 2
    assert "1 .heic are not read; convert them" in capsys.readouterr().err


@pytest.mark.parametrize(("suffix", "kind"), [
    (".jfif", "JPEG"), (".jpe", "JPEG"), (".JIF", "JPEG"), (".pgm", "PPM"), (".apng", "PNG"), (".avif", "AVIF"),
    (".jpg", "AVIF"),
])  # fmt: skip
def test_more_suffixes(suffix, kind, tmp_path):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    put(tmp_path, TWELVE)
    Image.new("RGB", (24, 24), (200, 30, 60)).save(tmp_path / "class 00" / f"x{suffix}", kind)
    train = load_benchmark("own", tmp_path).train
    place = train.paths.index(tmp_path / "class 00" / f"x{suffix}")
    np.testing.assert_allclose(np.asarray(train.image(place))[5, 5], (200, 30, 60), atol=9)


@pytest.mark.parametrize(("begin", "message"), [
    (b"\0\0\0\x18ftypheic\0\0", "its content is HEIC); convert it to JPEG or PNG"),
    (b"\0\0\0\x0cJXL \r\n", "its content is JPEG XL); convert it to JPEG or PNG"),
    (b"\r\n<!DOCTYPE html>", "its content is a web page, a failed download?); replace the file"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS, which git lfs pull follows); replace the file"),
    (b"", "the file is empty); replace the file"), (b"what", "not an image of a known kind); replace the file"),
])  # fmt: skip
def test_what_a_file_is_in_place_of_an_image(begin, message, tmp_path):
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


@pytest.mark.parametrize("name", ["own", "folder"])
def test_a_single_tested_class_is_refused(name, tmp_path):
    put(tmp_path, TWELVE)
    written(tmp_path, [row for row in TABLE if row[2] == "train" or row[1] == "class 10"])
    with pytest.raises(DataError, match="has 1 class to test on, .* give at least 2 classes the split test"):
        load_benchmark(name, tmp_path)
    gallery = [(path, label, "query" if path.endswith("0.png") else "gallery") for path, label, _ in TABLE[-3:]]
    written(tmp_path, [*TABLE[:3], *gallery])
    with pytest.raises(DataError, match="has 1 class to test on"):
        load_benchmark(name, tmp_path)


@pytest.mark.parametrize("pipeline", ["cached", "classic"])
def test_training_images_that_are_all_alike(pipeline, tmp_path):
    for label in TWELVE:
        (tmp_path / "images" / label).mkdir(parents=True)
        for i in range(3):
            colour = (90, 90, 90) if label <= "class 08" else (i * 40, 0, 99)
            Image.new("RGB", (24, 24), colour).save(tmp_path / "images" / label / f"{i}.png")
    written(tmp_path / "images")
    changes = dict(dataset="folder", backbone="demo_vit", image_size=24, resize=24, start="proxies", pipeline=pipeline)
    config = preset("demo", **changes, epochs=1, steps_per_epoch=1, batch=4, selection="last")
    with pytest.warns(UserWarning), pytest.raises(DataError, match="sees no difference between the 27 training images"):
        vptsp_core.run(config, data=tmp_path / "images", results=tmp_path / "out", device="cpu")


def test_a_plan_without_epochs_speaks_of_no_training():
    said = " ".join(plan(np.full(12, 5), 20, machine(gpu=False), VIT_S, {"epochs": 0}).reasons)
    assert "epochs=0 (as you set): nothing is trained" in said and "the start is made of 10 classes" in said
    assert not re.search(r"trained on|drawn|choose the epoch|batch=", said), said


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
    assert f"{trained:,} classes are trained on" in found.reasons[0]
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
    assert (
        "tested classes choose the epoch"
        in plan(np.full(40, 2), 9, machine(), VIT_S, {"selection": "released"}).reasons[0]
    )


def reasons(count=40, each=10, here=None, **changes):
    found = plan(np.full(count, each), 10, here or machine(), VIT_S, changes)
    (preset,) = [line for line in found.reasons if line.startswith("preset ")]
    (steps,) = [line for line in found.reasons if line.startswith("epochs=")]
    config = found.config
    total = config.epochs * (config.steps_per_epoch or 0)
    return preset, steps, total


def test_class_prompts_are_told_of_where_there_are_some():
    slow = "AdamW in place of SGD, which starts slowly"
    assert reasons()[0].startswith("preset cub200-vits16: class prompts learn as one table of ")
    for changes in ({"method": "linear"}, {"method": "vpt"}, {"method": "full"}, {"method": "adapter"}):
        assert reasons(**changes)[0] == f"preset cub200-vits16: {slow}"
        assert reasons(here=machine(memory=5e7), **changes)[0] == f"preset cub200-vits16: {slow}", "no table"
    assert "one table" not in reasons(proxy_source="sample")[0] and "GRU" in reasons(proxy_source="sample")[0]
    assert reasons(method="linear", optimizer="sgd")[0] == "preset cub200-vits16"
    assert reasons(2_000, method="linear")[0] == "preset sop-vits16: for more than 1,000 classes"


def test_what_the_user_set_has_no_reason_of_ours():
    assert "row by row (little memory), " in reasons(here=machine(memory=5e7))[0]
    assert "row by row (more than 1,000 classes), " in reasons(2_000)[0]
    for count in (40, 2_000):
        assert "row by row, " in reasons(count, class_optimizer="rowwise")[0]
    text = reasons(2_000, class_optimizer="dense")[0]
    assert "learn as one table" in text and "AdamW" not in text, "the preset's own optimiser"


def test_the_number_of_steps_is_told_with_what_decided_it():
    def decided(*arguments, **changes):
        return re.search(r"steps? \((.*?)\): ", reasons(*arguments, **changes)[1])[1]

    assert decided(100, 20) == "600 to 20,000 steps with a GPU"
    assert decided(40, 10, machine(gpu=False)) == "200 to 600 steps with no GPU"
    assert decided(8, 5) == decided(8, 5, machine(gpu=False)) == "at most 100 passes"
    assert decided(epochs=3) == "epochs as you set" and decided(steps_per_epoch=None) == "steps_per_epoch as you set"
    assert decided(epochs=3, steps_per_epoch=7) == "epochs and steps_per_epoch as you set"
    assert decided(4, 2, batch=2_000, samples_per_class=500) == "one step an epoch at least"
    assert "epochs=10 of 1 step (" in reasons(4, 2, batch=2_000, samples_per_class=500)[1]
    assert reasons(10, 4, epochs=1, steps_per_epoch=1, batch=32, samples_per_class=4)[1] == (
        "epochs=1 of 1 step (epochs and steps_per_epoch as you set): classes are drawn equally often, so each image "
        "comes 1 times on average"
    )
    rng = np.random.default_rng(0)
    for _ in range(200):
        count, each, gpu = int(rng.integers(4, 300)), int(rng.integers(2, 60)), bool(rng.integers(2))
        _, steps, total = reasons(count, each, machine(gpu))
        passes = float(re.search(r"each image comes (\S+) times", steps)[1])
        bounds = re.search(r"\(([\d,]+) to ([\d,]+) steps", steps)
        low, high = (int(each.replace(",", "")) for each in bounds.groups()) if bounds else (0, 600)
        assert low <= total <= high or "one step an epoch" in steps, steps
        assert passes <= 100 or "one step an epoch" in steps, steps


def test_learning_begins_from_the_images_where_the_head_is_no_wider_than_the_backbone():
    def start(**changes):
        found = plan(np.full(40, 10), 10, machine(), VIT_S, changes)
        return found.config.start, [line for line in found.reasons if line.startswith("learning begins")]

    kept = "; where no epoch is better than that, it is kept"
    told = "learning begins from what the frozen backbone makes of your images (start=proxies)"
    assert start() == ("proxies", [told + kept]) and start(selection="last") == ("proxies", [told])
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
    assert "2 classes of 6 images are kept for testing\n8 classes are trained on; 2 others choose the epoch" in said
    assert "6 query images of 2 classes that were not trained on" in said
    path = re.search(r"The model lies in (.*)\. To use it", said)[1]
    trained, record = read_run(path), json.loads((tmp_path / path / own_images.SUMMARY).read_text())
    frozen = read_run(trained.path.with_name(record["frozen"]))
    assert frozen.config.method == "frozen" and trained.config.selection == "validation"
    assert "validation R@1" in trained.history and trained.record["held_out"]["classes"] == 2
    for metric, row in record["gain"].items():
        ours, theirs = trained.queries[metric], frozen.queries[metric]
        assert row["difference"] == pytest.approx(100 * (ours.mean(dtype=float) - theirs.mean(dtype=float)), abs=1e-4)
        assert row["difference"] == pytest.approx(row["trained"] - row["frozen"], abs=1e-3)
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["queries"] == 6 and row["verdict"] in ("equal", "cannot be told"), "so few tell no more"
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


def test_an_unreadable_image_is_named(tmp_path):
    put(tmp_path / "images", TWELVE)
    (tmp_path / "images" / "class 03" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="images/class 03/1.png: unreadable"):
        own_images.train_folder(tmp_path / "images", dict(backbone="demo_vit", epochs=1, steps_per_epoch=1),
                                results=tmp_path / "out", device="cpu", progress=False, say=lambda _: None)  # fmt: skip


def test_without_weights_it_is_said_where_to_get_some(tmp_path, monkeypatch):
    put(tmp_path / "images", TWELVE)
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no network\nat all")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setattr("vptsp_core.method.hub._reached", lambda address: True)
    with pytest.raises(
        VptspError, match=r"\(no network\); give the file with weights=FILE.* backbone=demo_vit"
    ) as caught:
        own_images.train_folder(tmp_path / "images", dict(backbone="vit_tiny_patch16_224"),
                                results=tmp_path / "out", device="cpu", progress=False, say=lambda _: None)  # fmt: skip
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "out").rglob("runs/*"))


INTERVALS = {"better": (10.0, 1.0, 20.0), "worse": (-10.0, -20.0, -1.0), "cannot be told": (-20.0, -45.0, 5.0),
             "equal": (0.0, 0.0, 0.0)}  # fmt: skip


def told(tmp_path, verdicts, *, epoch=3, epochs=10, selection="validation", classes=40, queries=1234, start="released",
         frozen=50.0, intervals=INTERVALS):  # fmt: skip
    """The summary of a run whose two measures came out so."""
    start = "proxies" if epochs == 0 or epoch == 0 else start
    before = frozen
    config = RunConfig(dataset="own", selection=selection, epochs=epochs, start=start)
    frozen = SimpleNamespace(path=tmp_path / "frozen")
    trained = SimpleNamespace(
        config=config, path=tmp_path / "trained", record={"seconds": 61.2, "device": "x"}, metrics={"epoch": epoch},
        queries={"R@1": np.zeros(queries, np.float32)},
    )  # fmt: skip
    rows = [(before, 60.0, *intervals[verdict], queries, verdict) for verdict in verdicts]
    columns = ["frozen", "trained", "difference", "low", "high", "queries", "verdict"]
    gain = pd.DataFrame(rows, ["R@1", "MAP@R"], columns)
    return own_images.summary(frozen, trained, gain, classes)


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [(("better", "better"), "Training helped: the trained model finds better than the frozen backbone."),
     (("better", "cannot be told"), "finds better than the frozen backbone by R@1."),
     (("cannot be told",) * 2, "Training made no difference that is certain."),
     (("worse", "cannot be told"), "made it WORSE by R@1: use the frozen backbone."),
     (("worse", "worse"), "made it WORSE: use the frozen backbone."),
     (("worse", "better"), "helped by MAP@R and harmed by R@1")],
)  # fmt: skip
def test_the_summary_says_it_in_words(verdicts, words, tmp_path):
    text = told(tmp_path, verdicts)
    assert words in text and "1,234 query images of 40 classes that were not trained on" in text
    assert "Trained in 1 min 2 s on x; epoch 3 of 10." in text and "other classes may" not in text
    assert (f"frozen backbone lies in {tmp_path / 'frozen'}" in text) == (set(verdicts) != {"better"})
    assert "optimistic" not in text and "optimistic" in told(tmp_path, verdicts, selection="released")
    assert "other classes may differ" in told(tmp_path, verdicts, classes=19)
    text = told(tmp_path, verdicts, epoch=0)
    assert "No epoch was better than the start" in text and "Training" not in text, "what is kept was not trained"
    clear = [f"{verdict} by {metric}" for metric, verdict in zip(["R@1", "MAP@R"], verdicts) if " " not in verdict]
    mend = ": use the frozen backbone" if "better" not in verdicts else ""
    assert f"it is {', '.join(clear)}{mend}." in text or not clear


@pytest.mark.parametrize(
    ("verdicts", "words"),
    [(("better", "equal"), "The trained model, start included, finds better than the frozen backbone by R@1."),
     (("worse", "worse"), "The trained model, start included, finds WORSE: use the frozen backbone."),
     (("worse", "better"), "The trained model, start included, is better by MAP@R and worse by R@1: choose"),
     (("equal", "equal"), "The trained model, start included, made no difference on any query.")],
)  # fmt: skip
def test_what_the_start_did_is_not_said_to_be_the_trainings(verdicts, words, tmp_path):
    text = told(tmp_path, verdicts, start="proxies")
    assert words in text and "Training helped" not in text and "Training made" not in text


def test_the_words_are_explained_once_each(tmp_path):
    text = told(tmp_path, ["better", "cannot be told"])
    for line in (
        "R@1: of 100 query images, how many have a picture of their own class as nearest neighbour.",
        "MAP@R: how far up all pictures of a query's class are ranked; 100 if they all come first.",
        "Frozen: the pretrained backbone as it came.",
    ):
        assert text.split("\n").count(line) == 1
    assert "a lower learning rate (--set lr=...)" in text


def test_what_is_equal_on_every_query_has_no_bounds(tmp_path):
    text = told(tmp_path, ["equal", "equal"], queries=40)
    assert text.count("+0.0: equal on all 40 queries") == 2 and "[+" not in text and "cannot be told" not in text
    assert "Training made no difference on any query." in text and "frozen backbone lies in" in text
    assert "The interval is" not in told(tmp_path, ["equal"] * 2, classes=5) and "learning rate" in text
    assert "nothing can be gained" not in text
    text = told(tmp_path, ["equal", "equal"], frozen=100.0)
    assert "has 100 already: nothing can be gained by R@1 and MAP@R on these images." in text
    assert "learning rate" not in text and "More" not in text, "what helps where nothing can?"


def test_few_queries_have_no_bounds(tmp_path):
    text = told(tmp_path, ["cannot be told", "cannot be told"], queries=29, classes=5)
    assert "R@1         50.0     60.0  -20.0: too few queries to tell" in text and "points lower" not in text
    assert "R@1 and MAP@R cannot be told: 29 queries are too few, at least 30 are needed. More tested images" in text
    assert "The interval is" not in text
    assert "cannot be told from so few" in told(tmp_path, ["cannot be told"] * 2, queries=30)


@pytest.mark.parametrize(
    ("frozen", "trained", "verdict"),
    [(np.ones(40), np.ones(40), "equal"), (np.zeros(40), np.ones(40), "better"), (np.ones(40), np.zeros(40), "worse"),
     (np.zeros(29), np.ones(29), "cannot be told"), (np.zeros(29), np.zeros(29), "equal"),
     (np.arange(40) % 2, np.arange(1, 41) % 2, "cannot be told")],
)  # fmt: skip
def test_verdicts(frozen, trained, verdict, tmp_path):
    def run(values):
        values = values.astype(np.float32)
        return SimpleNamespace(
            path=tmp_path, metrics={"R@1": values.mean(), "MAP@R": values.mean()},
            record={"data": {"name": "own", "test": "x"}},
            queries={"R@1": values, "MAP@R": np.append(values[1:], np.nan).astype(np.float32)},
        )  # fmt: skip

    gain = own_images.compare(run(frozen), run(trained))
    assert gain["verdict"]["R@1"] == verdict
    assert gain["queries"].tolist() == [len(frozen), len(frozen) - 1], "one of a class with nothing else to be found"


def test_a_bound_that_is_not_0_is_not_printed_as_0(tmp_path):
    text = told(tmp_path, ["better", "worse"], intervals={"better": (1.3, 0.004, 2.5), "worse": (-0.31, -0.6, -0.03)})
    assert "+1.3 [+0.004, +2.5]: better" in text and "-0.3 [-0.6, -0.03]: worse" in text
    text = told(tmp_path, ["cannot be told", "better"], intervals=INTERVALS | {"cannot be told": (1.0, 0.0, 0.04)})
    assert "+1.0 [+0.0, +0.04]: cannot be told" in text
    assert "R@1 may be equal or up to 0.04 points higher." in text


def test_what_so_few_images_cannot_tell_is_told_with_its_bounds(tmp_path):
    text = told(tmp_path, ["cannot be told", "better"], queries=40)
    assert "R@1         50.0     60.0  -20.0 [-45.0, +5.0]: cannot be told" in text
    assert "Better or worse by R@1 cannot be told from so few images (40): " in text
    assert "R@1 may be up to 45.0 points lower or up to 5.0 points higher." in text
    assert "cannot be told" not in told(tmp_path, ["better", "better"])


@pytest.mark.parametrize("verdict", ["worse", "cannot be told"])
def test_more_epochs_are_advised_only_where_the_last_one_was_the_best(verdict, tmp_path):
    more = "More epochs (--set epochs=N)"
    assert more in told(tmp_path, [verdict] * 2, epoch=10) and more in told(tmp_path, [verdict] * 2, selection="last")
    text = told(tmp_path, [verdict] * 2)
    assert "The held-out classes were best after epoch 3 of 10, and more epochs may not help" in text
    assert "would not" not in text
    assert more not in text and "train longer" not in text and more not in told(tmp_path, ["better"] * 2, epoch=10)
    assert "The tested classes were best after epoch 3" in told(tmp_path, [verdict] * 2, selection="released")
    assert "epochs" not in told(tmp_path, [verdict] * 2, epoch=0).replace(str(tmp_path), "")


@pytest.mark.parametrize("selection", ["validation", "last", "released"])
def test_without_epochs_nothing_was_trained(selection, tmp_path):
    text = told(tmp_path, ["worse", "cannot be told"], epoch=0, epochs=0, selection=selection)
    assert "Nothing was trained (epochs=0): the model is the start" in text and "it is worse by R@1: use" in text
    for wrong in ("No epoch", "Trained in", "epoch 0 of 0", "optimistic", "More epochs"):
        assert wrong not in text


def test_one_is_singular(tmp_path):
    assert told(tmp_path, ["better"] * 2, queries=1, classes=1).startswith("1 query image of 1 class that")
    assert "1 classes" not in told(tmp_path, ["better"] * 2, classes=1)


def test_calls_that_begin_at_once_get_one_plan(tmp_path, monkeypatch):
    """What memory is free is another at every look: who decides second must find the first one's plan."""
    benchmark, looks = load_benchmark("glyphs"), iter([1e9, 64e9, 1e8])

    def looked(device, cache):
        memory = next(looks)
        time.sleep(0.5)
        return Machine(False, memory, memory, 1e12, 1)

    monkeypatch.setattr(own_images, "machine", looked)
    changes = {"backbone": "demo_vit", "image_size": 40, "resize": 40}
    with ThreadPoolExecutor(3) as pool:
        given = (benchmark, tmp_path / "images", changes, tmp_path, None, "cpu")
        calls = [pool.submit(own_images._planned, *given) for _ in "abc"]
        plans = [call.result() for call in calls]
    assert len({made.config for made in plans}) == 1 and next(looks) == 64e9, "one looked"
    assert len(list((tmp_path / "plans").iterdir())) == 1
