"""The results page and the HTML of executed notebooks, from invented results."""

import base64
import contextlib
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vptsp_core.__main__ import main
from vptsp_core.errors import VptspError
from vptsp_core.method.presets import preset
from vptsp_core.paper import report
from vptsp_core.paper.absent import absent_data
from vptsp_core.paper.report import CHANGED
from vptsp_core.publish import page
from vptsp_core.publish.html import notebook_html
from vptsp_core.publish.manifest import Manifest
from vptsp_core.publish.parameters import FOLDER, discover
from vptsp_core.publish.session import Session
from vptsp_core.publish.tables import read_table, table_html

EVIL = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """A parsed page with balanced tags: its tables as rows of text, its attributes, its visible text."""

    VOID = {"meta", "img", "br", "hr", "input", "link"}

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tables, self.attributes, self.text = [], [], [], []
        self.style = ""
        self.feed(path.read_text(encoding="utf-8"))
        assert not self.open
        self.words = " ".join("".join(self.text).split())

    def all(self, tag: str, key: str) -> list[str]:
        return [attributes[key] for name, attributes in self.attributes if name == tag and key in attributes]

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1] += [""] * int(dict(attrs).get("colspan", 1))

    def handle_endtag(self, tag):
        assert tag in self.VOID or self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            self.style += data
        else:
            self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data


def source(folder: Path, name: str, *markdown: str) -> None:
    """Write a notebook. A Markdown cell that begins with "**What can be compared" gets the tag for it."""
    cells = [new_markdown_cell(text) for text in markdown]
    for cell in cells:
        cell.metadata["tags"] = ["compared"] * cell.source.startswith("**What can be compared")
    reads = 'profile = "demo"\nresults = "results"\ndata = None\nseeds = [0]'
    code = new_code_cell(reads, metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[*cells, code]), folder / f"{name}.ipynb")


def made_run(results: Path, name: str, seed: int, seconds: float, commit: str = "20d94c243a3a") -> Any:
    """Return what a notebook's record needs of a run."""
    record = {
        "hash": name, "seconds": seconds, "commit": commit, "versions": {"torch": "2"}, "device": "cpu, 2 threads",
        "weights": "w", "data": {"name": "glyphs", "train": "t", "test": "bc815d89f283b139"},
    }  # fmt: skip
    config = SimpleNamespace(seed=seed, backbone="vit", weights="w", epochs=1, selection="released")
    path = results / "demo" / "runs" / f"glyphs-vpt-{name}"
    path.mkdir(parents=True, exist_ok=True)
    (path / "metrics.json").write_text("{}")
    return SimpleNamespace(path=path, record=record, config=config)


