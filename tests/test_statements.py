"""What notebooks and help texts say, against what they speak of: the paper's tables, the presets, the rows."""

import re

import pytest

from vptsp_core.method.presets import preset
from vptsp_core.paper import report
from vptsp_core.paper.methods import ADAPTERS
from vptsp_core.publish.parameters import discover, read
from vptsp_core.publish.runner import main


def said(name: str) -> str:
    """All of a notebook's Markdown on one line."""
    (path,) = discover([name])
    return " ".join(" ".join(c.source for c in read(path).cells if c.cell_type == "markdown").split())


def test_figure_3_says_how_coarse_its_curves_are():
    curves = report.paper_table("fig3_curves_R1").groupby("panel")[["CUB", "Cars"]]
    shares = (30 / (curves.max() - curves.min())).round()  # of 0.3 points
    cub, cars = shares["CUB"], shares["Cars"].drop("a")
    assert (
        f"Of what CUB's curve varies by, that is {cub['b']:.0f} % in panel b, {cub['a']:.0f} % in a and e, "
        f"{cub['d']:.0f} % in d, less than 10 % in c and f; of Cars196's {cars['d']:.0f} % in d, {cars['e']:.0f} % in "
        f"e and {cars[['b', 'c', 'f']].max():.0f} % or less in b, c and f."
    ) in said("fig3_ablations")
    assert cub["a"] == cub["e"] and cub[["c", "f"]].max() < 10


def test_table_2_says_who_is_ahead():
    rows = report.paper_table("table2_sota").set_index(["method", "arch"])
    sop, shop = rows["SOP R@1"], rows["InShop R@1"]
    small, large, rival = ("VPTSP-G", "ViT-S/16"), ("VPTSP-G", "ViT-B/16"), ("Hyp-ViT", "ViT-S/16")
    assert sop[small] < sop[rival] and sop[large] < sop["RS@K", "ViT-B/16"]
    assert shop[small] < shop[rival] == shop[large]
    assert "on SOP the fully tuned rivals stay ahead: 84.4 and 86.8" in said("table2_sota")
    assert "is behind Hyp-ViT of that size (92.5), and ViT-B/16 draws level" in said("table2_sota")


def test_tables_1_and_3_say_what_is_run():
    config = preset("inaturalist-vitb16")
    prompts = [config.prompts - config.prompt_step * at for at in range(config.prompt_layers)]
    assert f"({prompts[0]}, {prompts[1]}, ... {prompts[-1]})" in said("table3_inaturalist") and len(prompts) == 12
    numbers = [each["adapter_layers"] for profile in ("paper", "demo") for each in ADAPTERS[profile].values()]
    assert numbers == [7, 1, 4, 1]
    assert "7 of 12 without BitFit, one with it (in `demo` and `smoke` 4 and one of 6)" in said("table1_peft")
    assert "adapters are not part" not in said("table1_peft")


def test_help_names_notebooks_that_there_are(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    named = re.search(r"such as (table\S+)", " ".join(capsys.readouterr().out.split()))
    assert named and discover(named[1].split(","))
    for entry in re.findall(r'"((?:table|fig)\w+)"|: (fig\w+);', discover.__doc__ or ""):
        assert discover([max(entry)])
