"""Tables 2 to 8: their runs, rows that are left out and named, and their layout against values computed by hand."""

import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.figures import dots, style
from vptsp_core.method.backbone import check_supported, load_backbone, pooling
from vptsp_core.method.presets import preset
from vptsp_core.paper import compare, methods, report, tables
from vptsp_core.paper.claims import METRIC_NAMES
from vptsp_core.paper.report import paper_table
from vptsp_core.paper.tables import AUGREG, DEMO_PRETRAINED, DEMO_RANDOM, GLYPHS, NEWER, TABLES, paper_rows
from vptsp_core.runs import significance
from vptsp_core.runs.evaluate import RECALL_AT
from vptsp_core.runs.folder import METRICS, Run, run_folder

OWN_ROWS = {AUGREG, DEMO_PRETRAINED, DEMO_RANDOM, GLYPHS, *NEWER}  # rows that the paper does not have


def hashes(profile: str, *numbers: int) -> set[str]:
    return {config.hash() for number in numbers for config in TABLES[number](profile).values()}


def table1(profile: str) -> set[str]:
    return {methods.base_config(profile, **row).hash() for row in methods.method_rows(profile).values()}


@pytest.mark.parametrize("profile", methods.BASE)
@pytest.mark.parametrize("number", TABLES)
def test_every_row_is_another_run_and_has_a_row_in_the_paper(number, profile):
    cells = TABLES[number](profile)
    assert len({config.hash() for config in cells.values()}) == len(cells)  # no two cells are the same run
    assert {row for row, _ in cells} - set(paper_rows(number)["row"]) <= OWN_ROWS
    for (_, name), config in cells.items():
        stand_in = "cub200" if profile == "tiny" else "glyphs"
        assert config.dataset == (tables.SETS[name] if profile == "paper" else stand_in)


def test_runs_are_shared_with_table_1():
    for profile in methods.BASE:
        assert hashes(profile, 6) <= table1(profile)
        cub = {config.hash() for (_, name), config in TABLES[4](profile).items() if name == "CUB"}
        assert len(cub) == 6 and cub <= table1(profile)
    assert len(hashes("demo", *TABLES) - table1("demo")) == 9  # the demo's time
    assert hashes("demo", 3) < hashes("demo", 6)
    both = {(AUGREG, name): ("VPTSP-G, ViT-S/16", name) for name in ("CUB", "Cars", "SOP", "InShop")}
    for eight, two in both.items():
        assert TABLES[8]("paper")[eight] == TABLES[2]("paper")[two]


def test_settings_are_the_released_presets_and_rates_are_in_the_papers_space():
    for (row, name), config in TABLES[2]("paper").items():
        size = "vits16" if row.endswith("S/16") else "vitb16"
        released = preset(f"{tables.SETS[name]}-{size}")
        if row.startswith("VPTSP-G"):
            assert config == released
        assert config.bitfit == (row.startswith("VPTSP-G") or name != "CUB")
        assert config.embed_dim == (384 if size == "vits16" else 512)
    assert TABLES[3]("paper")["VPTSP-G, ViT-B/16", "iNaturalist"] == preset("inaturalist-vitb16")
    space = paper_table("table9_search_space").set_index("attribute")["values"]
    for number in TABLES:
        for config in TABLES[number]("paper").values():
            assert config.lr in map(float, space["lr"].split("|"))
            assert config.lr_proxy in map(float, space["lr_proxy_bias"].split("|"))


def test_changes_come_last():
    changed = dict(epochs=2, lr=0.5, momentum=0.5)
    for number in TABLES:
        for profile in methods.BASE:
            assert tables.left_out(number, changed) == ""
            for config in TABLES[number](profile, **changed).values():
                assert {key: getattr(config, key) for key in changed} == changed


