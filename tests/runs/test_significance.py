"""Intervals compared with scipy's and with known answers, and how often they cover the truth."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import linalg, stats

from vptsp_core.errors import ConfigError, DataError, WeightsError
from vptsp_core.method.presets import preset
from vptsp_core.runs import significance
from vptsp_core.runs.folder import QUERIES, Run


def run_with(folder, name, data="t2", classes=None, **queries) -> Run:
    """Return a run with these per-query values. R_1 stands for R@1. By default, each query has its own class."""
    record = {"hash": name, "data": {"name": "glyphs", "train": "t1", "test": data}}
    path = folder / name
    path.mkdir()
    values = {key.replace("_", "@"): np.array(each, np.float32) for key, each in queries.items()}
    if values:
        values["class"] = np.arange(len(next(iter(values.values())))) if classes is None else np.array(classes)
        np.savez(path / QUERIES, **values)
    return Run(preset("smoke"), path, {}, pd.DataFrame(), record)


def test_identical_methods_could_be_chance_and_a_constant_difference_could_not(tmp_path):
    values = np.random.default_rng(0).integers(0, 32, 50) / 64  # so that all differences are exact
    same, better, base = (run_with(tmp_path, n, MAP_R=values + more) for n, more in (("a", 0), ("b", 0.25), ("c", 0)))
    runs, labels = [base, same, better], ["base", "same", "better"]
    found = significance.compare_paired(runs, labels, "base", metrics=["MAP@R"])["MAP@R"]
    assert list(found.index) == ["base", "same", "better"] and list(found.columns) == list(significance.COLUMNS)
    assert found.loc["same"].tolist() == [0, 0, 0, 1, True]
    np.testing.assert_allclose(found.loc["better", ["difference", "low", "high"]].astype(float), 25, rtol=1e-5)
    assert found.loc["better", "high"] - found.loc["better", "low"] < 1e-9 and found.loc["better", "chance"] is False
    assert found.loc["base"].isna().all()


def test_with_one_query_per_class_it_is_scipys_paired_t_test(tmp_path):
    rng = np.random.default_rng(1)
    base = (rng.random(400) < 0.6).astype(np.float32)
    other = np.where(rng.random(400) < 0.85, base, 1 - base).astype(np.float32)
    runs = [run_with(tmp_path, "a", R_1=base), run_with(tmp_path, "b", R_1=other)]
    found = significance.compare_paired(runs, ["a", "b"], "a", metrics=["R@1"])["R@1"].loc["b"]
    theirs = stats.ttest_rel(100.0 * other.astype(float), 100.0 * base)
    assert found["difference"] == pytest.approx(100 * (other.mean() - base.mean()), abs=1e-4)
    expected = [*theirs.confidence_interval(0.95), theirs.pvalue]
    np.testing.assert_allclose([found["low"], found["high"], found["p"]], expected, rtol=1e-9)


def test_with_equal_classes_it_is_scipys_t_test_of_their_means(tmp_path):
    rng = np.random.default_rng(2)
    classes = rng.permutation(np.repeat(np.arange(20), 7))  # in any order
    base = rng.random(140)
    other = base + rng.normal(0.02, 0.1, 20)[classes] + rng.normal(0, 0.1, 140)
    runs = [run_with(tmp_path, n, classes=classes, MAP_R=each) for n, each in (("a", base), ("b", other))]
    found = significance.compare_paired(runs, "ab", "a", metrics=["MAP@R"])["MAP@R"].loc["b"]
    differences = 100.0 * (np.float32(other).astype(float) - np.float32(base).astype(float))
    means = pd.Series(differences).groupby(classes).mean()
    theirs = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    np.testing.assert_allclose([found["low"], found["high"]], theirs, rtol=1e-9)


def test_with_unequal_classes_it_is_the_textbook_form_of_bell_and_mccaffrey():
    """A regression on a constant, with all matrices written out (Imbens & Kolesar, 2016, section 3)."""
    rng, sizes = np.random.default_rng(3), np.array([40, 9, 7, 2, 1, 1])
    classes = rng.permutation(np.repeat(np.arange(6), sizes))
    count = len(classes)
    values = rng.normal(0, 3, 6)[classes] + rng.normal(0, 1, count)
    hat, rest = np.full((count, count), 1 / count), values - values.mean()
    terms, columns = [], []
    for label in range(6):
        own = np.flatnonzero(classes == label)
        adjusted = np.linalg.inv(linalg.sqrtm(np.eye(len(own)) - hat[np.ix_(own, own)])).sum(0) / count
        terms.append((adjusted @ rest[own]) ** 2)
        columns.append((np.eye(count) - hat)[:, own] @ adjusted)
    eigenvalues = np.linalg.eigvalsh(np.stack(columns, 1).T @ np.stack(columns, 1))
    degrees = eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()
    half = stats.t.ppf(0.975, degrees) * sum(terms) ** 0.5
    found = significance.estimate(values[:, None], np.zeros((count, 1)), classes).interval()
    np.testing.assert_allclose(found, [values.mean() - half, values.mean() + half], rtol=1e-9)
    assert 1 < degrees < 3, "one class has two thirds of the queries"


@pytest.mark.parametrize(
    ("sizes", "most"),
    [
        ([100, 10], 1),
        ([200, 20, 20, 10, 10], 0.99),
        (500 // np.arange(1, 101), 0.97),
    ],
)
def test_the_interval_covers_the_truth_if_queries_of_a_class_vary_together(sizes, most):
    """1,000 experiments. Classes vary half as much as queries of one class do. With few classes it is too wide."""
    rng, covered = np.random.default_rng(4), 0
    classes = np.repeat(np.arange(len(sizes)), sizes)
    for _ in range(1000):
        values = 2 + rng.normal(0, 5, len(sizes))[classes] + rng.normal(0, 10, len(classes))
        low, high = significance.estimate(values[:, None], np.zeros((len(values), 1)), classes).interval()
        covered += low <= 2 <= high
    assert 0.92 < covered / 1000 <= most


def test_two_classes_that_agree_by_chance_do_not_make_a_difference_clear():
    """Two queries of sixty are gained in each class, so the classes' means are equal."""
    gained = np.tile(np.repeat([100.0, 0.0], [2, 58]), 2)[:, None]
    low, high = significance.estimate(gained, np.zeros((120, 1)), np.repeat([0, 1], 60)).interval()
    assert low < 0 < high


