"""The ImageNet teacher: its maps by hand, on disk, and what AttNet and AffNet learn from them alone."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from fgvclib.config import results_root
from fgvclib.data import teacher_maps as module
from fgvclib.data.index import BOX, CROP
from fgvclib.data.loaders import evaluation_loader
from fgvclib.data.teacher_maps import compare_teachers, teacher_component, teacher_maps
from fgvclib.model.backbones import create_backbone
from fgvclib.model.geometry import attention_to_box, box_iou
from fgvclib.model.system import EndToEndModel, build_model
from fgvclib.model.teacher import Teacher, principal_component
from fgvclib.study.table2 import ROWS
from fgvclib.training import loop
from fgvclib.training.checkpoints import read_checkpoint
from fgvclib.training.loop import build_loss, train, train_localisation
from fgvclib.training.runs import train_or_load
from fgvclib.utils.files import locked


@pytest.fixture
def config(tiny, tmp_path, monkeypatch):
    """A fixed teacher, and a results folder of the test's own."""
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    return replace(tiny, teacher_weights="imagenet", teacher_layer="stage", teacher_mean="rms", threshold=0.5)


@pytest.fixture
def quick(config, small, untrained):
    """The same, for trainings in which it does not matter what a network has learnt before."""
    return replace(config, backbone=small.backbone, attnet_backbone=small.attnet_backbone)


def stage_by_hand(config, photos) -> np.ndarray:
    """Features (N, 320, 4, 4) of ImageNet's last stage."""
    backbone = create_backbone(config.backbone, output_stride=16).eval()
    images = torch.cat([batch["image"] for batch in evaluation_loader(photos, config)])
    with torch.no_grad():
        stage = backbone.forward_intermediates(images, indices=[-1], intermediates_only=True)[0].double().numpy()
    assert stage.shape == (len(photos), 320, 4, 4)
    return stage


def scaled(maps: np.ndarray) -> np.ndarray:
    """Every map of (N, 4, 4) in [0, 1]."""
    low, high = maps.min(axis=(1, 2), keepdims=True), maps.max(axis=(1, 2), keepdims=True)
    return (maps - low) / (high - low)


def test_maps_are_the_root_mean_square_of_imagenets_last_stage(config, splits):
    found = teacher_maps(splits.test, replace(config, map_size=4))
    rms = np.sqrt((stage_by_hand(config, splits.test) ** 2).mean(axis=1))
    assert found[:, 0].numpy() == pytest.approx(scaled(rms), abs=2e-3)  # kept in half precision


def test_no_photos_have_no_maps(config, splits):
    """The paper profile sets no validation photos aside."""
    assert teacher_maps(splits.test.head(0), config).shape == (0, 1, config.map_size, config.map_size)


@pytest.mark.parametrize("mean", ["ddt", "ddt+rms"])
def test_ddt_is_the_first_principal_component_of_the_training_photos_cells(config, splits, mean):
    config = replace(config, teacher_mean=mean, map_size=4)
    component = teacher_component(splits.train, config)
    cells = stage_by_hand(config, splits.train).transpose(0, 2, 3, 1)  # (N, 4, 4, 320)
    centred = cells.reshape(-1, 320) - cells.reshape(-1, 320).mean(axis=0)
    axis = np.linalg.svd(centred, full_matrices=False)[2][0]
    response = (centred @ axis).reshape(-1, 4, 4).mean(axis=0)
    axis *= np.sign(12 * response[1:3, 1:3].mean() - (response.sum() - response[1:3, 1:3].sum()))
    assert component[0].numpy() == pytest.approx(cells.reshape(-1, 320).mean(axis=0), abs=2e-3)
    assert np.dot(component[1].numpy(), axis) == pytest.approx(1, abs=1e-4)
    stage = stage_by_hand(config, splits.test)
    expected = scaled(np.einsum("nchw,c->nhw", stage - cells.reshape(-1, 320).mean(axis=0)[:, None, None], axis))
    if mean == "ddt+rms":
        expected = scaled((expected + scaled(np.sqrt((stage**2).mean(axis=1)))) / 2)
    found = teacher_maps(splits.test, config, component)
    assert found[:, 0].numpy() == pytest.approx(expected, abs=5e-3)


