"""JupyterLab and the app as people use them: a real browser on what `fgvc lab` and `fgvc app` serve, smoke profile.

The commands run on a copy of the checkout, for JupyterLab saves the notebooks that it runs.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from PIL import Image

from fgvclib.config import PROJECT

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
PATIENCE = 600  # seconds: a guard against hanging, not a budget; a quiet machine needs a few for a step
TOKEN = "classroom"
ICON_FONT = "cdn.jsdelivr.net/npm/@fortawesome"

pytestmark = pytest.mark.skipif(BROWSER is None, reason=f"no browser is installed (looked for {', '.join(BROWSERS)})")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `test`)")


# --- servers and pages


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the library and its notebooks, in which the smoke profile is the notebooks' default."""
    root = tmp_path_factory.mktemp("checkout")
    for folder in ("fgvclib", "notebooks"):
        shutil.copytree(PROJECT / folder, root / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb*"))
    shutil.copy(PROJECT / "pyproject.toml", root)
    for notebook in (root / "notebooks").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        notebook.write_text(text.replace(r"profile = \"cpu\"", r"profile = \"smoke\""), encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def environment(checkout) -> dict[str, str]:
    """The user's, with results and data in the checkout, and nothing of his own JupyterLab settings."""
    folders = {name: str(checkout / name.lower()) for name in ("FGVC_DATA", "FGVC_RESULTS", "JUPYTER_CONFIG_DIR")}
    kept = {name: value for name, value in os.environ.items() if name != "FGVC_HEADLESS"}
    return kept | folders | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def serve(command: list[str], environment: dict[str, str], checkout: Path, ready: str) -> Iterator[str]:
    """Run `fgvc` until the end of the test session → address, once the page `ready` answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = checkout / f"{command[0]}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "fgvclib", *command, "--no-browser", f"--port={port}", "--ip=127.0.0.1"],
            cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(address + ready), f"{command[0]} serves {ready}")
        assert process.poll() is None, log.read_text()
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def answers(address: str) -> bool:
    try:
        with urlopen(address, timeout=5) as response:
            return response.status == 200
    except (URLError, OSError):
        return False


def wait_until(condition: Callable[[], bool], what: str, seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"Waited {seconds:.0f} s in vain: {what}."
        time.sleep(0.2)


@pytest.fixture(scope="module")
def lab(checkout, environment) -> Iterator[str]:
    # The page exposes its application object, so that a test can ask for the outputs of cells beyond the screen.
    options = [f"--IdentityProvider.token={TOKEN}", "--expose-app-in-browser", "--allow-root"]
    yield from serve(["lab", *options], environment, checkout, f"/api/status?token={TOKEN}")


@pytest.fixture(scope="module")
def app(checkout, environment) -> Iterator[str]:
    yield from serve(["app", "--profile", "smoke"], environment, checkout, "/voila/static/voila.js")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def page(browser):
    """A page; at the end of the test its console must hold no error.

    Except that a machine without internet cannot load the icon font that Voilà's page links; nothing needs it.
    """
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    errors = []
    page.on("console", lambda line: errors.append((line.text, line.location)) if line.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    page.close()
    errors = [error for error in errors if ICON_FONT not in str(error)]
    assert not errors, errors


# --- what a person does


def open_notebook(page, lab: str, name: str) -> None:
    page.goto(f"{lab}/lab/tree/notebooks/{name}?token={TOKEN}&reset")
    wait_for_idle_kernel(page)


def wait_for_idle_kernel(page) -> None:
    page.wait_for_function(
        "() => window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
    )


def run_all(page) -> None:
    """Start all cells; returns at once."""
    page.evaluate("() => { window.running = window.jupyterapp.commands.execute('notebook:run-all-cells') }")


def outputs(page) -> list[dict]:
    """The outputs of all cells, in order."""
    return page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.flatMap(cell => cell.outputs ?? [])"
    )


def errors_of(page) -> list[str]:
    return [output["ename"] for output in outputs(page) if output["output_type"] == "error"]


def picture(page) -> str:
    """The bytes of the explorer's picture, as the browser has them."""
    return page.evaluate(
        """async () => {
            const answer = await fetch(document.querySelector('img.widget-image').src)
            const bytes = new Uint8Array(await answer.arrayBuffer())
            return bytes.reduce((text, byte) => text + String.fromCharCode(byte), '')
        }"""
    )


def expect_another_picture(page, before: str) -> None:
    wait_until(lambda: picture(page) != before, "the picture changes", 60)


def use_the_explorer(page, tmp_path: Path) -> None:
    """Move both sliders and change the photo with the keyboard, then upload a photo and a file that is none."""
    page.wait_for_selector("img.widget-image")
    for label in ("Threshold τ", "Sharpness k", "Test photo"):
        before = picture(page)
        handle = page.locator(".widget-hslider", has_text=label).locator(".noUi-handle")
        handle.focus()
        for _ in range(3):
            handle.press("ArrowRight")
        expect_another_picture(page, before)
    before = picture(page)
    Image.linear_gradient("L").save(tmp_path / "mine.png")
    (tmp_path / "notes.png").write_text("no photo")
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="your own").click()
    chooser.value.set_files(tmp_path / "mine.png")
    expect_another_picture(page, before)
    page.get_by_text("has to choose one of them").wait_for()
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="your own").click()
    chooser.value.set_files(tmp_path / "notes.png")
    page.get_by_text("notes.png cannot be read as a photo").wait_for()


def test_app_shows_the_explorer_without_code_and_it_works(app, page, tmp_path):
    page.goto(app)
    use_the_explorer(page, tmp_path)
    assert "import Explorer" not in page.content()


def test_stop_of_jupyterlab_stops_and_keeps_the_checkpoint(lab, page, checkout):
    notebook = checkout / "notebooks" / "04_end_to_end.ipynb"
    text = notebook.read_text(encoding="utf-8")
    notebook.write_text(text.replace("overrides = {}", 'overrides = {\\"epochs\\": 500}'), encoding="utf-8")
    open_notebook(page, lab, notebook.name)
    run_all(page)
    shown = page.locator("img.widget-image")
    wait_until(lambda: errors_of(page) or shown.is_visible(), "the first epoch is shown")
    assert not errors_of(page)
    page.locator('.jp-Toolbar-item[data-jp-item-name="interrupt"]:visible').click()
    wait_until(lambda: errors_of(page), "the cell ends")
    assert errors_of(page) == ["TrainingStopped"]
    (checkpoint,) = (checkout / "fgvc_results").glob("smoke-synthbirds-*/runs/End-to-end-seed0/checkpoint.pt")
    assert checkpoint.stat().st_size > 0
    wait_for_idle_kernel(page)


def test_explorer_in_jupyterlab_runs_all_cells_and_its_controls_work(lab, page, tmp_path):
    open_notebook(page, lab, "09_explorer.ipynb")
    run_all(page)
    page.evaluate("() => window.running")
    assert not errors_of(page)
    assert len(outputs(page)) >= 4  # every code cell but the parameters shows something
    use_the_explorer(page, tmp_path)
