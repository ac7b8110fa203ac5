"""All notebooks run in the profile smoke, in one kernel, and write the promised results."""

import functools
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch

from vptsp_core.figures.umap import umap_plane
from vptsp_core.method.lora import has_peft
from vptsp_core.paper import beyond
from vptsp_core.paper.claims import CLAIMS
from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.paper.methods import BEST, CLOSED, FROZEN, UNTRAINED, method_rows
from vptsp_core.paper.tables import DEMO_PRETRAINED, TABLES, paper_rows
from vptsp_core.publish.manifest import Manifest
from vptsp_core.publish.parameters import FOLDER
from vptsp_core.publish.plan import asked_runs
from vptsp_core.publish.runner import run_notebooks

NAMES = {
    2: "table2_sota", 3: "table3_inaturalist", 4: "table4_components", 5: "table5_proxy_source", 6: "table6_cub200",
    7: "table7_integration", 8: "table8_pretraining",
}  # fmt: skip
TABLES_ONLY = ("table1_peft_methods", *NAMES.values(), "table9_search", "beyond_paper")
PANELS = tuple(f"fig3_ablations_{panel}" for panel in SWEEPS)
FIGURES = {
    "tour": ["tour_images", "tour_map", "tour_method", "tour_retrieval", "tour_training"],
    "explore": [
        f"explore_{name}"
        for name in ("attention", "attention_images", "classes", "confusions", "map", "proxies", "retrieval")
    ],
    "fig3_ablations": sorted(["fig3_ablations", *PANELS]),
    "fig4_embedding_space": ["fig4_embedding_space", "fig4_embedding_space_gap", "fig4_embedding_space_test"],
    "table10_latency": ["table10_latency", "table10_latency_forms"],
    "what_holds": ["what_holds"],
    "why_behind": ["why_behind"],
}
FEW = 3  # images per class
SMALL = {"image_size": 24, "resize": 24}  # pixels: 10 tokens in place of 26
# A cell after the parameters. Without it, most of the time goes into images, pictures (a PDF takes half a second) and
# maps (UMAP compiles for 20 s). The last test of this file calls the real UMAP.
LESS_WORK = f"""import numpy as np
from matplotlib.figure import Figure

from vptsp_core.data.glyphs import load_glyphs
from vptsp_core.figures import style, umap

queries, neighbours, shown_classes, map_images, points = 2, 6, 2, 60, 60
load_glyphs.__defaults__ = ({FEW}, 40, 0)
if style.file_of.__name__ == "file_of":  # the first notebook of this kernel
    style.file_of.__kwdefaults__["dpi"] = 40

    def small(figure, kind="png", *, file_of=style.file_of, empty=Figure(), **more):
        return file_of(empty if kind == "pdf" else figure, kind, **more)

    style.file_of = small
umap.umap_plane = lambda vectors: np.ascontiguousarray(vectors[:, :2])"""


class Executed:
    """The results of the notebooks."""

    def __init__(self, folder):
        self.folder = folder

    def table(self, name: str) -> pd.DataFrame:
        return pd.read_csv(self.folder / "tables" / f"{name}.csv", index_col=0)

    def outputs(self, name: str) -> list:
        """Return the outputs of a notebook, after checking that they have no error, no widget and nothing on stderr."""
        notebook = nbformat.read(self.folder / "notebooks" / f"{name}.ipynb", as_version=4)
        found = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert not [output for output in found if output.output_type == "error" or output.get("name") == "stderr"]
        assert {kind for output in found for kind in output.get("data", {})} <= {"image/png", "text/html", "text/plain"}
        shown = (self.folder / "notebooks" / f"{name}.html").read_text("utf-8")
        assert len(shown) > 10_000 and not re.search(r"<(script|iframe)\b", shown)
        return found

    def figures(self, name: str) -> list[str]:
        """Return the names of a notebook's figures. Each exists as PNG and PDF and is shown once."""
        shown = sum("image/png" in output.get("data", {}) for output in self.outputs(name))
        found = sorted(path.stem for path in (self.folder / "figures").glob(f"{name}*.png"))
        assert shown == len(found)
        for each in found:
            assert (self.folder / "figures" / f"{each}.png").stat().st_size > 1_000
            assert (self.folder / "figures" / f"{each}.pdf").read_bytes()[:5] == b"%PDF-"
        return found


