"""Test README.md and docs/*.md: Python blocks run, shell blocks go through bash and the real parsers."""

import re
import shlex

import numpy as np
import pytest
from documents import PAGES, ROOT, blocks, called, calls_of, spans

import vptsp_core
from vptsp_core import __main__ as command_line
from vptsp_core.data.glyphs import GlyphSet
from vptsp_core.runs.significance import compare_paired

OPTIONAL = {"oml": "open-metric-learning"}  # imported by a block, in no requirement

SHELL = [
    pytest.param(code, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, code in enumerate(blocks(page, "sh", "sbatch"), 1)
]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page, tmp_path, monkeypatch, capsys):
    images = GlyphSet("test", images_per_class=1)
    for name, place in (("a", 0), ("b", 1), ("query", 1)):
        images.image(place).save(tmp_path / f"{name}.png")
    preset, short = vptsp_core.preset, {"epochs": 1, "steps_per_epoch": 2}
    monkeypatch.setattr(vptsp_core, "preset", lambda name, **changes: preset(name, **changes, **short))
    monkeypatch.setenv("VPTSP_RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(ROOT if page.name == "beyond_measured.md" else tmp_path)  # that page reads committed runs
    names: dict = {}
    for code in blocks(page, "python"):
        try:
            exec(code, names)
        except ModuleNotFoundError as error:
            if error.name not in OPTIONAL:
                raise
            pytest.skip(f"{OPTIONAL[error.name]} is not installed; the blocks before the one that imports it ran")
        if "triplet_losses" in names:  # docs/own_loop.md
            assert 0 < max(names["triplet_losses"]) < 2  # Proxy-Anchor, if the page's own loss were not called: 10
    if page.name == "beyond_measured.md":  # its table has what the block prints
        assert {names["labels"].count(label) for label in names["labels"]} == {1, 3}
        lora = compare_paired(names["runs"], names["labels"], "linear, proxies").loc["lora, proxies", "MAP@R"]
        assert "| ≈ {difference:+.2f} [{low:+.2f}, {high:+.2f}] |".format_map(lora) in page.read_text("utf-8")
    if page.name == "README.md":
        assert names["config"].dataset == "glyphs" and names["done"].path.is_relative_to(tmp_path / "results")
        assert names["embeddings"].shape == (1, names["config"].embed_dim)
        np.testing.assert_allclose(np.linalg.norm(names["embeddings"]), 1, rtol=1e-5)
        assert names["places"].tolist() == [[1]]  # the query is b.png
        np.testing.assert_allclose(names["scores"], 1, atol=1e-5)
        assert capsys.readouterr().out.startswith("0.")


@pytest.mark.parametrize("code", SHELL)
def test_shell_blocks_call_existing_commands(code, tmp_path, monkeypatch, capsys):
    calls = calls_of(code, tmp_path)
    assert calls, "calls nothing"
    for words in calls:
        if words in (["python", "-m", "ruff", "check", "."], ["python", "-m", "mypy", "vptsp_core"]):
            continue  # run_all.sh test
        if words[1:3] == ["-m", "pytest"]:
            continue
        called(monkeypatch, words)
        if words[1:4] == ["-m", "vptsp_core", "data"] and words[4] == "info":  # fast, and needs no data
            assert command_line.main(words[3:]) == 0 and capsys.readouterr().out


def test_every_slurm_script_requeues_itself():
    scripts = blocks(ROOT / "docs" / "clusters.md", "sbatch")
    assert len(scripts) == 3
    for script in scripts:
        assert script.startswith("#!/bin/bash\n#SBATCH ")  # Slurm reads options only before the first command
        assert "#SBATCH" not in script.split("CHECKOUT=")[1]
        assert "#SBATCH --requeue" in script and "#SBATCH --signal=B:USR1@" in script
        assert re.search(r"trap .*scontrol requeue.* USR1", script) and script.endswith("&\nwait $!\n")


def test_slurm_scripts_pass_on_what_slurm_sets(tmp_path, monkeypatch):
    one, two, many = blocks(ROOT / "docs" / "clusters.md", "sbatch")
    for number, script, wanted in ((1, one, "--standalone"), (2, two, "n1:29500")):
        (launched,) = [words for words in calls_of(script, tmp_path / str(number)) if words[0] == "torchrun"]
        assert wanted in launched and str(tmp_path / str(number) / "data") in launched
    workers = [words for words in calls_of(many, tmp_path / "3") if words[:2] == ["dask", "worker"]]
    assert workers and workers[0][2] == "tcp://n1:8786"


INLINE = sorted(
    {(page.name, span) for page in PAGES for span in spans(page.read_text("utf-8"))
     if span.startswith(("python -m vptsp_core ", "torchrun "))}
)  # fmt: skip


@pytest.mark.parametrize(("page", "span"), INLINE)
def test_commands_in_the_text_parse(page, span, monkeypatch):
    words = [word for word in shlex.split(span) if word != "..."]
    if words[-1] in ("-m", "vptsp_core") or "|" in span:
        pytest.skip("names a program or several choices")
    called(monkeypatch, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_paths_exist(page):
    text = page.read_text("utf-8")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert target.startswith("https://") or (page.parent / target).exists(), target
    for span in spans(text):
        if re.fullmatch(r"(vptsp_core|tests|docs|notebooks)/[\w./-]*", span):
            assert (ROOT / span).exists(), span
