"""ELoPE: a Baseline, an AttNet that it teaches, and a classifier on AttNet's boxes, cut from the original photos."""

import os
import shutil
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from fgvclib.apps.predict import Recogniser
from fgvclib.config import PAPER
from fgvclib.data.augment import to_input
from fgvclib.data.fixed_boxes import with_fixed_boxes
from fgvclib.data.index import BOX, CROP
from fgvclib.data.loaders import PhotoDataset
from fgvclib.data.photos import open_photo
from fgvclib.data.splits import load_splits, read_dataset
from fgvclib.data.teacher_maps import maps_of
from fgvclib.model.backbones import normalisation
from fgvclib.model.system import build_attnet, build_model
from fgvclib.study import elope
from fgvclib.study.efficiency import million_multiply_adds
from fgvclib.study.elope import elope_values, find_boxes, learn_maps, whole_where_short, with_attnet_boxes
from fgvclib.study.experiment import Experiment
from fgvclib.study.table2 import ROWS
from fgvclib.study.table3 import cost
from fgvclib.training import runs
from fgvclib.training.checkpoints import read_checkpoint, save_checkpoint
from fgvclib.training.identity import data_checksums
from fgvclib.utils.provenance import FRESH, ask_for_fresh_runs

EPOCHS = elope.EPOCHS


@pytest.fixture(scope="module", autouse=True)
def quick():
    """AttNet learns for two epochs alone; at tau = 0.3 its hull would then still be the whole photo."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(elope, "EPOCHS", 2)
        patch.setattr(elope, "PAPER", replace(PAPER, threshold=0.9))
        yield


@pytest.fixture(scope="module")
def config(small, untrained):
    return replace(small, epochs=1)


@pytest.fixture(scope="module")
def finished(config, splits, data_folder, tmp_path_factory):
    """An experiment with the runs "Baseline" and "ELoPE", and the former's checkpoint, as bytes, before the latter."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVC_DATA", str(data_folder))
        experiment = Experiment("smoke", "synthbirds")
        experiment.config, experiment.folder, experiment.splits = config, tmp_path_factory.mktemp("elope"), splits
        before = experiment.run("Baseline").checkpoint.read_bytes()
        experiment.run("ELoPE")
    return experiment, before


@pytest.fixture
def copy(finished, tmp_path):
    """The experiment with a results folder of its own."""
    shutil.copytree(finished[0].folder, tmp_path / "results")
    experiment = Experiment("smoke", "synthbirds")
    experiment.config, experiment.splits = finished[0].config, finished[0].splits
    experiment.folder = tmp_path / "results"
    return experiment


class Painted(nn.Module):
    """In place of AttNet: maps that were painted before, in the table's order."""

    input_size = 8

    def __init__(self, maps):
        super().__init__()
        self.maps, self.unused, self.seen = maps, nn.Parameter(torch.zeros(1)), 0

    def forward(self, images):
        self.seen += len(images)
        return self.maps[self.seen - len(images) : self.seen]


def test_hull_of_all_cells_becomes_pixels_of_the_photo(config, tmp_path):
    """By a loop over cells; a photo 40 pixels wide stays whole where three of its columns are less than 10 pixels."""
    generator, sizes = np.random.default_rng(0), [(200, 120), (40, 300), (333, 77), (40, 300), (64, 64)]
    maps = np.zeros((5, 14, 14))
    for number, (width, height) in enumerate(sizes):
        Image.new("RGB", (width, height)).save(tmp_path / f"{number}.png")
        top, left = generator.integers(0, 10, 2)
        maps[number, top : top + 4, left : left + (3 if number == 3 else 4)] = generator.uniform(0.1, 1, (4, 1))
        maps[number, top, left] = 1
    maps = 5 * maps - 2  # AttNet's maps have any range
    photos = pd.DataFrame({"path": [str(tmp_path / f"{number}.png") for number in range(5)], "label": 0})
    row = replace(config, **elope_values(config) | {"threshold": 0.3})
    boxes = find_boxes(Painted(torch.tensor(maps).float()[:, None]), photos, row)
    whole = []
    for number, (width, height) in enumerate(sizes):
        share = (maps[number] - maps[number].min()) / (maps[number].max() - maps[number].min())
        cells = [(row, column) for row in range(14) for column in range(14) if share[row, column] >= 0.3]
        rows, columns = [row for row, _ in cells], [column for _, column in cells]
        box = [min(columns) * width / 14, min(rows) * height / 14]
        box += [(max(columns) + 1) * width / 14, (max(rows) + 1) * height / 14]
        if box[2] - box[0] < 10 or box[3] - box[1] < 10:
            box, whole = [0, 0, width, height], [*whole, number]
        assert (boxes[number] * torch.tensor([width, height] * 2)).tolist() == pytest.approx(box, abs=1e-3)
    assert 3 in whole and len(whole) < 5