@pytest.fixture(scope="module")
def notebooks(tmp_path_factory):
    """Return copies of the notebooks that draw less."""
    folder = tmp_path_factory.mktemp("notebooks")
    for path in FOLDER.glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        tagged = ["parameters" in cell.metadata.get("tags", ()) for cell in notebook.cells]
        notebook.cells.insert(tagged.index(True) + 1, nbformat.v4.new_code_cell(LESS_WORK))
        nbformat.write(notebook, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def smoke(notebooks, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        results = tmp_path_factory.mktemp("results")
        status = run_notebooks("smoke", None, results, (), [0], notebooks, changes=SMALL)
    folder = results / "smoke"
    assert status == 0, [path.name for path in (folder / "notebooks").glob("*.failed.ipynb")]
    return Executed(folder)


@pytest.mark.parametrize("number", NAMES)
def test_tables_have_all_rows_of_the_paper_as_printed(smoke, number):
    found, paper = smoke.table(NAMES[number]), paper_rows(number)
    assert list(found.index[: len(paper)]) == list(paper["row"])
    for column in paper.columns.drop("row"):
        shown = column.replace("MAP@R", "MAP@R released")
        np.testing.assert_array_equal(found[f"{shown}, paper"][: len(paper)], paper[column])
        difference = found[f"{shown}, ours"] - found[f"{shown}, paper"]
        np.testing.assert_allclose(found[f"{shown}, difference"], difference)


@pytest.mark.parametrize("number", NAMES)
def test_ours_is_filled_only_for_the_data_set_that_the_glyphs_replace(smoke, number):
    found, cells = smoke.table(NAMES[number]), TABLES[number]("smoke")
    for column in [column for column in found if column.endswith(", ours") and "@" in column]:
        of_set = [row for row, name in cells if name == column.split(" ")[0]]
        assert sorted(found.index[found[column].notna()]) == sorted(of_set)
    for column in [column for column in found if "MAP@R released, ours" in column]:
        assert column.replace(" released", "") in found  # both definitions


@pytest.mark.parametrize(("number", "reference"), [(2, "VPTSP-G, ViT-S/16"), (4, "VPTSP (GRU) + BitFit"),
    (5, "VPTSP-G"), (6, "VPTSP, ViT-S/16"), (7, "GRU with ReLU"), (8, DEMO_PRETRAINED)])  # fmt: skip
def test_differences_have_intervals(smoke, number, reference):
    vs = smoke.table(NAMES[number])[f"CUB R@1, vs {reference}"].dropna()
    others = [row for row, _ in TABLES[number]("smoke") if row != reference]
    assert sorted(vs.index) == sorted(others)
    assert vs.str.fullmatch(r"(≈ )?[+-]\d+\.\d \[[+-]\d+\.\d, [+-]\d+\.\d\]").all(), list(vs)


def test_tables_show_their_figures_and_name_the_selection_and_the_record(smoke):
    assert smoke.figures("table9_search") == ["table9_search_history", "table9_search_importance"]
    for name in TABLES_ONLY[:-2]:
        assert smoke.figures(name) == [name]
        printed = "".join(output.get("text", "") for output in smoke.outputs(name))
        if name != "table1_peft_methods":
            assert "best epoch of each metric on the test set" in printed and "on the glyphs." in printed
    for name in TABLES_ONLY:
        facts = smoke.table(f"{name}_record")["value"]
        assert facts["seed"] == "0" and "," not in facts["data checksum, train"] and facts["weights checksum"]
        assert {"commit", "device", "torch version", "data checksum, test"} <= set(facts.index)


def test_a_dry_run_lists_the_runs_that_the_notebooks_make(smoke):
    for name in set(TABLES_ONLY) - {"table9_search"}:  # the trials of a search are made as it goes
        listed, _ = asked_runs(FOLDER / f"{name}.ipynb", {"profile": "smoke", "seeds": [0], "changes": SMALL})
        made = {run.hash for run in Manifest.read(smoke.folder, name).runs}
        assert {config.hash() for config in listed} == made


def test_the_manifest_names_all_results_and_a_second_call_executes_nothing(smoke, notebooks, capsys):
    manifest = json.loads((smoke.folder / "manifests" / "table2_sota.json").read_text())
    assert manifest["tables"] == ["table2_sota.csv"] and manifest["figures"] == ["table2_sota.png"]
    assert [run["hash"] for run in manifest["runs"]] == manifest["record"]["run"]
    assert all((smoke.folder / run["folder"] / "metrics.json").is_file() for run in manifest["runs"])
    assert manifest["missing"] == [] and manifest["failure"] == "" and manifest["seconds"] > 0
    before = {path: path.stat().st_mtime_ns for path in (smoke.folder / "notebooks").glob("table*.ipynb")}
    assert run_notebooks("smoke", None, smoke.folder.parent, ["table2", "table4"], [0], notebooks, changes=SMALL) == 0
    assert capsys.readouterr().out.count(" unchanged ") == 2
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
    order = found["tunable, M, ours"]
    assert order["Linear probing"] < order["VPT"] < order["VPTSP-M"] < order["VPTSP-G"] < order["Full fine-tuning (PA)"]


def test_beyond_the_paper_has_every_row_and_its_difference(smoke):
    found = smoke.table("beyond_paper")
    rows = beyond.rows("smoke")
    assert list(found.index) == list(rows)
    assert found[["CUB R@1, ours", "CUB MAP@R, ours"]].notna().all(axis=None)
    vs = found[f"CUB R@1, vs {beyond.REFERENCE}"]
    assert pd.isna(vs[beyond.REFERENCE]) and vs.drop(beyond.REFERENCE).str.contains(r"\[").all()
    printed = "".join(output.get("text", "") for output in smoke.outputs("beyond_paper"))
    assert "held-out training classes" in printed and ("peft is not installed" in printed) == (not has_peft())


@pytest.mark.parametrize("name", FIGURES)
def test_notebooks_with_several_figures_show_each_once(smoke, name):
    assert smoke.figures(name) == FIGURES[name]
    assert {"commit", "device", "torch version"} <= set(smoke.table(f"{name}_record").index)


def test_figure_3_has_both_points_of_every_panel_beside_the_papers(smoke):
    for panel, name in zip(SWEEPS, PANELS, strict=True):
        found = smoke.table(name)
        both = found[["R@1, ours", "MAP@R, ours", "MAP@R released, ours"]].notna().all(axis=1)
        assert both.sum() == 2
        assert found["R@1, paper"].notna().any() == (panel != "lambda")
        np.testing.assert_allclose(found["R@1, difference"], found["R@1, ours"] - found["R@1, paper"])
        assert sum(column.startswith("R@1, vs ") for column in found) == 1
    assert smoke.table("fig3_ablations")["ours"].notna().sum() == len(SWEEPS)


def test_figure_4_measures_all_three_proxies_at_three_moments(smoke):
    found = smoke.table("fig4_embedding_space_gap")
    assert list(found.index) == ["start, epoch 0", "midway, epoch 1", "end, epoch 2"]
    for kind in "OPQ":
        margin = found[f"{kind}, own centroid"] - found[f"{kind}, nearest other"]
        np.testing.assert_allclose(found[f"{kind}, margin"], margin, atol=1e-6)
    assert abs(found.loc["start, epoch 0", "P, own centroid"]) < 0.1  # random: unrelated to any class
    scores = smoke.table("fig4_embedding_space")
    untrained = ["Frozen backbone", "Closed form (whitened head, no training)"]
    assert list(scores.index) == [*untrained, "VPTSP-G + BitFit, midway", "VPTSP-G + BitFit, end"]
    assert scores["R@1, ours"].notna().all() and scores["R@1, paper"].notna().sum() == 1


def test_every_claim_of_a_table_has_a_verdict_and_every_run_its_time(smoke):
    found = smoke.table("what_holds")
    column = "difference of R@1"
    assert len(found) == len(CLAIMS) and set(found[f"{column}, the paper's order"]) <= {
        "holds",
        "does not hold",
        "undecided",
    }
    assert found[f"{column}, ours"].str.contains("[", regex=False).all() and set(found["seeds"]) == {"1, 1"}
    table1 = smoke.table("table1_peft_methods")["R@1, ours"]
    row = found.loc["VPTSP-G + BitFit > BitFit", f"{column}, ours"].removeprefix("≈ ")
    assert float(row.split(" ")[0]) == pytest.approx(table1["VPTSP-G + BitFit"] - table1["BitFit"], abs=0.051)
    against = smoke.table("what_holds_untrained")
    assert len(against) == 20 and f"R@1, vs {FROZEN}" in against and f"MAP@R released, vs {CLOSED}" in against
    assert len(smoke.table("what_holds_costs")) == 18 and len(smoke.table("what_holds_maxima")) == len(SWEEPS)


def test_the_first_steps_are_recorded_for_four_runs(smoke):
    found = smoke.table("why_behind")
    assert len(found) == 4 * 2 and {"loss", "other classes", "O", "P"} == set(found)  # steps 1 and 3
    assert found.loc[["VPT + BitFit, seed 0, step 1", "BitFit, seed 0, step 3"], "P"].isna().all()
    changed = smoke.table("why_behind_changed")["CUB R@1, ours"]
    assert len(changed) == 7 and changed.notna().all(), "no rows of AdamW, because the demo has it anyway"
    assert changed["BitFit"] == smoke.table("table1_peft_methods")["R@1, ours"]["BitFit"]


def test_table_10_times_every_cell(smoke):
    found = smoke.table("table10_latency")
    assert len(found) == 12 and (found["steps, ours"] == 2).all()
    assert found[["step, ms, paper", "step, ms, ours", "memory, MB, ours"]].notna().all(axis=None)
    np.testing.assert_allclose(found["step, %, difference"], found["step, %, ours"] - found["step, %, paper"])
    assert (found["step, ms 25 %, ours"] <= found["step, ms, ours"]).all()
    assert (found["step, ms, ours"] <= found["step, ms 75 %, ours"]).all()
    by_form = smoke.table("table10_latency_forms")
    assert list(by_form.index) == list(smoke.table("table10_latency").index) and set(by_form) == {"eager", "textbook"}
    np.testing.assert_allclose(by_form["eager"], found["step, ms, ours"])


def test_parameters_add_up_and_only_the_sample_tower_is_kept(smoke):
    sizes = smoke.table("tour_parameters")
    assert sizes["tunable parameters"].sum() == 207_072  # as the run's record has it
    kept = sizes[sizes["kept"] == "yes"]
    assert all("sample tower" in part or "backbone" in part for part in kept.index) and len(kept) == 3
    assert sizes.loc["prompts of all classes", "tunable parameters"] == 100 * 6 * 2 * 96


def test_selection_has_all_three_ways_and_validation_trained_on_fewer_classes(smoke):
    found = smoke.table("tour_selection")
    assert list(found.index) == ["released (best on the test set)", "last", "validation"]
    assert found["R@1"].notna().all() and found.loc["last", "R@1"] <= found["R@1"].iloc[0]
    facts = smoke.table("tour_record")["value"]
    assert facts["runs"] == "4" and facts["epoch reported"] == "released, validation"
    assert facts["training classes held out"] == "0, 20"


def test_the_tour_compares_its_best_row_with_the_paper(smoke):
    found = smoke.table("tour")
    assert list(found.index) == [FROZEN, CLOSED, BEST] and found["R@1, ours"].notna().all()
    assert found.loc[BEST, "R@1, paper"] == 86.6 and pd.isna(found.loc[FROZEN, "R@1, paper"])
    assert found.loc[BEST, "R@1, ours"] == smoke.table("tour_selection")["R@1"].iloc[0]


def test_classes_and_confusions_add_up_to_the_recorded_recall(smoke):
    recall = smoke.table("explore")["R@1, ours"]
    assert list(recall.index) == [BEST]
    classes, pairs = smoke.table("explore_classes"), smoke.table("explore_confusions")
    assert len(classes) == 100 and classes["queries"].sum() == 100 * FEW
    mean = (classes["R@1"] * classes["queries"]).sum() / classes["queries"].sum()
    assert mean == pytest.approx(recall[BEST], abs=0.2)
    assert (pairs["wrong"] == pairs["there"] + pairs["back"]).all() and pairs["wrong"].is_monotonic_decreasing
    printed = "".join(output.get("text", "") for output in smoke.outputs("explore"))
    assert f"R@1 {mean:.1f} %; its record says {recall[BEST]:.1f} %." in printed


def test_proxies_and_attention_have_numbers(smoke):
    whole, shares = smoke.table("explore_proxies"), smoke.table("explore_attention")
    assert list(whole.index) == ["O", "P", "Q"] and whole.notna().all(axis=None)
    assert len(shares) == 6 and (shares["prompts"] > 0).all()
    assert shares[["prompts", "class token", "patches"]].sum(axis=1).to_numpy() == pytest.approx(100, abs=1e-3)
    record = smoke.table("explore_record")["value"]
    assert record["runs"] == "1"
    assert record["changed (--set)"] == ", ".join(f"{key}={value}" for key, value in SMALL.items())


def test_umap_places_vectors_in_the_plane_and_keeps_the_threads_of_torch(monkeypatch):
    """Without numba's compilation, which takes 20 s, and with few epochs."""
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    import umap

    def fit_transform(self, vectors, fit=umap.UMAP.fit_transform):
        torch.set_num_threads(3)  # as compiled code of numba does
        return fit(self, vectors)

    monkeypatch.setattr(umap.UMAP, "fit_transform", fit_transform)
    monkeypatch.setattr(umap, "UMAP", functools.partial(umap.UMAP, n_epochs=10))
    vectors = np.repeat(np.eye(2, 8, dtype=np.float32), 10, axis=0)  # two groups
    vectors += 0.01 * np.random.default_rng(0).normal(size=vectors.shape).astype(np.float32)
    plane = umap_plane(vectors)
    assert plane.shape == (20, 2) and plane.dtype == np.float32 and np.isfinite(plane).all()
    np.testing.assert_array_equal(plane, umap_plane(vectors))
    assert torch.get_num_threads() == 1  # as in conftest.py
