"""Run notebooks in a real JupyterLab, as a user does, and check what they show.

    python tests/in_jupyterlab.py [--only NAME,...] [--profile smoke|demo] [--screenshots DIR]

This starts a JupyterLab server on a free port of this machine, with copies of the notebooks, and a headless Chromium.
In each notebook it calls Run > Run All Cells. It reports errors and warnings in outputs, too wide outputs and progress
bars that did not end. In `explore`, clicks, an upload, a path, the map and the lists must change what is
shown. It needs Chromium, its driver and the extra `browser`, and reports which of them is missing. Exit status 1 means
that something is wrong.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vptsp_core.data.glyphs import GlyphSet  # noqa: E402
from vptsp_core.publish.parameters import discover  # noqa: E402
from vptsp_core.system.places import CHECKOUT  # noqa: E402

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1400,1300",
)  # fmt: skip
SETTINGS = {  # changes to JupyterLab's settings: all cells are in the page, and nothing is fetched
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
}


def missing() -> str:
    """Return one line that names what is not installed, or an empty string."""
    lacking = [] if any(map(shutil.which, BROWSERS)) else ["Chromium (Debian: chromium)"]
    lacking += [] if shutil.which("chromedriver") else ["its driver (Debian: chromium-driver)"]
    packages = ("selenium", "jupyterlab", "ipywidgets")
    lacking += [f"{name} (pip install {name})" for name in packages if not importlib.util.find_spec(name)]
    return f"not installed: {', '.join(lacking)}" if lacking else ""


def copies(paths: list[Path], folder: Path, values: dict) -> None:
    """Write the notebooks to ``folder``/notebooks, with ``values`` instead of the defaults of their parameters."""
    (folder / "notebooks").mkdir()
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
        for name, value in values.items():
            cell.source = re.sub(rf"^{name} = .*$", lambda _, n=name, v=value: f"{n} = {v!r}", cell.source, flags=re.M)
        nbformat.write(notebook, folder / "notebooks" / path.name)


@contextlib.contextmanager
def server(folder: Path):
    """Start a JupyterLab with its own settings in ``folder``. Yield the address of its workspace and its token."""
    home = folder / ".jupyter"
    for name, values in SETTINGS.items():
        path = home / "lab" / "user-settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", "--ServerApp.terminals_enabled=False",
        "--LabApp.expose_app_in_browser=True",  # so that `_idle` can ask whether the kernel is connected
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        place = {"JUPYTER_CONFIG_DIR": str(home), "JUPYTERLAB_SETTINGS_DIR": str(home / "lab" / "user-settings"),
                 "JUPYTERLAB_WORKSPACES_DIR": str(home / "lab" / "workspaces"), "IPYTHONDIR": str(home / "ipython"),
                 "JUPYTER_RUNTIME_DIR": str(home / "runtime"), "PYTHONPATH": str(CHECKOUT)}  # fmt: skip
        process = subprocess.Popen(command, env={**os.environ, **place}, stdout=log, stderr=log, cwd=folder)
        try:
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status?token={token}", timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError("JupyterLab did not start:\n" + (folder / "server.log").read_text()[-2000:])
                time.sleep(0.3)
            yield f"http://127.0.0.1:{port}/lab/workspaces/test", token
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def browser():
    """Start Chromium with an empty profile. Yield its `Page`."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    with tempfile.TemporaryDirectory(prefix="vptsp-chromium-", ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        driver.set_script_timeout(60)
        try:
            yield Page(driver)
        finally:
            driver.quit()


