"""Every row of table 1 is a run that can be described, and finds its line in the paper's table."""

import pytest

from vptsp_core.errors import ConfigError
from vptsp_core.report import paper_table
from vptsp_core.rows import BASE, BEST, FROZEN, FULL, METHODS, RATES, base_config, method_rows, paper_labels


@pytest.mark.parametrize("profile", BASE)
def test_rows_are_distinct_valid_runs(profile):
    rows = method_rows(profile)
    assert len(rows) == 10 and list(rows) == [label for label, row in METHODS.items() if row is not None]
    hashes = {base_config(profile, **changes, seed=3).hash() for changes in rows.values()}
    assert len(hashes) == len(rows)  # no two rows are the same run


@pytest.mark.parametrize("profile", BASE)
def test_a_label_says_what_the_run_is(profile):
    for label, changes in method_rows(profile).items():
        config = base_config(profile, **changes)
        assert config.bitfit == label.endswith("BitFit")
        if label.startswith("VPT"):
            assert config.method == label.split(" ")[0].split("-")[0].lower()
        if label.startswith("VPTSP"):
            assert config.accumulator == {"G": "gru", "M": "ema"}[label[6]]


def test_rates_name_known_rows_and_stay_in_the_papers_search_space():
    space = paper_table("table9_search_space").set_index("attribute")["values"]
    for rates in RATES.values():
        assert set(rates) <= set(METHODS)
    for rate in RATES["paper"].values():
        assert rate["lr"] in [float(value) for value in space["lr"].split("|")]
        assert rate["lr_proxy"] in [float(value) for value in space["lr_proxy_bias"].split("|")]


def test_the_papers_best_row_is_the_released_preset():
    assert base_config("paper", **method_rows("paper")[BEST]) == base_config("paper")


def test_paper_labels_match_ours_but_for_the_frozen_backbone():
    paper = paper_labels(paper_table("table1_peft_methods_cub200"))
    assert set(METHODS) - set(paper["label"]) == {FROZEN}
    assert set(paper["label"]) <= set(METHODS) and paper["label"].is_unique
    values = paper.set_index("label")["R@1"]
    assert (values[FULL], values["Linear probing"], values["VPT"], values[BEST]) == (85.5, 84.9, 85.1, 86.6)


def test_unknown_profile_is_refused_by_name():
    with pytest.raises(ConfigError, match="'real'.*demo, smoke, paper"):
        method_rows("real")