@pytest.fixture
def folders(made_once, tmp_path) -> tuple[Path, Path]:
    """Return copies of the sources and of the results."""
    sources, results = made_once
    return shutil.copytree(sources, tmp_path / sources.name), shutil.copytree(results, tmp_path / results.name)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory) -> tuple[Path, Path]:
    """Return sources of five notebooks, and results of three: one complete, one broken, one failed."""
    folder = tmp_path_factory.mktemp("page")
    sources, results = folder / "sources", folder / "my results"
    demo = results / "demo"
    sources.mkdir()
    source(sources, "table10_latency", "# Table 10: time")
    aside = "**What can be compared.** In the\nsecond cell."
    source(sources, "fig3_ablations", "# Figure 3", "more", aside)
    source(sources, "tour", "# Tour")
    rest = ("Rest of it.", "**What can be compared.** Little.")
    source(sources, "table2_sota", f"# Table 2: {EVIL}\n\n**Claim** {EVIL}:\n\n- R@1 86.6", *rest)
    source(sources, "table4_components", "# Table 4\n\nClaim four.")
    columns = {
        ("R@1", "paper"): [86.6, 85.35, np.nan], ("R@1", "ours"): [61.7512, np.nan, 1 / 3],
        ("R@1", "±"): [0.4321, np.nan, np.nan], ("R@1", "difference"): [61.7512 - 86.6, np.nan, np.nan],
        ("R@1", "vs VPT"): ["≈ -1.2 [-2.0, 0.4]", "", ""], ("tunable, M", "paper"): [30.2, 0.19, np.nan],
        ("tunable, M", "ours"): [0.711456, 0.0191042, 0.0],
        ("tunable, M", "difference"): [-29.488544, -0.1708958, np.nan],
    }  # fmt: skip
    table = pd.DataFrame(columns, index=pd.Index(["VPT", EVIL, "both"], name="label"))
    proxies = {"own centroid": [-0.126586, 0.49199], "lr": [1e-4, 0.05], "parameters": [115200, 9504]}
    cosines = pd.DataFrame(proxies, index=["O", "P"])
    session = Session("table2_sota", "demo", str(results))
    session.save_table(table)
    session.save_table(cosines, "cosines")
    session.save_table(cosines[["lr"]], "a")
    report.save_table(cosines, demo, "table2_sota_older")  # of an older version of the notebook
    drawn = Figure(figsize=(6, 3))
    drawn.subplots().plot([1, 2, 3])
    session.save_figure(drawn, f"R@1, {EVIL}")
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        session.absent(preset("demo").replace(dataset="cars"))
        session.missing("", "Not run: DINO & co: no weights")
    assert printed.getvalue().count("\n") == 2
    session.finish([made_run(results, "aa1", 0, 20.4), made_run(results, "bb2", 1, 39.8)])
    other = Session("table4_components", "demo", str(results))
    other.save_table(cosines)
    other.save_figure(drawn, "cars", "cars")
    other.finish([made_run(results, "bb2", 1, 39.8, "f00f00f00f00")])
    (demo / "tables" / "table4_components.csv").write_text('a,b\n1\n"2')
    (demo / "figures" / "table4_components_cars.png").write_bytes(b"no picture")
    Manifest(failure=f"ValueError: first line {EVIL}").write(demo, "fig3_ablations")
    executed = new_notebook(cells=[new_markdown_cell("# Table 2"), new_code_cell("print(1)")])
    (demo / "notebooks").mkdir()
    nbformat.write(executed, demo / "notebooks" / "table2_sota.ipynb")
    html = notebook_html(demo / "notebooks" / "table2_sota.ipynb", "table2_sota")
    (demo / "notebooks" / "table2_sota.html").write_text(html, encoding="utf-8")
    Manifest.read(demo, "table2_sota").close(demo, "table2_sota", "made from", 62.34)
    return sources, results


def without_network(shown: Page) -> None:
    """Check that the page has no script and nothing that a browser would fetch by itself, except links."""
    tags = {tag for tag, _ in shown.attributes}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in shown.attributes:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "poster") or value.startswith("data:image/"), (tag, name)
    assert "@import" not in shown.style and "url(" not in shown.style


def test_the_answers_come_first_where_the_data_are_the_papers():
    names = ["fig3_ablations", "table10_latency", "table2_sota", "tour", "what_holds", "why_behind"]
    last = ["table2_sota", "table10_latency", "fig3_ablations", "tour"]
    for profile, order in (("tiny", names[4:] + last), ("paper", names[4:] + last), ("demo", last + names[4:])):
        assert sorted(names, key=lambda name: page._order(profile, Path(name))) == order


def test_page_shows_everything_and_links_only_existing_files(folders):
    sources, results = folders
    path = page.build(results, "demo", sources)
    assert path == results.resolve() / "demo" / "index.html"
    text, shown = path.read_text(encoding="utf-8"), Page(path)
    without_network(shown)
    order = ["table2_sota", "table4_components", "table10_latency", "fig3_ablations", "tour"]
    assert [each for each in shown.all("section", "id") if each] == order
    for link in shown.all("a", "href"):
        assert link[1:] in order if link.startswith("#") else (path.parent / link).is_file(), link
    linked = [link.removeprefix("tables/table2_sota") for link in shown.all("a", "href") if link.startswith("tables/t")]
    assert linked[:4] == [".csv", "_cosines.csv", "_a.csv", "_record.csv"]  # in the order of the notebook
    assert {"notebooks/table2_sota.html", "figures/table2_sota.png"} <= set(shown.all("a", "href"))
    assert "table2_sota_older" not in text and ".pdf" not in text and text.count("<script") == 0
    assert EVIL in shown.words and shown.all("img", "alt") == [f"R@1, {EVIL}"]
    said = ("R@1 86.6", "What can be compared. Little.", "more about this notebook", "Rest of it.", "Claim four.")
    places = [shown.words.index(each) for each in said]
    assert places == sorted(places) and shown.words.count("Little.") == 1
    assert "What can be compared. In the second cell." in shown.words
    assert shown.words.count("Model selection: released.") == 2
    (picture,) = shown.all("img", "src")
    embedded, stored = io.BytesIO(base64.b64decode(picture.partition(",")[2])), path.parent / "figures/table2_sota.png"
    assert Image.open(embedded).convert("RGBA").tobytes() == Image.open(stored).convert("RGBA").tobytes()  # all pixels
    assert (shown.all("img", "width"), shown.all("img", "height")) == (["600"], ["300"])  # 6 x 3 inches


