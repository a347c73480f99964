"""The course: student notebooks made from the instructor's, and handed-in ones marked.

An exercise is written once, in `notebooks/exercises/instructor/`. In a cell tagged `solution`, what stands between
`BEGIN SOLUTION` and `END SOLUTION` becomes a blank for students; a line with `HINT` says how to fill it. Cells tagged
`instructor` are left out. Everything else is the same, cell ids included, by which a handed-in notebook is recognised;
where an editor dropped them, its text serves.
"""

import difflib
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from fgvclib.tools.kernels import NOTEBOOKS, WITHOUT_GRAMMAR, own_kernel
from fgvclib.tools.runner import START_SECONDS
from fgvclib.utils.files import atomic_path
from fgvclib.utils.progress import HEADLESS

INSTRUCTOR = NOTEBOOKS / "exercises" / "instructor"
STUDENT = NOTEBOOKS / "exercises" / "student"
VERDICT = "application/vnd.fgvc.verdict+json"  # how an executed check tells its result; see `checks.Verdict`
CELL_SECONDS = 300  # more than any cell needs on a slow laptop: an endless loop is interrupted, or killed in the end
BLANKS = {"code": "...  # your code", "markdown": "*Your answer:*"}
_BLOCK = re.compile(r"^(?P<indent> *)(?:#|<!--) BEGIN SOLUTION.*?END SOLUTION[^\n]*$", re.MULTILINE | re.DOTALL)

# A kernel of its own, so that submissions neither see each other nor end the marking.
_EXECUTE = f"""
{WITHOUT_GRAMMAR}
import os, sys, nbclient, nbformat
source, folder, cell_seconds, start_seconds = sys.argv[1:]
notebook = nbformat.read(source, 4)
client = nbclient.NotebookClient(
    notebook, timeout=int(cell_seconds), startup_timeout=int(start_seconds), interrupt_on_timeout=True,
    allow_errors=True, kernel_name="python3", resources={{"metadata": {{"path": folder}}}},
)
def keep(**_):
    nbformat.write(notebook, source + ".part")
    os.replace(source + ".part", source)
client.on_cell_executed = keep  # a cell that never ends hides no verdict before it
try:
    client.execute()
finally:
    keep()
"""


# Making the student notebooks


def student_version(notebook: NotebookNode) -> NotebookNode:
    """The instructor's notebook with blanks for solutions. Raises ValueError for a cell that is not marked properly."""
    student = deepcopy(notebook)
    student.cells = [cell for cell in student.cells if "instructor" not in _tags(cell)]
    for cell in student.cells:
        if "solution" in _tags(cell):
            cell.source = _blank(cell)
            cell.metadata.tags = ["exercise"]
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return student


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _blank(cell: NotebookNode) -> str:
    """The cell's source with every marked block replaced."""
    blank = BLANKS[cell.cell_type]
    source, count = _BLOCK.subn(lambda block: block["indent"] + blank, cell.source)
    if not count or re.search("(BEGIN|END) SOLUTION", source):
        raise ValueError(f"The solution cell {cell.id} needs pairs of lines BEGIN SOLUTION and END SOLUTION.")
    if "HINT" not in source:
        raise ValueError(f"The solution cell {cell.id} gives no HINT outside its solution.")
    return source


def student_texts() -> dict[Path, str]:
    """Path → text of every student notebook, as the instructor's say now: the same text every time."""
    notebooks = sorted(INSTRUCTOR.glob("*.ipynb"))
    if not notebooks:
        raise ValueError(f"There are no notebooks in {INSTRUCTOR}.")
    return {STUDENT / path.name: nbformat.writes(student_version(nbformat.read(path, 4))) + "\n" for path in notebooks}


def build() -> Iterator[str]:
    """Write the student notebooks; yield a line about each."""
    for path, text in student_texts().items():
        changed = not path.exists() or path.read_text(encoding="utf-8") != text
        if changed:
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        yield f"{'written' if changed else 'unchanged'}: {path}"


# Marking what students hand in


def grade(path: Path | str) -> dict[int, dict]:
    """Execute a handed-in notebook → exercise number → {"passed": bool, "message": str}.

    The student's answers and added cells count; the other cells are the instructor's, so that an edited check has no
    effect. Raises ValueError where the file is not a notebook of this course. It executes what students wrote: use an
    account or a container that can be lost.
    """
    path = Path(path)
    executed = _execute(_with_original_checks(path))
    verdicts = {}
    for cell in executed.cells:
        if "exercise" in cell.metadata:
            verdicts[cell.metadata.exercise] = _verdict(cell.outputs)
    return dict(sorted(verdicts.items()))


