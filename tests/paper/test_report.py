"""Tables against hand-computed values."""

import math
import re
from importlib import resources
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from vptsp_core.errors import ConfigError
from vptsp_core.figures.umap import pick_points, proxy_cosines, short_name, spread_classes
from vptsp_core.method.presets import preset
from vptsp_core.paper import compare, report
from vptsp_core.paper.absent import absent_data
from vptsp_core.runs.evaluate import RECALL_AT
from vptsp_core.runs.folder import Run


def fake_run(seed: int = 0, recall: float = 0.5, commit: str = "abc", **changes) -> Run:
    record = {
        "hash": f"h{seed}", "commit": commit, "versions": {"torch": "2.12.0"}, "device": "cpu", "seconds": 1.6,
        "weights": "w1", "data": {"name": "glyphs", "train": "t1", "test": "t2"},
        "parameters": {"tunable": 5, "tunable released": 4, "total": 9},
    }  # fmt: skip
    config = preset("smoke", seed=seed, **changes)
    path = Path("runs", f"{config.hash()}-{commit}")
    return Run(config, path, {"R@1": recall, "MAP@R": recall / 2}, pd.DataFrame(), record)


def test_paper_table_reads_the_printed_numbers_and_lists_its_names():
    assert report.paper_table("table10_latency_ms").set_index("method").loc["VPTSP", "B=64"] == 260
    with pytest.raises(ConfigError, match="table = 'table99' must be one of fig3.*table10_latency_ms, table1_peft"):
        report.paper_table("table99")


def test_the_demo_has_every_recall_that_the_paper_reports():
    files = (resources.files("vptsp_core") / "paper").iterdir()
    asked = {int(k) for file in files if file.name.endswith(".csv") for k in re.findall(r"R@(\d+)", file.read_text())}
    assert asked <= set(RECALL_AT["glyphs"]) and {1, 32, 100} <= asked


def test_compare_by_hand():
    paper = pd.DataFrame({"row": ["a", "b", "c"], "R@1": [50.0, 60.0, 70.0]})
    ours = pd.DataFrame({"row": ["new", "a", "c"], "R@1": [1.0, 52.5, 69.0], "R@1 ±": [np.nan, 0.5, np.nan], "ms": 3.0})
    table = report.compare(paper, ours, on="row", columns=["R@1"], only_ours=["ms"])
    assert list(table.index) == ["new", "a", "c", "b"]
    assert list(table.columns) == [
        ("R@1", "paper"),
        ("R@1", "ours"),
        ("R@1", "±"),
        ("R@1", "difference"),
        ("ms", "ours"),
    ]
    np.testing.assert_array_equal(table["R@1", "difference"], [np.nan, 2.5, -1.0, np.nan])
    np.testing.assert_array_equal(table["R@1", "paper"], [np.nan, 50, 70, 60])
    np.testing.assert_array_equal(table["ms", "ours"], [3, 3, 3, np.nan])


def test_compare_refuses_rows_that_occur_twice():
    twice = pd.DataFrame({"row": ["a", "a"], "R@1": [1.0, 2.0]})
    with pytest.raises(ConfigError, match="row = 'a' occurs twice in ours"):
        report.compare(twice[:1], twice, on="row", columns=["R@1"])


def test_averaged_by_hand():
    runs = [fake_run(0, 0.50), fake_run(1, 0.54), fake_run(2, 0.52), fake_run(0, 0.9)]
    table = report.averaged(runs, {"label": ["x", "x", "x", "y"]}, ["R@1"]).set_index("label")
    assert table.loc["x", "R@1"] == pytest.approx(52)
    # standard deviation 2, standard error 2 / sqrt(3), Student's t of 97.5 % with two degrees of freedom 4.302653
    assert table.loc["x", "R@1 ±"] == pytest.approx(4.302653 * 2 / 3**0.5, rel=1e-6)
    assert table.loc["y", "R@1"] == pytest.approx(90) and np.isnan(table.loc["y", "R@1 ±"])


def test_styled_signs_differences_and_leaves_missing_cells_empty():
    paper = pd.DataFrame({"row": ["a", "b"], "R@1": [50.0, 60.0]})
    ours = pd.DataFrame({"row": ["a"], "R@1": [52.46]})
    table = report.compare(paper, ours, on="row", columns=["R@1"])
    html = report.styled(table).to_html()
    assert "+2.5<" in html and ">52.5<" in html and "nan" not in html
    assert table.index.name == "row"  # showing a table does not change it


def test_marked_by_hand():
    rows = pd.DataFrame({"row": ["a", "b", "c"], "R@1": [50.0, 60.0, 70.0], "MAP@R": 1.0})
    table = report.compare(rows, rows, on="row", columns=["R@1"], only_ours=["MAP@R"])
    columns = pd.MultiIndex.from_product([["R@1"], ["difference", "low", "high", "chance"]])
    found = pd.DataFrame([[-1.23, -2.04, -0.4, False], [0.1, -0.26, 0.54, True]], ["b", "a"], columns)
    out = report.marked(table, found, "c")
    assert list(out["R@1", "vs c"]) == ["≈ +0.1 [-0.3, +0.5]", "-1.2 [-2.0, -0.4]", ""]
    found.loc["b", ("R@1", "high")] = -0.01  # below 0, so it is not shown as +0.0
    assert report.marked(table, found, "c").loc["b", ("R@1", "vs c")] == "-1.2 [-2.0, -0.0]"
    assert [column for column in out if column[0] == "MAP@R"] == [("MAP@R", "ours")]
    assert list(out["R@1", report.ORDER]) == ["undecided", "holds", ""]
    pd.testing.assert_frame_equal(out.drop(columns=[("R@1", "vs c"), ("R@1", report.ORDER)]), table)
    found.loc["b", ("R@1", "difference")] = 1.23
    turned = report.marked(table, found, "c")
    assert list(turned["R@1", report.ORDER]) == ["undecided", "does not hold", ""]
    assert compare.agreement(turned) == (
        "R@1: rank correlation of paper and ours over 3 rows 1.00; the paper's order of a row and the reference "
        "undecided in 1, does not hold in 1"
    )
    table["R@1", "paper"] = math.nan
    assert ("R@1", report.ORDER) not in report.marked(table, found, "c")
    html = report.styled(out).to_html()
    assert "≈ +0.1 [-0.3, +0.5]<" in html and "nan" not in html


