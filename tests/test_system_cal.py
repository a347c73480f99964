"""CAL and WS-DAN: pooling, counterfactual, crops, drops and centres, against loops."""

import json
import math

import pytest
import torch

from fgvclib.study.experiment import Experiment
from fgvclib.systems.cal import CAL, WSDAN, CALOneLook, draw, draw_maps, marked, marked_box, pool
from fgvclib.tools.cli import main
from fgvclib.training import loop
from fgvclib.training.checkpoints import read_checkpoint, weights_checksum
from fgvclib.utils.provenance import FRESH

BACKBONE = "efficientnet_lite0.pypi"
CLASSES = 3


def build(system=CAL):
    torch.manual_seed(0)
    return system(CLASSES, BACKBONE, 128, pretrained=False)


@pytest.fixture
def batch():
    return torch.randn(4, 3, 160, 160, generator=torch.Generator().manual_seed(1)), torch.tensor([0, 2, 2, 1])


def test_pooling_is_that_of_loops():
    generator = torch.Generator().manual_seed(2)
    attention, features = torch.rand(2, 3, 4, 4, generator=generator), torch.randn(2, 5, 4, 4, generator=generator)
    found = pool(attention, features)
    for photo in range(2):
        values = []
        for m in range(3):
            for c in range(5):
                cells = [
                    (attention[photo, m, i, j] * features[photo, c, i, j]).item() for i in range(4) for j in range(4)
                ]
                mean = sum(cells) / 16
                values.append(math.copysign(math.sqrt(abs(mean) + 1e-6), mean))
        length = math.sqrt(sum(value**2 for value in values))
        assert found[photo].tolist() == pytest.approx([value / length for value in values], abs=1e-5)


def test_no_effect_where_the_attention_is_the_random_map(batch, monkeypatch):
    system = build().train()
    _, effect, *_ = system.answer(batch[0])
    assert effect.abs().max() > 1e-3
    monkeypatch.setattr(CAL, "random_attention", lambda self, attention: attention)
    _, effect, *_ = system.answer(batch[0])
    assert torch.equal(effect, torch.zeros(4, CLASSES))


def test_random_map_is_uniform_up_to_two():
    torch.manual_seed(0)
    drawn = build().random_attention(torch.zeros(4, 8, 50, 50))
    assert 0 <= drawn.min() < 0.001 and 1.999 < drawn.max() < 2
    assert drawn.mean().item() == pytest.approx(1, abs=0.01) and drawn.var().item() == pytest.approx(1 / 3, abs=0.01)


def test_crop_box_holds_the_marked_pixels_and_a_margin():
    generator = torch.Generator().manual_seed(3)
    maps, thresholds = torch.rand(6, 8, 8, generator=generator) ** 6, torch.linspace(0.3, 0.8, 6).view(6, 1, 1)
    boxes = marked_box(maps, thresholds, 0.1, 8)  # at the maps' own size, so that loops need no interpolation
    flags = marked(maps, thresholds, 8)
    for photo in range(6):
        limit = thresholds[photo].item() * max(maps[photo].flatten().tolist())
        cells = [(y, x) for y in range(8) for x in range(8) if maps[photo, y, x].item() >= limit]
        assert {tuple(cell) for cell in flags[photo].nonzero().tolist()} == set(cells)
        rows, columns = ([cell[i] for cell in cells] for i in (0, 1))
        hull = [min(columns) / 8 - 0.1, min(rows) / 8 - 0.1, (max(columns) + 1) / 8 + 0.1, (max(rows) + 1) / 8 + 0.1]
        assert boxes[photo].tolist() == pytest.approx([min(max(edge, 0), 1) for edge in hull], abs=1e-6)


def test_map_without_attention_marks_the_whole_photo():
    assert marked_box(torch.zeros(1, 4, 4), 0.5, 0.1, 32).tolist() == [[0, 0, 1, 1]]


def test_drop_hides_the_marked_pixels_and_no_others(batch, monkeypatch):
    system, seen = build().train(), []
    monkeypatch.setattr("fgvclib.systems.cal.draw_maps", lambda attention: corner)
    corner = torch.zeros(2, 4, 4, 4)
    corner[:, :, 0, 0] = 1
    answer = system.answer
    monkeypatch.setattr(system, "answer", lambda images: seen.append(images) or answer(images))
    system(*batch)
    photo, (_, dropped) = seen[0], seen[1].chunk(2)
    hidden = (dropped == 0).all(dim=1)
    # The marked cell is 32 pixels wide; enlarged, its values fall from 1 to 0 between the pixels 16 and 48.
    assert hidden[:, :16, :16].all() and not hidden[:, 42:].any() and not hidden[:, :, 42:].any()
    assert torch.equal(dropped, torch.where(hidden[:, None], 0.0, photo))


def test_maps_are_drawn_by_the_root_of_their_sums():
    torch.manual_seed(0)
    attention = torch.zeros(20_000, 3, 2, 2)
    attention[:, 1], attention[:, 2] = 1, 4  # roots of the sums 2 and 4: a third and two thirds
    drawn = draw_maps(attention)
    assert drawn.shape == (2, 20_000, 2, 2)
    assert (drawn[..., 0, 0] == 4).float().mean(dim=1).tolist() == pytest.approx([2 / 3] * 2, abs=0.02)
    assert (drawn[..., 0, 0] == 0).float().mean().item() < 0.001


def test_thresholds_are_drawn_within_their_bounds():
    torch.manual_seed(0)
    drawn = draw((0.4, 0.6), 1000, torch.device("cpu"))
    assert drawn.shape == (1000, 1, 1)
    assert 0.4 <= drawn.min() < 0.41 and 0.59 < drawn.max() <= 0.6