def test_component_does_not_depend_on_the_batches():
    features = torch.randn(10, 6, 5, 5) * torch.tensor([1.0, 5, 1, 1, 1, 1]).view(6, 1, 1)
    whole, parts = principal_component([features]), principal_component(features.split(3))
    torch.testing.assert_close(whole, parts)
    assert abs(whole[1, 1]) > 0.99 and whole[1].norm() == pytest.approx(1)


def test_middle_outweighs_the_border_whatever_sign_the_axis_has():
    """One channel that is high in the middle, or high at the border: the map is high in the middle both times."""
    blob = torch.zeros(4, 1, 8, 8)
    blob[..., 2:6, 2:6] = 1
    for features in (blob, -blob):
        mean, axis = principal_component([features])
        response = (features[0, 0] - mean) * axis
        assert response[3, 3] > 0 > response[0, 0]


@pytest.mark.parametrize("side", [3, 4, 5])
def test_middle_outweighs_the_border_of_the_smallest_maps(side):
    blob = torch.zeros(4, 1, side, side)
    blob[..., side // 2, side // 2] = 1
    for features in (blob, -blob):
        mean, axis = principal_component([features])
        assert ((features[0, 0] - mean) * axis)[side // 2, side // 2] > 0


def test_maps_without_a_middle_have_no_component():
    with pytest.raises(ValueError, match="2x2 cells.*raise teacher_size"):
        principal_component([torch.rand(4, 1, 2, 2)])


def test_component_knows_the_training_photos_alone(config, splits):
    """Another training table has another component, kept apart; the features of its photos are not computed again."""
    config = replace(config, teacher_mean="ddt")
    whole, half = teacher_component(splits.train, config), teacher_component(splits.train.iloc[:6], config)
    assert not torch.equal(whole, half)
    assert torch.equal(teacher_component(splits.train, config), whole)
    assert len(list(results_root().glob("teacher_features/*/components/*.npy"))) == 2
    assert len(list(results_root().glob("teacher_features/*/*.npy"))) == len(splits.train)


def test_teacher_without_a_component_has_none(config, splits):
    assert teacher_component(splits.train, config) is None
    with pytest.raises(ValueError, match="needs the component"):
        teacher_maps(splits.test, replace(config, teacher_mean="ddt"))
    with pytest.raises(ValueError, match='needs the statistics of a fixed teacher; set teacher_weights = "imagenet"'):
        replace(config, teacher_mean="ddt", teacher_weights="live")


@pytest.mark.parametrize("row", ["End-to-end", "Baseline"])
def test_trained_model_finds_by_itself_what_its_kept_maps_say(quick, splits, tmp_path, row):
    """The component travels in the checkpoint: a loaded model needs no pass over the training photos."""
    config = replace(quick, teacher_mean="ddt+rms", epochs=1, **ROWS[row])
    run = train_or_load(config, splits, 0, tmp_path / "run", announce=lambda text: None)
    images = torch.cat([batch["image"] for batch in evaluation_loader(splits.test, config)])
    kept = teacher_maps(splits.test, config, teacher_component(splits.train, config))
    torch.testing.assert_close(run.model.teacher_map(images), kept, atol=5e-3, rtol=0)
    assert run.metrics["teacher_mean_iou"] > 0


def test_interrupted_pass_goes_on_where_it_stopped_and_tells_how_far(config, splits, tmp_path, monkeypatch, capsys):
    """A thousand photos, and pooling for a network: interrupted after 400 and after 800, it computes none twice."""
    config = replace(config, teacher_size=8, map_size=2)
    photo = Path(splits.test["path"][0]).read_bytes()
    paths = [str(tmp_path / f"{number}.jpg") for number in range(1000)]
    for number, path in enumerate(paths):
        Path(path).write_bytes(photo + number.to_bytes(2, "big"))  # behind the picture's end
    computed = []

    def pooled(self, images):
        if len(computed) == 400:
            raise KeyboardInterrupt
        computed.append(len(images))
        return torch.nn.functional.avg_pool2d(images, 4)

    monkeypatch.setattr(Teacher, "fixed_features", pooled)
    monkeypatch.setattr("fgvclib.utils.progress.LINE_SECONDS", 0)
    photos = pd.DataFrame({"path": paths})
    with pytest.raises(KeyboardInterrupt):
        teacher_maps(photos, config)
    assert capsys.readouterr().out.splitlines()[-1].startswith("teacher maps: 400 of 1000 photos, ")
    computed.clear()  # another 400, then the rest
    with pytest.raises(KeyboardInterrupt):
        teacher_maps(photos, config)
    computed.clear()
    teacher_maps(photos, config)
    assert sum(computed) == 200
    assert capsys.readouterr().out.splitlines()[-1].startswith("teacher maps: 200 of 200 photos, ")


def test_teachers_are_compared_by_the_configured_box_on_validation_photos(config, splits):
    config = replace(config, box_component="largest", box_upsample=4)
    table = compare_teachers(splits, config, [0.3, 0.5])
    assert set(table.index) == {"last, mean", "last, rms", "stage, mean", "stage, rms", "stage, ddt", "stage, ddt+rms"}
    maps = teacher_maps(splits.validation, config)
    true = torch.from_numpy(splits.validation[BOX].to_numpy(dtype="float32"))
    hits = box_iou(true, attention_to_box(maps, 0.3, "largest", 4)) >= 0.5
    assert table.loc["stage, rms", 0.3] == pytest.approx(hits.float().mean().item())


def test_photos_without_a_true_box_count_for_no_teacher(config, splits):
    photos = splits.validation.copy()
    photos[BOX] = attention_to_box(teacher_maps(photos, config), 0.3).numpy()  # as if one teacher were always right
    photos.loc[1, BOX] = np.nan
    assert compare_teachers(replace(splits, validation=photos), config, [0.3]).loc["stage, rms", 0.3] == 1
    none = photos.assign(**dict.fromkeys(BOX, np.nan))
    assert compare_teachers(replace(splits, validation=none), config, [0.3]).isna().all(axis=None)


def test_kinds_of_map_share_one_pass_and_pixels_are_not_kept(config, splits, monkeypatch, tmp_path):
    monkeypatch.setenv("FGVC_DATA", str(tmp_path / "data"))
    teacher_maps(splits.test, config)
    monkeypatch.setattr(module, "_compute", None)  # a second pass would fail
    assert not torch.equal(
        teacher_maps(splits.test, replace(config, teacher_mean="mean")), teacher_maps(splits.test, config)
    )
    assert not list(tmp_path.glob("data/**/*.rgb"))


def test_fixed_teacher_does_not_follow_the_live_network(tiny):
    images, live = torch.randn(2, 3, 64, 64), create_backbone(tiny.backbone)
    teacher = Teacher(tiny.backbone, 64, 16, 4, weights="imagenet")
    before = teacher(live, images)
    with torch.no_grad():
        for parameter in live.parameters():
            parameter.zero_()
    assert torch.equal(teacher(live, images), before) and before.amax() == 1 and before.amin() == 0


def test_second_process_says_that_it_waits(config, splits, monkeypatch):
    wanted, said = threading.Event(), []

    def say(line, **_):
        said.append(line)
        wanted.set()

    monkeypatch.setattr(module, "print", say, raising=False)
    with ThreadPoolExecutor(1) as pool:
        with locked(module._folder(config) / ".lock"):
            maps = pool.submit(teacher_maps, splits.test, config)
            assert wanted.wait(60)
        assert len(maps.result()) == len(splits.test)
    assert said == ["teacher maps: another process is computing some; waiting for it."]


def test_maps_are_computed_once(config, splits, monkeypatch):
    first = teacher_maps(splits.train, config)
    monkeypatch.setattr(module, "_compute", None)  # a second computation would fail
    assert torch.equal(teacher_maps(splits.train, config), first)


@pytest.mark.parametrize("bytes_left", [0, 5, 200])
def test_file_that_was_cut_short_is_computed_anew(config, splits, bytes_left):
    config = replace(config, teacher_mean="ddt")
    component = teacher_component(splits.train, config)
    maps = teacher_maps(splits.train, config, component)
    features = next(results_root().glob("teacher_features/*/*.npy"))
    for path in (features, *results_root().glob("teacher_features/*/components/*.npy")):
        os.truncate(path, bytes_left)
    assert torch.equal(teacher_component(splits.train, config), component)
    os.truncate(features, bytes_left)
    assert torch.equal(teacher_maps(splits.train, config, component), maps)


@pytest.mark.parametrize("change", [{"teacher_size": 96}, {"teacher_mean": "mean"}, {"teacher_layer": "last"}])
def test_another_teacher_has_maps_of_its_own(config, splits, change):
    assert not torch.equal(teacher_maps(splits.test, replace(config, **change)), teacher_maps(splits.test, config))


def test_photo_that_is_copied_anew_keeps_its_map(config, splits, monkeypatch, tmp_path):
    maps = teacher_maps(splits.test, config)
    copies = [shutil.copy(path, tmp_path / f"{number}.png") for number, path in enumerate(splits.test["path"])]
    monkeypatch.setattr(module, "_compute", None)  # a second computation would fail
    assert torch.equal(teacher_maps(splits.test.assign(path=copies), config), maps)


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


def test_training_makes_no_second_pass(quick, splits, tmp_path, monkeypatch):
    teacher_maps(splits.train, quick)
    monkeypatch.setattr(Teacher, "__call__", None)  # a teacher pass would fail
    records = list(train(replace(quick, epochs=1), splits, 0, tmp_path / "checkpoint.pt"))
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


def test_what_was_learnt_alone_survives_an_interrupt_in_the_first_epoch(quick, splits, tmp_path, monkeypatch):
    config = replace(quick, localisation_epochs=2, epochs=1)
    resumed, said = tmp_path / "run" / "checkpoint.pt", []
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, "train_one_epoch", _interrupt)
        train_or_load(config, splits, 0, resumed.parent, said.append)
    assert said[-1].startswith("run: interrupted after AttNet and AffNet learnt alone, whose state is saved in")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_localisation", None)  # learning alone again would fail
        list(train(config, splits, 0, resumed))
    list(train(config, splits, 0, tmp_path / "uninterrupted.pt"))
    first, second = (read_checkpoint(path)["model"] for path in (resumed, tmp_path / "uninterrupted.pt"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_minutes_of_a_run_hold_the_maps_and_the_epochs_alone_also_after_an_interrupt(
    quick, splits, tmp_path, monkeypatch
):
    clock, path = [0.0], tmp_path / "checkpoint.pt"
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))

    def taking(minutes, name):
        real = getattr(loop, name)

        def slow(*arguments):
            clock[0] += 60 * minutes
            return real(*arguments)

        return name, slow

    config = replace(quick, localisation_epochs=1, epochs=1)
    monkeypatch.setattr(loop, *taking(10, "train_localisation"))
    monkeypatch.setattr(loop, *taking(1, "train_one_epoch"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop, *taking(5, "fixed_maps"))
        patch.setattr(loop, "train_one_epoch", _interrupt)
        list(train(config, splits, 0, path))
    assert read_checkpoint(path)["provenance"]["minutes"] == 15
    list(train(config, splits, 0, path))
    assert read_checkpoint(path)["provenance"]["minutes"] == 16


def _interrupt(*args):
    raise KeyboardInterrupt


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