def test_selection_note():
    runs = [fake_run(), fake_run(method="frozen", bitfit=False), fake_run(1)]
    assert report.selection_note(runs) == (
        "Epoch reported: the best epoch of each metric on the test set, as the released code does for R@1 and MAP@R."
    )
    mixed = report.selection_note([*runs, fake_run(selection="last")])
    assert "MAP@R (2 run(s)); the last epoch (1 run(s))." in mixed
    assert "Epoch reported: none" in report.selection_note(runs[1:2]) and report.selection_note([]) == ""


def test_record_table_names_every_value_that_differs():
    runs = [fake_run(0), fake_run(1), fake_run(1, commit="def")]
    twice = [*runs, runs[1]]  # the same run twice counts once
    table = report.record_table(twice, {"alpha": 0.2, "epochs": 1})["value"]
    assert table["runs"] == "3" and table["seed"] == "0, 1" and table["commit"] == "abc, def"
    assert table["torch version"] == "2.12.0" and table["weights checksum"] == "w1" and table["device"] == "cpu"
    assert table["data checksum, train"] == "t1" and table["data checksum, test"] == "t2"
    assert table["seconds of training and evaluation, all runs"] == "5"
    assert table["changed (--set)"] == "alpha=0.2, epochs=1"
    assert list(report.record_table([], {})["value"]) == ["0"]


def test_record_table_has_the_gallery_where_there_is_one():
    run = fake_run()
    assert "data checksum, gallery" not in report.record_table([run], {}).index
    run.record["data"]["gallery"] = "g1"
    assert report.record_table([run], {}).loc["data checksum, gallery", "value"] == "g1"


def test_save_table_flattens_columns(tmp_path):
    frame = pd.DataFrame({"row": ["a"], "R@1": [50.0]})
    path = report.save_table(report.compare(frame, frame, on="row", columns=["R@1"]), tmp_path, "t")
    assert path == tmp_path / "tables" / "t.csv"
    assert path.read_text().splitlines() == ['row,"R@1, paper","R@1, ours","R@1, difference"', "a,50.0,50.0,0.0"]


def test_missing_data_are_reported_in_one_line(tmp_path):
    cub = preset("cub200-vits16")
    usual = report.place("results") / "paper"
    assert absent_data(preset("demo"), None, "table1", usual) is None
    absent = absent_data(cub, None, "table1", usual)
    line = absent.cure
    assert absent.fault == "cub200 is not here (no folder was given)"
    assert absent.get == "python -m vptsp_core data get cub200 --data DIR" and absent.get in line
    assert "--profile paper --data DIR --only table1" in line and "\n" not in line
    elsewhere = absent_data(cub, None, "table1", report.place("some where") / "paper")
    assert elsewhere.cure == f"{line} --results 'some where'"
    assert "there is no cub200/" in absent_data(cub, tmp_path, "table1", usual).fault
    (tmp_path / "cub200").mkdir()
    assert absent_data(cub, tmp_path, "table1", usual) is None  # its content is checked when it is loaded
    assert absent_data(cub, tmp_path / "cub200", "table1", usual) is None
    (tmp_path / "cub200").rename(tmp_path / "CUB_200_2011")  # as its archive names it
    assert absent_data(cub, tmp_path, "table1", usual) is None


def test_proxy_cosines_by_hand():
    embeddings = np.array([[1, 0], [0.6, 0.8], [0, 1], [0, 1]], np.float32)
    labels = np.array([0, 0, 1, 1])
    # centroid of class 0: (0.8, 0.4), of length sqrt(0.8); of class 1: (0, 1)
    found = proxy_cosines(embeddings, labels, {"P": np.array([[3, 0], [0, 2]], np.float32)})["P"]
    own, other = (0.8 / 0.8**0.5 + 1) / 2, (0 + 0.4 / 0.8**0.5) / 2
    assert found == pytest.approx({"own centroid": own, "nearest other": other, "margin": own - other})


def test_a_map_shows_spread_classes_and_short_names():
    assert spread_classes(5, 10) == [0, 1, 2, 3, 4] and spread_classes(100, 3) == [0, 49, 99]
    labels = np.repeat(np.arange(10), 8)
    chosen = pick_points(labels, [2, 7], 30)
    assert len(chosen) == 30 == len(set(chosen)) and np.isin(labels[chosen], [2, 7]).sum() == 16
    assert len(pick_points(labels, [2], 1000)) == 80
    assert short_name("012.A_very_long_name_of_some_bird") == "A very long name of s…"
    assert short_name("St._Bernard") == "St. Bernard"


def test_rows_that_the_paper_has_equal_have_no_verdict():
    ours = SimpleNamespace(difference=1.0, chance=False)
    assert [report.verdict(theirs, ours) for theirs in (0.0, np.nan, 1.0)] == ["", "", "holds"]
