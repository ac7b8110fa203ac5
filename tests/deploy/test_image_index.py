"""The index of a folder: made, updated, stopped and resumed, and searched."""

import os
import shutil
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import vptsp_core
from tests.runs.test_embedder import learned
from vptsp_core.__main__ import main
from vptsp_core.data.glyphs import GlyphSet
from vptsp_core.deploy import index as image_index
from vptsp_core.deploy.index import read_index
from vptsp_core.deploy.update import update
from vptsp_core.errors import DataError
from vptsp_core.runs.embedder import Embedder


@pytest.fixture
def folder(tmp_path):
    """Twelve letters in two folders, a copy of one, a broken image, and files that are ignored."""
    glyphs = GlyphSet("test", images_per_class=1)
    root = tmp_path / "letters"
    for i in range(12):
        path = root / f"{'ab'[i % 2]}" / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        glyphs.image(i).save(path)
    glyphs.image(3).save(root / "copy of 03 ü.PNG")
    (root / "broken.jpg").write_bytes(b"not an image")
    (root / "notes.txt").write_text("not an image either")
    (root / ".hidden").mkdir()
    glyphs.image(0).save(root / ".hidden" / "00.png")
    return root


@pytest.fixture
def model(tmp_path):
    return learned(method="vpt").save(tmp_path / "bird.safetensors")


def counted(monkeypatch) -> list[int]:
    """Return a list that collects the sizes of the batches embedded from now on."""
    sizes: list[int] = []
    embed = Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, images: sizes.append(len(images)) or embed(self, images))
    return sizes


