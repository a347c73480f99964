"""What the notebooks and documents suggest to try can be tried: the values are accepted, and a training step runs."""

import ast
import re
from functools import cache

import nbformat
import pytest
import torch
import yaml

from fgvclib.config import PROFILES, PROJECT, load_config
from fgvclib.study.efficiency import TrainingStep

DOCUMENTS = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md"))]
NOTEBOOKS = sorted((PROJECT / "notebooks").rglob("*.ipynb"))


def texts() -> dict[str, str]:
    """Name → all text of the documents and notebooks."""
    found = {path.name: path.read_text(encoding="utf-8") for path in DOCUMENTS}
    for path in NOTEBOOKS:
        cells = nbformat.read(path, as_version=4).cells
        found[path.name] = "\n".join(cell.source for cell in cells)
    return found


@cache
def suggestions() -> list:
    """Every `overrides = {...}`, `e.g. {...}`, `or {...}` and `--set KEY=VALUE` with values, each once."""
    found = {}
    for name, text in texts().items():
        for written in re.findall(r'(\{"\w+": [^{}\n]*\})', text):
            try:
                values = ast.literal_eval(written)
            except (ValueError, SyntaxError):  # a dict of the lesson's own
                continue
            if set(values) <= vars(load_config("cpu")).keys() and "profile" not in values:
                found.setdefault(written, pytest.param(values, list(PROFILES), id=f"{name}-{written}"))
        for line in text.splitlines():
            named = re.findall(r"--profile (\w+)", line) or list(PROFILES)
            for key, value in re.findall(r"--set (\w+)=([\w.\-]+)", line):
                if value not in ("VALUE", "N"):
                    written = f"{key}={value}"
                    values = {key: yaml.safe_load(value)}
                    found.setdefault(written, pytest.param(values, named, id=f"{name}-{written}"))
    return list(found.values())


def test_suggestions_are_found():
    assert len(suggestions()) > 15


@pytest.mark.parametrize("values, profiles", suggestions())
def test_every_profile_accepts_the_suggestion(values, profiles):
    """A line that names a profile speaks of it alone."""
    for profile in profiles:
        config = load_config(profile, **values)
        assert all(getattr(config, key) == value for key, value in values.items())


@pytest.mark.parametrize("values, profiles", suggestions())
def test_training_step_runs_with_the_suggestion(values, profiles):
    config = load_config("smoke", **{"num_classes": 4, "batch_size": 2, **values})
    step = TrainingStep(config, "live")
    step()
    assert step.optimiser.state and torch.isfinite(step.loss().detach())


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_data_set_that_a_notebook_suggests_goes_with_its_overrides(path):
    """With those of the same line, or else with those of its first code cell."""
    cells = nbformat.read(path, as_version=4).cells
    code = next(cell.source for cell in cells if cell.cell_type == "code")
    own = re.findall(r"^overrides = (\{.*?\})", code, re.MULTILINE)
    for line in "\n".join(cell.source for cell in cells if cell.cell_type == "markdown").splitlines():
        for dataset in re.findall(r'`dataset = "(\w+)"`', line):
            values = [*re.findall(r"`overrides = (\{.*?\})`", line), *own, "{}"]
            load_config("cpu", dataset, **ast.literal_eval(values[0]))
