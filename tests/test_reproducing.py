"""Compare docs/reproducing.md with the code: every switch exists, every row is the row that runs."""

import dataclasses
import re

import pytest
from documents import ROOT, parse_ours, spans

from vptsp_core import RunConfig, preset
from vptsp_core.__main__ import COMMANDS
from vptsp_core.method.presets import parse_change
from vptsp_core.paper.figure3 import SWEEPS
from vptsp_core.paper.methods import INTEGRATIONS, PROXY_SOURCES, method_rows
from vptsp_core.paper.tables import RATES
from vptsp_core.publish.parameters import discover

PAGE = ROOT / "docs" / "reproducing.md"
TEXT = PAGE.read_text("utf-8")
SWITCH = re.compile(r"[A-Za-z_]+=\S+( [A-Za-z_]+=\S+)*")


def values(span: str) -> dict:
    return dict(parse_change(word) for word in span.split())


def table(first: str) -> list[list[str]]:
    """Return the rows, as lists of cells, of the table whose first column has this heading."""
    (found,) = re.findall(rf"^\| {first} \|.*\n\|[-|]+\|\n((?:\|.*\|\n)+)", TEXT, re.M)
    return [[cell.strip() for cell in line.strip("|\n ").split(" | ")] for line in found.splitlines()]


SWITCHES = [span for span in spans(TEXT) if SWITCH.fullmatch(span)]
OPTIONS = [span for span in spans(TEXT) if span.split()[0] in COMMANDS and " --" in span]


@pytest.mark.parametrize("span", sorted(set(SWITCHES)))
def test_keys_and_values_are_those_of_a_run(span):
    given = values(span)
    config = preset("cub200-vits16", **given)
    assert all(getattr(config, key) == value for key, value in given.items())


@pytest.mark.parametrize("span", sorted(set(OPTIONS)))
def test_options_are_those_of_a_command(span, monkeypatch):
    parse_ours(monkeypatch, span.split())


def test_defaults_on_the_page_are_those_of_run_config():
    defaults = re.findall(r"`([a-zA-Z_]+=\S+)` \(default\)", TEXT)
    assert len(set(defaults)) > 12
    for span in defaults:
        ((key, value),) = values(span).items()
        assert getattr(RunConfig(), key) == value, span


def test_every_difference_has_its_four_sides():
    differences = table("point")
    assert len(differences) > 25
    for point, paper, released, ours, switch in differences:
        assert all((point, paper, released, ours))
        named = spans(switch)
        assert switch.startswith("none") or named, point
        assert all(SWITCH.fullmatch(span) or span in OPTIONS for span in named) or switch.startswith("none"), switch
    assert all(len(row) == 4 for row in table("table or figure"))


def test_every_key_that_selects_a_side_is_on_the_page():
    """A key of `RunConfig` whose values have names is a switch: the page has each value."""
    named = {(key, value) for span in SWITCHES for key, value in values(span).items()}
    for field in dataclasses.fields(RunConfig):
        if field.name in ("pool", "method", "optimizer"):  # rows and presets set these; paper and code agree
            continue
        for value in re.findall(r"'([a-z0-9_]+)'|\"([a-z0-9_]+)\"", str(field.type)):
            assert (field.name, "".join(value)) in named, (field.name, value)
    aliases = {"Accumulator": set(INTEGRATIONS.values()) | {"ema"}, "ProxySource": set(PROXY_SOURCES.values())}
    for key, wanted in (("accumulator", aliases["Accumulator"]), ("proxy_source", aliases["ProxySource"])):
        assert {value for name, value in named if name == key} == wanted


def test_rows_of_table_1_are_the_rows_that_are_run():
    written = {label.removesuffix(" (ours only)"): values(changes.strip("`")) for label, changes in table("row")}
    assert written == method_rows("paper")


def test_rates_and_panels_are_those_of_the_code():
    assert RATES == {("Cars", "Full fine-tuning (PA)"): values("lr=0.0001 lr_proxy=0.01")}
    section = TEXT.split("### Figure 3")[1].split("###")[0]
    assert all(f"`{sweep.key}`" in section for sweep in SWEEPS.values())


def test_every_table_and_figure_has_its_command():
    only = re.findall(r"^\./run_all.sh --profile paper (?:--data DIR )?--only (\S+)$", TEXT, re.M)
    not_the_papers = ("tour", "explore", "beyond_paper")
    assert sorted(only) == sorted(path.stem for path in discover() if path.stem not in not_the_papers)
    titles = re.findall(r"^### (?:Table|Figure) (\d+)", TEXT, re.M)
    assert titles == [*map(str, range(1, 11)), "3", "4"]