def test_box_with_a_side_below_ten_pixels_is_the_whole_photo():
    boxes = torch.tensor([[0.2, 0.0, 0.3, 1.0], [0.2, 0.0, 0.3, 1.0], [0.0, 0.5, 1.0, 0.6]])
    found = whole_where_short(boxes, torch.tensor([[99, 50], [101, 50], [500, 90]]))
    assert found.tolist() == [[0, 0, 1, 1], boxes[1].tolist(), [0, 0, 1, 1]]


def test_checkerboard_of_the_original_photo_survives_the_cut(tiny, tmp_path):
    """A board with fields of one pixel, four times as wide as X: shrunk first, it would be grey."""
    board = np.indices((256, 256)).sum(axis=0) % 2
    Image.fromarray((255 * board).astype(np.uint8)).convert("RGB").save(tmp_path / "board.png")
    photos = pd.DataFrame({"path": [str(tmp_path / "board.png")], "label": [0]})
    cut = photos.assign(**dict(zip(CROP, [0.25, 0.125, 0.5, 0.375], strict=True)))  # 64 x 64 pixels from (64, 32) on
    row = replace(tiny, **elope_values(tiny))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in normalisation(tiny.backbone))
    found = PhotoDataset(cut, row)[0]["image"] * std + mean
    assert torch.allclose(found, torch.from_numpy(board[32:96, 64:128]).float().expand(3, 64, 64), atol=1e-5)
    assert PhotoDataset(photos, row)[0]["image"].std() < 0.1  # what AttNet sees is the whole photo
    in_x = replace(tiny, **ROWS["Baseline"], fixed_box="oracle")
    assert PhotoDataset(cut, in_x)[0]["image"].std() < 0.1
    for kind in (row, in_x):  # a new photo is cut alike
        new = to_input(open_photo(tmp_path / "board.png"), kind, (0.25, 0.125, 0.5, 0.375))
        assert torch.equal(new, PhotoDataset(cut, kind)[0]["image"])


def test_small_profile_and_paper_have_one_map_and_one_box(monkeypatch):
    monkeypatch.setattr(elope, "EPOCHS", EPOCHS)
    monkeypatch.setattr(elope, "PAPER", PAPER)
    for profile, epochs in {"paper": 45, "cpu": 45, "photos": 6}.items():
        row = Experiment(profile, "synthbirds").row_config("ELoPE")
        assert (row.teacher_weights, row.teacher_layer, row.teacher_mean) == ("live", "last", "mean")
        assert (row.threshold, row.box_component, row.box_upsample, row.crop_margin) == (0.3, "all", 1, 0)
        assert row.localisation_epochs == epochs


def test_maps_are_the_mean_of_the_last_feature_maps_of_whole_photos(config, splits):
    torch.manual_seed(0)
    classifier = build_model(replace(config, **ROWS["Baseline"]), 3, pretrained=False).classifier.eval()
    row = replace(config, **elope_values(config), teacher_output_stride=32)
    found = maps_of(classifier.backbone, splits.validation, row)
    for path, one in zip(splits.validation["path"], found, strict=True):
        image = to_input(Image.open(path).convert("RGB"), row)[None]
        with torch.no_grad():
            mean = classifier.feature_maps(image).mean(dim=1, keepdim=True)
        wide = nn.functional.interpolate(mean, (14, 14), mode="bilinear", align_corners=False)[0]
        assert torch.allclose(one, (wide - wide.min()) / (wide.max() - wide.min()), atol=1e-4)


def test_baseline_is_not_touched(finished):
    experiment, before = finished
    baseline = experiment.run("Baseline")
    assert baseline.checkpoint.read_bytes() == before
    row = replace(experiment.row_config("ELoPE"), localisation_epochs=1)
    state = {name: value.clone() for name, value in baseline.model.state_dict().items()}
    attnet = learn_maps(baseline, experiment.splits, row, 0)
    assert all(parameter.grad is None for parameter in baseline.model.parameters())
    assert all(torch.equal(value, state[name]) for name, value in baseline.model.state_dict().items())
    start = build_attnet(row).state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in attnet.stem.state_dict(prefix="stem.").items())


def test_boxes_say_what_they_took(finished):
    experiment, _ = finished
    made_by = read_checkpoint(experiment.run_folder("ELoPE") / "attnet.pt")["provenance"]
    assert made_by["minutes"] > 0 and made_by["commit"]


