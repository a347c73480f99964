"""The runner: strict before a run, honest about what was done, and nothing half-made taken for done."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import traceback
import types
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from textwrap import indent

import nbformat
import pytest
from processes import alive, until

from fgvclib import config
from fgvclib.config import load_config, results_folder
from fgvclib.study import aggregate
from fgvclib.study.experiment import Experiment
from fgvclib.tools import kernels, manifest, runner
from fgvclib.tools.cli import main
from fgvclib.utils.files import read_json
from fgvclib.utils.literal import literal
from fgvclib.utils.provenance import FRESH

PARAMETERS = 'profile = "cpu"\ndataset = "synthbirds"\nseeds = [0]\noverrides = {}\nrows = []'
FOLDER = """from fgvclib.config import load_config, results_folder
folder = results_folder(load_config(profile, dataset, **overrides))"""
SMOKE = ("smoke", "synthbirds", [0])


@pytest.fixture
def notebooks(tmp_path, monkeypatch):
    """An empty notebooks folder; results go to tmp_path/results, and the data set is a stand-in."""
    data = types.ModuleType("fgvclib.data.splits")
    data.dataset_checksum = lambda config: "checksum of the birds"
    monkeypatch.setitem(sys.modules, "fgvclib.data.splits", data)
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("FGVC_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(runner, "NOTEBOOKS", tmp_path / "notebooks")
    monkeypatch.setattr(runner, "NEED_RUNS", ())  # nothing is trained beside these
    runner.NOTEBOOKS.mkdir()
    return runner.NOTEBOOKS


def execute_here(job, timeout) -> int:
    """In place of `_execute`: the cells run in this process, without the seconds that papermill and a kernel take."""
    executed, names = nbformat.read(job.notebook, 4), {}
    executed.metadata.papermill = {}
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.metadata.papermill = {"start_time": None}
    try:
        for number, cell in enumerate(cells, 1):
            exec(cell.source, names)
            if "parameters" in cell.metadata.get("tags", []):
                names |= job.parameters
            cell.execution_count = number
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        nbformat.write(executed, job.partial)
    return 0


@pytest.fixture
def without_kernels(monkeypatch):
    """For what is decided around an execution."""
    monkeypatch.setattr(runner, "_execute", execute_here)


def write(folder: Path, name: str, *cells: str, tag: str = "parameters", parameters: str = PARAMETERS) -> Path:
    """A notebook: a title, a parameters cell, and these code cells."""
    new = nbformat.v4
    notebook = new.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}})
    notebook.cells = [
        new.new_markdown_cell(f"# About {name}"),
        new.new_code_cell(parameters, metadata={"tags": [tag]}),
        *(new.new_code_cell(cell) for cell in cells),
    ]
    path = folder / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def count(mark: str) -> str:
    """Code that appends `mark` to a file in the results folder, for `counted` to read."""
    return f"{FOLDER}\nwith open(folder / 'marks.txt', 'a') as file:\n    file.write({mark} + '\\n')"


def counted(folder: Path | None = None) -> list[str]:
    path = (folder or results_folder(load_config("smoke"))) / "marks.txt"
    return path.read_text().split() if path.exists() else []


def entries() -> set[str]:
    return set(manifest.read_manifest(results_folder(load_config("smoke"))).get("notebooks", {}))


# What is done, and what is not


def test_runs_once_and_again_when_the_source_changes(notebooks, capfd, tmp_path):
    write(notebooks, "03_tiny", count("'first'"), "print('epoch', seeds, rows, overrides)")
    settings = dict(seeds=[4, 7], overrides={"epochs": 3}, parameters={"rows": ["a"]})
    copy = runner.run_notebook("03", "smoke", "synthbirds", **settings)
    folder = results_folder(load_config("smoke", epochs=3))
    assert copy == folder / "notebooks" / "03_tiny.ipynb"
    assert "epoch [4, 7] ['a'] {'epochs': 3}" in capfd.readouterr().out  # streamed while it ran
    assert "epoch [4, 7]" in copy.read_text()
    assert sorted(path.name for path in copy.parent.iterdir()) == ["03_tiny.ipynb"]

    runner.run_notebook("03", "smoke", "synthbirds", **settings)
    assert "03_tiny is done" in capfd.readouterr().out
    assert counted(folder) == ["first"]

    write(notebooks, "03_tiny", count("'second'"))
    runner.run_notebook("03_tiny", "smoke", "synthbirds", **settings)
    assert counted(folder) == ["first", "second"]

    content = read_json(folder / "manifest.json")
    assert content["configuration"]["epochs"] == 3
    assert content["configuration_hash"] == load_config("smoke", epochs=3).hash()
    assert content["dataset_checksum"] == "checksum of the birds"
    assert content["seeds"] == [4, 7]
    assert content["versions"]["papermill"] and content["versions"]["torch"]
    assert content["hardware"]["cores"] == os.cpu_count()
    entry = content["notebooks"]["03_tiny"]
    assert entry["parameters"]["rows"] == ["a"] and 0 < entry["minutes"] < 1 and entry["started"].endswith("+00:00")
    for text in (copy.read_text(), json.dumps(content)):
        assert str(tmp_path) not in text and str(config.PROJECT) not in text and str(Path.home()) + "/" not in text


def test_hash_changes_with_everything_that_a_result_depends_on(notebooks, monkeypatch):
    write(notebooks, "03_tiny", "1")
    plain = runner.plan("03", *SMOKE).hash()
    assert runner.plan("03", *SMOKE).hash() == plain
    assert runner.plan("03", "smoke", "synthbirds", [1]).hash() != plain
    assert runner.plan("03", *SMOKE, parameters={"rows": ["a"]}).hash() != plain
    assert runner.plan("03", *SMOKE, overrides={"epochs": 7}).hash() != plain
    monkeypatch.setattr(runner, "library_hash", lambda: "an edited losses.py")
    assert runner.plan("03", *SMOKE).hash() != plain


def test_failing_cell_is_named_and_a_rerun_works(notebooks, monkeypatch):
    write(notebooks, "03_tiny", "value = 1", "value / 0  # here", count("'after'"))
    with pytest.raises(
        runner.NotebookFailed, match=r"03_tiny failed in cell In \[4\] \(value / 0  # here\)"
    ) as failure:
        runner.run_notebook("03", *SMOKE)
    assert failure.value.error == "ZeroDivisionError: division by zero"
    assert "ZeroDivisionError" in failure.value.copy.read_text()
    assert failure.value.copy.name == "03_tiny.failed.ipynb"
    assert str(failure.value.copy) in str(failure.value)
    assert entries() == set() and counted() == []

    monkeypatch.setattr(runner, "_execute", execute_here)
    write(notebooks, "03_tiny", f"{FOLDER}\nassert not (folder / 'broken').exists()", count("'after'"))
    copy = runner.run_notebook("03", *SMOKE)
    assert entries() == {"03_tiny"} and counted() == ["after"]
    assert [path.name for path in copy.parent.iterdir()] == ["03_tiny.ipynb"]  # the failed copy is gone

    # Another run may have overwritten artefacts before it failed, so that the first one's word no longer holds.
    (copy.parent.parent / "broken").touch()
    executed = copy.read_bytes()
    with pytest.raises(runner.NotebookFailed):
        runner.run_notebook("03", *SMOKE, force=True)
    assert entries() == set() and not runner.is_done(runner.plan("03", *SMOKE))
    assert copy.read_bytes() == executed  # to be read until there is a better one


def test_braces_in_paths_are_names_like_others(notebooks, tmp_path, monkeypatch):
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / "re{old}"))
    (tmp_path / "{dataset}").mkdir()
    copy = runner.run_notebook(write(tmp_path / "{dataset}", "03_tiny", "1"), *SMOKE)
    assert copy.is_relative_to(tmp_path / "re{old}") and entries() == {"03_tiny"}


def test_failure_before_the_first_cell_names_no_copy(notebooks, monkeypatch):
    write(notebooks, "03_tiny", "1")
    monkeypatch.setattr(runner, "_execute", lambda *args: 1)
    with pytest.raises(runner.NotebookFailed, match=r"exit status 1; its message stands above\.$") as failure:
        runner.run_notebook("03", *SMOKE)
    assert failure.value.copy is None


@pytest.mark.parametrize(
    ("cells", "error"),
    [
        (["import os\nos.kill(os.getpid(), 9)", "1"], "the kernel died"),
        (["import sys\nsys.exit(0)", "1"], "SystemExit: 0"),
        (["1", "import sys\nsys.exit(0)"], "SystemExit: 0"),
        (["bytearray(2**60)", "1"], "MemoryError"),
        (
            ["import os\nos.kill(os.getppid(), 9)\nimport time\ntime.sleep(60)", "1"],
            "papermill ended with exit status -9",
        ),
    ],
    ids=["killed", "exit in the middle", "exit at the end", "out of memory", "papermill killed"],
)
def test_silent_ends_are_failures(notebooks, cells, error, capsys):
    write(notebooks, "03_tiny", *cells)
    assert main(["run", "03", "--profile", "smoke"]) == 1
    told = capsys.readouterr().err
    assert error in told and "In [" in told
    assert entries() == set()
    folder = results_folder(load_config("smoke"))
    assert [path.name for path in (folder / "notebooks").iterdir()] == ["03_tiny.failed.ipynb"]


def test_time_limit_stops_the_whole_notebook(notebooks, capfd, monkeypatch):
    """The cell ignores the interrupt, so that only killing helps; its own processes, such as workers, go too."""
    monkeypatch.setattr(runner, "GRACE_SECONDS", 1)
    stubborn = (
        f"{FOLDER}\nimport signal, subprocess, time\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "(folder / 'pid').write_text(str(subprocess.Popen(['sleep', '100']).pid))\nprint('sleeps')\ntime.sleep(100)"
    )
    write(notebooks, "03_tiny", stubborn)
    began = time.monotonic()
    assert main(["run", "03", "--profile", "smoke", "--timeout", "0.5"]) == 1  # its kernel has to start
    assert time.monotonic() - began < 60
    streams = capfd.readouterr()
    assert "sleeps" in streams.out
    assert "In [3]" in streams.err and "time limit of 0.5 minutes" in streams.err
    assert entries() == set()
    worker = int((results_folder(load_config("smoke")) / "pid").read_text())
    until(lambda: not alive(worker))


# Refused before anything runs


def refused(**changes) -> str:
    settings = {"notebook": "03", "profile": "smoke", "dataset": "synthbirds", "seeds": [0], **changes}
    with pytest.raises((ValueError, TypeError)) as error:
        runner.run_notebook(**settings)
    assert not results_folder(load_config("smoke")).exists()
    return str(error.value)


def test_wrong_input_is_refused_before_running(notebooks):
    write(notebooks, "03_tiny", "1")
    assert refused(parameters={"row": ["a"]}) == (
        "03_tiny has no parameter row; it has: profile, dataset, seeds, overrides, rows."
    )
    assert "use --profile" in refused(parameters={"profile": "cpu"})
    assert "'epoch' is not a configuration key" in refused(overrides={"epoch": 1})
    assert "--dataset" in refused(overrides={"dataset": "cub200"})
    assert "profile is 'tiny'" in refused(profile="tiny")
    assert "there are: 03_tiny" in refused(notebook="04")
    for rows in (5, None, [5], {"Baseline": 1}):
        assert refused(parameters={"rows": rows}) == f"rows is {rows!r}; give names, separated by commas."
    for seeds in ([], [0, 0], [0.5], [True], [-1], [2**32]):
        assert "different whole numbers" in refused(seeds=seeds)


def test_notebook_without_parameters_is_refused(notebooks):
    write(notebooks, "03_tiny", "1", tag="parameter")
    assert "03_tiny.ipynb has no cell tagged `parameters`" in refused()
    write(notebooks, "03_tiny", "1", parameters='profile = "cpu"\ndataset = ""\noverrides = {}')
    assert refused() == "03_tiny has no parameter seeds; it has: profile, dataset, overrides."


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}}'])
def test_file_that_is_no_notebook_is_refused_in_a_sentence(notebooks, capsys, content):
    (notebooks / "03_tiny.ipynb").write_text(content)
    assert main(["run", "03", "--profile", "smoke"]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("03_tiny.ipynb is not a readable notebook (")


def test_find_notebook(notebooks, tmp_path):
    affnet, other = write(notebooks, "03_affnet"), write(tmp_path, "elsewhere")
    write(notebooks, "04_a"), write(notebooks, "04_b")
    assert runner.find_notebook("03") == runner.find_notebook("03_affnet") == affnet
    assert runner.find_notebook("03_affnet.ipynb") == runner.find_notebook(affnet) == affnet
    assert runner.find_notebook(other) == other
    with pytest.raises(ValueError, match="no notebooks; there are: 03_affnet, 04_a, 04_b"):
        runner.find_notebook("0")
    with pytest.raises(ValueError, match="several notebooks"):
        runner.find_notebook("04")


def test_results_of_another_configuration_are_refused(notebooks, monkeypatch):
    write(notebooks, "03_tiny", "1")
    smoke = load_config("smoke")
    manifest.forget(results_folder(smoke), smoke, [])
    changed = config.replace(smoke, epochs=12, threshold=0.4)
    monkeypatch.setitem(config.PROFILES, "smoke", changed)
    with pytest.raises(
        ValueError, match=r"\(threshold: 0.3 there, 0.4 now; epochs: 2 there, 12 now\); rename or delete"
    ):
        runner.run_notebook("03", *SMOKE)
    assert not (results_folder(changed) / "notebooks").exists()


def test_results_from_other_data_are_refused(notebooks):
    write(notebooks, "03_tiny", "1")
    smoke = load_config("smoke")
    manifest.forget(results_folder(smoke), smoke, [])
    sys.modules["fgvclib.data.splits"].dataset_checksum = lambda config: "other birds"
    with pytest.raises(ValueError, match="checksum of the birds there, other birds now"):
        runner.run_notebook("03", *SMOKE)
    assert not (results_folder(smoke) / "notebooks").exists()


def test_absent_data_are_recorded_as_absent(notebooks):
    def absent(config):
        raise FileNotFoundError

    checksum = sys.modules["fgvclib.data.splits"].dataset_checksum
    smoke = load_config("smoke")
    for present, recorded in ((absent, None), (checksum, "checksum of the birds"), (absent, "checksum of the birds")):
        sys.modules["fgvclib.data.splits"].dataset_checksum = present
        manifest.forget(results_folder(smoke), smoke, [])
        assert manifest.read_manifest(results_folder(smoke))["dataset_checksum"] == recorded


def test_done_notebook_of_other_data_is_refused(notebooks, without_kernels):
    write(notebooks, "03_tiny", "1")
    runner.run_notebook("03", *SMOKE)
    sys.modules["fgvclib.data.splits"].dataset_checksum = lambda config: "other birds"
    with pytest.raises(ValueError, match="checksum of the birds there, other birds now"):
        runner.run_notebook("03", *SMOKE)


def test_fresh_executes_what_is_done_and_tells_the_notebook(notebooks):
    write(notebooks, "03_tiny", "import os", count("os.environ.get('FGVC_FRESH', 'absent')"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_execute", execute_here)
        assert main(["run", "03", "--profile", "smoke"]) == 0
    asked = time.time()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(FRESH, "0")  # to be set back
        assert main(["run", "03", "--profile", "smoke", "--fresh"]) == 0
    first, second = counted()
    assert first == "absent" and asked <= float(second) <= time.time()


# Kernels, working directories, other runners, interruption


def test_own_kernel_wherever_it_is_called(notebooks, tmp_path, monkeypatch):
    """Other `python3` kernels come first for this user, and the caller's folder holds a module in the way."""
    for variable, parts in (("JUPYTER_PATH", ""), ("JUPYTER_DATA_DIR", ""), ("HOME", ".local/share/jupyter")):
        spec = tmp_path / variable / parts / "kernels" / "python3" / "kernel.json"
        spec.parent.mkdir(parents=True)
        spec.write_text(json.dumps({"argv": ["/nowhere/python"], "display_name": "broken", "language": "python"}))
        monkeypatch.setenv(variable, str(tmp_path / variable))
    caller = tmp_path / "caller"
    caller.mkdir()
    (caller / "papermill.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(caller)
    monkeypatch.setenv("FGVC_RESULTS", "here")  # relative to the caller, not to the notebook
    write(notebooks, "03_tiny", "import os, sys", count("sys.executable"), count("os.getcwd()"))
    runner.run_notebook("03", *SMOKE)
    assert counted(caller / "here" / "smoke-synthbirds") == [sys.executable, str(notebooks)]


def test_settings_of_the_user_do_not_reach_the_kernel(notebooks, tmp_path, monkeypatch):
    """IPython's startup files and profile, matplotlib's backend and settings, Python's startup file and encoding."""
    startup = tmp_path / "ipython" / "profile_default" / "startup" / "00-mine.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("from numpy import *\nread = 'startup'")
    (startup.parents[1] / "ipython_kernel_config.py").write_text("c.IPKernelApp.exec_lines = ['read = 1']")
    (tmp_path / "python.py").write_text("read = 'PYTHONSTARTUP'")
    (tmp_path / "matplotlibrc").write_text("backend: pdf\nfigure.dpi: 7")
    for name, value in (
        ("IPYTHONDIR", tmp_path / "ipython"), ("PYTHONSTARTUP", tmp_path / "python.py"), ("MPLBACKEND", "Agg"),
        ("MATPLOTLIBRC", tmp_path), ("PYTHONIOENCODING", "ascii"),
    ):  # fmt: skip
        monkeypatch.setenv(name, str(value))
    check = "assert 'read' not in globals() and any.__module__ == 'builtins'"
    figure = "import matplotlib.pyplot as plt\nassert plt.rcParams['figure.dpi'] != 7\nplt.plot([1, 2]);"
    write(notebooks, "03_tiny", check, "print('✓ θ')", figure)
    copy = runner.run_notebook("03", *SMOKE)
    assert [output for cell in nbformat.read(copy, 4).cells for output in cell.get("outputs", []) if "image/png" in
            output.get("data", {})]  # fmt: skip


def test_one_runner_per_notebook(notebooks, without_kernels, capsys):
    """The lock holds between processes, and dies with its holder; another notebook of the folder is free."""
    write(notebooks, "03_tiny", count("'third'"))
    write(notebooks, "04_tiny", count("'fourth'"))
    folder = results_folder(load_config("smoke"))
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom fgvclib.tools import runner\n"
        "with runner.notebook_lock(runner.plan(sys.argv[1], 'smoke', 'synthbirds', [0])):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(notebooks / "03_tiny.ipynb")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=config.PROJECT,
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            assert main(["run", "03", "--profile", "smoke"]) == 1
            told = capsys.readouterr().err
            assert f"Another run is executing 03_tiny into {folder}; wait for it or end it" in told
            assert counted() == []
            assert main(["run", "04", "--profile", "smoke"]) == 0
            assert counted() == ["fourth"]
            assert main(["run", "all", "--profile", "smoke"]) == 1
        finally:
            other.kill()
    assert main(["run", "all", "--profile", "smoke"]) == 0
    assert counted() == ["fourth", "third"]


def test_runners_side_by_side_lose_no_entry_of_the_manifest(notebooks, monkeypatch):
    """What one reads, changes and writes back must not undo what the other did meanwhile."""
    smoke = load_config("smoke")
    folder = results_folder(smoke)
    real = manifest._write

    def slow(*arguments):
        time.sleep(0.02)
        real(*arguments)

    monkeypatch.setattr(manifest, "_write", slow)
    monkeypatch.setattr(manifest, "code_state", dict)
    names = [f"{number:02}_notebook" for number in range(8)]
    entry = {"hash": "0", "parameters": {"seeds": [0]}}
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: manifest.record(folder, smoke, name, entry), names))
    assert entries() == set(names)


