"""The results page and the HTML of executed notebooks, from a made-up results folder."""

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from vptsp_core.__main__ import main
from vptsp_core.errors import VptspError
from vptsp_core.figures import style
from vptsp_core.method.presets import preset
from vptsp_core.paper import report
from vptsp_core.publish import page
from vptsp_core.publish.facts import chapters
from vptsp_core.publish.html import small_png
from vptsp_core.publish.notebook import notebook_html
from vptsp_core.publish.parameters import FOLDER, discover, read
from vptsp_core.publish.tables import read_table, table_html

EVIL = "<script>alert('x')</script> & \"co\""


class Page(HTMLParser):
    """What a test asks of a page: its tags are balanced; tables as rows of text, links, ids, pictures, visible text."""

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
    cell = new_code_cell('profile = "demo"\nresults = "results"', metadata={"tags": ["parameters"]})
    code = new_code_cell(f'save("{name}_cosines")\nsave("{name}_a")')
    nbformat.write(new_notebook(cells=[*map(new_markdown_cell, markdown), cell, code]), folder / f"{name}.ipynb")


def record(commit: str, hashes: list[str], seconds: int) -> pd.DataFrame:
    facts = {
        "runs": len(hashes), "commit": commit, "device": "cpu, 2 threads", "seed": "0, 1", "data": "glyphs",
        "data checksum, test": "bc815d89f283b139", "epoch reported": "released", "run": ", ".join(hashes),
        "seconds of training and evaluation, all runs": seconds,
    }  # fmt: skip
    return pd.DataFrame({"value": list(map(str, facts.values()))}, index=pd.Index(list(facts), name="fact"))


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """Sources of five notebooks, and results of three of them: one whole, one broken, one failed."""
    sources, results = tmp_path / "sources", tmp_path / "my results"
    demo = results / "demo"
    sources.mkdir()
    source(sources, "table10_latency", "# Table 10: time")
    aside = "**What can be compared.** In the\nsecond cell."
    source(sources, "fig3_ablations", "# Figure 3", f"not this\n\n{aside}\n\nnor that", f"{aside[:26]} Nor here")
    source(sources, "tour", "# Tour")
    rest = "Rest of it.\n\n**What can be compared.** Little."
    source(sources, "table2_sota", f"# Table 2: {EVIL}\n\n**Claim** {EVIL}:\n\n- R@1 86.6\n\n{rest}")
    source(sources, "table4_components", "# Table 4\n\nClaim four.")
    columns = {
        ("R@1", "paper"): [86.6, 85.35, np.nan], ("R@1", "ours"): [61.7512, np.nan, 1 / 3],
        ("R@1", "±"): [0.4321, np.nan, np.nan], ("R@1", "difference"): [61.7512 - 86.6, np.nan, np.nan],
        ("R@1", "vs VPT"): ["≈ -1.2 [-2.0, 0.4]", "", ""], ("tunable, M", "paper"): [30.2, 0.19, np.nan],
        ("tunable, M", "ours"): [0.711456, 0.0191042, 0.0],
        ("tunable, M", "difference"): [-29.488544, -0.1708958, np.nan],
    }  # fmt: skip
    table = pd.DataFrame(columns, index=pd.Index(["VPT", EVIL, "both"], name="label"))
    report.save_table(table, demo, "table2_sota")
    proxies = {"own centroid": [-0.126586, 0.49199], "lr": [1e-4, 0.05], "parameters": [115200, 9504]}
    cosines = pd.DataFrame(proxies, index=["O", "P"])
    report.save_table(cosines, demo, "table2_sota_cosines")
    report.save_table(cosines[["lr"]], demo, "table2_sota_a")
    report.save_table(record("20d94c243a3a", ["aa1", "bb2"], 60), demo, "table2_sota_record")
    report.save_table(record("f00f00f00f00", ["bb2"], 40), demo, "table4_components_record")
    report.save_table(cosines, demo, "table20_other")  # of no notebook
    (demo / "tables" / "table4_components.csv").write_text('a,b\n1\n"2')
    figure = Figure(figsize=(6, 3))
    figure.subplots().plot([1, 2, 3])
    style.save_figure(figure, demo, "table2_sota", f"R@1, {EVIL}")
    (demo / "figures" / "table4_components_cars.png").write_bytes(b"no picture")
    error = new_output("error", ename="ValueError", evalue=f"first line\n{EVIL}", traceback=[])
    (demo / "notebooks").mkdir()
    broken = new_notebook(cells=[new_code_cell("1", outputs=[error])])
    nbformat.write(broken, demo / "notebooks" / "fig3_ablations.failed.ipynb")
    executed = new_notebook(
        cells=[new_markdown_cell("# Table 2"), new_code_cell("print(1)", outputs=[
            new_output("stream", text=report.absent_data(preset("demo").replace(dataset="cars"), None, "table2") + "\n")
        ])],
        metadata={"papermill": {"duration": 62.34}},
    )  # fmt: skip
    nbformat.write(executed, demo / "notebooks" / "table2_sota.ipynb")
    html = notebook_html(demo / "notebooks" / "table2_sota.ipynb", "table2_sota")
    (demo / "notebooks" / "table2_sota.html").write_text(html, encoding="utf-8")
    return sources, results


