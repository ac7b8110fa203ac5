"""Where this package, its data files and its checkout are."""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
ASSETS = PACKAGE / "assets"
CHECKOUT = PACKAGE.parent  # with notebooks/ and results/; site-packages where the package is installed
