"""The views of `figures.explore`: their numbers against an independent computation, their figures, their controls."""

import base64
import dataclasses
import io
import json
import re
from html import unescape
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix
from timm.models.vision_transformer import VisionTransformer

from tests.figures.drawn import Flat, inside
from vptsp_core import preset
from vptsp_core.data import Benchmark
from vptsp_core.data.folder import FileSet
from vptsp_core.errors import DataError, VptspError
from vptsp_core.figures import gallery, views, zoom
from vptsp_core.figures.explore import Opened, attention, finished_runs, open_run, proxies, retrieval, widgets
from vptsp_core.method.vit import PromptedViT
from vptsp_core.paper.figure4 import learned_proxies
from vptsp_core.runs.embedder import Embedder
from vptsp_core.runs.folder import WEIGHTS
from vptsp_core.runs.run import build_model, run


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def opened():
    """Twelve images of four classes, which are searched among each other. Image 7 equals image 1."""
    rows = unit(np.random.default_rng(0).normal(size=(12, 4)))
    rows[7] = rows[1]
    names = [f"00{i}.Bird_{'abcd'[i]}" for i in range(4)]
    birds = Flat("birds", np.repeat(np.arange(4), 3), names)
    embedder = Embedder(build_model(preset("smoke", embed_dim=4), 4, torch.device("cpu")))
    return Opened(None, embedder, Benchmark("birds", birds, birds), rows, rows)


# ---- attention -----------------------------------------------------------------------------------------------------

KINDS = {"plain": {}, "registers": dict(reg_tokens=3, no_embed_class=True, qk_norm=True, init_values=0.1)}


def prompted(prompts: list[int], **options) -> PromptedViT:
    torch.manual_seed(0)
    trunk = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=3, num_heads=4, num_classes=0, **options)
    vit = PromptedViT(trunk, 16, prompt_counts=prompts).eval()
    with torch.no_grad():
        for parameter in vit.parameters():  # no parameter at a neutral value
            parameter.add_(0.3 * torch.randn_like(parameter))
    return vit


def by_timm(vit: PromptedViT, images: torch.Tensor) -> list[np.ndarray]:
    """Return the class token's attention from timm's own blocks over concatenated prompts: (B, heads, n + T) each."""
    trunk, seen, expected = vit.backbone, [], []
    x = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(images)))
    tokens = x.shape[1]
    for i, block in enumerate(trunk.blocks):
        block.attn.fused_attn = False  # the unfused form passes the weights through a dropout
        hook = block.attn.attn_drop.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
        n = vit.prompt_counts[i] if i < len(vit.prompt_counts) else 0
        joined = x if n == 0 else torch.cat([vit.prompts[i, :n].expand(len(x), -1, -1), x], dim=1)
        with torch.no_grad():
            x = block(joined)[:, -tokens:]
        hook.remove()
        expected.append(seen[-1][:, :, n].numpy())
    return expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("prompts", [[5, 3], []], ids=str)
def test_attention_is_the_textbook_softmax(kind, prompts):
    vit = prompted(prompts, **KINDS[kind])
    images = torch.randn(2, 3, 32, 32)
    looked = attention.class_token(vit, images)
    expected = by_timm(vit, images)
    assert looked.prompts == [*prompts, 0, 0, 0][:3] and len(looked.weights) == 3
    for ours, theirs in zip(looked.weights, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.mean(1), atol=1e-6)
        np.testing.assert_allclose(ours.sum(1), 1, atol=1e-5)

    shares, each = attention.shares(looked), attention.to_prompts(looked)
    parts = shares.drop(columns="prompts if even")
    np.testing.assert_allclose(parts.sum(axis=1), 100, atol=1e-3)
    assert ("other tokens" in shares) == (kind == "registers")
    np.testing.assert_allclose(100 * np.nansum(each, axis=1), shares["prompts"], atol=1e-3)
    assert np.isfinite(each).sum(1).tolist() == looked.prompts if prompts else each.shape == (3, 0)
    first = looked.prompts[0] + 1
    np.testing.assert_allclose(shares["class token"].iloc[0], 100 * expected[0][:, :, first - 1].mean(), atol=1e-3)
    patches = looked.patches(2)
    assert patches.shape == (2, 4, 4)
    np.testing.assert_allclose(patches[1].ravel(), expected[2].mean(1)[1, -16:], atol=1e-6)


