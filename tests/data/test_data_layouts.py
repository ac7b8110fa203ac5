"""The layout of every data set, in small copies with the published folder structure and list files."""

import dataclasses
import os
import warnings

import numpy as np
import pytest
import scipy.io
from PIL import Image

from vptsp_core import preset
from vptsp_core.__main__ import main
from vptsp_core.data import load_benchmark
from vptsp_core.data.catalog import CATALOG
from vptsp_core.errors import DataError
from vptsp_core.runs.folder import run_folder


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "picture.jpg"
    Image.new("RGB", (24, 20), (30, 60, 200)).save(path)
    return path


@pytest.fixture
def root(tmp_path, picture, monkeypatch):
    """A folder of data sets that `put` fills. The published counts are replaced by those of the small copies."""
    for name, counts in SMALL.items():
        monkeypatch.setitem(CATALOG, name, dataclasses.replace(CATALOG[name], counts=counts))
    put.picture, put.root = picture, tmp_path
    return tmp_path


def put(*names):
    for name in names:
        path = put.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(put.picture, path)


SMALL = {
    "cub200": {"train": (3, 6), "test": (2, 4)},
    "cars196": {"train": (3, 6), "test": (2, 4)},
    "sop": {"train": (2, 4), "test": (2, 3)},
    "inshop": {"train": (2, 3), "query": (2, 2), "gallery": (2, 3)},
    "inaturalist": {"train": (2, 3), "test": (1, 2)},
}
SOP = {
    "train": ["1 1 1 bicycle_final/a_0.JPG", "2 1 1 bicycle_final/a_1.JPG", "3 2 1 bicycle_final/b_0.JPG",
              "4 2 2 sofa_final/b_1.JPG"],
    "test": ["5 11319 2 sofa_final/c_0.JPG", "6 11319 2 sofa_final/c_1.JPG", "7 11320 2 sofa_final/d_0.JPG"],
}  # fmt: skip
INSHOP = [
    ("img/WOMEN/Dresses/id_00000002/02_1_front.jpg", "id_00000002", "train"),
    ("img/WOMEN/Dresses/id_00000002/02_2_side.jpg", "id_00000002", "train"),
    ("img/WOMEN/Tees/id_00000004/03_1_front.jpg", "id_00000004", "train"),
    ("img/MEN/Denim/id_00000001/01_1_front.jpg", "id_00000001", "query"),
    ("img/MEN/Denim/id_00000003/01_1_front.jpg", "id_00000003", "query"),
    ("img/MEN/Denim/id_00000003/01_2_side.jpg", "id_00000003", "gallery"),
    ("img/MEN/Denim/id_00000003/01_3_back.jpg", "id_00000003", "gallery"),
    ("img/MEN/Denim/id_00000001/01_4_full.jpg", "id_00000001", "gallery"),
]
INAT = {
    "train": ["train_val2018/Aves/3136/a.jpg", "./data/train_val2018/Aves/3136/b.jpg", "train_val2018/Fungi/7/c.jpg"],
    "test": ["train_val2018/Plantae/3136/d.jpg", "train_val2018/Plantae/3136/e.jpg"],
}


NUMBERS = {"cub200": (1, 2, 100, 101, 200), "cars196": (1, 2, 98, 99, 196)}


def make_classes(folder, name):
    put(*(f"{folder}/images/{c:03}.Class {c}/{c}_{i}.jpg" for c in NUMBERS[name] for i in range(2)))


def sop_lists():
    header = "image_id class_id super_class_id path\n"
    return {f"Ebay_{split}.txt": header + "\n".join(rows) + "\n" for split, rows in SOP.items()}


def make_sop(lists="online_products/Info_Files", images="online_products/images"):
    for name, content in sop_lists().items():
        (put.root / lists).mkdir(parents=True, exist_ok=True)
        (put.root / lists / name).write_text(content)
    put(*(f"{images}/{row.split()[3]}" for rows in SOP.values() for row in rows))


def inshop_list(rows=INSHOP):
    lines = [str(len(rows)), "image_name item_id evaluation_status"]
    return "\n".join(lines + [f"{image:80} {item}  {status}  " for image, item, status in rows]) + "\n"


def make_inshop():
    put(*(f"inshop/{image}" for image, _, _ in INSHOP))
    (put.root / "inshop" / "list_eval_partition.txt").write_text(inshop_list())


