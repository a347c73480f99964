"""Kernels with this interpreter and this library, whatever Jupyter and IPython settings the user has."""

import json
import os
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
    """Open JupyterLab on the notebooks, with this interpreter as its `python3`; its exit status."""
    with own_kernel(isolated=False) as environment:
        quiet = ["--LabApp.news_url=None", "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate"]
        uploads = f"--ServerApp.tornado_settings={UPLOADS}"
        return _serve([sys.executable, "-m", "jupyterlab", str(NOTEBOOKS), *quiet, uploads, *arguments], environment)


def app(notebook: Path, parameters: dict, arguments: Sequence[str] = ()) -> int:
    """Serve a notebook, with these parameters, as an app; Voilà's exit status."""
    from papermill.iorw import load_notebook_node, write_ipynb
    from papermill.parameterize import parameterize_notebook

    with own_kernel() as environment, tempfile.TemporaryDirectory(prefix="fgvc-app-") as folder:
        served = str(Path(folder) / notebook.name)
        write_ipynb(parameterize_notebook(load_notebook_node(str(notebook)), parameters), served)
        uploads = f"--Voila.tornado_settings={UPLOADS}"
        return _serve([sys.executable, "-m", "voila", served, uploads, *arguments], environment)


def _serve(command: Sequence[str], environment: dict[str, str]) -> int:
    process = subprocess.Popen(command, env=environment)
    while True:
        with suppress(KeyboardInterrupt):  # the server gets it too, and asks or ends
            return process.wait()