@pytest.fixture
def running(notebooks, tmp_path):
    """A runner in a process of its own, inside a cell that waits; (process, process id of the kernel)."""
    cell = (
        f"{FOLDER}\nimport os, time\n"
        "try:\n    (folder / 'pid').write_text(f'{os.getpid()}\\n')\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    (folder / 'saved').touch()\n    raise"
    )
    write(notebooks, "03_tiny", cell)
    code = (
        "import sys, types\ndata = types.ModuleType('fgvclib.data.splits')\n"
        "data.dataset_checksum = lambda config: '0'\n"
        "sys.modules['fgvclib.data.splits'] = data\nfrom fgvclib.tools import cli, manifest\n"
        "manifest.hardware = dict  # saves the import of torch\nsys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "run", str(notebooks / "03_tiny.ipynb"), "--profile", "smoke"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=config.PROJECT,
        start_new_session=True,
        # A test suite in the background of a shell inherits an ignored SIGINT, with which Ctrl-C would do nothing.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    pid = results_folder(load_config("smoke")) / "pid"
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    yield process, int(pid.read_text())
    process.kill()
    process.communicate()


def test_interrupt_lets_the_cell_save_and_says_how_to_go_on(running):
    process, kernel = running
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    told = process.communicate(timeout=600)[1]
    assert process.returncode == 130
    assert "the same command goes on from there" in told and "Traceback" not in told
    folder = results_folder(load_config("smoke"))
    assert (folder / "saved").exists()
    assert (folder / "notebooks" / "03_tiny.failed.ipynb").exists()
    assert entries() == set() and not alive(kernel)


def test_killed_runner_leaves_nothing_running_and_nothing_done(running):
    process, kernel = running
    process.kill()
    until(lambda: not alive(kernel))
    assert entries() == set()
    assert not (results_folder(load_config("smoke")) / "notebooks" / "03_tiny.ipynb").exists()


# Many notebooks


def test_all_in_order_then_the_tables(notebooks, without_kernels, capfd):
    table = "model,accuracy_mean,accuracy_std,paper_accuracy\nbaseline,0.81234,0.01,0.8\nours,0.9,,\n"
    artefacts = f"(folder / 'table2.csv').write_text({table!r})\n(folder / 'figures').mkdir()\n"
    write(notebooks, "05_ablation", count("str(rows)"), artefacts + "(folder / 'figures' / 'a.png').touch()")
    write(notebooks, "07_comparison", count("'compared'"), parameters=PARAMETERS.replace("\nrows = []", ""))
    command = ["run", "all", "--profile", "smoke", "-p", "rows", "[a]", "-p", "overrides.learning_rate", "1e-2"]
    assert main(command) == 0
    folder = results_folder(load_config("smoke", learning_rate=0.01))
    assert counted(folder) == ["['a']", "compared"]
    printed = capfd.readouterr().out
    assert "0.800 | 0.812" in printed and f"1 figures: {folder / 'figures'}" in printed and "Total: " in printed

    assert main(command) == 0  # done
    assert counted(folder) == ["['a']", "compared"]
    assert main(["tables", "--profile", "smoke", "--set", "learning_rate=1e-2"]) == 0
    assert "– | 0.900" in capfd.readouterr().out
    assert main(["run", "all", "--profile", "smoke", "-p", "row", "1"]) == 2


@pytest.mark.parametrize(
    ("seeds", "beside", "after"),
    [
        ([0], ["00", "01", "02", "04", "06", "07", "03"], ["05"]),
        ([0, 1], ["00", "01", "02", "04", "03"], ["05", "06", "07"]),
    ],
)
def test_notebooks_that_need_the_fewest_runs_come_first(tmp_path, monkeypatch, seeds, beside, after):
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    told = []

    @contextmanager
    def trainings(job, rows):
        yield lambda wait: told.append(["waits"] if wait else [])

    monkeypatch.setattr(runner, "trainings_beside", trainings)
    monkeypatch.setattr(runner, "_run", lambda job, timeout, force: told[-1].append(job.notebook.stem[:2]) or True)
    monkeypatch.setattr(manifest, "check_dataset", lambda folder, config: told.append(["drawn"]))
    runner.run_all("smoke", "synthbirds", seeds, until="07")
    assert told == [["drawn"], *([number] for number in beside), *(["waits", number] for number in after)]


# Parameters as plain papermill hands them over


@pytest.mark.parametrize(
    ("given", "read"),
    [(0, [0]), ("0", [0]), ("[0]", [0]), ("0,1,2", [0, 1, 2]), ("[3, 1]", [3, 1]), ([5], [5]), ((1, 2), [1, 2])],
)
def test_seeds_as_a_list_a_number_or_text(given, read):
    assert Experiment("smoke", "synthbirds", given).seeds == read


@pytest.mark.parametrize("given", ["a", "", "[]", [], [0, 0], 0.5, "0.5", [True], {"seed": 1}, "[[0]]", "-1", 10**20])
def test_seeds_that_are_none_are_refused(given):
    with pytest.raises(
        ValueError, match=r"^seeds are .*; one or more different whole numbers from 0 to 429\d+ are needed\.$"
    ):
        Experiment("smoke", "synthbirds", given)


def test_overrides_as_text():
    assert Experiment("smoke", "synthbirds", overrides="{epochs: 7, num_classes: null}").config.epochs == 7
    assert Experiment("smoke", "synthbirds", overrides="{'num_classes': None}").config.num_classes is None
    with pytest.raises(ValueError, match="^overrides are 3; write them as"):
        Experiment("smoke", "synthbirds", overrides="3")


# Commands


def test_wrong_commands_end_with_a_sentence(notebooks, capsys):
    write(notebooks, "03_tiny", "1")
    for command, told in (
        (["run", "04"], "04 names no notebooks; there are: 03_tiny"),
        (["run", "03", "--profile", "tiny"], "profile is 'tiny'; choose one of smoke, cpu, photos, paper."),
        (["run", "03", "--set", "epochs=many"], "epochs = 'many', but it should be a valid integer."),
        (["run", "03", "--set", "epochs"], "--set epochs has no value; write --set KEY=VALUE."),
        (["run", "03", "-p", "rows", "[a"], "'[a' is neither JSON nor YAML."),
        (["run", "03", "--seeds", "a"], "--seeds a is not a list of whole numbers; write --seeds 0,1,2."),
        (["tables", "--dataset", ","], "--dataset names no data set; choose from synthbirds, cub200,"),
        (["tables"], f"{results_folder(load_config('cpu'))} does not exist; `fgvc run all` makes it."),
    ):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1
    for command in (["run"], ["run", "03", "--profil3", "x"], ["run", "03", "--timeout", "0"], ["grid"]):
        assert main(command) == 2
        assert "Usage: fgvc" in capsys.readouterr().err


def test_a_file_that_ends_too_early_is_no_interrupt(monkeypatch, capsys):
    def build():
        raise EOFError("No data left in file")

    monkeypatch.setattr("fgvclib.tools.course.build", build)
    with pytest.raises(EOFError, match="No data left"):
        main(["course"])
    assert "Interrupted" not in capsys.readouterr().err


def test_results_without_tables_say_which_notebooks_make_them(notebooks, capsys):
    (results_folder(load_config("smoke")) / "runs").mkdir(parents=True)
    assert main(["tables", "--profile", "smoke"]) == 0
    assert capsys.readouterr().out.endswith("has no tables yet; notebooks 03, 05, 07, 08 make them.\n")


def test_help_names_every_command(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    for command in ("run", "tables", "train", "data", "predict", "export", "course", "grade", "lab", "app"):
        assert re.search(rf"^  {command} +[A-Z].*\.$", told, re.MULTILINE)
        assert main([command, "--help"]) == 0


def test_lab_opens_on_the_notebooks_and_reaches_what_they_link_to(monkeypatch):
    told = []
    monkeypatch.setattr(kernels, "_serve", lambda module, arguments, environment: told.extend(arguments) or 0)
    assert kernels.lab() == 0
    options = dict(argument.split("=", 1) for argument in told)
    root = Path(options["--ServerApp.root_dir"])
    folder = root / options["--LabApp.default_url"].removeprefix("/lab/tree/")
    assert list(folder.glob("00_*.ipynb")) and (root / "results" / "reference").exists()


def test_app_takes_the_weights_that_are_shipped(monkeypatch):
    monkeypatch.setattr(kernels, "app", lambda notebook, parameters, arguments: 0)
    monkeypatch.setattr(Experiment, "trained", lambda self, row: None)
    monkeypatch.setattr(Experiment, "run", lambda *arguments: pytest.fail("trains"))
    assert main(["app"]) == 0


def test_output_that_nobody_reads_any_more_is_no_error():
    """As in `fgvc … | head`."""
    code = "import os, sys\nfrom fgvclib.tools.cli import main\nos.close(0)\nsys.exit(main(['--help']))"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run([sys.executable, "-c", code], cwd=config.PROJECT, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert ended.stderr == b"" and ended.returncode == 1


def test_data(capsys, monkeypatch):
    datasets = types.ModuleType("fgvclib.data.splits")
    datasets.verify_dataset = lambda config: f"{config.dataset} {config.num_classes}"
    monkeypatch.setitem(sys.modules, "fgvclib.data.splits", datasets)
    assert main(["data", "synthbirds", "--profile", "smoke", "--set", "num_classes=3"]) == 0
    assert main(["data", "synthbirds", "--profile", "smoke", "--set", "num_classes=None"]) == 0
    assert capsys.readouterr().out == "synthbirds 3\nsynthbirds None\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("null", None), ("None", None), ("~", None), ("true", True), ("True", True), ("1e-3", 0.001),
        ("[0, 1]", [0, 1]), ("[None, 1]", [None, 1]), ("[Baseline, End-to-end]", ["Baseline", "End-to-end"]),
        ("{epochs: 30}", {"epochs": 30}), ("{'epochs': 30, 'classes': None}", {"epochs": 30, "classes": None}),
        ("resnet50.tv_in1k", "resnet50.tv_in1k"),
    ],
)  # fmt: skip
def test_values_are_json_python_or_yaml(text, value):
    assert literal(text) == value


def test_lab_passes_arguments_on(notebooks, capfd):
    assert main(["lab", "--version"]) == 0
    assert capfd.readouterr().out.strip()[0].isdigit()


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
def test_server_ends_with_the_command(notebooks, tmp_path, sent):
    pid, temporary = tmp_path / "pid", tmp_path / "temporary"
    temporary.mkdir()
    stand_in = (
        f"import os, pathlib, time\npathlib.Path({str(pid)!r}).write_text(f'{{os.getpid()}}\\n')\ntime.sleep(100)"
    )
    (tmp_path / "voila.py").write_text(stand_in)
    code = "import pathlib, sys\nfrom fgvclib.tools import kernels\nkernels.app(pathlib.Path(sys.argv[1]), {})"
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code, str(write(notebooks, "09_explorer", "1"))]
    process = subprocess.Popen(command, cwd=config.PROJECT, env=environment)
    until(lambda: pid.exists() and pid.read_text().endswith("\n"))
    server = int(pid.read_text())
    try:
        process.send_signal(sent)
        process.wait(60)
        until(lambda: not alive(server))
        assert sent == signal.SIGKILL or list(temporary.iterdir()) == []
    finally:
        with suppress(ProcessLookupError):
            os.kill(server, signal.SIGKILL)


