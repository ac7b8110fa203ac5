"""The notebooks of tables 2 to 8 run end to end under the smoke profile, and leave what they promise."""

import numpy as np
import pytest

from vptsp_core.paper.tables import DEMO_PRETRAINED, DEMO_RANDOM, GLYPHS, TABLES, paper_rows

NAMES = {
    2: "table2_sota", 3: "table3_inaturalist", 4: "table4_components", 5: "table5_proxy_source", 6: "table6_cub200",
    7: "table7_integration", 8: "table8_pretraining",
}  # fmt: skip
NOTEBOOKS = tuple(NAMES.values())


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


def test_executed_copies_show_a_figure_each_name_the_selection_and_are_quiet(smoke):
    for name in NOTEBOOKS:
        assert smoke.figures(name) == [name]
        printed = "".join(output.get("text", "") for output in smoke.outputs(name))
        assert "best epoch on the test set" in printed and "on the glyphs." in printed
        facts = smoke.table(f"{name}_record")["value"]
        assert facts["seed"] == "0" and {"commit", "device", "data checksum, test"} <= set(facts.index)