def test_overview_counts_a_run_that_two_notebooks_share_once(folders):
    sources, results = folders
    shown = Page(page.build(results, "demo", sources))
    assert "2 of 5 notebooks ran, with 2 different training runs. These took 1 min 0 s of training and" in shown.words
    assert "on cpu, 2 threads." in shown.words
    facts = dict(next(table[1:] for table in shown.tables if table[0] == ["", "all notebooks"]))
    assert facts["commit"] == "20d94c243a3a, f00f00f00f00" and facts["seed"] == "0, 1"
    assert facts["data checksum, test"] == "bc815d89f283b139" and facts["epoch reported"] == "released"
    rows = {row[0]: row[1:] for row in shown.tables[0]}
    assert rows[f"Table 2: {EVIL}"] == ["run in part", "2", "1 min 2 s", "0, 1", "released"]
    assert rows["Figure 3"] == ["failed", "", "", "", ""] and rows["Tour"][0] == "not run"


def test_the_command_of_a_chapter_repeats_what_was_changed(folders):
    sources, results = folders
    path = results / "demo" / "manifests" / "table2_sota.json"
    manifest = json.loads(path.read_text())
    manifest["record"][CHANGED] = ["alpha=0.2", "weights=my file.npz"]
    manifest["seeds"] = [0, 1, 2]  # seed 2 has no finished run
    path.write_text(json.dumps(manifest))
    shown = Page(page.build(results, "demo", sources))
    assert "--seeds 0,1,2 --set alpha=0.2 --set 'weights=my file.npz' --only table2" in shown.words
    facts = dict(next(table[1:] for table in shown.tables if table[0] == ["", "all notebooks"]))
    assert CHANGED not in facts, "the other notebooks have no such changes"


def test_what_is_missing_is_listed_with_its_command(folders):
    sources, results = folders
    shown = Page(page.build(results, "demo", sources))
    command = f"./run_all.sh --results '{results.resolve()}' --seeds 0,1 --only"
    assert f"table10_latency has not run: {command} table10" in shown.words
    failed = f"fig3_ablations failed (ValueError: first line {EVIL}); see notebooks/fig3_ablations.failed.ipynb"
    assert f"{failed}. Again: {command} fig3" in shown.words
    get = "To get it: python -m vptsp_core data get cars --data DIR. Then run:"
    assert shown.words.count(f"{get} {command.replace('--only', '--data DIR --only')} table2") == 2
    assert shown.words.count(f"cars is not here. {get}") == 1  # the list; table 2 adds why
    assert shown.words.count(f"No runs: cars is not here (no folder was given). {get}") == 1
    noted = json.loads((results / "demo" / "manifests" / "table2_sota.json").read_text())["missing"]
    assert noted[0] == {
        "text": "No runs: cars is not here (no folder was given)", "dataset": "cars",
        "command": "python -m vptsp_core data get cars --data DIR",
    }  # fmt: skip
    listed = shown.words[shown.words.index("What is missing") : shown.words.index("How to read this")]
    assert f"table2_sota: Not run: DINO & co: no weights. Again: {command} table2" in listed
    assert "table4_components: table4_components.csv is an invalid table" in listed and f"{command} table4)" in listed
    assert "table4_components_cars.png is not a readable picture" in listed
    (results / "demo" / "manifests" / "table2_sota.json").write_text('{"tables": 3, "other": 1}')
    with pytest.raises(VptspError, match=r"table2_sota\.json cannot be read .*; delete it and run its notebook again"):
        page.build(results, "demo", sources)


def test_notebooks_that_lack_the_same_data_set_are_named_together(tmp_path, capsys):
    for name in ("table1_a", "table3_e", "table2_d", "table10_c"):
        source(tmp_path, name, f"# {name}")
        session = Session(name, "paper", str(tmp_path / "out"))
        session.save_table(pd.DataFrame({"R@1, paper": [86.6]}))
        if name in ("table1_a", "table3_e"):
            assert session.absent(preset("cars196-vits16")).startswith("No runs: cars196 is not here")
            session.missing("No maps", absent=absent_data(preset("cars196-vits16"), None, name, tmp_path / "out"))
        session.missing("Not run: all of it" if name == "table2_d" else "")
        session.finish()
    shown = Page(page.build(tmp_path / "out", "paper", tmp_path))
    assert "1 of 4 notebooks ran, with 0 different training runs" in shown.words
    assert "Ran without data: 2. Ran without runs: 1." in shown.words
    states = {row[0]: row[1] for row in shown.tables[0][1:]}
    assert list(states.values()) == ["ran without data", "ran without runs", "ran without data", "run"]
    assert shown.words.count(f"--data DIR --results {(tmp_path / 'out').resolve()} --only table1,table3") == 1
    assert shown.words.count("cars196 is not here") == 3  # once in the list, and in the two sections
    assert shown.words.count("No maps. To get it: python -m vptsp_core data get cars196 --data DIR.") == 2