def test_help_does_not_wait_for_torch():
    code = "import sys, fgvclib.tools.cli\nsys.exit(bool({'torch', 'papermill', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=config.PROJECT).returncode == 0


def test_reproduction_is_the_notebooks_up_to_the_comparison(monkeypatch, tmp_path):
    executed = []
    monkeypatch.setattr(
        runner,
        "plan",
        lambda notebook, *args: types.SimpleNamespace(notebook=notebook, folder=tmp_path, parameters={"seeds": [0]}),
    )
    monkeypatch.setattr(runner, "_run", lambda job, *args: executed.append(job.notebook.stem[:2]) or True)
    monkeypatch.setattr(runner, "NEED_RUNS", ())
    monkeypatch.setattr(aggregate, "print_tables", lambda folder: None)
    assert main(["run", "reproduction", "--profile", "smoke"]) == 0
    assert executed == ["00", "01", "02", "03", "04", "05", "06", "07"]
    executed.clear()
    assert main(["run", "all", "--profile", "smoke"]) == 0
    assert executed == [path.stem[:2] for path in runner.list_notebooks()] and "11" in executed


def test_rows_as_text_are_names_too(notebooks):
    write(notebooks, "05_ablation", "1")
    for given, rows in (("Baseline", ["Baseline"]), ("Baseline, a b", ["Baseline", "a b"]), (["a"], ["a"]), ("", [])):
        assert runner.plan("05", *SMOKE, parameters={"rows": given}).parameters["rows"] == rows