def without_network(shown: Page) -> None:
    """No script, and nothing that a browser would fetch by itself; links are for the reader."""
    tags = {tag for tag, _ in shown.attributes}
    assert not tags & {"script", "link", "iframe", "object", "embed", "base"}
    for tag, attributes in shown.attributes:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "data", "poster") or value.startswith("data:image/"), (tag, name)
    assert "@import" not in shown.style and "url(" not in shown.style


def test_page_shows_everything_and_links_only_what_is_there(folders):
    sources, results = folders
    path = page.build(results, "demo", sources)
    assert path == results.resolve() / "demo" / "index.html"
    assert not [each for each in path.parent.iterdir() if each.name.endswith(".tmp")]
    text, shown = path.read_text(encoding="utf-8"), Page(path)
    without_network(shown)
    order = ["table2_sota", "table4_components", "table10_latency", "fig3_ablations", "tour"]
    assert [each for each in shown.all("section", "id") if each] == order
    for link in shown.all("a", "href"):
        assert link[1:] in order if link.startswith("#") else (path.parent / link).is_file(), link
    linked = [link.removeprefix("tables/table2_sota") for link in shown.all("a", "href") if link.startswith("tables/t")]
    assert linked[:4] == [".csv", "_cosines.csv", "_a.csv", "_record.csv"]  # as the notebook names them
    assert {"notebooks/table2_sota.html", "figures/table2_sota.png"} <= set(shown.all("a", "href"))
    assert "table20_other" not in text and ".pdf" not in text
    assert EVIL in shown.words and shown.all("img", "alt") == [f"R@1, {EVIL}"]
    assert "Claim four." in shown.words and "not this" not in shown.words and "nor that" not in shown.words
    said = ("R@1 86.6", "What can be compared. Little.", "more about it", "Rest of it.")
    places = [shown.words.index(each) for each in said]
    assert places == sorted(places) and shown.words.count("Little.") == 1
    assert "What can be compared. In the second cell." in shown.words
    assert shown.words.count("Model selection: released.") == 2
    (picture,) = shown.all("img", "src")
    with Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2]))) as image:
        assert image.mode == "P" and image.size == (660, 330)  # 6 x 3 inches at 110 dpi


def test_overview_counts_shared_runs_once_where_it_can(folders):
    sources, results = folders
    shown = Page(page.build(results, "demo", sources))
    assert "2 of 5 notebooks ran, with 2 different training runs: 2 min" in shown.words  # 60 s + 40 s
    assert "runs that several notebooks share counted in each, on cpu, 2 threads." in shown.words
    facts = dict(next(table[1:] for table in shown.tables if table[0] == ["", "all notebooks"]))
    assert facts["commit"] == "20d94c243a3a, f00f00f00f00" and facts["seed"] == "0, 1"
    assert facts["data checksum, test"] == "bc815d89f283b139" and facts["epoch reported"] == "released"
    rows = {row[0]: row[1:] for row in shown.tables[0]}
    assert rows[f"Table 2: {EVIL}"] == ["run in part", "2", "62 s", "0, 1", "released"]
    assert rows["Figure 3"] == ["failed", "", "", "", ""] and rows["Tour"][0] == "not run"
    for name, seconds in (("aa1", 20.4), ("bb2", 39.8)):
        run = results / "demo" / "runs" / f"glyphs-vpt-{name}"
        run.mkdir(parents=True)
        (run / "record.json").write_text(f'{{"hash": "{name}", "seconds": {seconds}}}')
    (results / "demo" / "runs" / "other").mkdir()
    (results / "demo" / "runs" / "other" / "record.json").write_text("{")
    shown = Page(page.build(results, "demo", sources))
    assert "2 different training runs: 60 s of training and evaluation, on cpu" in shown.words


