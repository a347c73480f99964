"""The parts that notebook 05 shows add up to what the model really computes."""

from copy import deepcopy

import pytest
import torch

from fgvclib.data.loaders import evaluation_loader
from fgvclib.model.losses import normalise
from fgvclib.model.system import build_model
from fgvclib.study.gradient_parts import class_centres, gradient_parts, norms, total_gradient
from fgvclib.training.loop import build_loss

LABELS = torch.tensor([0, 2])


@pytest.fixture(scope="module")
def system(small):
    torch.manual_seed(0)
    model = build_model(small, 3, pretrained=False).double().eval()
    for axis in (model.affnet.horizontal, model.affnet.vertical):
        torch.nn.init.normal_(axis[-1].weight, std=0.01)  # AffNet starts deaf to its input
    criterion = build_loss(small, 3).double().eval()
    criterion.embedding_loss.centres.copy_(normalise(torch.randn(3, small.embedding_dim)))
    return model, criterion, torch.randn(2, 3, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("limit, margin", [(None, 0.0), (0.05, 0.0), (None, -0.4)])  # inside the image, not cut at it
@pytest.mark.parametrize("beta_att, beta_aff", [(1.0, 1.0), (0.0, 1.0), (0.5, 2.0), (0.0, 0.0)])
def test_total_gradient_is_what_backward_gives(system, monkeypatch, beta_att, beta_aff, limit, margin):
    model, criterion, images = system
    monkeypatch.setattr(model, "crop_margin", margin)
    model.beta_att, model.beta_aff, model.theta_gradient_limit = beta_att, beta_aff, limit
    output = model(images)
    output.attention.retain_grad()
    output.theta.retain_grad()
    criterion(output, LABELS, model.teacher_map(images))["total"].backward()
    parts = gradient_parts(model, criterion, images, LABELS, model.teacher_map(images), limit)
    total = total_gradient(parts, beta_att, beta_aff)
    torch.testing.assert_close(total["A"], output.attention.grad)
    torch.testing.assert_close(total["theta"], output.theta.grad)


def test_norms_are_over_the_whole_batch(system):
    model, criterion, images = system
    parts = gradient_parts(model, criterion, images, LABELS, model.teacher_map(images))
    table = norms(parts)
    assert table.loc["affine", "theta"] == pytest.approx(parts["affine"]["theta"].square().sum().sqrt().item())
    assert table.loc["attention", "theta"] == 0


def test_embedding_loss_is_silent_without_centres_and_heard_with_them(system):
    model, criterion, images = system
    embedding = model(images).embedding.detach().requires_grad_()
    fresh = deepcopy(criterion)
    fresh.embedding_loss.centres.zero_()
    silent, heard = (
        torch.autograd.grad(loss.embedding_loss(embedding, LABELS), embedding)[0].norm() for loss in (fresh, criterion)
    )
    assert silent < 1e-12 < 1e-3 < heard


def test_class_centres_are_mean_directions(small, splits):
    torch.manual_seed(0)
    model = build_model(small, 3, pretrained=False).eval()
    photos = splits.train.iloc[::-1].reset_index(drop=True)
    found = class_centres(model, photos, small)
    with torch.no_grad():
        unit = torch.cat([normalise(model(batch["image"]).embedding) for batch in evaluation_loader(photos, small)])
    for label in range(3):
        mean = unit[torch.tensor((photos["label"] == label).to_numpy())].mean(dim=0)
        torch.testing.assert_close(found[label], mean / mean.norm())
