"""Notebooks as committed: no outputs, parameters cell, project kernel, no local paths, short cells."""

import ast
import json
import re
from pathlib import Path

import pytest

from fgvclib.config import PROFILES

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = [path for path in sorted(FOLDER.glob("**/*.ipynb")) if ".ipynb_checkpoints" not in path.parts]
LONGEST_CELL = 40  # lines: a cell and its output fit on a screen
LONGEST_FUNCTION = 25  # lines: what is longer belongs into fgvclib, where it is tested
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|Users|work)/|\b[A-Z]:\\")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(FOLDER)))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def tree(cell: dict) -> ast.Module:
    """The cell's syntax tree; `%magic` lines become `pass`."""
    return ast.parse(re.sub(r"^(\s*)%.*$", r"\1pass", source(cell), flags=re.MULTILINE))


def test_there_are_notebooks():
    assert NOTEBOOKS, "notebooks/ holds no notebook."


@each_notebook
def test_starts_with_a_title(path):
    first = read(path)["cells"][0]
    assert first["cell_type"] == "markdown" and source(first).startswith("# ")


@each_notebook
def test_holds_no_outputs(path):
    for number, cell in enumerate(code_cells(path), 1):
        assert not cell["outputs"], f"Code cell {number} of {path.name} holds outputs: run nbstripout."
        assert cell["execution_count"] is None, f"Code cell {number} of {path.name} was run: run nbstripout."


@each_notebook
def test_holds_no_papermill_metadata(path):
    notebook = read(path)
    assert "papermill" not in notebook["metadata"]
    assert not any("papermill" in cell["metadata"] for cell in notebook["cells"])


@each_notebook
def test_kernel_is_the_environments_own(path):
    assert read(path)["metadata"]["kernelspec"]["name"] == "python3"


@each_notebook
def test_first_code_cell_holds_the_parameters(path):
    cells = code_cells(path)
    tagged = [number for number, cell in enumerate(cells) if "parameters" in cell["metadata"].get("tags", [])]
    assert tagged == [0], f"Exactly the first code cell of {path.name} must have the tag `parameters`."


@each_notebook
def test_parameters_are_literals(path):
    """Papermill overrides the names after this cell: a value derived in it would be stale."""
    for statement in tree(code_cells(path)[0]).body:
        assert isinstance(statement, ast.Assign | ast.AnnAssign), f"Not an assignment: {ast.unparse(statement)}"
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        assert [type(target) for target in targets] == [ast.Name]
        ast.literal_eval(statement.value)


@each_notebook
def test_parameters_by_profile_name_every_profile(path):
    for statement in tree(code_cells(path)[0]).body:
        value = ast.literal_eval(statement.value)
        if isinstance(value, dict) and value.keys() & PROFILES.keys():
            assert value.keys() == PROFILES.keys(), f"{path.name}: {ast.unparse(statement)}"


@each_notebook
def test_names_no_local_path(path):
    notebook = read(path)
    texts = [source(cell) for cell in notebook["cells"]] + [json.dumps(notebook["metadata"])]
    found = [match[0] for text in texts for match in LOCAL_PATH.finditer(text)]
    assert not found, f"{path.name} names paths of one machine: {found}."


@each_notebook
def test_cells_and_functions_are_short(path):
    for number, cell in enumerate(code_cells(path), 1):
        lines = len(source(cell).splitlines())
        assert lines <= LONGEST_CELL, f"Code cell {number} of {path.name} has {lines} lines."
        if "solution" in cell["metadata"].get("tags", []):
            continue  # what students write has no place in fgvclib
        for node in ast.walk(tree(cell)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                assert lines <= LONGEST_FUNCTION, f"{path.name}: {node.name} has {lines} lines."
