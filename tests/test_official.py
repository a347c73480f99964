"""The authors' networks: old code gets what it asks for, from its own modules alone, and gives its names back."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch

from fgvclib.config import PROJECT

MODEL = """
import numpy as np
import torch
from config import SIDE
from torch.utils import model_zoo

class Network(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.scale = torch.nn.Linear(1, 1, bias=False)
        self.load_state_dict(model_zoo.load_url("https://localhost/weights.pth"))
    def forward(self, x):
        corner = np.array((0, np.array([SIDE]))).astype(np.int)
        return x[..., corner[0]:corner[1]].cuda()
"""


@pytest.fixture
def official(monkeypatch):
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")
    import official

    yield official
    sys.modules.pop("official")


def clone(folder, side):
    folder.mkdir(parents=True)
    (folder / "config.py").write_text(f"SIDE = {side}")
    (folder / "model.py").write_text(MODEL)
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"]):
        subprocess.run(["git", "-C", str(folder), *command], check=True)
    return folder


def test_old_code_runs_from_its_own_modules(official, tmp_path):
    def build():
        return official.import_module("model").Network()

    before = set(sys.modules)
    networks = [official.AsPublished(build, clone(tmp_path / name, side)) for name, side in (("a", 2), ("b", 3))]
    assert [network(torch.zeros(1, 4)).shape[1] for network in networks] == [2, 3]
    assert [network.source[:2] for network in networks] == ["a@", "b@"]
    assert not {"config", "model"} & (set(sys.modules) - before)
    assert not hasattr(np, "int")


def test_folder_without_clones_is_told(official, tmp_path):
    with pytest.raises(ValueError, match="none of the clones NTS-Net, MMAL-Net"):
        official.official_networks(tmp_path)


@pytest.mark.parametrize(
    "systems, size, told",
    [("mmmal", "64", "system is 'mmmal'"), ("nts", "64", "NTS needs 224 pixels"), ("nts", "0", "image_size = 0, but")],
)
def test_what_cannot_be_measured_is_told_in_a_sentence(official, systems, size, told, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["systems.py", "--systems", systems, "--size", size])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(PROJECT / "benchmarks" / "systems.py"), run_name="__main__")
    assert end.value.code == 2 and told in capsys.readouterr().err
