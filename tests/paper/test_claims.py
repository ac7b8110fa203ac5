"""The paper's claims are printed in its tables, and the verdicts on them are those of made-up runs."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from tests.paper.test_tiny import put
from vptsp_core.errors import DataError
from vptsp_core.method.presets import preset
from vptsp_core.paper import claims
from vptsp_core.paper.claims import CLAIMS, NOT_RUN
from vptsp_core.paper.methods import BEST, FULL, search_name
from vptsp_core.runs.folder import CLASS, Run

COUNT = 2_000  # queries


def made(tmp_path, recall: float, precision: float = 0.5, seed: int = 0) -> Run:
    """Return a run whose share of right queries is ``recall``, drawn from the seed."""
    right = np.random.default_rng(seed).permutation(COUNT) < recall * COUNT
    found = Run(
        preset("smoke", seed=seed), tmp_path, {}, pd.DataFrame({"loss": [1.0]}), {"data": {"name": "x", "test": "y"}}
    )
    found.__dict__["queries"] = {
        "R@1": right.astype(float), "MAP@R released": np.full(COUNT, precision), "class": np.arange(COUNT)
    }  # fmt: skip
    return found


def test_every_claim_is_one_of_the_paper_and_its_rows_exist_in_every_profile():
    printed = claims.printed()
    for profile in ("demo", "smoke", "tiny", "paper"):
        assert {name for claim in CLAIMS for name in claim[1:]} <= set(claims.rows(profile, {}))
    assert set(printed.index) == {name for name in claims.rows("paper", {}) if name in set(printed.index)}
    assert len(printed) == 11 + 3 + 4 and len(set(CLAIMS)) == len(CLAIMS)
    assert all(printed["R@1"][claim.above] > printed["R@1"][claim.below] for claim in CLAIMS)
    best = {claim.below for claim in CLAIMS if claim.above == BEST and claim.table == 1}
    assert best == set(printed.index[:11]) - {BEST}
    assert printed.loc["table 7: LSTM"].tolist() == [85.1, 49.8]  # as printed


def test_verdicts(tmp_path):
    runs = {
        BEST: [made(tmp_path, 0.70, 0.4, seed) for seed in (0, 1)],
        "BitFit": [made(tmp_path, 0.80, 0.4, 2)],
        "VPT + BitFit": [made(tmp_path, 0.60, 0.3, 3)],
        "Linear probing": [made(tmp_path, 0.70, 0.5, 4)],
    }  # fmt: skip
    pairs = [(run, name) for name, each in runs.items() for run in each]
    found = claims.verdicts([run for run, _ in pairs], [name for _, name in pairs])
    assert list(found.index) == [f"{claim.above} > {claim.below}" for claim in CLAIMS]
    row = found.loc[f"{BEST} > BitFit"]
    assert row["R@1", "difference"] == pytest.approx(-10) and row["R@1", "verdict"] == "does not hold"
    assert row["R@1", "low"] < -10 < row["R@1", "high"] < 0
    assert row["R@1", "paper"] == pytest.approx(86.6 - 85.7) and row["seeds", ""] == "2, 1"
    assert found.loc[f"{BEST} > VPT + BitFit", ("R@1", "verdict")] == "holds"
    assert found.loc[f"{BEST} > Linear probing", ("R@1", "verdict")] == "undecided"
    assert found.loc[f"{BEST} > Linear probing", ("MAP@R released", "verdict")] == "does not hold"
    assert found.loc[f"{BEST} > VPT", ("R@1", "verdict")] == NOT_RUN
    assert np.isnan(found.loc[f"{BEST} > VPT", ("R@1", "difference")])
    corrected = found["R@1"]["corrected"]  # for the four claims that have runs
    assert (corrected == found["R@1"]["verdict"]).all() and found.loc[f"{BEST} > BitFit", ("R@1", "p")] < 0.01
    shown = claims.shown(found)
    recall = shown["difference of R@1"]
    assert recall.loc[f"{BEST} > VPT", "ours"] == ""
    assert recall.loc[f"{BEST} > BitFit", "ours"].startswith("-10.0 [-")
    assert recall.loc[f"{BEST} > Linear probing", "ours"].startswith("≈ ")
    assert recall.loc[f"{BEST} > BitFit", "paper"] == 0.9  # as printed, not 0.8999999
    runs[BEST][0].__dict__["queries"] = {CLASS: runs[BEST][0].queries[CLASS]}
    found = claims.verdicts([run for run, _ in pairs], [name for _, name in pairs])
    assert found.loc[f"{BEST} > BitFit", ("R@1", "verdict")] == NOT_RUN  # it has no values per query


def test_a_verdict_that_is_clear_only_alone_is_undecided_after_correction(tmp_path):
    recalls = {BEST: 0.70, "BitFit": 0.732, "VPT + BitFit": 0.60, "Linear probing": 0.70}  # four claims have runs
    runs = [made(tmp_path, recall, seed=seed) for seed, recall in enumerate(recalls.values())]
    found = claims.verdicts(runs, list(recalls))["R@1"].loc[[f"{BEST} > BitFit", f"{BEST} > VPT + BitFit"]]
    assert 0.0167 < found["p"].iloc[0] < 0.05 and found["p"].iloc[1] < 0.001
    assert found["verdict"].tolist() == ["does not hold", "holds"]
    assert found["corrected"].tolist() == ["undecided", "holds"]


def test_holm_corrects_by_hand_computed_values():
    p = pd.Series({"a": 0.01, "not run": np.nan, "b": 0.04, "c": 0.03, "d": 0.005, "e": 0.9})
    expected = {"a": 0.04, "not run": np.nan, "b": 0.09, "c": 0.09, "d": 0.025, "e": 0.9}  # 4 * 0.01, 3 * 0.03, ...
    pd.testing.assert_series_equal(claims.holm(p), pd.Series(expected))


def test_a_claim_whose_order_by_map_is_the_opposite_is_judged_by_that_order(tmp_path):
    # the paper has Adapter + BitFit above full fine-tuning by R@1 (+0.3) and below it by MAP@R (-1.4)
    runs = [made(tmp_path, 0.8, 0.3), made(tmp_path, 0.7, 0.4, 1)]
    found = claims.verdicts(runs, ["Adapter + BitFit", "Full fine-tuning (PA)"])
    row = found.loc["Adapter + BitFit > Full fine-tuning (PA)"]
    assert row["MAP@R released", "paper"] < 0 and row["MAP@R released", "difference"] < 0
    assert (row["R@1", "verdict"], row["MAP@R released", "verdict"]) == ("holds", "holds")


def test_runs_of_other_images_are_refused(tmp_path):
    other = made(tmp_path, 0.5)
    other = dataclasses.replace(other, record={"data": {"name": "z", "test": "z"}})
    other.__dict__["queries"] = made(tmp_path, 0.5).queries
    with pytest.raises(DataError, match="different queries"):
        claims.verdicts([made(tmp_path, 0.5), other], [BEST, "BitFit"])


def test_without_runs_every_claim_is_not_run(tmp_path):
    assert claims.finished("tiny", [0, 1], {}, tmp_path) == ([], [])
    assert claims.costs([], []).empty
    found = claims.verdicts([], [])
    assert set(found["R@1"]["verdict"]) == {NOT_RUN} and found["R@1"]["paper"].notna().all()


def test_costs_are_of_the_fastest_epoch(tmp_path):
    precision = {"trunk": "bfloat16", "why": "this CPU has amx_bf16; a bf16 product takes 1/12.0 of float32's time"}
    record = {"seconds": 120.0, "device": "cpu", "precision": precision, "commit": "c"}
    trained = Run(preset("smoke", epochs=2), tmp_path, {}, pd.DataFrame({"seconds": [30.0, 20.0]}), record)
    frozen = Run(preset("smoke", method="frozen", bitfit=False), tmp_path, {}, pd.DataFrame({"epoch": [0]}), record)
    (row,) = claims.costs([frozen, trained], ["Frozen backbone", BEST]).reset_index().to_dict("records")
    assert (row["run"], row["fastest epoch, s"], row["run, minutes"]) == (BEST, 20.0, 2.0)
    assert row["precision"] == "bfloat16: this CPU has amx_bf16"


def test_finished_runs_are_found_with_the_seeds_that_their_row_has(tmp_path):
    configs = claims.rows("tiny", {})
    of = {BEST: (0, 1, 2), "VPT": (0, 1), search_name(5, "Sample"): (0,)}
    for name, seeds in of.items():
        for seed in seeds:
            put(configs[name].replace(seed=seed), tmp_path, [{"epoch": 1, "R@1": 0.5, "MAP@R": 0.5}])
    runs, names = claims.finished("tiny", [0, 1], {}, tmp_path)
    assert sorted(zip(names, (run.config.seed for run in runs), strict=True)) == [
        ("VPT", 0), (BEST, 0), (BEST, 1), ("table 5: Sample", 0),
    ]  # fmt: skip


def test_table_5_and_7_are_claimed_in_full():
    assert [claim.table for claim in CLAIMS].count(5) == 3 and [claim.table for claim in CLAIMS].count(7) == 4
    assert {claim.below for claim in CLAIMS if claim.table > 1} == set(claims.printed().index[11:])
    full = {name for claim in CLAIMS if FULL in claim for name in claim[1:]}
    assert full == set(claims.printed().index[:11]), "every row of table 1 is compared with full fine-tuning"
