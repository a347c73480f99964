"""The notebooks on twelve photos of a user's own without true boxes, or with a few: no sentence says "nan".

Those that look at validation photos also run without any, as the paper profile sets none aside.
The cells run in this process, without kernels, and the notebooks share their trainings. Notebooks 03 and 08 are left
out: they see maps and noise alone. `test_notebooks.py` runs the whole collection as a user would, on photos with boxes.
"""

import ast
import json
import os
import re
import shutil
from types import SimpleNamespace

import IPython.display
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from fgvclib.tools.runner import list_notebooks
from fgvclib.utils.progress import HEADLESS

NOTEBOOKS = [path for path in list_notebooks() if path.stem[:2] not in ("03", "08")]
FAST = {"epochs": 1, "image_size": 64, "teacher_size": 64}
FAST |= dict.fromkeys(("backbone", "setting2_backbone", "attnet_backbone"), "test_efficientnet")
GIVEN = {"profile": "smoke", "dataset": "folder", "seeds": [0]}
NO_VALIDATION = ("01", "02", "04", "09", "10")
CASES = [(path, FAST) for path in NOTEBOOKS if path.stem[:2] not in NO_VALIDATION or path.stem[:2] == "04"]
CASES += [(path, FAST | {"validation_fraction": 0.0}) for path in NOTEBOOKS if path.stem[:2] in NO_VALIDATION]
FEWER = {"overfit_steps": {"smoke": 2}}


def case_name(notebook, overrides) -> str:
    return f"{notebook.stem}-without_validation" if "validation_fraction" in overrides else notebook.stem


@pytest.fixture(scope="module", autouse=True)
def places(tmp_path_factory, untrained):
    """Eight training and four test photos of two classes, and results of their own."""
    root, rng = tmp_path_factory.mktemp("boxless"), np.random.default_rng(0)
    for part, count in (("train", 4), ("test", 2)):
        for name, colour in (("Robin", (180, 30, 30)), ("Wren", (30, 180, 30))):
            folder = root / "folder" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 60, (60, 80, 3)) + np.array(colour)
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(root / "data"))
        patch.setenv("FGVC_FOLDER", str(root / "folder"))
        patch.setenv("FGVC_RESULTS", str(root / "results"))
        patch.setenv(HEADLESS, "test")
        yield


def run_cell(source: str, names: dict) -> object:
    """Execute a cell in the namespace `names` → the value of its last line, None where that is a statement."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), "cell", "eval"), names)


@pytest.mark.parametrize("notebook, overrides", CASES, ids=[case_name(*case) for case in CASES])
def test_notebook_runs_on_photos_without_boxes(notebook, overrides, capsys, monkeypatch):
    run_notebook(notebook, overrides, capsys, monkeypatch)


@pytest.fixture(scope="module")
def some_boxes(tmp_path_factory, places):
    """The same photos, of which half the test photos have a true box."""
    folder = tmp_path_factory.mktemp("boxed") / "folder"
    shutil.copytree(os.environ["FGVC_FOLDER"], folder)
    boxes = {"path": [f"test/{name}/0.png" for name in ("Robin", "Wren")], "x1": 10, "y1": 10, "x2": [30, 50], "y2": 40}
    pd.DataFrame(boxes).to_csv(folder / "boxes.csv", index=False)
    return folder


@pytest.mark.parametrize("number", ["10", "06"])  # those that look at true boxes the most
def test_notebook_runs_where_some_test_photos_have_a_box(number, some_boxes, capsys, monkeypatch):
    monkeypatch.setenv("FGVC_FOLDER", str(some_boxes))
    monkeypatch.setenv("FGVC_RESULTS", str(some_boxes.parent / "results"))
    notebook = next(path for path in NOTEBOOKS if path.stem.startswith(number))
    printed = run_notebook(notebook, FAST, capsys, monkeypatch)
    assert number != "10" or "Not every photo has a true box" in printed


def run_notebook(notebook, overrides, capsys, monkeypatch) -> str:
    """Run a notebook's cells in this process → what it printed and said, in which there must be no "nan"."""
    shown = []
    monkeypatch.chdir(notebook.parent)
    monkeypatch.setattr(
        IPython.display, "display", lambda value, **options: shown.append(value) or SimpleNamespace(update=shown.append)
    )
    names = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            shown.append(run_cell("".join(cell["source"]), names))
        if "parameters" in cell["metadata"].get("tags", []):
            names |= GIVEN | {"overrides": overrides} | {name: value for name, value in FEWER.items() if name in names}
    plt.close("all")
    sentences = [value.data for value in shown if isinstance(value, IPython.display.Markdown)]
    said = "\n".join([capsys.readouterr().out, *sentences])
    assert not re.search(r"\bnan\b", said)
    return said