def test_attnet_learns_the_maps(finished):
    """Forty epochs bring its maps nearer to the Baseline's than two."""
    experiment, _ = finished
    baseline, photos = experiment.run("Baseline"), experiment.splits.train
    maps = maps_of(baseline.model.classifier.backbone, photos, experiment.row_config("ELoPE"))
    images = PhotoDataset(photos, replace(experiment.config, image_size=64))
    images = torch.stack([images[number]["image"] for number in range(len(images))])
    distance = []
    for epochs in (2, 40):
        row = replace(experiment.row_config("ELoPE"), localisation_epochs=epochs)
        attnet = learn_maps(baseline, experiment.splits, row, 0)
        with torch.no_grad():
            distance.append(nn.functional.smooth_l1_loss(attnet(images), maps).item())
    assert distance[1] < 0.7 * distance[0]


def test_where_it_looked_is_scored_in_the_whole_photo(finished):
    run = finished[0].run("ELoPE")
    assert run.predictions[[f"box_{corner}" for corner in BOX]].to_numpy() == pytest.approx(
        run.splits.test[CROP].to_numpy(), abs=1e-6
    )
    assert not set(BOX) & set(run.splits.train.columns) and "mean_iou" in run.metrics
    assert len(run.splits.train[CROP].drop_duplicates()) > 1  # boxes of AttNet's, not one for all


def test_new_photo_is_cut_as_when_the_run_is_scored(finished):
    run = finished[0].run("ELoPE")
    recogniser = Recogniser(run.checkpoint)
    assert not recogniser.remarks()
    for _, scored in run.predictions.iterrows():
        photo = open_photo(scored["path"])
        found = recogniser(photo)
        assert found.class_name == run.splits.class_names[scored["prediction"]]
        assert found.probability == pytest.approx(scored["probability"], abs=1e-5)
        corners = scored[[f"box_{corner}" for corner in BOX]].astype(float) * [*photo.size, *photo.size]
        assert list(found.box) == pytest.approx(corners.tolist(), abs=0.51)  # whole pixels


def test_new_photo_needs_the_runs_attnet(copy):
    folder = copy.run_folder("ELoPE")
    shutil.copy(folder / "checkpoint.pt", folder / "attnet.pt")
    with pytest.raises(ValueError, match="attnet.pt is not the AttNet of the checkpoint beside it; copy both"):
        Recogniser(folder / "checkpoint.pt")
    (folder / "attnet.pt").unlink()
    with pytest.raises(ValueError, match="attnet.pt is missing, .*; copy it beside the checkpoint"):
        Recogniser(folder / "checkpoint.pt")


def test_other_true_boxes_of_the_training_photos_give_the_same_boxes(copy, data_folder, monkeypatch):
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    photos, names = read_dataset(copy.config)
    photos.loc[photos["is_train"], BOX] = [1.0, 2.0, 30.0, 40.0]
    before = copy.run("ELoPE").splits
    validation = before.validation["image_id"]
    original, _ = read_dataset(copy.config)
    scored = photos["image_id"].isin(validation)  # true boxes of the validation part are scored, and stay
    photos.loc[scored, BOX] = original.loc[scored, BOX]
    monkeypatch.setattr("fgvclib.data.splits.read_dataset", lambda config: (photos.copy(), names))
    shutil.rmtree(copy.run_folder("ELoPE"))
    copy.splits = load_splits(copy.config)
    after = with_attnet_boxes(copy.splits, copy.row_config("ELoPE"), 0, copy.run_folder("ELoPE"), copy.run("Baseline"))
    for part in ("train", "validation", "test"):
        assert np.array_equal(getattr(after, part)[CROP], getattr(before, part)[CROP])


def no_training(*args, **kwargs):
    raise AssertionError("something is trained")


def test_interrupted_run_goes_on_with_the_saved_boxes(copy, monkeypatch):
    folder = copy.run_folder("ELoPE")
    for name in ("metrics.json", "checkpoint.pt"):
        (folder / name).unlink()
    before = (folder / "attnet.pt").read_bytes()
    monkeypatch.setattr(elope, "learn_maps", no_training)
    run = copy.run("ELoPE")
    assert run.checkpoint.exists() and (folder / "attnet.pt").read_bytes() == before
    expected = read_checkpoint(folder / "attnet.pt")["boxes"]["test"]
    assert np.allclose(run.splits.test[CROP], expected)


def test_finished_run_needs_no_baseline(copy, monkeypatch):
    shutil.rmtree(copy.run_folder("Baseline"))
    monkeypatch.setattr(runs, "train", no_training)
    assert copy.find("ELoPE").metrics["accuracy"] >= 0
    (copy.run_folder("ELoPE") / "attnet.pt").unlink()
    with pytest.raises(AssertionError, match="something is trained"):  # now its boxes have to be made
        copy.run("ELoPE")


