"""Runs notebooks, one or the whole collection, each only if it is not yet done under the same hash.

Several runners may work on one results folder, each on other notebooks.

Papermill runs in a process of its own, and so does the kernel. A notebook counts as done only when papermill
succeeded, the kernel lived, and every code cell was executed: `sys.exit(0)` in a cell satisfies the first
two, and cells of a killed kernel read "completed".
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fgvclib.config import SMALL_CROP, Config, check_seeds, load_config, results_folder
from fgvclib.tools import manifest
from fgvclib.tools.kernels import NOTEBOOKS, WITHOUT_GRAMMAR, own_kernel
from fgvclib.utils.files import BUSY, GRACE_SECONDS, atomic_path, lock_path, locked
from fgvclib.utils.progress import HEADLESS
from fgvclib.utils.provenance import library_hash

COMPARISON, EXPLORER = "07", "09"
NEED_RUNS = ("02", "04", "05")  # notebooks that train what they do not find
BESIDE = "04"  # the last notebook beside trainings; later ones read the runs of all rows and seeds
OF_EARLIER_RUNS = ("06", "07")  # but for these: of one seed they read the runs of 02 and 04 alone
MEASURES = "03"  # of those the last one executed: it waits for the trainings' end before it measures runtimes
COMMON = ("profile", "dataset", "seeds", "overrides")  # parameters of every notebook
NAME_LISTS = ("rows", "train_systems")  # parameters that are lists of names
THREADS = "OMP_NUM_THREADS"
START_SECONDS = 300  # for a kernel to start on a busy machine
DEAD_KERNEL = 138

# os.read returns once the parent is gone, so that no orphaned training goes on writing.
END_WITH_PARENT = """
import json, os, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
"""
CHILD = f"""{END_WITH_PARENT}
{WITHOUT_GRAMMAR}
import nbclient.exceptions, papermill.exceptions
try:
    papermill.execute_notebook(**json.loads(sys.argv[1]), stdout_file=sys.stdout, stderr_file=sys.stderr)
except papermill.exceptions.PapermillExecutionError:
    sys.exit(1)  # the executed copy tells more
except nbclient.exceptions.DeadKernelError:
    sys.exit({DEAD_KERNEL})
"""
TRAININGS = f"""{END_WITH_PARENT}
sys.argv[0] = "fgvc"  # which trainings record as their command
from fgvclib.tools.cli import main
from fgvclib.utils.files import BUSY, locked
with locked(os.environ[BUSY]):
    sys.exit(main())
"""


class NotebookFailed(RuntimeError):
    """A notebook was not executed to its end.

    `cell` counts code cells as Jupyter's In [n] does (None: before the first); `copy` is kept for inspection (None:
    nothing had been written).
    """

    def __init__(self, notebook: str, cell: int | None, source: str, error: str, copy: Path | None):
        where = f" in cell In [{cell}] ({source})" if cell else ""
        kept = f"\nThe notebook as far as it came: {copy}" if copy else ""
        super().__init__(f"{notebook} failed{where}: {error}{kept}")
        self.notebook, self.cell, self.error, self.copy = notebook, cell, error, copy


class TrainingsFailed(RuntimeError):
    """The trainings beside the notebooks ended with an error, which `fgvc train` has told."""


class NotebookBusy(RuntimeError):
    """Another runner is executing the same notebook into the same results folder."""


@dataclass(frozen=True)
class Job:
    """One execution of one notebook; `parameters` is all that goes into its parameters cell."""

    notebook: Path
    config: Config
    parameters: dict[str, Any]

    @property
    def folder(self) -> Path:
        return results_folder(self.config)

    @property
    def name(self) -> str:
        """The key in the manifest, and the executed copy's name without suffix."""
        return self.notebook.stem

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
    """Name → default (source text) of all in the parameters cell. Raises ValueError if there is none, OSError."""
    import papermill

    try:
        found = papermill.inspect_notebook(_without_fields(notebook))
    except OSError:
        raise
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{notebook.name} is not a readable notebook ({reason}).") from error
    if not found:
        raise ValueError(f"{notebook.name} has no cell tagged `parameters` that sets some.")
    return {name: parameter["default"] for name, parameter in found.items()}


def _without_fields(path: Path) -> str:
    """A path for papermill, which would put parameters in place of {names}."""
    return str(path).replace("{", "{{").replace("}", "}}")


def plan(
    notebook: str | Path,
    profile: str,
    dataset: str,
    seeds: Sequence[int],
    overrides: dict[str, Any] | None = None,
    parameters: dict[str, Any] | None = None,
) -> Job:
    """A checked job. Raises ValueError or TypeError, also for what papermill would only warn of."""
    path = find_notebook(notebook)
    config = load_config(profile, dataset, **(overrides or {}))
    seeds, parameters = list(seeds), _with_lists(parameters)
    check_seeds(seeds)
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
    return Job(path, config, given)


