"""The same numbers give the same file, whatever style the user set in a matplotlibrc or in the kernel."""

import ast
from contextlib import ExitStack

import matplotlib
import pandas as pd
import pytest
import seaborn
from PIL import Image

from vptsp_core.deploy.picture import found_images
from vptsp_core.figures import live, style, tune
from vptsp_core.system.places import PACKAGE

HISTORY = pd.DataFrame({"epoch": [1, 2], "loss": [3.0, 1.5], "R@1": [0.5, 0.625]})
TRIALS = pd.DataFrame({"trial": [0, 1], "state": "trained", "R@1": [50.0, 60.0], "best so far": [50.0, 60.0]})
FOREIGN = {
    "figure.facecolor": "black", "axes.facecolor": "black", "savefig.facecolor": "black", "text.color": "white",
    "axes.labelcolor": "white", "xtick.color": "white", "text.usetex": True,
    "text.latex.preamble": r"\usepackage{none}", "mathtext.fontset": "cm", "savefig.bbox": "tight",
    "savefig.transparent": True, "savefig.dpi": 30, "figure.dpi": 30, "axes.prop_cycle": matplotlib.cycler(color="r"),
    "lines.dash_capstyle": "round", "image.cmap": "gray", "image.origin": "lower", "axes.unicode_minus": False,
    "axes.xmargin": 0.4, "axes.formatter.limits": [-1, 1], "legend.loc": "center", "hist.bins": 3,
    "errorbar.capsize": 9, "pdf.compression": 0, "path.sketch": (1, 100, 2),
}  # fmt: skip


def pictures(folder) -> list[bytes]:
    """Return files as `save_figure`, the picture of a run in progress and `search` make them."""
    image = folder / "image.png"
    Image.new("RGB", (8, 8), "red").save(image)
    table = pd.DataFrame({"query": [str(image)], "rank": [1], "path": ["image.png"], "cosine": [1.0]})
    style.save_figure(live.training(HISTORY, epochs=2, frozen=0.5), folder, "run")
    style.save_figure(tune.history(TRIALS, "test classes"), folder, "trials")
    kept = [path.read_bytes() for path in sorted((folder / "figures").iterdir())]
    return [*kept, style.file_of(found_images(table, folder), dpi=60).getvalue()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("plain"))


@pytest.mark.parametrize("foreign", ["matplotlibrc", "seaborn"])
def test_the_users_style_changes_no_file_and_is_not_changed(foreign, plain, tmp_path):
    with ExitStack() as stack:
        stack.enter_context(matplotlib.rc_context(FOREIGN if foreign == "matplotlibrc" else {}))
        if foreign == "seaborn":
            seaborn.set_theme(style="darkgrid", font_scale=0.4)
        before = dict(matplotlib.rcParams)
        assert pictures(tmp_path) == plain
        assert dict(matplotlib.rcParams) == before


def test_every_figure_is_drawn_and_saved_in_the_house_style():
    """Only `style` calls `savefig`, and only functions with `in_house_style` make a figure."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text("utf-8"))
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        styled = [each for each in functions
                  if any(getattr(by, "id", "") == "in_house_style" for by in each.decorator_list)]  # fmt: skip
        inside = {id(node) for each in styled for node in ast.walk(each)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                assert name != "savefig" or path.name == "style.py", path
                assert name != "Figure" or id(node) in inside, path
