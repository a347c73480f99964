"""What holds of every system of Table 3; what is particular to one is in `test_system_<name>.py`."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fgvclib.apps.export import export_run
from fgvclib.apps.predict import Recogniser
from fgvclib.data.loaders import BalancedSampler
from fgvclib.systems import SYSTEMS
from fgvclib.systems.base import System
from fgvclib.systems.cal import CAL
from fgvclib.training import loop
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.training.runs import train_or_load

CLASSES, SIZE, IMAGE = 4, 128, 160
BACKBONE = "test_efficientnet"  # of timm: five blocks, an eighth of Lite0's work
train_run = partial(loop.train, pretrained=False)


@pytest.fixture(params=SYSTEMS)
def system(request):
    torch.manual_seed(0)
    kind = SYSTEMS[request.param]
    return kind(CLASSES, BACKBONE, max(SIZE, kind.smallest_crop), pretrained=False)


@pytest.fixture
def batch():
    """Eight photos, two of each class, each class of a colour of its own."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(CLASSES).repeat_interleave(2)
    colours = torch.randn(CLASSES, 3, 1, 1, generator=generator)[labels]
    return {"image": colours + torch.randn(8, 3, IMAGE, IMAGE, generator=generator) / 2, "label": labels}


def record_looks(system) -> list[tuple[int, int, int]]:
    """A list that grows by (B, H, W) whenever a network looks at colours."""
    looks = []
    looking = [layer for layer in system.modules() if isinstance(layer, nn.Conv2d) and layer.in_channels == 3]
    assert looking
    for layer in looking:
        layer.register_forward_pre_hook(lambda layer, inputs: looks.append(tuple(inputs[0][:, 0].shape)))
    return looks


def train(system, batch, steps: int, rate: float = 0.003) -> list[float]:
    """The loss, without rank terms, of each of some passes over one batch."""
    groups = [{"params": group["params"], "lr": rate * group["rate"]} for group in system.groups()]
    optimiser = torch.optim.SGD(groups, lr=rate, momentum=0.9)
    losses = []
    for _ in range(steps):
        total = 0.0
        for terms in system.steps(batch, system):
            optimiser.zero_grad()
            terms["total"].backward()
            optimiser.step()
            # Without the rank terms: the order that they ask for changes while the classifier learns.
            total += (terms["total"] - terms.get("rank", 0)).item()
        losses.append(total)
    return losses


MMALS = {"mmal", "mmal-vehicles"}
# Backbone and crop → systems that refuse them.
REFUSING = {
    (BACKBONE, 8): {"isqrt", "nts", *MMALS},
    (BACKBONE, 32): {"nts"},
    ("resnet10t", 24): {"isqrt", "nts", *MMALS},
    ("convnext_atto", 32): {"nts", "racnn", *MMALS},  # of which some look at half the side
    ("vit_tiny_patch16_224", 40): set(SYSTEMS),  # 40 is not a multiple of 16
}


@pytest.mark.parametrize("name", SYSTEMS)
@pytest.mark.parametrize("backbone, side", REFUSING)
def test_a_crop_is_refused_in_a_sentence_or_trains(name, backbone, side, batch):
    if name in REFUSING[backbone, side]:
        with pytest.raises(ValueError, match=f"crop_size (is|=) {side}|mmal needs a convolutional|output stride of 16"):
            SYSTEMS[name](CLASSES, backbone, side, pretrained=False)
        return
    system = SYSTEMS[name](CLASSES, backbone, side, pretrained=False).train()
    system.begin_epoch(5, 10)
    assert all(map(math.isfinite, train(system, batch, steps=1)))
    with torch.no_grad():
        assert system.eval().predict(batch["image"]).log_probabilities.isfinite().all()


def test_an_answer_costs_the_stated_passes(system, batch):
    looks = record_looks(system.eval())
    with torch.no_grad():
        system.predict(batch["image"])
    assert sum(map(math.prod, looks)) == pytest.approx(system.passes * 8 * system.crop_size**2, rel=0.01)


