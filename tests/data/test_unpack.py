"""Archives: what is written where, and that hostile, broken or too large ones leave nothing behind."""

import errno
import io
import os
import stat
import tarfile
import zipfile

import pytest

from vptsp_core.data import unpack as module
from vptsp_core.data.unpack import prefixes, unpack
from vptsp_core.errors import DataError

EVERYTHING = prefixes({"": ""})
FILES = {"top/images/a/1.jpg": b"one", "top/images/b/2.jpg": b"two" * 100_000, "top/README": b"not needed"}


def make_tar(path, members):
    """Members are (name, content) or whole TarInfo objects."""
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def make_zip(path, members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.tar.gz", "a.tgz"])
def test_folders_are_mapped_to_the_layout(tmp_path, name):
    make = make_zip if name.endswith("zip") else make_tar
    archive = make(tmp_path / name, FILES.items())
    unpack(archive, tmp_path / "set", prefixes({"top/images/": "images/"}))
    assert tree(tmp_path / "set") == {"images/a/1.jpg": b"one", "images/b/2.jpg": b"two" * 100_000}
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "set"]), "no temporary folder stays"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((tmp_path / "set").stat().st_mode) == 0o777 & ~umask, "others may read it as any new folder"


def test_the_first_prefix_that_fits_decides(tmp_path):
    archive = make_zip(tmp_path / "sop.zip", [("S/Ebay_train.txt", b"list"), ("S/sofa_final/1.JPG", b"image")])
    unpack(archive, tmp_path / "set", prefixes({"S/Ebay_": "Info_Files/Ebay_", "S/": "images/"}))
    assert set(tree(tmp_path / "set")) == {"Info_Files/Ebay_train.txt", "images/sofa_final/1.JPG"}


def test_what_is_there_is_kept(tmp_path):
    target = tmp_path / "set"
    (target / "img").mkdir(parents=True)
    (target / "img" / "mine.jpg").write_bytes(b"mine")
    archive = make_zip(tmp_path / "a.zip", [("new/1.jpg", b"1"), ("img/2.jpg", b"2")])
    with pytest.raises(DataError, match="img is there already; move it away"):
        unpack(archive, target, EVERYTHING)
    assert tree(target) == {"img/mine.jpg": b"mine"}
    unpack(archive, target, prefixes({"new/": "new/"}))
    assert tree(target) == {"img/mine.jpg": b"mine", "new/1.jpg": b"1"}