def test_what_is_missing_stands_there_with_its_command(folders):
    sources, results = folders
    shown = Page(page.build(results, "demo", sources))
    command = f"./run_all.sh --results '{results.resolve()}' --seeds 0,1 --only"
    assert f"table10_latency has not run: {command} table10" in shown.words
    assert f"tour has not run: {command} tour" in shown.words
    failed = f"fig3_ablations failed (ValueError: first line {EVIL}); see notebooks/fig3_ablations.failed.ipynb"
    assert failed in shown.words
    assert f"Again: {command} fig3" in shown.words
    get = "cars is not here (no folder was given). To get it: python -m vptsp_core data get cars --data DIR, and then:"
    assert f"{get} {command.replace('--only', '--data DIR --only')} table2" in shown.words
    listed = shown.words[shown.words.index("What is missing") : shown.words.index("How to read this")]
    assert "table4_components: table4_components.csv cannot be read" in listed and f"{command} table4)" in listed
    assert "table4_components_cars.png: not a readable picture" in shown.words


def test_a_notebook_without_any_run_is_said_to_have_run_without_data(tmp_path):
    sources, results = tmp_path / "sources", tmp_path / "out"
    sources.mkdir()
    folder = results / "paper" / "notebooks"
    folder.mkdir(parents=True)
    cars = report.absent_data(preset("cars196-vits16"), None, "table1")
    said = {
        "table1_a": [cars], "table2_d": ["Not run: all of it"], "table3_e": [cars], "table10_c": [],
        "table8_b": ["5 runs.", "Not run: DINO & co: no weights"],
    }  # fmt: skip
    for name, lines in said.items():
        source(sources, name, f"# {name}")
        outputs = [new_output("stream", text="\n".join(lines) + "\n")]
        nbformat.write(new_notebook(cells=[new_code_cell("1", outputs=outputs)]), tmp_path / "x.ipynb")
        (folder / f"{name}.html").write_text(notebook_html(tmp_path / "x.ipynb", name), encoding="utf-8")
        report.save_table(pd.DataFrame({"R@1, paper": [86.6]}), results / "paper", name)
    report.save_table(report.record_table([]), results / "paper", "table1_a_record")
    facts = record("20d94c243a3a", ["aa1"], 60)
    facts.loc["device"] = "cpu, 2 threads, cpu, 1 threads"
    report.save_table(facts, results / "paper", "table8_b_record")
    shown = Page(page.build(results, "paper", sources))
    text = (results / "paper" / "index.html").read_text(encoding="utf-8")
    assert text.count("<code>python -m vptsp_core data get cars196 --data DIR</code>") == 3
    assert "2 of 5 notebooks ran, with 1 different training runs: 60 s" in shown.words
    assert "on cpu, 2 threads; cpu, 1 threads. Ran without data: 2. Ran without runs: 1." in shown.words
    states = {row[0]: row[1] for row in shown.tables[0]}
    assert states["table1_a"] == "ran without data" and states["table8_b"] == "run in part"
    assert states["table10_c"] == "run"  # nothing missing: it needs no runs
    assert shown.words.count("Not run: DINO & co: no weights") == 2  # listed, and in its section
    assert shown.words.count(f"--data DIR --results {results.resolve()} --seeds 0,1 --only table1,table3") == 1
    assert shown.words.count("cars196 is not here") == 3  # once among what is missing, and in the two sections
    for part in ("table8_b", "table10_c"):
        (folder / f"{part}.html").unlink()
        [path.unlink() for path in (results / "paper" / "tables").glob(f"{part}*")]
    words = Page(page.build(results, "paper", sources)).words
    assert "0 of 5 notebooks ran" in words and "unknown" not in words


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
    """Every number of every CSV of the demo, against pandas."""
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


def test_wide_tables_are_cut_between_groups_and_scroll(tmp_path):
    def widths(names: list[str]) -> list[int]:
        sided = [f"{name}, {side}" for name in names for side in ("paper", "ours", "difference")]
        path = tmp_path / "a.csv"
        pd.DataFrame([[1.0] * len(sided)], columns=sided, index=pd.Index(["row"], name="label")).to_csv(path)
        html = table_html(read_table(path), "a")
        (tmp_path / "t.html").write_text(html, encoding="utf-8")
        tables = Page(tmp_path / "t.html").tables
        assert html.count('<div class="scroll"') == len(tables)
        return [len(table[-1]) for table in tables]

    assert widths([f"m{at}" for at in range(9)]) == [13, 13, 4]
    assert widths(["CUB a", "CUB b", "CUB c", "Cars a", "Cars b", "SOP a"]) == [10, 10]  # a data set stays together
    assert widths([f"CUB {at}" for at in range(5)]) == [13, 4]