def test_a_baseline_without_its_weights_is_not_asked_for(copy, monkeypatch):
    (copy.run_folder("Baseline") / "checkpoint.pt").unlink()  # as in a copy of the committed runs
    monkeypatch.setattr(runs, "train", no_training)
    assert copy.find("ELoPE").metrics["accuracy"] >= 0
    assert copy.is_trained("ELoPE") and copy.has_run("Baseline") and not copy.is_trained("Baseline")


def change_baseline(experiment, factor):
    path = experiment.run_folder("Baseline") / "checkpoint.pt"
    state = read_checkpoint(path)
    state["model"]["classifier.output.bias"] *= factor
    save_checkpoint(path, state | {"provenance": {"minutes": 0}})


@pytest.mark.parametrize("done", [True, False])
def test_boxes_of_another_baseline_are_refused(copy, done):
    change_baseline(copy, 1)
    copy.run("ELoPE")  # the same weights in another file are the same Baseline
    change_baseline(copy, 2)
    if not done:
        (copy.run_folder("ELoPE") / "metrics.json").unlink()
    told = r"attnet.pt belongs to another run \(other Baseline\); move it away"
    with pytest.raises(ValueError, match=told) as refusal:
        copy.run("ELoPE")
    assert len(str(refusal.value).splitlines()) == 1


def test_baseline_without_its_weights_is_refused_with_a_sentence(copy):
    """As it is copied from the committed runs."""
    shutil.rmtree(copy.run_folder("ELoPE"))
    (copy.run_folder("Baseline") / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=rf"checkpoint.pt is missing.*; delete {copy.run_folder('Baseline')} to train"):
        copy.run("ELoPE")


@pytest.mark.parametrize("part", ["train", "validation", "test"])
def test_boxes_belong_to_the_run(finished, part):
    run = finished[0].run("ELoPE")
    other = replace(run.splits, **{part: getattr(run.splits, part).assign(crop_x1=0.123)})
    before, after = (data_checksums(splits, run.config) for splits in (run.splits, other))
    assert [name for name in before if before[name] != after[name]] == ["boxes"]


@pytest.mark.parametrize(
    "named, replaced",
    [([], ["Baseline", "ELoPE"]), (["ELoPE"], ["ELoPE"]), (["ELoPE", "Baseline"], ["Baseline", "ELoPE"])],
)
def test_fresh_run_has_fresh_boxes_and_the_baseline_that_is_there(copy, monkeypatch, named, replaced):
    """A Baseline that was named, too, is made anew before, in whatever order."""
    folder = copy.run_folder("ELoPE")
    old = time.time() - 100
    for path in copy.folder.rglob("*.*"):
        os.utime(path, (old, old))
    monkeypatch.setenv(FRESH, "0")  # to be set back
    ask_for_fresh_runs(copy.run_folder(row).name for row in named)
    for row in named or ["ELoPE"]:
        copy.run(row)
    aside = {path.name.partition("-seed0-")[0]: path for path in (copy.folder / "runs" / "replaced").iterdir()}
    assert sorted(aside) == replaced
    for name in ("attnet.pt", "checkpoint.pt", "metrics.json"):
        assert (aside["ELoPE"] / name).stat().st_mtime < old + 1 and (folder / name).stat().st_mtime > old + 50


def test_attnets_boxes_are_for_their_row_alone(config, splits):
    with pytest.raises(ValueError, match='fixed_box = "attnet" is for the row "ELoPE" alone'):
        with_fixed_boxes(splits, replace(config, **elope_values(config)))


def test_shipped_run_without_its_boxes_is_of_no_use(copy):
    folder = copy.run_folder("ELoPE")
    (folder / "attnet.pt").unlink()
    with pytest.raises(ValueError, match="attnet.pt is missing, and with it the boxes of this run"):
        with_attnet_boxes(copy.splits, copy.row_config("ELoPE"), 0, folder, None)


def test_cost_is_the_classifiers_and_attnets(config):
    row, baseline = replace(config, **elope_values(config)), replace(config, **ROWS["Baseline"])
    attnet = build_attnet(row, pretrained=False).eval()
    found, plain = cost(row, 3), cost(baseline, 3)
    assert found["passes"] == found["training_passes"] == 1
    extra = million_multiply_adds(attnet, torch.zeros(1, 3, 64, 64))
    assert extra > 0 and found["million_macs"] == pytest.approx(plain["million_macs"] + extra)
    assert found["parameters"] == plain["parameters"] + sum(value.numel() for value in attnet.parameters())
    assert found["views"].startswith("photo")