@pytest.mark.parametrize("profile", methods.BASE)
def test_another_backbone_leaves_out_the_tables_whose_rows_have_their_own(profile):
    small = dict(backbone="vit_tiny_patch16_224.augreg_in21k", weights="random", embed_dim=192, epochs=2)
    for number in TABLES:
        cells, line = TABLES[number](profile, **small), tables.left_out(number, small)
        if number in (4, 5, 7):
            assert line == "" and len({config.hash() for config in cells.values()}) == len(cells) > 3
            assert all(getattr(config, key) == value for config in cells.values() for key, value in small.items())
            assert [*cells] == [*TABLES[number](profile)]
        else:
            assert line.startswith("No runs: changes (--set) contain backbone") and f"table {number} " in line
            assert cells == {} and compare.listing(cells, ["lr", "epochs"]).empty
            table = compare.beside(paper_rows(number), compare.Done([], [], []), extra=compare.parameters({}))
            assert list(table.index) == list(paper_rows(number)["row"])
    assert TABLES[3](profile, embed_dim=192) and TABLES[6](profile, weights="random")


def test_table_8_starts_from_the_papers_weights():
    backbones = {row: config.backbone for (row, _), config in TABLES[8]("paper").items()}
    printed = paper_table("table8_pretraining_R1")
    assert [backbones[row] for row in paper_rows(8)["row"]] == list(printed["timm_name"])
    assert backbones["DINOv2, ViT-S/14"] == "vit_small_patch14_dinov2.lvd142m"
    for config in TABLES[8]("paper").values():
        assert config.embed_dim == (384 if "small" in config.backbone else 512)


def test_paper_rows_hold_the_printed_numbers():
    two, six = (paper_rows(number).set_index("row") for number in (2, 6))
    assert two.loc["VPTSP-G, ViT-B/16", "InShop R@20"] == 98.9 and two.loc["RS@K, ViT-B/16", "SOP R@1"] == 88.0
    assert len(two.columns) == 12 and np.isnan(two.loc["RS@K, ViT-B/16", "CUB R@1"])
    assert six.loc["VPTSP, ViT-S/16", "parameters, M"] == 1.56 and six.loc["PA (vanilla), R50", "CUB MAP@R"] == 26.5
    assert paper_rows(3).set_index("row").loc["VPTSP-G, ViT-B/16", "iNaturalist R@32"] == 97.5
    assert paper_rows(8).set_index("row").loc["DINO, ViT-S/16", "InShop R@1"] == 90.1


BACKBONES = sorted({config.backbone for config in TABLES[8]("paper").values()})


@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_of_table_8_fit(name):
    with torch.device("meta"):  # whole depth, no memory
        model = load_backbone(name, "random", 224)
    check_supported(model, name)
    assert pooling(model) == ("avg" if "siglip" in name else "cls")
    assert len(model.blocks) == (24 if "large" in name else 12)
    assert model.patch_embed.num_patches == (256 if "patch14" in name else 196)


def fake_run(config, path="runs", **metrics) -> Run:
    own = {"R@1": 0.5, "R@2": 0.75, "MAP@R": 0.25, "MAP@R released": 0.2} | metrics
    record = {
        "parameters": {"tunable": 5, "tunable released": 4, "total": 9}, "seconds": 1.0,
        "data": {"name": config.dataset, "test": config.dataset},
    }  # fmt: skip
    values = np.random.default_rng(config.seed).random(200)
    queries = {name: (values < mean).astype(np.float32) for name, mean in own.items() if not name.startswith("R@2")}
    run = Run(config, Path(path), own, pd.DataFrame(), record)
    run.__dict__["queries"] = queries | {"class": np.arange(len(values))}  # which a run on disk reads from there
    return run


@pytest.fixture
def trained(monkeypatch):
    """Replace `many` by one that trains nothing. Return the list of configs that it gets."""
    seen = []

    def many(configs, **options):
        seen.extend(configs)
        return [fake_run(config) for config in configs]

    monkeypatch.setattr(compare, "many", many)
    return seen


