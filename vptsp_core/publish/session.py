"""What every notebook does at its beginning and its end, and the manifest that it leaves for the results page.

    session = Session("table1_peft_methods", profile, results, data)   # checks the parameters
    session.plan(cells, seeds)                                         # which runs it needs
    done = session.carry_out(workers)                                  # runs them
    session.save_table(table)                                          # tables/table1_peft_methods.csv
    session.save_figure(figure, "what the figure shows", "costs")      # figures/table1_peft_methods_costs.png
    session.finish(runs)                                               # the record, and the manifest

The manifest is ``manifests/<notebook>.json`` in the profile's results folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from vptsp_core.figures import style
from vptsp_core.paper import compare, report
from vptsp_core.publish.manifest import RECORD, MadeRun, Manifest, Missing
from vptsp_core.publish.parameters import check_given

if TYPE_CHECKING:
    from IPython.display import Image
    from matplotlib.figure import Figure
    from pandas.io.formats.style import Styler

    from vptsp_core.method.config import RunConfig
    from vptsp_core.runs.folder import Run


class Session:
    """A notebook at work. To begin it is to check its parameters (`check_given`).

    Attributes:
        folder: where the results of the profile are: tables, figures, runs.
        data: the folder of the data sets, or None.
        watched: whether a person watches the notebook; progress bars help then.
        asked: the runs that it asks for, and whether each may lack weights; ``trials``: of its search.
    """

    def __init__(self, notebook: str, profile: str, results: str, data: str | None = None) -> None:
        check_given()
        self.folder = report.place(results) / profile
        self.data = None if data is None else report.place(data)
        self.watched = report.watched()
        self.asked: dict[RunConfig, bool] = {}
        self.trials = 0
        self._planned: dict[str, Any] = {}
        self._notebook = notebook
        self._only = notebook.split("_")[0]  # for the option --only of the runner
        self._manifest = Manifest()

    @property
    def options(self) -> dict[str, Any]:
        """``data``, ``results`` and ``progress`` for `run` and `many`."""
        return {"data": self.data, "results": self.folder, "progress": self.watched}

    def absent(self, config: RunConfig) -> str:
        """"" where the run's data set is there; else print, note and return a line with the command that gets it."""
        line = self._absent_line(config)
        if line:
            print(line)
            self._note([line], [config])
        return line

    def missing(self, *lines: str) -> None:
        """Print and note what could not be made, a line each; empty lines do not count."""
        if said := list(filter(None, lines)):
            print(*said, sep="\n")
            self._note(said)

    def asks(self, *configs: RunConfig, light: bool = True, trials: int = 0) -> None:
        """Note the runs that the notebook will ask for and the trials of its search, for a dry run (`publish.plan`);
        ``light``: whether runs without weights will do.
        """
        self.asked |= {config: light and self.asked.get(config, True) for config in configs}
        self.trials += trials

    def plan(
        self, cells: compare.Cells, seeds: Sequence[int] | Mapping[tuple[str, str], Sequence[int]], light: bool = True
    ) -> None:
        """What `carry_out` is to run: a table's cells, each with all seeds or with those of its own."""
        self._planned = {"configs": cells, "seeds": seeds, "light": light}
        of = seeds if isinstance(seeds, Mapping) else dict.fromkeys(cells, seeds)
        self.asks(*(config.replace(seed=seed) for cell, config in cells.items() for seed in of[cell]), light=light)

    def carry_out(self, workers: Any = None) -> compare.Done:
        """Run what was planned as far as data and weights are here (`paper.compare.carry_out`), and note the rest."""
        done = compare.carry_out(**self._planned, notebook=self._only, workers=workers, **self.options)
        self._note(done.left_out, self._planned["configs"].values())
        return done

    def save_table(self, table: pd.DataFrame, name: str = "") -> Path:
        """Write ``tables/<notebook>[_<name>].csv``; columns of two levels become "<column>, <paper | ours | ...>"."""
        return report.save_table(table, self.folder, self._named(self._manifest.tables, name, ".csv"))

    def save_figure(self, figure: Figure, alt: str, name: str = "") -> Image:
        """Write ``figures/<notebook>[_<name>].png`` and .pdf; ``alt`` says in words what there is to see."""
        return style.save_figure(figure, self.folder, self._named(self._manifest.figures, name, ".png"), alt)

    def finish(self, runs: Sequence[Run] = (), facts: pd.DataFrame | None = None) -> Styler:
        """Write what the numbers come from (``tables/<notebook>_record.csv``) and the manifest; returns the record: of
        all ``runs`` that the notebook shows, or the ``facts`` of one that trains nothing.
        """
        runs = list({run.path: run for run in runs}.values())
        record = report.record_table(runs) if facts is None else facts
        report.save_table(record, self.folder, f"{self._notebook}{RECORD}")
        own = {} if facts is None else {str(fact): [value] for fact, value in facts["value"].items()}
        self._manifest.record = own or report.record_facts(runs)
        self._manifest.runs = [
            MadeRun(run.record["hash"], self._place(run.path), float(run.record["seconds"])) for run in runs
        ]
        self._manifest.write(self.folder, self._notebook)
        return report.styled(record)

    def _note(self, lines: Sequence[str], configs: Iterable[RunConfig] = ()) -> None:
        """Note what is missing; if it is a data set, with the command that gets it."""
        absent = {self._absent_line(config): config.dataset for config in configs}
        for line in lines:
            dataset = absent.get(line, "")
            get = f"python -m vptsp_core data get {dataset} --data DIR" if dataset else ""
            entry = Missing(line, dataset, get)
            if entry not in self._manifest.missing:
                self._manifest.missing.append(entry)

    def _place(self, path: Path) -> str:
        return (path.relative_to(self.folder) if path.is_relative_to(self.folder) else path.resolve()).as_posix()

    def _absent_line(self, config: RunConfig) -> str:
        return report.absent_data(config, self.data, self._only, self.folder)

    def _named(self, files: list[str], name: str, suffix: str) -> str:
        """The name of a file of this notebook, which is noted."""
        stem = f"{self._notebook}_{name}" if name else self._notebook
        if stem + suffix not in files:
            files.append(stem + suffix)
        return stem