# Trainings beside the notebooks

TRAININGS = f"""{runner.END_WITH_PARENT}
import json, pathlib, signal, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell's background ignores it
folder = pathlib.Path(os.environ["FGVC_RESULTS"])
folder.mkdir(parents=True, exist_ok=True)
(folder / "asked").write_text(json.dumps(sys.argv[1:]))
try:
    while not (folder / "enough").exists():
        time.sleep(0.1)
except KeyboardInterrupt:
    (folder / "interrupted").touch()
"""
UNTIL_ASKED = "import os, time\nwhile not os.path.exists(os.environ['FGVC_RESULTS'] + '/asked'):\n    time.sleep(0.1)\n"
SAY_THREADS = f"{FOLDER}\nimport os\nprint('threads', os.environ['OMP_NUM_THREADS'])\n"


@pytest.fixture
def stand_in(notebooks, monkeypatch, tmp_path):
    """A stand-in for `fgvc train` that runs until there is a file `enough` in the folder of results."""
    monkeypatch.setattr(runner, "NEED_RUNS", ("02",))
    monkeypatch.setattr(runner, "TRAININGS", TRAININGS)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    return tmp_path / "results"


def test_trainings_run_beside_notebooks_until_one_reads_all_runs(notebooks, stand_in, without_kernels, capfd):
    write(notebooks, "02_trains", SAY_THREADS + "(folder.parent / 'enough').touch()")
    write(notebooks, "05_reads", SAY_THREADS)
    runner.run_all("smoke", "synthbirds", [0, 1], {"learning_rate": 0.01})
    asked = "train --profile smoke --dataset synthbirds --seeds 0,1 --set learning_rate=0.01"
    assert read_json(stand_in / "asked") == asked.split()
    told = capfd.readouterr().out
    assert re.findall("threads ([0-9])", told) == ["1", "5"]  # one beside trainings, then what the user asked for
    assert not (stand_in / "interrupted").exists()

    (stand_in / "asked").unlink()
    runner.run_all("smoke", "synthbirds", [0, 1], {"learning_rate": 0.01})  # done
    assert not (stand_in / "asked").exists()


