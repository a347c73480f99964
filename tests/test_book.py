"""The book builds from the executed notebooks, executes nothing, and no link on its pages leads nowhere."""

import importlib.util
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Links(HTMLParser):
    """Addresses that a page points at, and the names in it that can be pointed at."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets, self.names = [], set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.names |= {known.get("id"), known.get("name")}
        self.targets += [known[key] for key in ("href", "src") if known.get(key)]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("build", ROOT / "docs" / "book" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def site(build, tmp_path_factory):
    pytest.importorskip("myst_nb", reason="the extra `book` is not installed")
    folder = tmp_path_factory.mktemp("site")
    assert build.main(folder, play=False) == 0
    return folder


def test_site_without_npm_is_built_and_says_what_it_lacks(build, tmp_path, monkeypatch, capsys):
    def no_npm(*arguments):
        raise OSError("npm is not installed.")

    monkeypatch.setattr(build, "export_page", no_npm)
    monkeypatch.setattr(build, "_stage", lambda source: None)
    monkeypatch.setattr(build.subprocess, "run", lambda *arguments, **options: SimpleNamespace(returncode=0))
    assert build.main(tmp_path) == 1 and (tmp_path / "index.html").exists()
    assert capsys.readouterr().err == (
        "The site has no page that runs the system in the browser: npm is not installed.\n"
    )


def test_every_lesson_exercise_and_document_has_a_page(site):
    lessons = [path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")]
    exercises = [path.stem for path in (ROOT / "notebooks" / "exercises" / "student").glob("*.ipynb")]
    found = {path.stem for path in site.glob("**/*.html")}
    assert {*lessons, *exercises, "teaching", "cluster", "CONTRIBUTING", "index"} <= found


def test_every_link_leads_somewhere(site):
    own = [page for page in site.glob("**/*.html") if "_static" not in page.parts]  # the theme has templates there
    pages = {page: Links(page) for page in own}
    checked = 0
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            path = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            if "play" in path.parts:  # made by the page's own command, which test_page.py tries
                continue
            assert path.exists(), f"{page.relative_to(site)} links to {target}, which does not exist."
            if parts.fragment and path in pages:
                assert unquote(parts.fragment) in pages[path].names, f"{page.relative_to(site)}: no {target}."
            checked += 1
    assert checked > 100


def test_pages_show_figures_that_the_committed_runs_made(site):
    for lesson in ("00_start_here", "02_baseline", "05_ablation"):
        assert "../_images/" in (site / "notebooks" / f"{lesson}.html").read_text(encoding="utf-8")
