"""Runs notebooks: one, the whole collection, or a grid; each only if it is not yet done under the same hash.

Several runners may work on one results folder, each on other notebooks or other cells of the grid.

Papermill runs in a process of its own, and so does the kernel. A notebook counts as done only when papermill
succeeded, the kernel lived, and every code cell was executed: `sys.exit(0)` in a cell satisfies the first
two, and cells of a killed kernel read "completed".
"""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fgvclib.config import PROJECT, Config, data_root, folder_root, load_config, results_folder, results_root
from fgvclib.tools import manifest
from fgvclib.utils.files import atomic_path, lock_path, locked
from fgvclib.utils.progress import HEADLESS
from fgvclib.utils.provenance import library_hash

NOTEBOOKS = PROJECT / "notebooks"
ABLATION, COMPARISON, EXPLORER = "05", "07", "09"
COMMON = ("profile", "dataset", "seeds", "overrides")  # parameters of every notebook
TABLES = ("table1", "table2", "table3", "efficiency")
GRACE_SECONDS = 20  # for a stopped training to save
START_SECONDS = 300  # for a kernel to start on a busy machine
DEAD_KERNEL = 138
UPLOADS = {"websocket_max_message_size": 100 * 2**20}  # bytes; a photo of a phone is beyond the default, 10 MiB

# os.read returns when this process is gone, however it ended: then no training may go on writing unguarded.
CHILD = f"""
import json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
import nbclient.exceptions, papermill.exceptions
try:
    papermill.execute_notebook(**json.loads(sys.argv[1]), stdout_file=sys.stdout, stderr_file=sys.stderr)
except papermill.exceptions.PapermillExecutionError:
    sys.exit(1)  # the executed copy tells more
except nbclient.exceptions.DeadKernelError:
    sys.exit({DEAD_KERNEL})
"""


class NotebookFailed(RuntimeError):
    """A notebook was not executed to its end.

    `cell` counts code cells as Jupyter's In [n] does (None: before the first); `copy` is kept for inspection.
    """

    def __init__(self, notebook: str, cell: int | None, source: str, error: str, copy: Path):
        where = f" in cell In [{cell}] ({source})" if cell else ""
        super().__init__(f"{notebook} failed{where}: {error}\nThe notebook as far as it came: {copy}")
        self.notebook, self.cell, self.error, self.copy = notebook, cell, error, copy


class NotebookBusy(RuntimeError):
    """Another runner is executing the same notebook, or cell of a grid, into the same results folder."""