def test_a_model_that_pools_patches_has_no_attention_to_show():
    with pytest.raises(VptspError, match="pools by 'avg'"):
        attention.class_token(prompted([2], global_pool="avg", class_token=False), torch.randn(1, 3, 32, 32))


def test_the_heat_map_writes_each_share_and_the_veil_is_thin_where_the_attention_is_high():
    each = np.array([[0.25, 0.05], [0.5, np.nan]])
    parts = pd.DataFrame({"prompts": [30.0, 50], "class token": [10.0, 10], "patches": [60.0, 40],
                          "prompts if even": [20.0, 11]}, index=[1, 2])  # fmt: skip
    fig = views.attention_shares(each, parts)
    assert [text.get_text() for text in fig.axes[0].texts] == ["25.0", "5.0", "50.0"] and inside(fig)
    without = views.attention_shares(np.zeros((2, 0)), parts)
    assert len(without.axes) == 1 and inside(without)
    weights = np.full((2, 1 + 1 + 4), 0.1)
    weights[:, 4] = 0.5
    looked = attention.Looked([weights, weights[:, 1:]], [1, 0], 1, (2, 2))
    fig = views.attention_maps([np.full((4, 4, 3), 200, np.uint8)] * 2, ["a", "b"], looked, [0, 1])
    veil = fig.axes[1].images[1].get_array()[..., 3]
    assert veil[1, 0] == 0 and veil[0, 0] == pytest.approx(0.85 * 0.8)
    assert [ax.get_xlabel() for ax in fig.axes[1:3]] == ["prompts 10 %", "no prompts"] and inside(fig)


# ---- retrieval -----------------------------------------------------------------------------------------------------


def test_neighbours_agree_with_a_full_sort_and_no_image_finds_itself(opened):
    cosines = opened.queries @ opened.queries.T
    labels = opened.searched.labels
    every, places = retrieval.all_neighbours(opened, 5)
    for query in range(12):
        order = [at for at in np.argsort(-cosines[query], kind="stable") if at != query][:5]
        found = retrieval.neighbours(opened, query, 5)
        assert found.places.tolist() == places[query].tolist() == order
        np.testing.assert_allclose(found.cosines, cosines[query, order], atol=1e-6)
        np.testing.assert_array_equal(found.right, labels[order] == labels[query])
    assert places[7, 0] == 1 and len(retrieval.neighbours(opened, 0, 99).places) == 11  # 1 is a duplicate of 7
    few = dataclasses.replace(opened, queries=opened.queries[:4], gallery=opened.queries[:4])
    every, places = retrieval.all_neighbours(few, 8)
    assert every.shape == (4, 3) and np.isfinite(every).all(), "no neighbour is invented"
    assert [sorted({*row, i}) for i, row in enumerate(places.tolist())] == [[0, 1, 2, 3]] * 4


def test_the_number_of_a_test_image_is_checked(opened):
    assert retrieval.test_image(opened, 11) == 11
    with pytest.raises(DataError, match="query = 12: the test images are 0 to 11; choose another"):
        retrieval.test_image(opened, 12)


def test_an_image_of_your_own_finds_every_image(opened, tmp_path):
    picture = opened.searched.image(4)
    picture.save(tmp_path / "own.png")
    vector = opened.embedder.embed([picture])[0]
    order = np.argsort(-(opened.gallery @ vector), kind="stable")[:3]
    for query in (picture, tmp_path / "own.png"):
        found = retrieval.neighbours(opened, query, 3)
        assert found.right is None and found.places.tolist() == order.tolist()
    own = FileSet("own images", [tmp_path / "own.png"], np.zeros(1, int), ["my bird"], as_shown=True)
    where = {"near": found.places[None]}
    fig = gallery.retrieval_grid(own, opened.searched, {"own": [0]}, where, cosines={"near": found.cosines[None]},
                                 marked=False, asking="mine")  # fmt: skip
    texts = [text.get_text() for text in fig.axes[0].texts]
    assert [f"{cosine:.2f}" for cosine in found.cosines] == texts[-3:] and "mine" in texts and inside(fig)


def test_a_separate_gallery_is_searched_whole(opened):
    shop = Flat("gallery", np.array([0, 1, 2, 3]), opened.searched.class_names)
    benchmark = Benchmark("b", shop, opened.searched, shop)
    apart = dataclasses.replace(opened, benchmark=benchmark, gallery=opened.gallery[:4])
    assert not apart.same_gallery and apart.searched is shop
    _, places = retrieval.all_neighbours(apart, 1)
    np.testing.assert_array_equal(places[:4, 0], [0, 1, 2, 3])  # a query may find its copy in the gallery


