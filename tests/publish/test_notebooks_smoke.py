"""The notebooks run end to end under the smoke profile, and leave what they promise."""

import numpy as np

from vptsp_core.paper.methods import BEST, UNTRAINED, method_rows
from vptsp_core.publish.runner import check_sources

NOTEBOOKS = ("table1_peft_methods", "table9_search")


def test_sources_keep_the_rules():
    assert check_sources() == []


def test_executed_copies_show_their_figures_and_are_quiet(smoke):
    assert smoke.figures("table1_peft_methods") == ["table1_peft_methods"]
    assert smoke.figures("table9_search") == ["table9_search_history", "table9_search_importance"]


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


def test_records_name_one_commit_one_device_and_the_data(smoke):
    for name in NOTEBOOKS:
        facts = smoke.table(f"{name}_record")["value"]
        assert facts["seed"] == "0" and "," not in facts["data checksum, train"] and facts["weights checksum"]
        assert {"commit", "device", "torch version", "data checksum, test"} <= set(facts.index)