@dataclass(frozen=True)
class Job:
    """One execution of one notebook; `parameters` is all that goes into its parameters cell."""

    notebook: Path
    config: Config
    parameters: dict[str, Any]
    label: str = ""  # tells the cells of a grid apart

    @property
    def folder(self) -> Path:
        return results_folder(self.config)

    @property
    def name(self) -> str:
        """The executed copy's path below `notebooks`, without suffix; the key in the manifest."""
        return f"grid/{self.notebook.stem}-{self.label}" if self.label else self.notebook.stem

    @property
    def copy(self) -> Path:
        return self.folder / "notebooks" / f"{self.name}.ipynb"

    @property
    def partial(self) -> Path:
        return self.copy.with_name(f".{self.copy.stem}.partial.ipynb")

    @property
    def failed(self) -> Path:
        return self.copy.with_name(f"{self.copy.stem}.failed.ipynb")

    def hash(self) -> str:
        """Changes with the configuration, the notebook's cells, its parameters with the seeds, and the library."""
        import nbformat

        cells = [(cell.cell_type, cell.source) for cell in nbformat.read(self.notebook, 4).cells]
        text = json.dumps([self.config.hash(), cells, self.parameters, library_hash()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


# Finding and checking


def list_notebooks() -> list[Path]:
    """The numbered notebooks, in order. Raises ValueError if there are none."""
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise ValueError(f"There are no notebooks in {NOTEBOOKS}.")
    return found


def find_notebook(name: str | Path) -> Path:
    """The notebook that "03", "03_affnet" or a path means. Raises ValueError that lists what there is."""
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    stem = str(name).removesuffix(".ipynb")
    found = [path for path in list_notebooks() if path.stem == stem or path.stem.startswith(f"{stem}_")]
    if len(found) != 1:
        known = ", ".join(path.stem for path in list_notebooks())
        raise ValueError(f"{name!s} names {'several' if found else 'no'} notebooks; there are: {known}.")
    return found[0]


def notebook_parameters(notebook: Path) -> dict[str, str]:
    """Name → default (source text) of all in the parameters cell. Raises ValueError if there is none."""
    import papermill

    try:
        found = papermill.inspect_notebook(str(notebook))
    except ValueError as error:
        raise ValueError(f"{notebook.name} cannot be read: {error}") from error
    if not found:
        raise ValueError(f"{notebook.name} has no cell tagged `parameters` that sets some.")
    return {name: parameter["default"] for name, parameter in found.items()}


def plan(
    notebook: str | Path,
    profile: str,
    dataset: str,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    label: str = "",
) -> Job:
    """A checked job. Raises ValueError or TypeError, also for what papermill would only warn of."""
    path = find_notebook(notebook)
    config = load_config(profile, dataset, **(overrides or {}))
    seeds, parameters = list(seeds), dict(parameters or {})
    if not seeds or len(set(seeds)) < len(seeds) or any(type(seed) is not int for seed in seeds):
        raise ValueError(f"seeds are {seeds}; one or more different whole numbers are needed.")
    for name in COMMON:
        if name in parameters:
            option = "set" if name == "overrides" else name
            raise ValueError(f"{name} is not given as a notebook parameter; use --{option}.")
    common = {"profile": profile, "dataset": dataset, "seeds": seeds, "overrides": dict(overrides or {})}
    given = {**common, **parameters}
    known = notebook_parameters(path)
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"{path.stem} has no parameter {', '.join(unknown)}; it has: {', '.join(known)}.")
    return Job(path, config, given, re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-"))


def is_done(job: Job) -> bool:
    """Whether the job was completed under the same hash, and its executed copy is still there."""
    return job.copy.exists() and manifest.done_hash(job.folder, job.name) == job.hash()


# Running one notebook


def notebook_lock(job: Job):
    """Be the only runner on this job, or raise NotebookBusy. The lock of a dead process is free."""

    def busy():
        raise NotebookBusy(
            f"Another run is executing {job.name} into {job.folder}; "
            "wait for it or end it, then give the command again."
        )

    return locked(lock_path(job.folder, job.name), busy)


@contextmanager
def own_kernel() -> Iterator[dict[str, str]]:
    """Environment in which Jupyter's `python3` is this interpreter, whatever kernels the user has."""
    with tempfile.TemporaryDirectory(prefix="fgvc-kernel-") as folder:
        # Errors only: it warns of unencrypted TCP, which does not leave the machine.
        quiet = "--IPKernelApp.log_level=ERROR"
        spec = {
            "argv": [sys.executable, "-m", "ipykernel_launcher", quiet, "-f", "{connection_file}"],
            "display_name": "Python 3 (fgvclib)",
            "language": "python",
        }
        kernel = Path(folder) / "kernels" / "python3" / "kernel.json"
        kernel.parent.mkdir(parents=True)
        kernel.write_text(json.dumps(spec), encoding="utf-8")
        environment = {
            **os.environ,
            "JUPYTER_PATH": _first_on(folder, "JUPYTER_PATH"),
            # The notebooks' working directory is not the caller's.
            "FGVC_RESULTS": str(results_root().absolute()),
            "FGVC_DATA": str(data_root().absolute()),
            "FGVC_FOLDER": str(folder_root().absolute()),
        }
        if (PROJECT / "pyproject.toml").exists():  # a checkout works without having been installed
            environment["PYTHONPATH"] = _first_on(PROJECT, "PYTHONPATH")
        yield environment


def _first_on(folder: str | Path, variable: str) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def run_notebook(
    notebook: str | Path,
    profile: str,
    dataset: str,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    timeout: float | None = None,
    force: bool = False,
) -> Path:
    """Execute a notebook unless that is done; the path of its executed copy. `timeout` is in minutes.

    Raises ValueError or TypeError before anything is run, NotebookBusy, and NotebookFailed.
    """
    job = plan(notebook, profile, dataset, seeds, overrides, parameters)
    _run(job, timeout, force)
    return job.copy


def _run(job: Job, timeout: float | None, force: bool) -> bool:
    """Run one job under its lock; whether it had to be executed."""
    with notebook_lock(job):
        return _run_locked(job, timeout, force)


def _run_locked(job: Job, timeout: float | None, force: bool) -> bool:
    manifest.check_configuration(job.folder, job.config)
    if not force and is_done(job):
        with suppress(OSError):  # what is done stays done where its data cannot be had
            manifest.check_dataset(job.folder, job.config)
        _say(f"{job.name} is done (--force runs it again).")
        return False
    _say(f"{job.name}: {job.config.profile}, {job.config.dataset}, seeds {job.parameters['seeds']}")
    # Not done from here to its end; nor is the whole notebook, whose tables a cell of a grid overwrites.
    manifest.forget(job.folder, job.config, [job.name, job.notebook.stem])
    for path in (job.copy, job.partial, job.failed):
        path.unlink(missing_ok=True)
    job.copy.parent.mkdir(parents=True, exist_ok=True)
    fingerprint, began = job.hash(), time.monotonic()
    started = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        status = _execute(job, timeout)
        _raise_if_failed(job, status, timeout)
        _publish(job)
    except BaseException:
        with suppress(FileNotFoundError):
            job.partial.replace(job.failed)
        raise
    minutes = round((time.monotonic() - began) / 60, 2)
    entry = {"hash": fingerprint, "parameters": job.parameters, "started": started, "minutes": minutes}
    manifest.record(job.folder, job.config, job.name, entry)
    _say(f"{job.name} is done, {minutes:.1f} minutes.")
    return True


def _execute(job: Job, timeout: float | None) -> int | None:
    """Exit status of papermill, None at the time limit (minutes). What cells print goes to the terminal."""
    arguments = {
        "input_path": str(job.notebook),
        "output_path": str(job.partial.absolute()),
        "parameters": job.parameters,
        "kernel_name": "python3",
        "language": "python",
        "cwd": str(job.notebook.parent),
        "progress_bar": False,  # cells print their own
        "start_timeout": START_SECONDS,
        "iopub_timeout": 60,  # the default of 4 s is too short on a busy machine
    }
    command = [sys.executable, "-P", "-c", CHILD, json.dumps(arguments)]
    with own_kernel() as environment:
        environment[HEADLESS] = job.name  # which trainings record as their command
        # In a session of its own, as papermill would answer the terminal's Ctrl-C by killing the kernel.
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment, start_new_session=True)
        try:
            return child.wait(None if timeout is None else timeout * 60)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _stop(child)


def _stop(child: subprocess.Popen) -> None:
    """End what still runs: interrupt the cell so that it can save, then kill. A second Ctrl-C kills now."""
    import psutil

    if child.poll() is None:
        kernels = psutil.Process(child.pid).children()
        processes = psutil.Process(child.pid).children(recursive=True)
        _say(f"Stopping; a training may take up to {GRACE_SECONDS} s to save.")
        for kernel in kernels:
            with suppress(psutil.NoSuchProcess):
                kernel.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            child.wait(GRACE_SECONDS)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        child.kill()
        child.wait()
    child.stdin.close()


def _raise_if_failed(job: Job, status: int | None, timeout: float | None) -> None:
    """Raises NotebookFailed unless papermill succeeded and every code cell was executed."""
    cells = _code_cells(job.partial)
    begun = [number for number, cell in enumerate(cells, 1) if cell.metadata.papermill.start_time]
    last = max(begun, default=None)
    outputs = cells[last - 1].outputs if last else []
    raised = [output for output in outputs if output.output_type == "error"]
    if status is None:
        error = f"stopped at the time limit of {timeout:g} minutes."
    elif status == DEAD_KERNEL:
        error = "the kernel died (out of memory, or killed from outside)."
    elif raised:  # SystemExit: 0, too, which papermill takes for success
        error = " ".join(f"{raised[-1].ename}: {raised[-1].evalue}".split())
    elif status != 0:
        error = f"papermill ended with exit status {status}; its message stands above."
    elif not cells or any(cell.execution_count is None for cell in cells):
        error = "not every code cell was executed."
    else:
        return
    source = cells[last - 1].source.strip().splitlines()[0] if last else ""
    raise NotebookFailed(job.name, last, source, error, job.failed)


def _code_cells(copy: Path) -> list:
    """Code cells that are not blank; none if the copy was never written or only in part."""
    import nbformat

    try:
        cells = nbformat.read(copy, 4).cells
    except (FileNotFoundError, ValueError):
        return []
    return [cell for cell in cells if cell.cell_type == "code" and cell.source.strip()]


def _publish(job: Job) -> None:
    """Move the executed copy to its name, without the local paths that papermill puts into it."""
    import nbformat

    executed = nbformat.read(job.partial, 4)
    executed.metadata.papermill.update(input_path=job.notebook.name, output_path=job.copy.name)
    with atomic_path(job.copy) as temporary:
        nbformat.write(executed, temporary)
    job.partial.unlink()


def _say(text: str) -> None:
    print(text, flush=True)  # unbuffered: the child writes to the same terminal


# Running many


def run_all(
    profile: str,
    dataset: str,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
    timeout: float | None = None,
    force: bool = False,
    until: str = "",
) -> Path:
    """Execute all numbered notebooks in order, up to the number `until`, then print the tables; the results folder.

    A parameter goes to the notebooks that have it; ValueError if none does. `timeout`: minutes per notebook.
    """
    began = time.monotonic()
    chosen = [notebook for notebook in list_notebooks() if not until or notebook.stem[:2] <= until]
    known = {notebook: notebook_parameters(notebook) for notebook in chosen}
    for name in parameters or {}:
        if not any(name in names for names in known.values()):
            raise ValueError(f"No notebook has a parameter {name}.")
    jobs = []
    for notebook, names in known.items():
        own = {name: value for name, value in (parameters or {}).items() if name in names}
        jobs.append(plan(notebook, profile, dataset, seeds, overrides, own))
    folder, ran = jobs[0].folder, False
    for job in jobs:
        # The comparison reads what the others made.
        stale = ran and job.notebook.stem.startswith(COMPARISON)
        ran |= _run(job, timeout, force or stale)
    print_tables(folder)
    _say(f"\nTotal: {(time.monotonic() - began) / 60:.1f} minutes.")
    return folder


def run_grid(
    datasets: Sequence[str],
    rows: Sequence[str],
    seeds: Sequence[int],
    profile: str,
    overrides: dict[str, Any] | None = None,
    timeout: float | None = None,
    force: bool = False,
    gather: bool = True,
) -> dict[str, str]:
    """Run the ablation for every data set, row and seed, then gather each data set's tables; job → error.

    Without rows, one cell of the grid trains all rows of a seed; without `gather`, the cells are all. What fails does
    not stop the others, but a data set with a failed cell is not gathered: its tables would hide what is missing.
    """
    began = time.monotonic()
    plans = {dataset: _plan_grid(dataset, rows, seeds, profile, overrides) for dataset in datasets}
    failures: dict[str, str] = {}
    for dataset, (cells, tables) in plans.items():
        try:
            _run_grid_folder(cells, tables if gather else [], timeout, force, failures)
        except (ValueError, OSError) as error:  # such as a data set that can not be had
            failures[dataset] = str(error)
    _say(f"\nGrid: {sum(len(cells) for cells, _ in plans.values())} cells, {len(failures)} failures, "
         f"{(time.monotonic() - began) / 60:.1f} minutes.")  # fmt: skip
    for job, error in failures.items():
        _say(f"  {job}: {error}")
    return failures


def _plan_grid(dataset, rows, seeds, profile, overrides) -> tuple[list[Job], list[Job]]:
    """The cells of one data set, and the notebooks that gather them."""
    cells = []
    for row in rows or [None]:
        for seed in seeds:
            parameters = {"rows": [row] if row else []}
            label = f"{row or 'all'}-seed{seed}"
            cells.append(plan(ABLATION, profile, dataset, [seed], overrides, parameters, label))
    ablation = plan(ABLATION, profile, dataset, seeds, overrides, {"rows": list(rows)})
    return cells, [ablation, plan(COMPARISON, profile, dataset, seeds, overrides)]


def _run_grid_folder(cells, tables, timeout, force, failures) -> None:
    """Run one data set's part of a grid; errors go into `failures`."""
    complete = True
    for cell in cells:
        complete &= _try(cell, timeout, force, failures)
    if not complete:
        _say(f"{cells[0].folder.name}: not gathered into tables, as cells of the grid failed.")
        return
    for number, job in enumerate(tables):
        # The trainings are cached, so this only makes the tables; a comparison may be older than they.
        if not _try(job, timeout, number > 0, failures):
            return


def _try(job: Job, timeout: float | None, force: bool, failures: dict[str, str]) -> bool:
    try:
        _run(job, timeout, force)
    except (NotebookFailed, NotebookBusy) as error:
        _say(str(error))
        failures[f"{job.folder.name} {job.name}"] = str(error)
        return False
    return True


# Showing results


def print_tables(folder: Path) -> None:
    """Print the tables that a results folder has, paper | ours, and say where its figures are."""
    import pandas

    for table in TABLES:
        path = folder / f"{table}.csv"
        if path.exists():
            shown = beside_paper(pandas.read_csv(path))
            _say(f"\n{table} (paper | ours)\n{shown.to_string(index=False)}")
    figures = sorted((folder / "figures").glob("*.png"))
    _say(f"\n{len(figures)} figures: {folder / 'figures'}")


def beside_paper(table):
    """Text table in which a measured column and the `paper_` column of its name share cells: "paper | ours".

    `paper_accuracy` belongs to the first column that is called `accuracy` or starts with `accuracy_`.
    """
    shown = table.map(_rounded)
    for paper in [name for name in table.columns if name.startswith("paper_")]:
        wanted = paper.removeprefix("paper_")
        ours = [name for name in table.columns if name == wanted or name.startswith(f"{wanted}_")]
        if ours:
            shown[ours[0]] = shown[paper] + " | " + shown[ours[0]]
            shown = shown.drop(columns=paper)
    return shown


def _rounded(value: Any) -> str:
    if isinstance(value, float):
        return "–" if value != value else f"{value:.0f}" if value.is_integer() else f"{value:.3f}"
    return str(value)


def describe(notebooks: Iterable[Path]) -> str:
    """One paragraph a notebook: name, title (its first heading) and parameters."""
    import nbformat

    lines = []
    for notebook in notebooks:
        text = "\n".join(c.source for c in nbformat.read(notebook, 4).cells if c.cell_type == "markdown")
        title = re.search(r"^#+ *(.+)$", text, re.MULTILINE)
        lines.append(f"{notebook.stem}  {title.group(1) if title else ''}".rstrip())
        lines.append("    " + ", ".join(f"{n} = {v}" for n, v in notebook_parameters(notebook).items()))
    return "\n".join(lines)


def lab(arguments: Sequence[str] = ()) -> int:
    """Open JupyterLab on the notebooks, with this interpreter as its `python3`; its exit status."""
    with own_kernel() as environment:
        quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        uploads = f"--ServerApp.tornado_settings={UPLOADS}"
        return _serve([sys.executable, "-m", "jupyterlab", str(NOTEBOOKS), *quiet, uploads, *arguments], environment)


def app(profile: str, dataset: str, overrides: dict[str, Any] | None = None, arguments: Sequence[str] = ()) -> int:
    """Serve the explorer's notebook, with these parameters, as an app; Voilà's exit status."""
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    job = plan(EXPLORER, profile, dataset, [0], overrides)
    with own_kernel() as environment, tempfile.TemporaryDirectory(prefix="fgvc-app-") as folder:
        served = str(Path(folder) / job.notebook.name)
        write_ipynb(parameterize_notebook(load_notebook_node(str(job.notebook)), job.parameters), served)
        uploads = f"--Voila.tornado_settings={UPLOADS}"
        return _serve([sys.executable, "-m", "voila", served, uploads, *arguments], environment)


def _serve(command: Sequence[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)
    while True:
        with suppress(KeyboardInterrupt):  # the server gets it too, and asks or ends
            return process.wait()
