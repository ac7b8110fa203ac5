"""python -m vptsp_core data: from the published archives, on a server or fetched by hand, to a complete data set."""

import dataclasses
import errno
import functools
import hashlib
import io
import os
import tarfile
import threading
import types
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from vptsp_core.__main__ import main
from vptsp_core.data import DATASETS, fetch, load_benchmark
from vptsp_core.data.catalog import CATALOG
from vptsp_core.data.glyphs import load_glyphs
from vptsp_core.errors import DataError
from vptsp_core.system import locks


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (24, 20), (30, 60, 200)).save(buffer, "JPEG")
    return buffer.getvalue()


PICTURE = picture()
HEADER = "image_id class_id super_class_id path\n"
SOP_LISTS = {
    "Ebay_train.txt": f"{HEADER}1 1 1 bicycle_final/a_0.JPG\n2 1 1 bicycle_final/a_1.JPG\n",
    "Ebay_test.txt": f"{HEADER}3 2 1 bicycle_final/b_0.JPG\n4 2 1 bicycle_final/b_1.JPG\n",
    "Ebay_info.txt": "",
}


def tgz(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Replace a data set of the catalogue by small archives on a server, with their checksum and counts."""
    folder = tmp_path / "server"
    folder.mkdir()
    seen = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            seen.append(self.path)

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder))
    threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()

    def publish(name, counts):
        parts = []
        for part in CATALOG[name].parts:
            path = folder / part.file
            checksum = "md5:" + hashlib.md5(path.read_bytes()).hexdigest() if path.exists() else part.checksum
            sources = part.sources and (f"http://127.0.0.1:{httpd.server_port}/{part.file}",)
            parts.append(dataclasses.replace(part, sources=sources, checksum=checksum))
        monkeypatch.setitem(CATALOG, name, dataclasses.replace(CATALOG[name], counts=counts, parts=tuple(parts)))

    yield types.SimpleNamespace(folder=folder, publish=publish, seen=seen)
    httpd.shutdown()
    httpd.server_close()


def run(capsys, *command):
    status = main(["data", *map(str, command)])
    return status, *capsys.readouterr()


def one_line(error):
    return error.startswith("error: ") and error.count("\n") == 1


BIRDS = {"train": (2, 4), "test": (2, 4)}


def cub_files(numbers=(1, 2, 101, 102)):
    files = {f"CUB_200_2011/images/{c:03}.Bird_{c}/{i}.jpg": PICTURE for c in numbers for i in range(2)}
    return files | {"attributes.txt": b"", "CUB_200_2011/README": b"", "CUB_200_2011/images.txt": b"1 ..."}


def test_cub_is_downloaded_unpacked_and_checked(published, data, capsys):
    tgz(published.folder / "CUB_200_2011.tgz", cub_files())
    published.publish("cub200", BIRDS)
    status, out, err = run(capsys, "get", "cub200", "--data", data)
    assert status == 0 and "cub200: complete, in" in out and "non-commercial" in out and err == ""
    assert sorted(path.name for path in data.iterdir()) == ["cub200", "downloads"]
    assert [path.name for path in (data / "cub200").iterdir()] == ["CUB_200_2011"]
    assert len(load_benchmark("cub200", data).test) == 4
    status, out, err = run(capsys, "get", "cub200", "--data", data)
    assert status == 0 and "already complete" in out and len(published.seen) == 1
    status, out, err = run(capsys, "get", "cub200", "--data", data / "cub200")  # the folder of the data set itself
    assert status == 0 and f"already complete, in {data / 'cub200' / 'CUB_200_2011'}\n" in out
    status, _, err = run(capsys, "check", "cub200", "--data", "")
    assert (status, err) == (2, "error: --data is empty; give a value, or leave it out\n")
    status, out, err = run(capsys, "check", "cub200", "--data", data)
    assert status == 0 and out.splitlines()[1].split() == ["train", "2", "4", "2", "4", "ok"]


def test_a_fetched_archive_is_not_fetched_again(published, data, capsys):
    tgz(published.folder / "CUB_200_2011.tgz", cub_files((1, 2, 101)))
    published.publish("cub200", BIRDS)
    status, out, err = run(capsys, "get", "cub200", "--data", data)
    assert status == 2 and one_line(err.splitlines()[-1] + "\n") and "1 test classes instead of 2" in err
    assert f"move {data / 'cub200'} away" in err and "--allow-partial" not in err, "get has no such option"
    (data / "cub200").rename(data / "away")
    assert run(capsys, "get", "cub200", "--data", data)[0] == 2 and len(published.seen) == 1
    (data / "downloads" / "CUB_200_2011.tgz").unlink()
    assert run(capsys, "get", "cub200", "--data", data)[0] == 2 and len(published.seen) == 1, "no longer needed"
    status, out, err = run(capsys, "check", "cub200", "--data", data)
    assert status == 2 and one_line(err) and "--allow-partial" in err and out == ""
    status, out, err = run(capsys, "check", "cub200", "--data", data, "--allow-partial")
    assert status == 0 and out.splitlines()[2].split()[-2:] == ["NOT", "OK"]
    assert err.startswith("warning: cub200: ") and "1 test classes" in err.splitlines()[0]


def publish_sop(published):
    files = {f"Stanford_Online_Products/bicycle_final/{name}.JPG": PICTURE for name in ("a_0", "a_1", "b_0", "b_1")}
    files |= {f"Stanford_Online_Products/{name}": content.encode() for name, content in SOP_LISTS.items()}
    zipped(published.folder / "Stanford_Online_Products.zip", files | {"__MACOSX/._x": b""})
    published.publish("sop", {"train": (1, 2), "test": (1, 2)})


def test_the_remains_of_a_killed_unpacking_are_deleted(published, data, capsys):
    publish_sop(published)
    (data / "online_products" / ".abc.unpacking" / "Stanford_Online_Products").mkdir(parents=True)
    status, out, err = run(capsys, "get", "sop", "--data", data)
    assert status == 0 and err == "" and len(load_benchmark("sop", data).test) == 2
    assert [path.name for path in (data / "online_products").iterdir()] == ["Stanford_Online_Products"]


def test_two_processes_get_a_data_set_once(published, data, capsys, monkeypatch):
    publish_sop(published)
    begun, go, waits, unpack, status = threading.Event(), threading.Event(), threading.Event(), fetch._unpack, []
    said = []
    monkeypatch.setattr(locks, "print", lambda text, file: (said.append(text), waits.set()), raising=False)

    def slow(*args, **kwargs):
        begun.set()
        assert go.wait(20)
        unpack(*args, **kwargs)

    monkeypatch.setattr(fetch, "_unpack", slow)
    command = ["data", "get", "sop", "--data", str(data)]
    threads = [threading.Thread(target=lambda: status.append(main(command))) for _ in "12"]
    threads[0].start()
    assert begun.wait(20)
    threads[1].start()
    waits.wait(10)
    go.set()
    for thread in threads:
        thread.join(20)
    out, err = capsys.readouterr()
    assert status == [0, 0] and err == ""
    assert len(said) == 1 and said[0].startswith("sop: another process is getting it; waiting")
    assert out.count(" -> ") == 1 and out.count("sop: complete, in") == 2 and not list(data.rglob("*.lock"))


EVIL = {
    "outside.tgz": (tgz, {"../../evil": b"x", "img/a": b""}), "outside.zip": (zipped, {"../../evil": b"x"}),
    "absolute.zip": (zipped, {"{data}/evil": b"x"}), "other.zip": (zipped, {"images/a": b""}),
}  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
def test_an_archive_that_writes_outside_or_lacks_its_folder_is_refused(published, data, name):
    data.mkdir()
    make, files = EVIL[name]
    make(data / name, {path.format(data=data): content for path, content in files.items()})
    with pytest.raises(DataError, match="cannot be unpacked .*get it again|has no folder img") as caught:
        fetch._unpack(data / name, data, "img")
    assert "\n" not in str(caught.value) and [path.name for path in data.iterdir()] == [name]
    assert not (data.parent / "evil").exists() and not (data.parent.parent / "evil").exists()


@pytest.mark.parametrize(("make", "damage"), [(tgz, "cut"), (zipped, "noise"), (tgz, "no archive")])
def test_a_broken_archive_is_refused_in_one_line(data, make, damage):
    data.mkdir()
    path = data / "a"
    make(path, {f"img/{i}": os.urandom(40_000) for i in range(4)})
    content = path.read_bytes()
    noise = content[:70_000] + bytes(999) + content[70_999:]
    path.write_bytes({"cut": content[:70_000], "noise": noise, "no archive": b"<html>"}[damage])
    with pytest.raises(DataError, match="a: cannot be unpacked .*; get it again, or unpack it yourself") as caught:
        fetch._unpack(path, data, "img")
    assert "\n" not in str(caught.value) and [each.name for each in data.iterdir()] == ["a"]


def test_a_disk_that_becomes_full_while_unpacking_leaves_nothing(data, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    data.mkdir()
    zipped(data / "img.zip", {"img/a": b"x"})
    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    with pytest.raises(DataError, match="the disk is too full to unpack img.zip; free some"):
        fetch._unpack(data / "img.zip", data, "img")
    assert [path.name for path in data.iterdir()] == ["img.zip"]


def test_inaturalist_fetches_nothing_before_a_person_fetched_the_lists(published, data, capsys):
    lists = {"train": "train_val2018/Aves/1/a.jpg\n", "test": "train_val2018/Aves/2/b.jpg\n"}
    images = {line.strip(): PICTURE for line in lists.values()}
    tgz(published.folder / "train_val2018.tar.gz", images)
    published.publish("inaturalist", {"train": (1, 1), "test": (1, 1)})
    status, out, err = run(capsys, "get", "inaturalist", "--data", data)
    assert status == 2 and one_line(err) and "Inaturalist_train_set1.txt and Inaturalist_test_set1.txt" in err
    assert "Smooth-AP" in out and not published.seen
    (data / "downloads").mkdir(parents=True)
    for split, line in lists.items():
        (data / "downloads" / f"Inaturalist_{split}_set1.txt").write_text(line)
    assert run(capsys, "get", "inaturalist", "--data", data)[0] == 0 and len(published.seen) == 1


def test_decode_lists_the_images_that_cannot_be_read(tmp_path, capsys):
    for c in "0abc":
        for i in range(2):
            path = tmp_path / c / f"{i}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(PICTURE)
    (tmp_path / "b" / "1.jpg").write_bytes(PICTURE[: len(PICTURE) // 2])
    (tmp_path / "a" / "0.jpg").write_bytes(b"")
    assert run(capsys, "check", "folder", "--data", tmp_path)[0] == 0
    status, out, err = run(capsys, "check", "folder", "--data", tmp_path, "--decode")
    assert status == 2 and "in two classes or more" in err, "all images are the same picture"
    assert err.endswith("error: folder: 2 image(s) cannot be read, as listed above; replace the files\n")
    listed = [line for line in out.splitlines() if "unreadable" in line]
    assert [line.split(":")[0] for line in listed] == [f"image {tmp_path}/a/0.jpg", f"image {tmp_path}/b/1.jpg"]


WRONG = {
    "no data": (["check", "sop"], "no folder is given; give --data DIR, or set VPTSP_DATA"),
    "no such set": (["get", "cub", "--data", "."], "no data set 'cub'; there are glyphs, cub200"),
    "unknown to check": (["check", "cub"], "no data set 'cub'; there are glyphs, cub200"),
    "own": (["get", "folder", "--data", "."], "there is nothing to get"),
    "not there": (["check", "sop", "--data", "."], "no folder /"),
}


@pytest.mark.parametrize(("command", "message"), WRONG.values(), ids=WRONG.keys())
def test_mistakes_are_one_line_and_status_2(command, message, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("VPTSP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *command)
    assert status == 2 and one_line(err) and message in err and out == ""


def test_the_environment_names_the_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("VPTSP_DATA", str(tmp_path))
    assert f"no folder {tmp_path}/online_products" in run(capsys, "check", "sop")[2]


def test_info_describes_every_data_set(monkeypatch, capsys):
    monkeypatch.delenv("VPTSP_DATA", raising=False)
    status, out, _ = run(capsys, "info")
    assert status == 0 and all(name in out for name in DATASETS)
    assert ".tiff" in run(capsys, "info", "folder")[1]
    for name in DATASETS:
        status, out, err = run(capsys, "info", name)
        assert status == 0 and err == ""
        for part in CATALOG[name].parts if name in CATALOG else ():
            assert all(text in out for text in (part.file, *part.sources, part.checksum or ""))
            assert CATALOG[name].citation in out and CATALOG[name].terms in out


def test_the_embedded_set_can_be_checked(monkeypatch, capsys):
    monkeypatch.setattr(load_glyphs, "__defaults__", (1, 8, 0))
    status, out, _ = run(capsys, "check", "glyphs")
    assert status == 0 and out.splitlines()[1].split() == ["train", "100", "100"]


def test_a_folder_without_permission_is_reported_in_one_line(tmp_path, monkeypatch, capsys):
    def closed(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.is_dir", closed)
    monkeypatch.chdir(tmp_path)
    assert main(["data", "check", "cub200", "--data", "private"]) == 2
    message = f"error: {tmp_path}/private/cub200: Permission denied; fix it, or name another place\n"
    assert capsys.readouterr().err == message