def make_inat():
    paths = [path[path.index("train_val2018") :] for rows in INAT.values() for path in rows]
    put(*(f"inaturalist/{path}" for path in paths))
    for split, rows in INAT.items():
        (put.root / "inaturalist" / f"Inaturalist_{split}_set1.txt").write_text("\n".join(rows) + "\n")


MAKE = {
    "cub200": lambda: make_classes("cub200", "cub200"),
    "cars196": lambda: make_classes("cars196", "cars196"),
    "sop": make_sop,
    "inshop": make_inshop,
    "inaturalist": make_inat,
}


def names(images):
    """Return the file's name and the class of each image."""
    return [(path.name, images.class_names[label]) for path, label in zip(images.paths, images.labels, strict=True)]


def annotations(path, images, key, labels=True):
    """Write a file with the structure of the published one: a 1 x N struct array."""
    fields = ["bbox_x1", *(["class"] if labels else []), key]
    table = np.empty((1, len(images)), dtype=[(field, object) for field in fields])
    for i, (image, number) in enumerate(images):
        table[0, i] = (1, *([np.uint8(number)] if labels else []), image)
    path.parent.mkdir(parents=True, exist_ok=True)
    names = np.array([f"Car C/V {number}" for number in range(1, 197)], dtype=object)
    scipy.io.savemat(path, {"annotations": table} | ({"class_names": names[None]} if key == "relative_im_path" else {}))


