"""The kernel that executes all notebooks. Libraries are imported and code is compiled once for all of them."""

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


class OneKernel:
    """Executes notebooks with papermill, one after another, in one kernel. Each starts in an empty namespace."""

    def __init__(self) -> None:
        self._manager: Any = None

    def execute(self, source: Path, target: Path, parameters: Mapping[str, Any]) -> None:
        """Execute ``source`` in the repository's root and write the executed copy to ``target``.

        Raises PapermillExecutionError if a cell fails. Close the kernel after any error.
        """
        import papermill  # slow to import, and only needed here
        from jupyter_client import AsyncKernelManager
        from jupyter_client.utils import run_sync
        from papermill.clientwrap import PapermillNotebookClient
        from papermill.engines import Engine, papermill_engines

        class KeepsKernel(Engine):
            """papermill's own engine, except that it does not stop the kernel."""

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
        # papermill fills in names in braces, so braces in a path are doubled
        paths = (str(path).replace("{", "{{").replace("}", "}}") for path in (source, target))
        papermill.execute_notebook(
            *paths, parameters, engine_name="keeps kernel", kernel_name="python3", language="python",
            cwd=CHECKOUT, progress_bar=False,
        )  # fmt: skip

    def close(self) -> None:
        """Interrupt the kernel, so that it releases its locks, and stop it. It is killed if it still runs after 5 s."""
        from jupyter_client.utils import run_sync

        manager, self._manager = self._manager, None
        if manager is not None and manager.has_kernel:
            run_sync(manager.shutdown_kernel)()

    def _empty(self) -> None:
        """Delete the last notebook's names and history. Imported modules stay loaded."""
        from jupyter_client.utils import run_sync

        client = self._manager.client()
        client.start_channels()
        code = "get_ipython().reset()\n__import__('gc').collect()"
        run_sync(client.execute_interactive)(code, silent=True, store_history=False)
        client.stop_channels()


@contextlib.contextmanager
def own_kernel(threads: int | None = None) -> Iterator[None]:
    """Inside, the kernel `python3` is this interpreter, and it can import this package.

    Jupyter and IPython keep their files in a temporary folder. So no kernel needs to be registered, and a user's
    start-up files have no effect.

    Args:
        threads: the number of threads of torch in the kernel. If None, torch chooses.
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
