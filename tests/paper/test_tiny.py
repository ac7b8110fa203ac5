"""The profile tiny: light runs are finished runs without weights, missing runs are named, and trials decide rates."""

import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import vptsp_core
from vptsp_core.__main__ import main
from vptsp_core.errors import VptspError, WeightsError
from vptsp_core.paper import compare, methods, rate_search
from vptsp_core.paper.methods import BEST, CLOSED, FROZEN, FULL, SEEDED, configured, method_rows, seeds_by_row
from vptsp_core.paper.report import with_last_epoch
from vptsp_core.publish.page import build
from vptsp_core.publish.parameters import TINY, WITH_PHOTOGRAPHS, discover
from vptsp_core.runs import light
from vptsp_core.runs.folder import METRICS, QUERIES, WEIGHTS, finished_run, read_run, run_folder, write_run
from vptsp_core.runs.light import copy_light
from vptsp_core.runs.run import run
from vptsp_core.system.places import CHECKOUT


def put(config, results, history):
    """Write a finished run with this history, without training."""
    record = {
        "hash": config.hash(), "commit": "c", "device": "cpu", "weights": "w", "versions": {}, "seconds": 1.0,
        "data": {"name": config.dataset, "train": "t", "test": "t"},
        "parameters": {"tunable": 1, "tunable released": 1, "total": 2},
    }  # fmt: skip
    ones = np.ones(4, np.float32)
    values = {"R@1": ones, "MAP@R released": ones, "class": np.arange(4)}
    path = run_folder(config, results)
    return write_run(config, path, pd.DataFrame(history), record, values, {"w": torch.ones(2)})


def scored(last: float, best: float) -> list[dict[str, float]]:
    return [
        {"epoch": epoch, "R@1": value, "MAP@R": value / 2, "MAP@R released": value / 2}
        for epoch, value in ((1, best), (2, last))
    ]


@pytest.fixture(scope="module")
def closed(tmp_path_factory):
    """A real run of the closed form in the profile smoke, and its copy as a light run."""
    full, light = (tmp_path_factory.mktemp(name) for name in ("full", "light"))
    done = run(configured("smoke", method_rows("smoke")[CLOSED], {}), results=full, progress=False)
    (copy,) = copy_light(full, light)
    return done, copy, light


@pytest.mark.parametrize("profile", methods.BASE)
def test_the_closed_form_is_not_trained_even_if_changes_set_epochs(profile):
    config = configured(profile, method_rows(profile)[CLOSED], {"epochs": 7})
    assert (config.epochs, config.method, config.bitfit, config.start) == (0, "linear", False, "heads")


def test_the_closed_form_is_better_than_the_frozen_backbone_and_learns_nothing(closed, tmp_path):
    done, _, _ = closed
    frozen = run(configured("smoke", method_rows("smoke")[FROZEN], {}), results=tmp_path, progress=False)
    assert done.metrics["R@1"] > frozen.metrics["R@1"] + 0.05 and list(done.history["epoch"]) == [0]


def test_a_light_run_has_everything_but_the_weights_and_is_finished(closed):
    done, copy, light = closed
    assert {path.name for path in done.path.iterdir()} - {path.name for path in copy.iterdir()} == {WEIGHTS}
    found = run(done.config, results=light, progress=False)
    assert found.light and not done.light and found.metrics == done.metrics
    np.testing.assert_array_equal(found.queries["R@1"], done.queries["R@1"])
    assert copy_light(done.path.parents[1], light) == [], "it is copied already"


def test_commands_that_need_weights_name_the_command_that_trains_them(closed, tmp_path, capsys):
    done, copy, light = closed
    (again,) = copy_light(light, tmp_path)
    with pytest.raises(WeightsError, match="light run, without its weights.* vptsp_core train --preset") as error:
        vptsp_core.load(again)
    assert "\n" not in str(error.value) and str(again) in str(error.value)
    for command in (["evaluate", str(again)], ["export", str(again), "--to", str(tmp_path / "e.safetensors")]):
        assert main(command) == 2 and "light run" in capsys.readouterr().err
    words = str(error.value).split("vptsp_core train ")[1].removesuffix(" --data DIR").split()
    assert main(["train", *words]) == 0
    whole = finished_run(again)
    assert not whole.light and whole.metrics == done.metrics
    assert vptsp_core.load(again).config == done.config


def test_a_damaged_light_run_is_refused(closed, tmp_path):
    _, _, light = closed
    (again,) = copy_light(light, tmp_path)
    content = bytearray((again / QUERIES).read_bytes())
    content[50] ^= 1
    (again / QUERIES).write_bytes(content)
    with pytest.raises(WeightsError, match="queries.npz: does not have the checksum in record.json"):
        finished_run(again)
    with pytest.raises(WeightsError, match="queries.npz"):
        copy_light(tmp_path, tmp_path / "other")


