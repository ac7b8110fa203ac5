"""A data set that a run needs and that is missing, with the commands that get it and then make the run."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from vptsp_core.data import find_folder
from vptsp_core.data.catalog import CATALOG
from vptsp_core.method.config import RunConfig
from vptsp_core.paper.report import place
from vptsp_core.system.places import from_root


@dataclasses.dataclass(frozen=True)
class AbsentData:
    """A data set whose folder is missing.

    Attributes:
        fault: a text that says that it is missing, and why.
        get: the command that gets it.
        run: the command that then makes the notebook's runs.
    """

    dataset: str
    fault: str
    get: str
    run: str

    @property
    def cure(self) -> str:
        """Both commands, in words."""
        return f"To get it: {self.get}, and then: {self.run}"


def absent_data(config: RunConfig, data: str | Path | None, notebook: str, folder: Path) -> AbsentData | None:
    """Describe the run's data set if its folder is missing, otherwise return None.

    Args:
        notebook: what follows ``--only`` in the command: the notebook's short name, and more options.
        folder: the profile's results.
    """
    if config.dataset == "glyphs":
        return None
    known = CATALOG.get(config.dataset)
    if data is not None and (find_folder(place(data), known) if known else place(data)).is_dir():
        return None
    why = "no folder was given" if data is None else f"there is no {known.folder if known else ''}/ in {data}"
    where = from_root(place(folder.parent))
    profile = "tiny" if folder.name == "tiny" else "paper"
    run = f"./run_all.sh --profile {profile} --data DIR --only {notebook}"
    run += f" --results {shlex.quote(where)}" if where != "results" else ""
    get = f"python -m vptsp_core data get {config.dataset} --data DIR"
    return AbsentData(config.dataset, f"{config.dataset} is not here ({why})", get, run)
