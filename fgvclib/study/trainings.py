"""Several trainings side by side, one thread each: a network at 112 pixels does not use two cores.

Each has a process of its own and prints lines that begin with its run's name. A run that another process is training is
waited for (`runs`), so that none is trained twice.
"""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from fgvclib.config import SMALL_CROP, Config
from fgvclib.study.experiment import SETTING_2, Experiment
from fgvclib.utils.files import BUSY, GRACE_SECONDS
from fgvclib.utils.parallel import process_state
from fgvclib.utils.progress import HEADLESS

# Two at a time, the last two mostly find the warm-up done that is theirs as well: of "No end-to-end" and "Baseline".
ORDER = ("Baseline", "End-to-end", "No end-to-end", "No gradient from AffNet to AttNet", "No local supervision")
POLITENESS = 10  # "nice" of trainings beside notebooks: one notebook after the other is what takes longest


class TrainingsFailed(RuntimeError):
    """One or several trainings failed; the message has a line for each."""


def wanted_runs(experiment: Experiment, rows: Sequence[str] = ()) -> list[tuple[str, int]]:
    """Row and seed of each run; without rows, what the notebooks train: Table 2, and setting 2 with the first seed.

    A committed run of setting 2 will do, as of all that stands in Table 3 alone. The first seed comes first, and of a
    seed's rows those that notebooks 02 and 04 wait for.
    """
    seeds = experiment.seeds
    if rows:
        return [(row, seed) for seed in seeds for row in rows]
    trained = experiment.committed(SETTING_2, announce=lambda text: None)
    first = [*ORDER[:2], *([] if trained else [SETTING_2]), *ORDER[2:]]
    return [(row, seeds[0]) for row in first] + [(row, seed) for seed in seeds[1:] for row in ORDER]


def default_jobs(config: Config) -> int:
    """One for each core where crops are small and there is no GPU; else one, which uses all there is."""
    if process_state().device.type != "cpu" or process_state().num_processes > 1 or config.crop_size > SMALL_CROP:
        return 1
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def train_side_by_side(experiment: Experiment, runs: Sequence[tuple[str, int]], jobs: int) -> None:
    """Train runs (row, seed) that are not there yet, `jobs` at a time; one job trains in this process.

    Where one fails, the others go on, and TrainingsFailed tells at the end; a single run raises its own error. An
    interrupt stops all of them, each after it has said what is saved. Raises ValueError where the processes of
    `accelerate launch`, which share every run, are to train several at a time.
    """
    together = process_state().num_processes
    if len(runs) > 1 and jobs > 1 and together > 1:
        raise ValueError(
            f"--jobs {jobs} does not go with `accelerate launch`, whose {together} processes train one run together; "
            "leave --jobs out."
        )
    # Of these processes, one that went on alone would wait for the others for ever.
    if len(runs) == 1 or together > 1:
        for row, seed in runs:
            experiment.run(row, seed)
        return
    failures = _train_in_turn(experiment, runs) if jobs == 1 else _train_together(experiment, runs, jobs)
    if failures:
        raise TrainingsFailed("\n".join(failures))


def _train_in_turn(experiment: Experiment, runs: Sequence[tuple[str, int]]) -> list[str]:
    """One training after the other, in this process → a line for each that failed."""
    failures = []
    for number, (row, seed) in enumerate(runs):
        if BUSY in os.environ and number == 1:
            let_notebooks_go_first()
        try:
            experiment.run(row, seed)
        except Exception as error:
            if _comes_of_an_interrupt(error):
                raise KeyboardInterrupt from error
            failures.append(f"{experiment.run_folder(row, seed).name}: {error}")
    return failures


def _comes_of_an_interrupt(error: BaseException | None) -> bool:
    """Whether a library has made another error of an interrupt."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _train_together(experiment: Experiment, runs: Sequence[tuple[str, int]], jobs: int) -> list[str]:
    """`jobs` trainings at a time, each in a process of its own → a line for each that failed."""
    _ = experiment.splits  # drawn, unpacked or read once, before all need it
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    context.set_forkserver_preload([__name__])  # torch is imported once; without a fork server it has no effect
    waiting, running, failures = list(runs), {}, []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                report, end = context.Pipe(duplex=False)
                first = len(waiting) == len(runs)
                process = context.Process(target=_train, args=(experiment, *waiting.pop(0), first, end))
                process.start()
                end.close()  # the process alone holds it now: the report ends with it
                running[report] = process
            for report in wait(list(running)):
                failures += _failures_of(running.pop(report), report)
    finally:
        _stop(list(running.values()))
    return failures


def _train(experiment: Experiment, row: str, seed: int, first: bool, report: Connection) -> None:
    """One training, in a process of its own; sends a line where it fails. `first`: which notebooks wait for soon."""
    with suppress(AttributeError, OSError):
        os.setsid()  # the terminal's Ctrl-C goes to the parent alone, which passes it on once
    if BUSY in os.environ and not first:
        let_notebooks_go_first()
    start_workers_as_usual()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.setdefault(HEADLESS, "fgvc train")  # no progress bars: several would write to one line
    torch.set_num_threads(1)
    name, stopped = experiment.run_folder(row, seed).name, threading.Event()
    signal.signal(signal.SIGINT, partial(_interrupt, stopped))
    try:
        experiment.run(row, seed, announce=partial(_announce, stopped))
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if stopped.is_set():  # a library has made another error of the interrupt
            print(
                f"{name}: interrupted; what it had saved is kept, and the same command goes on from there.", flush=True
            )
            sys.exit(130)
        report.send(f"{name}: {error}")


def let_notebooks_go_first() -> None:
    """Give way, with this process's whole session, to other sessions."""
    with suppress(AttributeError):  # Windows has no os.nice
        os.nice(POLITENESS)
    # Desktops' Linux first shares the cores between sessions, whatever the processes in them ask for.
    with suppress(OSError):  # other systems have no such file
        Path("/proc/self/autogroup").write_text(str(POLITENESS))


def start_workers_as_usual() -> None:
    """Let this process start its photo workers as a training alone does, and not as it was started itself.

    By a fork server each worker would import torch anew, hold 0.8 GB, and outlive a training that is killed.
    """
    multiprocessing.set_start_method(None, force=True)


def _interrupt(stopped: threading.Event, *_) -> None:
    stopped.set()
    raise KeyboardInterrupt


def _announce(stopped: threading.Event, text: str) -> None:
    """Print a line, then stop where an interrupt was swallowed: Python ignores exceptions in some callbacks."""
    print(text, flush=True)
    if stopped.is_set():
        raise KeyboardInterrupt


def _end_with_parent() -> None:
    """Let no orphan go on training."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _failures_of(process: BaseProcess, report: Connection) -> list[str]:
    """Wait for a process that has reported a failure, or ended → a line for each failure."""
    failures = []
    with report, suppress(EOFError, OSError):  # nothing, or half a line of a process that was killed
        failures.append(report.recv())  # before the join: a line that no pipe holds at once keeps the process waiting
    process.join()
    if process.exitcode:
        failures.append(
            f"A training ended with exit status {process.exitcode} (out of memory, or killed from outside)."
        )
    return failures


def _stop(processes: Sequence[BaseProcess]) -> None:
    """Interrupt trainings, wait for what they save, then kill."""
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGINT)
    for process in processes:
        process.join(GRACE_SECONDS)
        process.kill()
        process.join()