def test_classes_and_confusions_agree_with_a_confusion_matrix():
    rng = np.random.default_rng(3)
    labels = np.repeat(np.arange(6), 8)
    first = np.where(rng.random(48) < 0.5, labels, rng.integers(0, 6, 48))
    names = tuple("ABCDEF")
    matrix = confusion_matrix(labels, first)
    classes = retrieval.by_class(labels, first, names)
    assert classes["R@1"].is_monotonic_increasing and sorted(classes["class"]) == list(range(6))
    assert np.average(classes["R@1"], weights=classes["queries"]) == pytest.approx(100 * (labels == first).mean())
    wrong = matrix - np.diag(np.diag(matrix))
    for row in classes.to_dict("records"):
        label = row["class"]
        assert row["R@1"] == pytest.approx(100 * matrix[label, label] / matrix[label].sum())
        assert row["times"] == wrong[label].max() and row["name"] == names[label]
        assert row["most taken for"] == names[wrong[label].argmax()]
    pairs = retrieval.confusions(labels, first, names)
    assert pairs["wrong"].sum() == wrong.sum() and pairs["wrong"].is_monotonic_decreasing
    for row in pairs.to_dict("records"):
        a, b = row["a"], row["b"]
        assert a < b and (row["there"], row["back"]) == (wrong[a, b], wrong[b, a])
        assert (row["class"], row["other class"]) == (names[a], names[b])
        some = retrieval.examples((a, b), labels, first, 2)
        assert len(some) == min(2, row["wrong"])
        assert all({labels[at], first[at]} == {a, b} for at in some)
        if row["there"] and row["back"]:
            assert labels[some].tolist() == [a, b]  # one from each direction
    perfect = retrieval.by_class(labels, labels, names)
    assert (perfect["most taken for"] == "").all() and retrieval.confusions(labels, labels, names).empty


def test_the_figure_of_the_classes_names_the_lowest():
    long = "012.Yellow_headed_Blackbird_with_more"
    table = pd.DataFrame({"class": [0, 1, 2], "name": [long, "B", "C"], "queries": [4, 4, 2], "R@1": [0.0, 75, 100],
                          "most taken for": ["B", long, ""], "times": [4, 1, 0]})  # fmt: skip
    fig = views.classes(table, 3)
    spread, bars = fig.axes
    assert spread.get_legend().get_texts()[0].get_text() == "all queries: 50.0 %"
    assert [label.get_text() for label in bars.get_yticklabels()] == ["Yellow headed Blackbi…", "B", "C"]
    assert [text.get_text() for text in bars.texts] == ["4 x B", "1 x Yellow headed Blackbi…"]
    assert inside(fig) and [patch.get_width() for patch in bars.patches] == [0, 75, 100]


# ---- proxies, and a run --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    results = tmp_path_factory.mktemp("explore")
    return results, run(preset("smoke"), results=results, progress=False)


def test_a_run_is_opened_with_the_numbers_of_its_record(finished):
    results, done = finished
    found = open_run(done.path)
    _, places = retrieval.all_neighbours(found, 1)
    labels = found.searched.labels
    assert (labels[places[:, 0]] == labels).mean() == pytest.approx(done.metrics["R@1"], abs=2e-3)
    assert found.own_data and found.same_gallery
    (results / "runs" / "broken").mkdir()
    (results / "runs" / "broken" / "metrics.json").write_text("{}")
    ((name, path),) = finished_runs(results).items()
    assert path == done.path and f"R@1 {100 * done.metrics['R@1']:.1f}" in name and done.path.name in name
    with pytest.raises(VptspError, match="no folder is given"):
        open_run(done.path, dataset="cub200")

    kept = learned_proxies(done)
    assert list(kept) == ["O", "P", "Q"]
    pixels, pictures = attention.as_seen(found.embedder, found.benchmark.test, [0, 5])
    np.testing.assert_allclose(found.embedder.embed(pixels), found.queries[[0, 5]], atol=1e-5)
    assert pictures[1].shape == (40, 40, 3)
    assert np.abs(pictures[1].astype(int) - np.asarray(found.benchmark.test.image(5))).max() <= 1


