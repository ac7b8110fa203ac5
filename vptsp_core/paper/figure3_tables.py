"""What came of the sweeps of figure 3: our points, the paper's, where the maxima lie and which are beyond chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vptsp_core.paper import report
from vptsp_core.paper.figure3 import SWEEPS, Point, Sweep
from vptsp_core.runs import significance
from vptsp_core.runs.folder import Run

METRICS = ("R@1", "MAP@R", "MAP@R released")


@dataclass(frozen=True)
class Panel:
    """What came of a sweep.

    Attributes:
        ours: a row a point: ``label``, ``x``, `METRICS` and their intervals in percent; no rows where nothing ran.
        paper: a row a point: ``label``, ``x``, ``CUB`` and ``Cars``: R@1 in percent.
        best: the label of our highest R@1; None where nothing ran.
        against: `runs.significance.against` the best, by label; None where nothing ran.
    """

    name: str
    sweep: Sweep
    ours: pd.DataFrame
    paper: pd.DataFrame
    best: str | None
    against: pd.DataFrame | None

    @property
    def unclear(self) -> list[float]:
        """Our x whose difference to the best R@1 could be chance."""
        if self.against is None:
            return []
        doubtful = self.against.index[self.against["R@1", "chance"].eq(True)]
        return self.ours.loc[self.ours["label"].isin(doubtful), "x"].tolist()


def outcome(panel: str, asked: Sequence[Point], runs: Sequence[Run], names: Sequence[str]) -> Panel:
    """A panel from its points and their finished runs.

    Args:
        runs: of any of the points, with any seeds; or none at all.
        names: the label of each run's point.
    """
    places = pd.DataFrame({"label": [p.label for p in asked], "x": [p.x for p in asked]})
    ours = places.merge(report.averaged(runs, {"label": names}, METRICS), on="label")
    theirs = report.paper_table("fig3_curves_R1")
    theirs = theirs[theirs["panel"] == panel]
    beside = {point.paper_x: point.label for point in asked}
    theirs = theirs.assign(label=[beside.get(x, f"paper: {x:g}") for x in theirs["x"]])
    best = None if ours.empty else str(ours["label"].iloc[int(ours["R@1"].argmax())])
    against = None if best is None else significance.against(runs, names, best, metrics=("R@1",))
    return Panel(panel, SWEEPS[panel], ours, theirs[["label", "x", "CUB", "Cars"]], best, against)


def table(panel: Panel) -> pd.DataFrame:
    """Paper | ours | difference of R@1, a row a point in the order of x; MAP@R, which the paper has no curve of, ours
    alone. Cars196 stands beside it. Each point is set against our best one (`paper.report.marked`)."""
    paper = panel.paper.rename(columns={"CUB": "R@1"})
    found = report.compare(paper, panel.ours, on="label", columns=["R@1"], only_ours=METRICS[1:])
    if panel.best is not None and panel.against is not None:
        found = report.marked(found, panel.against, panel.best)
    found["R@1 on Cars196", "paper"] = panel.paper.set_index("label")["Cars"].reindex(found.index)
    order = pd.concat([panel.ours, panel.paper]).drop_duplicates("label", keep="last").sort_values("x", kind="stable")
    return found.reindex(order["label"]).rename_axis(panel.sweep.axis)


def maxima(panels: Sequence[Panel]) -> pd.DataFrame:
    """Where each curve of R@1 is highest: a row a panel, of the paper's two curves and of ours.

    ``not clearly below`` lists our points whose difference to our highest could be chance.
    """
    rows = {}
    for panel in panels:
        curves = {
            "paper, CUB": panel.paper.set_index("x")["CUB"], "paper, Cars": panel.paper.set_index("x")["Cars"],
            "ours": panel.ours.set_index("x")["R@1"],
        }  # fmt: skip
        highest = {name: f"{c.idxmax():g} ({c.max():.4g})" if c.notna().any() else "" for name, c in curves.items()}
        doubtful = ", ".join(f"{x:g}" for x in panel.unclear)
        rows[f"{panel.name}: {panel.sweep.title}"] = {**highest, "not clearly below": doubtful}
    return pd.DataFrame(rows).T
