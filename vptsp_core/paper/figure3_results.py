"""The results of figure 3: each panel's runs beside the paper's curve, and whether its highest point is ours too."""

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
    """The results of a sweep.

    Attributes:
        ours: one row per point with runs: ``label``, ``x``, `METRICS` and their intervals in percent.
        paper: one row per point: ``label``, ``x``, and R@1 in percent in the columns ``CUB`` and ``Cars``.
        best: the label of our highest R@1, or None without runs.
        paired: `runs.significance.compare_paired` with the best, by label, or None without runs.
        maximum: whether the paper's highest point on CUB is the highest of the points that both curves have: "holds" if
            every other one is clearly below it here, "does not hold" if one is clearly above it, "undecided" otherwise,
            "no such point" if ours never has it, "not run" while shared points (or their values per query) are missing,
            "" without a curve.
        rival: the highest other shared point, and its difference to that point with its interval, as text.
    """

    name: str
    sweep: Sweep
    ours: pd.DataFrame
    paper: pd.DataFrame
    best: str | None
    paired: pd.DataFrame | None
    maximum: str = ""
    rival: str = ""

    @property
    def unclear(self) -> list[float]:
        """Our values of x whose difference to the best R@1 could be chance."""
        if self.paired is None:
            return []
        doubtful = self.paired.index[self.paired["R@1", "chance"].eq(True)]
        return self.ours.loc[self.ours["label"].isin(doubtful), "x"].tolist()


def outcome(panel: str, asked: Sequence[Point], runs: Sequence[Run], names: Sequence[str]) -> Panel:
    """Return the results of a panel.

    Args:
        asked: all points of the panel.
        runs: the finished runs, of some points and with any seeds.
        names: the label of each run's point.
    """
    places = pd.DataFrame({"label": [p.label for p in asked], "x": [p.x for p in asked]})
    ours = places.merge(report.averaged(runs, {"label": names}, METRICS), on="label")
    theirs = report.paper_table("fig3_curves_R1")
    theirs = theirs[theirs["panel"] == panel]
    beside = {point.paper_x: point.label for point in asked}
    theirs = theirs.assign(label=[beside.get(x, f"paper: {x:g}") for x in theirs["x"]])
    best = None if ours.empty else str(ours["label"].iloc[int(ours["R@1"].argmax())])
    paired = None if best is None else significance.compare_paired(runs, names, best, metrics=("R@1",))
    maximum, rival = _test_maximum(theirs.set_index("label")["CUB"], {point.label for point in asked}, runs, names)
    return Panel(panel, SWEEPS[panel], ours, theirs[["label", "x", "CUB", "Cars"]], best, paired, maximum, rival)


def _test_maximum(theirs: pd.Series, asked: set[str], runs: Sequence[Run], names: Sequence[str]) -> tuple[str, str]:
    """Return ``maximum`` and ``rival`` of a `Panel`. Of equal maxima, the one with our best R@1 counts."""
    theirs = theirs.dropna()
    if theirs.empty:
        return "", ""
    tied = set(theirs.index[theirs == theirs.max()])
    shared = set(theirs.index) & asked
    if not tied & asked:
        return "no such point", ""
    if not shared <= set(names):
        return "not run", ""
    of = [(run, name) for run, name in zip(runs, names, strict=True) if name in shared]
    means = {name: sum(run.metrics["R@1"] for run, each in of if each == name) / names.count(name) for name in shared}
    highest = max(sorted(tied & asked), key=means.__getitem__)
    paired = significance.compare_paired([run for run, _ in of], [name for _, name in of], highest, ("R@1",))["R@1"]
    others = paired.drop(index=[name for name in paired.index if name in tied])
    if others["difference"].isna().any():  # all queries are of one class
        return "not run", ""
    best = others.loc[others["difference"].astype(float).idxmax()]
    above, below = others["low"].gt(0).any(), others["high"].lt(0).all()
    verdict = "does not hold" if above else "holds" if below else "undecided"
    return verdict, f"{best.name}: {report.distance(best)}"


def table(panel: Panel) -> pd.DataFrame:
    """Return a table of a panel, one row per point in the order of x.

    R@1 has paper | ours | difference, and each point is tested against our best (`report.marked`). MAP@R has only ours,
    because the paper has no curve of it. The paper's R@1 on Cars196 has its own column.
    """
    paper = panel.paper.rename(columns={"CUB": "R@1"})
    compared = report.compare(paper, panel.ours, on="label", columns=["R@1"], only_ours=METRICS[1:])
    if panel.best is not None and panel.paired is not None:
        compared = report.marked(compared, panel.paired, panel.best)
    compared["R@1 on Cars196", "paper"] = panel.paper.set_index("label")["Cars"].reindex(compared.index)
    order = pd.concat([panel.ours, panel.paper]).drop_duplicates("label", keep="last").sort_values("x", kind="stable")
    return compared.reindex(order["label"]).rename_axis(panel.sweep.axis)


def maxima(panels: Sequence[Panel]) -> pd.DataFrame:
    """Return where each curve has its highest R@1, and how high it is: a row per panel, and a column for each curve
    (the paper's two, and ours).

    The cell of a curve with fewer than two points is empty.
    ``not clearly below`` lists the x of our points whose difference to our highest could be chance. ``the paper's
    maximum`` and ``highest other point`` are ``maximum`` and ``rival`` of `Panel`.
    """
    rows = {}
    for panel in panels:
        curves = {
            "paper, CUB": panel.paper.set_index("x")["CUB"], "paper, Cars": panel.paper.set_index("x")["Cars"],
            "ours": panel.ours.set_index("x")["R@1"],
        }  # fmt: skip
        highest = {name: f"{c.idxmax():g} ({c.max():.4g})" if c.count() > 1 else "" for name, c in curves.items()}
        doubtful = ", ".join(f"{x:g}" for x in panel.unclear)
        rows[f"{panel.name}: {panel.sweep.title}"] = {
            **highest, "not clearly below": doubtful, "the paper's maximum": panel.maximum,
            "highest other point": panel.rival,
        }  # fmt: skip
    return pd.DataFrame(rows).T