def test_an_empty_folder_and_profile_paper_say_what_to_run(tmp_path, capsys):
    source(tmp_path, "table1_a", "# One")
    shown = Page(page.build(tmp_path / "none", "paper", tmp_path))
    command = f"./run_all.sh --profile paper --data DIR --results {(tmp_path / 'none').resolve()}"
    assert f"Nothing has run yet. To run everything: {command}" in shown.words
    assert f"{command} --only table1" in shown.words and "glyphs" not in shown.words
    with pytest.raises(VptspError, match="unknown profile 'big'"):
        page.build(tmp_path, "big", tmp_path)
    assert main(["report", "--results", str(tmp_path / "other"), "--profile", "smoke"]) == 0
    written = tmp_path / "other" / "smoke" / "index.html"
    assert capsys.readouterr().out.strip() == str(written.resolve())
    words = Page(written).words
    assert all(f"--only {part.only}" in words for part in chapters(written.parent, FOLDER))
    (tmp_path / "file").write_text("")
    assert main(["report", "--results", str(tmp_path / "file")]) == 2


def test_shortest_only_picks_exactly_one_notebook(tmp_path):
    for name in ("table1_a", "table10_b", "fig3_a", "fig3_b", "tour"):
        source(tmp_path, name, "# A")
    for part in chapters(tmp_path, tmp_path):
        assert [path.stem for path in discover([part.only], tmp_path)] == [part.name]


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
    cells = [new_markdown_cell("# Table 9: *how*\n\nText."), new_code_cell("value = 'code'  # why", outputs=outputs)]
    state = {"widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}}, "papermill": {"duration": 12.34}}
    path = tmp_path / "x.ipynb"
    nbformat.write(new_notebook(cells=cells, metadata=state), path)
    html = notebook_html(path, "table9_search")
    (tmp_path / "x.html").write_text(html, encoding="utf-8")
    shown = Page(tmp_path / "x.html")
    without_network(shown)
    assert "<title>Table 9: how</title>" in html and '<meta name="seconds" content="12.3">' in html
    assert shown.all("a", "href").count("../index.html#table9_search") == 2
    assert re.search(r"<details><summary>code</summary>.*value.*?</details>", html, re.DOTALL)
    assert "61.8" in shown.tables[0][-1][-1] or "61.7" in shown.tables[0][-1][-1]
    assert "a < b" in shown.words
    assert "a curve" in shown.all("img", "alt") and "400" in shown.all("img", "width")
    picture = base64.b64decode(shown.all("img", "src")[0].partition(",")[2])
    with Image.open(io.BytesIO(picture)) as image:
        assert image.mode == "P" and image.size == (800, 600)
    assert len(html) - sum(map(len, shown.all("img", "src"))) < 20_000


def test_small_png_keeps_the_picture(tmp_path):
    pixels = np.zeros((40, 60, 4), np.uint8)
    pixels[:, :30] = (0, 114, 178, 255)  # right half transparent: white on any page
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", dpi=(200, 200))
    small, _ = small_png(buffer.getvalue(), dpi=100)
    with Image.open(io.BytesIO(small)) as image:
        assert image.size == (30, 20)
        shown = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(shown[:, :14] - (0, 114, 178)).max() <= 3 and np.abs(shown[:, 16:] - 255).max() <= 3
    with Image.open(io.BytesIO(small_png(buffer.getvalue(), width=1000)[0])) as image:
        assert image.size == (60, 40)  # never enlarged


def test_our_notebooks_need_no_formula_renderer():
    """Pages have no script, so LaTeX would stand there as it is written."""
    for path in discover():
        for cell in read(path).cells:
            if cell.cell_type == "markdown":
                assert not re.search(r"\$[^$\n]+\$|\\\(|\\\[|\\begin", cell.source), f"{path.name}: {cell.source[:60]}"


@pytest.mark.parametrize("content", ["", "\n", "\n\n", "a,b\n1\n"])
def test_what_is_no_table_is_named(tmp_path, content):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(VptspError, match=r"t\.csv is no table: .*run its notebook again"):
        read_table(tmp_path / "t.csv")