class Page:
    """A JupyterLab in the browser."""

    def __init__(self, driver) -> None:
        self.driver, self.js = driver, driver.execute_script

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def until(self, what: str, ready, seconds: float = 60):
        """Wait until ``ready()`` is true and return its value. Raises TimeoutError that names ``what``."""
        end = time.monotonic() + seconds
        while not (found := ready()):
            if time.monotonic() > end:
                raise TimeoutError(f"{what}: not within {seconds:.0f} s")
            time.sleep(0.25)
        return found

    def menu(self, *labels: str) -> None:
        """Click through JupyterLab's menus."""
        for depth, label in enumerate(labels):
            kind = ".lm-MenuBar-itemLabel" if depth == 0 else ".lm-Menu-itemLabel"

            def entry(kind=kind, label=label):
                return next((item for item in self.all(kind) if item.text == label and item.is_displayed()), None)

            self.until(f"menu entry {label!r}", entry).click()

    def open(self, address: str, token: str, name: str) -> None:
        self.driver.get(f"{address}/tree/notebooks/{name}.ipynb?reset&token={token}")
        self.until("a kernel that is connected and idle", lambda: self._idle(name) or self._dismiss(), 180)

    def _idle(self, name: str) -> bool:
        """Return whether the notebook's kernel is connected and idle.

        Before it is connected, the page looks idle too, but Run All Cells would run nothing. In a window without focus,
        the notebook must be activated first.
        """
        return self.js(
            "const shell = window.jupyterapp?.shell;"
            "const panel = [...(shell?.widgets('main') ?? [])].find(each => each.context?.path.endsWith('.ipynb'));"
            "if (panel && shell.currentWidget !== panel) shell.activateById(panel.id);"
            "const kernel = panel?.sessionContext?.session?.kernel;"
            "return Boolean(panel?.context?.isReady && panel.context.path.endsWith(`/${arguments[0]}.ipynb`)"
            " && kernel?.status === 'idle' && kernel.connectionStatus === 'connected')",
            name,
        )

    def _dismiss(self) -> None:
        for button in self.all(".jp-Dialog .jp-mod-accept"):
            with contextlib.suppress(Exception):  # the dialog may have closed by itself
                button.click()

    def run_all(self, seconds: float) -> int:
        """Run all cells to the end. Return the largest number of progress bars that were visible at once."""
        self.menu("Run", "Run All Cells")
        most = 0

        def done() -> bool:
            nonlocal most
            bars, waiting, ran = self.js(
                "const at = selector => [...document.querySelectorAll('.jp-CodeCell ' + selector)];"
                "const prompts = at('.jp-InputArea-prompt').map(p => p.textContent);"
                "return [at('.widget-hprogress, .jupyter-widget-progress, .progress').length,"
                " prompts.filter(p => p.includes('*')).length, prompts.filter(p => /\\d/.test(p)).length]"
            )
            most = max(most, bars)
            return waiting == 0 and ran > 0

        self.until("all cells run", done, seconds)
        time.sleep(1)  # until the output of the last cell is laid out
        return most

    def wrong(self) -> list[str]:
        """Return what a user should not see in the outputs, one line each."""
        return self.js("""
            const found = [], text = node => node.textContent.trim().replace(/\\s+/g, ' ').slice(0, 300);
            document.querySelectorAll('.jp-CodeCell').forEach((cell, at) => {
              const say = what => found.push(`code cell ${at + 1}: ${what}`);
              for (const mime of ['application/vnd.jupyter.error', 'application/vnd.jupyter.stderr'])
                cell.querySelectorAll(`[data-mime-type="${mime}"]`).forEach(
                  node => text(node) && say(`${mime.split('.').pop()}: ${text(node)}`));
              cell.querySelectorAll('.jp-OutputArea-output, .jp-OutputArea-output *').forEach(node => {
                const scrolls = ['auto', 'scroll', 'visible'].includes(getComputedStyle(node).overflowX);
                if (node.clientWidth && scrolls && node.scrollWidth > node.clientWidth + 2 &&
                    (node.matches('.jp-OutputArea-output') || getComputedStyle(node).overflowX !== 'visible'))
                  say(`output is ${node.scrollWidth} px wide, there are ${node.clientWidth}`);
              });
              cell.querySelectorAll('.progress-bar').forEach(bar => {
                if (!bar.matches('.progress-bar-success'))
                  say('a progress bar did not end: ' + text(bar.closest('.jp-OutputArea-output')));
              });
              if (/Error displaying widget|Loading widget/.test(cell.textContent)) say('a widget is not shown');
            });
            return [...new Set(found)];
        """)

    def screenshots(self, folder: Path, name: str) -> None:
        """Save the whole notebook in pieces: ``folder``/<name>-01.png, -02.png, ..."""
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"{name}-[0-9][0-9].png"):
            old.unlink()
        pane = ".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer"
        height, step = self.js(
            f"const p = document.querySelector('{pane}'), last = [...p.querySelectorAll('.jp-Cell')].pop();"
            "return [last.getBoundingClientRect().bottom - p.getBoundingClientRect().top + p.scrollTop, p.clientHeight]"
        )
        for piece, top in enumerate(range(0, int(height), max(1, step - 40)), start=1):
            self.js(f"document.querySelector('{pane}').scrollTop = arguments[0]", top)
            time.sleep(0.4)
            self.driver.save_screenshot(str(folder / f"{name}-{piece:02d}.png"))