def test_missing_data_leave_out_their_own_cells_and_are_named_with_the_command(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(compare, "load_backbone", lambda *_: None)
    (tmp_path / "cub200").mkdir()
    cells = TABLES[4]("paper")
    done = compare.carry_out(cells, [0, 1], data=tmp_path, results=tmp_path / "r", notebook="table4")
    assert len(done.runs) == 12 == len(trained) and {config.dataset for config in trained} == {"cub200"}
    assert done.cells[:2] == [(methods.FULL, "CUB")] * 2 and [r.config.seed for r in done.runs[:2]] == [0, 1]
    assert len(done.left_out) == 1
    assert "data get cars196 --data DIR" in done.left_out[0] and "--only table4" in done.left_out[0]
    assert done.summary().splitlines()[0] == "12 runs: 6 rows, seeds 0, 1, on CUB."


def test_unusable_backbones_leave_out_their_own_rows_and_are_named_once(trained, monkeypatch, tmp_path):
    def offline(name, weights, image_size):
        if "mae" in name:
            raise WeightsError(f"pretrained weights of {name} cannot be had")

    monkeypatch.setattr(compare, "load_backbone", offline)
    for folder in ("cub200", "cars196"):
        (tmp_path / folder).mkdir()
    cells = {cell: config for cell, config in TABLES[8]("paper").items() if "ViT-S" in cell[0] or "MAE" in cell[0]}
    done = compare.carry_out(cells, [0], data=tmp_path, results=tmp_path, notebook="table8")
    text = done.summary()
    assert text.count("MAE, ViT-B/16: pretrained weights of vit_base_patch16_224.mae cannot be had") == 1
    assert text.count("No runs: sop is not here") == 1
    assert {row for row, _ in done.cells} == {"DINO, ViT-S/16", "DeiT, ViT-S/16", AUGREG, "DINOv2, ViT-S/14"}
    assert len(trained) == 8


def test_a_run_that_fails_leaves_out_its_own_row(tmp_path):
    cells = {
        ("good", "CUB"): preset("smoke", steps_per_epoch=1, method="linear"),
        ("bad", "CUB"): preset("smoke", method="vpt", prompt_layers=9),  # the ViT has six blocks
    }
    options = dict(data=None, results=tmp_path, notebook="table4", progress=False)
    done = compare.carry_out(cells, [0], **options)
    assert done.cells == [("good", "CUB")] and len(done.runs) == 1
    assert len(done.left_out) == 1 and done.left_out[0].startswith("Not run: bad: ") and "\n" not in done.left_out[0]
    with pytest.raises(VptspError, match="prompt_layers = 9"):
        compare.carry_out({("bad", "CUB"): cells["bad", "CUB"]}, [0], **options)


def test_finished_runs_need_no_weights(trained, monkeypatch, tmp_path):
    def offline(*_):
        raise WeightsError("no network")

    monkeypatch.setattr(compare, "load_backbone", offline)
    (tmp_path / "cub200").mkdir()
    cells = TABLES[6]("paper")
    options = dict(data=tmp_path, results=tmp_path, notebook="table6")
    assert compare.carry_out(cells, [0], **options).runs == []
    folder = run_folder(cells["VPTSP, ViT-S/16", "CUB"], tmp_path)
    folder.mkdir(parents=True)
    (folder / METRICS).write_text("{}")
    done = compare.carry_out(cells, [0], **options)
    assert done.cells == [("VPTSP, ViT-S/16", "CUB")]
    assert done.left_out == ["Not run: Full fine-tuning (PA), ViT-S/16: no network"]
    assert compare.carry_out(cells, [0], **options, light=False).runs == [], "the finished run has no weights"


def hand_made() -> compare.Done:
    """Make rows a and b on CUB with two seeds, and row a on In-Shop with one."""
    cub, shop = preset("cub200-vits16"), preset("inshop-vits16")
    runs = [
        fake_run(cub), fake_run(cub.replace(seed=1), **{"R@1": 0.54}),
        fake_run(cub.replace(lr=1.0), **{"R@1": 0.9}), fake_run(cub.replace(lr=1.0, seed=1), **{"R@1": 0.9}),
        fake_run(shop, **{"R@10": 0.8}),
    ]  # fmt: skip
    return compare.Done(runs, [("a", "CUB")] * 2 + [("b", "CUB")] * 2 + [("a", "InShop")], [])


def test_beside_by_hand():
    paper = pd.DataFrame({
        "row": ["c", "a"], "CUB R@1": [60.0, 50.0], "CUB MAP@R": [np.nan, 21.0],
        "InShop R@1": [70.0, 49.0], "InShop R@10": [80.0, 81.0],
    })  # fmt: skip
    extra = pd.DataFrame({"row": ["a"], "learning, M": [1.5]})
    table = compare.beside(paper, hand_made(), extra=extra)
    assert list(table.index) == ["c", "a", "b"]  # the paper's order, then our own row
    assert list(dict.fromkeys(column for column, _ in table.columns)) == [
        "CUB R@1", "CUB MAP@R released", "CUB MAP@R", "InShop R@1", "InShop R@10", "learning, M",
    ]  # fmt: skip
    assert table.loc["a", ("CUB R@1", "ours")] == pytest.approx(52)  # mean of 50 and 54
    assert table.loc["a", ("CUB R@1", "difference")] == pytest.approx(2)
    # standard error 2 / sqrt(2) * sqrt(2) = 2; Student's t of 97.5 % with one degree of freedom 12.7062
    assert table.loc["a", ("CUB R@1", "±")] == pytest.approx(25.4124, rel=1e-4)
    assert table.loc["a", ("CUB MAP@R released", "difference")] == pytest.approx(20 - 21)
    assert table.loc["a", ("CUB MAP@R", "ours")] == pytest.approx(25) and ("CUB MAP@R", "paper") not in table
    assert table.loc["a", ("InShop R@10", "difference")] == pytest.approx(-1)
    assert np.isnan(table.loc["b", ("InShop R@10", "ours")]) and np.isnan(table.loc["c", ("CUB R@1", "ours")])
    table["InShop R@1", "vs a"] = ""  # text that is empty is no number
    parts = list(compare.by_set(table, ["CUB", "InShop"]))
    assert list(parts[1].index) == ["c", "a"] and {c.split(" ")[0] for c, _ in parts[1].columns} == {"InShop"}


def test_rows_are_compared_within_each_set():
    clear = compare.differences(hand_made(), "a")
    assert set(clear.columns.get_level_values(0)) == {f"{s} {m}" for s in ("CUB", "InShop") for m in METRIC_NAMES}
    assert clear.loc["b", ("CUB R@1", "difference")] == pytest.approx(38, abs=6)  # 0.9 - 0.52 of 200 queries
    assert significance.unclear(clear)["CUB R@1"] == []
    assert compare.differences(hand_made(), "no such row").empty
    paper = pd.DataFrame({"row": ["a", "b"], "CUB R@1": [50.0, 60.0]})
    table = compare.beside(paper, hand_made(), clear, "a")
    assert list(table["CUB R@1"].columns)[-2:] == ["vs a", report.ORDER] and "InShop R@1" not in table


def test_listing_names_the_data_set_and_leaves_unread_keys_empty():
    shown = compare.listing(TABLES[4]("demo"), ["method", "accumulator", "lr"])
    assert list(shown.loc["VPT + BitFit (baseline), glyphs"]) == ["vpt", "", "0.004"]
    assert shown.loc["VPTSP (EMA), glyphs", "accumulator"] == "ema"


def test_agreement_by_hand():
    index = pd.Index(["a", "b", "c"], name="row")
    columns = [("CUB R@1", side) for side in ("paper", "ours", "difference")]
    table = pd.DataFrame([[1, 5, 4], [2, 70, 68], [3, 6, 3]], index=index, columns=pd.MultiIndex.from_tuples(columns))
    # ranks 1 2 3 and 1 3 2: 1 - 6 * 2 / (3 * 8) = 0.5
    assert compare.agreement(table) == "CUB R@1: rank correlation of paper and ours over 3 rows 0.50"
    assert compare.agreement(table.iloc[:2]) == ""


def test_parameters_are_counted_as_the_paper_does_and_as_they_are():
    found = compare.parameters({row: config for (row, _), config in TABLES[6]("paper").items()}).set_index("row")
    # ViT-S/16 without its classifier 21.67 M, head 384 x 385, proxies 100 x 384
    assert found.loc["Full fine-tuning (PA), ViT-S/16", "learning, M"] == pytest.approx(21.852, abs=0.01)
    ours = found.loc["VPTSP, ViT-S/16"]
    prompts = 3 * 12 * 384 / 1e6  # of one class
    rest = ours["parameters, M"] - 32 * prompts - 0.021843  # prompts of one batch, and the unused classifier's bias
    assert ours["learning, M"] - 100 * prompts == pytest.approx(rest, abs=1e-3)


def test_dots_draw_both_sides_and_mark_chance():
    numbers = {"CUB R@1": [50.0, 60.0], "CUB MAP@R": [20.0, 30.0], "Cars R@1": [1.0, 2.0]}
    paper = pd.DataFrame({"row": ["a", "b"], **numbers})
    table = compare.beside(paper, hand_made())
    columns = ["CUB R@1", "CUB MAP@R released", "Cars R@1"]
    draw = functools.partial(dots.dots, table, columns, unclear={"CUB R@1": {"b"}}, reference="a")
    together, apart = draw(together=True), draw(together=False)
    assert [ax.get_title() for ax in together.axes] == ["CUB", "CUB"]  # nothing of ours on Cars
    assert [ax.get_title() for ax in apart.axes] == ["ours"] * 2 + ["paper, CUB"] * 2
    assert [ax.get_xlabel() for ax in apart.axes] == ["R@1, %", "MAP@R released, %"] * 2
    paler = {line.get_alpha() for fig in (together, apart) for ax in fig.axes for line in ax.lines
             if line.get_marker() == "D"}  # fmt: skip
    assert paler == {style.LIGHT}  # the paper's dots, in panels of their own too
    rings = [[line for line in ax.lines if line.get_markersize() == 19] for ax in together.axes]
    assert [len(found) for found in rings] == [1, 0]
    drawn = np.asarray(rings[0][0].get_xydata(), float)
    np.testing.assert_allclose(drawn[~np.isnan(drawn[:, 0])], [[90, 1 - dots.SHIFT]])  # row b, and no other
    assert [label.get_text() for label in apart.axes[0].get_yticklabels()] == ["a", "b"]
    assert apart.axes[0].get_ylim()[0] > apart.axes[0].get_ylim()[1]  # the first row on top
    bare = dots.dots(compare.beside(paper, compare.Done([], [], [])), columns, together=True)
    assert len(bare.axes) == 3  # nothing of ours: the paper alone


def test_every_rank_that_the_paper_prints_is_measured():
    for number in TABLES:
        for column in map(str, paper_rows(number)):
            name, _, metric = column.partition(" ")
            if name in tables.SETS and metric.startswith("R@"):
                assert int(metric[2:]) in RECALL_AT.get(tables.SETS[name], (1, 2, 4, 8)), (number, column)


def test_the_command_of_a_missing_run_names_its_seeds(tmp_path):
    done = compare.carry_out(TABLES[4]("paper"), [3], data=None, results=tmp_path, notebook="table4")
    assert done.runs == [] and done.left_out and all(line.endswith("--seeds 3") for line in done.left_out)