def _verdict(outputs: list[NotebookNode]) -> dict:
    """What an executed check cell says; one that stopped, or was never reached, says no."""
    for output in outputs:
        if VERDICT in output.get("data", {}):
            return {key: output.data[VERDICT][key] for key in ("passed", "message")}
        if output.output_type == "error":
            return {"passed": False, "message": f"The check could not run ({output.ename}: {output.evalue})."}
    return {"passed": False, "message": "The check was not reached; run the notebook from top to bottom."}


def _with_original_checks(path: Path) -> NotebookNode:
    try:
        submission = nbformat.reads(path.read_text(encoding="utf-8-sig"), 4)  # some editors write a byte order mark
    except OSError:
        raise
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        raise ValueError(f"{path} is not a notebook ({' '.join(str(error).split())}).") from error
    for source in sorted(INSTRUCTOR.glob("*.ipynb")):
        original = student_version(nbformat.read(source, 4))
        _restore_ids(submission, original)
        given = {cell.get("id") for cell in submission.cells}
        if given & {cell.id for cell in original.cells if "exercise" in _tags(cell)}:
            return _merged(submission, original)
    raise ValueError(f"{path} has no exercise of this course; hand in a copy of a notebook in {STUDENT}.")


def _restore_ids(submission: NotebookNode, original: NotebookNode) -> None:
    """Give the cells of a submission without the original's ids those ids, where it has the original's checks.

    Other editors drop ids. Cells that were not changed are found by their text; between them, an exercise is the cell
    of its kind that resembles it most.
    """
    known = {cell.id for cell in original.cells}
    texts = {cell.source for cell in submission.cells}
    checks = [cell for cell in original.cells if "exercise" in cell.metadata]
    if known & {cell.get("id") for cell in submission.cells} or not any(cell.source in texts for cell in checks):
        return
    before, after = [cell.source for cell in original.cells], [cell.source for cell in submission.cells]
    matched = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for kind, first, last, start, end in matched:
        free = submission.cells[start:end]
        for cell in original.cells[first:last]:
            alike = [other for other in free if other.cell_type == cell.cell_type]
            if kind == "equal":
                alike = alike[:1]
            if alike:
                best = max(alike, key=lambda other: difflib.SequenceMatcher(None, cell.source, other.source).ratio())
                best.id = cell.id
                free.remove(best)


def _merged(submission: NotebookNode, original: NotebookNode) -> NotebookNode:
    """The submission, with the original's text in all cells but exercises; lost ones come back at the end."""
    known = {cell.id: cell for cell in original.cells}
    merged = deepcopy(original)
    merged.cells = [_trusted(cell, known.get(cell.get("id"))) for cell in submission.cells]
    present = {cell.id for cell in merged.cells}
    merged.cells += [cell for cell in original.cells if cell.id not in present]
    return merged


def _trusted(cell: NotebookNode, original: NotebookNode | None) -> NotebookNode:
    """The original of a cell; of an exercise or an added cell, the student's source without outputs and metadata."""
    if original is not None and "exercise" not in _tags(original):
        return original
    clean = deepcopy(cell)
    clean.metadata = NotebookNode()
    clean.setdefault("id", secrets.token_hex(4))
    if clean.cell_type == "code":
        clean.outputs, clean.execution_count = [], None
    return clean


def _execute(notebook: NotebookNode) -> NotebookNode:
    """As far as it comes: until a kernel dies, or a cell ignores its interrupt."""
    with tempfile.TemporaryDirectory(prefix="fgvc-grade-") as folder, own_kernel() as environment:
        copy, errors = Path(folder) / "submission.ipynb", Path(folder) / "errors.txt"
        nbformat.write(notebook, copy)
        environment[HEADLESS] = "1"
        command = [sys.executable, "-P", "-c", _EXECUTE, str(copy), folder, str(CELL_SECONDS), str(START_SECONDS)]
        with errors.open("w") as told:  # not a pipe, which what a cell has started would keep open
            output = {"stdout": subprocess.DEVNULL, "stderr": told}
            child = subprocess.Popen(command, env=environment, start_new_session=True, **output)
            try:
                _wait(child, copy)
            except subprocess.TimeoutExpired:
                return nbformat.read(copy, 4)
            finally:
                _kill(child)
        executed = nbformat.read(copy, 4)
        if not any(cell.get("execution_count") for cell in executed.cells):
            raise OSError(f"No cell could be executed: {errors.read_text(errors='replace').strip()[-500:]}")
        return executed


def _wait(child: subprocess.Popen, copy: Path) -> None:
    """Until the child ends. Raises TimeoutExpired where `copy`, written after every cell, was left for too long."""
    while True:
        written = copy.stat().st_mtime
        try:
            child.wait(max(0, written + START_SECONDS + CELL_SECONDS - time.time()))
            return
        except subprocess.TimeoutExpired:
            if copy.stat().st_mtime == written:
                raise


def _kill(child: subprocess.Popen) -> None:
    """End what still runs of a child process and of those that it has started."""
    import psutil

    if child.poll() is None:
        for process in [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        child.wait()
