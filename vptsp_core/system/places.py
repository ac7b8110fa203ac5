"""Paths of this package, its data files and its checkout, and its version."""

from pathlib import Path

VERSION = "0.1.0"
PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
CHECKOUT = PACKAGE.parent  # has notebooks/ and results/; for an installed package it is site-packages
