"""The exported model answers as PyTorch does, for other batch sizes than it was exported with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fgvclib.apps import export
from fgvclib.apps.export import INPUT, OUTPUTS, export_onnx
from fgvclib.config import training_values
from fgvclib.model.system import build_model
from fgvclib.study.table2 import ROWS
from fgvclib.tools.cli import main
from fgvclib.training.checkpoints import save_checkpoint


@pytest.fixture(scope="module")
def config(tiny):
    """Photos larger than AttNet's 64 pixels, so that the low-pass filtered resize is exported, too.

    The networks have five blocks, as every layer takes the exporter long; `test_page.py` exports the usual ones.
    """
    return replace(tiny, image_size=96, backbone="test_efficientnet", attnet_backbone="test_efficientnet")


@pytest.fixture(scope="module")
def model(config):
    """Random weights; AffNet's answers depend on the image, so that theta is tested too."""
    torch.manual_seed(0)
    model = build_model(config, 3, pretrained=False)
    with torch.no_grad():
        for network in (model.affnet.horizontal, model.affnet.vertical):
            network[-1].weight.normal_(std=0.02)
    return model.eval()


@pytest.fixture(scope="module")
def exported(model, config, tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="the extra `onnx` is not installed")
    run = tmp_path_factory.mktemp("run")
    state = {"config": training_values(config), "model": model.state_dict()}
    state |= {"class_names": ["a", "b", "c"], "history": []}
    save_checkpoint(run / "checkpoint.pt", state)
    assert main(["export", str(run)]) == 0
    return run / "model.onnx"


@pytest.mark.parametrize("batch", [1, 5])
def test_onnx_runtime_agrees(exported, model, config, batch):
    import onnxruntime

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    images = torch.randn(batch, 3, config.image_size, config.image_size, generator=torch.Generator().manual_seed(batch))
    found = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {INPUT: images.numpy()}), strict=True))
    with torch.no_grad():
        wanted = model(images)
    assert batch == 1 or wanted.theta.std(dim=0).max() > 0
    for name in OUTPUTS:
        np.testing.assert_allclose(found[name], getattr(wanted, name).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name, written", [(None, "run/model.onnx"), ("onnx", "onnx/model.onnx"), ("a.onnx", "a.onnx")])
def test_output_is_a_file_or_a_folder(config, model, tmp_path, monkeypatch, capsys, name, written):
    (tmp_path / "run").mkdir()
    (tmp_path / "onnx").mkdir()
    state = {"config": training_values(config), "model": model.state_dict(), "class_names": ["a", "b", "c"]}
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", state | {"history": []})
    monkeypatch.setattr(export, "export_onnx", lambda model, path, size: path)
    output = ["--output", str(tmp_path / name)] if name else []
    for run in ("run", "run/checkpoint.pt"):
        assert main(["export", str(tmp_path / run), *output]) == 0
        assert capsys.readouterr().out.strip() == str(tmp_path / written)


def test_a_folder_without_run_is_refused_in_a_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path)]) == 2
    assert "checkpoint.pt" in capsys.readouterr().err


def test_the_baseline_has_no_theta_to_export(tiny, tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `onnx` is not installed")
    baseline = build_model(replace(tiny, **ROWS["Baseline"]), 3, pretrained=False)
    with pytest.raises(ValueError, match="without localisation"):
        export_onnx(baseline, tmp_path / "model.onnx", tiny.image_size)