def test_a_folder_is_indexed_and_searched(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", "letters", "--model", str(model)]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'vptsp-index'}: 13 images, 13 embedded now, 0 kept, 0 removed\n"
    assert printed.err.startswith("warning: 1 left out: image ") and "broken.jpg: unreadable" in printed.err
    assert printed.err.count("\n") == 1
    index, embedder = read_index("vptsp-index"), vptsp_core.load(model, "cpu")
    assert "broken.jpg" not in index.names and "copy of 03 ü.PNG" in index.names and index.names == sorted(index.names)
    np.testing.assert_allclose(index.embeddings, embedder.embed([folder / name for name in index.names]), atol=1e-6)

    assert main(["search", "letters/a/04.png", "letters/b/03.png", "-k", "4"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("letters/a/04.png\n    1  1.0000  a/04.png\n")
    assert out.endswith(f"{tmp_path / 'search.png'}\n{tmp_path / 'search.csv'}\n")
    table = pd.read_csv("search.csv")
    assert table.columns.tolist() == ["query", "rank", "path", "cosine"] and table["rank"].tolist() == [1, 2, 3, 4] * 2
    assert set(table["path"][4:6]) == {"b/03.png", "copy of 03 ü.PNG"}, "a copy is kept under its own name"
    wanted = embedder.embed(folder / "a" / "04.png") @ index.embeddings.T
    np.testing.assert_allclose(table["cosine"][:4], np.sort(wanted[0])[::-1][:4], atol=2e-6)
    with Image.open("search.png") as picture:
        assert picture.format == "PNG" and picture.width > 600 and len(picture.convert("L").getcolors()) > 20

    assert main(["search", "letters/a/00.png", "-k", "99", "--to", "out/all"]) == 0  # more than the index has
    Path("questions").mkdir()
    shutil.copy("letters/a/04.png", "questions")
    assert main(["search", "questions", "--to", "questions/found"]) == 2
    assert "name a place outside of it with --to" in capsys.readouterr().err and len(os.listdir("questions")) == 1
    assert pd.read_csv("out/all.csv").groupby("query").size().tolist() == [13]
    assert Path("out/all.csv").read_bytes().startswith("\ufeffquery,rank,".encode()), "Excel takes it for UTF-8"
    shutil.copy("letters/a/04.png", "mine.png")
    assert main(["search", "letters/a/04.png", "--to", "mine"]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/mine.png exists already and no search wrote it; name another place with --to\n"
    )
    assert Path("mine.png").read_bytes() == Path("letters/a/04.png").read_bytes()
    os.remove(folder / "b" / "03.png")  # removed since: a grey square, and still in the table
    assert main(["search", "letters/copy of 03 ü.PNG", "-k", "2"]) == 0, "a search may replace its own files"


def test_only_what_changed_is_embedded_again(folder, model, tmp_path, monkeypatch):
    embedder, to = vptsp_core.load(model, "cpu"), tmp_path / "index"
    first, counts = update(folder, to, embedder, model=model)
    assert counts == (13, 0, 0)
    sizes = counted(monkeypatch)
    same, counts = update(folder, to, embedder, model=model)
    assert (counts, sizes) == ((0, 13, 0), []) and same.names == first.names

    os.remove(folder / "a" / "00.png")
    Image.open(folder / "b" / "01.png").rotate(90).save(folder / "b" / "03.png")
    Image.open(folder / "b" / "01.png").rotate(180).save(folder / "new.png")
    Image.open(folder / "b" / "05.png").save(folder / "broken.jpg")
    second, counts = update(folder, to, embedder, model=model)
    assert counts == (3, 11, 1) and sum(sizes) == 3
    fresh, _ = update(folder, tmp_path / "fresh", embedder, model=model)
    assert second.names == fresh.names and "a/00.png" not in second.names
    np.testing.assert_allclose(read_index(to).embeddings, fresh.embeddings, atol=1e-6)
    assert sorted(path.name for path in to.iterdir()) == [image_index.FILE]


def test_a_folder_of_readable_images_that_lost_one_or_nothing(model, tmp_path):
    folder, embedder, to = tmp_path / "images", vptsp_core.load(model, "cpu"), tmp_path / "index"
    folder.mkdir()
    for place in range(3):
        Image.new("RGB", (8, 8), (place, 0, 0)).save(folder / f"{place}.png")
    assert update(folder, to, embedder, model=model)[1] == (3, 0, 0)
    assert update(folder, to, embedder, model=model)[1] == (0, 3, 0)
    os.remove(folder / "1.png")
    index, counts = update(folder, to, embedder, model=model)
    assert counts == (0, 2, 1) and index.names == ["0.png", "2.png"]


def test_a_stopped_update_stores_its_embeddings_and_the_next_call_embeds_the_rest(folder, model, tmp_path, monkeypatch):
    embedder, to = vptsp_core.load(model, "cpu"), tmp_path / "index"
    embedder.config = embedder.config.replace(batch=2, samples_per_class=1)
    real, calls = Embedder.embed, []

    def stops(self, images):
        calls.append(len(images))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, images)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "embed", stops)
        with pytest.raises(KeyboardInterrupt):
            update(folder, to, embedder, model=model)
    assert len(read_index(to).names) == sum(calls[:2]), "the images so far can be searched"
    sizes = counted(monkeypatch)
    after, counts = update(folder, to, embedder, model=model)
    assert sum(sizes) == counts.embedded == 13 - sum(calls[:2]) and len(after.names) == 13
    np.testing.assert_allclose(after.embeddings, real(embedder, [folder / name for name in after.names]), atol=1e-6)
    assert sorted(path.name for path in to.iterdir()) == [image_index.FILE]


def test_another_model_or_another_folder_is_refused(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    other = learned(noise=1, method="vpt").save(tmp_path / "other.safetensors")
    assert main(["index", "letters", "--model", str(model)]) == 0
    capsys.readouterr()
    for command in (["index", "letters"], ["search", "letters/a/00.png"]):
        assert main([*command, "--model", str(other)]) == 2
        error = capsys.readouterr().err
        assert f"its embeddings are of another model ({model})" in error and error.count("\n") == 1
    assert main(["index", "letters/a"]) == 2
    assert f"is that of {folder}; give another place with --to" in capsys.readouterr().err
    moved, sizes = folder.rename(tmp_path / "moved"), counted(monkeypatch)
    assert main(["index", "moved"]) == 0 and sizes == [], "a folder that was moved is not embedded again"
    assert "0 embedded now, 13 kept" in capsys.readouterr().out and read_index("vptsp-index").root == str(moved)
    model.rename(tmp_path / "elsewhere.safetensors")
    for command in (["search", "moved/a/00.png"], ["index", "moved"]):
        assert main(command) == 2
        assert capsys.readouterr().err == (
            f"error: index {tmp_path}/vptsp-index: its model is no longer at {model}; give its new place with --model\n"
        )
        assert main([*command, "--model", "elsewhere.safetensors"]) == 0


def test_what_cannot_be_indexed_or_searched_is_one_line(tmp_path, model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"")
    cases = {
        "no folder": ["index", "nowhere", "--model", str(model)],
        "holds no images": ["index", "empty", "--model", str(model)],
        "none of the 1 images can be read; the first: image": ["index", "bad", "--model", str(model)],
        "vptsp-index holds no index; make one": ["search", "x.png"],
        "k: 0 is not a whole number": ["search", "x.png", "-k", "0"],
        "--to is empty; give a value": ["search", "x.png", "--to", ""],
        "--model is empty; give a value": ["index", "bad", "--model", ""],
        "--weights is empty; give a value": ["export", str(model), "--to", "a.onnx", "--weights="],
    }
    for message, argv in cases.items():
        assert main(argv) == 2, argv
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error and error.count("\n") == 1, error
    place = tmp_path / "vptsp-index"
    assert not (place / image_index.FILE).exists()
    place.mkdir(exist_ok=True)
    for content in (b"", b"\xff" * 999):
        (place / image_index.FILE).write_bytes(content)
        with pytest.raises(DataError, match=f"index {place}.*unreadable .*delete that file and call index again"):
            read_index(place)


def test_an_index_among_the_images_is_refused(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    before = sorted(folder.rglob("*"))
    for directory, to in ((str(folder), "../letters"), (".", "a/index")):
        assert main(["index", directory, "--model", str(model), "--to", to]) == 2
        at = Path(directory).resolve()
        assert capsys.readouterr().err == (
            f"error: {Path(to).absolute()} is in {at}, the folder of your images, where nothing is written; name a "
            "place outside of it with --to\n"
        )
    assert main(["index", ".", "--model", str(model), "--to", "../index"]) == 0
    capsys.readouterr()
    assert main(["search", "a", "--index", "../index"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {folder}/search.png is in {folder}, the folder of your images")
    assert sorted(folder.rglob("*")) == before


def test_odd_names_do_not_reach_the_terminal(model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a\nb.png", "red \x1b[31m.png")):
        path = tmp_path / "odd" / name
        path.parent.mkdir(exist_ok=True)
        GlyphSet("test", images_per_class=1).image(i).save(path)
    assert main(["index", "odd", "--model", str(model)]) == 0
    capsys.readouterr()
    assert main(["search", "odd/a\nb.png"]) == 0
    printed = capsys.readouterr().out
    assert all(line.isprintable() for line in printed.split("\n"))
    assert printed.startswith("odd/a\\nb.png\n") and "red \\x1b[31m.png\n" in printed
    assert set(pd.read_csv("search.csv")["path"]) == {"a\nb.png", "red \x1b[31m.png"}


def test_unreadable_queries_are_left_out(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", "letters", "--model", str(model)]) == 0
    (folder / "a" / "03 cut.png").write_bytes((folder / "a" / "04.png").read_bytes()[:60])
    capsys.readouterr()
    assert main(["search", "letters/a", "nope.png", "-k", "2"]) == 0
    printed = capsys.readouterr().err
    assert printed.startswith("warning: 2 left out: image letters/a/03 cut.png: unreadable")
    assert printed.endswith("; image nope.png: no such file; check the path\n") and printed.count("\n") == 1
    whole = [f"letters/a/{i:02}.png" for i in range(0, 12, 2)]
    table = pd.read_csv("search.csv")
    assert list(dict.fromkeys(table["query"])) == whole and table["path"][0] == "a/00.png"
    wanted = vptsp_core.load(model, "cpu").embed(whole) @ read_index("vptsp-index").embeddings.T
    np.testing.assert_allclose(table["cosine"][::2], wanted.max(axis=1), atol=2e-6)
    assert main(["search", "nope.png"]) == 2
    assert capsys.readouterr().err == (
        "error: none of the 1 images can be read; the first: image nope.png: no such file; check the path\n"
    )


def test_a_search_that_was_killed_before_its_picture_can_be_repeated(folder, model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", "letters", "--model", str(model)]) == 0
    monkeypatch.setattr("vptsp_core.deploy.search.found_images", mock.Mock(side_effect=KeyboardInterrupt))
    assert main(["search", "letters/a/00.png"]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert main(["search", "letters/a/00.png"]) == 0 and (tmp_path / "search.png").exists()


def test_more_neighbours_than_images_take_no_more_memory(folder, model, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["index", str(folder), "--model", str(model)]) == 0
    asked = []
    real = image_index.ImageIndex.search
    monkeypatch.setattr(image_index.ImageIndex, "search", lambda self, q, k: asked.append(k) or real(self, q, k))
    assert main(["search", str(folder), "-k", "1000000000"]) == 0
    assert asked == [len(read_index("vptsp-index").names)]