def test_proxies_belong_to_the_classes_that_were_not_held_out(tmp_path):
    done = run(preset("smoke", selection="validation", epochs=1), results=tmp_path, progress=False)
    found = open_run(done.path)
    train, kept = found.trained_on, learned_proxies(done)["O"]
    whole = found.benchmark.train.num_classes
    assert len(kept) == train.num_classes == whole - done.record["held_out"]["classes"] < whole


def test_methods_without_semantic_proxies_have_o_or_none(tmp_path):
    from safetensors.torch import save_file

    older = SimpleNamespace(path=tmp_path, record={}, config=preset("smoke"))  # older runs have no checksum
    save_file({"proxies.bias": torch.tensor([[3.0, 4.0]])}, tmp_path / WEIGHTS)
    np.testing.assert_allclose(learned_proxies(older)["O"], [[0.6, 0.8]], rtol=1e-6)
    save_file({}, tmp_path / WEIGHTS)
    assert learned_proxies(older) == {}


def test_the_images_nearest_to_proxies_and_their_summary():
    rng = np.random.default_rng(1)
    images, marks = unit(rng.normal(size=(9, 5))), {name: unit(rng.normal(size=(3, 5))) for name in "OP"}
    labels = np.repeat(np.arange(3), 3)
    near = proxies.nearest_images(marks, images, 4)
    table = proxies.summary(marks, images, labels, {name: found for name, (_, found) in near.items()})
    for name, (cosines, places) in near.items():
        all_cosines = marks[name] @ images.T
        expected = np.argsort(-all_cosines, axis=1)[:, :4]
        np.testing.assert_array_equal(places, expected)
        np.testing.assert_allclose(cosines, np.take_along_axis(all_cosines, expected, 1), atol=1e-6)
        right = expected // 3 == np.arange(3)[:, None]
        assert table.loc[name, "nearest image right"] == pytest.approx(100 * right[:, 0].mean())
        assert table.loc[name, "nearest 4 right"] == pytest.approx(100 * right.mean())
        centroids = unit(np.stack([images[labels == c].mean(0) for c in range(3)]))
        own = np.mean([marks[name][c] @ centroids[c] for c in range(3)])
        assert table.loc[name, "own centroid"] == pytest.approx(own, abs=1e-5)


# ---- the map -------------------------------------------------------------------------------------------------------