def test_copy_light_refuses_a_folder_without_finished_runs_and_the_same_folder(tmp_path):
    (tmp_path / "runs" / "begun").mkdir(parents=True)
    with pytest.raises(VptspError, match="has no finished run"):
        copy_light(tmp_path, tmp_path / "to")
    with pytest.raises(VptspError, match="same folder"):
        copy_light(tmp_path, tmp_path)


def test_light_runs_make_a_table_without_data_and_missing_runs_are_named_with_their_command(tmp_path):
    whole, results = tmp_path / "whole", tmp_path / "tiny"
    configs = {(label, "CUB"): configured("tiny", row, {}) for label, row in method_rows("tiny").items()}
    put(configs[FROZEN, "CUB"], whole, scored(0.7, 0.7))
    for seed in (0, 1):
        put(configs[BEST, "CUB"].replace(seed=seed), whole, scored(0.6, 0.8))
    copy_light(whole, results)
    seeds = seeds_by_row("tiny", configs, [0, 1], {})
    done = compare.carry_out(configs, seeds, data=None, results=results, notebook="table1", progress=False)
    assert done.cells == [(FROZEN, "CUB"), (BEST, "CUB"), (BEST, "CUB")] and all(each.light for each in done.runs)
    (line,) = done.left_out
    assert line.startswith("Not run: ") and line.endswith(" --seeds 0,1")
    assert "./run_all.sh --profile tiny --data DIR --only table1" in line
    assert f"{FULL} (seed 0); {FULL} (seed 1)" in line and f"{CLOSED};" in line and BEST not in line
    best = with_last_epoch(done.runs)[-1].metrics
    assert (best["R@1"], best["R@1 (last epoch)"]) == (0.8, 0.6)
    table = compare.ours(done, ["CUB R@1", "CUB MAP@R released"], FROZEN)
    assert table.loc[BEST, ("CUB R@1", "ours")] == pytest.approx(80)


def test_only_the_rows_of_the_question_have_several_seeds_in_tiny():
    configs = {label: configured("tiny", row, {}) for label, row in method_rows("tiny").items()}
    found = seeds_by_row("tiny", configs, [0, 1, 2, 3, 4], {})
    assert {label: seeds for label, seeds in found.items() if len(seeds) > 1} == {
        BEST: [0, 1, 2, 3, 4], **{label: [0, 1, 2] for label in SEEDED if label != BEST},
    }  # fmt: skip
    assert len(SEEDED) == 6 and all(seeds[:1] == [0] for seeds in found.values())
    assert seeds_by_row("tiny", {"a": configs[BEST]}, [0, 1], {}) == {"a": [0, 1]}
    assert seeds_by_row("demo", {"a": configs[BEST]}, [0, 1, 2], {}) == {"a": [0, 1, 2]}


def winners(results) -> dict[str, float]:
    """Return the best rate of every row whose search is complete."""
    table = rate_search.table(results)
    return table.loc[table["best"] == "yes", "lr"].to_dict()


def test_the_search_continues_at_an_edge_and_the_best_trial_wins(tmp_path, monkeypatch):
    monkeypatch.setitem(methods.RATES, "tiny", {})
    found = rate_search.rows()
    assert "BitFit" in found and CLOSED not in found
    monkeypatch.setattr(rate_search, "rows", lambda: {name: found[name] for name in ("BitFit", "VPT")})
    row = rate_search.rows()["BitFit"]

    def tried(lr, value):
        epoch = {"epoch": 3, "R@1": 0.9, "MAP@R": 0.9, "validation R@1": 0.9, "validation MAP@R": value}
        put(rate_search.trial(row, lr), tmp_path, [epoch])

    for lr, value in zip(rate_search.GRID[:3], (0.4, 0.5, 0.6), strict=True):
        tried(lr, value)
    assert winners(tmp_path) == {} and "BitFit (0.005)" in rate_search.incomplete(tmp_path)
    tried(0.08, 0.7)
    assert winners(tmp_path) == {}, "the best rate is at an edge, so 0.32 is tried next"
    tried(0.32, 0.65)
    assert winners(tmp_path) == {"BitFit": 0.08}
    table = rate_search.table(tmp_path)
    assert list(table["lr"]) == [0.08, 0.32, 0.02, 0.005, 0.00125] and list(table["best"]) == ["yes", "", "", "", ""]
    assert table["validation MAP@R"].iloc[0] == pytest.approx(70) and set(table.index) == {"BitFit"}
    assert "BitFit" not in rate_search.incomplete(tmp_path)
    assert "not in vptsp_core/paper/methods.py yet: BitFit 0.08" in rate_search.summary(tmp_path)
    monkeypatch.setitem(methods.RATES, "tiny", {"BitFit": {"lr": 0.005}})
    assert "failed" not in rate_search.summary(tmp_path), "there is no run of all epochs with 0.08"
    put(rate_search.whole_run(row, 0.08), tmp_path, scored(0.7, 0.7))
    assert "failed the check of docs/tiny.md in the run of all epochs: BitFit 0.08" in rate_search.summary(tmp_path)
    assert rate_search.search("BitFit", results=tmp_path) == 0.08  # trains nothing