def special(kind, name="evil", link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def zip_symlink(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return info


GOOD = ("good.txt", b"good")
HOSTILE = {
    "tar dots": (make_tar, "a.tar.gz", [GOOD, ("../evil", b"x")]),
    "tar dots inside": (make_tar, "a.tar.gz", [GOOD, ("a/../../evil", b"x")]),
    "tar absolute": (make_tar, "a.tar", [GOOD, ("{outside}/evil", b"x")]),
    "tar symlink": (make_tar, "a.tgz", [GOOD, special(tarfile.SYMTYPE, link="..")]),
    "tar write through a symlink": (make_tar, "a.tgz", [special(tarfile.SYMTYPE, link=".."), ("evil/x", b"x")]),
    "tar hard link": (make_tar, "a.tar", [GOOD, special(tarfile.LNKTYPE, link="good.txt")]),
    "tar device": (make_tar, "a.tar", [GOOD, special(tarfile.CHRTYPE)]),
    "tar fifo": (make_tar, "a.tar", [GOOD, special(tarfile.FIFOTYPE)]),
    "zip dots": (make_zip, "a.zip", [GOOD, ("../evil", b"x")]),
    "zip backslashes": (make_zip, "a.zip", [GOOD, ("..\\evil", b"x")]),
    "zip absolute": (make_zip, "a.zip", [GOOD, ("{outside}/evil", b"x")]),
    "zip drive": (make_zip, "a.zip", [GOOD, ("C:/evil", b"x")]),
    "zip symlink": (make_zip, "a.zip", [GOOD, (zip_symlink("evil"), b"..")]),
}


@pytest.mark.parametrize("needed", [True, False], ids=["wanted", "left out"])
@pytest.mark.parametrize(("make", "name", "members"), HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_archives_are_refused_by_name(tmp_path, make, name, members, needed):
    place = tmp_path / "place"
    place.mkdir()
    outside = tmp_path / "outside"
    named = [
        (member[0].replace("{outside}", str(outside)), member[1])
        if isinstance(member, tuple) and isinstance(member[0], str)
        else member
        for member in members
    ]
    archive = make(tmp_path / name, named)
    with pytest.raises(DataError, match="evil") as caught:
        unpack(archive, place / "set", EVERYTHING if needed else prefixes({"good": "good"}))
    assert "\n" not in str(caught.value)
    assert list(place.iterdir()) == [] and not outside.exists() and not (tmp_path / "evil").exists()


def test_renaming_cannot_lead_outside_either(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [GOOD])
    with pytest.raises(DataError, match="outside"):
        unpack(archive, tmp_path / "place" / "set", lambda name: "../" + name)
    assert list((tmp_path / "place").iterdir()) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_more_than_the_disk_holds_is_refused(tmp_path, monkeypatch, name):
    make = make_zip if name.endswith("zip") else make_tar
    archive = make(tmp_path / name, [("a", b"0" * 600_000), ("b", b"0" * 600_000)])
    assert archive.stat().st_size < 10_000, "small outside, large inside"
    usage = module.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(DataError, match=r"declares 1\.2 MB, the disk has 1\.0 MB free"):
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert list((tmp_path / "place").iterdir()) == []


def test_a_disk_that_fills_up(tmp_path, monkeypatch):
    def full(source, target, length):
        target.write(b"part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    archive = make_tar(tmp_path / "a.tar.gz", FILES.items())
    monkeypatch.setattr(module.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match="disk is full, a.tar.gz was not unpacked"):
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert list((tmp_path / "place").iterdir()) == []


def test_stopping_leaves_nothing(tmp_path, monkeypatch):
    def stop(*args):
        raise KeyboardInterrupt

    archive = make_zip(tmp_path / "a.zip", FILES.items())
    monkeypatch.setattr(module.shutil, "copyfileobj", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert list((tmp_path / "place").iterdir()) == []


DAMAGES = [(name, damage) for name in ("a.zip", "a.tar", "a.tar.gz")
           for damage in ("cut", "flipped", "no archive", "empty")]  # fmt: skip
DAMAGES.remove(("a.tar", "flipped"))  # no checksum of its content: that of the download finds it


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_broken_archives_are_refused(tmp_path, name, damage):
    noise = [(f"n/{i}", os.urandom(40_000)) for i in range(4)]
    archive = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name, noise)
    content = bytearray(archive.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 0xFF
    new = {"cut": content[: len(content) // 2], "flipped": content, "no archive": b"<html>", "empty": b""}[damage]
    archive.write_bytes(new)
    with pytest.raises(DataError, match="a[.]") as caught:
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert "\n" not in str(caught.value) and list((tmp_path / "place").iterdir()) == []


def test_an_archive_of_something_else(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [GOOD])
    with pytest.raises(DataError, match="nothing of what was looked for"):
        unpack(archive, tmp_path / "place" / "set", prefixes({"images/": "images/"}))
    assert list((tmp_path / "place").iterdir()) == []


def test_a_password_is_asked_for_by_name(tmp_path):
    archive = make_zip(tmp_path / "a.zip", [GOOD])
    content = bytearray(archive.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # the flag "encrypted" in both headers
        content[content.index(mark) + offset] |= 1
    archive.write_bytes(content)
    with pytest.raises(DataError, match="needs a password"):
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)


def pax(path, record, size=None):
    """A tar whose second member has an extended header of this content; ``size`` is what the header says it is."""
    first, header, member = tarfile.TarInfo("first"), tarfile.TarInfo("pax"), tarfile.TarInfo("a")
    header.type, header.size, member.size = tarfile.XHDTYPE, len(record) if size is None else size, 1
    blocks = [first.tobuf(), header.tobuf(), record, member.tobuf(), b"1", bytes(1024)]
    path.write_bytes(b"".join(block + bytes(-len(block) % 512) for block in blocks))
    return path


ODD = {
    "sparse map": lambda p: pax(p / "a.tar", b"26 GNU.sparse.map=a,b,c,d\n"),
    "sparse 1.0": lambda p: pax(p / "a.tar", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"),
    "gigabytes": lambda p: pax(p / "a.tar", b"", 3 << 30),
    "twice": lambda p: make_tar(p / "a.tar", [GOOD, GOOD]),
    "file and folder": lambda p: make_tar(p / "a.tar", [GOOD, ("good.txt/b", b"2")]),
    "newline": lambda p: make_tar(p / "a.tar", [special(tarfile.SYMTYPE, "a\nb", "/x")]),
    "newline twice": lambda p: make_tar(p / "a.tar", [("a\nb", b"1"), ("a\nb", b"1")]),
}
SAYS = {"gigabytes": "a header of 3221.2 MB", "twice": "holds 'good.txt' twice or as .*, the archive is at fault",
        "file and folder": "holds 'good.txt/b' twice", "newline": "is a link"}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_archives_are_refused_in_one_line(tmp_path, kind):
    archive = ODD[kind](tmp_path)
    with pytest.raises(DataError, match=SAYS.get(kind, "a.tar")) as caught:
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert len(str(caught.value).splitlines()) == 1 and list((tmp_path / "place").iterdir()) == []


def damaged_zip(path, compression, damage):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("é", os.urandom(5000))
    content = bytearray(path.read_bytes())
    damage(content, content.index(b"PK\1\2"))
    path.write_bytes(content)
    return path


def noise(content, directory):
    content[60:260] = b"\xff" * 200


def no_text(content, directory):
    content[directory + 46 : directory + 48] = b"\xff\xfe"


def version(content, directory):
    content[directory + 10] = 99  # a method of compression that nobody knows


@pytest.mark.parametrize("damage", [noise, no_text, version])
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_damaged_zips_are_refused_in_one_line(tmp_path, compression, damage):
    archive = damaged_zip(tmp_path / "a.zip", compression, damage)
    with pytest.raises(DataError, match="a.zip") as caught:
        unpack(archive, tmp_path / "place" / "set", EVERYTHING)
    assert "\n" not in str(caught.value) and list((tmp_path / "place").iterdir()) == []
