"""The kernel that executes all notebooks. Libraries are imported and code is compiled once for all of them."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.utils import run_sync

from vptsp_core.system.places import CHECKOUT


class OneKernel:
    """Executes notebooks with papermill, one after another, in one kernel. Each starts in an empty namespace.

    The kernel is this interpreter, and it can import this package. Its files are in a temporary folder, so a user's
    own kernels and start-up files have no effect.

    Args:
        threads: the number of threads of torch in the kernel. If None, torch chooses.
    """

    def __init__(self, threads: int | None = None) -> None:
        self._threads = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        self._manager: Any = None

    def execute(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        """Execute ``source`` in the repository's root and write the executed copy to ``target``.

        Raises PapermillExecutionError if a cell fails. Close the kernel after any error.
        """
        import papermill  # slow to import, and only needed here

        if self._manager is None:
            self._start()
        else:
            self._empty()
        # papermill fills in names in braces, so braces in a path are doubled
        paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (source, target))
        papermill.execute_notebook(
            *paths, parameters, kernel_name="python3", language="python", cwd=CHECKOUT, progress_bar=False,
            km=self._manager,  # papermill does not stop a kernel that it did not start
        )  # fmt: skip

    def close(self) -> None:
        """Interrupt the kernel, so that it releases its locks, and stop it. It is killed if it still runs after 5 s."""
        if self._manager is not None:
            run_sync(self._manager.shutdown_kernel)()
            self._folder.cleanup()
            self._manager = None

    def _start(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="vptsp-jupyter-", ignore_cleanup_errors=True)
        search = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        # no warning that loopback is not encrypted, and no traceback of a kernel that was stopped
        options = ["--log-level=CRITICAL", "--HistoryManager.hist_file=:memory:"]
        self._manager = AsyncKernelManager(
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=f"{self._folder.name}/connection.json",
        )
        own = {key: value for key, value in os.environ.items() if key not in ("VPTSP_DATA", "VPTSP_RESULTS")}
        environment = {**own, "PYTHONPATH": search, "IPYTHONDIR": self._folder.name, **self._threads}
        run_sync(self._manager.start_kernel)(extra_arguments=options, cwd=CHECKOUT, env=environment)

    def _empty(self) -> None:
        """Delete the last notebook's names and history. Imported modules stay loaded."""
        client = self._manager.client()
        client.start_channels()
        code = "get_ipython().reset()\n__import__('gc').collect()"
        run_sync(client.execute_interactive)(code, silent=True, store_history=False)
        client.stop_channels()
