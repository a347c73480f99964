"""The browser page: headless Chromium computes what Python computes, from the served folder alone."""

import functools
import http.server
import json
import shutil
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fgvclib.apps.page import RUNTIME_FILES, export_page
from fgvclib.apps.predict import Recogniser
from fgvclib.config import training_values
from fgvclib.data.augment import to_input
from fgvclib.model.system import build_model
from fgvclib.study.table2 import ROWS
from fgvclib.training.checkpoints import save_checkpoint

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None or shutil.which("npm") is None, reason="needs Chromium and npm")


def checkpoint_of(config, folder):
    """Random weights whose theta depends on the photo."""
    torch.manual_seed(0)
    model = build_model(config, 3, pretrained=False)
    with torch.no_grad():
        for network in (model.affnet.horizontal, model.affnet.vertical):
            network[-1].weight.normal_(std=0.02)
    return save(config, model, folder)


def save(config, model, folder):
    state = {"config": training_values(config), "model": model.state_dict(), "history": []}
    save_checkpoint(folder / "checkpoint.pt", state | {"class_names": ["001.Robin", "002.Wren", "003.Tit"]})
    return folder / "checkpoint.pt"


@pytest.fixture(scope="module")
def checkpoint(tiny, tmp_path_factory):
    return checkpoint_of(tiny, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(checkpoint, tmp_path_factory):
    pytest.importorskip("onnxscript")
    return export_page(checkpoint, tmp_path_factory.mktemp("page")).parent


@pytest.fixture
def address(page):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=page))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/index.html"
    server.shutdown()


@needs_browser
def test_browser_answers_as_python_does(page, address, checkpoint, tiny, tmp_path):
    from playwright.sync_api import sync_playwright

    pixels = np.random.default_rng(0).integers(0, 256, (tiny.image_size, tiny.image_size, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)  # at the system's own size, so that no resizing differs
    photo.save(tmp_path / "photo.png")
    recogniser = Recogniser(checkpoint)
    with torch.no_grad():
        wanted = recogniser.model(to_input(photo, recogniser.config).unsqueeze(0))
    asked = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        tab.wait_for_function("window.answer", timeout=600_000)
        first = tab.evaluate("window.answer.theta")
        tab.set_input_files("#file", tmp_path / "photo.png")
        tab.wait_for_function("theta => window.answer.theta[0] !== theta[0]", arg=first, timeout=600_000)
        found = tab.evaluate("window.answer")
        tab.evaluate("document.getElementById('tau').value = 0.9; document.getElementById('tau').oninput()")
        tab.wait_for_function("window.answer.tau > 0.89", timeout=600_000)
        moved = tab.evaluate("window.answer.theta")
        described = tab.text_content("p")
        browser.close()
    np.testing.assert_allclose(found["theta"], wanted.theta[0], atol=2e-3)  # weights are stored in half precision
    np.testing.assert_allclose(found["logits"], wanted.logits[0], atol=2e-2)
    assert moved != found["theta"]
    assert "looks at it at 64×64 pixels and says" in described
    assert all(url.startswith(("http://127.0.0.1", "data:", "blob:")) for url in asked)


BREAK = """() => {
    window.kept = HTMLCanvasElement.prototype.getContext
    HTMLCanvasElement.prototype.getContext = () => { throw new Error("no memory") }
    document.getElementById("tau").value = 0.9
    document.getElementById("tau").oninput()
}"""
MEND = """() => {
    HTMLCanvasElement.prototype.getContext = window.kept
    document.getElementById("tau").oninput()
}"""


@needs_browser
def test_pass_that_fails_is_told_and_the_next_one_runs(address):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page()
        tab.goto(address)
        tab.wait_for_function("window.answer", timeout=600_000)
        tab.evaluate(BREAK)
        tab.get_by_text("The networks gave no answer (no memory); try again, or reload the page.").wait_for()
        tab.evaluate(MEND)
        tab.wait_for_function("window.answer.tau > 0.89", timeout=600_000)
        browser.close()


def test_page_knows_at_which_size_attnet_sees_the_photo(small, tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setattr("fgvclib.apps.page._fetch_runtime", lambda folder: None)
    as_in_photos = replace(small, attnet_size=96, attnet_stride=(8, 16))
    page = export_page(checkpoint_of(as_in_photos, tmp_path), tmp_path / "page")
    assert json.loads(page.with_name("system.json").read_text())["attnet_size"] == 96


@needs_browser
def test_page_is_complete(page):
    present = {path.name for path in page.iterdir()}
    assert {"index.html", "page.mjs", "page.css", "system.json", "locate.onnx", "classify.onnx"} <= present
    assert set(RUNTIME_FILES) <= present


def test_baseline_has_no_box_to_show(tiny, tmp_path):
    baseline = replace(tiny, **ROWS["Baseline"])
    with pytest.raises(ValueError, match="without localisation"):
        export_page(save(baseline, build_model(baseline, 3, pretrained=False), tmp_path), tmp_path / "page")


def test_without_npm_a_sentence_says_what_to_install(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("fgvclib.apps.page.shutil.which", lambda name: None)
    with pytest.raises(OSError, match="install Node.js"):
        export_page(checkpoint, tmp_path / "page")
