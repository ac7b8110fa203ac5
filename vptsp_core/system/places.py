"""Paths of this package, its data files and its checkout."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
CHECKOUT = PACKAGE.parent  # has notebooks/ and results/; for an installed package it is site-packages
