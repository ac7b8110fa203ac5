"""The notebooks of tables 1 to 9 and of "beyond the paper" run under the smoke profile, and leave what they promise."""

import json

import numpy as np
import pandas as pd
import pytest

from vptsp_core.method.lora import has_peft
from vptsp_core.paper import beyond
from vptsp_core.paper.methods import BEST, UNTRAINED, method_rows
from vptsp_core.paper.tables import DEMO_PRETRAINED, DEMO_RANDOM, GLYPHS, TABLES, paper_rows
from vptsp_core.publish.manifest import Manifest
from vptsp_core.publish.parameters import FOLDER
from vptsp_core.publish.plan import asked_runs
from vptsp_core.publish.runner import run_notebooks

NAMES = {
    2: "table2_sota", 3: "table3_inaturalist", 4: "table4_components", 5: "table5_proxy_source", 6: "table6_cub200",
    7: "table7_integration", 8: "table8_pretraining",
}  # fmt: skip
NOTEBOOKS = ("table1_peft_methods", *NAMES.values(), "table9_search", "beyond_paper")


@pytest.mark.parametrize("number", NAMES)
def test_all_rows_of_the_paper_stand_there_as_printed(smoke, number):
    found, paper = smoke.table(NAMES[number]), paper_rows(number)
    assert list(found.index[: len(paper)]) == list(paper["row"])
    for column in paper.columns.drop("row"):
        shown = column.replace("MAP@R", "MAP@R released")
        np.testing.assert_array_equal(found[f"{shown}, paper"][: len(paper)], paper[column])
        difference = found[f"{shown}, ours"] - found[f"{shown}, paper"]
        np.testing.assert_allclose(found[f"{shown}, difference"], difference)


@pytest.mark.parametrize("number", NAMES)
def test_ours_is_filled_where_the_glyphs_stand_in_and_nowhere_else(smoke, number):
    found, cells = smoke.table(NAMES[number]), TABLES[number]("smoke")
    for column in [column for column in found if column.endswith(", ours") and "@" in column]:
        of_set = [row for row, name in cells if name == column.split(" ")[0]]
        assert sorted(found.index[found[column].notna()]) == sorted(of_set)
    for column in [column for column in found if "MAP@R released, ours" in column]:
        assert column.replace(" released", "") in found  # both definitions


def test_rows_of_ours_alone(smoke):
    assert list(smoke.table(NAMES[3]).index)[3:] == [GLYPHS]
    assert list(smoke.table(NAMES[8]).index)[4:] == [DEMO_PRETRAINED, DEMO_RANDOM]
    six = smoke.table(NAMES[6])
    assert (six.loc[["VPTSP, ViT-S/16"], ["parameters, M, ours", "learning, M, ours"]] > 0).all(axis=None)


@pytest.mark.parametrize(("number", "reference"), [(2, "VPTSP-G, ViT-S/16"), (4, "VPTSP (GRU) + BitFit"),
    (5, "VPTSP-G"), (6, "VPTSP, ViT-S/16"), (7, "GRU with ReLU"), (8, DEMO_PRETRAINED)])  # fmt: skip
def test_differences_have_their_intervals(smoke, number, reference):
    told = smoke.table(NAMES[number])[f"CUB R@1, vs {reference}"].dropna()
    others = [row for row, _ in TABLES[number]("smoke") if row != reference]
    assert sorted(told.index) == sorted(others)
    assert told.str.fullmatch(r"(≈ )?[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]").all(), list(told)


def test_executed_copies_show_their_figures_name_the_selection_and_are_quiet(smoke):
    assert smoke.figures("table9_search") == ["table9_search_history", "table9_search_importance"]
    for name in NOTEBOOKS[:-2]:
        assert smoke.figures(name) == [name]
        printed = "".join(output.get("text", "") for output in smoke.outputs(name))
        assert name == "table1_peft_methods" or "best epoch on the test set" in printed and "on the glyphs." in printed
    for name in NOTEBOOKS:
        facts = smoke.table(f"{name}_record")["value"]
        assert facts["seed"] == "0" and "," not in facts["data checksum, train"] and facts["weights checksum"]
        assert {"commit", "device", "torch version", "data checksum, test"} <= set(facts.index)