def test_a_training_step_costs_the_stated_passes_over_pictures_of_the_sides_that_are_checked(system, batch):
    system.train()
    system.begin_epoch(5, 10)
    looks = record_looks(system)
    train(system, batch, steps=1)
    assert sum(map(math.prod, looks)) == pytest.approx(system.training_passes * 8 * system.crop_size**2, rel=0.01)
    sides = (system.crop_size, system.crop_size // 2) if system.halves else (system.crop_size,)
    assert {(height, width) for _, height, width in looks} == {(side, side) for side in sides}


def test_an_answer_is_a_distribution_and_the_same_twice(system, batch):
    system.eval()
    with torch.no_grad():
        first, second = system.predict(batch["image"]), system.predict(batch["image"])
    assert first.log_probabilities.shape == (8, CLASSES)
    assert torch.equal(first.log_probabilities, second.log_probabilities)
    assert torch.allclose(first.log_probabilities.exp().sum(dim=1), torch.ones(8), atol=1e-5)
    assert system.localise == (first.boxes is not None)
    if first.boxes is not None:
        assert first.boxes.shape == (8, 4)
        assert (first.boxes >= 0).all() and (first.boxes <= 1).all()
        assert (first.boxes[:, 2:] > first.boxes[:, :2]).all()


def test_every_parameter_learns(system, batch):
    """Over one batch, after the phases in which some are frozen: all of them, through one of the batch's steps."""
    system.train()
    system.begin_epoch(5, 10)
    train(system, batch, steps=1)  # a layer that starts at zero passes nothing on in the first step
    moved = set()
    for terms in system.steps(batch, system):
        system.zero_grad()
        terms["total"].backward()
        moved |= {name for name, value in system.named_parameters() if value.grad is not None and value.grad.any()}
    assert {name for name, _ in system.named_parameters()} - moved <= set(system.without_gradient)


def test_groups_hold_every_parameter_once(system):
    held = [id(parameter) for group in system.groups() for parameter in group["params"]]
    assert sorted(held) == sorted(id(parameter) for parameter in system.parameters())


def test_the_terms_sum_to_the_total(system, batch):
    system.train()
    system.begin_epoch(5, 10)
    for terms in system.steps(batch, system):
        total = terms.pop("total").item()
        assert math.isclose(sum(term.item() for name, term in terms.items() if name != "accuracy"), total, rel_tol=1e-4)


def test_the_loss_falls_on_eight_photos(system, batch):
    if type(system).__base__ is not System:
        pytest.skip("a variant: its parent learns")
    system.train()
    system.begin_epoch(5, 10)
    rate = {CAL: 0.01}.get(type(system), 0.003)  # CAL's groups take a tenth of it
    losses = train(system, batch, steps=8, rate=rate)
    assert sum(losses[-2:]) < sum(losses[:2])


def test_balanced_batches_hold_classes_and_photos_of_each():
    labels = np.repeat([0, 1, 2, 3, 4], [4, 5, 6, 3, 1])  # 4 can never give a pair
    sampler = BalancedSampler(labels, seed=3, classes=2, photos=2)
    orders = []
    for sampler.epoch in range(3):
        items = np.array(list(sampler))
        assert len(items) == len(sampler) == 2 * 2 * (2 + 1 + 0)  # rounds of 4, 3 and 1 pairs
        assert set(items // len(labels)) == {sampler.epoch}
        rows = items % len(labels)
        assert len(set(rows)) == len(rows)
        for batch in labels[rows].reshape(-1, 4):
            assert batch[0] == batch[1] != batch[2] == batch[3]
        orders.append(rows.tolist())
    assert orders[0] != orders[1]


@pytest.mark.parametrize("left, told", [(1, "1 training photo beside"), (2, None)])
def test_class_too_small_for_balanced_batches_is_refused_by_name(left, told, small, splits, tmp_path):
    others = splits.train.index[splits.train["label"] == 1][left:]
    few = replace(splits, train=splits.train.drop(others).reset_index(drop=True))
    training = train_run(replace(small, system="mamc", epochs=1), few, 0, tmp_path / "checkpoint.pt")
    if told is None:
        assert len(list(training)) == 1
        return
    named = f"^The class {splits.class_names[1]} has {told} . of the validation part, but this system needs 2 of"
    with pytest.raises(ValueError, match=named):
        next(training)


@pytest.fixture(params=["finetune", "apinet"])  # the loop's own batches, and balanced ones with a frozen epoch
def configured(request, small):
    return replace(small, system=request.param, epochs=2)


def test_resumed_training_equals_an_uninterrupted_one(configured, splits, tmp_path):
    whole = list(train_run(configured, splits, 0, tmp_path / "whole.pt"))
    begun = train_run(configured, splits, 0, tmp_path / "part.pt")
    next(begun)
    begun.close()
    assert [record["epoch"] for record in train_run(configured, splits, 0, tmp_path / "part.pt")] == [1, 2]
    first, second = (read_checkpoint(tmp_path / name)["model"] for name in ("whole.pt", "part.pt"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {"train_total", "train_accuracy", "validation_accuracy"} <= whole[1].keys()


@pytest.mark.parametrize("workers", [0, 1])
def test_random_numbers_of_a_step_change_neither_with_workers_nor_where_a_run_was_resumed(
    workers, small, splits, tmp_path
):
    config = replace(small, system="pmg", epochs=2)
    whole = list(train_run(config, splits, 0, tmp_path / "whole.pt"))
    begun = train_run(replace(config, workers=workers), splits, 0, tmp_path / "part.pt")
    next(begun)
    begun.close()
    list(train_run(replace(config, workers=workers), splits, 0, tmp_path / "part.pt"))
    first, second = (read_checkpoint(tmp_path / name)["model"] for name in ("whole.pt", "part.pt"))
    assert len(whole) == 2 and all(torch.equal(first[name], second[name]) for name in first)


def test_run_of_a_system_is_scored_loaded_and_used_on_photos(configured, untrained, splits, tmp_path):
    run = train_or_load(configured, splits, 0, tmp_path / "run")
    assert 0 <= run.metrics["accuracy"] <= 1 and len(run.predictions) == len(splits.test)
    again = train_or_load(configured, splits, 0, tmp_path / "run", announce=pytest.fail)
    assert again.metrics == run.metrics
    recogniser = Recogniser(run.checkpoint)
    found = recogniser(Image.new("RGB", (50, 40), "green"))
    assert found.class_name in splits.class_names and found.box == (0, 0, 50, 40)
    assert "does not localise" in recogniser.remarks()[-1]
    with pytest.raises(ValueError, match="only 'end-to-end' has this form"):
        export_run(run.checkpoint)


def test_unknown_system_is_named(tiny, splits, tmp_path):
    with pytest.raises(ValueError, match=r"system is 'nobody'; choose one of end-to-end, finetune"):
        train_or_load(replace(tiny, system="nobody"), splits, 0, tmp_path)