def _with_lists(parameters: dict[str, Any] | None) -> dict[str, Any]:
    """Notebook parameters in which lists of names may have been given as text, such as "Baseline". Raises TypeError."""
    read = dict(parameters or {})
    for name in set(read) & set(NAME_LISTS):
        if isinstance(read[name], str):
            read[name] = [part.strip() for part in read[name].split(",") if part.strip()]
        if not isinstance(read[name], list | tuple) or not all(isinstance(part, str) for part in read[name]):
            raise TypeError(f"{name} is {read[name]!r}; give names, separated by commas.")
    return read


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
    manifest.forget(job.folder, job.config, [job.name])  # not done from here to its end
    for path in (job.partial, job.failed):  # an earlier copy stays until another takes its place
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
        "input_path": _without_fields(job.notebook),
        "output_path": _without_fields(job.partial.absolute()),
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
    raise NotebookFailed(job.name, last, source, error, job.failed if job.partial.exists() else None)


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
    """Execute all numbered notebooks, up to the number `until` → the results folder.

    In order, but where trainings run beside them those that need the fewest runs come first, and of the ones before
    the trainings' end 03, which measures runtimes, comes last. A parameter goes to the notebooks
    that have it; ValueError if none does. `timeout`: minutes per notebook.
    """
    began, parameters = time.monotonic(), _with_lists(parameters)
    chosen = [notebook for notebook in list_notebooks() if not until or notebook.stem[:2] <= until]
    known = {notebook: notebook_parameters(notebook) for notebook in chosen}
    for name in parameters:
        if not any(name in names for names in known.values()):
            raise ValueError(f"No notebook has a parameter {name}.")
    jobs = []
    for notebook, names in known.items():
        own = {name: value for name, value in parameters.items() if name in names}
        jobs.append(plan(notebook, profile, dataset, seeds, overrides, own))
    folder, ran = jobs[0].folder, False
    needed = [job for job in jobs if job.notebook.stem.startswith(NEED_RUNS) and (force or not is_done(job))]
    side_by_side = needed and needed[0].config.crop_size <= SMALL_CROP
    if side_by_side:
        jobs.sort(key=lambda job: (_waits(job), _number(job) == MEASURES, _number(job)))
        with suppress(OSError):  # drawn once, by all cores, not by the trainings and a notebook at the same time
            manifest.check_dataset(folder, jobs[0].config)
    rows = parameters.get("rows", [])
    with trainings_beside(needed[0], rows) if side_by_side else nullcontext(lambda wait: None) as check_trainings:
        for job in jobs:
            check_trainings(wait=_waits(job))
            # The comparison reads what the others made.
            stale = ran and job.notebook.stem.startswith(COMPARISON)
            ran |= _run(job, timeout, force or stale)
    _say(f"Total: {(time.monotonic() - began) / 60:.1f} minutes.")
    return folder


def _number(job: Job) -> str:
    return job.notebook.stem[:2]


def _waits(job: Job) -> bool:
    """Whether a notebook needs the end of all trainings beside it."""
    one_seed = len(job.parameters["seeds"]) == 1
    return _number(job) > BESIDE and not (one_seed and _number(job) in OF_EARLIER_RUNS)


@contextmanager
def trainings_beside(job: Job, rows: Sequence[str]) -> Iterator[Callable[[bool], None]]:
    """Train what the notebooks need (`fgvc train`) while the block runs; gives a function that looks after it.

    That function takes whether to wait for the end, and raises TrainingsFailed. Notebooks wait for a run that is being
    trained. Leaving the block before the end stops the trainings; an interrupted one says what is saved.
    """
    given = job.parameters
    command = [sys.executable, "-P", "-c", TRAININGS, "train", "--profile", given["profile"]]
    command += ["--dataset", given["dataset"], "--seeds", ",".join(map(str, given["seeds"]))]
    for key, value in given["overrides"].items():
        command += ["--set", f"{key}={json.dumps(value)}"]
    if rows:
        command += ["--rows", ",".join(rows)]
    before = {name: os.environ.get(name) for name in (THREADS, BUSY)}
    with TemporaryDirectory() as folder:
        os.environ[BUSY] = str(Path(folder, "trainings.lock"))
        # In a session of its own, as the terminal's Ctrl-C shall come here alone, to be passed on once.
        child = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
        os.environ[THREADS] = "1"  # of kernels that share the cores with trainings

        def check(wait: bool) -> None:
            status = child.wait() if wait else child.poll()
            if wait:
                _restore(before)
            if status:
                raise TrainingsFailed("A training failed for the reason above; the same command goes on from there.")

        try:
            yield check
        finally:
            _restore(before)
            if child.poll() is None:
                child.send_signal(signal.SIGINT)  # which it ignores where a shell started all of this in the background
                with suppress(subprocess.TimeoutExpired):
                    child.wait(GRACE_SECONDS)
                child.kill()
                child.wait()
            child.stdin.close()


def _restore(environment: dict[str, str | None]) -> None:
    for name, value in environment.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