def test_a_dry_run_lists_the_runs_that_the_notebooks_make(smoke):
    for name in set(NOTEBOOKS) - {"table9_search"}:  # the trials of a search are made as it goes
        listed, _ = asked_runs(FOLDER / f"{name}.ipynb", {"profile": "smoke", "seeds": [0]})
        made = {run.hash for run in Manifest.read(smoke.folder, name).runs}
        assert {config.hash() for config in listed} == made


def test_the_manifest_names_all_that_a_notebook_left_and_a_second_call_does_nothing(smoke, smoke_results, capsys):
    manifest = json.loads((smoke.folder / "manifests" / "table2_sota.json").read_text())
    assert manifest["tables"] == ["table2_sota.csv"] and manifest["figures"] == ["table2_sota.png"]
    assert [run["hash"] for run in manifest["runs"]] == manifest["record"]["run"]
    assert all((smoke.folder / run["folder"] / "metrics.json").is_file() for run in manifest["runs"])
    assert manifest["missing"] == [] and manifest["failure"] == "" and manifest["seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in (smoke.folder / "notebooks").glob("table*.ipynb")}
    assert run_notebooks("smoke", None, smoke_results, ["table2", "table4"], [0]) == 0
    assert capsys.readouterr().out.count(" there ") >= 2
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())


def test_table1_has_values_for_every_method(smoke):
    found = smoke.table("table1_peft_methods")
    assert list(found.index) == list(method_rows("smoke"))
    measured = ["memory, GB, ours", "memory, %, ours", "step, ms, ours", "step, %, ours"]
    assert found[["R@1, ours", "MAP@R released, ours", "MAP@R, ours", "tunable, M, ours"]].notna().all(axis=None)
    assert (found.drop(list(UNTRAINED))[measured] > 0).all(axis=None)
    assert found.loc[list(UNTRAINED), measured].isna().all(axis=None)
    assert found["R@1, paper"].notna().sum() == 11
    np.testing.assert_allclose(found["R@1, difference"], found["R@1, ours"] - found["R@1, paper"])
    assert found.loc["Full fine-tuning (PA)", "tunable, %, ours"] == 100
    for metric in ("R@1", "MAP@R released"):
        text = found[f"{metric}, vs {BEST}"].drop(BEST)
        numbers = text.str.extract(r"^(≈ )?([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]$")
        clear, numbers = numbers[0].isna(), numbers[[1, 2, 3]].astype(float)
        far = found[f"{metric}, ours"] - found.loc[BEST, f"{metric}, ours"]
        np.testing.assert_allclose(numbers[1], far.drop(BEST), atol=0.051)
        assert (numbers[2] <= numbers[1]).all() and (numbers[1] <= numbers[3]).all()
        assert ((numbers[2] >= 0) | (numbers[3] <= 0))[clear].all(), "rounded to one decimal"
    order = found["tunable, M, ours"]
    assert order["Linear probing"] < order["VPT"] < order["VPTSP-M"] < order["VPTSP-G"] < order["Full fine-tuning (PA)"]


def test_beyond_the_paper_has_every_row_and_its_distance(smoke):
    found = smoke.table("beyond_paper")
    rows = beyond.rows("smoke")
    assert list(found.index) == list(rows)
    assert found[["CUB R@1, ours", "CUB MAP@R, ours"]].notna().all(axis=None)
    told = found[f"CUB R@1, vs {beyond.REFERENCE}"]
    assert pd.isna(told[beyond.REFERENCE]) and told.drop(beyond.REFERENCE).str.contains(r"\[").all()
    printed = "".join(output.get("text", "") for output in smoke.outputs("beyond_paper"))
    assert "held-out training classes" in printed and ("peft is not installed" in printed) == (not has_peft())