CARS = [(f"{n + 1:06}.jpg", (196, 99, 98, 2, 1)[n // 2]) for n in range(10)]  # not in the order of the classes


def car_ims(folder):
    put(*(f"{folder}/car_ims/{image}" for image, _ in CARS))
    images = [(f"car_ims/{image}", c) for image, c in CARS]
    annotations(put.root / folder / "cars_annos.mat", images, "relative_im_path")


def halves(folder, devkit="devkit/", nested=False, labels=True):
    for i, (half, file) in enumerate([("cars_train", "cars_train_annos"), ("cars_test", "cars_test_annos_withlabels")]):
        put(*(f"{folder}/{half}/{f'{half}/' * nested}{image}" for image, _ in CARS[i::2]))
        file = file if labels else file.removesuffix("_withlabels")
        annotations(put.root / folder / f"{devkit}{file}.mat", CARS[i::2], "fname", labels or not i)


@pytest.mark.parametrize("layout", [
    lambda: car_ims("cars196"), lambda: car_ims("stanford_cars"), lambda: halves("cars196"),
    lambda: halves("cars196", "", nested=True), lambda: halves("stanford_cars", "devkit/devkit/"),
])  # fmt: skip
def test_cars_with_annotations(root, layout):
    """The first 98 classes are for training, not the official half, and each file keeps its class."""
    layout()
    benchmark = load_benchmark("cars196", root)
    of = dict(CARS)
    for images, classes in ((benchmark.train, {1, 2, 98}), (benchmark.test, {99, 196})):
        found = names(images)
        assert len(found) == 2 * len(classes) and {of[file] for file, _ in found} == classes
        assert all(label in (f"{of[file]:03}", f"{of[file]:03}.Car C-V {of[file]}") for file, label in found)


def test_cars_without_labels_or_annotations(root):
    halves("cars196", labels=False)
    with pytest.raises(DataError, match="cars_test_annos.mat has no labels; get cars_test_annos_withlabels.mat"):
        load_benchmark("cars196", root)
    (root / "cars196" / "devkit" / "cars_test_annos.mat").unlink()
    with pytest.raises(DataError, match="cars_test needs cars_test_annos_withlabels.mat, .* put it into "):
        load_benchmark("cars196", root)
    (root / "cars196" / "cars_test_annos_withlabels.mat").write_bytes(b"<html>")
    with pytest.raises(DataError, match="cars_test_annos_withlabels.mat is unreadable .*; get it again"):
        load_benchmark("cars196", root)


@pytest.mark.parametrize(("name", "folder"), [
    ("cub200", "CUB_200_2011"), ("cub200", "cub200/CUB_200_2011"), ("cars196", "stanford_cars"),
])  # fmt: skip
def test_folders_by_the_names_of_their_archives(root, name, folder):
    make_classes(folder, name)
    load_benchmark(name, root)
    load_benchmark(name, root / folder)


def test_inshop_as_it_is_published(root, capsys):
    make_inshop()
    for file, folder in (("img", "Img"), ("list_eval_partition.txt", "Eval")):
        (root / "inshop" / folder).mkdir()
        (root / "inshop" / file).rename(root / "inshop" / folder / file)
    assert main(["data", "check", "inshop", "--data", str(root)]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["split", "train", "query", "gallery"]


# ---- what is published ---------------------------------------------------------------------------


def test_the_counts_add_up_to_the_published_totals():
    """The totals are from the papers that published the data sets."""
    totals = {
        "cub200": (11_788, 200), "cars196": (16_185, 196), "sop": (120_053, 22_634), "inshop": (52_712, 7_982),
        "inaturalist": (461_939, 8_142),
    }  # fmt: skip
    for name, known in CATALOG.items():
        images = sum(images for _, images in known.counts.values())
        classes = sum(classes for split, (classes, _) in known.counts.items() if split != "gallery")
        assert (images, classes) == totals[name]
        assert bool(known.steps) == any(not part.sources for part in known.parts), "steps if a person must act"
        assert all(part.checksum for part in known.parts if part.sources)


# ---- the layouts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKE)
def test_a_whole_data_set_is_read(root, name):
    MAKE[name]()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        benchmark = load_benchmark(name, root, allow_partial=True)
    again = load_benchmark(name, root)
    assert benchmark.differences == () and again.fingerprint() == benchmark.fingerprint()
    assert benchmark.name == name and benchmark.test.image(0).size == (24, 20)
    assert not set(benchmark.train.class_names) & set(benchmark.test.class_names)
    assert set(benchmark.record()) == {"name", "train", "test"} | ({"gallery"} if benchmark.gallery else set())


def test_class_folders_are_split_by_their_numbers(root):
    MAKE["cars196"]()
    put("cars196/images/.DS_Store", "cars196/images/001.Class 1/._0_0.jpg", "cars196/images/.hidden/1.jpg")
    benchmark = load_benchmark("cars196", root)
    assert benchmark.train.class_names[-1] == "098.Class 98" and benchmark.test.class_names[0] == "099.Class 99"
    assert names(benchmark.train)[:3] == [("1_0.jpg", "001.Class 1"), ("1_1.jpg", "001.Class 1"),
                                          ("2_0.jpg", "002.Class 2")]  # fmt: skip


def test_classes_without_numbers_must_all_be_there(root, monkeypatch):
    counts = {"train": (98, 196), "test": (98, 196)}
    monkeypatch.setitem(CATALOG, "cars196", dataclasses.replace(CATALOG["cars196"], counts=counts))
    put(*(f"cars196/images/Car {c:03}/{i}.jpg" for c in range(196) for i in range(2)))
    assert load_benchmark("cars196", root).test.class_names[0] == "Car 098", "their order decides"
    (root / "cars196/images/Car 007").rename(root / "away")
    with pytest.raises(DataError, match="the training classes are unknown"):
        load_benchmark("cars196", root, True)


def test_a_missing_class_and_a_stray_folder_move_no_other_class(root):
    MAKE["cub200"]()
    (root / "cub200/images/002.Class 2").rename(root / "cub200/images/Class2")
    (root / "cub200/images/002.Empty").mkdir()
    with pytest.warns(UserWarning, match="2 training classes instead of 3"):
        benchmark = load_benchmark("cub200", root, allow_partial=True)
    assert benchmark.train.class_names == ("001.Class 1", "100.Class 100")
    assert benchmark.test.class_names == ("101.Class 101", "200.Class 200")


@pytest.mark.parametrize(("lists", "images"), [("/Info_Files", "/images"), ("", "/images"), ("", "")])
def test_online_products_follows_its_lists(root, lists, images):
    make_sop(f"online_products{lists}", f"online_products{images}")
    put(f"online_products{images}/sofa_final/unlisted.JPG")
    benchmark = load_benchmark("sop", root)
    assert names(benchmark.train) == [("a_0.JPG", "1"), ("a_1.JPG", "1"), ("b_0.JPG", "2"), ("b_1.JPG", "2")]
    assert benchmark.test.labels.tolist() == [0, 0, 1], "the benchmark has classes of one image"


def test_inshop_queries_and_gallery_share_their_classes(root):
    make_inshop()
    benchmark = load_benchmark("inshop", root)
    assert names(benchmark.train)[1:] == [("02_2_side.jpg", "id_00000002"), ("03_1_front.jpg", "id_00000004")]
    assert benchmark.test.class_names == benchmark.gallery.class_names == ("id_00000001", "id_00000003")
    assert benchmark.test.labels.tolist() == [0, 1] and benchmark.gallery.labels.tolist() == [1, 1, 0]


def test_inaturalist_classes_are_the_last_two_folders(root):
    make_inat()
    benchmark = load_benchmark("inaturalist", root)
    assert benchmark.train.class_names == ("Aves/3136", "Fungi/7") and benchmark.train.labels.tolist() == [0, 0, 1]
    assert benchmark.test.class_names == ("Plantae/3136",)
    assert benchmark.train.paths[1] == root / "inaturalist/train_val2018/Aves/3136/b.jpg"


def test_lists_from_windows(root):
    make_inat()
    for path in (root / "inaturalist").glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert len(load_benchmark("inaturalist", root).train) == 3


# ---- data sets that are not whole ---------------------------------------------------------------------------


def test_a_partial_data_set_is_refused_with_all_differences_unless_it_is_accepted(root):
    make_inshop()
    for image in (INSHOP[2][0], INSHOP[3][0]):
        (root / "inshop" / image).unlink()
    with pytest.raises(DataError) as refused:
        load_benchmark("inshop", root)
    for part in (
        "1 training classes instead of 2", "2 training images instead of 3", "1 query classes instead of 2",
        "1 query images instead of 2", "2 of 8 listed images are missing, the first", INSHOP[2][0], "--allow-partial",
    ):  # fmt: skip
        assert part in str(refused.value)
    assert "gallery" not in str(refused.value) and "\n" not in str(refused.value)
    with pytest.warns(UserWarning) as caught:
        benchmark = load_benchmark("inshop", root, allow_partial=True)
    (message,) = [str(each.message) for each in caught]
    assert "1 query images instead of 2" in message and "\n" not in message
    assert benchmark.record()["partial"] == list(benchmark.differences) and len(benchmark.differences) == 5
    assert str(root) in message and str(root) not in str(benchmark.record()), "a record is shared with others"
    assert names(benchmark.test) == [("01_1_front.jpg", "id_00000003")]
    assert benchmark.gallery.class_names == ("id_00000003", "id_00000001")


def test_a_split_without_images_is_refused_even_if_partial(root):
    make_sop()
    benchmark = load_benchmark("sop", root, allow_partial=True)
    for path in benchmark.test.paths:
        path.unlink()
    with pytest.warns(UserWarning), pytest.raises(DataError, match="leaves no images for test; add some"):
        load_benchmark("sop", root, allow_partial=True)
    for path in benchmark.train.paths:
        path.unlink()
    with pytest.raises(DataError, match="listed images are missing, .*; put the images there, or correct the paths"):
        load_benchmark("sop", root, allow_partial=True)


BROKEN = {
    "no folder": ("sop", None, None, "no folder .*online_products; python -m vptsp_core data get sop"),
    "no list": ("sop", "Info_Files/Ebay_test.txt", None, "no Info_Files/Ebay_test.txt or Ebay_test.txt in"),
    "other header": ("sop", "Info_Files/Ebay_train.txt", "id path\n", "must begin with the header 'image_id"),
    "short row": ("sop", "Info_Files/Ebay_train.txt", sop_lists()["Ebay_train.txt"] + "8 3\n",
                  "Ebay_train.txt, line 6: 2 fields instead of 4"),
    "not text": ("inshop", "list_eval_partition.txt", b"\xff\xfe\x00", "list_eval_partition.txt is unreadable"),
    "no header": ("inshop", "list_eval_partition.txt", "image_name item_id\n", "begin with the header .image_name"),
    "status": ("inshop", "list_eval_partition.txt", inshop_list([("img/a.jpg", "a", "val")]), "'val' must be one of"),
    "no path": ("inaturalist", "Inaturalist_test_set1.txt", "a.jpg\n", "line 1: 'a.jpg' must be kind/species/image"),
    "class in both": ("inaturalist", "Inaturalist_test_set1.txt", "train_val2018/Aves/3136/f.jpg\n",
                      r"1 class\(es\) both for training and for testing, the first Aves/3136"),
    "image twice": ("inaturalist", "Inaturalist_test_set1.txt", "train_val2018/Plantae/3136/d.jpg\n" * 2,
                    "lists train_val2018/Plantae/3136/d.jpg twice"),
    "outside": ("sop", "Info_Files/Ebay_test.txt", "image_id class_id super_class_id path\n1 9 1 ../../x.JPG\n",
                "not inside"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "file", "content", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_faults_of_lists_are_named(root, name, file, content, message):
    if file:
        MAKE[name]()
        path = root / CATALOG[name].folder / file
        path.unlink()
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        load_benchmark(name, root, allow_partial=True)
    assert "\n" not in str(caught.value)


# ---- your own images -----------------------------------------------------------------------------


def test_class_folders_of_your_own_are_halved(root):
    put(*(f"{c}/{i}.jpg" for c in "edcba" for i in range(2)))
    benchmark = load_benchmark("folder", root)
    assert benchmark.train.class_names == ("a", "b", "c") and benchmark.test.class_names == ("d", "e")
    assert benchmark.gallery is None and benchmark.differences == ()


def own_csv(root, lines, header="path,class,split"):
    put(*(f"images/{i}.jpg" for i in range(8)))
    (root / "split.csv").write_text("\n".join([header, *lines]) + "\n")


def test_a_split_csv_with_a_gallery(root):
    lines = ["images/0.jpg,a,train", "images/1.jpg,b,query", "images/2.jpg,c,gallery", "images/3.jpg,b,gallery"]
    own_csv(root, lines)
    benchmark = load_benchmark("folder", root)
    assert benchmark.test.class_names == benchmark.gallery.class_names == ("b", "c")
    assert benchmark.test.labels.tolist() == [0] and benchmark.gallery.labels.tolist() == [1, 0]


OWN = {
    "header": (["images/0.jpg,a,train"], "path,label,split", "header path,class,split"),
    "split": (["images/0.jpg,a,training"], None, "line 2: split 'training' is not one of train, "),
    "no test": (["images/0.jpg,a,train"], None, "has the splits train; it needs test, or"),
    "mixed": ([f"images/{i}.jpg,{i},{s}" for i, s in enumerate(["train", "test", "query", "gallery"])], None, "splits"),
    "shared": (["images/0.jpg,a,train", "images/1.jpg,a,test"], None, "the first a; testing needs unseen classes"),
    "missing": (["images/0.jpg,a,train", "images/9.jpg,b,test"], None,
                r"1 of 2 listed images are missing, the first .*9.jpg \(line 3\)"),
    "all missing": (["data/images/0.jpg,a,train", "data/images/9.jpg,b,test"], None, "; paths are relative to "),
    "twice": (["images/0.jpg,a,train", "images/./0.jpg,b,test"], None, r"lists images/./0.jpg twice \(line 2, 3\)"),
    "query in the gallery": (["images/0.jpg,a,query", "images/0.jpg,a,gallery"], None, "or write test, where"),
    "a folder": (["images/0.jpg,a,test", "images,b,test"], None, "image .*/images: unreadable .*, or leave it out"),
    "quote": (['images/0.jpg,"a,train', *["images/1.jpg,b,test"] * 9], None, "a quote that is not"),
    "NUL": (["ima\0ges/0.jpg,a,train", "images/1.jpg,b,test"], None, "not inside"),
}  # fmt: skip


@pytest.mark.parametrize(("lines", "header", "message"), OWN.values(), ids=OWN.keys())
def test_faults_of_split_csv_are_named(root, lines, header, message):
    own_csv(root, lines, header or "path,class,split")
    with pytest.raises(DataError, match=message) as caught:
        load_benchmark("folder", root)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_split_csv_in_another_encoding_is_refused(root):
    (root / "split.csv").write_bytes("path,class,split\na.jpg,é,train\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not in UTF-8 .*; save it as UTF-8"):
        load_benchmark("folder", root)


@pytest.mark.skipif(os.sep == "\\", reason="for systems on which a name may hold a backslash")
def test_a_split_csv_from_windows(root):
    put("images/a\\b.jpg")
    own_csv(root, [r"images\0.jpg,a,train", r"images\1.jpg,b,test", r"images\2.jpg,c,test", r"images/a\b.jpg,c,test"])
    assert names(load_benchmark("folder", root).test) == [("1.jpg", "b"), ("2.jpg", "c"), ("a\\b.jpg", "c")]


def test_faults_of_class_folders_are_named(root):
    with pytest.raises(DataError, match="no class folders with images"):
        load_benchmark("folder", root)
    put("a/1.jpg", "a/2.jpg")
    with pytest.raises(DataError, match="leaves no images for test; add classes"):
        load_benchmark("folder", root)


def test_a_warning_counts_the_ignored_files(root):
    put(*(f"{c}/{i}.jpg" for c in "abcd" for i in range(2)), "loose.jpg")
    for name in ("aa", "lost+found", ".hidden"):
        (root / name).mkdir()
    (root / "split.tsv").write_text("path\tclass\n")
    with pytest.warns(UserWarning) as caught:
        benchmark = load_benchmark("folder", root)
    (of_files,) = [each for each in caught if "in two classes" not in str(each.message)]  # all are one picture
    message, end = str(of_files.message), "; split.tsv is not read: a table of the images has the name split.csv"
    assert "3 file(s) or folder(s) in" in message and message.endswith("the first loose.jpg" + end)
    assert benchmark.train.class_names == ("a", "b"), "an empty folder moves no class"


def test_a_warning_names_classes_whose_queries_can_only_miss(root):
    own_csv(root, ["images/0.jpg,a,train", "images/1.jpg,b,test", "images/2.jpg,b,test", "images/3.jpg,c,test"])
    with pytest.warns(UserWarning, match="1 class.* have no other image to find, the first c; their queries can only"):
        load_benchmark("folder", root)
    rows = ["images/0.jpg,a,train", "images/1.jpg,b,query", "images/3.jpg,b,gallery", "images/4.jpg,c,query"]
    rows.append("images/5.jpg,d,gallery")
    (root / "split.csv").write_text("path,class,split\n" + "\n".join(rows))
    with pytest.warns(UserWarning, match="1 class.* the first c"):
        load_benchmark("folder", root)


def test_a_split_csv_with_line_ends_in_names(root, capsys):
    name = "0\u2028\n.jpg"
    put(f"images/{name}", *(f"images/{i}.jpg" for i in (1, 2)))
    (root / "split.csv").write_text(
        f'path,class,split\n"images/{name}",a,train\nimages/1.jpg,b,test\nimages/2.jpg,c,test'
    )
    assert load_benchmark("folder", root).train.paths == [root / "images" / name]
    (root / "images" / name).unlink()
    assert main(["data", "check", "folder", "--data", str(root)]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: folder: "), "one line"


# ---- runs ----------------------------------------------------------------------------------------


def test_runs_on_other_images_have_other_folders(root, tmp_path):
    config = preset("demo", dataset="folder")
    put(*(f"{place}/{c}/{i}.jpg" for place in ("one", "two") for c in "0abc" for i in range(2)))
    folders = [run_folder(config, tmp_path, load_benchmark("folder", root / place)) for place in ("one", "two")]
    assert folders[0] == folders[1], "the same files are the same images in any folder"
    put("two/b/2.jpg")
    other = run_folder(config, tmp_path, load_benchmark("folder", root / "two"))
    assert other != folders[0] and other.name.startswith(run_folder(config, tmp_path).name)


def test_train_and_evaluate_on_a_partial_set(root, capsys):
    make_sop()
    (root / "online_products/images/sofa_final/d_0.JPG").unlink()
    command = ["train", "--preset", "demo", "--data", str(root), "--results", str(root / "results"), "--set"]
    command += ["dataset=sop", "method=frozen", "bitfit=false", "weights=random", "batch=2"]
    assert main(command) == 2
    assert "accept this with --allow-partial" in capsys.readouterr().err
    assert main([*command[:-6], "--allow-partial", *command[-6:]]) == 0
    out, err = capsys.readouterr()
    assert err.count("warning: sop") == 1
    path = out.splitlines()[-2]
    assert "-partial-" in path
    assert '"partial": [' in open(os.path.join(path, "record.json")).read()
    assert main(["evaluate", path, "--data", str(root), "--allow-partial"]) == 0
