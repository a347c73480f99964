"""Kernels with this interpreter and this library, whatever Jupyter and IPython settings the user has."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fgvclib.config import PROJECT, data_root, folder_root, results_root

NOTEBOOKS = PROJECT / "notebooks"
# Before nbformat is imported: it would build a grammar of IRIs, a second of every start, and here it checks none.
WITHOUT_GRAMMAR = "import sys; sys.modules['rfc3987_syntax'] = None"
# A server cannot notice the end of its parent by its input, as trainings do: JupyterLab asks there before it ends.
SERVER = """
import os, runpy, signal, sys, threading, time
_, parent, module, *arguments = sys.argv
def end_with_parent():
    while os.getppid() == int(parent):
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv = [module, *arguments]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
GRACE_SECONDS = 10  # for a server to end its kernels
UPLOADS = {"websocket_max_message_size": 100 * 2**20}  # bytes; a photo of a phone is beyond the default, 10 MiB


@contextmanager
def own_kernel(isolated: bool = True) -> Iterator[dict[str, str]]:
    """Environment in which Jupyter's `python3` is this interpreter and figures are shown inline.

    An `isolated` kernel reads neither IPython's profile and startup files nor matplotlib's settings of the user, and
    prints UTF-8.
    """
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
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            # The notebooks' working directory is not the caller's.
            "FGVC_RESULTS": str(results_root().absolute()),
            "FGVC_DATA": str(data_root().absolute()),
            "FGVC_FOLDER": str(folder_root().absolute()),
        }
        if (PROJECT / "pyproject.toml").exists():  # a checkout works without having been installed
            environment["PYTHONPATH"] = _first_on(PROJECT, "PYTHONPATH")
        if isolated:
            settings = Path(folder) / "matplotlibrc"
            settings.touch()
            environment |= {"IPYTHONDIR": folder, "MATPLOTLIBRC": str(settings), "PYTHONIOENCODING": "utf-8"}
            environment.pop("PYTHONSTARTUP", None)  # IPython runs it as well
        yield environment


def _first_on(folder: str | Path, variable: str) -> str:
    return os.pathsep.join(filter(None, [str(folder), os.environ.get(variable)]))


def lab(arguments: Sequence[str] = ()) -> int:
    """Open JupyterLab on the notebooks, with this interpreter as its `python3`; its exit status.

    Its root is the project, so that links lead from the notebooks to the documents and the committed runs.
    """
    with own_kernel(isolated=False) as environment:
        quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        where = [f"--ServerApp.root_dir={PROJECT}", f"--LabApp.default_url=/lab/tree/{NOTEBOOKS.name}"]
        uploads = f"--ServerApp.tornado_settings={UPLOADS}"
        return _serve("jupyterlab", [*where, *quiet, uploads, *arguments], environment)


def app(notebook: Path, parameters: dict, arguments: Sequence[str] = ()) -> int:
    """Serve a notebook, with these parameters, as an app; Voilà's exit status."""
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    with own_kernel() as environment, tempfile.TemporaryDirectory(prefix="fgvc-app-") as folder:
        served = str(Path(folder) / notebook.name)
        write_ipynb(parameterize_notebook(load_notebook_node(str(notebook)), parameters), served)
        uploads = f"--Voila.tornado_settings={UPLOADS}"
        return _serve("voila", [served, uploads, *arguments], environment)


def _serve(module: str, arguments: Sequence[str], environment: dict[str, str]) -> int:
    """The exit status of a server, a Python module, that ends with this process however this one ends."""
    command = [sys.executable, "-c", SERVER, str(os.getpid()), module, *arguments]
    process = subprocess.Popen(command, env=environment)
    # As an exception, SIGTERM lets the callers remove their folders.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        while True:
            with suppress(KeyboardInterrupt):  # the server gets it too, and asks or ends
                return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_SECONDS)
        process.kill()