def test_changes_and_seeds_are_in_the_command_for_missing_data_and_in_the_record(tmp_path, monkeypatch, capsys):
    shell = SimpleNamespace(user_ns={"In": [], "changes": {"epochs": 2, "weights": "my file.npz"}, "seeds": [0, 1]})
    monkeypatch.setattr("IPython.core.getipython.get_ipython", lambda: shell)
    session = Session("table10_a", "paper", str(tmp_path))
    command = "--only table10 --seeds 0,1 --set epochs=2 --set 'weights=my file.npz' --results "
    assert command in session.absent(preset("cars196-vits16"))
    session.plan({("row", "Cars"): preset("cars196-vits16")}, [0, 1])
    session.carry_out()
    assert "--set 'weights=my file.npz'" in capsys.readouterr().out
    session.finish(facts=report.fact_table({"device": ["cpu"]}))
    changed = ["epochs=2", "weights=my file.npz"]
    kept = Manifest.read(tmp_path / "paper", "table10_a")
    assert kept.record == {CHANGED: changed, "device": ["cpu"]} and kept.seeds == [0, 1]
    record = pd.read_csv(tmp_path / "paper" / "tables" / "table10_a_record.csv", index_col="fact")["value"]
    assert record.to_dict() == {CHANGED: ", ".join(changed), "device": "cpu"}


def test_tables_hold_the_numbers_of_the_files(folders):
    sources, results = folders
    shown = Page(page.build(results, "demo", sources))
    two = next(table for table in shown.tables if table[0][1:2] == [""] and "R@1" in table[0])
    assert two[0] == ["", "", "", "", "", "R@1", "", "", "tunable, M"]  # the text in the last of the columns it spans
    assert two[1] == ["paper", "ours", "±", "difference", "vs VPT", "paper", "ours", "difference"]
    assert two[2] == ["VPT", "86.60", "61.75", "0.43", "−24.85", "≈ -1.2 [-2.0, 0.4]", "30.2", "0.711", "−29.5"]
    assert two[3] == [EVIL, "85.35", "", "", "", "", "0.19", "0.0191", "−0.171"]
    assert two[4] == ["both", "", "0.33", "", "", "", "", "0", ""]
    own = next(table for table in shown.tables if "own centroid" in table[0])
    assert own[0] == ["", "own centroid", "lr", "parameters"]
    assert own[1:] == [["O", "−0.127", "0.000100", "115,200"], ["P", "0.492", "0.0500", "9,504"]]


def test_the_committed_demo_reads_back_within_rounding(tmp_path):
    """Compare every number of every CSV of the demo with pandas."""
    seen = 0
    for path in sorted((page.CHECKOUT / "results" / "demo" / "tables").glob("*.csv")):
        if path.stem.endswith("_record"):
            continue
        columns = read_table(path)
        (tmp_path / "t.html").write_text(table_html(columns, "t"), encoding="utf-8")
        tables = Page(tmp_path / "t.html").tables
        bodies = [[row for row in table if len(row) == len(table[-1])][-len(columns[0].cells) :] for table in tables]
        cells = [sum((body[at][1:] for body in bodies), []) for at in range(len(columns[0].cells))]
        truth = pd.read_csv(path, index_col=0)
        for row, (_, values) in zip(cells, truth.iterrows(), strict=True):
            assert len(row) == len(values)
            for text, value in zip(row, values, strict=True):
                if isinstance(value, str):
                    assert text == value
                elif np.isnan(value):
                    assert text == ""
                else:
                    seen += 1
                    assert float(text.replace("−", "-").replace(",", "")) == pytest.approx(value, rel=0.006, abs=0.051)
    assert seen > 20


def test_only_long_names_of_rows_wrap(tmp_path):
    path = tmp_path / "a.csv"
    pd.DataFrame({"R@1": [1.0, 2.0]}, index=pd.Index(["n" * 30, "n" * 31], name="label")).to_csv(path)
    html = table_html(read_table(path), "a")
    assert f'<th scope="row">{"n" * 30}</th>' in html and f'<th scope="row" class="long">{"n" * 31}</th>' in html