def test_the_map_has_its_images_inside_and_no_name_ends_its_script():
    images = Flat("evil", np.array([0, 1, 1, 0]), ["001.</script><b>x", "002.Plain"])
    places = [3, 0, 2]
    points = np.array([[0.0, 0], [2, 1], [4, 2]])
    page = zoom.document(points, images, places)
    (text,) = re.findall(r"const data = (\{.*?\}), atlas", page)
    data = json.loads(text)
    assert page.count("</script>") == 1 and data["names"][0] == "</script><b>x"
    assert not re.search(r"https?://", page)
    for slot, place in enumerate(data["place"]):
        at = places.index(place)
        assert (data["x"][slot], data["y"][slot]) == (at / 2, at / 2)
        assert data["label"][slot] == images.labels[place]
    atlas = Image.open(io.BytesIO(base64.b64decode(data["atlas"].split(",")[1])))
    side = data["side"]
    for slot, place in enumerate(data["place"]):
        row, column = divmod(slot, data["columns"])
        middle = atlas.getpixel((column * side + side // 2, row * side + side // 2))
        assert abs(middle[0] - 10 * place) <= 2

    frame = zoom.frame(page)
    assert unescape(re.search('srcdoc="([^"]*)"', frame)[1]) == page and 'sandbox="allow-scripts"' in frame


# ---- controls ------------------------------------------------------------------------------------------------------


@pytest.fixture
def explorer(opened):
    pytest.importorskip("ipywidgets", reason="the extra lab is not installed")
    _, places = retrieval.all_neighbours(opened, 3)
    labels = opened.searched.labels
    classes = retrieval.by_class(labels, labels[places[:, 0]], opened.searched.class_names)
    return widgets.QueryExplorer(opened, classes, 3)


def plain(html: str) -> str:
    return re.sub(r"<style>.*?</style>|<[^>]+>", "", html)


def shown(explorer) -> tuple[str, list[str]]:
    """Return the text about the query, and the text under each picture, without HTML."""
    cards = [card.children[1].value for card in explorer.found_shown.children]
    return unescape(plain(explorer.said.value)), [plain(card) for card in cards]


def test_a_click_searches_once(opened, explorer, monkeypatch):
    searched = []

    def neighbours(opened, query, k):
        searched.append(query)
        return retrieval.neighbours(opened, query, k)

    monkeypatch.setattr(widgets, "neighbours", neighbours)
    for place in (2, 2, 0):
        explorer.of_class_shown.children[place].children[0].click()
    first = 3 * explorer.of_class.value
    assert searched == [first + 2, first + 2, first]


def test_a_click_chooses_the_query_and_the_marks_agree_with_its_class(opened, explorer):
    assert explorer.of_class.options[0][1] == explorer.of_class.value  # the lowest R@1
    assert len(explorer.of_class_shown.children) == 3
    explorer.of_class_shown.children[2].children[0].click()
    place = 3 * explorer.of_class.value + 2
    found = retrieval.neighbours(opened, place, 3)
    said, cards = shown(explorer)
    assert said.startswith(f"Query (black frame): image {place}, Bird ") and explorer.number.value == place
    signs = ["✓" if right else "✗" for right in found.right]
    assert cards == ["query", *[f"{sign} {c:.3f}" for sign, c in zip(signs, found.cosines, strict=True)]]
    explorer.found_shown.children[1].children[0].click()
    assert f"image {found.places[0]}," in shown(explorer)[0]
    explorer.number.value = 11
    assert "image 11, Bird d" in shown(explorer)[0]
    explorer.of_class.value = 2
    assert "image 6, Bird c" in shown(explorer)[0]


def test_an_image_of_your_own_is_asked_by_path_and_by_upload(opened, explorer, tmp_path):
    picture = opened.searched.image(4)
    picture.save(tmp_path / "own.png")
    expected = [f"{cosine:.3f}" for cosine in retrieval.neighbours(opened, picture, 3).cosines]
    explorer.file.value = str(tmp_path / "own.png")
    said, cards = shown(explorer)
    assert (
        "your image own.png, of no known class" in said
        and [c.strip() for c in cards[1:]] == expected
        and "✗" not in said
    )
    explorer.number.value = 5
    explorer._uploaded(({"name": "own.png", "content": memoryview((tmp_path / "own.png").read_bytes())},))
    assert [card.strip() for card in shown(explorer)[1][1:]] == expected
    explorer._uploaded(({"name": "<b>.png", "content": memoryview(b"no image")},))
    assert "<b>.png: unreadable" in shown(explorer)[0] and "<b>.png" not in explorer.said.value
    explorer.file.value = str(tmp_path / "absent.png")
    assert "absent.png" in shown(explorer)[0]


def test_without_a_watcher_or_ipywidgets_there_are_no_controls(opened, monkeypatch, tmp_path, capsys):
    displayed = []
    monkeypatch.setattr("IPython.display.display", lambda *shown, **options: displayed.extend(shown))
    widgets.choose("classes", {"a": 1, "b": 2}, lambda value: f"picture {value}")
    choice = widgets.Choice([tmp_path], tmp_path / "run", "glyphs")
    assert displayed == ["picture 1"] and (choice.path, choice.dataset) == (tmp_path / "run", "glyphs")
    monkeypatch.setattr(widgets, "watched", lambda: True)
    monkeypatch.setattr(widgets, "find_spec", lambda name: None)
    widgets.explore_queries(opened, pd.DataFrame())
    assert len(displayed) == 1 and capsys.readouterr().out.startswith("Still pictures only: controls need ipywidgets")


def test_the_lists_change_the_picture_and_the_run(finished, monkeypatch, tmp_path):
    ipywidgets = pytest.importorskip("ipywidgets", reason="the extra lab is not installed")
    made, displayed = [], []
    monkeypatch.setattr(ipywidgets, "interact", lambda show, **controls: made.append((show, controls)))
    monkeypatch.setattr("IPython.display.display", displayed.append)
    monkeypatch.setattr(widgets, "watched", lambda: True)
    widgets.choose("classes", {"a": 1, "b": 2}, lambda value: f"picture {value}")
    show, controls = made[0]
    show(controls["chosen"].options[1])
    assert displayed == ["picture 2"]
    results, done = finished
    choice = widgets.Choice([results], tmp_path / "elsewhere")
    show, controls = made[1]
    assert list(controls["run"].options.values()) == [tmp_path / "elsewhere", done.path]
    show(done.path, "folder")
    assert (choice.path, choice.dataset) == (done.path, "folder")
    show(done.path, "")
    assert choice.dataset is None
