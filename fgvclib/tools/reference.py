"""Publish a results folder: `python -m fgvclib.tools.reference cpu-synthbirds` copies it into results/reference/.

What is copied: tables, notebooks that are done, the figures that the documents show, and of every run its scores and
what made them, boxes found before training among it; of the run that the repository ships, the weights as well, in
half precision.
"""

import json
import re
import shutil
import sys
from collections.abc import Collection
from pathlib import Path

import torch

from fgvclib.config import PROJECT, results_root
from fgvclib.tools.manifest import read_manifest
from fgvclib.training.checkpoints import read_checkpoint, save_checkpoint
from fgvclib.training.runs import ATTNET, CHECKPOINT

REFERENCE = PROJECT / "results" / "reference"
SHIPPED = "End-to-end-seed0"  # what notebooks 00, 06 and 09 show where nothing has been trained yet
OF_A_RUN = ("metrics.json", "history.csv", "trajectories.csv", "predictions.csv")
DOCUMENTS = ("README.md", "docs/*.md", "docs/book/*.md")
LINK = re.compile(r"(?<=\]\()[^)\s]+(?=\))")
UP = "../../../../"  # from a folder of executed copies to the repository


def publish(name: str) -> Path:
    """Replace results/reference/`name`, but its README, by the folder of that name in the results root.

    Raises ValueError where that holds neither tables nor finished runs, so that nothing is replaced by nothing.
    """
    source, target = results_root() / name, REFERENCE / name
    tables = sorted(source.glob("*.csv"))
    finished = [path.parent for path in source.glob("runs/*/metrics.json")]
    if not tables and not finished:
        raise ValueError(f"{source} holds no tables and no finished run; run the notebooks first (fgvc run all).")
    for old in [path for path in target.glob("*") if path.name != "README.md"]:  # written by hand, about these runs
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    shown = set(re.findall(rf"reference/{re.escape(name)}/figures/([\w.]+)", _documents()))
    written = [path for path in (source / "metrics.json", source / "manifest.json") if path.exists()]
    # Of a notebook that has failed since, the earlier copy is still there: what it shows may be overwritten by now.
    done = [source / "notebooks" / f"{name}.ipynb" for name in read_manifest(source).get("notebooks", {})]
    chosen = [*tables, *written, *(path for path in done if path.exists())]
    chosen += [path for path in source.glob("figures/*.png") if path.name in shown]
    chosen += [run / name for run in finished for name in OF_A_RUN if (run / name).exists()]
    for path in chosen:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    copies = list((target / "notebooks").glob("*.ipynb"))
    for path in copies:
        relink(path, {copy.name for copy in copies})
    for run in finished:
        if (run / ATTNET).exists():
            boxes_alone(run / ATTNET, target / "runs" / run.name / ATTNET)
    if source / "runs" / SHIPPED in finished and "synthbirds" in name:
        halve(source / "runs" / SHIPPED / CHECKPOINT, target / "runs" / SHIPPED / CHECKPOINT)
    return target


def relink(copy: Path, beside: Collection[str]) -> None:
    """Let the links of an executed notebook hold where it lies now; `beside` it are copies of these names."""
    notebook = json.loads(copy.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            cell["source"] = relinked("".join(cell["source"]), beside).splitlines(keepends=True)
    copy.write_text(json.dumps(notebook, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def relinked(text: str, beside: Collection[str]) -> str:
    """A notebook's markdown for its executed copy: links lead to the copies `beside` it, or up into the repository."""

    def target(match: re.Match) -> str:
        link = match[0]
        path = PROJECT / "notebooks" / link.partition("#")[0]
        if link in beside or not path.exists():
            return link
        return UP + (link.removeprefix("../") if link.startswith("../") else f"notebooks/{link}")

    return LINK.sub(target, as_in_notebooks(text))


def as_in_notebooks(text: str) -> str:
    """`relinked`, taken back."""
    return text.replace(f"]({UP}notebooks/", "](").replace(f"]({UP}", "](../")


def halve(checkpoint: Path, copy: Path) -> None:
    """Copy what prediction needs of a checkpoint, with its weights in half precision: 8 MB in place of 32."""
    state = read_checkpoint(checkpoint)
    weights = {name: value.half() if value.dtype == torch.float32 else value for name, value in state["model"].items()}
    kept = {name: value for name, value in state.items() if name not in ("optimiser", "schedule", "criterion")}
    save_checkpoint(copy, kept | {"model": weights})


def boxes_alone(attnet: Path, copy: Path) -> None:
    """Copy the boxes that AttNet found before a training, without its weights: these are of use beside a checkpoint."""
    save_checkpoint(copy, {name: value for name, value in read_checkpoint(attnet).items() if name != "model"})


def _documents() -> str:
    paths = [path for pattern in DOCUMENTS for path in PROJECT.glob(pattern)]
    return "".join(path.read_text(encoding="utf-8") for path in paths)


if __name__ == "__main__":
    for folder in sys.argv[1:]:
        print(publish(folder))