def test_a_notebook_measures_when_the_trainings_beside_it_have_ended(notebooks, stand_in, without_kernels, monkeypatch):
    """Notebook 03 runs beside them, as the last, and waits where it is about to measure."""
    locking = "from fgvclib.utils.files import BUSY, locked\nwith locked(os.environ[BUSY]):\n"
    beginning, end = TRAININGS.split("try:", 1)
    ends = "    (folder / 'ended').touch()\n"
    monkeypatch.setattr(runner, "TRAININGS", beginning + locking + indent("try:" + end, "    ") + ends)
    write(notebooks, "02_trains", UNTIL_ASKED)
    write(notebooks, "03_measures", f"{FOLDER}\nfrom fgvclib.utils.files import wait_for_idle_machine\n"
          "assert (folder.parent / 'last').exists() and not (folder.parent / 'ended').exists()\n"
          "(folder.parent / 'enough').touch()\nwait_for_idle_machine()\n"
          "assert (folder.parent / 'ended').exists()")  # fmt: skip
    write(notebooks, "04_trains", f"{FOLDER}\n(folder.parent / 'last').touch()")
    runner.run_all(*SMOKE)
    assert runner.BUSY not in os.environ


def test_failing_notebook_ends_the_trainings_beside_it(notebooks, stand_in, without_kernels):
    write(notebooks, "02_trains", UNTIL_ASKED + "time.sleep(1)", "1 / 0")
    with pytest.raises(runner.NotebookFailed):
        runner.run_all(*SMOKE)
    assert (stand_in / "interrupted").exists()


