"""Publishing a results folder: what is copied, and that half-precision weights still answer."""

import pytest
import torch

from fgvclib.apps.predict import Recogniser
from fgvclib.config import training_values
from fgvclib.model.system import build_model
from fgvclib.tools import reference
from fgvclib.training.checkpoints import save_checkpoint


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
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def test_tables_notebooks_and_scores_are_copied(results):
    (results / "runs" / "A-seed0" / "checkpoint.pt").write_bytes(b"heavy")
    target = reference.publish("cpu-synthbirds")
    found = {str(path.relative_to(target)) for path in target.glob("**/*") if path.is_file()}
    wanted = {"table2.csv", "metrics.json", "manifest.json", "notebooks/02_baseline.ipynb", "runs/A-seed0/history.csv"}
    assert found == wanted


def test_nothing_is_replaced_by_nothing(results):
    reference.publish("cpu-synthbirds")
    (results / "table2.csv").unlink()
    with pytest.raises(ValueError, match="holds no tables"):
        reference.publish("cpu-synthbirds")
    assert (reference.REFERENCE / "cpu-synthbirds" / "table2.csv").exists()


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
