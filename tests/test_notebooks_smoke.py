"""The notebooks run end to end under the smoke profile, and leave what they promise."""

import nbformat
import numpy as np
import pandas as pd
import pytest

from vptsp_core.notebooks import check_sources, run_notebooks
from vptsp_core.rows import BEST, FROZEN, METHODS

NOTEBOOKS = ("fig3d_alpha", "fig4_embedding_space", "table1_peft_methods")
FIGURES = ("fig3d_alpha", "fig4_proxies", "fig4_test", "table1_peft_methods")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The results folder of one run of all three; they share runs, as they do for a user."""
    results = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = run_notebooks("smoke", None, results, NOTEBOOKS, [0])
    assert status == 0, [path.name for path in (results / "smoke" / "notebooks").glob("*.failed.ipynb")]
    return results / "smoke"


def table(smoke, name: str) -> pd.DataFrame:
    return pd.read_csv(smoke / "tables" / f"{name}.csv", index_col=0)


def test_sources_keep_the_rules():
    assert check_sources() == []


def test_executed_copies_show_their_figures_and_are_quiet(smoke):
    shown = 0
    for name in NOTEBOOKS:
        assert (smoke / "notebooks" / f"{name}.html").stat().st_size > 10_000
        notebook = nbformat.read(smoke / "notebooks" / f"{name}.ipynb", as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        shown += sum("image/png" in output.get("data", {}) for output in outputs)
        assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
        assert not [o for o in outputs if "application/vnd.jupyter.widget-view+json" in o.get("data", {})]
    assert shown == len(FIGURES)
    for name in FIGURES:
        for kind in ("png", "pdf"):
            assert (smoke / "figures" / f"{name}.{kind}").stat().st_size > 5_000


def test_table1_has_values_for_every_method(smoke):
    found = table(smoke, "table1_peft_methods")
    assert list(found.index) == list(METHODS)
    run = [label for label, row in METHODS.items() if row is not None]
    ours = found.loc[run]
    measured = ["memory, GB, ours", "memory, %, ours", "step, ms, ours", "step, %, ours"]
    assert ours[["R@1, ours", "MAP@R released, ours", "MAP@R, ours", "tunable, M, ours"]].notna().all(axis=None)
    assert (ours.drop(FROZEN)[measured] > 0).all(axis=None) and ours.loc[FROZEN, measured].isna().all()
    assert found.loc[["Adapter", "Adapter + BitFit"], "R@1, ours"].isna().all()
    assert found["R@1, paper"].notna().sum() == 11
    np.testing.assert_allclose(found["R@1, difference"], found["R@1, ours"] - found["R@1, paper"])
    assert found.loc["Full fine-tuning (PA)", "tunable, %, ours"] == 100
    for metric in ("R@1", "MAP@R released"):
        text = found.loc[run, f"{metric}, vs {BEST}"].drop(BEST)
        numbers = text.str.extract(r"^(≈ )?([+-][\d.]+) \[([+-][\d.]+), ([+-][\d.]+)\]$")
        clear, numbers = numbers[0].isna(), numbers[[1, 2, 3]].astype(float)
        far = ours[f"{metric}, ours"] - ours.loc[BEST, f"{metric}, ours"]
        np.testing.assert_allclose(numbers[1], far.drop(BEST), atol=0.051)
        assert (numbers[2] <= numbers[1]).all() and (numbers[1] <= numbers[3]).all()
        assert ((numbers[2] >= 0) | (numbers[3] <= 0))[clear].all(), "rounded to one decimal"
    order = found["tunable, M, ours"]
    assert order["Linear probing"] < order["VPT"] < order["VPTSP-M"] < order["VPTSP-G"] < order["Full fine-tuning (PA)"]


def test_figure_3d_has_every_alpha_and_both_curves(smoke):
    found = table(smoke, "fig3d_alpha")
    assert list(found.index) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert found[["R@1, paper", "R@1, ours", "MAP@R, ours", "R@1 on Cars196, paper"]].notna().all(axis=None)


def test_figure_4_measures_all_three_proxies(smoke):
    found = table(smoke, "fig4_proxies")
    assert list(found.index) == ["O", "P", "Q"]
    np.testing.assert_allclose(found["margin"], found["own centroid"] - found["nearest other"], atol=1e-6)
    assert table(smoke, "fig4_embedding_space").index.size == 2


def test_records_name_one_commit_one_device_and_the_data(smoke):
    for name in NOTEBOOKS:
        facts = table(smoke, f"{name}_record")["value"]
        assert facts["seed"] == "0" and "," not in facts["data checksum, train"] and facts["weights checksum"]
        assert {"commit", "device", "torch version", "data checksum, test"} <= set(facts.index)