def test_trainings_that_ignore_the_interrupt_are_killed(notebooks, stand_in, without_kernels, monkeypatch):
    monkeypatch.setattr(runner, "GRACE_SECONDS", 1)
    deaf = TRAININGS.replace("signal.default_int_handler", "signal.SIG_IGN")
    monkeypatch.setattr(runner, "TRAININGS", deaf)
    write(notebooks, "02_trains", UNTIL_ASKED, "1 / 0")
    with pytest.raises(runner.NotebookFailed):
        runner.run_all(*SMOKE)
    assert not (stand_in / "interrupted").exists()


def test_rows_are_named_to_the_trainings_as_they_are(notebooks, stand_in, monkeypatch):
    write(notebooks, "02_trains", "1")
    write(notebooks, "05_reads", "1")
    stand_in.mkdir()
    (stand_in / "enough").touch()
    monkeypatch.setattr(runner, "_run", lambda *args: True)
    runner.run_all(*SMOKE, parameters={"rows": "Baseline"})
    assert read_json(stand_in / "asked")[-2:] == ["--rows", "Baseline"]


def test_failed_trainings_end_the_command_before_the_next_notebook(notebooks, stand_in, monkeypatch):
    executed = []

    def execute(job, *args):
        executed.append(job.name)
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)  # until the trainings have ended
        return True

    monkeypatch.setattr(runner, "TRAININGS", "import sys\nsys.exit(1)")
    monkeypatch.setattr(runner, "_run", execute)
    write(notebooks, "02_trains", "1")
    write(notebooks, "04_trains", "1")
    with pytest.raises(runner.TrainingsFailed):
        runner.run_all(*SMOKE)
    assert "04_trains" not in executed


def test_failing_training_ends_the_notebooks_in_a_sentence(notebooks, stand_in, without_kernels, monkeypatch, capsys):
    monkeypatch.setattr(runner, "TRAININGS", "import sys\nsys.exit(1)")
    write(notebooks, "02_trains", "1")
    write(notebooks, "05_reads", count("'read'"))
    assert main(["run", "all", "--profile", "smoke"]) == 1
    assert "A training failed for the reason above" in capsys.readouterr().err and counted() == []
