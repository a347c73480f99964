"""Build the book: `python docs/book/build.py [FOLDER]` writes a static site, by default into `site/`.

The pages are the executed notebooks of `results/reference/`, the students' exercises and the documents in `docs/`. They
are staged under the paths that they have in the repository, so that links between them hold; nothing is executed.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fgvclib.apps.page import export_page
from fgvclib.tools.reference import as_in_notebooks

ROOT = Path(__file__).resolve().parent.parent.parent
REFERENCE = ROOT / "results" / "reference"
SHIPPED = REFERENCE / "cpu-synthbirds" / "runs" / "End-to-end-seed0" / "checkpoint.pt"
DOCUMENTS = ["docs/book/index.md", "docs/book/play.md", "docs/teaching.md", "docs/cluster.md", "data/README.md"]
DOCUMENTS += ["CONTRIBUTING.md"]
HOME = '<meta http-equiv="refresh" content="0; url=docs/book/index.html">\n'
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)#\s]+)(#[^)]*)?\)")


def main(site: Path, play: bool = True) -> int:
    """Stage, build, and set the front page; Sphinx's exit status. A warning is an error.

    `play` adds the page that runs the shipped system in the browser, which npm fetches a runtime for.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder)
        _stage(source)
        command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-W", "--keep-going"]
        command += ["-c", str(source / "docs" / "book"), "-D", "root_doc=docs/book/index", str(source), str(site)]
        status = subprocess.run(command, check=False).returncode
    (site / "index.html").write_text(HOME, encoding="utf-8")
    if play and status == 0:
        try:
            export_page(SHIPPED, site / "docs" / "book" / "play")
        except (ImportError, OSError) as error:
            print(f"The site has no page that runs the system in the browser: {error}", file=sys.stderr)
            return 1
    return status


def _stage(source: Path) -> None:
    shutil.copytree(ROOT / "docs" / "images", source / "docs" / "images")
    (source / "docs" / "book").mkdir()
    shutil.copy(ROOT / "docs" / "book" / "conf.py", source / "docs" / "book")
    pages = {name: ROOT / name for name in DOCUMENTS}
    pages |= {
        f"notebooks/{path.name}": executed_copy(path) for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    }
    students = sorted((ROOT / "notebooks" / "exercises" / "student").glob("*.ipynb"))
    pages |= {str(path.relative_to(ROOT)): path for path in students}
    for name, path in pages.items():
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8")
        target.write_text(
            _notebook(text, name, pages) if path.suffix == ".ipynb" else _links(text, name, pages), "utf-8"
        )


def executed_copy(notebook: Path) -> Path:
    """The committed run of a notebook, of the embedded data set first; the notebook itself where there is none."""
    found = sorted(REFERENCE.glob(f"*/notebooks/{notebook.name}"), key=lambda path: "synthbirds" not in str(path))
    return found[0] if found else notebook


def _notebook(text: str, name: str, pages: dict) -> str:
    """The parameters that papermill injected are left out: the cell above them says the same."""
    notebook = json.loads(text)
    cells = [c for c in notebook["cells"] if "injected-parameters" not in c["metadata"].get("tags", [])]
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = _links(as_in_notebooks("".join(cell["source"])), name, pages)
    return json.dumps(notebook | {"cells": cells})


def _links(text: str, name: str, pages: dict) -> str:
    """Links to what has no page here keep their words alone."""
    folder = (ROOT / name).parent

    def kept(match: re.Match) -> str:
        target = (folder / match[2]).resolve()
        is_page = target.is_relative_to(ROOT) and str(target.relative_to(ROOT)) in pages
        return match[0] if is_page else match[1]

    return LINK.sub(kept, text)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site")))
