"""CITATION.cff: readable, of this version, and of the paper."""

import tomllib

import pytest
import yaml
from documents import ROOT

import vptsp_core

# of the Citation File Format 1.2.0, for software that cites a paper
REQUIRED = {"cff-version", "message", "title", "authors"}
ALLOWED = REQUIRED | {"type", "abstract", "version", "license", "keywords", "preferred-citation"}


@pytest.fixture(scope="module")
def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_it_is_of_this_software(citation):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert REQUIRED <= citation.keys() <= ALLOWED
    assert citation["cff-version"] == "1.2.0" and citation["type"] == "software"
    assert citation["version"] == vptsp_core.__version__
    assert (citation["title"], citation["license"]) == (project["name"], project["license"])
    assert citation["keywords"] == project["keywords"]
    assert citation["authors"] == [{"name": "The vptsp-core developers"}]


def test_it_names_the_paper_that_the_package_names(citation):
    paper = citation["preferred-citation"]
    assert REQUIRED - {"cff-version", "message"} | {"type"} <= paper.keys()
    said = " ".join(vptsp_core.__doc__.split())
    assert paper["title"] in said and f"ICLR {paper['year']}" in said
    assert said.split('"')[0].endswith(", ".join(each["family-names"] for each in paper["authors"]) + ", ")
    (number,) = (each["value"] for each in paper["identifiers"])
    assert f"({number.replace(':', ' ')})" in said and paper["url"].endswith(number.removeprefix("arXiv:"))
