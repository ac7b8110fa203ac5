"""The version of this package, and the paths of the package, its data files, its checkout and the results."""

import os
from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
CHECKOUT = PACKAGE.parent  # has notebooks/ and results/; for an installed package it is site-packages


def from_root(path: str | Path) -> str:
    """Return the path relative to the checkout if it is inside (pages and commands show it), otherwise absolute."""
    full = Path(path).resolve()
    return str(full.relative_to(CHECKOUT) if full.is_relative_to(CHECKOUT) else full)


def results_folder(results: str | Path | None = None) -> Path:
    """Return the absolute results folder: ``results``, or else the environment's VPTSP_RESULTS, or else ./results."""
    return Path(results or os.environ.get("VPTSP_RESULTS") or "results").expanduser().absolute()