def test_rates_come_from_the_committed_trials():
    """The run of all epochs decides whether a found rate is entered in `RATES`. Until then the summary lists it."""
    results = CHECKOUT / "results" / "tiny"
    summary = rate_search.summary(results)
    for name, lr in winners(results).items():
        taken = methods.RATES["tiny"].get(name, {}).get("lr", methods.base_config("tiny").lr)
        run, kept = (run_folder(methods.base_config("tiny", **rate_search.rows()[name], lr=each), results)
                     for each in (lr, taken))  # fmt: skip
        if taken != lr and run.exists():
            final, usual = (read_run(folder).history["loss"].iloc[-1] for folder in (run, kept))
            assert final > usual and f"{name} {lr:g}" in summary.split("that failed the check")[1]
        elif taken != lr:
            assert f"{name} {lr:g}" in summary.split("not in vptsp_core")[1]


def test_the_profile_has_its_notebooks_and_its_page_no_photographs(tmp_path):
    assert {path.stem for path in discover(profile="tiny")} == set(TINY)
    assert [path.stem for path in discover(["tour"], profile="tiny")] == ["tour"]
    with pytest.raises(VptspError, match="of the profile tiny begins with 'table2'"):
        discover(["table2"], profile="tiny")
    figures = tmp_path / "tiny" / "figures"
    figures.mkdir(parents=True)
    for name in ("tour_images", "explore_map"):
        (figures / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    text = build(tmp_path, "tiny").read_text()
    assert "tour_images" not in text and "explore_map" not in text and "data:image/" not in text
    assert "No photographs are shown" in text and "--only tour,explore" in text


def test_git_keeps_light_runs_and_neither_weights_nor_photographs():
    kept = [f"runs/cub200-vpt-0/{name}" for name in ("config.json", METRICS, "history.csv", "record.json", QUERIES)]
    kept += ["index.html", "tables/table1_peft_methods_search.csv", "figures/fig3_ablations.png"]
    kept += ["notebooks/table4_components.html", "manifests/table4_components.json"]
    never = [f"runs/cub200-vpt-0/{name}" for name in (WEIGHTS, "checkpoint.pt", "lock", "embedder.safetensors")]
    never += [f"{place}/{name}" for name in WITH_PHOTOGRAPHS for place in ("figures", "notebooks")]
    never += ["figures/tour_images.png", "notebooks/explore.html", "notebooks/table4_components.ipynb"]
    names = [f"results/tiny/{name}" for name in (*kept, *never)]
    asked = subprocess.run(["git", "check-ignore", *names], cwd=CHECKOUT, capture_output=True, text=True)
    if asked.returncode == 128:
        pytest.skip("no git repository here")
    assert asked.stdout.split() == [f"results/tiny/{name}" for name in never]


def made_trials(values):
    """Return trials by rate whose held-out (MAP@R, R@1) are these."""
    rows = {rate: {"validation MAP@R": m, "validation R@1": r} for rate, (m, r) in values.items()}
    return {rate: SimpleNamespace(history=pd.DataFrame([row])) for rate, row in rows.items()}


def test_the_search_goes_on_below_its_lowest_rate_and_equal_map_is_decided_by_recall():
    falling = made_trials(dict(zip(rate_search.GRID, [(0.9, 0.5), (0.5, 0.5), (0.4, 0.5), (0.3, 0.5)], strict=True)))
    assert rate_search._still_to_try(falling) == [0.0003125]
    assert rate_search.best_rate(made_trials({0.1: (0.5, 0.8), 0.2: (0.5, 0.9), 0.3: (0.5, 0.7)})) == 0.2


def test_a_light_copy_that_fails_midway_is_no_finished_run(tmp_path, monkeypatch):
    put(vptsp_core.preset("smoke"), tmp_path / "from", scored(0.5, 0.5))
    real, left = light.write_bytes, [2]

    def full(path, content):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("full")
        real(path, content)

    monkeypatch.setattr(light, "write_bytes", full)
    with pytest.raises(OSError, match="full"):
        copy_light(tmp_path / "from", tmp_path / "to")
    assert not list((tmp_path / "to").rglob(METRICS))
