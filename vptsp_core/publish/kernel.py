"""The one kernel that executes all notebooks: imports and compiled code are made once, and serve all of them."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from vptsp_core.system.places import CHECKOUT

_EMPTY = "get_ipython().reset()\n__import__('gc').collect()"


class OneKernel:
    """Executes notebook after notebook by papermill, each in an empty namespace, with an engine that leaves the kernel
    running.
    """

    def __init__(self) -> None:
        self._manager: Any = None

    def execute(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        """Execute ``source`` in the repository's root and write the executed copy to ``target``.

        Raises:
            PapermillExecutionError: a cell failed. After any error the kernel should be closed.
        """
        import papermill  # slow to import, and only needed here
        from jupyter_client import AsyncKernelManager
        from jupyter_client.utils import run_sync
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import Engine, papermill_engines

        class KeepsKernel(Engine):
            @classmethod
            def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **_: Any) -> None:
                client = PapermillNotebookClient(nb_man, km=self._manager, kernel_name=kernel_name)
                try:
                    client.execute()
                finally:
                    if client.kc is not None:
                        client.kc.stop_channels()

        papermill_engines.register("keeps kernel", KeepsKernel)
        if self._manager is not None and run_sync(self._manager.is_alive)():
            self._empty()
        else:
            self._manager = AsyncKernelManager(kernel_name="python3")
        # papermill takes braces in a path for places to fill in
        paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (source, target))
        papermill.execute_notebook(
            *paths, parameters, engine_name="keeps kernel", kernel_name="python3", language="python",
            cwd=CHECKOUT, progress_bar=False,
        )  # fmt: skip

    def close(self) -> None:
        """Interrupt what the kernel does, so that it lets go of what it holds, and end it; it is killed after 5 s."""
        from jupyter_client.utils import run_sync

        manager, self._manager = self._manager, None
        if manager is not None and manager.has_kernel:
            run_sync(manager.shutdown_kernel)()

    def _empty(self) -> None:
        """Remove what the last notebook left, its names and its history; what it imported stays."""
        from jupyter_client.utils import run_sync

        client = self._manager.client()
        client.start_channels()
        run_sync(client.execute_interactive)(_EMPTY, silent=True, store_history=False)
        client.stop_channels()


@contextlib.contextmanager
def own_kernel(threads: int | None = None) -> Iterator[None]:
    """Inside, kernel `python3` is this interpreter with this package importable. Jupyter and IPython keep their files
    in a temporary folder: no kernel needs to be registered, and a user's start-up files have no effect.

    Args:
        threads: that torch computes with in the kernel; None: as many as it takes by itself.
    """
    with tempfile.TemporaryDirectory(prefix="vptsp-jupyter-", ignore_cleanup_errors=True) as folder:
        search = os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        # no warning that loopback is not encrypted, and no traceback of a kernel that was stopped
        argv.append("--log-level=CRITICAL")
        environment = {"PYTHONPATH": search} | ({} if threads is None else {"OMP_NUM_THREADS": str(threads)})
        spec = {"argv": argv, "display_name": "Python 3", "language": "python", "env": environment}
        kernel = Path(folder, "kernels", "python3")
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
        places = {"JUPYTER_PATH": ".", "JUPYTER_RUNTIME_DIR": "runtime", "IPYTHONDIR": "ipython"}
        with mock.patch.dict(os.environ, {name: str(Path(folder, place)) for name, place in places.items()}):
            yield
