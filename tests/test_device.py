"""Passes over many photos run on the default device, and their results come back to the CPU.

There may be no GPU here, so double precision stands in for one: `.to` takes it as it takes a device, and a network and
images that are not both moved do not fit together.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fgvclib.apps import predict
from fgvclib.config import training_values
from fgvclib.model.system import build_model
from fgvclib.study.localisation import attention_maps
from fgvclib.study.table1 import export_maps, load_maps
from fgvclib.training.checkpoints import save_checkpoint
from fgvclib.utils import device
from fgvclib.utils.device import device_name


@pytest.fixture
def elsewhere(monkeypatch):
    monkeypatch.setattr(device, "default_device", lambda: torch.float64)
    monkeypatch.setattr(predict, "default_device", lambda: torch.float64)


@pytest.fixture
def model(tiny):
    torch.manual_seed(0)
    return build_model(tiny, 3, pretrained=False).eval()


def test_network_is_back_where_it_was_also_after_an_error(monkeypatch):
    network, places = torch.nn.Linear(2, 2, device="meta"), []
    monkeypatch.setattr(network, "to", places.append)
    with pytest.raises(RuntimeError), device.on_default_device(network) as where:
        assert places == [where] == [device.default_device()]
        raise RuntimeError
    assert places == [where, torch.device("meta")]


def test_benchmark_maps_are_made_on_the_default_device(tiny, splits, model, elsewhere, tmp_path):
    small = replace(tiny, map_size=4, table1_views=1)  # double precision takes the CPU long
    export_maps(model, splits, small, tmp_path / "maps.npz")
    maps = load_maps(tmp_path / "maps.npz")
    assert maps["train"].dtype == maps["test"].dtype == torch.float64
    assert len(maps["test"]) == len(splits.test) and maps["test"].std() > 0


def test_attention_maps_are_made_on_the_default_device(tiny, splits, model, elsewhere):
    attention, teacher = attention_maps(model, splits.test, tiny)
    assert attention.dtype == teacher.dtype == torch.float64


def test_photos_are_recognised_on_the_default_device(tiny, model, elsewhere, tmp_path):
    identity = {"config": training_values(tiny), "seed": 0, "class_names": ["a", "b", "c"]}
    save_checkpoint(tmp_path / "checkpoint.pt", identity | {"model": model.state_dict(), "history": [{}, {}]})
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    recogniser = predict.Recogniser(tmp_path / "checkpoint.pt")
    assert next(recogniser.model.parameters()).dtype == torch.float64
    assert recogniser(photo).box == (0, 0, 64, 48)  # AffNet starts at the whole image


def test_device_is_named_by_what_it_is():
    assert device_name(torch.device("cpu")).startswith("CPU, ")
    assert device_name(torch.device("mps")) == "MPS"
