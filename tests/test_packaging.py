"""pyproject.toml (ranges), requirements.lock (exact versions) and environment.yml (conda) agree."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]
DIRECT = [Requirement(text) for text in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]]

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def pins_of(name: str) -> list[Requirement]:
    return [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(name)]


def version_of(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def make(*arguments: str) -> str:
    # Without the outer make's flags and variables: this test may itself run under `make test`.
    outer = ("MAKE", "MFLAGS", "PROFILE", "DATASET", "SEEDS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(outer)}
    return subprocess.check_output(["make", *arguments], cwd=ROOT, env=environment, text=True)


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_every_pin_is_exact(pin):
    assert pin.url is None
    assert [spec.operator for spec in pin.specifier] == ["=="] and "*" not in version_of(pin)


def test_lock_names_no_address_or_path():
    for mark in ("/", "\\", "--index", "--find-links", "@"):
        assert mark not in LOCK, f"requirements.lock holds {mark!r}: an address or a path."


@pytest.mark.parametrize("wanted", DIRECT, ids=str)
def test_every_direct_dependency_is_pinned_within_its_range(wanted):
    pins = pins_of(wanted.name)
    assert pins, f"{wanted.name} is missing in requirements.lock: remake it with the command in its header."
    for pin in pins:
        assert wanted.specifier.contains(version_of(pin)), f"The lock's {pin} is outside {wanted}."
    assert any(pin.marker is None or pin.marker.evaluate() for pin in pins)


def test_environment_file_takes_its_packages_from_the_lock():
    *conda, pip = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert pip == {"pip": ["-r requirements.lock", "-e ."]}
    assert [Requirement(text).name for text in conda] == ["python", "pip"]


def test_environment_file_has_the_python_versions_of_the_project():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    offered = Requirement(conda[0]).specifier
    tried = {text.rsplit(" ", 1)[1] for text in PROJECT["classifiers"]}
    versions = [f"3.{minor}" for minor in range(8, 30)]
    assert {version for version in versions if offered.contains(version)} == tried
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert [version for version in versions if allowed.contains(version)][0] == min(tried)


def test_every_import_of_the_library_is_declared():
    extras = [text for name, texts in PROJECT["optional-dependencies"].items() if name != "test" for text in texts]
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"] + extras}
    providers = packages_distributions()
    for path in sorted((ROOT / "fgvclib").glob("**/*.py")):
        for module in top_level_imports(path) - sys.stdlib_module_names - {"fgvclib", "synthbirds"}:
            names = {canonicalize_name(name) for name in providers.get(module, [module])}
            assert names & declared, f"{path.name} imports {module}, which pyproject.toml does not declare."


def top_level_imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@needs_make
def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
    listed = set(re.findall(r"^  make (\w+)  ", make(), re.MULTILINE))
    assert {"reproduce", "test", "lab", "help"} <= targets == listed
    for variable in ("PROFILE=cpu", "DATASET=synthbirds", "SEEDS=0"):
        assert variable in make("help")


@needs_make
def test_other_wheels_of_pytorch_leave_out_cuda():
    plain = make("--dry-run", "--always-make", "setup")
    assert "-r requirements.lock" in plain and "cpu.lock" not in plain
    chosen = make("--dry-run", "--always-make", "setup", "TORCH_INDEX=https://wheels.example/cpu")
    assert '-r .venv/cpu.lock --extra-index-url "https://wheels.example/cpu"' in chosen
    left_out = re.search(r'grep -vE "(.*)" requirements.lock', chosen)[1]
    kept = [pin.name for pin in PINS if not re.search(left_out, pin.name)]
    assert {"torch", "torchvision", "numpy"} <= set(kept) and not [name for name in kept if "nvidia" in name]


@needs_make
def test_make_reproduce_hands_its_variables_to_the_runner():
    assert 'run reproduction --profile "cpu" --dataset "synthbirds" --seeds "0"' in make("--dry-run", "reproduce")
    given = make("--dry-run", "reproduce", "PROFILE=paper", "DATASET=cub200", "SEEDS=0,1,2")
    assert 'run reproduction --profile "paper" --dataset "cub200" --seeds "0,1,2"' in given


def test_map_of_the_code_has_every_module_and_no_other():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## A map of the code")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(?:fgvclib/)?(\w+\.py)`", table.partition("| where")[2]))
    assert named == {path.name for path in (ROOT / "fgvclib").glob("**/[!_]*.py")}


def test_continuous_integration_runs_the_test_command_of_the_readme():
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert lines[-1] == "make test"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in ("make reproduce", "make test", "make lab"):
        assert command in readme, f"README.md does not mention `{command}`."