def try_explorer(page: Page, image: Path) -> None:
    """Click, enter a path, upload, zoom and choose in `explore`. Raises an error if the page does not change."""
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.select import Select

    def message() -> str:
        return page.all(".vptsp-said")[0].text

    def changed(what: str, before: str, now) -> str:
        page.until(f"{what} to change what is shown", lambda: now() != before, 90)
        return now()

    def into_view(node):
        page.js("arguments[0].scrollIntoView({block: 'center'})", node)
        return node

    assert message().startswith("Query (black frame): image "), message()
    before = message()
    into_view(page.all(".vptsp-found")[2]).click()  # the second neighbour
    before = changed("a click on a neighbour", before, message)
    assert "right" in before or "✓" in before
    into_view(page.all(".vptsp-class")[5]).click()
    before = changed("a click on an image of the class", before, message)
    field = into_view(page.all("input[placeholder^='or its path']")[0])
    field.send_keys(str(image), Keys.ENTER)
    before = changed("a path", before, message)
    assert image.name in before and "no known class" in before, before
    field.send_keys(Keys.CONTROL + "a")
    field.send_keys("absent.png", Keys.ENTER)
    before = changed("a wrong path", before, message)
    assert "absent.png" in before, before
    # ipywidgets asks for the file with an input that is not part of the page. Here it is added, to receive the file.
    page.js("HTMLInputElement.prototype.click = function () { this.id = 'asked'; document.body.append(this); }")
    into_view(page.all(".widget-upload")[0]).click()
    page.all("#asked")[0].send_keys(str(image))
    before = changed("an upload", before, message)
    assert "your image" in before and len(page.all(".vptsp-found")) > 3, before

    into_view(page.all("iframe[title='map of images']")[0])
    page.driver.switch_to.frame(page.all("iframe[title='map of images']")[0])

    def map_status() -> str:
        return page.all("#counts")[0].text

    page.until("the map to be drawn", lambda: "drawn" in map_status())
    before = map_status()
    for _ in range(3):
        page.all("#in")[0].click()
    before = changed("zooming", before, map_status)
    Select(page.all("#class")[0]).select_by_index(1)
    changed("a class in the map", before, map_status)
    page.all("#all")[0].click()
    sheet = page.all("#sheet")[0]
    at = page.js("return place(kept[0]).map(Math.round)")
    left, top = at[0] - sheet.size["width"] // 2, at[1] - sheet.size["height"] // 2
    ActionChains(page.driver).move_to_element_with_offset(sheet, left, top).perform()
    page.until("the image under the pointer", lambda: "image " in page.all("#near div")[0].text, 10)
    page.driver.switch_to.default_content()

    picture = "return arguments[0].querySelector('.jp-OutputArea-output img').src"
    for chosen in page.all(".vptsp-choose select"):
        cell = page.js("return arguments[0].closest('.jp-CodeCell')", into_view(chosen))
        page.until("a picture", lambda cell=cell: cell.find_elements("css selector", "img"))
        before = page.js(picture, cell)
        Select(chosen).select_by_index(1)
        page.until("a choice to change the picture", lambda c=cell, b=before: page.js(picture, c) != b, 180)


def check(paths: list[Path], profile: str, pictures: Path | None) -> int:
    """Run notebooks in JupyterLab and print what is wrong in each. Return how many things are wrong."""
    from selenium.common.exceptions import WebDriverException

    problems = 0
    with tempfile.TemporaryDirectory(prefix="vptsp-lab-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary).resolve()
        out = folder / "results"
        copies(paths, folder, {"profile": profile, "results": str(out)})
        image = folder / "own.png"
        GlyphSet("test", images_per_class=1).image(3).save(image)
        with server(folder) as (address, token), browser() as page:
            for path in paths:
                start, bars, wrong = time.monotonic(), 0, []
                before = len(list(out.glob("*/runs/*/metrics.json")))
                try:
                    page.open(address, token, path.stem)
                    bars = page.run_all(900)
                    wrong = page.wrong()
                    if not bars and len(list(out.glob("*/runs/*/metrics.json"))) > before:
                        wrong.append("it trained without a visible progress bar")
                    if path.stem == "explore" and not wrong:
                        try_explorer(page, image)
                        wrong = page.wrong()
                except (TimeoutError, AssertionError, WebDriverException) as error:
                    wrong = [*wrong, " ".join(f"{type(error).__name__}: {error}".split())[:300]]
                if pictures:
                    page.screenshots(pictures, path.stem)
                took = time.monotonic() - start
                print(f"{path.stem:<24} {'wrong' if wrong else 'ok':<6} {took:6.0f} s  {bars} progress bar(s) at once")
                for line in wrong:
                    print(f"    {line}")
                problems += len(wrong)
                with contextlib.suppress(Exception):
                    page.menu("Kernel", "Shut Down All Kernels…")
                    page.until("a question", lambda: page.all(".jp-Dialog .jp-mod-accept"), 5)
                    page._dismiss()
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the notebooks in a real JupyterLab.")
    parser.add_argument("--only", metavar="A,B", help="only notebooks whose names start like this")
    parser.add_argument("--profile", default="smoke", choices=("smoke", "demo"))
    parser.add_argument("--screenshots", type=Path, metavar="DIR", help="save pictures of every notebook in DIR")
    options = parser.parse_args()
    if lacking := missing():
        print(f"error: {lacking}", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server and the browser end too
    sys.stdout.reconfigure(line_buffering=True)  # print each line at once, also into a file
    paths = discover(options.only.split(",") if options.only else ())
    problems = check(paths, options.profile, options.screenshots)
    print(f"{problems} thing(s) wrong" if problems else "nothing wrong")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
