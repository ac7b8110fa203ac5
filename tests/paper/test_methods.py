"""The rows of tables 1, 5 and 7: their runs and hashes, their labels in the paper, and changes that are refused."""

import functools

import pytest

from vptsp_core.errors import ConfigError
from vptsp_core.method.presets import preset
from vptsp_core.paper import figure3, rate_search
from vptsp_core.paper.latency import latency_configs
from vptsp_core.paper.methods import (
    ADAPTERS,
    BASE,
    BEST,
    CLOSED,
    FROZEN,
    FULL,
    LORA,
    METHODS,
    RATES,
    base_config,
    check_changes,
    configured,
    integration_rows,
    method_rows,
    paper_labels,
    proxy_source_rows,
)
from vptsp_core.paper.report import paper_table
from vptsp_core.paper.tables import TABLES

# Finished runs are found by these hashes. A hash may change only if its run computes something else.
HASHES = {
    "demo": {
        "Frozen backbone": "a24a27016fb9", "Full fine-tuning (PA)": "5d7a1f4730e1", "Linear probing": "6bf32e5a7daf",
        "BitFit": "857a13fce14f", "VPT": "7ee6ffa42e12", "VPT + BitFit": "545af025514e", "VPTSP-M": "045d0efe0f88",
        "VPTSP-M + BitFit": "bdc06f427862", "VPTSP-G": "03b1f96fb95b", "VPTSP-G + BitFit": "a6e43ebf4c97",
    },
    "smoke": {
        "Frozen backbone": "a24a27016fb9", "Full fine-tuning (PA)": "c108e12cc2fe", "Linear probing": "7d2d59e020fb",
        "BitFit": "9839ad5874b5", "VPT": "52d6d8272cb8", "VPT + BitFit": "30ce614757c5", "VPTSP-M": "ab5adee65ab5",
        "VPTSP-M + BitFit": "b235795b7788", "VPTSP-G": "a769a08dc727", "VPTSP-G + BitFit": "ed8d8cdc4101",
    },
    "tiny": {"Frozen backbone": "002b60d5a541", "Closed form (whitened head, no training)": "a83db13c21b3"},
    "paper": {
        "Frozen backbone": "cde62cdca5fb", "Full fine-tuning (PA)": "279166dc69e0", "Linear probing": "d4ccf1ac1595",
        "BitFit": "cf41b6cd8df7", "VPT": "ed2271da13b8", "VPT + BitFit": "cfb1bb25e097", "VPTSP-M": "9c46a7f3ba06",
        "VPTSP-M + BitFit": "98d98ece4b4b", "VPTSP-G": "acd7523b4ce5", "VPTSP-G + BitFit": "4c54db03ef64",
    },
}  # fmt: skip


@pytest.mark.parametrize("profile", BASE)
def test_runs_of_table_1_keep_their_hashes(profile):
    rows = method_rows(profile)
    assert {label: base_config(profile, **rows[label]).hash() for label in HASHES[profile]} == HASHES[profile]


@pytest.mark.parametrize("profile", BASE)
def test_a_label_agrees_with_its_run(profile):
    for label, changes in method_rows(profile).items():
        config = base_config(profile, **changes)
        assert config.bitfit == label.endswith("BitFit")
        if label.startswith("VPT"):
            assert config.method == label.split(" ")[0].split("-")[0].lower()
        if label.startswith("VPTSP"):
            assert config.accumulator == {"G": "gru", "M": "ema"}[label[6]]


def test_adapters_are_as_wide_and_as_many_as_table_1_prints():
    paper = paper_labels(paper_table("table1_peft_methods_cub200")).set_index("label")["settings"]
    for label, settings in ADAPTERS["paper"].items():
        printed = f"layers={settings['adapter_layers']} mid_dim={settings['adapter_dim']}"
        assert paper[label] == printed
    assert ADAPTERS["demo"].keys() == ADAPTERS["paper"].keys()


@pytest.mark.parametrize("profile", BASE)
@pytest.mark.parametrize(
    ("rows", "table", "column", "last"),
    [
        (proxy_source_rows, "table5_proxy_source", "setting", BEST),
        (integration_rows, "table7_integration_cub200", "integration", "VPTSP-G"),
    ],
)
def test_tables_5_and_7_have_the_papers_rows_and_share_their_last_run_with_table_1(profile, rows, table, column, last):
    paper = paper_table(table)
    changes = rows(profile)
    assert list(changes) == list(paper[column])
    hashes = [base_config(profile, **of_row).hash() for of_row in changes.values()]
    assert len(set(hashes)) == len(hashes)
    assert hashes[-1] == base_config(profile, **method_rows(profile)[last]).hash()
    of_last = paper_labels(paper_table("table1_peft_methods_cub200")).set_index("label").loc[last]
    recall = [name for name in paper.columns if name in ("R@1", "CUB R@1")][0]
    assert paper[recall].iloc[-1] == of_last["R@1"]


def test_rates_name_known_rows_and_stay_in_the_papers_search_space():
    space = paper_table("table9_search_space").set_index("attribute")["values"]
    for rates in RATES.values():
        assert set(rates) <= set(METHODS) | set(rate_search.rows())  # also names rows of tables 5 and 7
    for rate in RATES["paper"].values():
        assert rate["lr"] in [float(value) for value in space["lr"].split("|")]
        assert rate["lr_proxy"] in [float(value) for value in space["lr_proxy_bias"].split("|")]


def test_paper_labels_match_ours_except_our_own_rows():
    paper = paper_labels(paper_table("table1_peft_methods_cub200"))
    assert set(METHODS) - set(paper["label"]) == {FROZEN, CLOSED, LORA}
    assert set(paper["label"]) <= set(METHODS) and paper["label"].is_unique
    values = paper.set_index("label")["R@1"]
    assert (values[FULL], values["Linear probing"], values["VPT"], values[BEST]) == (85.5, 84.9, 85.1, 86.6)


@pytest.mark.parametrize(
    "key", ["dataset", "method", "bitfit", "accumulator", "proxy_source", "adapter_dim", "adapter_layers", "seed"]
)
def test_keys_by_which_rows_differ_are_refused_everywhere(key):
    change = {key: getattr(preset("demo"), key)}
    asked = [
        lambda: check_changes(change), lambda: configured("demo", {}, change),
        lambda: latency_configs("demo", **change), lambda: figure3.points("d", "demo", **change),
        *(functools.partial(cells, "demo", **change) for cells in TABLES.values()),
    ]  # fmt: skip
    for ask in asked:
        with pytest.raises(ConfigError, match=rf"changes \(--set\) contain {key}\b.*; (leave it out|give seeds)"):
            ask()


def test_unknown_profile_is_refused_by_name():
    with pytest.raises(ConfigError, match="'real'.*demo, smoke, tiny, paper"):
        method_rows("real")
