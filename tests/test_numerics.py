"""Degenerate inputs: whatever the photos, the maps and the batches are, no NaN reaches the weights."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fgvclib.data.loaders import training_loader
from fgvclib.data.splits import Splits
from fgvclib.model.affnet import AffNet
from fgvclib.model.geometry import attention_to_box, box_iou, crop, min_max_normalise, theta_to_box
from fgvclib.model.losses import EmbeddingLoss, normalise
from fgvclib.model.system import build_model
from fgvclib.training import loop
from fgvclib.training.evaluation import localisation_scores
from fgvclib.training.loop import NonFiniteLoss, build_loss, build_optimiser, train, train_one_epoch

CLASSES = 3


@pytest.fixture
def accelerator():
    """On the CPU; it is a singleton, so that the state is cleared around it."""
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    yield Accelerator(mixed_precision="no")
    for state in states:
        state._reset_state()


def parts(config):
    torch.manual_seed(0)
    model = build_model(config, CLASSES)
    return model, build_loss(config, CLASSES), build_optimiser(model, config)


def steps(accelerator, config, batches, precision="fp32") -> tuple[dict, torch.nn.Module, EmbeddingLoss]:
    """One epoch over these batches → mean loss terms, model and embedding loss."""
    model, criterion, optimiser = accelerator.prepare(*parts(config))
    terms = train_one_epoch(model, criterion, optimiser, batches, accelerator, precision)
    return terms, model, criterion.embedding_loss


def batch(images, labels) -> dict:
    return {"image": images, "label": torch.tensor(labels)}


def noise(count, size):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


BATCHES = {
    "a photo and itself": lambda size: [batch(noise(1, size).expand(4, -1, -1, -1), [0, 1, 2, 0])] * 3,
    "one colour": lambda size: [batch(torch.full((4, 3, size, size), 0.7), [0, 1, 1, 2])] * 3,
    "black after photos": lambda size: [
        batch(noise(4, size), [0, 1, 1, 2]),
        *[batch(torch.zeros(4, 3, size, size), [0, 1, 1, 2])] * 3,
    ],
    "one sample per class": lambda size: [batch(noise(3, size), [2, 0, 1])] * 2,
    "one class alone": lambda size: [batch(noise(4, size), [1, 1, 1, 1])] * 2,
    "batch of two": lambda size: [batch(noise(2, size), [1, 0])] * 2,
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("batches", BATCHES.values(), ids=BATCHES)
def test_weights_stay_finite_and_small(tiny, accelerator, precision, batches):
    """BatchNorm over two images of noise can blow gradients up in bf16; the weights must be finite all the same."""
    limit = 1e4 if precision == "fp32" else 1e6
    terms, model, embedding_loss = steps(accelerator, tiny, batches(tiny.image_size), precision)
    assert all(torch.isfinite(torch.tensor(value)) for value in terms.values())
    for name, value in model.state_dict().items():
        assert value.isfinite().all() and value.abs().max() < limit, name
    assert embedding_loss.centres.isfinite().all()


def test_half_precision_agrees_with_full_precision(tiny, accelerator):
    batches = [batch(noise(4, tiny.image_size), [0, 1, 1, 2])]  # one step: noise drives later ones apart
    half, model, _ = steps(accelerator, tiny, batches, "bf16")
    full, reference, _ = steps(accelerator, tiny, batches)
    for terms in (half, full):
        terms.pop("train_accuracy")  # jumps with a single photo
    assert half == pytest.approx(full, rel=0.2, abs=0.3) and half != full
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    key = "affnet.horizontal.3.bias"
    torch.testing.assert_close(model.state_dict()[key], reference.state_dict()[key], atol=0.02, rtol=0)


def test_nan_pixel_stops_the_training_before_a_weight_changes(tiny, accelerator):
    images = noise(4, tiny.image_size)
    images[2, 1, 5, 5] = torch.nan
    model, criterion, optimiser = accelerator.prepare(*parts(tiny))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(NonFiniteLoss, match="'cross_entropy' became nan; the last checkpoint is kept"):
        train_one_epoch(model, criterion, optimiser, [batch(images, [0, 1, 2, 0])], accelerator)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_gradient_that_is_not_finite_stops_the_training_although_the_loss_is(tiny, accelerator, value):
    model, criterion, optimiser = accelerator.prepare(*parts(tiny))
    model.classifier.output.bias.register_hook(lambda gradient: gradient * value)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with pytest.raises(NonFiniteLoss, match="'gradient' became"):
        train_one_epoch(model, criterion, optimiser, [batch(noise(2, tiny.image_size), [0, 1])], accelerator)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


# --- batches that are too small


def test_batches_of_one_are_refused_with_a_sentence(tiny, splits, tmp_path):
    with pytest.raises(ValueError, match="The batch_size is 1, but BatchNorm needs batches of at least 2 photos"):
        next(train(replace(tiny, batch_size=1), splits, 0, tmp_path / "checkpoint.pt"))
    alone = Splits(splits.train[:1], splits.validation, splits.test, splits.class_names)
    with pytest.raises(ValueError, match="The number of training photos is 1, but BatchNorm"):
        next(train(tiny, alone, 0, tmp_path / "checkpoint.pt"))


def test_last_batch_of_one_is_left_out(small, untrained, splits, tmp_path, monkeypatch):
    config = replace(small, batch_size=11, epochs=1)  # 12 photos
    sizes, real = [], loop.EndToEndLoss.forward

    def recorded(self, output, labels, teacher_map=None):
        sizes.append(len(labels))
        return real(self, output, labels, teacher_map)

    monkeypatch.setattr(loop.EndToEndLoss, "forward", recorded)
    (record,) = train(config, splits, 0, tmp_path / "checkpoint.pt")
    assert sizes == [11] and record["train_total"] > 0
    assert [len(b["label"]) for b in training_loader(splits.train, config, 0)[0]] == [11]


# --- maps and boxes


@pytest.mark.parametrize("value", [0.0, 1.0, -1e20, 1e30])
@pytest.mark.parametrize("w_tau", [0.3, 0.0, -0.2])
def test_constant_map_sends_no_huge_gradient(value, w_tau):
    """The threshold may have been learnt to 0 or below, where the ReLU lets everything through."""
    attention = torch.full((3, 1, 14, 14), value, requires_grad=True)
    affnet = AffNet(threshold=w_tau, sharpness=1000.0)
    with torch.no_grad():
        affnet.horizontal[3].weight.normal_()
    theta = affnet(attention)
    theta.square().sum().backward()
    gradients = [attention.grad, *(parameter.grad for parameter in affnet.parameters() if parameter.grad is not None)]
    assert theta.isfinite().all()
    assert all(gradient.isfinite().all() and gradient.abs().max() < 1e6 for gradient in gradients)


def test_constant_maps_become_zeros_and_the_whole_image():
    constant = torch.full((2, 1, 14, 14), 5.0)
    assert torch.equal(min_max_normalise(constant), torch.zeros_like(constant))
    assert attention_to_box(constant).tolist() == [[0, 0, 1, 1]] * 2
    half = constant.bfloat16()
    assert torch.equal(min_max_normalise(half), torch.zeros_like(half)) and min_max_normalise(half).dtype == half.dtype


def test_crop_of_zero_area_is_finite_and_so_is_its_gradient():
    theta = torch.tensor([[0.0, 0.0, 0.3, -0.2], [0.0, 1.0, 0.0, 0.0], [-1.0, 1.0, 5.0, 5.0]], requires_grad=True)
    images = noise(3, 16)
    cropped = crop(images, theta, 8)
    cropped.square().sum().backward()
    assert cropped.isfinite().all() and theta.grad.isfinite().all()
    assert torch.equal(cropped[0], cropped[0, :, :1, :1].expand(3, 8, 8))  # one point of the image everywhere


def test_crop_works_with_full_precision_coordinates():
    """In bf16 a translation of 0.3 would be off by a pixel of a large photo; the grid is as precise as the images."""
    images, theta = noise(1, 448), torch.tensor([[0.5, 0.5, 0.25, -0.125]])
    assert torch.equal(crop(images, theta.bfloat16(), 112), crop(images, theta, 112))


def test_zero_area_boxes_score_zero():
    points = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.2, 0.1, 0.2, 0.9], [0.0, 0.0, 0.0, 0.0]])
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(3, 4)
    for first, second in ((points, whole), (whole, points), (points, points)):
        assert box_iou(first, second).tolist() == [0, 0, 0]
    assert localisation_scores(pd.Series(box_iou(points, points).numpy()))["box_acc_0.3"] == 0
    assert theta_to_box(torch.zeros(1, 4)).tolist() == [[0.5, 0.5, 0.5, 0.5]]


# --- features without direction


def test_features_of_zero_have_no_huge_gradient():
    """BatchNorm turns equal images into zeros; away from a centre, their gradient must not be multiplied by 1e12."""
    loss = EmbeddingLoss(CLASSES, 8)
    with torch.no_grad():
        loss.centres[:] = torch.nn.functional.normalize(torch.ones(CLASSES, 8), dim=1)
    features = torch.zeros(4, 8, requires_grad=True)
    value = loss(features, torch.tensor([0, 1, 1, 2]))
    value.backward()
    assert value.isfinite() and features.grad.abs().max() < 100
    assert loss.centres.isfinite().all()


def test_normalise_agrees_with_torch_where_there_is_a_direction():
    vectors = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-6, 4, 2).unsqueeze(
        1
    )
    assert torch.equal(normalise(vectors), torch.nn.functional.normalize(vectors, dim=1))
    assert torch.autograd.gradcheck(normalise, vectors[2:].double().requires_grad_())
    zero = torch.zeros(1, 8, requires_grad=True)
    normalise(zero).sum().backward()
    assert torch.equal(zero.grad, torch.ones(1, 8))
