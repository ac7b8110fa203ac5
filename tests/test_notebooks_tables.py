"""The notebooks of tables 2 to 8 run end to end under the smoke profile, and leave what they promise."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from vptsp_core.notebooks import run_notebooks
from vptsp_core.table_rows import DEMO_PRETRAINED, DEMO_RANDOM, GLYPHS, TABLES, paper_rows

NAMES = {
    2: "table2_sota", 3: "table3_inaturalist", 4: "table4_components", 5: "table5_proxy_source", 6: "table6_cub200",
    7: "table7_integration", 8: "table8_pretraining",
}  # fmt: skip


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The results folder of one run of them all; they share runs, as they do for a user."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = run_notebooks("smoke", None, results, list(NAMES.values()), [0])
    assert status == 0, [path.name for path in (results / "smoke" / "notebooks").glob("*.failed.ipynb")]
    return results / "smoke"


def table(smoke, name: str) -> pd.DataFrame:
    return pd.read_csv(smoke / "tables" / f"{name}.csv", index_col=0)


@pytest.mark.parametrize("number", NAMES)
def test_all_rows_of_the_paper_stand_there_as_printed(smoke, number):
    found, paper = table(smoke, NAMES[number]), paper_rows(number)
    assert list(found.index[: len(paper)]) == list(paper["row"])
    for column in paper.columns.drop("row"):
        shown = column.replace("MAP@R", "MAP@R released")
        np.testing.assert_array_equal(found[f"{shown}, paper"][: len(paper)], paper[column])
        difference = found[f"{shown}, ours"] - found[f"{shown}, paper"]
        np.testing.assert_allclose(found[f"{shown}, difference"], difference)


@pytest.mark.parametrize("number", NAMES)
def test_ours_is_filled_where_the_glyphs_stand_in_and_nowhere_else(smoke, number):
    found, cells = table(smoke, NAMES[number]), TABLES[number]("smoke")
    for column in [column for column in found if column.endswith(", ours") and "@" in column]:
        of_set = [row for row, name in cells if name == column.split(" ")[0]]
        assert sorted(found.index[found[column].notna()]) == sorted(of_set)
    for column in [column for column in found if "MAP@R released, ours" in column]:
        assert column.replace(" released", "") in found  # both definitions


def test_rows_of_ours_alone(smoke):
    assert list(table(smoke, NAMES[3]).index)[3:] == [GLYPHS]
    assert list(table(smoke, NAMES[8]).index)[4:] == [DEMO_PRETRAINED, DEMO_RANDOM]
    six = table(smoke, NAMES[6])
    assert (six.loc[["VPTSP, ViT-S/16"], ["parameters, M, ours", "learning, M, ours"]] > 0).all(axis=None)


@pytest.mark.parametrize(("number", "reference"), [(2, "VPTSP-G, ViT-S/16"), (4, "VPTSP (GRU) + BitFit"),
    (5, "VPTSP-G"), (6, "VPTSP, ViT-S/16"), (7, "GRU with ReLU"), (8, DEMO_PRETRAINED)])  # fmt: skip
def test_differences_have_their_intervals(smoke, number, reference):
    told = table(smoke, NAMES[number])[f"CUB R@1, vs {reference}"].dropna()
    others = [row for row, _ in TABLES[number]("smoke") if row != reference]
    assert sorted(told.index) == sorted(others)
    assert told.str.fullmatch(r"(≈ )?[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]").all(), list(told)


def test_executed_copies_show_a_figure_each_name_the_selection_and_are_quiet(smoke):
    for name in NAMES.values():
        notebook = nbformat.read(smoke / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
        printed = "".join(output.get("text", "") for output in outputs)
        assert "best epoch on the test set" in printed and "on the glyphs." in printed
        for kind in ("png", "pdf"):
            assert (smoke / "figures" / f"{name}.{kind}").stat().st_size > 5_000
        facts = table(smoke, f"{name}_record")["value"]
        assert facts["seed"] == "0" and {"commit", "device", "data checksum, test"} <= set(facts.index)