def test_centres_move_towards_the_photos_of_their_class():
    system = build()
    system.centres.normal_()
    f, labels, before = torch.randn(4, system.centres.shape[1]), torch.tensor([0, 2, 2, 0]), system.centres.clone()
    given = system.move_centres(f, labels)
    expected = before.clone()
    for photo, label in enumerate(labels.tolist()):
        unit = before[label] / before[label].norm()
        assert torch.allclose(given[photo], unit, atol=1e-6)
        expected[label] += 0.05 * (f[photo] - unit)
    assert torch.allclose(system.centres, expected, atol=1e-5)
    assert torch.equal(system.centres[1], before[1])


def test_without_the_effect_it_is_ws_dan(batch):
    """Equal draws give equal terms but the effect; WS-DAN's is the mean CE of photo, crop and drop, and the centres."""
    terms = {}
    for kind in (CAL, WSDAN):
        system = build(kind).train()
        system.random_attention = torch.ones_like  # draws nothing, so that both crop and drop alike
        torch.manual_seed(7)
        looks = system(*batch)
        terms[kind] = {name: term.item() for name, term in system.loss(looks, batch[1]).items()}
    effect = terms[CAL].pop("effect")
    terms[CAL]["total"] -= effect
    assert effect > 0 and terms[CAL] == pytest.approx(terms[WSDAN], rel=1e-5)
    log_probabilities = torch.cat([looks.logits["main"], looks.logits["views"]]).log_softmax(dim=1)
    photos = -sum(log_probabilities[i, batch[1][i % 4]].item() for i in range(12)) / 12
    distance = sum((f - c).norm().item() ** 2 for f, c in zip(*looks.parts.values(), strict=True)) / 4
    assert terms[WSDAN]["total"] == pytest.approx(photos + distance, rel=1e-4)


def test_one_look_answers_as_the_photo_alone(batch):
    system = build(CALOneLook).eval()
    with torch.no_grad():
        photo = torch.nn.functional.interpolate(batch[0], (128, 128), mode="bilinear", antialias=True)
        expected = system.answer(photo)[0].log_softmax(dim=1)
        assert torch.allclose(system.predict(batch[0]).log_probabilities, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("backbone", "size", "maps", "channels"), [(BACKBONE, 128, 8, 1280), ("resnet50.a1_in1k", 448, 32, 2048)]
)
def test_parameters_beyond_the_backbone(backbone, size, maps, channels):
    system = CAL(CLASSES, backbone, size, pretrained=False)
    own = sum(p.numel() for p in system.parameters()) - sum(p.numel() for p in system.backbone.parameters())
    assert own == channels * maps + 2 * maps + maps * channels * CLASSES


def test_one_look_takes_the_weights_of_cal_as_it_trains_alike(small, untrained, data_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    told, experiments = [], []
    for name in ("alone", "after"):
        monkeypatch.setenv("FGVC_RESULTS", str(tmp_path / name))
        experiments.append(Experiment("smoke", "synthbirds", 0, small.changes() | {"epochs": 1}))
    alone, after = experiments
    trained, cal = alone.run("cal-one-look"), after.run("cal")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_one_epoch", None)
        taken = after.run("cal-one-look", announce=told.append)
    assert "cal-one-look-seed0: takes the weights of cal-seed0, which trains alike" in told
    assert weights_checksum(taken.checkpoint) == weights_checksum(trained.checkpoint)
    assert taken.metrics == trained.metrics
    probabilities = [run.predictions["probability"] for run in (taken, trained, cal)]
    assert probabilities[0].equals(probabilities[1]) and not probabilities[0].equals(probabilities[2])
    assert taken.history["train_total"].equals(trained.history["train_total"])
    assert taken.history["validation_accuracy"].isna().all() and taken.trajectories.empty
    assert read_checkpoint(taken.checkpoint)["provenance"]["trained_as"] == "cal-seed0"
    before = taken.checkpoint.stat().st_mtime_ns
    assert after.run("cal-one-look").checkpoint.stat().st_mtime_ns == before


def test_fresh_one_look_takes_the_weights_of_the_cal_that_is_there(
    small, untrained, data_folder, tmp_path, monkeypatch
):
    monkeypatch.setenv("FGVC_DATA", str(data_folder))
    monkeypatch.setenv("FGVC_RESULTS", str(tmp_path))
    monkeypatch.setenv(FRESH, "0")  # to be set back
    overrides = small.changes() | {"epochs": 1}
    experiment = Experiment("smoke", "synthbirds", 0, overrides)
    cal, old = experiment.run("cal"), experiment.run("cal-one-look")
    made = [run.checkpoint.stat().st_mtime_ns for run in (cal, old)]
    monkeypatch.setattr(loop, "train_one_epoch", None)
    options = [f"--set={key}={json.dumps(value)}" for key, value in overrides.items()]
    assert main(["train", "--profile", "smoke", *options, "--system", "cal-one-look", "--fresh"]) == 0
    assert cal.checkpoint.stat().st_mtime_ns == made[0] and old.checkpoint.stat().st_mtime_ns > made[1]
    assert read_checkpoint(old.checkpoint)["provenance"]["trained_as"] == "cal-seed0"
    (aside,) = (experiment.folder / "runs" / "replaced").iterdir()
    assert aside.name.startswith("cal-one-look-seed0-") and (aside / "checkpoint.pt").stat().st_mtime_ns == made[1]
