"""What every notebook does at its beginning and its end.

    session = Session("table1_peft_methods", profile, results, data)   # checks the parameters
    session.plan(cells, seeds)                                         # says which runs the notebook needs
    done = session.carry_out(workers)                                  # makes these runs
    session.save_table(table)                                          # tables/table1_peft_methods.csv
    session.save_figure(figure, "what the figure shows", "costs")      # figures/table1_peft_methods_costs.png
    session.finish(runs)                                               # writes the record and the manifest

The manifest is ``manifests/<notebook>.json`` in the profile's results folder. The results page is built from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image
from matplotlib.figure import Figure
from pandas.io.formats.style import Styler

from vptsp_core.figures import style
from vptsp_core.method.config import RunConfig
from vptsp_core.paper import compare, report
from vptsp_core.paper.absent import AbsentData, absent_data
from vptsp_core.publish.manifest import RECORD, MadeRun, Manifest, Missing
from vptsp_core.publish.parameters import again, check_given, check_profile, of_notebook
from vptsp_core.runs.folder import Run


class Session:
    """One execution of a notebook.

    Args:
        notebook: the notebook's name, with which the names of its results begin.
        profile, results, data: the notebook's parameters.

    Attributes:
        folder: the profile's results: tables, figures, runs.
        data: the folder of the data sets, or None.
        watched: whether a person watches the notebook, so that progress bars help.
        asked: the runs that the notebook needs. The value is True if a light run, without weights, is enough.
        trials: the number of trials of its search.

    Raises:
        ConfigError: papermill gave a parameter that the notebook does not have, or one of the wrong type,
            or the notebook does not have this profile.
    """

    def __init__(self, notebook: str, profile: str, results: str, data: str | None = None) -> None:
        check_given()
        check_profile(notebook, profile)
        self.folder = report.place(results) / profile
        self.data = None if data is None else report.place(data)
        self.watched = report.watched()
        self.asked: dict[RunConfig, bool] = {}
        self.trials = 0
        self._planned: dict[str, Any] = {}
        self._notebook = notebook
        self._only = notebook.split("_")[0]  # for the runner's option --only
        self._manifest = Manifest()

    @property
    def options(self) -> dict[str, Any]:
        """``data``, ``results`` and ``progress`` for `run` and `many`."""
        return {"data": self.data, "results": self.folder, "progress": self.watched}

    def absent(self, config: RunConfig) -> str:
        """Return "" if the run's data set exists. Otherwise print, note and return a line that says how to get it."""
        absent = absent_data(config, self.data, again(self._only, of_notebook("seeds")), self.folder)
        if absent is None:
            return ""
        self.missing(f"No runs: {absent.fault}", absent=absent)
        return f"No runs: {absent.fault}. {absent.cure}"

    def missing(self, *lines: str, absent: AbsentData | None = None) -> None:
        """Print and note results that could not be made, one line each. Empty lines are ignored.

        ``absent`` is the data set that is missing, if that is the reason.
        """
        for line in filter(None, lines):
            print(line if absent is None else f"{line}. {absent.cure}")
            self._note(line, absent)

    def asks(self, *configs: RunConfig, light: bool = True, trials: int = 0) -> None:
        """Note runs and trials that the notebook needs, for a dry run (`publish.plan`).

        Args:
            light: whether runs without weights are enough.
            trials: the number of trials of its search.
        """
        self.asked |= {config: light and self.asked.get(config, True) for config in configs}
        self.trials += trials

    def plan(
        self, cells: compare.Cells, seeds: Sequence[int] | Mapping[tuple[str, str], Sequence[int]], light: bool = True
    ) -> None:
        """Say what `carry_out` runs: the cells of a table, all with the same seeds or each cell with its own."""
        self._planned = {"configs": cells, "seeds": seeds, "light": light}
        of = seeds if isinstance(seeds, Mapping) else dict.fromkeys(cells, seeds)
        self.asks(*(config.replace(seed=seed) for cell, config in cells.items() for seed in of[cell]), light=light)

    def carry_out(self, workers: Any = None) -> compare.Done:
        """Make the planned runs whose data and weights exist, and note the others (`paper.compare.carry_out`)."""
        only = again(self._only)
        done = compare.carry_out(**self._planned, notebook=only, workers=workers, **self.options)
        for text, absent in done.missing:
            self._note(text, absent)
        return done

    def save_table(self, table: pd.DataFrame, name: str = "") -> Path:
        """Write ``tables/<notebook>[_<name>].csv``; columns of two levels become "<column>, <paper | ours | ...>"."""
        return report.save_table(table, self.folder, self._named(self._manifest.tables, name, ".csv"))

    def save_figure(self, figure: Figure, alt: str, name: str = "") -> Image:
        """Write ``figures/<notebook>[_<name>].png`` and .pdf. ``alt`` describes the figure in words."""
        return style.save_figure(figure, self.folder, self._named(self._manifest.figures, name, ".png"), alt)

    def finish(self, runs: Sequence[Run] = (), facts: pd.DataFrame | None = None) -> Styler:
        """Write the record (``tables/<notebook>_record.csv``) and the manifest, and return the record.

        Args:
            runs: all runs that the notebook shows.
            facts: the record of a notebook that trains nothing.
        """
        runs = list({run.path: run for run in runs}.values())
        changes = {
            key: value for key, value in (of_notebook("changes") or {}).items()
            if facts is not None or any(getattr(run.config, key) == value for run in runs)
        }  # fmt: skip
        self._manifest.record = report.record_facts(runs, changes)
        if facts is None:
            record = report.record_table(runs, changes)
        else:
            record = pd.concat([report.fact_table(self._manifest.record), facts])
            self._manifest.record |= {str(fact): [value] for fact, value in facts["value"].items()}
        report.save_table(record, self.folder, f"{self._notebook}{RECORD}")
        self._manifest.runs = [
            MadeRun(run.record["hash"], self._place(run.path), float(run.record["seconds"])) for run in runs
        ]
        self._manifest.seeds = of_notebook("seeds") or []
        self._manifest.write(self.folder, self._notebook)
        return report.styled(record)

    def _note(self, text: str, absent: AbsentData | None) -> None:
        """Note in the manifest why something is missing."""
        entry = Missing(text) if absent is None else Missing(text, absent.dataset, absent.get)
        if entry not in self._manifest.missing:
            self._manifest.missing.append(entry)

    def _place(self, path: Path) -> str:
        """Return a run's folder as the manifest stores it: relative to the profile's results if it is inside them."""
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.resolve()).as_posix()

    def _named(self, files: list[str], name: str, suffix: str) -> str:
        """Return the stem of a file of this notebook, and add the file to the manifest's list."""
        stem = f"{self._notebook}_{name}" if name else self._notebook
        if stem + suffix not in files:
            files.append(stem + suffix)
        return stem
