"""The ImageNet teacher: its maps by hand, on disk, and what AttNet and AffNet learn from them alone."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from fgvclib.config import results_root
from fgvclib.data import teacher_maps as module
from fgvclib.data.index import CROP
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.teacher_maps import teacher_maps
from fgvclib.model.backbones import create_backbone
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.model.teacher import Teacher
from fgvclib.training.loop import build_loss, train, train_localisation


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    """A fixed teacher, and a results folder of the test's own."""
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    return replace(tiny, teacher_weights="imagenet", teacher_layer="stage", teacher_mean="rms", threshold=0.5)


def test_maps_are_the_root_mean_square_of_imagenets_last_stage(config, splits):
    found = teacher_maps(splits.test, replace(config, map_size=4))
    backbone = create_backbone(config.backbone, output_stride=16).eval()
    images = torch.cat([batch["image"] for batch in evaluation_loader(splits.test, config)])
    with torch.no_grad():
        stage = backbone.forward_intermediates(images, indices=[-1], intermediates_only=True)[0].numpy()
    assert stage.shape == (9, 320, 4, 4)
    rms = np.sqrt((stage.astype(float) ** 2).mean(axis=1))
    low, high = rms.min(axis=(1, 2), keepdims=True), rms.max(axis=(1, 2), keepdims=True)
    assert found[:, 0].numpy() == pytest.approx((rms - low) / (high - low), abs=1e-4)


def test_fixed_teacher_does_not_follow_the_live_network(tiny):
    images, live = torch.randn(2, 3, 64, 64), create_backbone(tiny.backbone)
    teacher = Teacher(tiny.backbone, 64, 16, 4, weights="imagenet")
    before = teacher(live, images)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.zero_()
    assert torch.equal(teacher(live, images), before) and before.amax() == 1 and before.amin() == 0


def test_maps_are_computed_once(config, splits, monkeypatch):
    first = teacher_maps(splits.train, config)
    monkeypatch.setattr(module, "_compute", None)  # a second computation would fail
    assert torch.equal(teacher_maps(splits.train, config), first)


@pytest.mark.parametrize("change", [{"teacher_size": 96}, {"teacher_mean": "mean"}, {"teacher_layer": "last"}])
def test_another_teacher_has_maps_of_its_own(config, splits, change):
    assert not torch.equal(teacher_maps(splits.test, replace(config, **change)), teacher_maps(splits.test, config))


def test_changed_photo_gets_a_new_map(config, splits, tmp_path):
    from PIL import Image

    paths = [str(tmp_path / f"{row}.png") for row in range(len(splits.test))]
    for source, path in zip(splits.test["path"], paths, strict=True):
        Image.open(source).save(path)
    photos = splits.test.assign(path=paths)
    before = teacher_maps(photos, config)
    Image.open(paths[1]).save(paths[0])
    after = teacher_maps(photos, config)
    assert not torch.equal(after[0], before[0]) and torch.equal(after[1:], before[1:])


def test_crop_of_a_photo_does_not_change_its_map(config, splits):
    """Else the row "Oracle crop" would leave its maps, of other pictures, to the rows after it."""
    cut = splits.test.assign(**dict(zip(CROP, (0.1, 0.1, 0.5, 0.6), strict=True)))
    maps = teacher_maps(cut, config)
    shutil.rmtree(results_root())
    assert torch.equal(teacher_maps(splits.test, config), maps)


def test_maps_with_and_without_the_banner_are_kept_apart(config, splits):
    aircraft = replace(config, dataset="aircraft")
    whole = teacher_maps(splits.test, replace(aircraft, cut_banner=False))
    assert not torch.equal(teacher_maps(splits.test, aircraft), whole)


def test_live_teacher_has_no_fixed_maps(tiny, splits):
    with pytest.raises(ValueError, match="choose 'imagenet'"):
        teacher_maps(splits.test, tiny)


def test_training_makes_no_second_pass(config, splits, tmp_path, monkeypatch):
    teacher_maps(splits.train, config)
    monkeypatch.setattr(Teacher, "__call__", None)  # a teacher pass would fail
    records = list(train(replace(config, epochs=1), splits, 0, tmp_path / "checkpoint.pt"))
    assert records[0]["train_attention"] > 0


def test_localisation_learns_alone_and_leaves_the_classifier(config, splits):
    config = replace(config, localisation_epochs=12)
    torch.manual_seed(0)
    model = build_model(config, 3)
    criterion, maps = build_loss(config, 3), teacher_maps(splits.train, config)
    before = {name: value.clone() for name, value in model.classifier.state_dict().items()}

    def local_loss():
        model.eval()
        images = torch.cat([batch["image"] for batch in evaluation_loader(splits.train, config)])
        with torch.no_grad():
            return sum(criterion.local_terms(*model.localisation(images), maps).values()).item()

    start = local_loss()
    train_localisation(model, criterion, splits, maps, config, seed=0)
    assert local_loss() < 0.7 * start
    assert all(torch.equal(value, before[name]) for name, value in model.classifier.state_dict().items())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_localisation_learns_alone_on_the_gpu(config, splits, tmp_path, monkeypatch):
    seen, real = [], EndToEndModel.localisation
    monkeypatch.setattr(EndToEndModel, "localisation", lambda self, x: seen.append(x.device.type) or real(self, x))
    list(train(replace(config, localisation_epochs=1, epochs=1), splits, 0, tmp_path / "checkpoint.pt"))
    assert set(seen) == {"cuda"}


def test_localisation_alone_needs_epochs_and_maps(config, splits):
    model, criterion = build_model(config, 3, pretrained=False), build_loss(config, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_localisation(model, criterion, splits, None, replace(config, localisation_epochs=3), seed=0)
    train_localisation(model, criterion, splits, teacher_maps(splits.train, config), config, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
