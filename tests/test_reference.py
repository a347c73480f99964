"""The committed runs: how they are published, that their notebooks are today's, and that the shipped weights answer."""

import json
import re

import pytest
import torch

import synthbirds
from fgvclib.apps.predict import Recogniser
from fgvclib.config import PROJECT, training_values
from fgvclib.data import cub200
from fgvclib.data.photos import open_photo
from fgvclib.model.system import build_model
from fgvclib.tools import reference
from fgvclib.tools.reference import LINK, as_in_notebooks, relinked
from fgvclib.training.checkpoints import read_checkpoint, save_checkpoint
from fgvclib.training.runs import ATTNET

PUBLISHED = PROJECT / "results" / "reference"
COPIES = sorted(PUBLISHED.glob("*/notebooks/*.ipynb"))


@pytest.fixture
def results(tmp_path, monkeypatch):
    """A results root with one run of another configuration's name, and a reference folder of its own."""
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(reference, "REFERENCE", tmp_path / "reference")
    folder = tmp_path / "results" / "cpu-synthbirds"
    for name in (
        "table2.csv",
        "metrics.json",
        "manifest.json",
        "notebooks/02_baseline.ipynb",
        "runs/A-seed0/history.csv",
        "runs/A-seed0/metrics.json",
        "runs/B-seed0/history.csv",  # of a run that is not finished
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "manifest.json").write_text(json.dumps({"notebooks": {"02_baseline": {}}}))
    (folder / "notebooks" / "02_baseline.ipynb").write_text(json.dumps({"cells": []}))
    return folder


def test_tables_notebooks_and_scores_are_copied(results):
    (results / "runs" / "A-seed0" / "checkpoint.pt").write_bytes(b"heavy")
    target = reference.publish("cpu-synthbirds")
    found = {str(path.relative_to(target)) for path in target.glob("**/*") if path.is_file()}
    wanted = {"table2.csv", "metrics.json", "manifest.json", "notebooks/02_baseline.ipynb"}
    wanted |= {"runs/A-seed0/history.csv", "runs/A-seed0/metrics.json"}
    assert found == wanted


def test_copy_of_a_notebook_that_has_failed_since_is_not_published(results):
    for name in ("03_affnet.ipynb", "03_affnet.failed.ipynb"):
        (results / "notebooks" / name).write_text("executed")
    target = reference.publish("cpu-synthbirds")
    assert [path.name for path in target.glob("notebooks/*")] == ["02_baseline.ipynb"]


def test_found_boxes_are_copied_without_the_network_that_found_them(results):
    made = {"model": {"weight": torch.zeros(3)}, "boxes": {"test": torch.rand(5, 4)}, "seed": 0}
    save_checkpoint(results / "runs" / "A-seed0" / ATTNET, made)
    copy = read_checkpoint(reference.publish("cpu-synthbirds") / "runs" / "A-seed0" / ATTNET)
    assert copy.keys() == {"format", "boxes", "seed"} and torch.equal(copy["boxes"]["test"], made["boxes"]["test"])


def test_nothing_is_replaced_by_nothing(results):
    reference.publish("cpu-synthbirds")
    (results / "table2.csv").unlink()
    (results / "runs" / "A-seed0" / "metrics.json").unlink()
    with pytest.raises(ValueError, match="holds no tables and no finished run"):
        reference.publish("cpu-synthbirds")
    assert (reference.REFERENCE / "cpu-synthbirds" / "table2.csv").exists()


def test_runs_without_tables_are_copied(results):
    for name in ("table2.csv", "metrics.json", "manifest.json"):
        (results / name).unlink()
    unfinished = results / "runs" / reference.SHIPPED / "checkpoint.pt"
    unfinished.parent.mkdir()
    unfinished.touch()
    target = reference.publish("cpu-synthbirds")
    assert [str(path.relative_to(target)) for path in target.glob("runs/*")] == ["runs/A-seed0"]
    assert (target / "runs" / "A-seed0" / "metrics.json").exists() and not (target / "manifest.json").exists()