def test_pairing_sees_what_two_separate_intervals_would_not(tmp_path):
    """Queries differ far more from each other than the methods do on any of them."""
    rng = np.random.default_rng(4)
    base = rng.random(300)
    runs = [run_with(tmp_path, "a", MAP_R=base), run_with(tmp_path, "b", MAP_R=base + rng.normal(0.01, 0.02, 300))]
    paired = significance.compare_paired(runs, ["a", "b"], "a", metrics=["MAP@R"])["MAP@R"].loc["b"]
    alone = 1.96 * 100 * base.std() / 300**0.5
    assert paired["chance"] is False and paired["difference"] < alone


def test_seeds_alone_give_welchs_interval(tmp_path):
    """No class differs from another, so what is left is Welch's interval over the seeds, as scipy computes it."""
    seeds = {"a0": 0.5, "a1": 0.5625, "a2": 0.75, "b0": 0.5, "b1": 0.625, "c0": 0.25}
    runs = [run_with(tmp_path, name, MAP_R=np.full(9, value)) for name, value in seeds.items()]
    labels = [name[0] for name in seeds]
    found = significance.compare_paired(runs, labels, "a", metrics=["MAP@R"])["MAP@R"]
    a, b = ([100 * value for name, value in seeds.items() if name[0] == label] for label in "ab")
    theirs = stats.ttest_ind(b, a, equal_var=False)
    expected = [*theirs.confidence_interval(), theirs.pvalue]
    np.testing.assert_allclose(found.loc["b", ["low", "high", "p"]].astype(float), expected, rtol=1e-9)
    alone = stats.ttest_1samp(a, 25).confidence_interval()  # c has one seed, so only the reference's seeds matter
    np.testing.assert_allclose(-found.loc["c", ["high", "low"]].astype(float), np.array(alone) - 25, rtol=1e-9)


def test_the_order_of_seeds_and_of_the_two_methods_changes_nothing(tmp_path):
    rng = np.random.default_rng(6)
    runs = [run_with(tmp_path, f"{name}{seed}", R_1=rng.random(40)) for name in "ab" for seed in range(3)]
    found = significance.compare_paired(runs, "aaabbb", "a", metrics=["R@1"])["R@1"].loc["b"]
    turned = significance.compare_paired(runs[::-1], "bbbaaa", "b", metrics=["R@1"])["R@1"].loc["a"]
    expected = [-turned["difference"], -turned["high"], -turned["low"]]
    np.testing.assert_allclose(found[["difference", "low", "high"]].astype(float), expected, rtol=1e-9)


@pytest.mark.parametrize("interaction", [0.0, 0.4])
@pytest.mark.parametrize(
    ("seeds", "ratio", "least"), [(2, 1, 0.91), (2, 6, 0.83), (3, 1, 0.92), (3, 6, 0.88), (5, 6, 0.91)]
)
def test_how_often_an_interval_with_seeds_covers_the_truth(seeds, ratio, least, interaction):
    """500 experiments of 100 queries. The seeds of one method vary ``ratio`` times as much as the mean over queries.

    Those of the other hardly vary. Both also err on different queries with each seed (``interaction``).
    """
    rng, covered = np.random.default_rng(7), 0
    for _ in range(500):
        query = rng.normal(0.02, 0.4, (100, 1))
        means = ratio * 0.04 * rng.normal(0, (1, 0.1), (seeds, 2))
        value, other = (means[:, side] + rng.normal(0, interaction, (100, seeds)) for side in (0, 1))
        low, high = significance.estimate(query + value, other, np.arange(100)).interval()
        covered += low <= 0.02 <= high
    assert least < covered / 500 < 0.98