def test_wide_tables_are_cut_between_groups_and_scroll(tmp_path):
    def widths(names: list[str]) -> list[int]:
        sided = [f"{name}, {side}" for name in names for side in ("paper", "ours", "corrected")]
        path = tmp_path / "a.csv"
        pd.DataFrame([[1.0] * len(sided)], columns=sided, index=pd.Index(["row"], name="label")).to_csv(path)
        html = table_html(read_table(path), "a")
        (tmp_path / "t.html").write_text(html, encoding="utf-8")
        tables = Page(tmp_path / "t.html").tables
        assert html.count('<div class="scroll"') == len(tables)
        return [len(table[-1]) for table in tables]

    assert widths([f"m{at}" for at in range(9)]) == [13, 13, 4]
    assert widths(["CUB a", "CUB b", "CUB c", "Cars a", "Cars b", "SOP a"]) == [10, 10]  # a data set is not cut
    assert widths([f"CUB {at}" for at in range(5)]) == [13, 4]


def test_an_empty_folder_and_profile_paper_say_what_to_run(tmp_path, capsys):
    source(tmp_path, "table1_a", "# One")
    shown = Page(page.build(tmp_path / "none", "paper", tmp_path))
    command = f"./run_all.sh --profile paper --data DIR --results {(tmp_path / 'none').resolve()}"
    assert f"Nothing has run yet. To run everything: {command}" in shown.words
    assert f"{command} --only table1" in shown.words and "glyphs" not in shown.words
    page.build(tmp_path / "none", "paper")
    shown = (tmp_path / "none" / "paper" / "index.html").read_text()
    assert f"--profile paper --results {(tmp_path / 'none').resolve()} --only table10" in shown  # reads no data
    with pytest.raises(VptspError, match="profile = 'big' must be one of"):
        page.build(tmp_path, "big", tmp_path)
    other = ["report", "--results", str(tmp_path / "other"), "--profile", "smoke"]
    assert main(other) == 2 and not (tmp_path / "other").exists()
    assert f"--results: there is no folder {tmp_path / 'other'}; name" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    assert main(other) == 0
    written = tmp_path / "other" / "smoke" / "index.html"
    assert capsys.readouterr().out.strip() == str(written.resolve())
    words = Page(written).words
    assert all(f"--only {path.stem.split('_')[0]}" in words for path in discover(folder=FOLDER))


def test_notebook_page_needs_no_network_and_folds_code(tmp_path):
    figure = Figure(figsize=(4, 3), dpi=100)
    figure.subplots().plot([1, 2])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=200)
    png = base64.b64encode(buffer.getvalue()).decode()
    styled = report.styled(pd.DataFrame({"R@1": [61.75]}, index=["VPT"])).to_html()
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}, "text/plain": "bar"}
    outputs = [
        new_output("display_data", {"image/png": png}, metadata={"image/png": {"width": 400, "alt": "a curve"}}),
        new_output("display_data", {"text/html": styled}), new_output("display_data", widget),
        new_output("display_data", {"application/javascript": "alert(1)", "text/plain": "js"}),
        new_output("stream", text="a < b\n"), new_output("display_data", {"image/png": "bm90IGEgcG5n"}),
    ]  # fmt: skip
    cells = [new_markdown_cell("# Table 9: how\n\nText."), new_code_cell("value = 'code'  # why", outputs=outputs)]
    state = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}}
    path = tmp_path / "x.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=state), path)
    html = notebook_html(path, "table9_search")
    (tmp_path / "x.html").write_text(html, encoding="utf-8")
    shown = Page(tmp_path / "x.html")
    without_network(shown)
    assert "<title>Table 9: how</title>" in html
    assert shown.all("a", "href").count("../index.html#table9_search") == 2
    assert re.search(r"<details><summary>code</summary>.*value.*?</details>", html, re.DOTALL)
    assert "61.8" in shown.tables[0][-1][-1] or "61.7" in shown.tables[0][-1][-1]
    assert "a < b" in shown.words
    assert "a curve" in shown.all("img", "alt") and "400" in shown.all("img", "width")
    assert len(html) - sum(map(len, shown.all("img", "src"))) < 20_000


@pytest.mark.parametrize("content", ["", "\n\n", "a,b\n1\n"])
def test_an_invalid_table_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(VptspError, match=r"t\.csv is an invalid table .*run its notebook again"):
        read_table(tmp_path / "t.csv")