def test_halved_checkpoint_answers_as_the_whole_one(tiny, tmp_path):
    torch.manual_seed(0)
    model = build_model(tiny, 3, pretrained=False).eval()
    state = {
        "config": training_values(tiny),
        "model": model.state_dict(),
        "history": [],
        "class_names": ["a", "b", "c"],
    }
    save_checkpoint(tmp_path / "whole.pt", state | {"optimiser": {"a": torch.zeros(3)}})
    reference.halve(tmp_path / "whole.pt", tmp_path / "half.pt")
    assert (tmp_path / "half.pt").stat().st_size < 0.55 * (tmp_path / "whole.pt").stat().st_size
    images = torch.randn(4, 3, tiny.image_size, tiny.image_size)
    with torch.no_grad():
        found, wanted = Recogniser(tmp_path / "half.pt").model(images).logits, model(images).logits
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.02)


def cells(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    own = [cell for cell in notebook["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    return [(cell["cell_type"], "".join(cell["source"])) for cell in own]


@pytest.mark.parametrize("copy", COPIES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_executed_copy_is_of_the_notebook_it_stands_beside(copy):
    beside = {path.name for path in copy.parent.glob("*.ipynb")}
    wanted = [
        (kind, relinked(source, beside) if kind == "markdown" else source)
        for kind, source in cells(PROJECT / "notebooks" / copy.name)
    ]
    assert cells(copy) == wanted, "Execute it again, or remove the copy."


@pytest.mark.parametrize("copy", COPIES, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_links_of_an_executed_copy_lead_somewhere(copy):
    links = [link for kind, source in cells(copy) if kind == "markdown" for link in LINK.findall(source)]
    own = [link.partition("#")[0] for link in links if not link.startswith(("http", "#"))]
    assert own and all((copy.parent / link).exists() for link in own)


def test_links_of_a_copy_lead_beside_it_or_up_into_the_repository():
    text = (
        "[04](04_end_to_end.ipynb#a), [05](05_ablation.ipynb), [data](../data/README.md), [x](https://x.org), f[i](x)"
    )
    moved = relinked(text, {"05_ablation.ipynb"})
    assert moved == (
        "[04](../../../../notebooks/04_end_to_end.ipynb#a), [05](05_ablation.ipynb), "
        "[data](../../../../data/README.md), [x](https://x.org), f[i](x)"
    )
    assert relinked(moved, {"05_ablation.ipynb"}) == moved and as_in_notebooks(moved) == text


def test_executed_copies_show_no_warnings_errors_or_folders_of_a_machine():
    for copy in COPIES:
        for cell in json.loads(copy.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                assert output["output_type"] != "error" and output.get("name") != "stderr", copy
                assert not re.search(r"['\" ]/(home|root|tmp|usr|work)/", "".join(output.get("text", ""))), copy


@pytest.mark.parametrize("run", sorted(PUBLISHED.glob("*/runs/ELoPE-*")), ids=lambda run: f"{run.parts[-3]}-{run.name}")
def test_committed_run_on_found_boxes_has_its_boxes(run):
    """In a clone: what git ignores is not there."""
    assert read_checkpoint(run / ATTNET)["boxes"].keys() == {"train", "validation", "test"}


def test_shipped_weights_name_a_drawn_bird(tmp_path):
    shipped = PUBLISHED / "cpu-synthbirds" / "runs" / reference.SHIPPED / "checkpoint.pt"
    recogniser = Recogniser(shipped)
    root = synthbirds.generate(tmp_path / "birds", 8, 1, 6, recogniser.config.photo_size, seed=5, workers=0)
    photos, names = cub200.read(root)
    answers = [recogniser(open_photo(path)).class_name for path in photos["path"]]
    right = [answer == names[label] for answer, label in zip(answers, photos["label"], strict=True)]
    assert sum(right) > 0.5 * len(right)  # an eighth would be chance