@pytest.mark.parametrize("per_class", [1, 30])
def test_seeds_that_differ_only_by_class_do_not_widen_the_interval(per_class):
    """The means of the seeds vary because classes do, which the variance over classes already contains."""
    rng, classes = np.random.default_rng(8), np.repeat(np.arange(100), per_class)
    widths = []
    for _ in range(200):
        values = rng.normal(0, 0.4, (100, 5))
        low, high = significance.estimate(values[classes], np.zeros((len(classes), 1)), classes).interval()
        widths.append((high - low) / (2 * 1.984 * values.mean(1).std(ddof=1) / 10))  # 1.984: Student's t, 99 degrees
    assert 1 <= np.median(widths) < 1.2


def test_queries_without_an_answer_are_left_out(tmp_path):
    nan = np.nan
    runs = [run_with(tmp_path, "a", MAP_R=[0.5, nan, 0.25, nan]), run_with(tmp_path, "b", MAP_R=[0.75, nan, 0.5, nan])]
    found = significance.compare_paired(runs, ["a", "b"], "a", metrics=["MAP@R"])["MAP@R"].loc["b"]
    assert found["difference"] == found["low"] == found["high"] == 25


def test_a_query_that_one_seed_lacks_is_left_out(tmp_path):
    values = {"a0": [0.5, 0.25, 0.125], "a1": [0.5, np.nan, 0.125], "b0": [0.75, 1, 0.375], "b1": [0.75, 0, 0.375]}
    runs = [run_with(tmp_path, name, MAP_R=each) for name, each in values.items()]
    found = significance.compare_paired(runs, "aabb", "a", metrics=["MAP@R"])["MAP@R"].loc["b"]
    assert found["difference"] == found["low"] == found["high"] == 25


def test_one_class_has_no_interval(tmp_path):
    one, several = [7, 7, 8], {"a": [0.1, 0.4, np.nan], "b": [0.2, 0.3, np.nan], "c": [0.9, 0.6, np.nan]}
    runs = [run_with(tmp_path, name, classes=one, MAP_R=values) for name, values in several.items()]
    for labels in ("abc", "abb", "aab"):
        assert significance.compare_paired(runs, labels, "a", metrics=["MAP@R"]).isna().all(axis=None)


def test_other_runs_in_the_table_change_no_numbers(tmp_path):
    rng = np.random.default_rng(5)
    a, b, c = (run_with(tmp_path, n, R_1=rng.integers(0, 2, 99), MAP_R=rng.random(99)) for n in "abc")
    two, three = significance.compare_paired([a, b], "ab", "a"), significance.compare_paired([c, a, b], "cab", "a")
    pd.testing.assert_frame_equal(two, three.loc[["a", "b"]], check_dtype=False)


def test_runs_without_per_query_values_stay_empty(tmp_path):
    values = {"a": dict(R_1=[1, 0]), "b": dict(R_1=[0, 0]), "old": dict(R_2=[1, 1])}
    a, b, old = (run_with(tmp_path, name, **each) for name, each in values.items())
    found = significance.compare_paired([a, b, old], ["a", "b", "old"], "a")
    assert found["MAP@R"].isna().all(axis=None) and found.loc["old"].isna().all() and found.loc["b", ("R@1", "low")] < 0
    assert significance.compare_paired([a, old], ["a", "old"], "old").isna().all(axis=None)
    assert significance.unclear(found) == {"R@1": ["b"], "MAP@R": []}, "one of two queries differs"
    nothing = significance.compare_paired([], [], "a")
    assert (
        len(nothing) == 0 and ("R@1", "chance") in nothing and significance.unclear(nothing) == {"R@1": [], "MAP@R": []}
    )


def test_the_error_names_both_runs_that_cannot_be_compared(tmp_path):
    a, b = run_with(tmp_path, "a", R_1=[1, 0]), run_with(tmp_path, "b", R_1=[1, 0, 1])
    other = run_with(tmp_path, "c", data="t3", R_1=[1, 0])
    with pytest.raises(DataError, match="ours .*a.* and theirs .*b.* were tested on different numbers of queries"):
        significance.compare_paired([a, b], ["ours", "theirs"], "ours")
    two = run_with(tmp_path, "d", classes=[0, 0], R_1=[1, 0])
    with pytest.raises(DataError, match="ours .*a.* and theirs .*d.* were tested on different classes"):
        significance.compare_paired([a, two], ["ours", "theirs"], "ours")
    with pytest.raises(DataError, match="ours .*a.* and theirs .*c.* were tested on different queries"):
        significance.compare_paired([a, other], ["ours", "theirs"], "ours")
    with pytest.raises(ConfigError, match="reference 'mine' is not one of the rows: ours"):
        significance.compare_paired([a], ["ours"], "mine")
    (a.path / QUERIES).write_text("no archive")
    with pytest.raises(WeightsError, match="unreadable"):
        significance.compare_paired([replace(a)], ["ours"], "ours")


def test_two_galleries_are_two_test_sets(tmp_path):
    a, b = (run_with(tmp_path, name, R_1=[1, 0]) for name in "ab")
    a.record["data"]["gallery"], b.record["data"]["gallery"] = "g1", "g2"
    with pytest.raises(DataError, match="different queries"):
        significance.compare_paired([a, b], "ab", "a")
